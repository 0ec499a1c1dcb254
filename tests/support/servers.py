"""What the benches compare: a fake engine, a real one, the gateway, and stock LiteLLM."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.rendering import render

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bedplate" / "bench"
UV = ROOT / ".venv/bin/uv"
LOCKS = [*ROOT.glob("requirements/*.txt"), *ROOT.glob("bench/requirements/*.txt")]
LAB = "bench-gateway"
ENGINE_HOST = "engine"
REAL_MODEL = "smollm2:135m"
START_SECONDS = 120.0
_SHOTS = "".join(
    f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    f'{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}<|im_end|>\n'
    for question, city in (
        ("What is the weather in Rome?", "Rome"),
        ("What is the weather in Berlin?", "Berlin"),
        ("How is the weather in Madrid?", "Madrid"),
    )
)
# The template names .Tools and shows examples of calls, so that this small model calls a tool.
MODELFILE = f'''FROM /root/model.gguf
PARAMETER num_ctx 4096
PARAMETER num_thread 1
PARAMETER stop <|im_start|>
PARAMETER stop <|im_end|>
TEMPLATE """{{{{- if .Tools }}}}<|im_start|>system
You answer with one function call in JSON. Functions: {{{{ .Tools }}}}<|im_end|>
{_SHOTS}{{{{ end }}}}{{{{- range .Messages }}}}<|im_start|>{{{{ .Role }}}}
{{{{ .Content }}}}{{{{ range .ToolCalls }}}}{{"name": "{{{{ .Function.Name }}}}", \
"arguments": {{{{ .Function.Arguments }}}}}}{{{{ end }}}}<|im_end|>
{{{{ end }}}}<|im_start|>assistant
"""
'''


class BenchError(Exception):
    """A bench cannot run; the message is one sentence."""


@dataclass
class Server:
    """A server under test. `url` has no /v1; `process` is what was started, `log` is its output."""

    url: str
    process: subprocess.Popen[str] | None = None
    log: Path | None = None
    keys: dict[str, str] = field(default_factory=dict)
    metrics_url: str = ""
    key_file: Path | None = None
    ca_file: Path | None = None
    """The CA of an https URL."""
    trusted: ssl.SSLContext | None = None
    """What verifies the certificate of an https URL."""

    @property
    def pid(self) -> int:
        """The process whose time and memory count."""
        if self.process is None:
            raise BenchError(f"{self.url} was not started here")
        return self.process.pid

    def cpu_seconds(self) -> float:
        """Return the CPU time that the process took so far, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        """Return the memory that the process holds, in MiB."""
        return (
            int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        )


def free_port() -> int:
    """Return a port of the loopback address that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def get(url: str, key: str | None = None, seconds: float = 10.0) -> tuple[int, str]:
    """Return status and text of a GET; status 0 when nothing answers."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError:
        return 0, ""


def environment(name: str) -> Path:
    """Return the Python of the environment of a lock, which is made where it is missing.

    Those of `gateway` and `traffic` also have the package of this checkout.
    """
    lock = next(path for path in LOCKS if path.stem == name)
    place = CACHE / f"{name}-{hashlib.sha256(lock.read_bytes() + bytes(ROOT)).hexdigest()[:12]}"
    interpreter = place / "bin/python"
    if not (place / "installed").exists():
        say(f"installing {lock.relative_to(ROOT)} for the benches")
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([str(UV), "venv", "--quiet", "--python", "3.11", str(place)], check=True)
        install = [
            str(UV),
            "pip",
            "install",
            "--quiet",
            "--require-hashes",
            "--no-deps",
            "--compile-bytecode",
        ]
        subprocess.run([*install, "--python", str(interpreter), "--requirement", str(lock)], check=True)
        if name in ("gateway", "traffic"):
            itself = [str(UV), "pip", "install", "--quiet", "--no-deps", "--python", str(interpreter)]
            subprocess.run([*itself, "--editable", str(ROOT / name)], check=True)
        (place / "installed").touch()
    return interpreter


