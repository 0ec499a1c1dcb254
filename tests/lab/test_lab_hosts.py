"""The lab on this machine: real hosts of both suites, started from a copy of the lab as from a checkout.

These tests have their own folder because they need root and a machine that can boot lab hosts.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "lab"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bedplate"
HOSTS = {"new": "trixie", "old": "bookworm"}


class Checkout:
    """A copy of the lab's program with its own state; it shares only the built images."""

    def __init__(self, folder: Path, state: Path) -> None:
        shutil.copytree(SOURCE, folder / "lab")
        self.command = folder / "lab" / "lab"
        self.cache, self.state = folder / "cache", state
        (self.cache / "bedplate").mkdir(parents=True)
        (CACHE / "images").mkdir(parents=True, exist_ok=True)
        (self.cache / "bedplate" / "images").symlink_to(CACHE / "images")
        folders = {"XDG_CACHE_HOME": str(self.cache), "XDG_STATE_HOME": str(state)}
        self.environment = {**os.environ, "BEDPLATE_LAB": "main", **folders}

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        process = subprocess.run(
            [self.command, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        message = f"lab {' '.join(words)}: {process.returncode}\n{process.stdout}{process.stderr}"
        assert not check or process.returncode == 0, message
        return process


@pytest.fixture(scope="module", name="lab")
def _lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """Boot one host of each suite; at the end, check that they left nothing on the machine."""
    checkout = Checkout(tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("state"))
    for name, suite in HOSTS.items():
        checkout("up", name, "--suite", suite)
    present = traces(checkout)
    assert all(present[kind] for kind in ("namespaces", "links", "tables", "groups", "processes")), present
    yield checkout
    checkout("down", "--all-labs")
    left, guarded = traces(checkout), checkout("guard", check=False).returncode
    records = [json.loads(file.read_text()) for file in checkout.state.rglob("network.json")]
    checkout("purge")
    guards = output("ip", "route", "show", "type", "blackhole")
    assert not [record for record in records if record["subnet"] in guards], "purge must remove every guard"
    assert not any(left.values()), left
    assert guarded == 0, "the guard must stay after the last host"
    assert not list(checkout.cache.iterdir())


@pytest.fixture(scope="module", name="other")
def _other(lab: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """Use a second checkout, then delete it with a host still up: `down --all-labs` must remove that host."""
    folder = tmp_path_factory.mktemp("other")
    yield Checkout(folder, lab.state)
    shutil.rmtree(folder)


def in_host(lab: Checkout, name: str, script: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return lab("exec", name, "bash", "-c", script, check=check)


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def rows(lab: Checkout) -> list[dict[str, str]]:
    return list(json.loads(lab("list", "--json").stdout))


def addresses(lab: Checkout) -> dict[str, str]:
    return {row["name"]: row["address"] for row in rows(lab)}


def state_of(lab: Checkout, name: str) -> str:
    return next(row["state"] for row in rows(lab) if row["name"] == name)


def lab_ids(lab: Checkout) -> list[str]:
    """Return the ids of every lab that shares this one's folder of state."""
    return [file.parent.name for file in (lab.state / "bedplate/lab").glob("*/lab.json")]


def traces(lab: Checkout) -> dict[str, list[str]]:
    """Return everything on this machine that belongs to the hosts of a checkout."""
    marks = (*lab_ids(lab), str(lab.state))
    candidates = {
        "namespaces": output("ip", "netns", "list").splitlines(),
        "links": output("ip", "-oneline", "link").splitlines(),
        "tables": output("nft", "list", "tables").splitlines(),
        "mounts": Path("/proc/self/mountinfo").read_text().splitlines(),
        "nspawn": [str(path) for path in Path("/run/systemd/nspawn").rglob("*")],
        "groups": [str(folder) for folder in Path("/sys/fs/cgroup").rglob("bedplate-*")],
        "processes": [
            _read(folder / "cmdline") + _read(folder / "cgroup")
            for folder in Path("/proc").glob("[0-9]*")
            if "State:\tZ" not in _read(folder / "status")  # a zombie that its parent has not reaped yet
        ],
    }
    return {
        kind: [line for line in lines if any(mark in line for mark in marks)]
        for kind, lines in candidates.items()
    }


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def wait_until(lab: Checkout, script: str, name: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while in_host(lab, name, script, check=False).returncode != 0:
        assert time.monotonic() < deadline, f"not true in {name} within {seconds} s: {script}"
        time.sleep(0.2)


@pytest.mark.parametrize("name", HOSTS)
def test_boots_to_running_within_the_promised_time(lab: Checkout, name: str) -> None:
    wait_until(lab, "systemctl is-system-running --quiet", name)
    seconds = [float("inf")]
    while (
        len(seconds) < 6 and min(seconds) >= 2
    ):  # five tries, for this machine may be busy with other things
        lab("down", name)
        started = time.monotonic()
        lab("up", name, "--suite", HOSTS[name])
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 2, seconds
    assert HOSTS[name] in in_host(lab, name, "cat /etc/os-release").stdout


@pytest.mark.parametrize("name", HOSTS)
def test_a_second_up_changes_nothing(lab: Checkout, name: str) -> None:
    boot = in_host(lab, name, "cat /proc/sys/kernel/random/boot_id").stdout
    assert "up already" in lab("up", name).stderr
    assert in_host(lab, name, "cat /proc/sys/kernel/random/boot_id").stdout == boot


@pytest.mark.parametrize("name", HOSTS)
def test_exec_passes_the_exit_status(lab: Checkout, name: str) -> None:
    assert in_host(lab, name, "exit 7", check=False).returncode == 7


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_reaches_the_packages(lab: Checkout, name: str) -> None:
    lab("ssh", name, "apt-get -qq update && apt-get install -y --download-only -qq tree")


@pytest.mark.parametrize("name", HOSTS)
def test_memory_limit_is_enforced(lab: Checkout, name: str) -> None:
    limits = "-p MemoryMax=30M -p MemorySwapMax=0"
    eat = f"systemd-run --quiet --wait --pipe {limits} -- python3 -c 'b = bytearray(200 << 20)'"
    assert in_host(lab, name, eat, check=False).returncode != 0
    assert in_host(lab, name, eat.replace("30M", "500M")).returncode == 0


@pytest.mark.parametrize("name", HOSTS)
def test_address_filter_is_enforced(lab: Checkout, name: str) -> None:
    send = "systemd-run --quiet --wait --pipe -p IPAddressDeny={} -- python3 -c '{}'"
    python = 'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))'
    assert "not permitted" in in_host(lab, name, send.format("any", python), check=False).stderr
    assert in_host(lab, name, send.format("10.0.0.0/8", python)).returncode == 0


@pytest.mark.parametrize("name", HOSTS)
def test_reboot_keeps_disk_network_and_journal(lab: Checkout, name: str) -> None:
    before = in_host(lab, name, "echo kept >/root/mark; cat /proc/sys/kernel/random/boot_id").stdout
    lab("ssh", name, "systemctl reboot", check=False)
    wait_until(
        lab,
        f'test "$(cat /proc/sys/kernel/random/boot_id)" != {before.strip()} && systemctl is-active ssh',
        name,
    )
    assert in_host(lab, name, "cat /root/mark").stdout == "kept\n"
    assert int(in_host(lab, name, "journalctl --list-boots --no-pager | grep -c '^ *-\\?[0-9]'").stdout) >= 2
    lab("ssh", name, "true")


@pytest.mark.parametrize("name", HOSTS)
def test_power_cut_keeps_the_disk(lab: Checkout, name: str) -> None:
    in_host(lab, name, "echo synced >/root/mark; echo 192.0.2.1 elsewhere >>/etc/hosts; sync")
    lab("fault", "power-cut", name)
    assert state_of(lab, name) == "stopped"
    assert name not in json.loads(lab("inventory").stdout)["_meta"]["hostvars"]
    lab("up", name)
    assert in_host(lab, name, "cat /root/mark").stdout == "synced\n"
    in_host(lab, name, "grep -q elsewhere /etc/hosts")


def test_pause_and_resume(lab: Checkout) -> None:
    lab("fault", "pause", "new")
    assert state_of(lab, "new") == "paused"
    assert "fault resume new" in lab("exec", "new", "true", check=False).stderr
    lab("fault", "resume", "new")
    lab("ssh", "new", "true")


def test_a_cut_stops_one_direction_of_one_port_only(lab: Checkout) -> None:
    address = addresses(lab)
    probe = "timeout 2 bash -c 'exec 3<>/dev/tcp/{}/22'"
    lab("fault", "cut", "new", "old", "22")
    assert in_host(lab, "new", probe.format(address["old"]), check=False).returncode != 0
    assert in_host(lab, "old", probe.format(address["new"])).returncode == 0
    in_host(lab, "new", f"ping -c 1 -W 2 {address['old']}")
    lab("fault", "heal")
    in_host(lab, "new", probe.format(address["old"]))


def test_offline_and_online(lab: Checkout) -> None:
    address = addresses(lab)["old"]
    lab("fault", "offline", "old")
    assert in_host(lab, "new", f"ping -c 1 -W 1 {address}", check=False).returncode != 0
    lab("fault", "online", "old")
    in_host(lab, "new", f"ping -c 1 -W 2 {address}")


def test_a_killed_service_and_a_hung_one(lab: Checkout) -> None:
    in_host(lab, "new", "systemd-run --quiet --unit=victim -p Restart=always sleep infinity")
    lab("fault", "kill", "new", "victim")
    wait_until(lab, 'test "$(systemctl show -P NRestarts victim)" = 1', "new")
    status = 'grep State /proc/"$(systemctl show -P MainPID victim)"/status'
    lab("fault", "stop", "new", "victim")
    assert "T (stopped)" in in_host(lab, "new", status).stdout
    lab("fault", "cont", "new", "victim")
    assert "S (sleeping)" in in_host(lab, "new", status).stdout
    in_host(lab, "new", "systemctl stop victim")
    assert "not running" in lab("fault", "kill", "new", "victim", check=False).stderr


def test_a_full_disk(lab: Checkout) -> None:
    in_host(lab, "new", "mkdir -p /var/lib/full")
    lab("fault", "fill", "new", "/var/lib/full", "1M")
    assert (
        "No space left" in in_host(lab, "new", "head -c 2M /dev/zero >/var/lib/full/more", check=False).stderr
    )
    lab("fault", "unfill", "new", "/var/lib/full")
    in_host(lab, "new", "head -c 2M /dev/zero >/var/lib/full/more")


def test_a_slow_link(lab: Checkout) -> None:
    address = addresses(lab)["new"]
    in_host(lab, "new", "head -c 300k /dev/zero >/root/page")
    fetch = [
        "scp",
        "-q",
        "-i",
        _key(lab),
        "-o",
        f"UserKnownHostsFile={_known(lab)}",
        f"root@{address}:/root/page",
        "/dev/null",
    ]
    lab("fault", "slow", "new", "1mbit")
    started = time.monotonic()
    output(*fetch)
    assert time.monotonic() - started > 1.5
    lab("fault", "fast", "new")
    started = time.monotonic()
    output(*fetch)
    assert time.monotonic() - started < 1.5


def _variables(lab: Checkout) -> dict[str, str]:
    return dict(json.loads(lab("inventory", "--host", "new").stdout))


def _key(lab: Checkout) -> str:
    return str(_variables(lab)["ansible_ssh_private_key_file"])


def _known(lab: Checkout) -> str:
    return str(Path(_key(lab)).parent / "known_hosts")


def test_a_changed_host_key_is_refused(lab: Checkout, tmp_path: Path) -> None:
    other = tmp_path / "known_hosts"
    lines = Path(_known(lab)).read_text().splitlines()
    address = addresses(lab)
    keys = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    other.write_text(f"{address['new']} {keys[address['old']]}\n")
    options = ["-o", f"UserKnownHostsFile={other}", "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"]
    process = subprocess.run(
        ["ssh", "-i", _key(lab), *options, f"root@{address['new']}", "true"], check=False
    )
    assert process.returncode == 255


def test_up_repairs_a_host_whose_supervisor_was_killed(lab: Checkout) -> None:
    (unit,) = [f"bedplate-{each}-new" for each in lab_ids(lab)]
    supervisors = [
        int(file.parent.name)
        for file in Path("/proc").glob("[0-9]*/cmdline")
        if unit in _read(file)
        and _read(file).startswith(("/bin/sh", "systemd-nspawn", "/usr/bin/systemd-nspawn"))
    ]
    assert supervisors
    for process in sorted(supervisors):
        os.kill(process, signal.SIGKILL)
    assert state_of(lab, "new") != "running"
    lab("up", "new")
    assert state_of(lab, "new") == "running"
    lab("ssh", "new", "true")


@pytest.mark.parametrize("seconds", [0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5])
def test_up_cleans_up_after_a_killed_up(lab: Checkout, seconds: float) -> None:
    half = subprocess.Popen([lab.command, "up", "half"], env=lab.environment, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    half.kill()
    half.wait()
    lab("up", "half")
    assert state_of(lab, "half") == "running"
    lab("down", "half")


def test_a_layer_boots_as_another_host(lab: Checkout) -> None:
    lab("up", "source")
    in_host(lab, "source", "echo prepared >/root/mark")
    assert "stop source" in lab("save", "source", "ready", check=False).stderr
    lab("stop", "source")
    lab("save", "source", "ready")
    lab("up", "copy", "--from", "ready")
    lab("up", "source")
    for name in ("copy", "source"):
        assert in_host(lab, name, "cat /root/mark").stdout == "prepared\n"
        assert in_host(lab, name, "hostname").stdout == f"{name}\n"
        wait_until(lab, "systemctl is-system-running --quiet", name)
    identity = "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub"
    assert not set(in_host(lab, "copy", identity).stdout.split("\n")) & set(
        in_host(lab, "source", identity).stdout.splitlines()
    )
    lab("ssh", "copy", "true")
    lab("down", "source", "copy")


def test_groups_of_the_inventory(lab: Checkout) -> None:
    lab("up", "only", "--groups", "inference")
    inventory = json.loads(lab("inventory", "--list").stdout)
    assert "only" in inventory["inference"]["hosts"]
    assert "only" not in inventory["gateway"]["hosts"]
    lab("down", "only")


def test_without_the_guard_nothing_is_reached(lab: Checkout) -> None:
    shown = output("ip", "route", "show", "type", "blackhole")
    subnet = addresses(lab)["new"].rsplit(".", 1)[0] + ".0/24"
    assert subnet in shown
    output("ip", "route", "delete", "blackhole", subnet, "metric", "9999")
    for words in (["guard"], ["inventory", "--list"], ["ssh", "new", "true"]):
        refused = lab(*words, check=False)
        assert refused.returncode == 1
        assert "the guard route is missing" in refused.stderr
        assert not refused.stdout
    lab("up", "new")
    lab("guard")


def test_the_guard_holds_when_the_lab_is_down(lab: Checkout) -> None:
    address = addresses(lab)["new"]
    lab("down")
    refused = subprocess.run(["ip", "route", "get", address], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    inventory = json.loads(lab("inventory").stdout)
    assert inventory["_meta"]["hostvars"] == {}
    assert inventory["inference"]["hosts"] == []


def test_another_checkout_has_hosts_of_the_same_name(lab: Checkout, other: Checkout) -> None:
    lab("up", "new")
    other("up", "new")
    assert addresses(lab)["new"] != addresses(other)["new"]
    refused = other("purge", check=False)
    assert refused.returncode == 1
    assert "hosts of another checkout" in refused.stderr
    other("down")
    assert state_of(lab, "new") == "running"
    lab("ssh", "new", "true")
    other("up", "forgotten")


def test_two_ups_at_once_share_the_work(lab: Checkout) -> None:
    both = [
        subprocess.Popen([lab.command, "up", "one", "two"], env=lab.environment, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait(60) for process in both] == [0, 0]
    for name in ("one", "two"):
        lab("ssh", name, "true")
    lab("down", "one", "two")


def test_a_wrong_command_line_is_refused_in_one_sentence(lab: Checkout) -> None:
    for words in (
        ["ssh", "nobody"],
        ["up", "Bad_Name"],
        ["up", "x", "--from", "nothing"],
        ["down", "nobody"],
    ):
        refused = lab(*words, check=False)
        assert refused.returncode == 1
        assert refused.stderr.startswith("lab: ")
        assert refused.stderr.count("\n") == 1
