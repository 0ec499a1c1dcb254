#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Proves, cheap to strong, that the engine computes on the card, and says what to type where it does not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: gpu_proof
short_description: Prove that the engine computes on the card
description:
  - Looks for the kernel module and its library, opens the card's device nodes as the engine's user inside its
    sandbox, reads what the engine wrote in its journal, asks for a few tokens, and looks where they are made.
  - Returns lines for verify's report and never fails on what was seen. Needs root.
options:
  backend:
    description: What the engine is to compute with.
    type: str
    choices: [cuda, rocm, vulkan]
    required: true
  module:
    description: The kernel module that drives the card.
    type: str
    required: true
  count:
    description: How many cards there are.
    type: int
    required: true
  parts:
    description: The folders of lib/ollama that it computes with.
    type: list
    elements: str
    required: true
  url:
    description: The engine's address.
    type: str
    required: true
  models:
    description: The declared models; a loaded one is asked, else the first that answers questions.
    type: list
    elements: str
    required: true
  minimum_tokens_per_second:
    description: What it must reach; 0 for any speed.
    type: float
    default: 0
author: Bedplate
"""

EXAMPLES = r"""
- name: Prove that the engine computes on the card
  gpu_proof:
    backend: cuda
    module: nvidia
    count: 1
    parts: [cuda_v13]
    url: http://127.0.0.1:11434
    models: ["llama3.2:3b"]
  register: proof
"""

RETURN = r"""
checks:
  description: One entry a promise, as verify's report has them.
  returned: always
  type: list
  elements: dict
  contains:
    name: {description: The promise., type: str}
    ok: {description: Whether it holds; null where it could not be asked., type: bool}
    seen: {description: What was seen., type: str}
    next: {description: The command to type next., type: str}
"""

Check = dict[str, Any]

ROOT = Path("/")
UNIT = "ollama.service"
LIBRARIES = Path("/opt/bedplate/ollama/current/lib/ollama")
NODES = {
    "cuda": ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia[0-9]*"),
    "rocm": ("/dev/kfd", "/dev/dri/renderD*"),
    "vulkan": ("/dev/dri/renderD*",),
}
LOAD_SECONDS = 900
TOKENS = 32
WHOLE = 0.99
"""Share of a loaded model that lies on cards when all of it does."""

# Runs as the engine's user where the engine runs, and says of each node why it cannot be opened.
OPEN = """
import json, os, sys
told = {}
for node in sys.argv[1:]:
    try:
        os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
        told[node] = ""
    except OSError as error:
        told[node] = error.strerror
print(json.dumps(told))
"""


def text(path: Path) -> str | None:
    """Return a file's text without white space around it; None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def said(*command: str) -> str:
    """Return what a command prints; nothing where it does not exist."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""


def check(name: str, ok: bool | None, seen: str, then: str) -> Check:
    """Return one line of the report."""
    return {"name": name, "ok": ok, "seen": seen, "next": then}


def library_version(root: Path = ROOT) -> str | None:
    """Return the version of NVIDIA's library, which its file is named by; None where there is none."""
    for place in ("usr/lib/*-linux-gnu/libcuda.so.1", "usr/lib*/libcuda.so.1"):
        for path in root.glob(place):
            name = path.resolve().name
            if name.count(".") > 2:
                return name.removeprefix("libcuda.so.")
    return None


def check_module(module: str, root: Path = ROOT) -> Check:
    """Judge whether the kernel module is loaded, and of the version of its library where it has one."""
    name = "the card's kernel module is loaded"
    if not (root / "sys/module" / module).is_dir():
        return check(
            name, False, f"the kernel module {module} is not loaded", f"modprobe {module}; dmesg | tail -n 30"
        )
    version = text(root / "sys/module" / module / "version")
    if module != "nvidia":
        return check(name, True, f"{module}{f' {version}' if version else ''}", "")
    library = library_version(root)
    return check(
        "the card's kernel module and library are of one version",
        version is not None and version == library,
        f"module {version or 'unknown'}, library {library or 'not installed'}",
        "dpkg -l | grep nvidia; reboot",
    )


def check_libraries(parts: list[str], folder: Path = LIBRARIES) -> Check:
    """Judge whether the engine has the libraries that it computes with."""
    missing = [part for part in parts if not (folder / part).is_dir()]
    return check(
        "Ollama has the libraries for the card",
        not missing,
        f"{folder} has no {', '.join(missing)}" if missing else f"{', '.join(parts)} in {folder}",
        "give the whole release archive as ollama_archive; ansible-playbook site.yml --tags ollama",
    )