def say(line: str) -> None:
    """Tell on standard error how far a bench is."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _running(
    command: Sequence[str], folder: Path, ready_url: str, environ: dict[str, str], name: str
) -> Iterator[Server]:
    """Run a server until the block ends; yields when `ready_url` answers 200."""
    log = folder / f"{name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **environ},
        )
    try:
        end = time.monotonic() + START_SECONDS
        while get(ready_url, seconds=2.0)[0] != 200:
            if process.poll() is not None or time.monotonic() > end:
                raise BenchError(f"{name} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        yield Server(ready_url.split("/", 3)[0] + "//" + ready_url.split("/", 3)[2], process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def fake_engine(**options: Any) -> Iterator[Server]:
    """Run `traffic fake-server`; `options` are its flags, lists for those that repeat."""
    port = free_port()
    command = [str(ROOT / ".venv/bin/python"), "-m", "bedplate_traffic", "fake-server", "--port", str(port)]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            command += [f"--{name.replace('_', '-')}", str(one)]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        environ = {"PYTHONPATH": str(ROOT / "traffic/src")}
        with _running(command, Path(folder), f"{url}/api/version", environ, "fake-server") as server:
            yield server


def engine(
    url: str, model: str = "fake", slots: int = 2, kind: str = "ollama", name: str = "one"
) -> dict[str, Any]:
    """Return the gateway's settings for an engine with one model."""
    return {
        "name": name,
        "kind": kind,
        "url": url,
        "models": [{"name": model, "slots": slots, "context": 4096}],
    }


@contextmanager
def gateway(
    engines: list[dict[str, Any]],
    keys: list[dict[str, Any]],
    path: Path | None = None,
    **settings: Any,
) -> Iterator[Server]:
    """Run the gateway of this repository; each key's secret is in `Server.keys` under its alias.

    With `path` it serves the API on that Unix socket, and `Server.url` is of the metrics.
    """
    python = environment("gateway")
    api, metrics = free_port(), free_port()
    secrets = {key["alias"]: f"sk-bench-{key['alias']}-{'0' * 24}" for key in keys}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        (folder / "state").mkdir()
        hashed = [
            {**key, "secrets": [{"sha256": hashlib.sha256(secrets[key["alias"]].encode()).hexdigest()}]}
            for key in keys
        ]
        (folder / "keys.json").write_text(json.dumps({"schema": 2, "keys": hashed}))
        document = {
            "api": {"path": str(path)} if path else {"address": "127.0.0.1", "port": api},
            "metrics": {"address": "127.0.0.1", "port": metrics},
            "engines": engines,
            "keys_file": str(folder / "keys.json"),
            "state_dir": str(folder / "state"),
            **settings,
        }
        (folder / "gateway.json").write_text(json.dumps(document, indent=1))
        command = [str(python.parent / "bedplate-gateway"), str(folder / "gateway.json")]
        ready = f"http://127.0.0.1:{metrics}/metrics" if path else f"http://127.0.0.1:{api}/health/readiness"
        unit = (ROOT / "templates/systemd/bedplate-gateway.service.j2").read_text()
        [tunables] = re.findall(r"GLIBC_TUNABLES=(\S+)", unit)
        with _running(command, folder, ready, {"GLIBC_TUNABLES": tunables}, "gateway") as server:
            server.keys = secrets
            server.metrics_url = f"http://127.0.0.1:{metrics}/metrics"
            yield server


@contextmanager
def edge(path: Path, *, tls: bool) -> Iterator[Server]:
    """Run HAProxy with the role's configuration before a gateway on the Unix socket `path`.

    With TLS, the role's own CA has signed its certificate.
    """
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise BenchError("HAProxy is missing here: apt-get install haproxy")
    port, metrics = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        (folder / "checkout").mkdir()
        config = render("two-engines", folder / "checkout").hosts["front"].files["haproxy.cfg"]
        # The pages are not needed, and each process listens on ports of its own.
        config = re.sub(
            r"\n(frontend|backend) (dashboard|prometheus|alertmanager)\n.*?(?=\n\n|\Z)",
            "",
            config,
            flags=re.DOTALL,
        )
        config = config.replace("bind 10.2.0.3:18000", f"bind 127.0.0.1:{port}")
        config = config.replace("bind 127.0.0.1:8405", f"bind 127.0.0.1:{metrics}")
        config = config.replace("/run/bedplate-gateway/http.sock", str(path))
        config = config.replace("/run/bedplate-edge", name).replace("/etc/bedplate/bedplate-edge", name)
        if not tls:
            config = re.sub(r" ssl crt \S+ alpn \S+", "", config)
        certificate = {"directory": str(folder / "ca"), "host": "bench", "addresses": ["127.0.0.1"]}
        make = [str(ROOT / ".venv/bin/ansible"), "localhost", "--module-name", "edge_certificates"]
        make += ["--module-path", str(ROOT / "roles/edge/library"), "--args", json.dumps(certificate)]
        subprocess.run(make, check=True, capture_output=True)
        shutil.copy(folder / "ca/edge-bench.pem", folder / "server.pem")
        authority = folder / "ca/trust.crt"
        (folder / "haproxy.cfg").write_text(config)
        command = [program, "-db", "-f", str(folder / "haproxy.cfg")]
        with _running(command, folder, f"http://127.0.0.1:{metrics}/metrics", {}, "HAProxy") as server:
            server.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
            if tls:
                server.ca_file, server.trusted = authority, ssl.create_default_context(cafile=authority)
            yield server


