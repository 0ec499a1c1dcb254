"""Preflight refuses invalid settings with a remedy and changes nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.scenarios.refusals.refusing import MODEL, ROOT, Control, Host, Run

MARK = Path("/var/lib/before-the-refusals")
DOCUMENTS: list[dict[str, dict[str, Any]]] = list(
    yaml.safe_load_all((Path(__file__).parent / "refused.yml").read_text())
)
REFUSED = {name: case for document in DOCUMENTS for name, case in document.items()}


def batches() -> Iterator[list[str]]:
    """The cases of each document, those together that have no setting in common."""
    for document in DOCUMENTS:
        found: list[tuple[set[str], list[str]]] = []
        for name, case in document.items():
            settings = set(case["settings"])
            together = next((batch for batch in found if not batch[0] & settings), None)
            if together:
                together[0].update(settings)
                together[1].append(name)
            else:
                found.append((settings, [name]))
        yield from (names for _, names in found)


BATCHES = list(batches())


@pytest.fixture(scope="module")
def runs(control: Control, one_box: Path, plain: Host) -> Iterator[dict[str, Future[Run]]]:
    """The run of each case, at most two at a time."""
    plain(f"touch {MARK}")
    with ThreadPoolExecutor(2) as pool:
        submitted: dict[str, Future[Run]] = {}
        for names in BATCHES:
            settings = {key: value for name in names for key, value in REFUSED[name]["settings"].items()}
            submitted |= dict.fromkeys(names, pool.submit(control.run, one_box, settings))
        yield submitted


@pytest.mark.parametrize("case", REFUSED)
def test_an_invalid_setting_is_refused(case: str, runs: dict[str, Future[Run]]) -> None:
    assert runs[case].result().refused().count(REFUSED[case]["message"]) == 1


@pytest.mark.parametrize("names", BATCHES, ids=lambda names: names[0])
def test_nothing_else_is_refused(names: list[str], runs: dict[str, Future[Run]]) -> None:
    left = runs[names[0]].result().refused()
    for name in names:
        left = left.replace(REFUSED[name]["message"], "", 1)
    assert left.split() == []


def test_no_secret_is_printed(runs: dict[str, Future[Run]]) -> None:
    for case in ("placeholder key", "long placeholder key"):
        (key,) = REFUSED[case]["settings"]["gateway_keys"]
        assert key["secret"] not in runs[case].result().output
    assert "shortword" not in runs["short password of the pages"].result().output


def test_inventory_settings_are_checked_too(control: Control, plain: Host) -> None:
    inventory = control.one_box(plain, {"prometheus_targets": [], "ollama_modles": [MODEL]})
    assert control.run(inventory).refused() == (
        "ollama_modles is set for group all, but Bedplate has no such variable; did you mean ollama_models? "
        "prometheus_targets is set for group all, but Bedplate sets it itself; "
        "set prometheus_extra_targets instead."
    )


def test_an_inventory_of_an_earlier_release_is_refused_with_all_new_names(
    control: Control, plain: Host
) -> None:
    rows = yaml.safe_load((ROOT / "playbooks/renamed.yml").read_text())
    settable = [row for row in rows if row.get("new") in ("gateway_keys", "gateway_port", "gateway_rotate")]
    inventory = control.one_box(plain, {row["old"]: "x" for row in settable} | {"ollama_models": [MODEL]})
    script = "; ".join(rf"s/\b{row['old']}\b/{row['new']}/g" for row in settable)
    assert control.run(inventory).refused() == " ".join(
        [
            *(
                f"{row['old']} is set for group all, but it was renamed to {row['new']} on {row['since']}; "
                f"write {row['new']} instead."
                for row in settable
            ),
            f"To rename them in your inventory, run: sed -i '{script}' {inventory}",
        ]
    )


def test_an_empty_group_is_refused(control: Control, plain: Host) -> None:
    inventory = control.inventory({"inference": [plain], "gateway": [plain], "monitoring": []}, {})
    assert control.run(inventory).refused() == (
        f"The group 'monitoring' has no hosts in {inventory}: copy inventory/example to inventory/mine "
        "and name a host in each of inference, gateway and monitoring (one machine may be in all three)."
    )


def test_a_second_gateway_is_refused(control: Control, plain: Host, other: Host) -> None:
    hosts = {"inference": [plain], "gateway": [plain, other], "monitoring": [plain]}
    assert control.run(control.inventory(hosts, {"ollama_models": [MODEL]})).refused() == (
        "The group 'gateway' has 2 hosts (plain, other): name one; gateways do not share their counters yet, "
        "so each key could use its limits once on each of them."
    )


def test_a_misspelt_group_is_refused(control: Control, plain: Host) -> None:
    inventory = control.inventory({"inference": [plain], "gatway": [plain], "monitoring": [plain]}, {})
    assert control.run(inventory).refused() == (
        "the inventory has a group gatway, but group gateway is missing; did you mean gateway?"
    )


def test_no_inventory_is_refused(control: Control) -> None:
    missing = control.folder / "not-there.yml"
    run = control.run(missing)
    assert run.code != 0
    assert "inventory/example" in run.refused()


def test_a_certificate_for_another_address_is_refused(control: Control, plain: Host, tmp_path: Path) -> None:
    files = {"certificate": tmp_path / "crt", "key": tmp_path / "key"}
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", "/CN=x", "-addext", "subjectAltName=DNS:plain.example.org"),
        *("-out", str(files["certificate"]), "-keyout", str(files["key"])),
    ]
    subprocess.run(command, check=True, capture_output=True)
    given = {f"edge_{what}": str(path) for what, path in {**files, "ca": files["certificate"]}.items()}
    settings = {
        "ollama_models": [MODEL],
        "bedplate_bind_address": plain.address,
        "edge_tls": "given",
        **given,
    }
    assert control.run(control.one_box(plain, settings)).refused() == (
        f"edge_certificate {files['certificate']} does not name {plain.address} (subjectAltName)."
    )


def test_site_stops_when_preflight_fails(control: Control, one_box: Path) -> None:
    for settings in ({"gateway_prot": 8001}, {"dashboard_port": 70000}):
        run = control.run(one_box, settings, "site.yml")
        run.refused()
        assert "PLAY [Set up every host]" not in run.output


def test_valid_settings_pass_and_generate_no_keys(control: Control, one_box: Path) -> None:
    control.run(one_box, {"gateway_port": "8001", "bedplate_name": "rack-2"}).accepted()
    assert not control.keys.parent.exists()


def test_the_host_is_unchanged(runs: dict[str, Future[Run]], plain: Host) -> None:
    for run in runs.values():
        run.result()
    assert plain.changes_since(MARK) == ""
    assert plain("ls -d /opt/bedplate /etc/bedplate /root/.ansible/tmp/* 2>/dev/null || true") == ""
