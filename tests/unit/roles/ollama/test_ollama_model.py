"""ollama_model: which models count as present, and creating them with a fake engine that can fail."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils import models
from ansible.module_utils.basic import AnsibleModule

WEIGHTS = b"GGUF and some weights"
Run = Callable[..., dict[str, Any]]


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture(scope="module")
def plugin(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("roles/ollama/library/ollama_model.py")


class FakeOllama:
    """Fake of Ollama's API that creates models in a directory; `fault` selects a known failure."""

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = models_dir
        self.fault = ""
        self.requests: list[str] = []
        self.registry: dict[str, bytes] = {}
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                engine.requests.append(f"{self.command} {self.path.split('sha256:')[0]}")
                status, text = engine.handle(self.command, self.path, body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815 - the names http.server calls

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def blob(self, content: bytes) -> dict[str, Any]:
        """Store content; return its layer."""
        path = self.models_dir / "blobs" / sha256(content).replace(":", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return {"digest": sha256(content), "size": len(content)}

    def store(self, path: str, weights: bytes, parameters: dict[str, Any], template: str = "") -> Path:
        """Store a model under its manifest path; return the manifest."""
        layers = [{"mediaType": "application/vnd.ollama.image.model", **self.blob(weights)}]
        if template:
            layers.append(
                {"mediaType": "application/vnd.ollama.image.template", **self.blob(template.encode())}
            )
        if parameters:
            content = json.dumps(parameters).encode()
            layers.append({"mediaType": "application/vnd.ollama.image.params", **self.blob(content)})
        manifest = self.models_dir / "manifests" / path
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(json.dumps({"config": self.blob(b"{}"), "layers": layers}))
        return manifest

    def handle(self, method: str, path: str, body: bytes) -> tuple[int, str]:
        """Return status and body for one request."""
        if path.startswith("/api/blobs/"):
            if method == "HEAD":
                digest = path.removeprefix("/api/blobs/").replace(":", "-")
                return (200 if (self.models_dir / "blobs" / digest).exists() else 404), ""
            self.blob(body)
            return 201, ""
        request = json.loads(body)
        if path in ("/api/create", "/api/pull"):
            if self.fault == "error":
                return 200, '{"status": "working"}\n{"error": "no space left on device"}\n'
            if self.fault == "cut":
                return 200, '{"status": "pulling 123"}\n'
            if self.fault == "refuse":
                return 400, '{"error": "invalid model name"}'
        if path == "/api/create" and self.fault != "nothing":
            (digest,) = request["files"].values()
            weights = (self.models_dir / "blobs" / digest.replace(":", "-")).read_bytes()
            self.store(
                "registry.ollama.ai/library/smol/1",
                weights,
                request["parameters"],
                request.get("template", ""),
            )
        elif path == "/api/pull":
            self.store(request["model"].removeprefix("http://").replace(":1", "/1"), WEIGHTS, {})
        elif path == "/api/copy":
            self.store("registry.ollama.ai/library/smol/1", WEIGHTS, {})
        elif path == "/api/delete":
            (self.models_dir / "manifests" / request["model"].replace(":1", "/1")).unlink()
        layer = {"status": "pulling a", "digest": "sha256:a", "total": 100, "completed": 40}
        return 200, f'{json.dumps(layer)}\n{{"status": "success"}}\n'


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeOllama]:
    fake = FakeOllama(tmp_path / "models")
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


@pytest.fixture
def model(plugin: ModuleType, run_module: Run, engine: FakeOllama, tmp_path: Path) -> Run:
    """Run the module for the model smol:1, from a GGUF file unless `pull` is given."""
    gguf = tmp_path / "smol.gguf"
    gguf.write_bytes(WEIGHTS)

    def run(*, check: bool = False, **params: Any) -> dict[str, Any]:
        source = {} if "pull" in params else {"gguf": str(gguf), "checksum": sha256(WEIGHTS)}
        fixed = {"url": engine.url, "models_dir": str(engine.models_dir), "name": "smol:1"}
        return run_module(plugin, {**fixed, **source, **params}, check=check)

    return run


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("smollm2:135m", "manifests/registry.ollama.ai/library/smollm2/135m"),
        ("llama3.2", "manifests/registry.ollama.ai/library/llama3.2/latest"),
        ("team/model:a", "manifests/registry.ollama.ai/team/model/a"),
        ("hf.co/team/Model-GGUF:Q4_K_M", "manifests/hf.co/team/Model-GGUF/Q4_K_M"),
        ("http://10.1.2.3:5000/library/smollm2:135m", "manifests/10.1.2.3:5000/library/smollm2/135m"),
        ("10.1.2.3:5000/library/smollm2", "manifests/10.1.2.3:5000/library/smollm2/latest"),
    ],
)
def test_manifest_path(text: str, path: str) -> None:
    assert str(models.parse_name(text).path) == path


