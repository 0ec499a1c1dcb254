"""Under load: limits are exact, priorities work, and neither restart nor reload drops a request."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.support.secrets import (
    Watch,
    installed_secrets,
    lines_of_sudo,
    lines_with_secrets,
    log_in_with_sudo,
    watching,
)
from tests.support.stack import ROOT, Load, Stack


@pytest.fixture(scope="module")
def searched(stack: Stack) -> dict[str, str]:
    """The secrets of the installation by their names, with the password of sudo."""
    return installed_secrets(stack)


@pytest.fixture(scope="module")
def watched(stack: Stack, searched: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Watch:
    """What a search of all processes finds during verify, traffic-quick and smoke, by a user with sudo."""
    login = log_in_with_sudo(stack, tmp_path_factory.mktemp("login"))
    searched["sudo's password"] = login.password
    with watching(stack, searched) as watch:
        for name in ("verify", "traffic", "smoke"):
            stack.play(login.option, playbook=f"playbooks/{name}.yml")
    return watch


def test_no_process_has_a_secret_in_its_arguments_or_environment(watched: Watch) -> None:
    assert watched.found == []


@pytest.mark.usefixtures("watched")
def test_the_journal_and_so_sudos_log_has_no_secret(stack: Stack, searched: dict[str, str]) -> None:
    assert lines_of_sudo(stack) > 10
    assert lines_with_secrets(stack, searched) == 0


@pytest.mark.usefixtures("watched")
def test_limits_are_exact_and_priorities_work(stack: Stack) -> None:
    report = json.loads((ROOT / "reports/smoke.json").read_text())
    print("\n" + "\n".join(f"{check['name']}: {check['seen']}" for check in report["checks"]))
    assert [check["ok"] for check in report["checks"]] == [True, True, True]
    copied = json.loads(stack("cat /var/lib/bedplate-dashboard/smoke.json"))
    assert copied["checks"] == report["checks"]


def test_the_gateway_counts_what_traffic_counted(stack: Stack) -> None:
    """The numbers of requests and tokens are equal, on the real engine."""

    def counted() -> list[float]:
        metrics = stack(f"curl --silent --fail {stack.metrics_url}")
        counters = (
            r'requests_total{alias="bench",.*path="/v1/chat/completions",status="200"}',
            r'prompt_tokens_total{alias="bench",.*}',
            r'completion_tokens_total{alias="bench",.*}',
        )
        return [
            sum(map(float, re.findall(rf"^bedplate_gateway_{counter} (.+)$", metrics, re.MULTILINE)))
            for counter in counters
        ]

    before = counted()
    report = json.loads(
        stack(
            f"OPENAI_BASE_URL={stack.url}/v1 OPENAI_API_KEY={stack.key('bench')} "
            "SSL_CERT_FILE=/etc/bedplate/ca.crt "
            "runuser --user nobody -- traffic run --concurrency 4 --requests 30 --max-tokens 12 --json -"
        )
    )
    (traffic_class,) = report["classes"]
    assert traffic_class["answered"] == 30
    increases = [later - earlier for earlier, later in zip(before, counted(), strict=True)]
    assert increases == [traffic_class[name] for name in ("answered", "prompt_tokens", "completion_tokens")]


def test_restart_and_reload_drop_no_request(stack: Stack) -> None:
    load = Load(stack, clients=10)
    with load.running():
        for verb in ("reload", "restart", "reload", "restart"):
            time.sleep(2)
            stack(f"systemctl {verb} bedplate-gateway")
        time.sleep(2)
    assert load.failed() == []


def test_limits_survive_a_restart_and_a_kill(stack: Stack) -> None:
    with stack.client(stack.key("ratelimit")) as client:
        left = int(stack.chat(client).headers["x-ratelimit-remaining-requests"])
        stack("systemctl restart bedplate-gateway")
        assert int(stack.chat(client).headers["x-ratelimit-remaining-requests"]) == left - 1
    stack("systemctl kill --kill-who=main --signal=KILL bedplate-gateway")
    with stack.client(stack.key("ratelimit")) as client:
        assert int(stack.chat(client).headers["x-ratelimit-remaining-requests"]) == left - 2
        # The journal then shows a used-up limit across both.
        while stack.chat(client).status_code == 200:
            pass
    # A manual restart resets NRestarts, so that verify reports no crash.
    stack("systemctl restart bedplate-gateway")


def arrivals(stack: Stack, alias: str) -> list[float]:
    """Return when each request of a key arrived that an engine served, as the journal shows it."""
    found = re.findall(
        rf"^(\d+\.\d+) .*: id=\S+ status=\d+ alias={alias} .*engine=[^- ]\S* .*seconds=([\d.]+)s",
        stack("journalctl --unit=bedplate-gateway --output=short-unix --no-pager"),
        re.MULTILINE,
    )
    return sorted(float(written) - float(seconds) for written, seconds in found)


def test_no_minute_of_the_journal_has_more_requests_than_a_limit(stack: Stack) -> None:
    """Over all restarts, reloads and kills of this scenario."""
    limits = {key["alias"]: key["rpm"] for key in stack.limited_keys()}
    assert len(limits) > 1
    counted = 0
    for alias, rpm in limits.items():
        times = arrivals(stack, alias)
        counted += len(times)
        # A line is written up to half a second after its request has ended.
        most = max((sum(at <= other < at + 59.5 for other in times) for at in times), default=0)
        assert most <= rpm, f"{most} requests of {alias} in a minute"
    assert counted > 100
