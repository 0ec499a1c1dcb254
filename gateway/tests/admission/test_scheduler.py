"""The next request: classes, the share, round-robin of keys, slots of models and engines."""

import random
from collections.abc import Callable

from bedplate_gateway.admission.scheduler import Scheduler, Slot, Ticket
from bedplate_gateway.keys import Key
from bedplate_gateway.settings import PRIORITY_CLASSES, Engine, EngineModel, PriorityClass


def engine(
    name: str = "one", slots: int = 1, models: tuple[str, ...] = ("m",), at_once: int | None = None
) -> Engine:
    return Engine(
        name=name,
        kind="ollama",
        url=f"http://{name}",
        models_at_once=at_once,
        models=tuple(EngineModel(name=model, slots=slots) for model in models),
    )


def key(alias: str, **limits: object) -> Key:
    return Key.model_validate({"alias": alias, "secrets": [], **limits})


class Table:
    """A scheduler with requests that are named, and the order in which they start."""

    def __init__(self, *engines: Engine, share: int = 8) -> None:
        self.down: set[str] = set()
        self.loaded: set[tuple[str, str]] = set()
        self.blocked: set[str] = set()
        self.started: list[str] = []
        self.slots: dict[str, Slot] = {}
        self.tickets: dict[str, Ticket] = {}
        self.now = 0.0
        self.scheduler = Scheduler(
            engines,
            share,
            lambda engine, _: engine.name not in self.down,
            lambda engine, model: (engine.name, model) in self.loaded,
            lambda ticket: ticket.key.alias not in self.blocked,
        )

    def ask(
        self, name: str, priority_class: PriorityClass = "normal", model: str = "m", **limits: object
    ) -> None:
        alias = str(limits.pop("alias", "key"))
        end = self.now + 60
        grant = self._grant(name)
        self.tickets[name] = Ticket(key(alias, **limits), priority_class, model, self.now, end, grant)
        self.now += 0.001
        self.scheduler.enqueue(self.tickets[name])
        self.scheduler.dispatch(self.now)

    def _grant(self, name: str) -> Callable[[Slot], None]:
        def grant(slot: Slot) -> None:
            self.started.append(name)
            self.slots[name] = slot

        return grant

    def end(self, name: str) -> None:
        self.scheduler.release(self.slots.pop(name), self.now)
        self.scheduler.dispatch(self.now)

    def end_all(self) -> list[str]:
        before = len(self.started)
        while self.slots:
            self.end(next(iter(self.slots)))
        return self.started[before:]


def test_a_higher_class_goes_first_and_a_class_is_first_come_first_served() -> None:
    table = Table(engine())
    for name, priority_class in (
        ("x", "low"),
        ("l1", "low"),
        ("n1", "normal"),
        ("l2", "low"),
        ("h1", "high"),
        ("h2", "high"),
    ):
        table.ask(name, priority_class)  # type: ignore[arg-type]
    assert table.started == ["x"]
    assert table.end_all() == ["h1", "h2", "n1", "l1", "l2"]


def test_every_eighth_free_slot_goes_to_the_oldest_of_the_lower_classes() -> None:
    table = Table(engine())
    table.ask("x", "high")
    table.ask("low", "low")
    table.ask("normal", "normal")
    for number in range(20):
        table.ask(f"h{number}", "high")
    order = table.end_all()
    assert order.index("low") == 7
    assert order.index("normal") == 15


def test_slots_without_a_lower_class_waiting_do_not_count_for_the_share() -> None:
    table = Table(engine(), share=2)
    table.ask("x", "high")
    for number in range(5):
        table.ask(f"h{number}", "high")
    for name in ("x", "h0", "h1"):
        table.end(name)
    table.ask("low", "low")
    assert table.end_all() == ["h3", "low", "h4"]


def test_keys_of_a_class_take_turns() -> None:
    table = Table(engine())
    table.ask("x", alias="other")
    for number in range(3):
        table.ask(f"a{number}", alias="a")
    for number in range(2):
        table.ask(f"b{number}", alias="b")
    assert table.end_all() == ["a0", "b0", "a1", "b1", "a2"]


def test_a_slow_model_does_not_hold_up_another() -> None:
    table = Table(engine(models=("slow", "fast")))
    table.ask("s1", model="slow")
    table.ask("s2", model="slow")
    table.ask("f1", model="fast")
    assert table.started == ["s1", "f1"]


def test_max_parallel_skips_a_key_and_not_the_others() -> None:
    table = Table(engine(slots=3))
    table.ask("a1", alias="a", max_parallel=1)
    table.ask("a2", alias="a", max_parallel=1)
    table.ask("b1", alias="b")
    assert table.started == ["a1", "b1"]
    table.end("a1")
    assert table.started == ["a1", "b1", "a2"]