@pytest.mark.parametrize(
    "text", ["", "two words", "a//b", "../../etc:x", "a/b/c/d", "model:", "model:a/b:c", ".."]
)
def test_an_invalid_name(text: str) -> None:
    with pytest.raises(models.ModelError, match="is not a model's name"):
        models.parse_name(text)


@pytest.mark.parametrize(
    ("wanted", "stored", "names"),
    [
        ({}, {}, []),
        ({"num_ctx": 1, "temperature": 0.5}, {"temperature": 0.5, "num_ctx": 1}, []),
        ({"temperature": 1}, {"temperature": 1.0}, []),
        ({"num_ctx": 1}, {"num_ctx": 2}, ["num_ctx"]),
        ({"num_ctx": 1}, {}, ["num_ctx"]),
        ({}, {"num_thread": 1}, ["num_thread"]),
        ({}, {"stop": ["<|im_end|>"]}, []),
        ({"stop": ["a"]}, {"stop": ["b"]}, ["stop"]),
        ({"stop": ["a"]}, {}, ["stop"]),
    ],
)
def test_parameters(wanted: dict[str, Any], stored: dict[str, Any], names: list[str]) -> None:
    assert models.differing_parameters(wanted, stored) == names


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [("num_ctx", "4096", 4096), ("top_p", "0.9", 0.9), ("use_mmap", "False", False), ("stop", "a", ["a"])],
)
def test_parameters_given_as_text(name: str, value: str, result: object) -> None:
    assert models.normalized_parameter(name, value) == result


@pytest.mark.parametrize(
    ("name", "value"), [("num_ctx", "many"), ("num_ctx", None), ("num_ctx", [1]), ("stop", [1])]
)
def test_bad_parameters(name: str, value: object) -> None:
    with pytest.raises(models.ModelError, match=f"parameter {name} is "):
        models.normalized_parameter(name, value)


def test_created_from_a_file_once(model: Run, engine: FakeOllama) -> None:
    first = model(parameters={"num_ctx": 4096})
    manifest = engine.models_dir / "manifests/registry.ollama.ai/library/smol/1"
    assert (first["changed"], first["reason"]) == (True, "it is missing")
    assert first["digest"] == sha256(manifest.read_bytes())
    assert engine.requests == ["HEAD /api/blobs/", "POST /api/blobs/", "POST /api/create"]
    engine.requests.clear()
    second = model(parameters={"num_ctx": "4096"}, gguf="/not/there")
    assert (second["changed"], second["reason"], second["digest"]) == (False, None, first["digest"])
    assert engine.requests == []


def test_other_parameters_need_no_file(model: Run, engine: FakeOllama) -> None:
    model(parameters={"num_ctx": 4096, "num_thread": 1})
    engine.requests.clear()
    result = model(parameters={"num_ctx": 2048}, gguf="/not/there")
    assert result["reason"] == "its parameters differ: num_ctx, num_thread"
    assert engine.requests == ["HEAD /api/blobs/", "POST /api/create"]


def test_a_template_is_compared(model: Run) -> None:
    assert model(template="{{ .Prompt }}")["changed"] is True
    assert model(template="{{ .Prompt }}")["changed"] is False
    assert model(template="{{ .System }}")["reason"] == "its template differs"
    assert model()["changed"] is False


