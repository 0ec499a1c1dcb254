"""Results as sections of bench/gateway.md: one section a row, replaced when the row runs again."""

import re
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests.support.servers import ROOT, versions

REPORT = ROOT / "bench/gateway.md"
INTRODUCTION = """# The gateway beside stock LiteLLM

Made by `make bench-gateway`; each section says its command, day and versions. All servers and the load share
the machine's cores, so times are those of a busy machine. Stock LiteLLM offers the same engine in two ways,
`openai/` and `ollama_chat/`. The fake engine is `traffic fake-server`: constant times, no model. The real
engine is Ollama 0.24.0 with SmolLM2 135M on a lab host, on the CPU.
"""


@dataclass
class Result:
    """What a row showed; `ok` says whether the aim was met, None where there is none to meet."""

    title: str
    aim: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    ok: bool | None = None
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Return the section without its heading."""
        verdict = {True: "met", False: "**not met**", None: "nothing to meet"}[self.ok]
        lines = [f"Aim: {self.aim} ({verdict}).", ""]
        lines += ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines)


def write_section(title: str, content: str) -> None:
    """Put a section into the report in place of its older one, or at the end."""
    text = REPORT.read_text() if REPORT.exists() else INTRODUCTION
    command = " ".join(["bench/gateway/run.py", *sys.argv[1:]])
    stamp = f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {versions()}."
    section = f"## {title}\n\n{stamp}\n\n{content.strip()}\n"
    older = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if older.search(text):
        text = older.sub(lambda _: section + "\n", text)
    else:
        text = f"{text.rstrip()}\n\n{section}"
    REPORT.write_text(text.rstrip() + "\n")


def ms(seconds: float) -> str:
    """Return a time in milliseconds."""
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def seconds(value: float) -> str:
    """Return a time in seconds."""
    return f"{value:.2f} s"
