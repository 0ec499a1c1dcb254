"""The exporter as a WSGI application: `bedplate_exporter.wsgi:app`."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, make_wsgi_app

from bedplate_exporter.gpu import Answer, Gpus
from bedplate_exporter.metrics import EngineCollector, GpuCollector
from bedplate_exporter.ollama import Engine, State
from bedplate_exporter.pull import Pull, read_pull
from bedplate_exporter.settings import read_expected_gpus, read_ollama_url

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

SCHEMA = 1
GPU_WAIT_SECONDS = 0.3
"""The dashboard waits 1.5 s for engine and GPUs together, and a driver may take seconds to answer."""

_TEXT = "text/plain; charset=utf-8"


def create_app(engine: Engine, gpus: Gpus) -> "Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]":
    """Return the application that answers /metrics, /state.json and /healthz for this host."""
    registry = CollectorRegistry()
    registry.register(EngineCollector(engine))
    registry.register(GpuCollector(gpus))
    metrics = make_wsgi_app(registry)

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        def respond(status: str, kind: str, body: str, *headers: tuple[str, str]) -> Iterable[bytes]:
            data = body.encode()
            start_response(status, [("Content-Type", kind), ("Content-Length", str(len(data))), *headers])
            return [data]

        if environ["REQUEST_METHOD"] != "GET":
            # No body, since the answer to a HEAD must not have one.
            return respond("405 Method Not Allowed", _TEXT, "", ("Allow", "GET"))
        match environ.get("PATH_INFO"):
            case "/metrics":
                lines: Iterable[bytes] = metrics(environ, start_response)
                return lines
            case "/state.json":
                document = build_state_document(engine.poll(), gpus.poll(GPU_WAIT_SECONDS), read_pull())
                body = json.dumps(document) + "\n"
                return respond("200 OK", "application/json", body, ("Cache-Control", "no-store"))
            case "/healthz":
                return respond("200 OK", _TEXT, "ok\n")
            case _:
                return respond(
                    "404 Not Found", _TEXT, "Not found; the paths are /metrics, /state.json and /healthz.\n"
                )

    return app


def build_state_document(
    state: State, answers: tuple[Answer, ...], pull: Pull | None = None
) -> dict[str, object]:
    """Return the body of /state.json for one state, the GPUs' answers and a pull, ready for JSON."""
    return {
        "schema": SCHEMA,
        "at": _format_rfc3339(state.at),
        "engine": {
            "up": state.up,
            "version": state.version,
            "error": state.error,
            "fault": state.fault,
            "latency_seconds": round(state.latency_seconds, 6),
        },
        "models": [
            {
                "name": model.name,
                "digest": model.digest,
                "size_bytes": model.size_bytes,
                "loaded": model.loaded,
                "memory_bytes": model.memory_bytes,
                "gpu_memory_bytes": model.gpu_memory_bytes,
                "context_length": model.context_length,
                "expires_at": _format_rfc3339(model.expires_at) if model.expires_at else None,
            }
            for model in state.models
        ],
        "pull": asdict(pull) if pull else None,
        "gpus": [asdict(gpu) for answer in answers for gpu in answer.gpus],
        "drivers": [
            {
                "vendor": answer.vendor,
                "expected": answer.expected,
                "devices": len(answer.gpus),
                "failed": answer.failed,
                "driver_matches": answer.driver_matches,
                "version": answer.version,
                "module_version": answer.module_version,
                "library_version": answer.library_version,
            }
            for answer in answers
            if answer.expected or answer.gpus or answer.failed
        ],
    }


def _format_rfc3339(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


app = create_app(Engine(read_ollama_url()), Gpus(expected=read_expected_gpus()))