def test_a_key_over_its_tokens_is_skipped() -> None:
    table = Table(engine())
    table.ask("x")
    table.ask("a1", "high", alias="a")
    table.ask("b1", "low", alias="b")
    table.blocked.add("a")
    assert table.end_all() == ["b1"]
    table.blocked.clear()
    table.scheduler.dispatch(1.0)
    assert table.end_all() == []
    assert table.started == ["x", "b1", "a1"]


def test_the_less_busy_engine_is_taken_and_one_that_is_down_never() -> None:
    table = Table(engine("one", slots=2), engine("two", slots=2), engine("three", slots=2))
    table.down.add("two")
    for name in ("a", "b", "c", "d", "e"):
        table.ask(name)
    assert sorted(slot.engine.name for slot in table.slots.values()) == ["one", "one", "three", "three"]


def test_an_engine_that_has_the_model_loaded_is_preferred() -> None:
    table = Table(engine("one", slots=2), engine("two", slots=2))
    table.loaded.add(("two", "m"))
    table.ask("a")
    assert table.slots["a"].engine.name == "two"


def test_with_one_model_at_a_time_the_loaded_one_goes_first_for_a_while() -> None:
    table = Table(engine(models=("a", "b"), at_once=1))
    table.loaded.add(("one", "a"))
    table.ask("a0", model="a")
    table.ask("b0", model="b")
    table.ask("a1", model="a")
    table.ask("a2", model="a")
    table.end("a0")
    assert table.started[-1] == "a1"
    table.now += 11
    table.end("a1")
    assert table.started[-1] == "b0"


def test_with_one_model_at_a_time_a_higher_class_stops_the_others_until_its_model_can_load() -> None:
    table = Table(engine(slots=2, models=("a", "b"), at_once=1))
    table.ask("a0", model="a")
    table.ask("a1", model="a")
    table.ask("b0", "high", model="b")
    table.ask("a2", model="a")
    table.end("a0")
    assert table.started == ["a0", "a1"]
    table.end("a1")
    assert table.started == ["a0", "a1", "b0"]
    table.end("b0")
    assert table.started[-1] == "a2"


def test_who_leaves_the_queue_is_forgotten() -> None:
    table = Table(engine())
    table.ask("x")
    table.ask("a")
    table.ask("b")
    table.scheduler.remove(table.tickets["a"])
    table.scheduler.remove(table.tickets["a"])
    assert table.end_all() == ["b"]
    assert table.scheduler.depth("normal") == 0


def test_a_swap_moves_the_slot_to_an_engine_that_has_one_free() -> None:
    table = Table(engine("one"), engine("two"))
    table.ask("a")
    slot = table.slots["a"]
    assert slot.engine.name == "one"
    assert table.scheduler.swap(slot, table.now)
    assert slot.engine.name == "two"
    table.down.add("one")
    assert not table.scheduler.swap(slot, table.now)
    table.end("a")
    assert all(not slots.running for slots in table.scheduler.engine_slots())


def test_a_slot_held_from_before_counts_even_where_it_is_one_too_many() -> None:
    table = Table(engine())
    key = Key.model_validate({"alias": "a", "secrets": []})
    first = table.scheduler.restore(key, "m", "one", table.now)
    second = table.scheduler.restore(key, "m", "one", table.now)
    assert first is not None
    assert second is not None
    assert table.scheduler.restore(key, "m", "gone", table.now) is None
    table.ask("x")
    table.scheduler.release(first, table.now)
    table.scheduler.dispatch(0.0)
    assert table.started == []
    table.scheduler.release(second, table.now)
    table.scheduler.dispatch(0.0)
    assert table.started == ["x"]


def test_the_number_ahead_is_the_order_in_which_they_start() -> None:
    """Random queues on one slot; the clock stands still, so no key becomes greedy or ceases to be."""
    dice = random.Random(5)  # noqa: S311 - made-up queues
    for _ in range(200):
        table = Table(engine(), share=10**6)
        table.ask("x")
        # Each key has used slots before, some of them more than their part.
        for alias in "abc":
            table.scheduler._use(key(alias), 1, table.now)
            table.now += dice.choice([0, 40])
            table.scheduler._use(key(alias), -1, table.now)
        for number in range(dice.randrange(1, 12)):
            table.ask(str(number), dice.choice(PRIORITY_CLASSES), alias=dice.choice("abc"))
        names = [str(number) for number in range(len(table.tickets) - 1)]
        ahead = {name: table.scheduler.ahead(table.tickets[name], table.now) for name in names}
        order = table.end_all()
        assert ahead == {name: order.index(name) for name in names}


def test_requests_for_another_model_are_not_ahead() -> None:
    table = Table(engine(models=("m", "other")))
    for name, model in (("x", "m"), ("y", "other"), ("1", "other"), ("2", "m"), ("3", "m")):
        table.ask(name, "high", model)
    assert [table.scheduler.ahead(table.tickets[name], table.now) for name in "123"] == [0, 0, 1]
    assert [table.scheduler.waiting(model) for model in ("m", "other", "none")] == [2, 1, 0]
