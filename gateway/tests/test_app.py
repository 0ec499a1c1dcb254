"""The app as its clients see it, with an engine's answers that a test gives."""

import asyncio
import json
import logging
import os
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from bedplate_gateway import app, errors
from bedplate_gateway.access_log import AccessRecord
from bedplate_gateway.api.schema import Request
from bedplate_gateway.app import Gateway
from bedplate_gateway.engines.errors import EngineGoneError
from bedplate_gateway.engines.health import EngineState
from bedplate_gateway.engines.litellm import Lane
from bedplate_gateway.engines.request import MAX_MOVES, Answer
from bedplate_gateway.errors import ApiError, ClientDisconnected
from bedplate_gateway.keys import Key, Keys
from bedplate_gateway.settings import Settings

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
KEYS: dict[str, dict[str, Any]] = {
    "all": {},
    "one-model": {"models": ["other"]},
    "low": {"class": "low"},
    "high": {"class": "high"},
    "limited": {"rpm": 2},
    "revoked": {"revoked": True},
    "expired": {"expires": "2020-01-01T00:00:00Z"},
    "expiring": {"expires": "2100-01-01T00:00:00Z"},
}


Message = MutableMapping[str, Any]


@dataclass
class StubEngineRequest:
    """An engine request that does what the test says."""

    request: Request
    lease: Any
    disconnected: asyncio.Event
    act: Callable[["StubEngineRequest"], Awaitable[Answer]]
    prompt_tokens: int = 5
    completion_tokens: int = 7
    cost: float = 0.0
    estimated: bool = False
    truncated: bool = False
    retries: int = 0
    lane: Lane | None = Lane.DIRECT
    error: ApiError | None = None
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self) -> Answer:
        return await self.act(self)

    async def close(self) -> None:
        self.closed.set()


async def answers(_: StubEngineRequest) -> Answer:
    return Answer(200, {}, b'{"object": "chat.completion"}', lambda: chunks(b""))


def answers_after(end: asyncio.Event) -> Callable[[StubEngineRequest], Awaitable[Answer]]:
    async def waits(request: StubEngineRequest) -> Answer:
        await end.wait()
        return await answers(request)

    return waits


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


class Stack:
    """A gateway that is started without polling engines, and a client of it."""

    def __init__(self, tmp_path: Path, **settings: object) -> None:
        models = [{"name": "m", "slots": 1}, {"name": "other", "slots": 1}]
        document = {
            "api": {"address": "127.0.0.1", "port": 0},
            "metrics": {"address": "127.0.0.1", "port": 0, "allowed_clients": ["10.0.0.9"]},
            "engines": [{"name": "one", "kind": "ollama", "url": "http://192.0.2.1", "models": models}],
            "keys_file": "/none",
            "state_dir": str(tmp_path),
            **settings,
        }
        keys = tuple(
            Key.model_validate(
                {
                    "alias": alias,
                    "secrets": [{"sha256": sha256(f"sk-{alias}".encode()).hexdigest()}],
                    **fields,
                }
            )
            for alias, fields in KEYS.items()
        )
        self.gateway = Gateway(Settings.model_validate(document), Keys(keys))
        self.engine_requests: list[StubEngineRequest] = []
        self.act: Callable[[StubEngineRequest], Awaitable[Answer]] = answers
        self.gateway.upstream.new_request = self._run  # type: ignore[method-assign,assignment]
        self.set_engine(up=True)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.gateway, raise_app_exceptions=True),
            base_url="http://gateway",
        )

    def _run(
        self, request: Request, lease: object, disconnected: asyncio.Event, _headers: object
    ) -> StubEngineRequest:
        self.engine_requests.append(StubEngineRequest(request, lease, disconnected, self.act))
        return self.engine_requests[-1]

    def set_engine(self, *, up: bool) -> None:
        state = EngineState(
            up=up, present=frozenset({"m", "other"}), capabilities={"m": frozenset({"completion"})}
        )
        self.gateway.engines._states["one"] = state
        self.gateway.local.engines_changed()

    async def ask(
        self, alias: str = "all", body: object = CHAT, path: str = "/v1/chat/completions"
    ) -> httpx.Response:
        return await self.client.post(path, json=body, headers={"authorization": f"Bearer sk-{alias}"})

    def metric(self, start: str) -> list[str]:
        metrics = self.gateway.metrics
        lines = metrics.render(metrics.read()).decode().splitlines()
        return [line for line in lines if line.startswith(start)]

    def is_idle(self) -> bool:
        scheduler = self.gateway.local.scheduler
        return not any(slots.running for slots in scheduler.engine_slots()) and not list(scheduler.queued())


def error_of(response: httpx.Response) -> tuple[int, str | None]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(bounded())


