"""Who may start and when, with a clock that the test holds."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from bedplate_gateway.admission.interface import (
    AdmissionRequest,
    Lease,
    QueuedRequest,
    acquire,
    acquire_again,
)
from bedplate_gateway.admission.local import LocalAdmission, Place
from bedplate_gateway.admission.usage_log import UsageLog
from bedplate_gateway.engines.drains import Drain
from bedplate_gateway.errors import ApiError, ClientDisconnected
from bedplate_gateway.keys import Key, Keys
from bedplate_gateway.settings import Engine, PriorityClass, Settings

DRAIN = Drain(engine="one", who="kim", since=datetime(2026, 3, 1, 14, 2, tzinfo=UTC))


class FakeEngines:
    """States that a test sets."""

    def __init__(self) -> None:
        self.down: set[str] = set()
        self.drains: dict[str, Drain] = {}

    def serves(self, engine: Engine, model: str) -> bool:  # noqa: ARG002
        return engine.name not in self.down and engine.name not in self.drains

    def drain(self, engine: Engine) -> Drain | None:
        return self.drains.get(engine.name)

    def loaded(self, engine: Engine, model: str) -> bool:  # noqa: ARG002
        return True


class Bench:
    """An admission over two keys, one engine with two slots, and the outcomes by name."""

    def __init__(self, usage_log: UsageLog | None = None, slots: int = 2, **settings: object) -> None:
        self.engines = FakeEngines()
        self.now = 1000.0
        document = {
            "api": {"address": "127.0.0.1", "port": 0},
            "metrics": {"address": "127.0.0.1", "port": 0},
            "engines": [
                {
                    "name": "one",
                    "kind": "ollama",
                    "url": "http://one",
                    "models": [{"name": "m", "slots": slots}],
                }
            ],
            "keys_file": "/none",
            "state_dir": "/none",
            **settings,
        }
        keys = [
            {"alias": "free", "secrets": []},
            {"alias": "rpm", "secrets": [], "rpm": 3},
            {"alias": "tpm", "secrets": [], "tpm": 100},
        ]
        self.keys = Keys(tuple(Key.model_validate(key) for key in keys))
        self.admission = LocalAdmission(
            Settings.model_validate(document), self.keys, self.engines, lambda: self.now, usage_log
        )
        self.admission.open_usage_log()
        self.leases: dict[str, Lease] = {}
        self.errors: dict[str, ApiError] = {}

    def ask(self, alias: str = "free", priority_class: PriorityClass = "normal") -> AdmissionRequest:
        return AdmissionRequest(self.keys.by_alias[alias], priority_class, "m", 10)

    def submit(self, name: str, alias: str = "free", priority_class: PriorityClass = "normal"):  # type: ignore[no-untyped-def]
        return self.admission.submit(
            self.ask(alias, priority_class),
            lambda lease: self.leases.__setitem__(name, lease),
            lambda error: self.errors.__setitem__(name, error),
        )

    def used(self, alias: str, unit: str = "requests") -> int:
        (budget,) = (b for b in self.admission.limits.budgets() if b.name == alias)
        return budget.windows[unit].used(self.now)  # type: ignore[index]

    def idle(self) -> bool:
        scheduler = self.admission.scheduler
        return not any(slots.running for slots in scheduler.engine_slots()) and not list(scheduler.queued())


def test_what_is_over_a_limit_is_refused_at_once_and_costs_nothing() -> None:
    bench = Bench(slots=9)
    for number in range(5):
        bench.submit(str(number), "rpm")
    assert sorted(bench.leases) == ["0", "1", "2"]
    error = bench.errors["4"]
    assert (error.status, error.code, error.type, error.reason) == (
        429,
        "rate_limit_exceeded",
        "requests",
        "key_requests",
    )
    assert error.all_headers()["retry-after"] == "60"
    assert error.all_headers()["x-ratelimit-remaining-requests"] == "0"
    assert bench.used("rpm") == 3
    bench.now += 60
    bench.submit("later", "rpm")
    assert "later" in bench.leases


def test_a_request_whose_engine_is_gone_waits_again_and_counts_once() -> None:
    models = [{"name": "m", "slots": 1}]
    engines = [
        {"name": name, "kind": "ollama", "url": f"http://{name}", "models": models} for name in ("one", "two")
    ]
    bench = Bench(engines=engines, queues={"normal": {"size": 1}})
    for name in ("a", "b", "c"):
        bench.submit(name, "rpm")
    bench.now += 5
    first, second = bench.leases["a"], bench.leases["b"]
    assert (first.engine.name, second.engine.name, bench.used("rpm")) == ("one", "two", 3)
    bench.engines.down.add("one")

    async def move() -> Lease:
        moved = asyncio.create_task(acquire_again(first, lambda _: None))
        await asyncio.sleep(0)
        # Neither the full queue nor the limit refuses it, and the slot of the lost engine is free.
        assert (bench.used("rpm"), bench.admission.scheduler.depth("normal")) == (3, 2)
        bench.now += 2
        second.release()
        await asyncio.sleep(0)
        assert not moved.done()
        bench.leases["c"].release()
        return await moved

    lease = asyncio.run(move())
    assert (lease.engine.name, lease.waited, bench.used("rpm")) == ("two", 2, 3)
    first.release()
    lease.release()
    assert bench.idle()


def test_who_leaves_while_it_waits_again_gets_its_request_back() -> None:
    bench = Bench(slots=1)
    bench.submit("a", "rpm")
    bench.engines.down.add("one")
    left: list[Callable[[], None]] = []

    async def leave() -> None:
        waiting = asyncio.create_task(acquire_again(bench.leases["a"], left.append))
        await asyncio.sleep(0)
        assert bench.used("rpm") == 1
        left.pop()()
        with pytest.raises(ClientDisconnected):
            await waiting

    asyncio.run(leave())
    assert bench.used("rpm") == 0
    assert bench.idle()


def test_who_is_cancelled_in_the_queue_gets_its_request_back() -> None:
    bench = Bench(slots=1)
    bench.submit("x")
    waiting = bench.submit("a", "rpm")
    assert bench.used("rpm") == 1
    waiting.cancel()
    waiting.cancel()
    assert bench.used("rpm") == 0
    bench.leases["x"].release()
    assert "a" not in bench.leases
    assert bench.idle()


def test_a_lease_ends_once() -> None:
    bench = Bench(slots=1)
    bench.submit("x")
    bench.submit("a")
    bench.submit("b")
    bench.leases["x"].release()
    bench.leases["x"].release()
    assert sorted(bench.leases) == ["a", "x"]


def test_tokens_are_charged_as_they_flow_and_corrected_at_the_end() -> None:
    bench = Bench()
    bench.submit("a", "tpm")
    for _ in range(60):
        bench.leases["a"].charge(1)
    bench.submit("b", "tpm")
    assert "b" in bench.leases
    bench.leases["a"].settle(prompt_tokens=50, completion_tokens=59)
    assert bench.used("tpm", "tokens") == 109
    bench.submit("c", "tpm")
    assert bench.errors["c"].reason == "key_tokens"
    bench.leases["a"].settle(50, 59)
    assert bench.used("tpm", "tokens") == 109


def test_tokens_are_checked_again_at_its_turn_and_refused_when_its_time_ends() -> None:
    bench = Bench(slots=1, queues={"normal": {"seconds": 20}})
    bench.submit("x", "tpm")
    bench.submit("waits", "tpm")
    bench.submit("other", "free")
    bench.leases["x"].settle(100, 0)
    bench.leases["x"].release()
    assert sorted(bench.leases) == ["other", "x"]
    bench.leases["other"].release()
    bench.now += 20
    bench.admission.tick()
    assert (bench.errors["waits"].status, bench.errors["waits"].reason) == (429, "key_tokens")
    assert bench.idle()


def test_a_full_queue_is_429_and_too_long_a_wait_503_and_both_say_when_to_come_again() -> None:
    bench = Bench(slots=1, queues={"low": {"size": 3, "size_per_key": 2, "seconds": 5}})
    for number in range(4):
        bench.submit(str(number), "free", "low")
    assert bench.errors["3"].code == "queue_full"
    bench.submit("another", "rpm", "low")
    bench.submit("too many", "tpm", "low")
    assert bench.errors["too many"].code == "queue_full"
    assert bench.used("rpm") == 1
    bench.now += 5
    bench.admission.tick()
    for name in ("1", "2", "another"):
        assert (bench.errors[name].status, bench.errors[name].code) == (503, "queue_timeout")
        assert int(bench.errors[name].all_headers()["retry-after"]) >= 1
    assert bench.used("rpm") == 0
    bench.leases["0"].release()
    assert bench.idle()


def test_a_full_queue_refuses_nothing_that_starts_at_once() -> None:
    models = [{"name": "m", "slots": 1}, {"name": "idle", "slots": 1}]
    engine = {"name": "one", "kind": "openai", "url": "http://one", "models": models}
    bench = Bench(engines=[engine], queues={"normal": {"size": 1}})
    for name in ("first", "waits", "refused"):
        bench.submit(name)
    assert bench.errors["refused"].code == "queue_full"
    for name in ("of another model", "a second one"):
        bench.admission.submit(
            AdmissionRequest(bench.keys.by_alias["free"], "normal", "idle", 10),
            partial(bench.leases.__setitem__, name),
            partial(bench.errors.__setitem__, name),
        )
    assert bench.leases.keys() == {"first", "of another model"}
    assert bench.errors["a second one"].code == "queue_full"


def test_without_an_engine_the_answer_is_503_and_what_waits_goes_on_when_it_is_back() -> None:
    bench = Bench(slots=1)
    bench.submit("x")
    bench.submit("waits", "rpm")
    bench.engines.down.add("one")
    bench.submit("late", "rpm")
    assert bench.errors["late"].code == "engine_unavailable"
    bench.leases["x"].release()
    assert "waits" not in bench.leases
    bench.engines.down.clear()
    bench.admission.engines_changed()
    assert "waits" in bench.leases


def test_what_needs_a_drained_engine_waits_for_it_even_while_it_is_down() -> None:
    bench = Bench(slots=1)
    bench.submit("runs")
    bench.submit("waits", "rpm")
    bench.engines.drains["one"] = DRAIN
    bench.submit("later")
    bench.leases["runs"].release()
    assert bench.leases.keys() == {"runs"}
    # Such as for an upgrade of the engine.
    bench.engines.down.add("one")
    bench.submit("while it is down")
    bench.now += 60
    bench.admission.tick()
    assert not bench.errors
    bench.engines.down.clear()
    del bench.engines.drains["one"]
    bench.admission.engines_changed()
    assert bench.leases.keys() == {"runs", "waits"}
    for name in ("waits", "later", "while it is down"):
        bench.leases[name].release()
    assert bench.idle()


def test_what_waited_too_long_for_a_drained_engine_hears_that_none_serves() -> None:
    bench = Bench()
    bench.engines.drains["one"] = DRAIN
    bench.submit("waits", "rpm")
    bench.now += 119
    bench.admission.tick()
    assert not bench.errors
    bench.now += 2
    bench.admission.tick()
    assert bench.errors["waits"].code == "engine_unavailable"
    assert bench.used("rpm") == 0


def test_what_has_a_fallback_does_not_wait_for_a_drained_engine() -> None:
    engines = [
        {"name": "one", "kind": "ollama", "url": "http://one", "models": [{"name": "m", "slots": 1}]},
        {"name": "litellm", "kind": "litellm", "url": "http://l", "models": [{"name": "cloud", "slots": 1}]},
    ]
    litellm = {"url": "http://l", "key_file": "/none"}
    bench = Bench(engines=engines, litellm=litellm, fallbacks={"m": ["cloud"]})
    bench.engines.drains["one"] = DRAIN
    bench.submit("falls back")
    assert bench.errors["falls back"].code == "engine_unavailable"
    own = Key.model_validate({"alias": "own", "secrets": [], "models": ["m"]})
    bench.admission.submit(
        AdmissionRequest(own, "normal", "m", 10),
        partial(bench.leases.__setitem__, "has none"),
        partial(bench.errors.__setitem__, "has none"),
    )
    assert "has none" not in bench.errors
    assert bench.admission.can_be_served("m")


def test_no_retry_goes_to_a_drained_engine() -> None:
    model = [{"name": "m", "slots": 1}]
    engines = [{"name": name, "kind": "ollama", "url": "http://x", "models": model} for name in "ab"]
    bench = Bench(engines=engines)
    bench.submit("runs")
    first = bench.leases["runs"].engine.name
    other = "b" if first == "a" else "a"
    bench.engines.drains[other] = DRAIN
    assert not bench.leases["runs"].swap()
    bench.engines.drains = {first: DRAIN}
    assert bench.leases["runs"].swap()
    assert bench.leases["runs"].engine.name == other
    assert not bench.leases["runs"].swap()


def test_a_lease_that_nobody_touches_ends_by_itself() -> None:
    queues = {"normal": {"seconds": 1000}}
    bench = Bench(slots=1, first_byte_seconds=10, load_seconds=10, retries=0, queues=queues)
    bench.submit("lost")
    bench.submit("next")
    bench.now += 60
    bench.leases["lost"].touch()
    bench.now += 60
    bench.admission.tick()
    assert "next" not in bench.leases
    bench.now += 11
    bench.admission.tick()
    assert "next" in bench.leases
    assert bench.admission.lost_leases == 1


def test_limits_hold_across_a_kill(tmp_path: Path) -> None:
    bench = Bench(UsageLog(tmp_path / "limits"))
    for number in range(3):
        bench.submit(str(number), "rpm")
    after = Bench(UsageLog(tmp_path / "limits"))
    after.now = 1059.9
    after.submit("a", "rpm")
    assert after.errors["a"].retry_after == pytest.approx(0.1)
    after.now = 1060.0
    after.submit("b", "rpm")
    assert "b" in after.leases


def test_a_successor_holds_what_runs_and_goes_on_with_what_waits() -> None:
    old = Bench(slots=1)
    old.submit("runs", "rpm")
    old.submit("waits", "rpm", "low")
    state = old.admission.export()
    new = Bench(slots=1)
    new.admission.replay(state["uses"])
    (held,), (waiting,) = state["leases"], state["waiting"]
    lease = new.admission.restore_lease(
        new.ask(held["alias"], held["class"]), held["engine"], held["charged"]
    )
    assert lease is not None
    new.admission.restore_queued(
        new.ask(waiting["alias"], waiting["class"]),
        lambda granted: new.leases.__setitem__("waits", granted),
        lambda error: new.errors.__setitem__("waits", error),
        waiting["taken_at"],
        waiting["deadline"],
    )
    new.admission.engines_changed()
    assert not new.leases
    assert new.used("rpm") == 2
    lease.release()
    new.leases["waits"].release()
    assert new.idle()


def test_waiting_for_a_lease_ends_when_the_client_disconnects() -> None:
    async def scenario() -> None:
        bench = Bench(slots=1)
        callbacks: list[object] = []
        first = await acquire(bench.admission, bench.ask(), callbacks.append)
        task = asyncio.create_task(acquire(bench.admission, bench.ask("rpm"), callbacks.append))
        await asyncio.sleep(0)
        assert bench.used("rpm") == 1
        callbacks[-1]()  # type: ignore[operator]
        with pytest.raises(ClientDisconnected):
            await task
        assert bench.used("rpm") == 0
        cancelled = asyncio.create_task(acquire(bench.admission, bench.ask(), callbacks.append))
        await asyncio.sleep(0)
        # Granted and cancelled in the same turn: the slot must come back.
        first.release()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert bench.idle()

    asyncio.run(scenario())


def named(bench: Bench, name: str, alias: str = "free") -> Place | None:
    return bench.admission.place(alias, name)


def submit_named(bench: Bench, name: str, alias: str = "free") -> QueuedRequest:
    return bench.admission.submit(
        replace(bench.ask(alias), id=name),
        lambda lease: bench.leases.__setitem__(name, lease),
        lambda error: bench.errors.__setitem__(name, error),
    )


def test_a_request_is_found_by_its_clients_id_while_it_waits_and_runs() -> None:
    bench = Bench(slots=1)
    for name in ("first", "second", "third"):
        submit_named(bench, name)
    bench.now += 3
    assert named(bench, "first") == Place("m", 0, 2, 0.0)
    assert named(bench, "second") == Place("m", 1, 2, 3.0)
    assert named(bench, "third") == Place("m", 2, 2, 3.0)
    # Nobody else's key finds it.
    assert named(bench, "second", "rpm") is None
    bench.leases["first"].release()
    assert named(bench, "first") is None
    assert named(bench, "second") == Place("m", 0, 1, 3.0)
    bench.now += 1000
    bench.admission.tick()
    assert named(bench, "third") is None
    assert bench.errors["third"].code == "queue_timeout"
    bench.leases["second"].release()
    assert bench.admission._by_id == {}


def test_an_id_that_is_used_twice_leaves_nothing_behind() -> None:
    bench = Bench(slots=1)
    queued = [submit_named(bench, "same") for _ in range(3)]
    assert named(bench, "same") == Place("m", 2, 2, 0.0)
    queued[2].cancel()
    assert named(bench, "same") is None
    bench.leases["same"].release()
    assert named(bench, "same") == Place("m", 0, 0, 0.0)
    bench.leases["same"].release()
    assert bench.admission._by_id == {}


def test_a_refused_request_and_one_without_an_id_are_not_kept() -> None:
    bench = Bench(slots=1)
    bench.submit("no id")
    for _ in range(4):
        submit_named(bench, "limited", "rpm").cancel()
    bench.engines.down = {"one"}
    submit_named(bench, "down")
    assert bench.errors["down"].code == "engine_unavailable"
    assert bench.admission._by_id == {}
