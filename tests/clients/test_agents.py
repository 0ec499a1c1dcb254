"""Coding agents with what `make client` prints for them: each asks once, calls its tool, and gets an answer.

The real model calls the tool that makes a file. The fake engine calls whichever tool an agent offers first.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.clients import agent_model
from tests.clients.endpoints import Endpoint
from tests.clients.environments import npm
from tests.support import servers
from tests.support.client_settings import Settings, parse, printed

FAKE = os.environ.get("CLIENTS_ENGINE") == "fake"
QUESTION = "Make the file."
# In place of an agent's own, which are long: the real engine of the lab is slow.
INSTRUCTIONS = "You make files."


@pytest.fixture(scope="module")
def texts(agents: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `make client` prints for each client of the endpoint."""
    url, folder = urlsplit(agents.url), tmp_path_factory.mktemp("printed")
    installation = {
        "bedplate_bind_address": url.hostname,
        "gateway_port": url.port,
        "edge_tls": "own" if agents.ca_file else "off",
        "ollama_context_length": agent_model.CONTEXT,
        "ollama_models": [{"name": agents.model, "pull": agents.model}],
        "gateway_keys": [{"alias": "any"}],
    }
    authority = Path(agents.ca_file).read_text() if agents.ca_file else ""
    return printed(folder, installation, {"any": agents.key}, authority=authority)


@pytest.fixture(autouse=True)
def no_errors(agents: Endpoint) -> Iterator[None]:
    """Fail where the gateway answered a request with an error."""
    before = errors(agents)
    yield
    assert errors(agents) == before


def errors(agents: Endpoint) -> dict[str, str]:
    """Return the counters of refused and failed requests."""
    if not agents.metrics_url:
        return {}
    text = servers.get(agents.metrics_url)[1]
    pattern = r'^(bedplate_gateway_re(?:quests|fusals)_total{.*status="[45].*}) (\S+)'
    counted = re.findall(pattern, text, re.MULTILINE)
    # Claude Code asks for the root first, which nobody serves.
    return {name: value for name, value in counted if "unknown_url" not in name and float(value)}


def run(command: list[str], settings: Settings, home: Path) -> str:
    """Run an agent in an empty home folder with its settings only; returns all that it printed."""
    settings.write(home)
    project = home / "project"
    project.mkdir()
    process = subprocess.run(
        command,
        cwd=project,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb", **settings.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-5000:]
    if not FAKE:
        assert (project / agent_model.CALLED).exists(), process.stdout[-5000:]
    return process.stdout


def program(name: str) -> str:
    return str(npm("agents") / "node_modules" / name)


def test_claude_code(texts: dict[str, str], tmp_path: Path) -> None:
    claude = program("@anthropic-ai/claude-code-linux-x64/claude")
    short = ["--tools", "Bash", "--allowedTools", "Bash", "--system-prompt", INSTRUCTIONS]
    output = run(
        [claude, "--print", QUESTION, *short, "--max-turns", "4"], parse(texts["claude-code"]), tmp_path
    )
    assert output.strip()
    assert "API Error" not in output


def test_codex(texts: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "short.md").write_text(INSTRUCTIONS)
    flags = ["--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    flags += ["--config", f'model_instructions_file="{tmp_path}/short.md"']
    output = run([program(".bin/codex"), "exec", *flags, QUESTION], parse(texts["codex"]), tmp_path)
    assert '"turn.completed"' in output
    assert '"command_execution"' in output


def test_opencode(texts: dict[str, str], tmp_path: Path) -> None:
    opencode = program("opencode-linux-x64/bin/opencode")
    settings, file = parse(texts["opencode"]), ".config/opencode/opencode.json"
    short = {"agent": {"build": {"prompt": INSTRUCTIONS, "tools": {"*": False, "bash": True}}}}
    settings.files[file] = json.dumps(json.loads(settings.files[file]) | short)
    output = run([opencode, "run", "--format", "json", QUESTION], settings, tmp_path)
    assert '"type":"tool_use"' in output
    assert '"type":"error"' not in output


def test_continue(texts: dict[str, str], tmp_path: Path) -> None:
    cn = str(npm() / "node_modules/.bin/cn")
    output = run([cn, "--print", QUESTION, "--auto"], parse(texts["continue"]), tmp_path)
    assert output.strip()


def test_llm(texts: dict[str, str], tmp_path: Path) -> None:
    tool = tmp_path / "tool.py"
    made = f'open("{agent_model.CALLED}", "w")'
    tool.write_text(f"def Bash(command: str, description: str) -> str:\n    {made}\n    return 'done'\n")
    llm = [str(Path(sys.executable).parent / "llm")]
    output = run([*llm, QUESTION, "--functions", str(tool), "--tools-debug"], parse(texts["llm"]), tmp_path)
    assert "Tool call: Bash" in output
