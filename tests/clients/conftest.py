"""A working endpoint and a faulty one.

The working endpoint is that of OPENAI_BASE_URL and OPENAI_API_KEY (with a key without low limits). By default
it is this checkout's gateway with the lab's Ollama, or if CLIENTS_ENGINE=fake with `traffic fake-server`.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.clients import agent_model
from tests.clients.endpoints import MODEL, Endpoint, Faulty
from tests.support import servers


def live() -> Endpoint:
    """Return the endpoint in the environment, with OPENAI_MODEL or the first model that it offers."""
    with openai.OpenAI() as client:
        model = os.environ.get("OPENAI_MODEL") or next(iter(client.models.list())).id
        try:
            tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
            client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "x"}], tools=[tool], max_tokens=1
            )
        except openai.BadRequestError:
            tools = False
        else:
            tools = True
        url, ca_file = str(client.base_url).rstrip("/"), os.environ.get("SSL_CERT_FILE", "")
        return Endpoint(url, client.api_key, model, tools, ca_file)


KEYS = [{"alias": "any", "rpm": 100_000, "tpm": 10_000_000}]
AGENTS = {"max_output_tokens": 60, "first_byte_seconds": 600}


@pytest.fixture(scope="session")
def engine_url() -> Iterator[str]:
    """A real or a fake engine."""
    if os.environ.get("CLIENTS_ENGINE") == "fake":
        models = [MODEL, agent_model.NAME]
        with servers.fake_engine(model=models, concurrency=2, context=10 * agent_model.CONTEXT) as fake:
            yield fake.url
    else:
        with servers.real_engine() as url:
            agent_model.create(url, servers.real_model())
            yield url


@pytest.fixture(scope="session")
def endpoint(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    """A working endpoint."""
    if "OPENAI_BASE_URL" in os.environ:
        yield live()
        return
    engine = servers.engine(request.getfixturevalue("engine_url"), MODEL)
    with servers.gateway([engine], KEYS) as gateway:
        yield Endpoint(f"{gateway.url}/v1", gateway.keys["any"])


@pytest.fixture(scope="session")
def agents(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    """A working endpoint with TLS and a context that is long enough for coding agents."""
    if "OPENAI_BASE_URL" in os.environ:
        yield live()
        return
    engine = servers.engine(request.getfixturevalue("engine_url"), agent_model.NAME)
    engine["models"][0]["context"] = agent_model.CONTEXT
    with (
        tempfile.TemporaryDirectory(prefix="clients-") as folder,
        servers.gateway([engine], KEYS, Path(folder) / "http.sock", **AGENTS) as gateway,
        servers.edge(Path(folder) / "http.sock", tls=True) as edge,
    ):
        yield Endpoint(
            f"{edge.url}/v1",
            gateway.keys["any"],
            agent_model.NAME,
            ca_file=str(edge.ca_file),
            metrics_url=gateway.metrics_url,
        )


@pytest.fixture(scope="session")
def faulty() -> Iterator[Faulty]:
    """A gateway with models that fail on purpose, and keys with restrictions."""
    models = ["good", "broken", "cut", "garbage", "silent"]
    faults = ["error@broken", "cut@cut", "garbage@garbage", "silent@silent"]
    keys: list[dict[str, Any]] = [
        {"alias": "any"},
        *[{"alias": f"once-{client}", "rpm": 1} for client in ("python", "npm", "langchain", "anthropic")],
        {"alias": "expired", "expires": "2020-01-01T00:00:00Z"},
        {"alias": "good-only", "models": ["good"]},
    ]
    with servers.fake_engine(model=models, fault=faults, concurrency=8, context=200) as fake:
        faulty_engine = servers.engine(fake.url)
        faulty_engine["models"] = [{"name": name, "slots": 2, "context": 200} for name in models]
        unreachable = servers.engine(f"http://127.0.0.1:{servers.free_port()}", "gone", name="gone")
        with servers.gateway(
            [faulty_engine, unreachable],
            keys,
            first_byte_seconds=1.5,
            load_seconds=1.5,
            refuse_truncation=True,
        ) as gateway:
            yield Faulty(f"{gateway.url}/v1", gateway.keys, fake.url)
