#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Checks that the engine uses the GPU, from simple to strong evidence, and names the next command if not."""

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
from ansible.module_utils.checks import Check, check

DOCUMENTATION = r"""
module: gpu_proof
short_description: Check that the engine uses the GPU
description:
  - Checks the kernel module and its library, opens the GPU's device nodes as the engine's user inside its
    sandbox, reads the engine's journal, generates a few tokens and checks where the model is loaded.
  - Returns entries for verify's report and never fails because of a failed check. Needs root.
options:
  backend:
    description: The backend that the engine should use.
    type: str
    choices: [cuda, rocm, vulkan]
    required: true
  module:
    description: The GPU's kernel module.
    type: str
    required: true
  count:
    description: Number of GPUs.
    type: int
    required: true
  parts:
    description: The directories of lib/ollama with the backend's libraries.
    type: list
    elements: str
    required: true
  url:
    description: The engine's URL.
    type: str
    required: true
  models:
    description: The declared models; a loaded one is used, else the first that supports completion.
    type: list
    elements: str
    required: true
  minimum_tokens_per_second:
    description: Minimum speed; 0 accepts any speed.
    type: float
    default: 0
  seconds:
    description: How long loading a model and generating the tokens may take.
    type: float
    default: 60
author: Bedplate
"""

EXAMPLES = r"""
- name: Check that the engine uses the GPU
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
  description: Entries for verify's report, as playbooks/module_utils/checks.py describes them.
  returned: always
  type: list
  elements: dict
"""

ROOT = Path("/")
UNIT = "ollama.service"
LIBRARIES = Path("/opt/bedplate/ollama/current/lib/ollama")
NODES = {
    "cuda": ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia[0-9]*"),
    "rocm": ("/dev/kfd", "/dev/dri/renderD*"),
    "vulkan": ("/dev/dri/renderD*",),
}
TOKENS = 32
WHOLE = 0.99
"""A model counts as entirely on the GPU from this share of its memory on."""

# Runs as the engine's user in its sandbox; prints for each node why it cannot be opened, or an empty text.
OPEN_NODES = """
import json, os, sys
errors = {}
for node in sys.argv[1:]:
    try:
        os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
        errors[node] = ""
    except OSError as error:
        errors[node] = error.strerror
print(json.dumps(errors))
"""


def read_text(path: Path) -> str | None:
    """Return a file's text without surrounding white space; None if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def output_of(*command: str) -> str:
    """Return a command's standard output; empty if it does not exist or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""


def library_version(root: Path = ROOT) -> str | None:
    """Return the version of NVIDIA's library, from its file name; None if it is not installed."""
    for pattern in ("usr/lib/*-linux-gnu/libcuda.so.1", "usr/lib*/libcuda.so.1"):
        for path in root.glob(pattern):
            name = path.resolve().name
            if name.count(".") > 2:
                return name.removeprefix("libcuda.so.")
    return None


def check_module(module: str, root: Path = ROOT) -> Check:
    """Check that the kernel module is loaded and, for NVIDIA, has the version of its library."""
    name = "the GPU's kernel module is loaded"
    if not (root / "sys/module" / module).is_dir():
        return check(
            name, False, f"the kernel module {module} is not loaded", f"modprobe {module}; dmesg | tail -n 30"
        )
    version = read_text(root / "sys/module" / module / "version")
    if module != "nvidia":
        return check(name, True, f"{module}{f' {version}' if version else ''}", "")
    library = library_version(root)
    return check(
        "the GPU's kernel module and library have the same version",
        version is not None and version == library,
        f"module {version or 'unknown'}, library {library or 'not installed'}",
        "dpkg -l | grep nvidia; reboot",
    )


def check_libraries(parts: list[str], folder: Path = LIBRARIES) -> Check:
    """Check that the engine has the backend's libraries."""
    missing = [part for part in parts if not (folder / part).is_dir()]
    return check(
        "Ollama has the libraries for the GPU",
        not missing,
        f"{folder} has no {', '.join(missing)}" if missing else f"{', '.join(parts)} in {folder}",
        "use the complete release archive as ollama_archive; ansible-playbook site.yml --tags ollama",
    )


def device_nodes(backend: str, count: int, root: Path = ROOT) -> tuple[list[str], list[str]]:
    """Return the existing device nodes, and descriptions of the missing ones."""
    present, missing = [], []
    for pattern in NODES[backend]:
        nodes = sorted(f"/{path.relative_to(root)}" for path in root.glob(pattern.lstrip("/")))
        if len(nodes) < (count if "*" in pattern else 1):
            missing.append(pattern if not nodes else f"{count - len(nodes)} of {count} {pattern}")
        present += nodes
    return present, missing


