"""follow: which command reads a journal, and which row a request gets."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LINE = (
    "id=req_1 status=200 alias=team class=high model=llama3.2:3b engine=gpu1 lane=litellm "
    "path=/v1/chat/completions stream=yes wait=0.120s ttft=0.480s seconds=3.201s "
    "tokens_in=52 tokens_out=~180 retries=0 reason=-"
)


@pytest.fixture(scope="module")
def script(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("scripts/follow.py")


def entry(message: object) -> str:
    return json.dumps({"MESSAGE": message, "__REALTIME_TIMESTAMP": "1764360000000000"})


def host(script: ModuleType, **fields: Any) -> Any:
    known = {
        "name": "one",
        "local": False,
        "address": "10.0.0.1",
        "port": 0,
        "user": "",
        "key": "",
        "options": "",
    }
    return script.Host(**{**known, **fields})


def test_ssh_gets_what_the_inventory_says(script: ModuleType) -> None:
    plain = script.ssh_command(host(script))
    assert plain[0] == "ssh"
    assert plain[-1] == "10.0.0.1"
    assert not {"-p", "-l", "-i"} & set(plain)
    full = script.ssh_command(
        host(script, port=2222, user="admin", key="/k y", options="-o 'ProxyJump=a b' -o X=1")
    )
    assert full[-7:] == ["-p", "2222", "-l", "admin", "-i", "/k y", "10.0.0.1"]
    assert full[5:9] == ["-o", "ProxyJump=a b", "-o", "X=1"]


def test_this_machine_needs_no_ssh_and_root_no_sudo(script: ModuleType, tmp_path: Path) -> None:
    journal = tmp_path / "journalctl"
    journal.write_text('#!/bin/sh\necho "$@"\n')
    journal.chmod(0o755)
    command = script.journal_command(host(script, local=True), ["a.service", "b.service"], "short-iso")
    path = f"{tmp_path}:/usr/bin:/bin"
    (tmp_path / "id").write_text("#!/bin/sh\necho 0\n")
    (tmp_path / "id").chmod(0o755)
    said = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=True).stdout
    assert said.split() == [
        *("--follow", "--lines=10", "--output=short-iso", "--no-hostname"),
        *("--unit=a.service", "--unit=b.service"),
    ]
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "sudo").write_text('#!/bin/sh\necho sudo "$@"\n')
    (tmp_path / "sudo").chmod(0o755)
    said = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=True).stdout
    assert said.startswith("sudo -n journalctl --follow")


def test_a_request_is_one_row_under_the_names_of_its_columns(script: ModuleType) -> None:
    shown = script.row(entry(LINE))
    names = script.header()
    for name, value in (
        ("alias", "team"),
        ("model", "llama3.2:3b"),
        ("wait", "0.120s"),
        ("tokens out", "~180"),
    ):
        assert shown[names.index(name) :].startswith(value)


def test_other_lines_and_broken_ones_are_no_rows(script: ModuleType) -> None:
    assert script.row(entry("Started.")) is None
    assert script.row(entry([105, 100])) is None
    assert script.row(entry(None)) is None
    assert script.row("{") is None
    assert script.row("[]") is None


def test_a_hostile_model_name_cannot_write_on_the_terminal(script: ModuleType) -> None:
    shown = script.row(entry(LINE.replace("llama3.2:3b", "\x1b[2Jx\u009b" + "y" * 100)))
    assert "\x1b" not in shown
    assert "\u009b" not in shown
    assert len(shown) <= len(script.header()) + 20


def test_refusals_are_colored_on_a_terminal_only(script: ModuleType) -> None:
    refused = entry(LINE.replace("status=200", "status=429"))
    assert script.row(refused, color=True).startswith(script.YELLOW)
    assert script.YELLOW not in script.row(refused)
    assert script.RED in script.row(entry(LINE.replace("status=200", "status=502")), color=True)
