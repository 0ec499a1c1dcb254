"""The records of hosts: what a start creates, changes and refuses, and the ways into a host."""

import json
from pathlib import Path

import pytest
from bedplate_lab import images
from bedplate_lab.access import HostAccess
from bedplate_lab.errors import LabError
from bedplate_lab.paths import Lab
from bedplate_lab.records import GROUPS, HostRecords, HostSpec
from bedplate_lab.tools import write_json


@pytest.fixture(name="records")
def _records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostRecords:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(images, "base", lambda suite: Path("/images") / suite)
    records = HostRecords(Lab("main", Path("/srv/bedplate")))
    write_json(records.lab.state / "network.json", {"subnet": "10.1.2.0/24"})
    return records


def test_a_new_host_gets_the_defaults_and_the_first_free_number(records: HostRecords) -> None:
    first = records.create_or_update("one", HostSpec())
    second = records.create_or_update("two", HostSpec(suite="bookworm", groups=[], fake_gpus=["10de:2684"]))
    assert (first.suite, first.lower, first.groups) == ("trixie", ["/images/trixie"], list(GROUPS))
    assert (second.suite, second.groups, second.fake_gpus) == ("bookworm", [], ["10de:2684"])
    assert [str(records.address(host)) for host in (first, second)] == ["10.1.2.11", "10.1.2.12"]
    assert records.all() == [first, second]
    assert [records.state(host) for host in records.all()] == ["stopped", "stopped"]


def test_the_record_on_disk_keeps_its_fields(records: HostRecords) -> None:
    host = records.create_or_update("one", HostSpec())
    record = json.loads((records.folder(host) / "host.json").read_text())
    assert list(record) == ["name", "number", "suite", "lower", "groups", "fake_gpus", "machine_id"]


def test_a_known_host_is_changed_only_where_the_options_say_so(records: HostRecords) -> None:
    before = records.create_or_update("one", HostSpec(groups=["gateway"], fake_gpus=["10de:2684"]))
    assert records.create_or_update("one", HostSpec(suite="trixie")) == before
    after = records.create_or_update("one", HostSpec(groups=["inference"], fake_gpus=[]))
    assert (after.groups, after.fake_gpus) == (["inference"], [])
    assert after.machine_id == before.machine_id


@pytest.mark.parametrize("spec", [HostSpec(suite="bookworm"), HostSpec(layer="ready")])
def test_a_known_host_keeps_its_suite_and_layer(records: HostRecords, spec: HostSpec) -> None:
    records.create_or_update("one", HostSpec())
    with pytest.raises(LabError, match="host 'one' exists already on trixie; run `lab/lab down one` first"):
        records.create_or_update("one", spec)


def test_a_host_starts_from_a_layer(records: HostRecords) -> None:
    layer = records.lab.layers / "ready"
    write_json(layer / "layer.json", {"suite": "bookworm", "lower": ["/images/bookworm"]})
    host = records.create_or_update("one", HostSpec(layer="ready"))
    assert (host.suite, host.lower) == ("bookworm", ["/images/bookworm", str(layer / "tree")])
    with pytest.raises(LabError, match="layer 'ready' is on bookworm, not on trixie; omit --suite"):
        records.create_or_update("two", HostSpec(suite="trixie", layer="ready"))
    with pytest.raises(LabError, match="there is no layer 'other' \\(layers: ready\\)"):
        records.create_or_update("two", HostSpec(layer="other"))


def test_an_unknown_host_is_refused(records: HostRecords) -> None:
    records.create_or_update("one", HostSpec())
    with pytest.raises(LabError, match="there is no host 'two' in lab 'main' \\(hosts: one\\)"):
        records.get("two")


def test_a_stopped_host_runs_no_command(records: HostRecords) -> None:
    host = records.create_or_update("one", HostSpec())
    with pytest.raises(LabError, match="host 'one' is not running; start it with `lab/lab up one`"):
        HostAccess(records).exec_command(host, ["true"])


def test_a_command_enters_every_namespace_with_a_clean_environment(
    records: HostRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostAccess, "leader", lambda *_: 42)
    host = records.create_or_update("one", HostSpec())
    command = HostAccess(records).exec_command(host, ["ls", "-l"])
    assert " ".join(command) == (
        "nsenter --target=42 --mount --uts --ipc --net --pid --cgroup -- env -i "
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "
        "TERM=dumb ls -l"
    )
