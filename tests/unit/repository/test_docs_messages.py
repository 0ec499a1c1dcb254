"""Messages that the pages quote exist: words in italics, and code in the tables of troubleshooting.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
TROUBLESHOOTING = ROOT / "docs/guide/troubleshooting.md"
SOURCES = [
    *ROOT.glob("*/src/**/*.py"),
    *ROOT.glob("*/src/**/*.html"),
    *ROOT.glob("*/src/**/*.txt"),
    *ROOT.glob("roles/*/*/*"),
    *ROOT.glob("playbooks/**/*"),
    *ROOT.glob("templates/**/*"),
]
SUFFIXES = {".py", ".yml", ".j2", ".html", ".txt"}
PLACEHOLDER = "…"
# A part with fewer letters, such as "(" or "has", is in every file.
FEWEST_LETTERS = 4
# Messages of other programs, with the program.
THIRD_PARTY = {
    "Failed with result 'timeout'": "systemd",
    "Host key verification failed": "ssh",
    "Killed process": "the kernel",
    "Missing sudo password": "Ansible",
    "Scheduled restart job, restart counter is at …": "systemd",
    "UNREACHABLE": "Ansible",
    "library=cpu": "Ollama",
    "out of memory": "Ollama",
}


@dataclass(frozen=True)
class Quote:
    """A quoted message; changing parts of it are PLACEHOLDER."""

    page: str
    line: int
    text: str

    @property
    def parts(self) -> list[str]:
        """The fixed parts that can be searched for."""
        parts = (" ".join(part.split()) for part in self.text.split(PLACEHOLDER))
        return [part for part in parts if len(re.findall(r"[A-Za-z]", part)) >= FEWEST_LETTERS]


@dataclass(frozen=True)
class Text:
    """A string or file of the source with white space folded; values in it are PLACEHOLDER."""

    file: str
    line: int
    text: str


def quotes(page: str, markdown: str, *, code: bool) -> Iterator[Quote]:
    """Words in italics; with `code` also code in the first column of tables. Skips code blocks."""
    fenced = False
    for number, line in enumerate(markdown.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        if fenced:
            continue
        # Whichever begins first wins: a message may hold code, and code may hold asterisks.
        for match in re.finditer(r"`([^`]+)`|\*\*[^*]+\*\*|\*([^*\s][^*]*)\*", line):
            first_column = line.startswith("|") and "|" not in line[1 : match.start()]
            text = match[2] or (match[1] if code and first_column else None)
            if text:
                yield Quote(page, number, text)


def folded(text: str) -> str:
    return " ".join(text.split())


def python_texts(file: str, source: str) -> Iterator[Text]:
    """The strings of a module without docstrings; adjacent ones are one, values in f-strings PLACEHOLDER."""
    tree = ast.parse(source)
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)
        if isinstance(node, ast.JoinedStr):
            skipped.update(part for part in node.values if isinstance(part, ast.Constant))
            whole = "".join(
                str(part.value) if isinstance(part, ast.Constant) else PLACEHOLDER for part in node.values
            )
            yield Text(file, node.lineno, folded(whole))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield Text(file, node.lineno, folded(node.value))


def other_texts(file: str, source: str) -> Iterator[Text]:
    """A YAML file or template as a whole, once with its expressions and once without, and by lines."""
    lines = ["" if line.lstrip().startswith("#") else line for line in source.splitlines()]
    whole = "\n".join(lines)
    yield Text(file, 0, folded(whole))
    yield Text(file, 0, folded(re.sub(r"\{\{.*?\}\}|\{%.*?%\}", PLACEHOLDER, whole, flags=re.DOTALL)))
    for number, line in enumerate(lines, 1):
        yield Text(file, number, folded(line))


@cache
def source_texts() -> dict[str, list[Text]]:
    """All texts of the source by file."""
    texts: dict[str, list[Text]] = {}
    for path in sorted(SOURCES):
        if path.suffix in SUFFIXES and path.is_file():
            file, source = str(path.relative_to(ROOT)), path.read_text()
            read = python_texts if path.suffix == ".py" else other_texts
            texts[file] = list(read(file, source))
    return texts


def missing_parts(quote: Quote, texts: dict[str, list[Text]]) -> list[str]:
    """The parts that the best file lacks; empty when one file has all of them."""
    lacking = [
        [part for part in quote.parts if not any(part in text.text for text in found)]
        for found in texts.values()
    ]
    return min(lacking, key=len)


def nearest(part: str, texts: dict[str, list[Text]]) -> Text:
    """The source line that has most in common with a part."""
    words = set(part.lower().split())
    lines = [text for found in texts.values() for text in found if text.line and text.text]
    shared = sorted(lines, key=lambda text: len(words & set(text.text.lower().split())), reverse=True)

    def likeness(text: Text) -> int:
        blocks = SequenceMatcher(None, part, text.text, autojunk=False).get_matching_blocks()
        return sum(block.size for block in blocks if block.size > 2)

    return max(shared[:60], key=likeness)


def problem(quote: Quote, texts: dict[str, list[Text]]) -> str:
    """One sentence on a quote that stands nowhere in the source; empty where all is well."""
    if quote.text in THIRD_PARTY:
        return ""
    missing = missing_parts(quote, texts)
    if not missing:
        return ""
    near = nearest(missing[0], texts)
    return (
        f"{quote.page}:{quote.line} quotes {quote.text!r}, but no source file has {missing}; "
        f"nearest: {near.file}:{near.line}: {near.text!r}"
    )


def page_quotes(page: Path) -> list[Quote]:
    return list(quotes(str(page.relative_to(ROOT)), page.read_text(), code=page == TROUBLESHOOTING))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_quoted_messages_exist(page: Path) -> None:
    problems = [problem(quote, source_texts()) for quote in page_quotes(page)]
    assert not any(problems), "\n".join(filter(None, problems))


def test_words_in_italics_are_messages() -> None:
    # Emphasis is bold; a quote without a searchable part would prove nothing.
    for page in PAGES:
        for quote in quotes(str(page), page.read_text(), code=False):
            assert quote.parts, quote


def test_troubleshooting_quotes_many_messages() -> None:
    assert len([quote for quote in page_quotes(TROUBLESHOOTING) if quote.parts]) > 50


def test_messages_of_other_programs_are_quoted_somewhere() -> None:
    quoted = {quote.text for page in PAGES for quote in page_quotes(page)}
    assert set(THIRD_PARTY) <= quoted


TEXTS = {
    "roles/x/tasks/validate.yml": [
        *other_texts(
            "roles/x/tasks/validate.yml",
            "# The port is taken by a comment.\n"
            "fail_msg: >-\n  port {{ port }} is held\n  by another process",
        )
    ],
    "x.py": [
        *python_texts("x.py", 'def f():\n    """Docstring text."""\n    return f"the key {a} " "expires at"')
    ],
}


@pytest.mark.parametrize(
    "text", ["port … is held by another process", "the key … expires at", "is held by another"]
)
def test_a_message_is_found_across_lines_and_values(text: str) -> None:
    assert problem(Quote("page.md", 3, text), TEXTS) == ""


@pytest.mark.parametrize(
    "text",
    [
        "port … is held by a stranger",
        "the port is taken by a comment",
        "Docstring text.",
        # Its parts stand in two files.
        "is held by another process … expires at",
    ],
)
def test_a_made_up_message_is_reported_with_the_nearest_line(text: str) -> None:
    reported = problem(Quote("page.md", 3, text), TEXTS)
    assert reported.startswith(f"page.md:3 quotes {text!r}, but no source file has [")
    assert re.search(r"nearest: (roles/x/tasks/validate\.yml|x\.py):\d", reported)


def test_the_nearest_line_is_the_renamed_message() -> None:
    reported = problem(
        Quote("page.md", 3, "the gateway rotate is …, but there is no such alias"), source_texts()
    )
    assert "gateway_keys.py" in reported, reported


def test_quotes_are_read_from_markdown() -> None:
    page = (
        "*a message …* and `code`, **bold**, `glob_*` and *the key `verify` fails*\n"
        "```\n*no*\n```\n"
        "| `first` | `no` |\n"
    )
    assert [quote.text for quote in quotes("page.md", page, code=True)] == [
        "a message …",
        "the key `verify` fails",
        "first",
    ]
    assert [quote.text for quote in quotes("page.md", page, code=False)] == [
        "a message …",
        "the key `verify` fails",
    ]
