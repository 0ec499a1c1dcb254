"""Each role's meta/host.yml against a host after site.yml: all is declared, there, and recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scenarios.default.test_bare_host import BARE_HOST
from tests.support.declarations import DECLARING, host_record
from tests.support.host_state import OTHERS, HostState, load_state, look, missing, undeclared, unrecorded
from tests.support.stack import Stack

# The scenario's inventory has one host without a GPU, and no setting for these.
NOT_INSTALLED = {"alertmanager": "alertmanager_enabled is false", "gpu_driver": "the host has no GPU"}
ABSENT = {
    "edge: package lego": "edge_tls is own",
    "edge: path /usr/local/libexec/bedplate-edge-certificate": "edge_tls is own",
    "edge: path /var/lib/bedplate-edge": "edge_tls is own",
    "edge: unit edge-certificate.service": "edge_tls is own",
    "edge: unit edge-certificate.timer": "edge_tls is own",
    "litellm: path /var/lib/litellm": "only the gateway that had this name kept something there",
    "ollama: path /etc/systemd/system/nftables.service.d": "Ollama listens on loopback",
    "ollama: path /etc/systemd/system/nftables.service.d/bedplate-ollama.conf": "Ollama listens on loopback",
    "ollama: table inet bedplate_ollama": "Ollama listens on loopback",
    "ollama: unit ollama-guard.service": "Ollama listens on loopback",
    "ollama: unit ollama-guard.timer": "Ollama listens on loopback",
}
ROLES = [role for role in DECLARING if role not in NOT_INSTALLED]


@pytest.fixture(scope="module")
def before() -> HostState:
    """The bare host, as test_bare_host saw it."""
    return load_state(BARE_HOST)


@pytest.fixture(scope="module")
def after(stack: Stack) -> HostState:
    return look(stack)


@pytest.fixture(scope="module")
def records(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, host_record.Record]:
    """The host's records by role."""
    folder = tmp_path_factory.mktemp("record")
    for line in stack(f"cd {host_record.RECORDS} && grep --with-filename '' *.json").splitlines():
        name, _, text = line.partition(":")
        with (folder / name).open("a") as file:
            file.write(text)
    found: dict[str, host_record.Record] = host_record.load_record(folder)
    return found


def test_nothing_is_on_the_host_that_nobody_declared(before: HostState, after: HostState) -> None:
    new = len(after.files.keys() - before.files.keys())
    print(f"\n{new} new files; of others: {OTHERS}")
    assert undeclared(before, after) == []


def test_everything_declared_is_on_the_host(after: HostState) -> None:
    assert missing(after, ROLES, ABSENT) == []
    # Each exception is one.
    assert set(missing(after, ROLES, {})) == set(ABSENT)


def test_a_difference_is_named_in_both_directions(before: HostState, after: HostState) -> None:
    files = {**after.files, "/etc/stray": "f 644 root:root "}
    del files["/usr/local/bin/ollama"]
    other = after._replace(
        files=files,
        users=[name for name in after.users if name != "litellm"] + ["stray"],
        units={**after.units, "stray.service": "enabled", "prometheus-node-exporter.service": "enabled"},
        packages={name: version for name, version in after.packages.items() if name != "zstd"},
        tables=[*after.tables, "inet stray"],
        holds=["zstd"],
    )
    assert undeclared(before, other) == [
        "file /etc/stray",
        "user stray",
        "unit stray.service",
        "table inet stray",
        "hold zstd",
    ]
    assert missing(other, ROLES, ABSENT) == [
        "bedplate: package zstd",
        "litellm: user litellm",
        "node_exporter: mask prometheus-node-exporter.service",
        "ollama: path /usr/local/bin/ollama",
    ]


def test_the_record_names_everything(after: HostState, records: dict[str, host_record.Record]) -> None:
    assert sorted(records) == ROLES
    assert unrecorded(after, records) == []
    for record in records.values():
        assert [path for path in record.paths if path not in after.files] == []
        assert [user for user in record.users if user not in after.users] == []
        assert [unit for unit in record.units if after.units.get(unit) in (None, "masked")] == []


def test_the_record_says_what_was_there_before(
    before: HostState, after: HostState, records: dict[str, host_record.Record], stack: Stack
) -> None:
    for record in records.values():
        for name, state in record.before.items():
            user = name.removeprefix("user ")
            there = user in before.users if user != name else name in before.files
            assert (state["state"] != "absent") == there, name
    new = json.loads(stack(f"cat {Path(host_record.RECORDS)}/packages.json"))["installed"]
    assert new == {name: version for name, version in after.packages.items() if name not in before.packages}
    modes = stack(f"stat --format='%a %U' {host_record.RECORDS} {host_record.RECORDS}/*.json").split("\n")
    assert set(modes) == {"700 root", "600 root", ""}
