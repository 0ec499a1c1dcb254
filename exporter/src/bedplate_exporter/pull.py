"""The pull of a model that a deployment runs now, from the file that the module ollama_model writes."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

FILE = Path("/run/bedplate-pull/progress.json")
STALE_SECONDS = 60
"""The engine reports every second: an older file is that of a deployment that was killed."""


@dataclass(frozen=True)
class Pull:
    """Bytes that are here, of how many, and how many come in a second."""

    model: str
    done: int
    total: int
    per_second: int


def read_pull(file: Path = FILE) -> Pull | None:
    """Return the pull that runs now; None where there is none."""
    try:
        if time.time() - file.stat().st_mtime > STALE_SECONDS:
            return None
        document = json.loads(file.read_text())
        counts = (int(document[name]) for name in ("done", "total", "per_second"))
        return Pull(str(document["model"]), *counts)
    except (OSError, ValueError, TypeError, KeyError):
        return None
