"""An open page shows each fault correctly within 5 seconds, and its fix without a reload."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.browser import (
    DETECTED_SECONDS,
    HEALTHY_AGAIN_SECONDS,
    FaultTimes,
    PageOpener,
    Times,
    WatchedPage,
)
from tests.support.stack import ROOT, Stack

KEY_FILE = "/etc/bedplate/bedplate-dashboard/gateway-key"
CONFIG = "/etc/bedplate/bedplate-dashboard/config.json"
KEPT_CONFIG = "/root/dashboard-config.json"
HOSTILE = '<img src=x onerror=alert(1)>"><script>alert(2)</script>'


def lab_fault(*words: str) -> None:
    """Cause one of the lab's faults."""
    subprocess.run([ROOT / "lab/lab", "fault", *words], check=True, capture_output=True)


def listed(stack: Stack) -> list[str]:
    """Return the models that /v1/models lists now."""
    with stack.client(stack.key("verify")) as client:
        return [model["id"] for model in client.get("/v1/models").json()["data"]]


@contextmanager
def shows_fault(
    page: WatchedPage,
    times: Times,
    fault: str,
    expected: tuple[str, str],
    *,
    break_it: Callable[[], object],
    fix: Callable[[], object],
) -> Iterator[None]:
    """Cause a fault and wait until the page shows it, run the block, then fix it and wait for Healthy."""
    word, text = expected
    break_it()
    try:
        since = time.monotonic()
        page.wait_until(lambda: page.shows(word, text), DETECTED_SECONDS)
        row = FaultTimes(fault, word, time.monotonic() - since)
        times.rows.append(row)
        yield
    finally:
        fix()
    row.healthy = page.wait_until(lambda: page.word == "Healthy", HEALTHY_AGAIN_SECONDS)


def test_a_stopped_engine(stack: Stack, page: WatchedPage, times: Times) -> None:
    expected = ("Down", r"engine on one is down[\s\S]*journalctl -u ollama -n 50")
    with shows_fault(
        page,
        times,
        "Ollama stopped",
        expected,
        break_it=lambda: stack("systemctl stop ollama"),
        fix=lambda: stack("systemctl start ollama ollama-preload"),
    ):
        assert "Prometheus" in page.live.inner_text()


def test_a_hung_engine_that_is_still_listed(stack: Stack, page: WatchedPage, times: Times) -> None:
    expected = ("Down", r"engine on one [\s\S]*journalctl -u ollama -n 50")
    with shows_fault(
        page,
        times,
        "Ollama hung (SIGSTOP), /v1/models lists it still",
        expected,
        break_it=lambda: lab_fault("stop", "one", "ollama"),
        fix=lambda: lab_fault("cont", "one", "ollama"),
    ):
        assert stack.model in listed(stack), "the gateway already noticed, so this test proves nothing"


def test_a_removed_model(stack: Stack, page: WatchedPage, times: Times) -> None:
    expected = ("Down", r"does not have smollm2:135m[\s\S]*ansible-playbook site\.yml --tags ollama")
    with shows_fault(
        page,
        times,
        "model removed (`ollama rm`)",
        expected,
        break_it=lambda: stack(f"ollama cp {stack.model} kept && ollama rm {stack.model}"),
        fix=lambda: stack(f"ollama cp kept {stack.model} && ollama rm kept"),
    ):
        page.wait_until(lambda: listed(stack) == [], DETECTED_SECONDS)


def test_a_stopped_gateway(stack: Stack, page: WatchedPage, times: Times) -> None:
    expected = ("Down", r"gateway does not work[\s\S]*journalctl -u bedplate-gateway -n 50")
    with shows_fault(
        page,
        times,
        "gateway stopped",
        expected,
        break_it=lambda: stack("systemctl stop bedplate-gateway"),
        fix=lambda: stack("systemctl start bedplate-gateway"),
    ):
        pass