@pytest.mark.parametrize(("thinks", "effort"), [(True, "low"), (False, None)])
def test_an_effort_reaches_only_models_that_can_think(
    tmp_path: Path, thinks: bool, effort: str | None
) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)
        names = frozenset({"completion", "thinking"} if thinks else {"completion"})
        state = EngineState(up=True, present=frozenset({"m"}), capabilities={"m": names})
        stack.gateway.engines._states["one"] = state
        answer = await stack.ask(body=CHAT | {"reasoning_effort": "low"})
        assert answer.status_code == 200
        assert stack.engine_requests[0].request.body.get("reasoning_effort") == effort

    run(scenario)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/metrics",
        "/docs",
        "/ui/",
        "/v1",
        "/v1/models/",
        "/v1/audio/speech",
        "/key/generate",
        "/v1//models",
    ],
)
def test_all_but_the_few_paths_is_404(tmp_path: Path, path: str) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)
        for method in ("GET", "POST"):
            assert error_of(await stack.client.request(method, path)) == (404, "unknown_url")

    run(scenario)


def test_a_known_path_without_v1_gets_the_right_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        response = await Stack(tmp_path).ask(path="/chat/completions")
        assert error_of(response) == (404, "unknown_url")
        assert "/v1/chat/completions" in response.json()["error"]["message"]

    run(scenario)


def test_the_wrong_method_is_405(tmp_path: Path) -> None:
    async def scenario() -> None:
        response = await Stack(tmp_path).client.get("/v1/chat/completions")
        assert error_of(response) == (405, "method_not_supported")
        assert response.headers["allow"] == "POST"

    run(scenario)


@pytest.mark.parametrize(
    ("authorization", "word"),
    [
        (None, "Authorization"),
        ("Bearer ", "Authorization"),
        ("Basic sk-all", "Authorization"),
        ("Bearer sk-wrong", "not valid"),
        ("Bearer sk-revoked", "revoked"),
        ("Bearer sk-expired", "expired at 2020-01-01"),
    ],
)
def test_no_good_key_is_401_that_says_what_is_wrong(
    tmp_path: Path, authorization: str | None, word: str
) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)
        headers = {"authorization": authorization} if authorization else {}
        for response in (
            await stack.client.get("/v1/models", headers=headers),
            await stack.client.post("/v1/chat/completions", content=b"{", headers=headers),
        ):
            assert error_of(response) == (401, "invalid_api_key")
            assert word in response.json()["error"]["message"]
        assert not stack.engine_requests

    run(scenario)


def test_the_list_holds_what_the_key_may_use_and_an_engine_serves(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)

        async def listed(alias: str) -> list[str]:
            response = await stack.client.get("/v1/models", headers={"authorization": f"Bearer sk-{alias}"})
            return [model["id"] for model in response.json()["data"]]

        assert await listed("all") == ["m", "other"]
        assert await listed("one-model") == ["other"]
        listing = await stack.client.get("/v1/models", headers={"authorization": "Bearer sk-all"})
        # An engine that does not say what a model can is not guessed at.
        assert [model.get("capabilities") for model in listing.json()["data"]] == [["completion"], None]
        one = await stack.client.get("/v1/models/m", headers={"authorization": "Bearer sk-one-model"})
        assert error_of(one) == (404, "model_not_found")
        assert error_of(await stack.ask("one-model")) == (404, "model_not_found")
        assert error_of(await stack.ask(body=CHAT | {"model": "n"})) == (404, "model_not_found")
        stack.set_engine(up=False)
        assert await listed("all") == []
        assert error_of(await stack.ask()) == (503, "engine_unavailable")
        ready = await stack.client.get("/health/readiness")
        assert error_of(ready) == (503, "engine_unavailable")
        assert (await stack.client.get("/health/liveliness")).status_code == 200
        stack.set_engine(up=True)
        assert (await stack.client.get("/health/readiness")).status_code == 200

    run(scenario)


