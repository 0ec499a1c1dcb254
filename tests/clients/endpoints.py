"""Where the clients ask."""

import os
from dataclasses import dataclass

MODEL = "smollm2:135m"


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that works; `url` ends with /v1."""

    url: str
    key: str
    model: str = MODEL
    tools: bool = True
    """The model's template names tools; where not, the gateway refuses them with 400."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables that clients read, and the machine's PATH."""
        return {"OPENAI_BASE_URL": self.url, "OPENAI_API_KEY": self.key, "PATH": os.environ["PATH"]}


@dataclass(frozen=True)
class Faulty:
    """A gateway whose engines fail, each model in its own way; `engine_url` counts what reached them."""

    url: str
    keys: dict[str, str]
    engine_url: str
