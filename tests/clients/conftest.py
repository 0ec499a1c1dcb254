"""A working endpoint and a faulty one.

The working endpoint is that of OPENAI_BASE_URL and OPENAI_API_KEY (with a key without low limits). By default
it is this checkout's gateway with the lab's Ollama, or if CLIENTS_ENGINE=fake with `traffic fake-server`.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest

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
            return Endpoint(str(client.base_url).rstrip("/"), client.api_key, model, tools=False)
        return Endpoint(str(client.base_url).rstrip("/"), client.api_key, model)


@pytest.fixture(scope="session")
def endpoint() -> Iterator[Endpoint]:
    """A working endpoint."""
    if "OPENAI_BASE_URL" in os.environ:
        yield live()
        return
    with ExitStack() as stack:
        if os.environ.get("CLIENTS_ENGINE") == "fake":
            engine_url = stack.enter_context(servers.fake_engine(model=MODEL, concurrency=2)).url
        else:
            engine_url = stack.enter_context(servers.real_engine())
        keys = [{"alias": "any", "rpm": 100_000, "tpm": 10_000_000}]
        gateway = stack.enter_context(servers.gateway([servers.engine(engine_url, MODEL)], keys))
        yield Endpoint(f"{gateway.url}/v1", gateway.keys["any"])


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