def test_a_drain_is_seen_while_the_gateway_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(app, "TICK_SECONDS", 0.01)
        stack = Stack(tmp_path)
        assert stack.metric("bedplate_gateway_engine_drained{") == [
            'bedplate_gateway_engine_drained{engine="one"} 0.0'
        ]
        assert not stack.metric("bedplate_gateway_drain_timestamp_seconds{")
        drains = tmp_path / "drains.json"
        drain = {"engine": "one", "who": "kim", "since": "2026-03-01T14:02:00Z", "why": "new fan"}
        drains.write_text(json.dumps({"schema": 1, "drains": [drain]}))
        ticker = asyncio.create_task(stack.gateway._tick())
        async with asyncio.timeout(5):
            while stack.metric("bedplate_gateway_engine_drained{")[0].endswith(" 0.0"):
                await asyncio.sleep(0.01)
        assert stack.metric("bedplate_gateway_drain_timestamp_seconds{") == [
            'bedplate_gateway_drain_timestamp_seconds{engine="one",who="kim",why="new fan"} 1.77237372e+09'
        ]
        assert stack.metric('bedplate_gateway_engine_serves{engine="one",model="m"}')[0].endswith(" 1.0")
        # It can be served again: clients that look for it must not give it up.
        listed = await stack.client.get("/v1/models", headers={"authorization": "Bearer sk-all"})
        assert [model["id"] for model in listed.json()["data"]] == ["m", "other"]
        assert (await stack.client.get("/health/readiness")).status_code == 200
        waiting = asyncio.create_task(stack.ask())
        async with asyncio.timeout(5):
            while not list(stack.gateway.local.scheduler.queued()):
                await asyncio.sleep(0.01)
        # A new process, such as after a restart, knows it from the start.
        assert Gateway(stack.gateway.settings, stack.gateway.keys).engines.drain(
            stack.gateway.settings.engines[0]
        )
        drains.unlink()
        async with asyncio.timeout(5):
            assert (await waiting).status_code == 200
        ticker.cancel()

    run(scenario)


def test_a_client_sees_where_its_request_is_by_the_id_that_it_set(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)
        end = asyncio.Event()
        stack.act = answers_after(end)

        async def ask(own: str) -> httpx.Response:
            headers = {"authorization": "Bearer sk-all", "x-request-id": own}
            return await stack.client.post("/v1/chat/completions", json=CHAT, headers=headers)

        async def place(own: str, alias: str = "all") -> httpx.Response:
            headers = {"authorization": f"Bearer sk-{alias}"}
            return await stack.client.get(f"/v1/queue/{own}", headers=headers)

        asked = [asyncio.create_task(ask(own)) for own in ("chat-1", "chat-2", "chat-3")]
        async with asyncio.timeout(5):
            while (last := await place("chat-3")).status_code == 404:
                await asyncio.sleep(0.01)
        assert last.json().pop("waited_seconds") < 5
        assert last.json() | {"waited_seconds": 0} == {
            "id": "chat-3",
            "object": "queue.place",
            "model": "m",
            "state": "waiting",
            "position": 2,
            "waiting": 2,
            "waited_seconds": 0,
        }
        runs = (await place("chat-1")).json()
        assert (runs["state"], runs["position"]) == ("running", 0)
        # Another key learns nothing of it.
        assert error_of(await place("chat-3", "high")) == (404, "request_not_found")
        assert error_of(await place("chat-3", "revoked")) == (401, "invalid_api_key")
        assert error_of(await place("")) == (404, "unknown_url")
        assert error_of(await stack.client.post("/v1/queue/chat-3")) == (405, "method_not_supported")
        end.set()
        assert [(await each).headers["x-request-id"] for each in asked] == ["chat-1", "chat-2", "chat-3"]
        assert error_of(await place("chat-3")) == (404, "request_not_found")
        assert stack.metric('bedplate_gateway_requests_total{alias="all",model="-",path="/v1/queue"')

    run(scenario)


@pytest.mark.parametrize("own", ["", "two words", "x" * 65, 'quo"te', "a=b", "ümlaut"])
def test_an_id_that_cannot_be_logged_is_replaced(tmp_path: Path, own: str) -> None:
    async def scenario() -> None:
        headers = {"authorization": "Bearer sk-all", "x-request-id": own.encode()}
        response = await Stack(tmp_path).client.get("/v1/models", headers=headers)  # type: ignore[arg-type]
        assert response.headers["x-request-id"].startswith("req_")

    run(scenario)


def test_an_answer_carries_limits_and_wait_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        caplog.set_level("INFO", "bedplate_gateway.request")
        stack = Stack(tmp_path)
        response = await stack.ask("limited")
        assert response.json() == {"object": "chat.completion"}
        assert response.headers["x-ratelimit-remaining-requests"] == "1"
        assert int(response.headers["x-bedplate-queue-ms"]) < 1000
        assert response.headers["x-request-id"].startswith("req_")
        await stack.ask("limited")
        refused = await stack.ask("limited")
        assert error_of(refused) == (429, "rate_limit_exceeded")
        assert 50 <= int(refused.headers["retry-after"]) <= 60
        assert int(refused.headers["retry-after-ms"]) <= 60_000
        assert stack.metric('bedplate_gateway_prompt_tokens_total{alias="limited"')[0].endswith(" 10.0")
        refusals = 'bedplate_gateway_refusals_total{reason="key_requests",status="429"}'
        assert stack.metric(refusals)[0].endswith(" 1.0")
        answered = (
            'bedplate_gateway_last_request_timestamp_seconds{alias="limited",model="m",result="answered"}'
        )
        assert abs(float(stack.metric(answered)[0].split()[-1]) - time.time()) < 60
        assert stack.metric('bedplate_gateway_last_answer_tokens_per_second{model="m"}')
        # A limit says nothing about the model.
        assert len(stack.metric("bedplate_gateway_last_request_timestamp_seconds{")) == 1
        line = caplog.messages[0]
        assert "status=200 alias=limited class=normal model=m engine=one" in line
        assert "tokens_in=5 tokens_out=7" in line
        assert stack.is_idle()

    run(scenario)