def test_check_mode_sends_no_request(model: Run, engine: FakeOllama) -> None:
    engine.store("registry.ollama.ai/library/smol/1", WEIGHTS, {"num_ctx": 1, "stop": ["theirs"]})
    result = model(parameters={"num_ctx": 2}, gguf="/not/there", url="http://127.0.0.1:1", check=True)
    assert (result["changed"], result["digest"]) == (True, None)
    before, after = (json.loads(result["diff"][side]) for side in ("before", "after"))
    assert before == {"model": sha256(WEIGHTS), "parameters": {"num_ctx": 1}}
    assert after == {"model": sha256(WEIGHTS), "parameters": {"num_ctx": 2}}
    assert engine.requests == []
    assert model(parameters={"num_ctx": 1}, check=True)["changed"] is False


def test_a_file_with_another_checksum_is_not_uploaded(model: Run, engine: FakeOllama) -> None:
    result = model(checksum=f"sha256:{'0' * 64}")
    assert (
        f"has the checksum {sha256(WEIGHTS)}, not sha256:{'0' * 64}; download the file again" in result["msg"]
    )
    assert engine.requests == ["HEAD /api/blobs/"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"layers": 5}', '{"config": {}, "layers": []}'])
def test_a_model_with_a_damaged_manifest_is_created_again(
    model: Run, engine: FakeOllama, damage: str
) -> None:
    engine.store("registry.ollama.ai/library/smol/1", WEIGHTS, {}).write_text(damage)
    assert model()["reason"] == "its manifest is damaged"
    assert model()["changed"] is False


def test_truncated_or_missing_files_are_created_again(model: Run, engine: FakeOllama) -> None:
    engine.store("registry.ollama.ai/library/smol/1", WEIGHTS, {})
    blob = engine.models_dir / "blobs" / sha256(WEIGHTS).replace(":", "-")
    blob.write_bytes(b"GG")
    assert model()["reason"] == "one of its files is truncated"
    assert blob.read_bytes() == WEIGHTS
    blob.unlink()
    assert model()["reason"] == "one of its files is missing"
    assert blob.read_bytes() == WEIGHTS


def test_a_truncated_upload_without_a_model_is_repeated(model: Run, engine: FakeOllama) -> None:
    blob = engine.models_dir / "blobs" / sha256(WEIGHTS).replace(":", "-")
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"")
    assert model()["changed"] is True
    assert blob.read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("error", "creating smol:1 failed: no space left on device"),
        ("cut", "creating smol:1 ended early, after 'pulling 123'; run the playbook again to resume."),
        ("refuse", "Ollama refused POST /api/create: invalid model name"),
        (
            "nothing",
            "smol:1: Ollama reports success, but its parameters differ: num_ctx; check that OLLAMA_MODELS of",
        ),
    ],
)
def test_failures_keep_the_old_model(model: Run, engine: FakeOllama, fault: str, message: str) -> None:
    manifest = engine.store("registry.ollama.ai/library/smol/1", WEIGHTS, {"num_ctx": 1})
    before = manifest.read_bytes()
    engine.fault = fault
    result = model(parameters={"num_ctx": 2})
    assert result["failed"] is True
    assert result["msg"].startswith(message)
    assert manifest.read_bytes() == before


def test_an_engine_that_is_down(model: Run) -> None:
    result = model(url="http://127.0.0.1:1")
    assert result["msg"] == (
        "Ollama does not respond at http://127.0.0.1:1 ([Errno 111] Connection refused); "
        "run: systemctl status ollama"
    )


def test_pulled_from_a_registry_and_renamed(model: Run, engine: FakeOllama) -> None:
    first = model(pull="http://10.1.2.3:5000/library/smol:1")
    assert (first["changed"], first["reason"]) == (True, "it is missing")
    assert engine.requests == ["POST /api/pull", "POST /api/copy", "DELETE /api/delete"]
    assert not (engine.models_dir / "manifests/10.1.2.3:5000/library/smol/1").exists()
    assert model(pull="http://10.1.2.3:5000/library/smol:1", digest=first["digest"])["changed"] is False


