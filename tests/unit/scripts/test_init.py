"""init: how a machine is named, what is refused, and which inventory is written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
GPU = {"action": "none", "reason": "There is no card.", "remedy": ""}


@pytest.fixture(scope="module")
def script(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("scripts/init.py")


def row(name: str, kind: str, size: int, context: int = 8192) -> dict[str, Any]:
    """A row of the filter model_fits."""
    return {
        "name": name,
        "kind": kind,
        "bytes": size * 10**9,
        "size": f"{size}.0 GB",
        "needs": f"{size + 1}.0 GB",
        "context": context,
        "slots": 2,
        "text": "fits",
        "abilities": ["chat"],
        "declared": False,
    }


def found(**fields: Any) -> dict[str, Any]:
    """What playbooks/look.yml writes for a machine with 16 GB of memory."""
    known = {
        "reached": True,
        "error": "",
        "name": "gpu1",
        "system": "Debian 13.2",
        "supported": True,
        "proven": True,
        "systemd": True,
        "memory": "16.0 GB of memory, no GPU in use",
        "gpu": GPU,
        "program_bytes": 90 * 10**9,
        "model_bytes": 80 * 10**9,
        "address": "192.168.1.20",
        "models": [
            row("small:1b", "whole", 1),
            row("middle:8b", "less", 5, 4096),
            row("large:70b", "no", 43),
            row("huge:1t", "whole", 100),
        ],
        "default": "small:1b",
    }
    return {**known, **fields}


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("local", {"ansible_connection": "local"}),
        ("192.0.2.10", {"ansible_host": "192.0.2.10", "ansible_user": "root"}),
        (
            "admin@box.example.org:2222",
            {"ansible_host": "box.example.org", "ansible_port": "2222", "ansible_user": "admin"},
        ),
        ("admin@2001:db8::1", {"ansible_host": "2001:db8::1", "ansible_user": "admin"}),
        (
            "[2001:db8::1]:22",
            {"ansible_host": "2001:db8::1", "ansible_port": "22", "ansible_user": "root"},
        ),
    ],
)
def test_a_machine(script: ModuleType, text: str, variables: dict[str, str]) -> None:
    assert script.Target.parse(text).variables() == variables


@pytest.mark.parametrize("text", ["", "a b", "-oProxyCommand=touch", "root@", "root@host;id", "a@b@c", "'x'"])
def test_what_is_no_machine(script: ModuleType, text: str) -> None:
    with pytest.raises(script.InitError, match="is no machine: write HOST=local"):
        script.Target.parse(text)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            "Failed to connect to the host via ssh: Host key verification failed.",
            "SSH does not know the key of 192.0.2.10: run ssh root@192.0.2.10 true once and accept it, "
            "then run make "
            "init again.",
        ),
        (
            "root@192.0.2.10: Permission denied (publickey,password).",
            "192.0.2.10 refuses the SSH keys of this machine for root: run ssh-copy-id root@192.0.2.10, "
            "then run make "
            "init again.",
        ),
        (
            "ssh: Could not resolve hostname 192.0.2.10: Name or service not known",
            "The name 192.0.2.10 has no address: correct HOST=root@192.0.2.10.",
        ),
        (
            "Task failed: Failed to connect to the host via ssh: ssh: connect to host 192.0.2.10 port 22: "
            "Connection timed out",
            "root@192.0.2.10 cannot be reached (ssh: connect to host 192.0.2.10 port 22: Connection timed "
            "out): try "
            "ssh root@192.0.2.10 true, then run make init again.",
        ),
        (
            "Task failed: Missing sudo password",
            "sudo on 192.0.2.10 asks for a password: use HOST=root@192.0.2.10, or permit sudo without one.",
        ),
        (
            "/bin/sh: 1: sudo: not found",
            "192.0.2.10 has no sudo: use HOST=root@192.0.2.10.",
        ),
        (
            "/bin/sh: 1: /usr/bin/python3: not found",
            "192.0.2.10 has no working Python: run apt-get install python3 there, then run make init again.",
        ),
    ],
)
def test_a_machine_that_cannot_be_read(script: ModuleType, error: str, sentence: str) -> None:
    assert script.unreached(script.Target("192.0.2.10", "root"), error) == sentence


def test_this_machine_without_a_right_to_read_it(script: ModuleType) -> None:
    assert script.unreached(script.Target(), "pyenv: python3.13: command not found") == (
        "this machine has no working Python: run apt-get install python3 there, then run make init again."
    )
    assert script.unreached(script.Target(), "Strange.\nMore.") == (
        "this machine cannot be read (Strange.): run make init as root."
    )
    assert script.unreached(script.Target(), "sudo: a password is required") == (
        "sudo on this machine asks for a password: use a root shell, or permit sudo without one."
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"supported": False, "system": "Debian 11.11"},
            "root@192.0.2.10 runs Debian 11.11, but Bedplate runs on Debian 12 and 13, and, not proven, on "
            "Ubuntu 24.04 "
            "and 26.04: choose another machine with HOST=.",
        ),
        (
            {"systemd": False},
            "root@192.0.2.10 does not run systemd, which Bedplate needs: choose another machine with HOST=.",
        ),
        (
            {"program_bytes": 3 * 10**9},
            "root@192.0.2.10 has 3.0 GB free at /opt, and a first installation needs 7.2 GB: free some "
            "space, or mount a "
            "larger disk there, then run make init again.",
        ),
        (
            {"gpu": {"action": "refused", "reason": "The card is too old.", "remedy": "Remove it."}},
            "root@192.0.2.10: The card is too old. Remove it.",
        ),
        ({}, ""),
    ],
)
def test_a_machine_that_does_not_suit(script: ModuleType, fields: dict[str, Any], sentence: str) -> None:
    assert script.unfit(found(**fields), script.Target("192.0.2.10", "root")) == sentence


def test_only_what_fits_memory_and_disk_is_offered(script: ModuleType) -> None:
    assert [model["name"] for model in script.fitting(found())] == ["small:1b", "middle:8b"]


def test_a_gpu_without_a_driver_gets_the_proposal_only(script: ModuleType) -> None:
    unknown = found(models=[row("small:1b", "unknown", 1), row("large:70b", "unknown", 43)])
    assert [model["name"] for model in script.fitting(unknown)] == ["small:1b"]
    # Whoever knows the card may name another.
    assert script.chosen_models(["large:70b"], unknown, script.Target())[0]["name"] == "large:70b"


def test_a_model_that_does_not_fit_is_refused(script: ModuleType) -> None:
    with pytest.raises(script.InitError) as refused:
        script.chosen_models(["large:70b"], found(), script.Target())
    assert str(refused.value) == (
        "large:70b needs 44.0 GB, and this machine has 16.0 GB of memory, no GPU in use and 80.0 GB of "
        "disk for models: choose middle:8b or a smaller one."
    )


def test_no_model_fits(script: ModuleType) -> None:
    with pytest.raises(script.InitError, match="No model of the list fits this machine"):
        script.chosen_models([], found(), script.Target())


def test_a_model_that_is_not_in_the_list_is_taken(script: ModuleType) -> None:
    assert script.chosen_models(["some/body:8b"], found(), script.Target())[0]["name"] == "some/body:8b"


@pytest.mark.parametrize("name", ["llama", "a b:c", 'x:"y"', "x:\ny"])
def test_what_is_no_model(script: ModuleType, name: str) -> None:
    with pytest.raises(script.InitError, match="is no model: write NAME:TAG"):
        script.chosen_models([name], found(), script.Target())


def test_answers_are_numbers_or_names(script: ModuleType) -> None:
    assert script.numbered("2, other:1b", found()) == ["middle:8b", "other:1b"]
    with pytest.raises(script.InitError, match="There is no model 3: use 1 to 2"):
        script.numbered("3", found())


def test_an_answer_is_asked_for_until_it_is_accepted(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter(["perhaps", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    assert script.ask("Open?", "no", script.yes_or_no) == "no"
    assert "Answer yes or no." in capsys.readouterr().out


def test_the_questions(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["admin@192.0.2.10", "yes", "1 2"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(script, "look", lambda _: found())
    choice = script.choose(script.parse([]))
    assert choice.target == script.Target("192.0.2.10", "admin")
    assert (choice.name, choice.address, choice.context) == ("gpu1", "192.168.1.20", 4096)
    assert [model["name"] for model in choice.models] == ["small:1b", "middle:8b"]


@pytest.mark.parametrize(
    ("arguments", "fields", "address"),
    [
        ([], {}, ""),
        (["--open"], {}, "192.168.1.20"),
        ([], {"address": "", "name": "localhost"}, ""),
    ],
)
def test_what_is_proposed(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    fields: dict[str, Any],
    address: str,
) -> None:
    monkeypatch.setattr(script, "look", lambda _: found(**fields))
    choice = script.choose(script.parse(["--yes", *arguments]))
    assert (choice.target, choice.address, choice.context) == (script.Target(), address, 0)
    assert [model["name"] for model in choice.models] == ["small:1b"]
    assert choice.name == ("box1" if fields else "gpu1")


def test_a_machine_without_an_ipv4_address_cannot_be_opened(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "look", lambda _: found(address=""))
    with pytest.raises(script.InitError, match="has no IPv4 address to serve a network at"):
        script.choose(script.parse(["--yes", "--open"]))


def test_an_interrupt_is_one_sentence(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "choose", interrupt)
    with pytest.raises(SystemExit) as ended:
        script.main("--inventory", str(tmp_path / "mine"))
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nStopped. Nothing was written.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["", "192.168.1.20"])
def test_the_inventory(script: ModuleType, tmp_path: Path, address: str) -> None:
    target = script.Target("2001:db8::1", "yes", "22")
    models = [row("small:1b", "whole", 1), row("middle:8b", "less", 5, 4096)]
    script.write_inventory(tmp_path / "mine", script.Choice("gpu1", target, address, models, 4096))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["all.yml", "group_vars", "hosts.yml", "mine"]
    hosts = yaml.safe_load((tmp_path / "mine/hosts.yml").read_text())["all"]
    assert hosts["hosts"] == {
        "gpu1": {"ansible_host": "2001:db8::1", "ansible_port": "22", "ansible_user": "yes"}
    }
    assert {name: list(group["hosts"]) for name, group in hosts["children"].items()} == {
        "inference": ["gpu1"],
        "gateway": ["gpu1"],
        "monitoring": ["gpu1"],
    }
    settings = yaml.safe_load((tmp_path / "mine/group_vars/all.yml").read_text())
    example = yaml.safe_load((ROOT / "inventory/example/group_vars/all.yml").read_text())
    assert settings["ollama_models"] == [
        {"name": "small:1b", "pull": "small:1b", "preload": True},
        {"name": "middle:8b", "pull": "middle:8b"},
    ]
    assert settings["gateway_keys"] == example["gateway_keys"]
    assert settings["bedplate_validated"] == example["bedplate_validated"]
    assert settings["ollama_context_length"] == 4096
    assert settings.get("bedplate_bind_address", "") == address
    assert settings.get("edge_tls", "") == ("own" if address else "")


def test_an_inventory_is_never_overwritten(script: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(script.InitError, match="exists and stays as it is: install it with make deploy"):
        script.write_inventory(
            folder, script.Choice("gpu1", script.Target(), "", [row("small:1b", "whole", 1)])
        )
    assert list(tmp_path.iterdir()) == [folder]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script without a terminal."""
    return subprocess.run(
        [sys.executable, ROOT / "scripts/init.py", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "make init asks questions, and there is no terminal: add YES=1 to accept the proposals."),
        (["--yes", "--host", "a b"], "'a b' is no machine: write HOST=local or HOST=root@192.0.2.10."),
    ],
)
def test_an_error_is_one_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    done = run("--inventory", str(tmp_path / "mine"), *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{sentence}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_inventory_is_refused_first(tmp_path: Path) -> None:
    done = run("--inventory", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        f"{tmp_path} exists and stays as it is: install it with make deploy INVENTORY={tmp_path}, or "
        f"choose another "
        "folder with make init INVENTORY=inventory/NAME.\n"
    )