def test_a_stream_passes_on_what_comes_and_an_error_inside_it_is_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaks(engine_request: StubEngineRequest) -> Answer:
        engine_request.error = ApiError(502, "engine_error", "broken")
        return Answer(
            200, {"x-bedplate-context": "truncated"}, None, lambda: chunks(b"data: 1\n\n", b"data: 2\n\n")
        )

    async def scenario() -> None:
        caplog.set_level("INFO", "bedplate_gateway.request")
        stack = Stack(tmp_path)
        stack.act = breaks
        response = await stack.ask(body=CHAT | {"stream": True})
        assert response.content == b"data: 1\n\ndata: 2\n\n"
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-bedplate-context"] == "truncated"
        assert "status=200" in caplog.messages[0]
        assert "reason=engine_error" in caplog.messages[0]
        failed = 'bedplate_gateway_last_request_timestamp_seconds{alias="all",model="m",result="failed"}'
        assert stack.metric(failed)
        assert stack.is_idle()

    run(scenario)


def test_an_error_of_the_engine_or_of_ours_gives_the_slot_back(tmp_path: Path) -> None:
    async def fails(_: StubEngineRequest) -> Answer:
        raise ApiError(502, "engine_error", "The engine failed.", type="server_error")

    async def bug(_: StubEngineRequest) -> Answer:
        raise RuntimeError("sk-all must not be shown")

    async def scenario() -> None:
        stack = Stack(tmp_path)
        stack.act = fails
        assert error_of(await stack.ask()) == (502, "engine_error")
        stack.act = bug
        response = await stack.ask()
        assert error_of(response) == (500, "internal_error")
        assert "sk-all" not in response.text
        assert all(engine_request.closed.is_set() for engine_request in stack.engine_requests)
        assert stack.is_idle()

    run(scenario)


def test_a_request_whose_engine_is_gone_is_queued_again(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    gone = EngineGoneError(errors.engine_error("it is gone"))

    async def fails_once(request: StubEngineRequest) -> Answer:
        request.retries += 1
        if len(stack.engine_requests) == 1:
            raise gone
        return await answers(request)

    async def fails(request: StubEngineRequest) -> Answer:
        request.retries += 1
        raise gone

    async def scenario() -> None:
        stack.act = fails_once
        assert (await stack.ask()).status_code == 200
        first, second = stack.engine_requests
        assert first.closed.is_set()
        assert first.lease is not second.lease
        assert second.retries == 2
        stack.act = fails
        assert error_of(await stack.ask()) == (502, "engine_error")
        assert len(stack.engine_requests) == 2 + 1 + MAX_MOVES
        assert stack.is_idle()

    run(scenario)


@pytest.mark.parametrize(
    ("alias", "fields", "expected"),
    [
        ("high", {}, "high"),
        ("high", {"service_tier": "flex"}, "low"),
        ("high", {"priority": 5}, "normal"),
        ("high", {"priority": 0}, "high"),
        ("low", {"priority": 0}, "low"),
        ("low", {"priority": 50}, "low"),
        ("all", {"priority": 100}, "low"),
    ],
)
def test_a_request_may_lower_its_class_and_never_raise_it(
    tmp_path: Path, alias: str, fields: dict[str, object], expected: str
) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)
        await stack.ask(alias, CHAT | fields)
        assert stack.engine_requests[0].lease.request.priority_class == expected

    run(scenario)


def test_tools_go_only_to_a_model_that_has_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)
        tools = [{"type": "function", "function": {"name": "f"}}]
        refused = await stack.ask(body=CHAT | {"tools": tools})
        assert error_of(refused) == (400, "unsupported_parameter")
        assert refused.json()["error"]["param"] == "tools"
        assert (await stack.ask(body=CHAT | {"model": "other", "tools": tools})).status_code == 200

    run(scenario)


