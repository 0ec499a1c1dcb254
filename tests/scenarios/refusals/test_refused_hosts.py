"""Preflight refuses unsuitable hosts; following the printed remedy fixes each case."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.scenarios.refusals.refusing import MODEL, Control, Host

UBUNTU = 'NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID="{0}"\nPRETTY_NAME="Ubuntu {0} LTS"\n'
FEDORA = 'NAME="Fedora Linux"\nID=fedora\nVERSION_ID=44\nPRETTY_NAME="Fedora Linux 44 (Server Edition)"\n'
SYSTEMS = (
    "plain runs {}: Bedplate runs on Debian 12 and 13, and, not proven in our lab, on Ubuntu 24.04 and "
    "26.04 (22.04 for a host in the group inference only)."
)


@contextmanager
def system(host: Host, os_release: str) -> Iterator[None]:
    """Replace the host's os-release by another distribution's."""
    host(f"rm /etc/os-release && cat >/etc/os-release <<'END'\n{os_release}END")
    try:
        yield
    finally:
        host("ln -sf ../usr/lib/os-release /etc/os-release")


@pytest.mark.parametrize(
    ("os_release", "name"),
    [
        (UBUNTU.format("20.04"), "Ubuntu 20.04"),
        (UBUNTU.format("22.04"), "Ubuntu 22.04"),
        (FEDORA, "Fedora Linux 44"),
    ],
)
def test_an_unsupported_system_is_refused(
    control: Control, one_box: Path, plain: Host, os_release: str, name: str
) -> None:
    with system(plain, os_release):
        assert control.run(one_box).refused() == SYSTEMS.format(name)


@pytest.mark.parametrize("version", ["24.04", "26.04"])
def test_an_untested_system_is_accepted_with_a_warning(
    control: Control, one_box: Path, plain: Host, version: str
) -> None:
    with system(plain, UBUNTU.format(version)):
        assert f"plain: Ubuntu {version} is not proven in our lab." in control.run(one_box).accepted()


def test_an_older_ubuntu_may_infer(control: Control, plain: Host, other: Host) -> None:
    inventory = control.inventory(
        {"inference": [plain], "gateway": [other], "monitoring": [other]},
        {"ollama_models": [MODEL], "bedplate_bind_address": "{{ ansible_host }}", "edge_tls": "own"},
    )
    with system(plain, UBUNTU.format("22.04")):
        assert "plain: Ubuntu 22.04 is not proven in our lab." in control.run(inventory).accepted()


def test_several_hosts_must_reach_each_other(control: Control, plain: Host, other: Host) -> None:
    groups = {"inference": [plain], "gateway": [plain], "monitoring": [other]}
    models = {"ollama_models": [MODEL]}
    assert control.run(control.inventory(groups, models)).refused() == (
        "plain serves on 127.0.0.1, which the monitoring host other cannot reach: "
        "set bedplate_bind_address to its private address."
    )
    address = {
        "bedplate_bind_address": "{{ ansible_host }}",
        "edge_tls": "own",
        "bedplate_host_address": "{{ 'plain' if inventory_hostname == 'plain' else ansible_host }}",
    }
    run = control.run(control.inventory(groups, {**models, **address}))
    assert run.refused() == (
        "plain is reached as 'plain': with several hosts, each needs an IPv4 address that the others can "
        "reach: set bedplate_host_address."
    )


def test_a_host_without_systemd_is_refused(control: Control, plain: Host) -> None:
    # A process namespace whose first process is sshd, so that logins there do not run under systemd.
    plain("systemd-run --unit=no-systemd unshare --pid --fork --mount-proc /usr/sbin/sshd -D -p 2222")
    unchecked = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes"
    behind = Host("plain", {**plain.vars, "ansible_port": 2222, "ansible_ssh_common_args": unchecked})
    try:
        run = control.run(control.one_box(behind, {"ollama_models": [MODEL]}))
    finally:
        plain("systemctl stop no-systemd")
    assert run.refused() == "plain is not managed by systemd (its init is sshd): Bedplate needs systemd."


def test_a_port_in_use_is_refused(control: Control, one_box: Path, plain: Host) -> None:
    plain("systemd-run --unit=strange-page /usr/bin/python3 -m http.server 3001")
    pid = plain("systemctl show --property=MainPID --value strange-page").strip()
    plain("for i in {1..50}; do ss -Htln sport = 3001 | grep -q . && break; sleep 0.1; done")
    try:
        assert control.run(one_box).refused() == (
            f"plain: port 3001 is held by python3 (pid {pid}, strange-page.service): stop it, or set "
            "dashboard_port to another port."
        )
        control.run(one_box, {"dashboard_port": 3002}).accepted()
    finally:
        plain("systemctl stop strange-page")
    control.run(one_box).accepted()


def test_a_small_disk_is_refused(control: Control, one_box: Path, plain: Host) -> None:
    plain("mkdir -p /opt/bedplate && mount -t tmpfs -o size=700M tmpfs /opt/bedplate")
    try:
        assert control.run(one_box).refused() == (
            "plain: a first installation needs 7.2 GB at /opt/bedplate, but only 0.7 GB are free: "
            "free some space, or mount a larger disk there."
        )
        plain("mount -o remount,size=8G /opt/bedplate")
        control.run(one_box).accepted()
    finally:
        plain("umount /opt/bedplate && rmdir /opt/bedplate")


def test_a_small_disk_for_models_is_a_warning(control: Control, plain: Host) -> None:
    plain("mkdir -p /srv/models && mount -t tmpfs -o size=1G tmpfs /srv/models")
    inventory = control.one_box(plain, {"ollama_models": [MODEL], "ollama_models_dir": "/srv/models"})
    try:
        warning = "plain: /srv/models has 1.1 GB free; models usually need more than 20 GB."
        assert warning in control.run(inventory).accepted()
    finally:
        plain("umount /srv/models && rmdir /srv/models")


def test_a_model_that_cannot_fit_is_refused(control: Control, plain: Host, tmp_path: Path) -> None:
    # A header of 30 layers, and a hole of 8 TB in place of the weights.
    numbers = {"block_count": 30, "attention.head_count": 9, "embedding_length": 576, "context_length": 8192}
    pairs = [gguf_string("general.architecture") + struct.pack("<I", 8) + gguf_string("llama")]
    pairs += [gguf_string(f"llama.{key}") + struct.pack("<II", 4, value) for key, value in numbers.items()]
    path = tmp_path / "large.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs))
    os.truncate(path, 8 * 10**12)
    model = {"name": "large:8t", "gguf": str(path), "checksum": f"sha256:{'0' * 64}"}
    refused = control.run(control.one_box(plain, {"ollama_models": [model]})).refused()
    assert "'large:8t' needs 8001." in refused
    assert re.search(
        r"but plain has [0-9.]+ GB of memory: use \S+, the largest of the list that fits", refused
    )


def gguf_string(text: str) -> bytes:
    """Return a string of a GGUF header."""
    return struct.pack("<Q", len(text)) + text.encode()


def test_a_host_with_keys_needs_their_file(control: Control, one_box: Path, plain: Host) -> None:
    plain("mkdir -p /etc/bedplate/bedplate-gateway && echo '{}' >/etc/bedplate/bedplate-gateway/keys.json")
    try:
        assert control.run(one_box).refused() == (
            f"plain has API keys, but their file {control.keys} is missing on this control machine: "
            "restore it from your backup, or replace the keys of all clients with -e gateway_keys_reset=true."
        )
        control.run(one_box, {"gateway_keys_reset": True}).accepted()
        assert not control.keys.exists()
        control.keys.parent.mkdir(parents=True, mode=0o700)
        control.keys.write_text('{"schema": 1, "keys": {}}')
        control.keys.chmod(0o644)
        remedy = f"chmod 0600 {control.keys}"
        assert control.run(one_box).refused() == (
            f"{control.keys} has mode 0644, so other users can read the keys; run: {remedy}"
        )
        control.keys.chmod(0o600)
        control.run(one_box).accepted()
        control.keys.write_text('{"schema": 1, "keys": {"default": ')
        assert "is not valid JSON" in control.run(one_box).refused()
    finally:
        shutil.rmtree(control.keys.parent, ignore_errors=True)
        plain("rm -r /etc/bedplate")


def test_an_archive_with_a_wrong_checksum_keeps_the_old_release(control: Control, plain: Host) -> None:
    archive = control.folder / "ollama-linux-amd64.tar.zst"
    archive.write_text("cut in half")
    plain("mkdir -p /opt/bedplate/ollama/releases/old && ln -s releases/old /opt/bedplate/ollama/current")
    settings = {
        "ollama_models": [MODEL],
        "ollama_archive": str(archive),
        "ollama_archive_checksum": f"sha256:{'0' * 64}",
    }
    try:
        run = control.run(control.one_box(plain, settings), None, "site.yml", "--tags", "ollama")
        assert run.code == 2
        assert run.sentence == (
            f"ollama_archive {archive} has sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}, "
            f"expected sha256:{'0' * 64}: download it again."
        )
        assert plain("readlink /opt/bedplate/ollama/current").strip() == "releases/old"
    finally:
        plain("rm -r /opt/bedplate")