STOCK_KEY = "sk-bench-master"


@contextmanager
def stock(
    engine_url: str,
    model: str = "fake",
    *,
    model_info: dict[str, Any] | None = None,
    router: dict[str, Any] | None = None,
    prometheus: bool = False,
) -> Iterator[Server]:
    """Run stock LiteLLM on an engine, which it offers as `openai` and as `ollama_chat` after its two ways.

    `model_info` is added to both models' parameters (rpm, tpm), `router` is its router_settings.
    """
    ways = {
        "openai": {"model": f"openai/{model}", "api_base": f"{engine_url}/v1", "api_key": "none"},
        "ollama_chat": {"model": f"ollama_chat/{model}", "api_base": engine_url},
    }
    document: dict[str, Any] = {
        "model_list": [
            {"model_name": way, "litellm_params": parameters | (model_info or {})}
            for way, parameters in ways.items()
        ],
        "general_settings": {"master_key": STOCK_KEY},
        "router_settings": router or {},
    }
    if prometheus:
        document["litellm_settings"] = {
            "callbacks": ["prometheus"],
            "require_auth_for_metrics_endpoint": False,
        }

    def command(folder: Path, port: int) -> list[str]:
        program = str(environment("bench").parent / "litellm")
        return [program, "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)]

    environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as path,
        _proxy(Path(path), command, "stock LiteLLM", document, **environ) as server,
    ):
        server.metrics_url = f"{server.url}/metrics/"
        yield server


@contextmanager
def litellm(engine_url: str, model: str = "fake", engine_name: str = "one") -> Iterator[Server]:
    """Run LiteLLM as the role does: its locked release, its settings, and one deployment ENGINE/MODEL."""
    own = yaml.safe_load((ROOT / "roles/litellm/vars/main.yml").read_text())
    sections = ("litellm_settings", "router_settings", "general_settings")
    answers_itself = {"model": "hosted_vllm/warm-up", "api_key": "none", "mock_response": "ready"}
    parameters = {
        "model": f"hosted_vllm/{model}",
        "api_base": f"{engine_url}/v1",
        "api_key": "none",
        "use_chat_completions_api": True,
        "timeout": 330,
    }
    document = {
        "model_list": [
            {"model_name": f"{engine_name}/{model}", "litellm_params": parameters},
            {"model_name": "warm-up", "litellm_params": answers_itself | {"use_chat_completions_api": True}},
        ],
        **{name: own[f"__litellm_{name.removeprefix('litellm_')}"] for name in sections},
    }

    def command(folder: Path, port: int) -> list[str]:
        (folder / "environment.json").write_text("{}")
        start = str(ROOT / "roles/litellm/files/start.py")
        return [str(environment("litellm")), start, str(port), str(folder / "config.yaml")]

    with (
        tempfile.TemporaryDirectory(prefix="bench-") as path,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
    ):
        # The program reads its keys from this folder, and notifies systemd here.
        systemd.bind(f"{path}/notify")
        environ = {"CREDENTIALS_DIRECTORY": path, "NOTIFY_SOCKET": f"{path}/notify"}
        with _proxy(
            Path(path), command, "LiteLLM", document, LITELLM_OFFLINE_MODE="true", **environ
        ) as server:
            yield server


LANES = ("gateway through LiteLLM", "gateway, direct lane")


@contextmanager
def gateway_in_lane(
    lane: str, engine_url: str, keys: list[dict[str, Any]], *, slots: int, **settings: Any
) -> Iterator[Server]:
    """Run the gateway on an engine with the model `fake`, with LiteLLM between them in the first of LANES."""
    with ExitStack() as stack:
        if lane == LANES[0]:
            proxy = stack.enter_context(litellm(engine_url))
            settings["litellm"] = {"url": proxy.url, "key_file": str(proxy.key_file)}
        yield stack.enter_context(gateway([engine(engine_url, slots=slots)], keys, **settings))