def test_who_waits_gets_the_slot_and_who_disconnected_is_forgotten(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def waits(_: StubEngineRequest) -> Answer:
        await gate.wait()
        return await answers(_)

    async def scenario() -> None:
        stack = Stack(tmp_path)
        stack.act = waits
        first = asyncio.create_task(stack.ask())
        await asyncio.sleep(0.05)
        sent: list[Message] = []
        disconnected = asyncio.Event()
        disconnecting = asyncio.create_task(
            stack.gateway(scope(), disconnecting_client(disconnected), append(sent))
        )
        second = asyncio.create_task(stack.ask("limited"))
        await asyncio.sleep(0.05)
        assert stack.gateway.in_flight == 3
        disconnected.set()
        await disconnecting
        assert not sent
        gate.set()
        assert (await first).status_code == (await second).status_code == 200
        assert len(stack.engine_requests) == 2
        assert stack.is_idle()

    run(scenario)


def test_the_slot_of_a_disconnected_client_is_free_only_when_the_engine_is(tmp_path: Path) -> None:
    engine_is_free = asyncio.Event()

    class Busy(StubEngineRequest):
        async def close(self) -> None:
            await engine_is_free.wait()

    async def until_disconnected(engine_request: StubEngineRequest) -> Answer:
        await engine_request.disconnected.wait()
        raise ClientDisconnected

    async def scenario() -> None:
        stack = Stack(tmp_path)

        def run_busy(
            request: Request, lease: object, disconnected: asyncio.Event, _headers: object
        ) -> StubEngineRequest:
            return Busy(request, lease, disconnected, until_disconnected)

        stack.gateway.upstream.new_request = run_busy  # type: ignore[method-assign,assignment]
        disconnected = asyncio.Event()
        sent: list[Message] = []
        disconnecting = asyncio.create_task(
            stack.gateway(scope(), disconnecting_client(disconnected), append(sent))
        )
        await asyncio.sleep(0.05)
        disconnected.set()
        await asyncio.sleep(0.05)
        assert not stack.is_idle()
        engine_is_free.set()
        await disconnecting
        assert stack.is_idle()
        assert stack.metric('bedplate_gateway_requests_total{alias="all",model="m"')[0].startswith(
            'bedplate_gateway_requests_total{alias="all",model="m",path="/v1/chat/completions",status="499"}'
        )

    run(scenario)


def test_metrics_are_for_those_who_may_ask(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)
        for peer, path, status in (
            ("10.0.0.9", "/metrics", 200),
            ("10.0.0.8", "/metrics", 403),
            ("10.0.0.9", "/", 404),
        ):
            sent: list[Message] = []
            await stack.gateway.metrics_app(
                {**scope(), "raw_path": path.encode(), "client": (peer, 1)},
                disconnecting_client(asyncio.Event()),
                append(sent),
            )
            assert sent[0]["status"] == status

    run(scenario)


def test_what_clients_send_adds_no_series(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)
        for number in range(3):
            await hostile(stack, str(number))
        before = len(stack.metric(""))
        for number in range(300):
            await hostile(stack, f'{number} \N{SNOWMAN}\n"}}')
        assert len(stack.metric("")) == before

    run(scenario)


async def hostile(stack: Stack, text: str) -> None:
    quoted = text.encode().hex()
    agent = {"user-agent": quoted, "x-request-id": quoted, "authorization": f"Bearer {quoted}"}
    await stack.client.get(f"/{quoted}", headers=agent)
    await stack.client.get("/v1/models", headers=agent)
    await stack.client.post("/v1/embeddings", headers=agent, content=b"")
    good = {"user-agent": quoted, "authorization": "Bearer sk-all"}
    await stack.client.get(f"/v1/models/{quoted}", headers=good)
    for body in (CHAT | {"model": text}, CHAT | {"user": text, text: text}, CHAT | {"service_tier": text}):
        await stack.client.post("/v1/chat/completions", headers=good, json=body)


def test_a_body_over_the_limit_is_413(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path, max_body_bytes=100)
        assert error_of(await stack.ask(body=CHAT | {"user": "x" * 100})) == (413, "request_too_large")

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(9):
                yield b" " * 20

        headers = {"authorization": "Bearer sk-all"}
        sent = await stack.client.post("/v1/chat/completions", content=parts(), headers=headers)
        assert error_of(sent) == (413, "request_too_large")

    run(scenario)


def test_a_key_over_its_limit_is_refused_before_its_body_is_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)
        for _ in range(2):
            assert (await stack.ask("limited")).status_code == 200
        refused = await stack.ask("limited", body={"model": "m", "no": "chat"})
        assert error_of(refused) == (429, "rate_limit_exceeded")
        assert refused.headers["x-ratelimit-limit-requests"] == "2"
        # Told from requests without a key, which pages and alerts do not count.
        assert stack.metric('bedplate_gateway_requests_total{alias="limited",model="(unread)"')

    run(scenario)