def test_pulled_under_its_own_name(model: Run, engine: FakeOllama) -> None:
    reference = "registry.ollama.ai/library/smol:1"
    assert model(pull=reference)["changed"] is True
    assert engine.requests == ["POST /api/pull"]
    assert model(pull=reference)["changed"] is False


def test_another_digest_than_declared(model: Run, engine: FakeOllama) -> None:
    manifest = engine.store("registry.ollama.ai/library/smol/1", b"older weights", {})
    before = manifest.read_bytes()
    result = model(pull="http://10.1.2.3:5000/library/smol:1", digest="0" * 64)
    assert f"not sha256:{'0' * 64}; correct digest if the change is wanted." in result["msg"]
    assert manifest.read_bytes() == before
    assert engine.requests == ["POST /api/pull", "DELETE /api/delete"]


def test_a_reference_that_somebody_uses_stays(model: Run, engine: FakeOllama) -> None:
    manifest = engine.store("hf.co/team/smol/1", WEIGHTS, {})
    assert model(pull="hf.co/team/smol:1")["changed"] is True
    assert engine.requests == ["POST /api/pull", "POST /api/copy"]
    assert manifest.exists()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"checksum": "sha256:12"}, "checksum is 'sha256:12'; set sha256: and 64 hexadecimal digits."),
        (
            {"name": "a b"},
            "'a b' is not a model's name; write it like llama3.2:3b or HOST/NAMESPACE/MODEL:TAG.",
        ),
        (
            {"pull": "a", "parameters": {"num_ctx": 1}},
            "smol:1: parameters and template apply to a model from a gguf",
        ),
        ({"checksum": None}, "missing parameter(s) required by 'gguf': checksum"),
        ({"gguf": None, "checksum": None}, "smol:1 has no source; set gguf with its checksum, or pull."),
        ({"pull": "a", "gguf": "b", "checksum": "c"}, "parameters are mutually exclusive: gguf|pull"),
    ],
)
def test_bad_input(model: Run, params: dict[str, Any], message: str) -> None:
    result = model(**params)
    assert result["failed"] is True
    assert result["msg"].startswith(message)


def test_an_unknown_parameter_causes_a_warning(model: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # In a whole test run the controller's code is loaded too, and then warn() prints instead of returning.
    warnings: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _self, text: warnings.append(text))
    model(parameters={"num_cxt": 1})
    assert "Ollama is not known to use the parameter num_cxt" in warnings[0]


def test_the_progress_of_a_pull(plugin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "WRITE_SECONDS", 0)
    file = tmp_path / "progress.json"
    progress = plugin.Progress(file, "smol:1")
    progress.take('{"status": "pulling manifest"}')
    assert not file.exists()
    progress.take('{"status": "pulling a", "digest": "sha256:a", "total": 100, "completed": 40}')
    assert json.loads(file.read_text())["per_second"] == 0
    progress.take('{"status": "pulling b", "digest": "sha256:b", "total": 20}')
    progress.first = (progress.written - 2, 40)
    progress.written -= 2
    monkeypatch.setattr(plugin.time, "monotonic", lambda: progress.written + 2)
    progress.take('{"status": "pulling a", "digest": "sha256:a", "total": 100, "completed": 100}')
    assert json.loads(file.read_text()) == {"model": "smol:1", "done": 100, "total": 120, "per_second": 30}
    progress.end()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["", "cut"])
def test_a_pull_leaves_no_progress_behind(model: Run, engine: FakeOllama, tmp_path: Path, fault: str) -> None:
    engine.fault = fault
    file = tmp_path / "run" / "progress.json"
    file.parent.mkdir()
    result = model(pull="http://10.1.2.3:5000/library/smol:1", progress=str(file))
    assert result.get("changed", False) == (not fault)
    assert list(file.parent.iterdir()) == []