@contextmanager
def _proxy(
    folder: Path,
    command: Callable[[Path, int], list[str]],
    name: str,
    document: dict[str, Any],
    **environ: str,
) -> Iterator[Server]:
    """Run a LiteLLM proxy in a folder; its configuration is YAML, of which JSON is a part."""
    port = free_port()
    (folder / "config.yaml").write_text(json.dumps(document))
    (folder / "master-key").write_text(STOCK_KEY)
    shared = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
    ready = f"http://127.0.0.1:{port}/health/readiness"
    with _running(command(folder, port), folder, ready, shared | environ, name) as server:
        server.keys = {"": STOCK_KEY}
        server.key_file = folder / "master-key"
        yield server


@contextmanager
def library(engine_url: str) -> Iterator[Server]:
    """Run `library_app.py`: the LiteLLM library behind uvicorn, without LiteLLM's proxy."""
    port = free_port()
    command = [str(environment("bench")), "-m", "uvicorn", "--no-access-log"]
    command += ["--port", str(port), "library_app:app"]
    environ = {
        "PYTHONPATH": str(ROOT / "bench/gateway"),
        "ENGINE_URL": engine_url,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
    }
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        _running(
            command, Path(folder), f"http://127.0.0.1:{port}/ready", environ, "LiteLLM library"
        ) as server,
    ):
        yield server


def _lab(*arguments: str, stdin: Any = None) -> str:
    done = subprocess.run(
        [str(ROOT / "lab/lab"), *arguments],
        env={**os.environ, "BEDPLATE_LAB": LAB},
        stdin=stdin or subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"lab/lab {' '.join(arguments)} failed: {done.stderr[-1000:]}")
    return done.stdout


def real_model() -> Path:
    """Return the GGUF file of the lab's model."""
    return Path(json.loads(_lab("model"))["path"])


@contextmanager
def real_engine(slots: int = 2) -> Iterator[str]:
    """Boot a lab host with the real Ollama and a small model; yields its address, removes it afterwards."""
    archive = json.loads(_lab("engine"))["archive"]
    model = real_model()
    _lab("up", ENGINE_HOST, "--groups", "")
    try:
        with subprocess.Popen(
            ["zstd", "--decompress", "--stdout", archive], stdout=subprocess.PIPE
        ) as unpacked:
            _lab("exec", ENGINE_HOST, "tar", "--extract", "--directory", "/opt", stdin=unpacked.stdout)
        with model.open("rb") as content:
            _lab("exec", ENGINE_HOST, "sh", "-c", "cat >/root/model.gguf", stdin=content)
        with tempfile.TemporaryFile("w+") as modelfile:
            modelfile.write(MODELFILE)
            modelfile.seek(0)
            _lab("exec", ENGINE_HOST, "sh", "-c", "cat >/root/Modelfile", stdin=modelfile)
        _lab(
            *("exec", ENGINE_HOST, "systemd-run", "--quiet", "--unit=ollama", "--setenv=HOME=/root"),
            *("--setenv=OLLAMA_HOST=0.0.0.0:11434", f"--setenv=OLLAMA_NUM_PARALLEL={slots}"),
            *("--setenv=OLLAMA_KEEP_ALIVE=-1", "/opt/bin/ollama", "serve"),
        )
        addresses = {host["name"]: host["address"] for host in json.loads(_lab("list", "--json"))}
        url = f"http://{addresses[ENGINE_HOST]}:11434"
        end = time.monotonic() + 30
        while get(f"{url}/api/version")[0] != 200:
            if time.monotonic() > end:
                raise BenchError("the lab's Ollama did not start")
            time.sleep(0.2)
        create = "HOME=/root /opt/bin/ollama create"
        _lab("exec", ENGINE_HOST, "sh", "-c", f"{create} {REAL_MODEL} -f /root/Modelfile")
        # Loads the model.
        question = {"model": REAL_MODEL, "prompt": "", "stream": False}
        request = urllib.request.Request(f"{url}/api/generate", data=json.dumps(question).encode())
        with urllib.request.urlopen(request, timeout=120):
            yield url
    finally:
        _lab("down", ENGINE_HOST)


def versions() -> str:
    """Return what ran, in one line: Python, LiteLLM, cores, processor."""
    python = subprocess.run(
        [environment("gateway"), "-V"], capture_output=True, text=True, check=True
    ).stdout.strip()
    litellm = next(
        line.split()[0].removeprefix("litellm==")
        for line in (ROOT / "bench/requirements/bench.txt").read_text().replace("[proxy]", "").splitlines()
        if line.startswith("litellm==")
    )
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    processor = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return f"commit {commit}, {python}, LiteLLM {litellm}, {os.cpu_count()} cores of {processor}"


if __name__ == "__main__":
    print(environment(sys.argv[1]))