def test_bodies_that_wait_or_run_take_a_bounded_memory(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path, max_body_bytes=1000)
        end = asyncio.Event()
        stack.act = answers_after(end)
        large = CHAT | {"user": "x" * 850}
        running = [asyncio.create_task(stack.ask(body=large)) for _ in range(3)]
        await asyncio.sleep(0.05)
        refused = await stack.ask(body=large)
        assert error_of(refused) == (429, "queue_full")
        assert "The bodies of your key's requests" in refused.json()["error"]["message"]
        others = [asyncio.create_task(stack.ask("high", body=large))]
        await asyncio.sleep(0.05)
        end.set()
        for each in (*running, *others):
            assert (await each).status_code == 200
        assert (await stack.ask(body=large)).status_code == 200

    run(scenario)


def test_two_keys_that_take_all_memory_they_can_leave_room_for_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path, max_body_bytes=1000)
        end = asyncio.Event()
        stack.act = answers_after(end)
        accepted = []
        for alias in ("all", "low"):
            for size in (850, 400, 200, 100, 1):
                while True:
                    request = asyncio.create_task(stack.ask(alias, body=CHAT | {"user": "x" * size}))
                    await asyncio.sleep(0.01)
                    if request.done():
                        assert error_of(await request) == (429, "queue_full")
                        break
                    accepted.append(request)
        accepted += [asyncio.create_task(stack.ask("high", body=CHAT | {"user": "x" * 300}))]
        await asyncio.sleep(0.01)
        end.set()
        assert {(await request).status_code for request in accepted} == {200}

    run(scenario)


def test_a_path_is_routed_as_it_was_sent_and_a_models_name_is_decoded(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)
        assert error_of(await stack.ask(path="/v1/chat%2fcompletions")) == (404, "unknown_url")
        model = await stack.client.get("/v1/models/%6D", headers={"authorization": "Bearer sk-all"})
        assert model.json()["id"] == "m"

    run(scenario)


def scope() -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "raw_path": b"/v1/chat/completions",
        "headers": [(b"authorization", b"Bearer sk-all")],
        "client": ("127.0.0.1", 1),
    }


def disconnecting_client(disconnected: asyncio.Event) -> Callable[[], Awaitable[dict[str, Any]]]:
    """A client that sends a request, and disconnects at an event."""
    messages = [{"type": "http.request", "body": json.dumps(CHAT).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await disconnected.wait()
        return {"type": "http.disconnect"}

    return receive


def append(sent: list[Message]) -> Callable[[Message], Awaitable[None]]:
    async def send(message: Message) -> None:
        sent.append(message)

    return send


# /v1/responses


def test_a_response_is_that_of_the_engine_in_openais_form(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)
        part = {"type": "output_text", "text": "Hello"}
        item = {"type": "message", "content": [part]}
        usage = {"input_tokens": 1, "output_tokens": 1}
        body = json.dumps({"status": "completed", "output": [item], "usage": usage}).encode()

        async def act(_: StubEngineRequest) -> Answer:
            return Answer(200, {}, body, lambda: chunks(b""))

        stack.act = act
        response = await stack.ask(body={"model": "m", "input": "hi"}, path="/v1/responses")
        assert response.status_code == 200
        assert response.json()["output"][0]["content"][0]["text"] == "Hello"
        assert response.json()["model"] == "m"

    run(scenario)


@pytest.mark.parametrize(("model", "effort"), [("m", None), ("other", {"effort": "low"})])
def test_a_model_that_cannot_think_gets_no_reasoning_effort(
    tmp_path: Path, model: str, effort: dict[str, str] | None
) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)

        async def act(_: StubEngineRequest) -> Answer:
            return Answer(200, {}, b'{"status": "completed", "output": []}', lambda: chunks(b""))

        stack.act = act
        asked = {"model": model, "input": "hi", "reasoning": {"effort": "low"}}
        response = await stack.ask(body=asked, path="/v1/responses")
        assert response.json()["reasoning"]["effort"] == "low"
        body = stack.engine_requests[0].request.engine_body(for_ollama=True)
        assert body.get("reasoning") == effort

    run(scenario)


# /v1/messages

MESSAGE = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
MESSAGES, COUNT_TOKENS = "/v1/messages", "/v1/messages/count_tokens"


def anthropic_error_of(response: httpx.Response) -> tuple[int, str]:
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    return response.status_code, body["error"]["type"]


async def answers_a_chat(_: StubEngineRequest) -> Answer:
    usage = {"prompt_tokens": 11, "completion_tokens": 3}
    choice = {"message": {"content": "Hello"}, "finish_reason": "stop"}
    body = json.dumps({"choices": [choice], "usage": usage}).encode()
    events = b'data: {"choices":[{"delta":{"content":"Hello"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    whole = None if _.request.stream else body
    return Answer(200, {}, whole, lambda: chunks(events))


def test_a_message_is_answered_by_a_chat_of_the_engine(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)
        stack.act = answers_a_chat
        headers = {"x-api-key": "sk-all", "anthropic-version": "2023-06-01"}
        whole = await stack.client.post(f"{MESSAGES}?beta=true", json=MESSAGE, headers=headers)
        assert whole.json()["content"] == [{"type": "text", "text": "Hello"}]
        assert whole.headers["request-id"] == whole.headers["x-request-id"]
        streamed = await stack.ask(body=MESSAGE | {"stream": True}, path=MESSAGES)
        assert "event: message_stop" in streamed.text
        assert [asked.request.path for asked in stack.engine_requests] == ["/v1/chat/completions"] * 2
        counted = 'requests_total{alias="all",model="m",path="/v1/messages",status="200"} 2.0'
        assert stack.metric("bedplate_gateway_requests_total") == [f"bedplate_gateway_{counted}"]

    run(scenario)


def test_a_model_that_cannot_think_is_not_asked_to(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)
        stack.act = answers_a_chat
        await stack.ask(body=MESSAGE | {"thinking": {"type": "adaptive"}}, path=MESSAGES)
        assert "reasoning_effort" not in stack.engine_requests[0].request.body

    run(scenario)


def test_errors_of_messages_have_anthropics_shape(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path, queues={"normal": {"seconds": 0.01}}, max_body_bytes=1000)
        stack.act = answers_a_chat
        for response, status, kind in (
            (await stack.ask("wrong", MESSAGE, MESSAGES), 401, "authentication_error"),
            (await stack.ask(body={}, path=MESSAGES), 400, "invalid_request_error"),
            (await stack.ask(body=MESSAGE | {"model": "x"}, path=MESSAGES), 404, "not_found_error"),
            (await stack.ask(body="x" * 1000, path=MESSAGES), 413, "request_too_large"),
            (await stack.client.get(MESSAGES), 405, "invalid_request_error"),
        ):
            assert anthropic_error_of(response) == (status, kind)
        await stack.ask("limited", MESSAGE, MESSAGES)
        await stack.ask("limited", MESSAGE, MESSAGES)
        refused = await stack.ask("limited", MESSAGE, MESSAGES)
        assert anthropic_error_of(refused) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) >= 1
        stack.set_engine(up=False)
        assert anthropic_error_of(await stack.ask(body=MESSAGE, path=MESSAGES)) == (503, "overloaded_error")

    run(scenario)


