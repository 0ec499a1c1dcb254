"""The files, units and ports of a host after site.yml, with the default settings."""

from __future__ import annotations

import re

from tests.support.services import boot_services
from tests.support.stack import Stack

KEY_FILES = {
    "/etc/bedplate/bedplate-gateway/keys.json": "640 root bedplate-gateway",
    "/etc/bedplate/bedplate-gateway/gateway.json": "640 root bedplate-gateway",
    "/etc/bedplate/bedplate-gateway/litellm-key": "640 root bedplate-gateway",
    "/etc/bedplate/litellm/config.yaml": "640 root litellm",
    "/etc/bedplate/litellm/master-key": "600 root root",
    "/etc/bedplate/bedplate-dashboard/gateway-key": "600 root root",
}
# The symlink `current` of each program points to a folder of its `releases`.
RELEASES = {
    "ollama": "",
    "bedplate-gateway": "/venv",
    "litellm": "/venv",
    "bedplate-exporter": "/venv",
    "bedplate-dashboard": "/venv",
    "traffic": "/venv",
}
# Prints the names of files that contain a line of standard input; grep exits with 1 if it finds nothing.
FIND_SECRETS = r"""
secrets=$(mktemp) && trap 'rm -f "$secrets"' EXIT && cat >"$secrets" && test -s "$secrets"
search="grep --text --files-with-matches --fixed-strings --file=$secrets"
journalctl --no-pager --output=export --all | $search --label=journal || [[ $? == 1 ]]
# Processes end meanwhile.
$search --no-messages /proc/[0-9]*/cmdline || true
# Up to 1 MiB. find rounds sizes up, so -1M would match only empty files.
folders="/etc /opt/bedplate /var/lib /var/log"
find $folders -xdev -type f -perm -o=r -size -1025k -exec $search {} + || [[ $? == 1 ]]
"""
# Listens on loopback, or is the host's SSH server.
PRIVATE = re.compile(r"127\.|\[::1\]|(0\.0\.0\.0|\[::\]):22$")
MAX_EXPOSURE = 3.0


def test_no_key_is_readable(stack: Stack) -> None:
    """Neither in the journal, nor in process lists, nor in world-readable files."""
    master_key = stack("cat /etc/bedplate/bedplate-gateway/litellm-key")
    assert stack(FIND_SECRETS, stdin="\n".join([*stack.keys(), master_key.strip()])) == ""


def test_key_files_are_readable_only_for_their_services(stack: Stack) -> None:
    lines = stack(f"stat --format='%n %a %U %G' {' '.join(KEY_FILES)}").splitlines()
    assert dict(line.split(" ", 1) for line in lines) == KEY_FILES


def test_each_program_is_a_release(stack: Stack) -> None:
    targets = stack(
        f"readlink --canonicalize {' '.join(f'/opt/bedplate/{name}/current' for name in RELEASES)}"
    ).splitlines()
    for (name, folder), target in zip(RELEASES.items(), targets, strict=True):
        release = rf"/opt/bedplate/{name}/releases/\d+\.\d+\.\d+-[0-9a-f]{{8}}{folder}"
        assert re.fullmatch(release, target), target


def test_the_proprietary_litellm_enterprise_is_not_installed(stack: Stack) -> None:
    for name in ("bedplate-gateway", "litellm"):
        python = f"/opt/bedplate/{name}/current/bin/python"
        assert "ModuleNotFoundError" in stack(f"{python} -c 'import litellm_enterprise' 2>&1", fails=True)


def test_each_unit_is_bedplates_and_enabled(stack: Stack) -> None:
    names = [f"{name}.service" for name in boot_services()]
    shown = stack(f"systemctl show --property=FragmentPath,UnitFileState {' '.join(names)}")
    units = [set(unit.splitlines()) for unit in shown.split("\n\n")]
    assert units == [{f"FragmentPath=/etc/systemd/system/{name}", "UnitFileState=enabled"} for name in names]


def test_systemd_applies_the_bounds_of_each_service(stack: Stack) -> None:
    """Shown as properties, because no lab host may run out of memory to see who is killed last."""
    names = [f"{name}.service" for name in boot_services()]
    wanted = ("Id", "MemoryMax", "TasksMax", "CPUWeight", "OOMScoreAdjust", "OOMPolicy", "Restart")
    shown = stack(f"systemctl show --property={','.join(wanted)} {' '.join(names)}")
    units = [dict(line.split("=", 1) for line in unit.splitlines()) for unit in shown.split("\n\n")]
    assert [unit["Id"] for unit in units] == names
    lasting = {unit["Id"].removesuffix(".service"): unit for unit in units if unit["Restart"] == "always"}
    for unit in units:
        assert "infinity" not in (unit["MemoryMax"], unit["TasksMax"]), unit
        assert unit["CPUWeight"] != "[not set]", unit
    scores = {name: int(unit["OOMScoreAdjust"]) for name, unit in lasting.items()}
    last = {"bedplate-gateway", "bedplate-edge", "bedplate-exporter", "node-exporter"}
    assert {name for name, score in scores.items() if score == min(scores.values())} == last
    assert max(scores, key=scores.__getitem__) == "ollama"
    assert {unit["OOMPolicy"] for unit in lasting.values()} == {"continue"}
    # The processes have what systemd shows, but that a container may be forbidden to lower a score.
    for name, score in scores.items():
        pid = stack(f"systemctl show --property=MainPID --value {name}").strip()
        assert int(stack(f"cat /proc/{pid}/oom_score_adj")) in (score, max(score, 0)), name


def test_the_packages_unit_of_the_node_exporter_is_masked(stack: Stack) -> None:
    state = stack("systemctl show --property=LoadState --value prometheus-node-exporter.service")
    assert state.strip() == "masked"


def test_each_unit_is_sandboxed(stack: Stack) -> None:
    names = " ".join(boot_services())
    shown = stack(
        f"for name in {names}; do systemd-analyze security --no-pager $name.service | tail --lines=1; done"
    )
    exposure = {name: float(value) for name, value in re.findall(r"for (\S+)\.service: ([\d.]+) ", shown)}
    print(f"\nexposure: {exposure}")
    assert list(exposure) == boot_services()
    assert {name: value for name, value in exposure.items() if value > MAX_EXPOSURE} == {}


def test_systemd_finds_no_fault_in_the_units(stack: Stack) -> None:
    files = " ".join(f"/etc/systemd/system/{name}.service" for name in boot_services())
    assert stack(f"systemd-analyze verify --man=no {files} 2>&1") == ""


def test_only_api_prometheus_and_dashboard_listen_on_the_network(stack: Stack) -> None:
    sockets = stack("ss --no-header --listening --numeric --tcp").splitlines()
    addresses = {line.split()[3] for line in sockets}
    public = {address for address in addresses if not PRIVATE.match(address)}
    assert public == {f"{stack.address}:{port}" for port in (8000, 9090, 3001)}


def test_ollama_runs_in_a_login_shell(stack: Stack) -> None:
    assert stack.model in stack("bash -lc 'ollama list'")


def test_no_unit_failed(stack: Stack) -> None:
    assert stack("systemctl list-units --failed --plain --no-legend") == ""
