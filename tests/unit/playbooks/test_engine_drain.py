"""engine_drain: what it writes and says, with a gateway that obeys, is slow, or is down."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bedplate_gateway.engines.drains import Drains

from tests.support.fake_gateway import FakeGateway, running

ENGINES = {"gpu1": ["m", "big"], "gpu2": ["m"]}
SINCE = "2026-03-01T14:02:00+00:00"


class Bench:
    """The module with a fake gateway, which reads the file before each scrape, unless a test stops that."""

    def __init__(
        self,
        module: ModuleType,
        run_module: Callable[..., dict[str, Any]],
        gateway: FakeGateway,
        path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.path = path
        self.running = {"gpu1": 0, "gpu2": 0}
        self.down: set[str] = set()
        self.slept: list[Callable[[], None]] = []
        self.now = 0.0
        self._module, self._run = module, run_module
        self._gateway = gateway
        self._drains = Drains(path)
        monkeypatch.setattr(module.time, "sleep", self._sleep)
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        self.obeys = True
        self.scrape()

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.slept:
            self.slept.pop(0)()
        self.scrape()

    def scrape(self) -> None:
        if self.obeys:
            self._drains.check()
        drained = self._drains.by_engine
        lines = []
        for engine, models in ENGINES.items():
            lines.append(f'bedplate_gateway_engine_drained{{engine="{engine}"}} {float(engine in drained)}')
            for model in models:
                labels = f'{{engine="{engine}",model="{model}"}}'
                busy = self.running[engine] if model == "m" else 0
                lines.append(f"bedplate_gateway_engine_serves{labels} {float(engine not in self.down)}")
                lines.append(f"bedplate_gateway_slots_busy{labels} {float(busy)}")
        self._gateway.metrics = "\n".join(lines)

    def __call__(self, state: str, engine: str = "gpu1", *, check: bool = False, **more: Any) -> Any:
        parameters = {"state": state, "engine": engine, "engines": ENGINES, "path": str(self.path)}
        who = {"who": "kim", "metrics_url": self._gateway.url}
        return self._run(self._module, parameters | who | more, check=check)

    def listed(self) -> list[dict[str, str]]:
        drains: list[dict[str, str]] = json.loads(self.path.read_text())["drains"]
        return drains


@pytest.fixture(scope="module")
def module(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/library/engine_drain.py")


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with running() as server:
        yield server


@pytest.fixture
def bench(
    module: ModuleType,
    run_module: Callable[..., dict[str, Any]],
    gateway: FakeGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Bench:
    return Bench(module, run_module, gateway, tmp_path / "drains.json", monkeypatch)


def test_a_drain_and_its_end(bench: Bench) -> None:
    bench.slept = [lambda: None]
    drained = bench("drained", "gpu2", why="new fan")
    assert drained["changed"]
    (entry,) = bench.listed()
    assert {**entry, "since": ""} == {"engine": "gpu2", "who": "kim", "since": "", "why": "new fan"}
    since = entry["since"].replace("T", " ").replace("+00:00", " UTC")
    assert drained["message"] == (
        f"gpu2 is drained by kim since {since}: new fan. No request runs there, after 0.0 s. "
        "Next: make undrain HOST=gpu2"
    )
    # The gateway's own reader takes what the module wrote.
    assert Drains(bench.path).by_engine["gpu2"].why == "new fan"
    assert bench.path.stat().st_mode & 0o777 == 0o644
    ended = bench("undrained", "gpu2")
    assert ended["changed"]
    assert ended["message"] == f"gpu2 was drained by kim since {since}: new fan. It gets requests again."
    assert bench.listed() == []


def test_a_second_drain_says_since_when(bench: Bench) -> None:
    bench.path.write_text(
        json.dumps({"schema": 1, "drains": [{"engine": "gpu2", "who": "lee", "since": SINCE, "why": "dust"}]})
    )
    again = bench("drained", "gpu2", why="new fan")
    assert not again["changed"]
    assert again["message"].startswith("gpu2 is drained by lee since 2026-03-01 14:02:00 UTC: dust. ")
    assert bench.listed()[0]["why"] == "dust"


def test_an_undrain_of_what_is_not_drained(bench: Bench) -> None:
    result = bench("undrained")
    assert (result["changed"], result["message"]) == (False, "gpu1 is not drained.")
    assert not bench.path.exists()


@pytest.mark.parametrize("state", ["drained", "undrained"])
def test_an_unknown_host_is_refused_with_the_known_ones(state: str, bench: Bench) -> None:
    verb = state.removesuffix("ed")
    assert bench(state, "gpu9")["msg"] == (
        f"HOST=gpu9 is no engine of the gateway: use one of gpu1, gpu2, such as make {verb} HOST=gpu1."
    )
    assert bench(state, "")["msg"].startswith("HOST is not set: use one of gpu1, gpu2")
    assert not bench.path.exists()


def test_a_host_that_left_the_inventory_can_be_undrained(bench: Bench) -> None:
    bench.path.write_text(
        json.dumps({"schema": 1, "drains": [{"engine": "old", "who": "lee", "since": SINCE, "why": ""}]})
    )
    assert bench("undrained", "old")["message"] == (
        "old was drained by lee since 2026-03-01 14:02:00 UTC. It gets requests again when it answers, "
        "which it does not now. Next: make health"
    )


@pytest.mark.parametrize(
    ("why", "message"),
    [
        ("a\nb", "WHY contains a line break: write one line without quotes and backslashes."),
        ('a "b"', 'WHY contains the quote ": write one line without quotes and backslashes.'),
        ("it's", "WHY contains the quote ': write one line without quotes and backslashes."),
        ("a\\b", "WHY contains a backslash: write one line without quotes and backslashes."),
        ("\x1b[1m", "WHY contains a control character: write one line without quotes and backslashes."),
        ("x" * 201, "WHY has 201 characters: use at most 200."),
    ],
)
def test_a_reason_that_fits_no_line_is_refused(why: str, message: str, bench: Bench) -> None:
    assert bench("drained", why=why)["msg"] == message
    assert not bench.path.exists()


def test_what_no_other_engine_serves_is_named(bench: Bench) -> None:
    said = bench("drained", "gpu1")["message"]
    assert "No other engine serves big now: such requests wait in the queue until make undrain" in said
    bench("undrained", "gpu1")
    bench.down = {"gpu2"}
    bench.scrape()
    assert "No other engine serves m, big now" in bench("drained", "gpu1")["message"]


def test_running_requests_are_waited_for(bench: Bench) -> None:
    bench.running["gpu1"] = 2

    def end() -> None:
        bench.running["gpu1"] -= 1

    bench.slept = [lambda: None, lambda: None, end, lambda: None, end]
    result = bench("drained")
    assert bench.running["gpu1"] == 0
    assert result["seconds"] > 0.5


def test_a_wait_that_is_too_long_fails_and_keeps_the_drain(bench: Bench) -> None:
    bench.running["gpu1"] = 1
    assert bench("drained", seconds=30)["msg"] == (
        "gpu1 is drained, but after 30 s 1 request still ran there: wait for them with "
        "make drain HOST=gpu1, or stop the engine and lose them."
    )
    assert [entry["engine"] for entry in bench.listed()] == ["gpu1"]


def test_a_gateway_that_does_not_obey_fails_and_the_drain_stays(bench: Bench) -> None:
    bench.obeys = False
    assert bench("drained")["msg"] == (
        "gpu1 is marked as drained, but the gateway does not confirm it within 10 s, so requests may still "
        "run there. A gateway that starts obeys it. Next: make health"
    )
    assert [entry["engine"] for entry in bench.listed()] == ["gpu1"]
    bench.obeys = True
    bench.scrape()
    bench.obeys = False
    assert "is no longer marked as drained, but the gateway does not" in bench("undrained")["msg"]
    assert bench.listed() == []


def test_a_gateway_that_is_down_confirms_nothing(bench: Bench) -> None:
    assert "does not confirm it" in bench("drained", metrics_url="http://127.0.0.1:1")["msg"]
    assert [entry["engine"] for entry in bench.listed()] == ["gpu1"]


def test_a_gateway_that_starts_again_meanwhile_is_waited_for(bench: Bench, gateway: FakeGateway) -> None:
    bench.running["gpu1"] = 1

    def restart() -> None:
        gateway.edge_only = True

    def ready() -> None:
        gateway.edge_only = False
        bench.running["gpu1"] = 0

    bench.slept = [lambda: None, restart, lambda: None, ready]
    assert "No request runs there" in bench("drained")["message"]


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 2, "drains": []}', '{"schema": 1, "drains": [1]}'])
def test_a_file_of_something_else_is_left_as_it_is(content: str, bench: Bench) -> None:
    bench.path.write_text(content)
    for state in ("drained", "undrained"):
        assert bench(state)["msg"] == (
            f"{bench.path} is no list of drained engines: remove it, then drain again what has to be."
        )
    assert bench.path.read_text() == content


def test_check_mode_writes_nothing(bench: Bench) -> None:
    assert bench("drained", check=True)["changed"]
    assert not bench.path.exists()
    bench("drained")
    assert bench("undrained", check=True)["changed"]
    assert [entry["engine"] for entry in bench.listed()] == ["gpu1"]


def test_a_host_without_a_gateway_is_named(bench: Bench, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert bench("drained", path=str(missing / "drains.json"))["msg"] == (
        f"there is no {missing}: run ansible-playbook site.yml first."
    )
