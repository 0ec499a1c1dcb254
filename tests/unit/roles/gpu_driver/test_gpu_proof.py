"""gpu_proof: results for an engine on the GPU, and for every way in which it silently uses the CPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.serving import serving

ON_CARD = (
    'time=… level=INFO source=types.go:42 msg="inference compute" id=GPU-4f0a library=CUDA compute=8.9 '
    'name=CUDA0 description="NVIDIA GeForce RTX 4090" libdirs=ollama,cuda_v13 driver=13.0 type=discrete\n'
)
# Journal of Ollama 0.24.0 on a host without a GPU.
ON_CPU = (
    'time=… level=INFO source=types.go:60 msg="inference compute" id=cpu library=cpu compute="" '
    'name=cpu description=cpu libdirs=ollama driver="" pci_id="" type="" total="23.5 GiB"\n'
)
GIB = 1024**3


@pytest.fixture(scope="module")
def proof(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("roles/gpu_driver/library/gpu_proof.py")


def versions(root: Path, module: str, library: str) -> None:
    """Write a kernel module's version, and create a library of a version where Debian installs it."""
    (root / "sys/module/nvidia").mkdir(parents=True)
    (root / "sys/module/nvidia/version").write_text(f"{module}\n")
    folder = root / "usr/lib/x86_64-linux-gnu"
    (folder / "nvidia/current").mkdir(parents=True)
    (folder / f"nvidia/current/libcuda.so.{library}").touch()
    (folder / "libcuda.so.1").symlink_to(f"nvidia/current/libcuda.so.{library}")


def nodes(root: Path, *names: str) -> None:
    for name in names:
        (root / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "dev" / name).touch()


def test_no_module(proof: ModuleType, tmp_path: Path) -> None:
    check = proof.check_module("nvidia", tmp_path)
    assert (check["ok"], check["seen"]) == (False, "the kernel module nvidia is not loaded")
    assert check["next"] == "modprobe nvidia; dmesg | tail -n 30"


@pytest.mark.parametrize(("library", "ok"), [("550.163.01", True), ("550.90.07", False)])
def test_module_and_library(proof: ModuleType, tmp_path: Path, library: str, ok: bool) -> None:
    versions(tmp_path, "550.163.01", library)
    check = proof.check_module("nvidia", tmp_path)
    assert (check["ok"], check["seen"]) == (ok, f"module 550.163.01, library {library}")


