"""playbooks/filter_plugins/drift.py: what is expected of a host, verify's check, the report of make drift."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

FILE = {
    "kind": "file",
    "what": "/etc/x",
    "expected": "mode 0640",
    "seen": "mode 0644",
    "remedy": "ansible-playbook site.yml --tags x",
    "known": False,
}
KNOWN = {**FILE, "what": "/etc/y", "known": True}
LISTENER = {**FILE, "kind": "listener", "what": "tcp 192.0.2.1:80"}
STOPPED = {**FILE, "kind": "service", "what": "x.service", "expected": "active", "seen": "inactive"}
AT = "2026-11-29T00:00:00Z"


@pytest.fixture(scope="module")
def drift(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/filter_plugins/drift.py")


def test_each_role_has_its_own_services_ports_and_packages(drift: ModuleType) -> None:
    declarations = [
        {"units": ["a.service", "a-heal@.timer"], "packages": ["curl", "lego"]},
        {"units": ["b.service", "b.timer"]},
    ]
    openings = [{"port": 1, "unit": "a", "address": "127.0.0.1", "clients": ["any"]}]
    units = ["a.service", "a-heal@x.timer", "b.timer"]
    found = drift.role_expectations(
        declarations,
        ["a", "b"],
        active=units,
        enabled=["b.service"],
        openings=openings,
        packages=["curl"],
    )
    assert found["a"]["services"] == {"a.service": "active", "a-heal@x.timer": "active"}
    assert found["b"]["services"] == {"b.service": "enabled", "b.timer": "active"}
    assert found["a"]["openings"] == [{"port": 1, "unit": "a", "address": "127.0.0.1"}]
    assert (found["a"]["packages"], found["b"]["packages"]) == (["curl"], [])


def test_models_and_tables_belong_to_their_role(drift: ModuleType) -> None:
    roles: dict[str, Any] = {"ollama": {"declaration": {"tables": ["inet x"]}}, "b": {"declaration": {}}}
    models = [{"name": "m:1", "pull": "m:1", "preload": True}]
    assert drift.with_models(roles, models, "/m")["ollama"]["models"] == {
        "/m": [{"name": "m:1", "pull": "m:1"}]
    }
    assert "models" not in drift.with_models(roles, models, "/m")["b"]
    assert [role["tables"] for role in drift.with_tables(roles, True).values()] == [["inet x"], []]
    assert [role["tables"] for role in drift.with_tables(roles, False).values()] == [[], []]


@pytest.mark.parametrize(
    ("run", "skip", "expected"),
    [
        (["all"], [], ["a", "b"]),
        (["a"], [], ["a"]),
        (["keys"], [], []),
        (["all"], ["b"], ["a"]),
        (["all"], ["verify"], ["a", "b"]),
    ],
)
def test_the_roles_that_a_run_deploys(
    drift: ModuleType, run: list[str], skip: list[str], expected: list[str]
) -> None:
    assert drift.roles_that_ran(["a", "b"], run, skip) == expected


@pytest.mark.parametrize(
    ("differences", "ok", "seen", "next_command"),
    [
        ([], True, "no difference", "make drift"),
        ([KNOWN], True, "no difference; 1 known", "make drift"),
        # Verify has checks of its own for ports and for services that do not run.
        ([LISTENER, STOPPED], True, "no difference", "make drift"),
        ([FILE, KNOWN], False, "/etc/x: mode 0644 instead of mode 0640; 1 known", FILE["remedy"]),
        (
            [FILE] * 7,
            False,
            "; ".join(["/etc/x: mode 0644 instead of mode 0640"] * 5) + "; and 2 more",
            FILE["remedy"],
        ),
    ],
)
def test_the_check_of_verify(
    drift: ModuleType, differences: list[dict[str, Any]], ok: bool, seen: str, next_command: str
) -> None:
    name = "the host is as the inventory declares"
    expected = {"name": name, "ok": ok, "seen": seen, "next": next_command}
    assert drift.drift_check({"differences": differences}) == expected


def test_a_host_that_could_not_be_compared_fails_verify(drift: ModuleType) -> None:
    found = drift.drift_check({"failed": True, "msg": "Timed out after 40 second(s)."})
    assert (found["ok"], found["seen"]) == (False, "Timed out after 40 second(s).")


def test_the_report_names_each_host_and_difference(drift: ModuleType) -> None:
    results = {"a": {"differences": []}, "b": {"differences": [FILE, KNOWN]}, "c": {"msg": "no Python"}}
    report = drift.drift_report(["a", "b", "c", "d"], results, AT)
    assert (report["schema"], report["ok"], report["at"]) == (1, False, AT)
    states = {"a": "as declared", "b": "differs", "c": "unknown", "d": "unknown"}
    assert report["hosts"] == states
    assert [(each["host"], each["what"]) for each in report["differences"]] == [
        ("b", "/etc/x"),
        ("b", "/etc/y"),
        ("c", "c"),
        ("d", "d"),
    ]
    assert [each["seen"] for each in report["differences"][2:]] == [
        "no Python",
        "the host was unreachable, or an earlier task failed on it",
    ]
    assert drift.drift_sentences(report)[:4] == [
        "a is as the inventory declares.",
        "b differs from the inventory in 1 thing (1 known).",
        "  file /etc/x: mode 0644 instead of mode 0640. Next: ansible-playbook site.yml --tags x",
        "  known: file /etc/y: mode 0644 instead of mode 0640. Next: ansible-playbook site.yml --tags x",
    ]


def test_a_known_difference_alone_is_no_difference(drift: ModuleType) -> None:
    report = drift.drift_report(["a"], {"a": {"differences": [KNOWN]}}, AT)
    assert (report["ok"], report["hosts"]) == (True, {"a": "as declared"})
