"""The state of each engine and of its models; one task per engine polls it every 2 seconds."""

import asyncio
import errno
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Never

import aiohttp
from pydantic import BaseModel

from bedplate_gateway import background
from bedplate_gateway.engines import client
from bedplate_gateway.engines.client import CONNECTION_REFUSED
from bedplate_gateway.engines.drains import Drain
from bedplate_gateway.settings import Engine, EngineModel, Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
POLL_TIMEOUT_SECONDS = 5.0
MAX_FAILURES = 2
"""Consecutive polls that must fail before an engine counts as down: a busy CPU answers late."""
HOLD_SECONDS = 60.0
"""How long LiteLLM may be down, such as for a restart, before its providers' models count as down."""
MAX_POLL_BYTES = 8 * 1024 * 1024
CANNOT_BE_REACHED = "cannot be reached"
NO_ROUTE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN})
NOT_POLLED = "has not been polled yet"

BLOB = re.compile(r"^FROM .*sha256[-:]([0-9a-f]{64})", re.MULTILINE)


@dataclass(frozen=True)
class EngineState:
    """An engine at the last poll. Models are those declared for it, by their declared names."""

    up: bool = False
    present: frozenset[str] = frozenset()
    loaded: frozenset[str] = frozenset()
    capabilities: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Ollama's names (completion, tools, vision, embedding, ...) by model; no entry where unknown."""
    contexts: Mapping[str, int] = field(default_factory=dict)
    """The longest context in tokens by model, whatever the settings say; no entry where unknown."""
    error: str | None = NOT_POLLED


class _Listed(BaseModel):
    name: str
    digest: str


class _Models(BaseModel):
    models: list[_Listed] | None = None


class _Shown(BaseModel):
    modelfile: str = ""
    capabilities: frozenset[str] | None = None
    model_info: dict[str, object] | None = None

    @property
    def context(self) -> int | None:
        """The model's own context in tokens."""
        info = self.model_info or {}
        tokens = info.get(f"{info.get('general.architecture')}.context_length")
        return tokens if isinstance(tokens, int) and tokens > 0 else None


class _Id(BaseModel):
    id: str


class _Ids(BaseModel):
    data: list[_Id]