def test_a_module_without_its_library(proof: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    (tmp_path / "sys/module/nvidia/version").write_text("550.163.01\n")
    assert proof.check_module("nvidia", tmp_path)["seen"] == "module 550.163.01, library not installed"


def test_amds_module(proof: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "sys/module/amdgpu").mkdir(parents=True)
    assert proof.check_module("amdgpu", tmp_path)["ok"] is True


def test_an_archive_without_the_libraries(proof: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "cuda_v12").mkdir()
    assert proof.check_libraries(["cuda_v12"], tmp_path)["ok"] is True
    check = proof.check_libraries(["cuda_v13"], tmp_path)
    assert (check["ok"], check["seen"]) == (False, f"{tmp_path} has no cuda_v13")


def test_nodes_that_open(proof: ModuleType, tmp_path: Path) -> None:
    nodes(tmp_path, "nvidiactl", "nvidia-uvm", "nvidia0", "nvidia1", "nvidia-modeset")
    calls: list[tuple[int, list[str]]] = []

    def opened(pid: int, paths: list[str]) -> dict[str, str]:
        calls.append((pid, paths))
        return dict.fromkeys(paths, "")

    check = proof.check_nodes("cuda", 2, 42, opened, tmp_path)
    assert check["ok"] is True
    assert calls == [(42, ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia1"])]


def test_nodes_that_do_not_open(proof: ModuleType, tmp_path: Path) -> None:
    nodes(tmp_path, "kfd", "dri/renderD128")
    check = proof.check_nodes(
        "rocm", 1, 42, lambda _, paths: dict.fromkeys(paths, "Permission denied"), tmp_path
    )
    assert check["ok"] is False
    assert check["seen"] == "/dev/kfd: Permission denied; /dev/dri/renderD128: Permission denied"


@pytest.mark.parametrize(
    ("there", "seen"),
    [
        ((), "missing: /dev/nvidiactl, /dev/nvidia-uvm, /dev/nvidia[0-9]*"),
        (("nvidiactl", "nvidia0", "nvidia1"), "missing: /dev/nvidia-uvm"),
        (("nvidiactl", "nvidia-uvm", "nvidia0"), "missing: 1 of 2 /dev/nvidia[0-9]*"),
    ],
)
def test_nodes_that_are_missing(proof: ModuleType, tmp_path: Path, there: tuple[str, ...], seen: str) -> None:
    nodes(tmp_path, *there)
    check = proof.check_nodes("cuda", 2, 42, lambda *_: {}, tmp_path)
    assert (check["ok"], check["seen"]) == (False, seen)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the module does")
def test_a_node_is_opened_like_the_process_does(proof: ModuleType, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for path, user in ((mine, 65534), (theirs, 0)):
        path.touch(mode=0o600)
        os.chown(path, user, user)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    sleeper = subprocess.Popen(["sleep", "60"], user=65534, group=65534, extra_groups=[])
    try:
        errors = proof.open_in_sandbox(sleeper.pid, [str(mine), str(theirs), str(tmp_path / "none")])
    finally:
        sleeper.kill()
        sleeper.wait()
    assert list(errors.values()) == ["", "Permission denied", "No such file or directory"]


def test_the_cgroups_that_restrict_devices(proof: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text(
        "9:name=systemd:/a\n5:devices:/system.slice/o\n0::/system.slice/o\n"
    )
    (tmp_path / "sys/fs/cgroup/unified/system.slice/o").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/unified/cgroup.procs").touch()
    assert [str(path.relative_to(tmp_path)) for path in proof.device_cgroups(7, tmp_path)] == [
        "sys/fs/cgroup/devices/system.slice/o",
        "sys/fs/cgroup/unified/system.slice/o",
    ]


@pytest.mark.parametrize(
    ("backend", "journal", "ok", "seen"),
    [
        ("cuda", ON_CPU + ON_CARD, True, 'it uses cpu, cuda on cpu, "NVIDIA GeForce RTX 4090"'),
        ("cuda", ON_CPU, False, "it uses cpu, not cuda: it fell back to the CPU"),
        ("rocm", ON_CARD, False, "it uses cuda, not rocm: it fell back to the CPU"),
        ("cuda", "", None, "its journal has no line 'inference compute' since it started"),
    ],
)
def test_the_engines_journal(
    proof: ModuleType, backend: str, journal: str, ok: bool | None, seen: str
) -> None:
    check = proof.check_journal(backend, journal)
    assert (check["ok"], check["seen"]) == (ok, seen)


class FakeEngine(ThreadingHTTPServer):
    """A fake Ollama; `answers` are the response bodies by path, `requests` what it received."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.answers: dict[str, Any] = {
            "/api/ps": {"models": [{"name": "big:7b", "size": 8 * GIB, "size_vram": 8 * GIB}]},
            "/api/show": {"capabilities": ["completion"]},
            "/api/generate": {"response": "1 2 3", "eval_count": 32, "eval_duration": 400_000_000},
        }
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: Any) -> None:
        server = self.server
        assert isinstance(server, FakeEngine)
        server.requests.append((self.path, body))
        answer = server.answers[self.path]
        text = json.dumps(answer(body) if callable(answer) else answer).encode()
        self.send_response(500 if b'"error"' in text else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def fake_engine() -> Iterator[FakeEngine]:
    with serving(FakeEngine()) as server:
        yield server


def token_checks(proof: ModuleType, engine: FakeEngine, minimum: float = 0) -> list[dict[str, Any]]:
    checks: list[dict[str, Any]] = proof.check_tokens(
        proof.Engine(engine.url), ["small:1b", "big:7b"], minimum, 60
    )
    return checks


def test_a_loaded_model_on_the_gpu(proof: ModuleType, fake_engine: FakeEngine) -> None:
    (check,) = token_checks(proof, fake_engine)
    assert (check["ok"], check["seen"]) == (True, "100% of big:7b is on the GPU")
    request = next(body for path, body in fake_engine.requests if path == "/api/generate")
    assert (request["model"], request["options"]) == ("big:7b", {"num_predict": 32})


@pytest.mark.parametrize(
    ("vram", "seen"), [(0, "big:7b runs on the CPU"), (4 * GIB, "50% of big:7b is on the GPU")]
)
def test_a_model_that_is_not_entirely_on_the_gpu(
    proof: ModuleType, fake_engine: FakeEngine, vram: int, seen: str
) -> None:
    fake_engine.answers["/api/ps"]["models"][0]["size_vram"] = vram
    (check,) = token_checks(proof, fake_engine)
    assert (check["ok"], check["seen"]) == (False, seen)


@pytest.mark.parametrize(("minimum", "ok"), [(80, True), (80.1, False)])
def test_a_slow_gpu(proof: ModuleType, fake_engine: FakeEngine, minimum: float, ok: bool) -> None:
    _, check = token_checks(proof, fake_engine, minimum)
    assert (check["ok"], check["seen"]) == (
        ok,
        f"80.0 tokens/s, gpu_driver_minimum_tokens_per_second is {minimum:g}",
    )


def test_a_model_without_completion_is_not_used(proof: ModuleType, fake_engine: FakeEngine) -> None:
    fake_engine.answers["/api/show"] = {"capabilities": ["embedding"]}
    (check,) = token_checks(proof, fake_engine)
    assert (check["ok"], check["seen"]) == (None, "no declared model supports completion")


def test_an_engine_that_does_not_respond(proof: ModuleType, fake_engine: FakeEngine) -> None:
    fake_engine.answers["/api/generate"] = {"error": "llama runner process has terminated: CUDA error"}
    (check,) = token_checks(proof, fake_engine)
    assert check["ok"] is False
    assert "status 500" in check["seen"]
    assert "llama runner process has terminated: CUDA error" in check["seen"]
    fake_engine.shutdown()
    fake_engine.server_close()
    (check,) = token_checks(proof, fake_engine)
    assert "Connection refused" in check["seen"]


def test_the_runner_among_the_processes_on_the_gpu(
    proof: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nprintf '41\\n42\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    for pid, unit in ((41, "user.slice/other"), (42, "system.slice/ollama.service")):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/cgroup").write_text(f"0::/{unit}\n")
    assert proof.check_runner("cuda", tmp_path)["seen"] == "process 42"
    (tmp_path / "proc/42/cgroup").write_text("0::/user.slice/other\n")
    check = proof.check_runner("cuda", tmp_path)
    assert (check["ok"], check["seen"]) == (False, "none of the 2 processes on the GPU is Ollama's")
    assert proof.check_runner("vulkan", tmp_path)["ok"] is None


def test_the_whole_module_on_a_machine_without_a_gpu(
    proof: ModuleType, run_module: Callable[..., dict[str, Any]], fake_engine: FakeEngine
) -> None:
    fake_engine.answers["/api/ps"]["models"][0]["size_vram"] = 0
    params = {
        "backend": "cuda",
        "module": "nvidia",
        "count": 1,
        "parts": ["cuda_v13"],
        "url": fake_engine.url,
        "models": ["big:7b"],
        "minimum_tokens_per_second": 10,
    }
    checks = run_module(proof, params)["checks"]
    assert [sorted(check) for check in checks] == [["name", "next", "ok", "seen"]] * 7
    assert [check["ok"] for check in checks] == [False, False, False, None, False, True, False]


def test_an_engine_that_hangs_is_not_waited_for(proof: ModuleType) -> None:
    class Hung(proof.Engine):  # type: ignore[misc, name-defined]  # loaded by its path
        def choose(self, models: list[str]) -> str:
            return models[0]

    with socket.create_server(("127.0.0.1", 0)) as server:
        engine = Hung(f"http://127.0.0.1:{server.getsockname()[1]}")
        (check,) = proof.check_tokens(engine, ["big:7b"], 0, 0.5)
    assert (check["ok"], check["seen"]) == (False, "Ollama gave no answer in 0 s")