def test_a_gateway_that_dies_again_and_again(stack: Stack, page: WatchedPage, times: Times) -> None:
    program = "/opt/bedplate/bedplate-gateway/current"
    expected = ("Down", r"gateway does not work[\s\S]*journalctl -u bedplate-gateway -n 50")
    with shows_fault(
        page,
        times,
        "gateway restarting, again and again",
        expected,
        break_it=lambda: stack(
            f"systemctl reset-failed bedplate-gateway; mv {program} {program}-kept;"
            " systemctl kill --kill-who=main --signal=KILL bedplate-gateway"
        ),
        fix=lambda: stack(f"mv {program}-kept {program}"),
    ):
        page.wait_until(
            lambda: re.search(r"bedplate-gateway\D+[1-9] ", page.card("machines").inner_text()) is not None, 5
        )
    # A manual restart resets the counter, so that verify finds no crash.
    stack("systemctl restart bedplate-gateway")


def test_a_graceful_restart_keeps_the_page_healthy(stack: Stack, page: WatchedPage) -> None:
    page.wait_until(lambda: page.word == "Healthy", HEALTHY_AGAIN_SECONDS)
    stack("systemctl restart bedplate-gateway")
    words = set()
    for _ in range(60):
        words.add(page.word)
        page.page.wait_for_timeout(100)
    assert words == {"Healthy"}


def test_a_stopped_prometheus(stack: Stack, open_page: PageOpener, page: WatchedPage, times: Times) -> None:
    expected = ("Degraded", r"Prometheus does not answer[\s\S]*journalctl -u prometheus -n 50")
    with shows_fault(
        page,
        times,
        "Prometheus stopped",
        expected,
        break_it=lambda: stack("systemctl stop prometheus"),
        fix=lambda: stack("systemctl start prometheus"),
    ):
        page.wait_until(lambda: "Prometheus does not answer" in page.card("history").inner_text(), 10)
        # The rest still works: numbers are polled directly.
        assert page.number("requests") >= 0
        before = open_page.client.get("/api/status.json").json()["at"]
        page.page.wait_for_timeout(2500)
        after = open_page.client.get("/api/status.json").json()
        assert after["at"] > before
        assert [model["can_be_served"] for model in after["models"]] == [True]


def test_a_full_disk(page: WatchedPage, times: Times) -> None:
    expected = ("Degraded", r"/srv on one is full")
    with shows_fault(
        page,
        times,
        "disk full (/srv)",
        expected,
        break_it=lambda: lab_fault("fill", "one", "/srv", "4M"),
        fix=lambda: lab_fault("unfill", "one", "/srv"),
    ):
        assert "/srv" in page.card("machines").inner_text()


def test_an_engine_that_is_listed_and_cannot_answer(stack: Stack, page: WatchedPage, times: Times) -> None:
    # Not right after another fault of the engine: a failure within 10 s counts as caused by it.
    weights = "weights=$(find /var/lib/ollama/models/blobs -size +10M -name 'sha256-*')\n"

    def break_it() -> None:
        stack(
            f"{weights}ollama stop {stack.model};"
            " cp --archive $weights /root/kept; truncate --size=20M $weights"
        )
        with stack.client(stack.key("bench")) as client:
            assert stack.chat(client).status_code >= 500

    def fix() -> None:
        stack(f"{weights}cp --archive /root/kept $weights; rm /root/kept")
        with stack.client(stack.key("bench")) as client:
            assert stack.chat(client).status_code == 200

    expected = ("Degraded", r"journalctl -u ollama -n 50")
    with shows_fault(
        page, times, "engine dead: lists the model, cannot answer", expected, break_it=break_it, fix=fix
    ):
        assert stack.model in listed(stack)
        row = page.live.locator(f"[data-model='{stack.model}']").first
        states = {
            truth: row.locator(f"[data-check={truth}]").first.get_attribute("data-state")
            for truth in ("listed", "present", "answered")
        }
        assert states == {"listed": "ok", "present": "ok", "answered": "bad"}