def test_no_free_slot_is_529_to_anthropics_clients(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path, queues={"normal": {"seconds": 0.01}})
        go_on = asyncio.Event()

        async def act(request: StubEngineRequest) -> Answer:
            await go_on.wait()
            return await answers_a_chat(request)

        stack.act = act
        first = asyncio.create_task(stack.ask(body=MESSAGE, path=MESSAGES))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(stack.ask(body=MESSAGE, path=MESSAGES))
        await asyncio.sleep(0.05)
        stack.gateway.local.tick()
        refused = await second
        assert anthropic_error_of(refused) == (529, "overloaded_error")
        assert "retry-after" in refused.headers
        go_on.set()
        assert (await first).status_code == 200
        assert stack.metric('bedplate_gateway_refusals_total{reason="queue_timeout",status="529"}')

    run(scenario)


def test_tokens_are_counted_without_an_engine_and_without_the_limits(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)
        asked = {name: value for name, value in MESSAGE.items() if name != "max_tokens"}
        asked["messages"] = [{"role": "user", "content": "x" * 400}]
        for _ in range(5):
            response = await stack.ask("limited", asked, COUNT_TOKENS)
            assert response.json() == {"input_tokens": 100}
        assert not stack.engine_requests
        stack.gateway.upstream.speed("one", "m").bytes_per_token = 2.0
        assert (await stack.ask(body=asked, path=COUNT_TOKENS)).json() == {"input_tokens": 200}
        unknown = await stack.ask("one-model", asked, COUNT_TOKENS)
        assert anthropic_error_of(unknown) == (404, "not_found_error")
        assert anthropic_error_of(await stack.ask("wrong", asked, COUNT_TOKENS))[0] == 401

    run(scenario)