def device_cgroups(pid: int, root: Path = ROOT) -> Iterator[Path]:
    """Yield the control groups that restrict a process's devices, of cgroup version 2 and 1."""
    for line in (read_text(root / f"proc/{pid}/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for base in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                if (root / base / "cgroup.procs").exists() and (root / base / path.lstrip("/")).is_dir():
                    yield root / base / path.lstrip("/")
        elif controllers == "devices":
            yield root / "sys/fs/cgroup/devices" / path.lstrip("/")


def open_in_sandbox(pid: int, nodes: list[str]) -> dict[str, str]:
    """Open nodes as a process's user, in its mount namespace and control groups; return the error of each."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    user, group = status["Uid"].split()[0], status["Gid"].split()[0]
    supplementary = ",".join(status["Groups"].split())
    groups = list(device_cgroups(pid))

    def join() -> None:
        for folder in groups:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    enter = ["nsenter", f"--target={pid}", "--mount", "--", "setpriv", f"--reuid={user}", f"--regid={group}"]
    done = subprocess.run(
        [
            *enter,
            f"--groups={supplementary}" if supplementary else "--clear-groups",
            "/usr/bin/python3",
            "-c",
            OPEN_NODES,
            *nodes,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
        # Device access is restricted by the control group.
        preexec_fn=join,
    )
    errors: dict[str, str] = (
        json.loads(done.stdout) if done.returncode == 0 else dict.fromkeys(nodes, done.stderr.strip())
    )
    return errors


def check_nodes(
    backend: str, count: int, pid: int, opened: Callable[[int, list[str]], dict[str, str]], root: Path = ROOT
) -> Check:
    """Check that the engine can open the GPU's device nodes in its sandbox; `opened` is open_in_sandbox."""
    name = "Ollama's user can open the GPU's device nodes in its sandbox"
    present, missing = device_nodes(backend, count, root)
    if missing:
        return check(name, False, f"missing: {', '.join(missing)}", "systemctl status gpu-devices")
    if not pid:
        return check(name, None, "Ollama is not running", "systemctl status ollama")
    errors = {node: error for node, error in opened(pid, present).items() if error}
    return check(
        name,
        not errors,
        "; ".join(f"{node}: {error}" for node, error in errors.items()) if errors else ", ".join(present),
        "systemctl restart ollama; systemctl show ollama -p DeviceAllow -p SupplementaryGroups",
    )


def check_journal(backend: str, journal: str) -> Check:
    """Check the journal lines in which the engine reports its compute devices."""
    name = "Ollama detected the GPU"
    lines = [line for line in journal.splitlines() if "inference compute" in line]
    libraries = [
        match[1].lower() for line in lines if (match := re.search(r"library=\"?([A-Za-z0-9_]+)", line))
    ]
    if not libraries:
        seen = "its journal has no line 'inference compute' since it started"
        return check(name, None, seen, "journalctl -u ollama -b | grep 'inference compute'")
    devices = [match[1] for line in lines if (match := re.search(r"description=(\"[^\"]*\"|\S+)", line))]
    used = f"it uses {', '.join(sorted(set(libraries)))}"
    debug = "ollama_extra_environment: {OLLAMA_DEBUG: 1}; journalctl -u ollama | grep -i -e cuda -e rocm"
    if any(library.startswith(backend) for library in libraries):
        return check(name, True, f"{used} on {', '.join(devices)}" if devices else used, "")
    return check(name, False, f"{used}, not {backend}: it fell back to the CPU", debug)


class Engine:
    """Client of Ollama's API; `url` is its base URL."""

    def __init__(self, url: str) -> None:
        self._url = url
        # The machine's proxy settings are for downloads only.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def request(self, path: str, body: dict[str, Any] | None = None, seconds: float = 5) -> dict[str, Any]:
        """Return the response's JSON object; raises OSError or ValueError if there is none."""
        http_request = urllib.request.Request(
            self._url + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with self._opener.open(http_request, timeout=seconds) as response:
            answer = json.load(response)
        if not isinstance(answer, dict):
            raise ValueError("not an object")
        return answer

    def loaded(self) -> dict[str, dict[str, Any]]:
        """Return the loaded models by name."""
        return {model["name"]: model for model in self.request("/api/ps").get("models") or ()}

    def choose(self, models: Iterable[str]) -> str | None:
        """Return a model that supports completion, preferably a loaded one; None if there is none."""
        declared, loaded = list(models), self.loaded()
        for name in [*(name for name in declared if name in loaded), *declared]:
            answer = self.request("/api/show", {"model": name})
            if "completion" in answer.get("capabilities", ["completion"]):
                return name
        return None


def error_text(error: Exception) -> str:
    """Return why the engine did not respond, with its error message if it sent one."""
    if isinstance(error, urllib.error.HTTPError):
        return f"status {error.code}, {error.read().decode(errors='replace').strip()[:200]}"
    return str(getattr(error, "reason", error))


def check_tokens(engine: Engine, models: list[str], minimum: float, seconds: float) -> list[Check]:
    """Generate a few tokens; check that the model is entirely on the GPU, and the speed (tokens/s).

    `seconds` is how long loading the model and generating may take.
    """
    name = "a model runs entirely on the GPU"
    try:
        model = engine.choose(models)
        if model is None:
            return [check(name, None, "no declared model supports completion", "ollama list")]
        prompt = {"model": model, "prompt": "Count from one to fifty.", "stream": False}
        answer = engine.request("/api/generate", {**prompt, "options": {"num_predict": TOKENS}}, seconds)
        loaded = engine.loaded().get(model)
    except TimeoutError:
        seen = f"Ollama gave no answer in {seconds:.0f} s"
        return [check(name, False, seen, "ollama ps; journalctl -u ollama -n 50")]
    except (OSError, ValueError) as error:
        return [
            check(name, False, f"Ollama did not respond: {error_text(error)}", "journalctl -u ollama -n 50")
        ]
    if loaded is None:
        return [check(name, None, f"{model} responded and was unloaded at once", "ollama ps")]
    share = loaded["size_vram"] / loaded["size"] if loaded["size"] else 0
    location = f"{share:.0%} of {model} is on the GPU" if share else f"{model} runs on the CPU"
    checks = [
        check(
            name,
            share >= WHOLE,
            location,
            "journalctl -u ollama | grep 'inference compute'"
            if not share
            else "use a smaller model, or a smaller ollama_context_length or ollama_num_parallel",
        )
    ]
    if minimum:
        spent = answer.get("eval_duration", 0) / 1e9
        rate = answer.get("eval_count", 0) / spent if spent else 0
        checks.append(
            check(
                "the GPU reaches the minimum speed",
                rate >= minimum,
                f"{rate:.1f} tokens/s, gpu_driver_minimum_tokens_per_second is {minimum:g}",
                "nvidia-smi" if share else "ollama ps",
            )
        )
    return checks


def compute_processes(backend: str, root: Path = ROOT) -> list[int] | None:
    """Return the ids of the processes that use GPUs; None if the backend has no such list."""
    if backend == "cuda":
        listing = output_of("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader")
        return [int(line) for line in listing.split() if line.isdigit()]
    if backend == "rocm":
        return [int(path.name) for path in root.glob("sys/class/kfd/kfd/proc/[0-9]*")]
    return None


def check_runner(backend: str, root: Path = ROOT) -> Check:
    """Check that one of the processes that use GPUs is the engine's."""
    name = "the engine's runner process uses the GPU"
    processes = compute_processes(backend, root)
    if processes is None:
        return check(name, None, f"{backend} does not list its processes", "")
    ours = [pid for pid in processes if f"/{UNIT}" in (read_text(root / f"proc/{pid}/cgroup") or "")]
    return check(
        name,
        bool(ours),
        f"process {', '.join(map(str, ours))}"
        if ours
        else f"none of the {len(processes)} processes on the GPU is Ollama's",
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
            "seconds": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    backend, params = module.params["backend"], module.params
    pid = int(output_of("systemctl", "show", "--value", "--property=MainPID", UNIT).strip() or 0)
    invocation = output_of("systemctl", "show", "--value", "--property=InvocationID", UNIT).strip()
    journal = output_of("journalctl", "--output=cat", "--no-pager", f"_SYSTEMD_INVOCATION_ID={invocation}")
    checks = [
        check_module(params["module"]),
        check_libraries(params["parts"]),
        check_nodes(backend, params["count"], pid, open_in_sandbox),
        check_journal(backend, journal),
        *check_tokens(
            Engine(params["url"]), params["models"], params["minimum_tokens_per_second"], params["seconds"]
        ),
        check_runner(backend),
    ]
    module.exit_json(changed=False, checks=checks)


if __name__ == "__main__":
    main()