@pytest.fixture
def restarting(open_page: PageOpener) -> Iterator[WatchedPage]:
    """Open a page for faults that interrupt its connection, which the browser logs."""
    with open_page() as page:
        page.wait_until(lambda: page.word == "Healthy", 30)
        yield page
        # Where no dashboard runs, the edge answers 503.
        interruptions = ("net::ERR_", "status of 503")
        assert [problem for problem in page.problems if not any(map(problem.count, interruptions))] == []
        assert page.violations() == []


def test_a_wrong_key(stack: Stack, restarting: WatchedPage, times: Times) -> None:
    expected = ("Degraded", r"refuses the dashboard's key[\s\S]*ansible-playbook site\.yml --tags keys")
    with shows_fault(
        restarting,
        times,
        "wrong key configured",
        expected,
        break_it=lambda: stack(
            f"cp --archive {KEY_FILE} /root/gateway-key; printf sk-wrong >{KEY_FILE};"
            " systemctl restart bedplate-dashboard"
        ),
        fix=lambda: stack(f"mv /root/gateway-key {KEY_FILE}; systemctl restart bedplate-dashboard"),
    ):
        pass


def test_html_in_names_and_errors(stack: Stack, restarting: WatchedPage, times: Times) -> None:
    """The name is declared, and a fake exporter returns it in every text."""
    fake = (Path(__file__).parent / "fake_exporter.py").read_text()

    def break_it() -> None:
        stack(f"""
cat >/root/fake_exporter.py <<'EOF'
{fake}
EOF
systemd-run --quiet --unit=fake-exporter /usr/bin/python3 /root/fake_exporter.py 9199
cp --archive {CONFIG} {KEPT_CONFIG}
python3 - <<'EOF'
import json, pathlib
path = pathlib.Path("{CONFIG}")
config = json.loads(path.read_text())
config["inference_hosts"].append(
    {{"name": "two", "exporter_url": "http://127.0.0.1:9199", "models": [{HOSTILE!r}]}}
)
path.write_text(json.dumps(config))
EOF
systemctl restart bedplate-dashboard
""")

    def fix() -> None:
        stack(
            f"mv {KEPT_CONFIG} {CONFIG}; systemctl stop fake-exporter; systemctl restart bedplate-dashboard"
        )

    expected = ("Degraded", r"1 of 2 declared models can be served")
    with shows_fault(restarting, times, "a model name with HTML in it", expected, break_it=break_it, fix=fix):
        assert HOSTILE in restarting.card("models").inner_text()
        assert restarting.page.locator("img[src=x]").count() == 0
        assert restarting.page.locator("script:not([src])").count() == 0
        restarting.page.goto(f"{restarting.url}/")
        assert HOSTILE in restarting.card("models").inner_text()
        assert restarting.page.locator("img[src=x]").count() == 0


def test_a_stopped_dashboard(stack: Stack, restarting: WatchedPage, times: Times) -> None:
    with shows_fault(
        restarting,
        times,
        "the dashboard itself stopped",
        ("Unknown", "dashboard does not answer"),
        break_it=lambda: stack("systemctl stop bedplate-dashboard"),
        fix=lambda: stack("systemctl start bedplate-dashboard"),
    ):
        assert "lost" in (restarting.live.get_attribute("class") or "")
        assert restarting.page.title().startswith("Unknown")


def test_a_hung_dashboard(stack: Stack, restarting: WatchedPage, times: Times) -> None:
    with shows_fault(
        restarting,
        times,
        "the dashboard itself hung (SIGSTOP)",
        ("Unknown", "dashboard does not answer"),
        break_it=lambda: stack("pkill --uid bedplate-dashboard --signal STOP"),
        fix=lambda: stack("pkill --uid bedplate-dashboard --signal CONT"),
    ):
        assert "lost" in (restarting.live.get_attribute("class") or "")