def nodes_of(backend: str, count: int, root: Path = ROOT) -> tuple[list[str], list[str]]:
    """Return the device nodes that are there, and what is missing."""
    there, missing = [], []
    for pattern in NODES[backend]:
        found = sorted(f"/{path.relative_to(root)}" for path in root.glob(pattern.lstrip("/")))
        if len(found) < (count if "*" in pattern else 1):
            missing.append(pattern if not found else f"{count - len(found)} of {count} {pattern}")
        there += found
    return there, missing


def groups_of(pid: int, root: Path = ROOT) -> Iterator[Path]:
    """Yield the control groups that rule a process's devices: the one of version 2, and version 1's."""
    for line in (text(root / f"proc/{pid}/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for base in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                if (root / base / "cgroup.procs").exists() and (root / base / path.lstrip("/")).is_dir():
                    yield root / base / path.lstrip("/")
        elif controllers == "devices":
            yield root / "sys/fs/cgroup/devices" / path.lstrip("/")


def open_in_sandbox(pid: int, nodes: list[str]) -> dict[str, str]:
    """Open nodes as a process's user, in its mounts and control groups; say of each why that failed."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    user, group = status["Uid"].split()[0], status["Gid"].split()[0]
    more = ",".join(status["Groups"].split())
    groups = list(groups_of(pid))

    def join() -> None:
        for folder in groups:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    enter = ["nsenter", f"--target={pid}", "--mount", "--", "setpriv", f"--reuid={user}", f"--regid={group}"]
    done = subprocess.run(
        [*enter, f"--groups={more}" if more else "--clear-groups", "/usr/bin/python3", "-c", OPEN, *nodes],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        # The control group is what opens and closes devices.
        preexec_fn=join,
    )
    told: dict[str, str] = (
        json.loads(done.stdout) if done.returncode == 0 else dict.fromkeys(nodes, done.stderr.strip())
    )
    return told


def check_nodes(
    backend: str, count: int, pid: int, opened: Callable[[int, list[str]], dict[str, str]], root: Path = ROOT
) -> Check:
    """Judge whether the engine can open the card's nodes where it runs."""
    name = "Ollama's user can open the card's device nodes in its sandbox"
    there, missing = nodes_of(backend, count, root)
    if missing:
        return check(name, False, f"missing: {', '.join(missing)}", "systemctl status gpu-devices")
    if not pid:
        return check(name, None, "Ollama does not run", "systemctl status ollama")
    closed = {node: why for node, why in opened(pid, there).items() if why}
    return check(
        name,
        not closed,
        "; ".join(f"{node}: {why}" for node, why in closed.items()) if closed else ", ".join(there),
        "systemctl restart ollama; systemctl show ollama -p DeviceAllow -p SupplementaryGroups",
    )


def check_journal(backend: str, journal: str) -> Check:
    """Judge the line in which the engine says what it computes with."""
    name = "Ollama found the card"
    lines = [line for line in journal.splitlines() if "inference compute" in line]
    libraries = [
        found[1].lower() for line in lines if (found := re.search(r"library=\"?([A-Za-z0-9_]+)", line))
    ]
    if not libraries:
        seen = "its journal has no line 'inference compute' since it started"
        return check(name, None, seen, "journalctl -u ollama -b | grep 'inference compute'")
    told = [found[1] for line in lines if (found := re.search(r"description=(\"[^\"]*\"|\S+)", line))]
    with_what = f"it computes with {', '.join(sorted(set(libraries)))}"
    then = "ollama_extra_environment: {OLLAMA_DEBUG: 1}; journalctl -u ollama | grep -i -e cuda -e rocm"
    if any(library.startswith(backend) for library in libraries):
        return check(name, True, f"{with_what} on {', '.join(told)}" if told else with_what, "")
    return check(name, False, f"{with_what}, not with {backend}: it fell back to the CPU", then)


class Engine:
    """An Ollama that is asked for tokens."""

    def __init__(self, url: str) -> None:
        """`url` is its address."""
        self._url = url
        # The machine's proxy settings are for downloads.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, path: str, body: dict[str, Any] | None = None, seconds: float = 10) -> dict[str, Any]:
        """Return one answer; raises OSError or ValueError where there is none."""
        request = urllib.request.Request(
            self._url + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with self._opener.open(request, timeout=seconds) as response:
            answer = json.load(response)
        if not isinstance(answer, dict):
            raise ValueError("not an object")
        return answer

    def loaded(self) -> dict[str, dict[str, Any]]:
        """Return the loaded models by name."""
        return {model["name"]: model for model in self.ask("/api/ps").get("models") or ()}

    def choose(self, models: Iterable[str]) -> str | None:
        """Return a model that answers questions, a loaded one before others; None where there is none."""
        declared, loaded = list(models), self.loaded()
        for name in [*(name for name in declared if name in loaded), *declared]:
            answer = self.ask("/api/show", {"model": name})
            if "completion" in answer.get("capabilities", ["completion"]):
                return name
        return None


def reason(error: Exception) -> str:
    """Return why the engine did not answer, in its own words where it has some."""
    if isinstance(error, urllib.error.HTTPError):
        return f"status {error.code}, {error.read().decode(errors='replace').strip()[:200]}"
    return str(getattr(error, "reason", error))


def check_tokens(engine: Engine, models: list[str], minimum: float) -> list[Check]:
    """Have a few tokens made, and judge where the model lies and how fast it is."""
    where = "a model that answers lies wholly on the card"
    try:
        model = engine.choose(models)
        if model is None:
            return [check(where, None, "no declared model answers questions", "ollama list")]
        prompt = {"model": model, "prompt": "Count from one to fifty.", "stream": False}
        answer = engine.ask("/api/generate", {**prompt, "options": {"num_predict": TOKENS}}, LOAD_SECONDS)
        loaded = engine.loaded().get(model)
    except (OSError, ValueError) as error:
        return [check(where, False, f"Ollama gave no answer: {reason(error)}", "journalctl -u ollama -n 50")]
    if loaded is None:
        return [check(where, None, f"{model} answered and was unloaded at once", "ollama ps")]
    share = loaded["size_vram"] / loaded["size"] if loaded["size"] else 0
    lies = f"{share:.0%} of {model} is on the card" if share else f"{model} runs on the CPU"
    checks = [
        check(
            where,
            share >= WHOLE,
            lies,
            "journalctl -u ollama | grep 'inference compute'"
            if not share
            else "a smaller model, or a smaller ollama_context_length or ollama_num_parallel",
        )
    ]
    if minimum:
        seconds = answer.get("eval_duration", 0) / 1e9
        rate = answer.get("eval_count", 0) / seconds if seconds else 0
        checks.append(
            check(
                "the card is as fast as it should be",
                rate >= minimum,
                f"{rate:.1f} tokens/s, gpu_driver_minimum_tokens_per_second is {minimum:g}",
                "nvidia-smi" if share else "ollama ps",
            )
        )
    return checks


def runners(backend: str, root: Path = ROOT) -> list[int] | None:
    """Return the processes that compute on cards; None where nobody tells."""
    if backend == "cuda":
        told = said("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader")
        return [int(line) for line in told.split() if line.isdigit()]
    if backend == "rocm":
        return [int(path.name) for path in root.glob("sys/class/kfd/kfd/proc/[0-9]*")]
    return None


def check_runner(backend: str, root: Path = ROOT) -> Check:
    """Judge whether one of the processes that compute on cards is the engine's."""
    name = "the engine's runner computes on the card"
    found = runners(backend, root)
    if found is None:
        return check(name, None, f"{backend} has no list of its processes", "")
    ours = [pid for pid in found if f"/{UNIT}" in (text(root / f"proc/{pid}/cgroup") or "")]
    return check(
        name,
        bool(ours),
        f"process {', '.join(map(str, ours))}"
        if ours
        else f"none of Ollama's among {len(found)} processes on it",
        "nvidia-smi" if backend == "cuda" else "ls /sys/class/kfd/kfd/proc",
    )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "backend": {"type": "str", "choices": ["cuda", "rocm", "vulkan"], "required": True},
            "module": {"type": "str", "required": True},
            "count": {"type": "int", "required": True},
            "parts": {"type": "list", "elements": "str", "required": True},
            "url": {"type": "str", "required": True},
            "models": {"type": "list", "elements": "str", "required": True},
            "minimum_tokens_per_second": {"type": "float", "default": 0},
        },
        supports_check_mode=True,
    )
    backend, params = module.params["backend"], module.params
    pid = int(said("systemctl", "show", "--value", "--property=MainPID", UNIT).strip() or 0)
    invocation = said("systemctl", "show", "--value", "--property=InvocationID", UNIT).strip()
    journal = said("journalctl", "--output=cat", "--no-pager", f"_SYSTEMD_INVOCATION_ID={invocation}")
    checks = [
        check_module(params["module"]),
        check_libraries(params["parts"]),
        check_nodes(backend, params["count"], pid, open_in_sandbox),
        check_journal(backend, journal),
        *check_tokens(Engine(params["url"]), params["models"], params["minimum_tokens_per_second"]),
        check_runner(backend),
    ]
    module.exit_json(changed=False, checks=checks)


if __name__ == "__main__":
    main()
