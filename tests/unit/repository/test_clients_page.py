"""docs/guide/clients.md names the versions in the lock files, which `make clients` tests."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def locked() -> dict[str, str]:
    """Return the versions in the clients' lock files, by name."""
    text = "".join((ROOT / f"requirements/{name}.txt").read_text() for name in ("aider", "clients"))
    # The clients' own openai comes last, because aider depends on another version.
    versions = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
    for folder in ("npm", "agents"):
        lock = json.loads((ROOT / f"tests/clients/{folder}/package-lock.json").read_text())
        for place, entry in lock["packages"].items():
            versions[f"npm {place.removeprefix('node_modules/')}"] = entry.get("version", "")
    return versions


def test_versions() -> None:
    rows = re.findall(r"^\| (.+?) \| (\S+?)[ |]", (ROOT / "docs/guide/clients.md").read_text(), re.MULTILINE)
    documented = {name: version for name, version in rows if re.match(r"\d", version)}
    versions = locked()
    assert documented == {
        "`openai` for Python": versions["openai"],
        "`openai` for npm": versions["npm openai"],
        "`anthropic` for Python": versions["anthropic"],
        "LangChain, `langchain-openai`": versions["langchain-openai"],
        "Claude Code": versions["npm @anthropic-ai/claude-code"],
        "Codex": versions["npm @openai/codex"],
        "opencode": versions["npm opencode-linux-x64"],
        "`llm`": versions["llm"],
        "aider": versions["aider-chat"],
        "Continue, by its command line `cn`": versions["npm @continuedev/cli"],
    }
