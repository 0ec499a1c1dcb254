"""What each engine can do at this moment: asked every 2 seconds, by one task for each engine."""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import aiohttp
from pydantic import BaseModel

from bedplate_gateway import transport
from bedplate_gateway.settings import Engine, Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
POLL_TIMEOUT_SECONDS = 5.0
MOST_FAILURES = 2
"""Looks in a row that must fail before an engine counts as down: a busy CPU answers late."""
MOST_ANSWER_BYTES = 8 * 1024 * 1024
NOT_ASKED = "was not asked yet"
REFUSES = "refuses connections"

BLOB = re.compile(r"^FROM .*sha256[-:]([0-9a-f]{64})", re.MULTILINE)


@dataclass(frozen=True)
class EngineState:
    """An engine at the last look. Models are those declared for it, by their declared names."""

    up: bool = False
    present: frozenset[str] = frozenset()
    loaded: frozenset[str] = frozenset()
    capabilities: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Ollama's words (completion, tools, vision, embedding, ...) by model; others may have any."""
    error: str | None = NOT_ASKED


class _Listed(BaseModel):
    name: str
    digest: str


class _Models(BaseModel):
    models: list[_Listed] | None = None


class _Shown(BaseModel):
    modelfile: str = ""
    capabilities: frozenset[str] | None = None


class _Id(BaseModel):
    id: str


class _Ids(BaseModel):
    data: list[_Id]


class Engines:
    """The engines' states, and the one HTTP session to them, which the requests use too."""

    session: aiohttp.ClientSession

    def __init__(self, settings: Settings) -> None:
        """Know nothing of them before `start`. `on_change` is called whenever a state is another one."""
        self.on_change: Callable[[], None] = lambda: None
        self._engines = {engine.name: engine for engine in settings.engines}
        self._states = {name: EngineState() for name in self._engines}
        self._shown: dict[tuple[str, str], _Shown] = {}
        self._watchers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Look at every engine once, then keep looking."""
        self.session = transport.new_session()
        await asyncio.gather(*(self._look(engine, MOST_FAILURES) for engine in self._engines.values()))
        self._watchers = [asyncio.create_task(self._watch(engine)) for engine in self._engines.values()]

    async def stop(self) -> None:
        """Stop looking and close every connection."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self.session.close()

    def state(self, engine_name: str) -> EngineState:
        """Return what is known of an engine."""
        return self._states[engine_name]

    def serves(self, engine: Engine, model: str) -> bool:
        """Say whether the engine is up and holds the model."""
        state = self._states[engine.name]
        return state.up and model in state.present

    def loaded(self, engine: Engine, model: str) -> bool:
        """Say whether the model is in the engine's memory."""
        return model in self._states[engine.name].loaded

    def lacks(self, model: str, capability: str) -> bool:
        """Say whether all engines that serve the model tell that it has no such capability."""
        serving = [self._states[name] for name, engine in self._engines.items() if self.serves(engine, model)]
        told = [state.capabilities.get(model) for state in serving]
        return bool(told) and all(words is not None and capability not in words for words in told)

    def report_failure(self, engine_name: str, error: str) -> None:
        """Count an engine as down, for instance since it refused a connection, until a look finds it up."""
        self._set(engine_name, replace(self._states[engine_name], up=False, loaded=frozenset(), error=error))

    def report_missing(self, engine_name: str, model: str) -> None:
        """Count a model as not on an engine, since the engine said so, until the next look."""
        state = self._states[engine_name]
        self._set(engine_name, replace(state, present=state.present - {model}, loaded=state.loaded - {model}))

    def _set(self, engine_name: str, state: EngineState) -> None:
        before = self._states[engine_name]
        if state == before:
            return
        self._states[engine_name] = state
        if state.error != before.error and not (state.up and before.error == NOT_ASKED):
            log.warning("Engine %s %s.", engine_name, state.error or "answers again")
        self.on_change()

    async def _watch(self, engine: Engine) -> None:
        failures = 0
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                failures = 0 if await self._look(engine, failures + 1) else failures + 1
            except Exception:
                # Without this look the engine would stay as it is for good.
                log.exception("Looking at engine %s failed in the gateway itself.", engine.name)

    async def _look(self, engine: Engine, failures: int) -> bool:
        """Renew the state of an engine; `failures` counts the looks in a row that failed if this one does."""
        ask = self._ask_ollama if engine.kind == "ollama" else self._ask_openai
        try:
            async with asyncio.timeout(POLL_TIMEOUT_SECONDS):
                state = await ask(engine)
        except aiohttp.ClientConnectorError:
            failures, error = MOST_FAILURES, REFUSES
        except aiohttp.ClientResponseError as answered:
            error = f"answers with HTTP {answered.status}"
        except (TimeoutError, aiohttp.ClientError, OSError) as failed:
            error = f"does not answer ({type(failed).__name__})"
        except ValueError:
            error = "answers with something else than a list of models"
        else:
            self._set(engine.name, state)
            return True
        if failures >= MOST_FAILURES:
            self.report_failure(engine.name, error)
        return False

    async def _ask_openai(self, engine: Engine) -> EngineState:
        ids = {model.id for model in _Ids.model_validate_json(await self._get(engine, "/v1/models")).data}
        present = frozenset(model.name for model in engine.models if model.name in ids)
        return EngineState(up=True, present=present, loaded=present, error=None)

    async def _ask_ollama(self, engine: Engine) -> EngineState:
        tags = _Models.model_validate_json(await self._get(engine, "/api/tags")).models or []
        running = _Models.model_validate_json(await self._get(engine, "/api/ps")).models or []
        digests = {entry.name: entry.digest for entry in tags}
        held = {model.name: digest for model in engine.models if (digest := digests.get(_tagged(model.name)))}
        shown = {name: await self._show(engine, name, digest) for name, digest in held.items()}
        # By blob: names with the same weights share what is loaded, and /api/ps tells only one of them.
        blobs = {_blob(await self._show(engine, entry.name, entry.digest), entry.digest) for entry in running}
        self._forget(engine, {*held.values(), *(entry.digest for entry in running)})
        return EngineState(
            up=True,
            present=frozenset(held),
            loaded=frozenset(name for name, digest in held.items() if _blob(shown[name], digest) in blobs),
            capabilities={name: words for name in held if (words := shown[name].capabilities) is not None},
            error=None,
        )

    async def _show(self, engine: Engine, model: str, digest: str) -> _Shown:
        """Return what Ollama tells of a model, asked once for a digest."""
        key = engine.name, digest
        if key not in self._shown:
            try:
                answer = await self._get(engine, "/api/show", json.dumps({"model": model}).encode())
            except aiohttp.ClientResponseError:
                return _Shown()  # Removed between two questions.
            self._shown[key] = _Shown.model_validate_json(answer)
        return self._shown[key]

    def _forget(self, engine: Engine, digests: set[str]) -> None:
        for key in [key for key in self._shown if key[0] == engine.name and key[1] not in digests]:
            del self._shown[key]

    async def _get(self, engine: Engine, path: str, body: bytes | None = None) -> bytes:
        response = await transport.ask(self.session, engine, path, body)
        async with response:
            if response.status != 200:
                raise aiohttp.ClientResponseError(response.request_info, (), status=response.status)
            return await transport.read(response, MOST_ANSWER_BYTES)


def _tagged(model: str) -> str:
    """Return a model's name as Ollama lists it."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _blob(shown: _Shown, digest: str) -> str:
    found = BLOB.search(shown.modelfile)
    return found.group(1) if found else digest
