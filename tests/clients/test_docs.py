"""The code blocks of docs/guide/clients.md, run unchanged."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.endpoints import MODEL, Endpoint
from tests.clients.environments import aider, npm

PAGE = Path(__file__).parents[2] / "docs/guide/clients.md"


def block(title: str, language: str) -> str:
    """Return the first code block of a language under a title."""
    section = re.split(r"\n##+ ", PAGE.read_text().partition(f"# {title}\n")[2], maxsplit=1)[0]
    match = re.search(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert match, f"{title} has no {language} block"
    return match[1]


def run(command: list[str], endpoint: Endpoint, folder: Path, **environment: str) -> str:
    """Run a command in its own folder; returns its standard output."""
    process = subprocess.run(
        command,
        cwd=folder,
        env={**endpoint.environment, "HOME": str(folder), "TERM": "dumb", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process.stdout


@pytest.mark.parametrize("title", ["openai for Python", "anthropic for Python", "LangChain"])
def test_python(title: str, endpoint: Endpoint, tmp_path: Path) -> None:
    code = block(title, "python").replace(MODEL, endpoint.model)
    assert run([sys.executable, "-c", code], endpoint, tmp_path).strip()


def test_javascript(endpoint: Endpoint, tmp_path: Path) -> None:
    # Node looks for packages in the folder of the file.
    file = npm() / "page.mjs"
    file.write_text(block("openai for npm", "js").replace(MODEL, endpoint.model))
    assert run(["node", str(file)], endpoint, tmp_path).strip()


@pytest.mark.parametrize("stream", [False, True])
def test_curl(stream: bool, endpoint: Endpoint, tmp_path: Path) -> None:
    command = block("curl", "bash").replace(MODEL, endpoint.model)
    if stream:
        command = command.replace('"max_tokens"', '"stream": true, "max_tokens"')
    output = run(["bash", "-euo", "pipefail", "-c", command], endpoint, tmp_path)
    assert output.rstrip().endswith("data: [DONE]" if stream else "}")


def test_aider(endpoint: Endpoint, tmp_path: Path) -> None:
    command = block("aider", "bash").replace(MODEL, endpoint.model).rstrip()
    # A small model may generate without end.
    (tmp_path / "short.yml").write_text(
        f"- name: openai/{endpoint.model}\n  extra_params: {{max_tokens: 40}}\n"
    )
    alone = ["--no-git", "--yes-always", "--no-check-update", "--analytics-disable"]
    more = [*alone, "--model-settings-file", "short.yml", "--message", "Say hello."]
    path = f"{aider().parent}:{endpoint.environment['PATH']}"
    output = run(["bash", "-euc", f"{command} {shlex.join(more)}"], endpoint, tmp_path, PATH=path)
    # aider prints the second form when the limit of 40 tokens cut the answer.
    assert re.search(r"Tokens: \S+ sent, \d+ received|Output tokens: ~\d+", output), output


def test_continue(endpoint: Endpoint, tmp_path: Path) -> None:
    config = block("Continue", "yaml").replace("http://127.0.0.1:8000/v1", endpoint.url)
    config = config.replace("YOUR-KEY", endpoint.key).replace(MODEL, endpoint.model)
    (tmp_path / "config.yaml").write_text(f"{config}    defaultCompletionOptions: {{maxTokens: 40}}\n")
    # Continue always sends its own tools, unless they are excluded.
    more = [] if endpoint.tools else ["--exclude", "*"]
    cn = str(npm() / "node_modules/.bin/cn")
    output = run([cn, "--print", "Say hello.", "--config", "config.yaml", *more], endpoint, tmp_path)
    assert output.strip()
    assert "error" not in output.lower()
