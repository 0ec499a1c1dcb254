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

    @property
    def environment(self) -> dict[str, str]:
        """The variables that clients read, and this machine's PATH."""
        return {"OPENAI_BASE_URL": self.url, "OPENAI_API_KEY": self.key, "PATH": os.environ["PATH"]}


@dataclass(frozen=True)
class Faulty:
    """A gateway on which each model fails in its own way; the engine at `engine_url` counts its requests."""

    url: str
    keys: dict[str, str]
    engine_url: str
