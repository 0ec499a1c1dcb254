"""The Makefile's targets for one service: which unit they apply to, and on which group's hosts."""

import subprocess

import pytest
import yaml

from tests.support.rendering import ROOT

VERBS = ("start", "stop", "restart", "status", "logs", "health")


def dry_run(*targets: str) -> subprocess.CompletedProcess[str]:
    """Return make's dry run; the target `hosts`, which needs running hosts, is skipped."""
    command = [
        "make",
        "--dry-run",
        "--no-print-directory",
        "--old-file=hosts",
        "--old-file=install",
        *targets,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


SERVICES: dict[str, dict[str, str]] = yaml.safe_load(
    (ROOT / "playbooks/group_vars/all/services.yml").read_text()
)["bedplate_services"]
# One ends when the models are loaded, one checks the firewall, one orders a certificate, one is a client.
WITHOUT_HEALTH_URL = {"ollama-preload", "ollama-guard", "edge-certificate", "traffic-canary"}


@pytest.mark.parametrize(
    ("verb", "command"),
    [
        ("start-ollama", "inference -m ansible.builtin.command -a 'systemctl start ollama.service'"),
        (
            "restart-dashboard",
            "monitoring -m ansible.builtin.command -a 'systemctl restart bedplate-dashboard.service'",
        ),
        (
            "stop-traffic-canary",
            "gateway -m ansible.builtin.command -a 'systemctl stop traffic-canary.timer'",
        ),
        ("status-traffic-canary", "status traffic-canary.timer traffic-canary.service;"),
        ("logs-traffic-canary", "--lines 50 --unit traffic-canary.timer --unit traffic-canary.service'"),
        ("status", "traffic-canary.timer traffic-canary.service prometheus.service"),
        ("status", ".service bedplate.target'"),
        ("logs", "--unit traffic-canary.timer --unit traffic-canary.service --unit prometheus.service"),
    ],
)
def test_a_target_applies_to_its_unit(verb: str, command: str) -> None:
    assert command in dry_run(verb).stdout


def test_every_unit_has_every_target() -> None:
    for verb in VERBS:
        ran = dry_run(*(f"{verb}-{unit}" for unit in SERVICES))
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count(".venv/bin/ansible") == len(SERVICES)


def test_every_service_has_a_health_url_but_three() -> None:
    assert {name for name, row in SERVICES.items() if "health" not in row} == WITHOUT_HEALTH_URL


def test_an_unknown_service_is_refused() -> None:
    ran = dry_run("logs-nginx")
    assert ran.returncode == 2
    assert "no service is called 'nginx'; known: ollama ollama-preload" in ran.stderr


@pytest.mark.parametrize("why", ["new fan", '100 % of it\'s $HOME; `id` "x" $(shell id)', ""])
def test_a_drains_reason_reaches_the_playbook_as_it_is(why: str) -> None:
    shown = "PLAY=printenv --null DRAIN_HOST DRAIN_WHY #"
    options = ["--no-print-directory", "--silent", "--old-file=hosts", "--old-file=install"]
    command = ["make", *options, shown, "drain", "HOST=gpu1", f"WHY={why}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split("\0")[:2] == ["gpu1", why], done.stderr