class Engines:
    """The engines' states, and the one HTTP session to them, which the requests use too.

    No state is known before `start`. `on_change` is called after every change of a state.
    """

    session: aiohttp.ClientSession

    def __init__(self, settings: Settings) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._drains: Mapping[str, Drain] = {}
        self._engines = {engine.name: engine for engine in settings.engines}
        self._states = {
            # Requests to LiteLLM wait while it starts, and so it counts as up until it is known to be down.
            name: _provider_state(engine, NOT_POLLED) if engine.kind == "litellm" else EngineState()
            for name, engine in self._engines.items()
        }
        self._shown: dict[tuple[str, str], _Shown] = {}
        self._pollers: list[asyncio.Task[Never]] = []
        self._on_lost: defaultdict[str, set[Callable[[], None]]] = defaultdict(set)

    async def start(self) -> None:
        """Poll every engine once, then start to poll regularly."""
        self.session = client.new_session()
        await asyncio.gather(*(self._poll(engine, MAX_FAILURES) for engine in self._engines.values()))
        self._pollers = [
            background.start(f"poller of engine {engine.name}", self._poll_regularly(engine))
            for engine in self._engines.values()
        ]

    async def stop(self) -> None:
        """Stop polling and close every connection."""
        for poller in self._pollers:
            poller.cancel()
        await asyncio.gather(*self._pollers, return_exceptions=True)
        await self.session.close()

    def state(self, engine_name: str) -> EngineState:
        """Return the state of an engine at its last poll."""
        return self._states[engine_name]

    def has(self, engine: Engine, model: str) -> bool:
        """Return whether the engine is up and has the model."""
        state = self._states[engine.name]
        return state.up and model in state.present

    def drain(self, engine: Engine) -> Drain | None:
        """Return who drained the engine, since when and why; None where it is not drained."""
        return self._drains.get(engine.name)

    def set_drains(self, drains: Mapping[str, Drain]) -> None:
        """Give no new request to these engines; they are polled as the others."""
        before, self._drains = self._drains, drains
        for name in self._engines:
            drain = drains.get(name)
            if drain and name not in before:
                log.info("Engine %s is drained by %s: %s.", name, drain.who, drain.why or "no reason given")
            elif name in before and not drain:
                log.info("Engine %s is no longer drained.", name)
        self.on_change()

    def serves(self, engine: Engine, model: str) -> bool:
        """Return whether the engine may get a request for the model: it has it and is not drained."""
        return self.has(engine, model) and engine.name not in self._drains

    def serves_elsewhere(self, engine: Engine, model: str) -> bool:
        """Return whether another engine may get a request for the model."""
        return any(
            other.name != engine.name and self.serves(other, model) for other in self._engines.values()
        )

    def loaded(self, engine: Engine, model: str) -> bool:
        """Return whether the model is in the engine's memory."""
        return model in self._states[engine.name].loaded

    def lacks(self, model: str, capability: str) -> bool:
        """Return whether all engines that serve the model report that it lacks a capability."""
        names = self.capabilities(model)
        return names is not None and capability not in names

    def capabilities(self, model: str) -> frozenset[str] | None:
        """Return what some engine that serves the model reports; None where one of them reports nothing."""
        serving = [self._states[name] for name, engine in self._engines.items() if self.serves(engine, model)]
        known = [names for state in serving if (names := state.capabilities.get(model)) is not None]
        return frozenset().union(*known) if known and len(known) == len(serving) else None

    def context(self, engine: Engine, model: EngineModel) -> int | None:
        """Return the context that a request gets, in tokens: Ollama gives none that the model lacks."""
        own = self._states[engine.name].contexts.get(model.name)
        known = [tokens for tokens in (model.context, own) if tokens is not None]
        return min(known, default=None)

    def report_failure(self, engine_name: str, error: str) -> None:
        """Count an engine as down, such as after a refused connection, until the next successful poll."""
        self._set(engine_name, replace(self._states[engine_name], up=False, loaded=frozenset(), error=error))

    def report_missing(self, engine_name: str, model: str) -> None:
        """Count a model as missing on an engine, since a request got a 404, until the next poll."""
        state = self._states[engine_name]
        self._set(engine_name, replace(state, present=state.present - {model}, loaded=state.loaded - {model}))

    def watch(self, engine_name: str, on_lost: Callable[[], None]) -> None:
        """Call `on_lost` when the engine's host is lost, each time until `unwatch`."""
        self._on_lost[engine_name].add(on_lost)

    def unwatch(self, engine_name: str, on_lost: Callable[[], None]) -> None:
        """Call `on_lost` no more."""
        self._on_lost[engine_name].discard(on_lost)

    def report_lost(self, engine_name: str) -> None:
        """Count an engine as down, and end what runs on it: nothing of it will ever arrive."""
        self.report_failure(engine_name, CANNOT_BE_REACHED)
        running = list(self._on_lost[engine_name])
        if running:
            log.warning("Engine %s is lost: %d requests on it are ended or moved.", engine_name, len(running))
        for on_lost in running:
            on_lost()

    def _set(self, engine_name: str, state: EngineState) -> None:
        before = self._states[engine_name]
        if state == before:
            return
        self._states[engine_name] = state
        if state.error != before.error and not (state.up and before.error == NOT_POLLED):
            log.warning("Engine %s %s.", engine_name, state.error or "answers again")
        self.on_change()

    async def _poll_regularly(self, engine: Engine) -> Never:
        failures = 0
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                failures = 0 if await self._poll(engine, failures + 1) else failures + 1
            except Exception:
                # Otherwise the task would end, and the state would never change again.
                log.exception("Polling engine %s failed in the gateway itself.", engine.name)

    async def _poll(self, engine: Engine, failures: int) -> bool:
        """Poll an engine and return whether it worked; `failures` counts this poll as the last failed one."""
        polls = {"ollama": self._poll_ollama, "openai": self._poll_openai, "litellm": self._poll_litellm}
        poll, most = polls[engine.kind], MAX_FAILURES
        if engine.kind == "litellm":
            most = round(HOLD_SECONDS / POLL_SECONDS)
        lost = False
        try:
            async with asyncio.timeout(POLL_TIMEOUT_SECONDS):
                state = await poll(engine)
        except aiohttp.ConnectionTimeoutError:
            lost, error = True, CANNOT_BE_REACHED
        except aiohttp.ClientConnectorError as connector_error:
            lost = connector_error.errno in NO_ROUTE
            error = CANNOT_BE_REACHED if lost else CONNECTION_REFUSED
            failures = failures if lost else max(failures, MAX_FAILURES)
        except aiohttp.ClientResponseError as response_error:
            error = f"answers with HTTP {response_error.status}"
        except (TimeoutError, aiohttp.ClientError, OSError) as connection_error:
            error = f"does not answer ({type(connection_error).__name__})"
        except ValueError:
            error = "does not answer with a list of models"
        else:
            self._set(engine.name, state)
            return True
        if failures < most:
            return False
        # A hung engine's kernel still accepts connections, so its requests go on.
        if lost:
            self.report_lost(engine.name)
        else:
            self.report_failure(engine.name, error)
        return False

    async def _poll_openai(self, engine: Engine) -> EngineState:
        ids = {model.id for model in _Ids.model_validate_json(await self._get(engine, "/v1/models")).data}
        present = frozenset(model.name for model in engine.models if model.name in ids)
        return EngineState(up=True, present=present, loaded=present, error=None)

    async def _poll_litellm(self, engine: Engine) -> EngineState:
        await self._get(engine, "/health/liveliness")
        return _provider_state(engine, None)

    async def _poll_ollama(self, engine: Engine) -> EngineState:
        tags = _Models.model_validate_json(await self._get(engine, "/api/tags")).models or []
        running = _Models.model_validate_json(await self._get(engine, "/api/ps")).models or []
        digests = {entry.name: entry.digest for entry in tags}
        held = {model.name: digest for model in engine.models if (digest := digests.get(_tagged(model.name)))}
        shown = {name: await self._show(engine, name, digest) for name, digest in held.items()}
        # By blob: names with the same weights share the loaded model, and /api/ps lists only one of them.
        blobs = {_blob(await self._show(engine, entry.name, entry.digest), entry.digest) for entry in running}
        self._forget(engine, {*held.values(), *(entry.digest for entry in running)})
        return EngineState(
            up=True,
            present=frozenset(held),
            loaded=frozenset(name for name, digest in held.items() if _blob(shown[name], digest) in blobs),
            capabilities={name: names for name in held if (names := shown[name].capabilities) is not None},
            contexts={name: tokens for name in held if (tokens := shown[name].context) is not None},
            error=None,
        )

    async def _show(self, engine: Engine, model: str, digest: str) -> _Shown:
        """Return what Ollama's /api/show reports of a model, queried once per digest."""
        key = engine.name, digest
        if key not in self._shown:
            try:
                answer = await self._get(engine, "/api/show", json.dumps({"model": model}).encode())
            except aiohttp.ClientResponseError:
                return _Shown()  # Removed between two queries.
            self._shown[key] = _Shown.model_validate_json(answer)
        return self._shown[key]

    def _forget(self, engine: Engine, digests: set[str]) -> None:
        for key in [key for key in self._shown if key[0] == engine.name and key[1] not in digests]:
            del self._shown[key]

    async def _get(self, engine: Engine, path: str, body: bytes | None = None) -> bytes:
        response = await client.send(self.session, engine, path, body)
        async with response:
            if response.status != 200:
                raise aiohttp.ClientResponseError(response.request_info, (), status=response.status)
            return await client.read_body(response, MAX_POLL_BYTES)


def _provider_state(engine: Engine, error: str | None) -> EngineState:
    """Return the state of LiteLLM's providers while it is up; none of them is asked before a request is."""
    declared = frozenset(model.name for model in engine.models)
    return EngineState(up=True, present=declared, loaded=declared, error=error)


def _tagged(model: str) -> str:
    """Return a model's name as Ollama lists it: with its tag."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _blob(shown: _Shown, digest: str) -> str:
    match = BLOB.search(shown.modelfile)
    return match.group(1) if match else digest
