"""The endpoints that the clients use."""

import os
from dataclasses import dataclass

MODEL = "smollm2:135m"


@dataclass(frozen=True)
class Endpoint:
    """A working endpoint; `url` ends with /v1."""

    url: str
    key: str
    model: str = MODEL
    tools: bool = True
    """Whether the model's template supports tools; if not, the gateway refuses them with 400."""
    ca_file: str = ""
    """The CA of an https URL."""
    metrics_url: str = ""
    """The gateway's metrics, where they can be read from here."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables that clients read, and this machine's PATH."""
        names = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
        trust = dict.fromkeys(names, self.ca_file) if self.ca_file else {}
        shared = {"OPENAI_BASE_URL": self.url, "OPENAI_API_KEY": self.key, "PATH": os.environ["PATH"]}
        return shared | trust


@dataclass(frozen=True)
class Faulty:
    """A gateway on which each model fails in its own way; the engine at `engine_url` counts its requests."""

    url: str
    keys: dict[str, str]
    engine_url: str