def test_anthropics_clients_get_models_and_unknown_paths_in_its_shape(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(tmp_path)
        headers = {"x-api-key": "sk-all", "anthropic-version": "2023-06-01"}
        listed = (await stack.client.get("/v1/models", headers=headers)).json()
        assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("m", "other", False)
        one = (await stack.client.get("/v1/models/m", headers=headers)).json()
        assert one == listed["data"][0]
        assert (one["type"], one["id"]) == ("model", "m")
        lost = await stack.client.post("/v1/v1/messages", headers=headers)
        assert anthropic_error_of(lost) == (404, "not_found_error")
        assert "use /v1/messages." in lost.json()["error"]["message"]
        assert "must end without /v1" in lost.json()["error"]["message"]

    run(scenario)


# The ticker, the log and the metrics


def test_a_pass_of_the_ticker_that_fails_is_told_once_and_the_next_one_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "TICK_SECONDS", 0.01)

    async def scenario() -> None:
        gateway = Stack(tmp_path).gateway
        passes: list[str] = []
        broken = True

        def tick() -> None:
            passes.append("begun")
            if broken:
                raise RuntimeError("a defect")

        monkeypatch.setattr(gateway.local, "tick", tick)
        gateway.on_pass = lambda: passes.append("ended")
        ticker = asyncio.create_task(gateway._tick())
        await asyncio.sleep(0.2)
        assert len(passes) > 3
        assert "ended" not in passes
        assert caplog.text.count("RuntimeError: a defect") == 1
        broken = False
        await asyncio.sleep(0.2)
        assert passes[-1] == "ended"
        ticker.cancel()

    run(scenario)


def test_a_full_state_folder_fails_no_request_and_is_a_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(app, "CHECK_SECONDS", 0.05)

    async def scenario() -> None:
        stack = Stack(tmp_path)
        stack.gateway.local.open_usage_log()
        ticker = asyncio.create_task(stack.gateway._tick())
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        try:
            assert (await stack.ask("limited")).status_code == 200
            assert stack.metric("bedplate_gateway_usage_log_failed") == [
                "bedplate_gateway_usage_log_failed 1.0"
            ]
            assert (await stack.ask("limited")).status_code == 200
            assert (await stack.ask("limited")).status_code == 429
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        await asyncio.sleep(0.3)
        assert stack.metric("bedplate_gateway_usage_log_failed") == ["bedplate_gateway_usage_log_failed 0.0"]
        ticker.cancel()

    run(scenario)


def test_refusals_without_a_key_share_a_line_and_others_have_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bedplate_gateway.request")

    async def scenario() -> None:
        stack = Stack(tmp_path)
        for _ in range(50):
            await stack.ask("wrong")
            await stack.client.get("/admin")
        assert not caplog.messages
        stack.gateway._keyless.tick()
        assert len(caplog.messages) == 1
        assert " status=404 alias=- " in caplog.messages[0]
        assert caplog.messages[0].endswith(" reason=unknown_url requests=100")
        for _ in range(2):
            await stack.ask("one-model")
        assert len(caplog.messages) == 3
        assert " alias=one-model " in caplog.messages[2]

    run(scenario)


def keys_with_limits(number: int) -> Keys:
    return Keys(tuple(Key(alias=f"key-{each}", secrets=(), rpm=9, tpm=9) for each in range(number)))


def test_ten_thousand_keys_stay_below_the_limit_of_a_scrape_and_let_others_work(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = Stack(tmp_path).gateway.settings
        gateway = Gateway(settings, keys_with_limits(10_000))
        for number in range(10_000):
            record = AccessRecord(
                f"req_{number}", 0.0, "/v1/chat/completions", f"key-{number}", "normal", "m"
            )
            record.status, record.wait = 200, 0.1
            gateway.count(record)
        lines: list[str] = []
        lags = [0.0]

        async def scrape() -> None:
            sent: list[Message] = []
            request = {**scope(), "path": "/metrics", "raw_path": b"/metrics", "client": ("10.0.0.9", 1)}
            await gateway.metrics_app(request, disconnecting_client(asyncio.Event()), append(sent))
            lines.extend(sent[1]["body"].decode().splitlines())

        scraping = asyncio.create_task(scrape())
        while not scraping.done():
            before = time.thread_time()
            await asyncio.sleep(0)
            lags.append(time.thread_time() - before)
        await scraping
        samples = [line for line in lines if not line.startswith("#")]
        assert 1000 < len(samples) < 4000
        assert max(lags) < 0.05
        (others,) = [
            line for line in samples if line.startswith('bedplate_gateway_requests_total{alias="(other)"')
        ]
        own = [line for line in samples if line.startswith('bedplate_gateway_requests_total{alias="key-')]
        assert len(own) + float(others.split()[-1]) == 10_000

    run(scenario)


def test_a_key_that_expired_before_a_reboot_stays_expired_whatever_the_clock_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        assert (await Stack(tmp_path).ask("expiring")).status_code == 200
        folder = tmp_path / "persistent"
        folder.mkdir()
        monkeypatch.setenv("STATE_DIRECTORY", str(folder))
        (folder / "clock").touch()
        in_2101 = datetime(2101, 1, 1, tzinfo=UTC).timestamp()
        os.utime(folder / "clock", (in_2101, in_2101))
        stack = Stack(tmp_path)
        assert error_of(await stack.ask("expiring")) == (401, "invalid_api_key")
        (offset,) = stack.metric("bedplate_gateway_clock_offset_seconds")
        assert float(offset.split()[1]) < -365 * 86400

    run(scenario)
