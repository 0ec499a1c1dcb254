"""module_utils/drift.py: each wrong of a table is one difference with its remedy; a right host has none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from ansible.module_utils import drift, host_record

NOW = 1_800_000_000
UNITS = "/etc/systemd/system"
KEYS = "/etc/bedplate/app/keys.json"
FOLDER = "/opt/bedplate/app/releases/1-abc"
MODELS = "/var/lib/app/models"
DECLARATION = {
    "users": ["app", "debian"],
    "units": ["app.service", "app.timer", "app-heal@.timer"],
    "paths": ["/etc/bedplate/app", "/opt/bedplate/app", "/usr/local/bin/app"],
    "packages": ["curl"],
    "tables": ["inet app"],
    "data": {"models": [MODELS]},
}
OWNED = {"owner": "root", "group": "app", "mode": "0640"}
ROOT_FILE = {"state": "file", "owner": "root", "group": "root", "mode": "0644"}
PATHS: dict[str, dict[str, Any]] = {
    "/etc/bedplate/app": {"state": "directory", **OWNED, "mode": "0750"},
    MODELS: {"state": "directory", **OWNED, "mode": "0750"},
    KEYS: {"state": "file", **OWNED, "sha256": "aa", "secret": True},
    "/etc/bedplate/app/rules.nft": {"state": "file", **OWNED, "sha256": "ab", "secret": False},
    "/opt/bedplate/app/current": {"state": "link", "target": "releases/1-abc/venv"},
    "/usr/local/bin/app": {"state": "link", "target": "/opt/bedplate/app/current/bin/app"},
    f"{UNITS}/app.service": {**ROOT_FILE, "sha256": "bb", "secret": False},
    f"{UNITS}/app.timer": {**ROOT_FILE, "sha256": "cc", "secret": False},
}
RUNS = {
    "load": "loaded",
    "active": "active",
    "sub": "running",
    "enabled": "enabled",
    "drop_ins": [],
    "stale": False,
}
USER = {
    "state": "present",
    "id": 990,
    "shell": "/usr/sbin/nologin",
    "home": "/var/lib/app",
    "group": "app",
    "groups": [],
    "members": [],
    "password": False,
}
SSH = {
    "protocol": "tcp",
    "address": "192.0.2.1",
    "port": 22,
    "process": "sshd",
    "pid": 9,
    "unit": "ssh.service",
}
OWN = {
    "protocol": "tcp",
    "address": "192.0.2.1",
    "port": 8000,
    "process": "app",
    "pid": 8,
    "unit": "app.service",
}


def expectation() -> Any:
    return drift.Expectation(
        "one",
        {
            "app": {
                "declaration": copy.deepcopy(DECLARATION),
                "services": {"app.service": "active", "app.timer": "active", "app-heal@x.timer": "active"},
                "openings": [{"port": 8000, "unit": "app", "address": "192.0.2.1"}],
                "packages": ["curl"],
                "models": {MODELS: [{"name": "smollm2:135m"}]},
                "tables": ["inet app"],
            }
        },
        ["/etc/systemd/system/app.service.d/known.conf", "tcp *:7777"],
        {"listeners": [["tcp", 445]], "tables": {"inet app": "dd"}, "mounts": [MODELS]},
    )


def records() -> dict[str, Any]:
    units = ["app.service", "app.timer"]
    return {"app": host_record.Record("app", copy.deepcopy(PATHS), units=units, users=["app"])}


def right_host() -> dict[str, Any]:
    """Return what a host is like that is as expected."""
    return copy.deepcopy(
        {
            "now": NOW,
            "silent": [],
            "paths": {
                path: {name: value for name, value in state.items() if name != "secret"}
                for path, state in PATHS.items()
            },
            "times": dict.fromkeys(PATHS, NOW - 1000),
            "strays": [KEYS],
            "releases": {
                FOLDER: {
                    "complete": True,
                    "newer": [],
                    "lock": {"httpx": ["1.0", "1.1"], "only-on-windows": ["2"]},
                    "packages": {"httpx": "1.0"},
                }
            },
            "programs": {"/usr/local/bin/app": "/usr/local/bin/app"},
            "held": [],
            "models": {
                "reasons": {"smollm2:135m": ""},
                "undeclared": [],
                "owners": {f"{MODELS}/blobs": PATHS[MODELS]["owner"]},
            },
            "units": dict.fromkeys(("app.service", "app.timer", "app-heal@x.timer"), RUNS),
            "processes": {"app.service": {"started": NOW - 900, "changed": NOW - 900, "replaced": ""}},
            "users": {"app": USER, "debian": {**USER, "home": "/nonexistent", "group": "nogroup"}},
            "packages": {"curl": "install ok installed"},
            "listeners": [SSH, OWN, {**SSH, "port": 445, "unit": "smbd.service"}],
            "tables": {"inet app": "dd"},
            "mounts": [{"point": MODELS, "source": "/dev/sdb1", "read_only": False, "inside": True}],
        }
    )


class Wrong(NamedTuple):
    """A row: what changes on the host, and the difference that names it."""

    kind: str
    what: str
    change: Callable[[dict[str, Any]], Any]
    remedy: str
    seen: str = ""


def at(path: str, **changed: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda host: host["paths"][path].update(changed)


def become(path: str, **state: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda host: host["paths"].update({path: state})


def unit(name: str, **changed: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda host: host["units"].update({name: {**RUNS, **changed}})


def user(**changed: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda host: host["users"]["app"].update(changed)


def release(**changed: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda host: host["releases"][FOLDER].update(changed)


def listens(**changed: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda host: host["listeners"].append({**SSH, "process": "nc", "unit": "x.scope", **changed})


def written(path: str) -> Callable[[dict[str, Any]], Any]:
    return lambda host: host["times"].update({path: NOW - 10})


DEPLOY = "ansible-playbook site.yml --tags app"
SITE = "ansible-playbook site.yml"
AGAIN = f"rm {FOLDER}/.complete && {DEPLOY}"
DROP_IN = f"{UNITS}/app.service.d/weak.conf"
APP = f"{UNITS}/app.service"
CURRENT = "/opt/bedplate/app/current"
WRONGS = {
    "a key's limit": Wrong("file", KEYS, at(KEYS, sha256="a1"), DEPLOY, "other content"),
    "keys readable by all": Wrong("file", KEYS, at(KEYS, mode="0644"), DEPLOY, "mode 0644"),
    "keys of another owner": Wrong("file", KEYS, at(KEYS, owner="app"), DEPLOY, "owner app"),
    "keys of another group": Wrong("file", KEYS, at(KEYS, group="root"), DEPLOY, "group root"),
    "keys removed": Wrong("file", KEYS, become(KEYS, state="absent"), DEPLOY, "nothing"),
    "keys a link": Wrong("file", KEYS, become(KEYS, state="link", target="/srv/keys"), DEPLOY, "a link"),
    "keys a folder": Wrong(
        "file",
        KEYS,
        become(KEYS, state="directory", **OWNED),
        f"move {KEYS} away, then {DEPLOY}",
        "a directory",
    ),
    "a folder's mode": Wrong("file", "/etc/bedplate/app", at("/etc/bedplate/app", mode="0777"), DEPLOY),
    "a stray file": Wrong(
        "file",
        "/etc/bedplate/app/keys.json.bak",
        lambda host: host["strays"].append("/etc/bedplate/app/keys.json.bak"),
        "rm -r /etc/bedplate/app/keys.json.bak",
    ),
    "a stray program": Wrong(
        "file",
        "/opt/bedplate/x",
        lambda host: host["strays"].append("/opt/bedplate/x"),
        "rm -r /opt/bedplate/x",
    ),
    "another release": Wrong(
        "file", CURRENT, at(CURRENT, target="releases/0"), DEPLOY, "a link to releases/0"
    ),
    "the command replaced": Wrong(
        "file", "/usr/local/bin/app", become("/usr/local/bin/app", **ROOT_FILE, sha256="x"), DEPLOY, "a file"
    ),
    "another command first on PATH": Wrong(
        "program",
        "app",
        lambda host: host["programs"].update({"/usr/local/bin/app": "/usr/local/sbin/app"}),
        "rm /usr/local/sbin/app",
    ),
    "a unit edited": Wrong("unit", APP, at(APP, sha256="b1"), DEPLOY),
    "a unit removed": Wrong("unit", APP, become(APP, state="absent"), DEPLOY),
    "a unit masked": Wrong(
        "unit", APP, become(APP, state="link", target="/dev/null"), DEPLOY, "a link to /dev/null"
    ),
    "a unit's owner": Wrong("unit", APP, at(APP, owner="app"), DEPLOY),
    "a unit's mode": Wrong("unit", APP, at(APP, mode="0666"), DEPLOY),
    "an extra unit": Wrong(
        "unit",
        f"{UNITS}/bedplate-x.service",
        lambda host: host["strays"].append(f"{UNITS}/bedplate-x.service"),
        f"systemctl disable --now bedplate-x.service; rm -f {UNITS}/bedplate-x.service;",
    ),
    "a unit not loaded again": Wrong(
        "unit",
        "app.service",
        unit("app.service", stale=True),
        "systemctl daemon-reload && systemctl restart app.service",
    ),
    "a drop-in": Wrong(
        "drop-in",
        DROP_IN,
        unit("app.service", drop_ins=[DROP_IN]),
        f"rm {DROP_IN} && systemctl daemon-reload && systemctl restart app.service, or list it in",
        "settings for app.service",
    ),
    "a service masked": Wrong(
        "service",
        "app.service",
        unit("app.service", load="masked"),
        f"systemctl unmask app.service && {DEPLOY}",
    ),
    "a service without a unit": Wrong(
        "service", "app.service", unit("app.service", load="not-found"), DEPLOY
    ),
    "a service stopped": Wrong(
        "service",
        "app.service",
        unit("app.service", active="inactive", sub="dead"),
        "systemctl start app.service",
        "inactive (dead)",
    ),
    "a service failed": Wrong(
        "service",
        "app.service",
        unit("app.service", active="failed", sub="failed"),
        "journalctl -u app.service -n 50",
    ),
    "a service that crashes again and again": Wrong(
        "service",
        "app.service",
        unit("app.service", active="activating", sub="auto-restart"),
        "journalctl -u app.service -n 50",
    ),
    "a service disabled": Wrong(
        "service", "app.service", unit("app.service", enabled="disabled"), "systemctl enable app.service"
    ),
    "a timer stopped": Wrong(
        "service", "app.timer", unit("app.timer", active="inactive", sub="dead"), "systemctl start app.timer"
    ),
    "an instance of a timer stopped": Wrong(
        "service",
        "app-heal@x.timer",
        unit("app-heal@x.timer", active="inactive", sub="dead"),
        "systemctl start app-heal@x.timer",
    ),
    "a unit unknown to systemd": Wrong(
        "service", "app.timer", lambda host: host["units"].pop("app.timer"), DEPLOY, "no unit"
    ),
    "a process older than its keys": Wrong("process", "app.service", written(KEYS), "systemctl restart app"),
    "a process older than its unit": Wrong("process", "app.service", written(APP), "systemctl restart app"),
    "a process older than its release": Wrong(
        "process", "app.service", written(CURRENT), "systemctl restart app"
    ),
    "a process whose program was replaced": Wrong(
        "process",
        "app.service",
        lambda host: host["processes"]["app.service"].update(replaced="/usr/bin/app"),
        "systemctl restart app",
    ),
    "a user removed": Wrong("user", "app", lambda host: host["users"].pop("app"), DEPLOY, "none"),
    "a user with a shell": Wrong(
        "user",
        "app",
        lambda host: host["users"]["app"].update({"shell": "/bin/bash"}),
        "usermod --shell /usr/sbin/nologin app",
    ),
    "a user with another home": Wrong("user", "app", user(home="/root"), DEPLOY),
    "a user with another group": Wrong("user", "app", user(group="root"), "usermod --gid app app"),
    "a user in another group": Wrong("user", "app", user(groups=["sudo"]), "gpasswd --delete app sudo"),
    "somebody in its group": Wrong("user", "app", user(members=["eve"]), "gpasswd --delete eve app"),
    "a user with a password": Wrong("user", "app", user(password=True), "passwd --lock app"),
    "a user with root's number": Wrong("user", "app", user(id=0), f"userdel app, then {DEPLOY}"),
    "a shell of Debian's user": Wrong(
        "user",
        "debian",
        lambda host: host["users"]["debian"].update({"shell": "/bin/sh"}),
        "usermod --shell /usr/sbin/nologin debian",
    ),
    "a package removed": Wrong(
        "package", "curl", lambda host: host["packages"].clear(), SITE, "not installed"
    ),
    "a package's files left": Wrong(
        "package", "curl", lambda host: host["packages"].update(curl="deinstall ok config-files"), SITE
    ),
    "a package half installed": Wrong(
        "package", "curl", lambda host: host["packages"].update(curl="install ok half-configured"), SITE
    ),
    "a held package released": Wrong(
        "package",
        "driver",
        lambda host: (host["held"].append("driver"), host["packages"].update(driver="install ok installed")),
        "apt-mark hold driver",
        "not held",
    ),
    "a Python package of another version": Wrong(
        "release", f"{FOLDER}: httpx", release(packages={"httpx": "0.9"}), AGAIN, "0.9"
    ),
    "a Python package added": Wrong(
        "release", f"{FOLDER}: evil", release(packages={"httpx": "1.0", "evil": "1"}), AGAIN, "1"
    ),
    "a file of a release changed": Wrong(
        "release", f"{FOLDER}/venv/x.py", release(newer=[f"{FOLDER}/venv/x.py"]), AGAIN
    ),
    "half a release": Wrong("release", FOLDER, release(complete=False), DEPLOY),
    "a model with other parameters": Wrong(
        "model",
        "smollm2:135m",
        lambda host: host["models"]["reasons"].update({"smollm2:135m": "its parameters differ: num_ctx"}),
        "ansible-playbook site.yml --tags ollama",
    ),
    "a model that nobody declared": Wrong(
        "model",
        "llama3.2:3b",
        lambda host: host["models"]["undeclared"].append("llama3.2:3b"),
        "declare it in ollama_models, or run ollama rm llama3.2:3b",
    ),
    "a folder in which no model can be stored": Wrong(
        "file",
        f"{MODELS}/blobs",
        lambda host: host["models"]["owners"].update({f"{MODELS}/blobs": "nobody"}),
        f"chown --recursive {PATHS[MODELS]['owner']}: {MODELS}/blobs",
    ),
    "an undeclared listener": Wrong(
        "listener",
        "tcp 0.0.0.0:4444",
        listens(address="0.0.0.0", port=4444),  # noqa: S104 - the text of a row
        "stop it (ss -ltunp sport = :4444), or list it in bedplate_known_changes",
        "nc, x.scope",
    ),
    "an undeclared listener of UDP": Wrong(
        "listener",
        "udp 192.0.2.1:4444",
        listens(protocol="udp", port=4444),
        "stop it (ss -ltunp sport = :4444), or list it in bedplate_known_changes",
    ),
    "a service of ours elsewhere": Wrong(
        "listener",
        "tcp 192.0.2.1:445",
        listens(unit="app.service", port=445),
        "systemctl cat app; ansible-playbook site.yml",
    ),
    "the table missing": Wrong(
        "firewall",
        "table inet app",
        lambda host: host["tables"].update({"inet app": ""}),
        "nft -f",
        "no such table",
    ),
    "other rules in the table": Wrong(
        "firewall",
        "table inet app",
        lambda host: host["tables"].update({"inet app": "ee"}),
        "nft -f",
        "other rules",
    ),
    "a read-only mount over the store": Wrong(
        "mount", MODELS, lambda host: host["mounts"][0].update(read_only=True), f"findmnt {MODELS}"
    ),
    "a mount over the keys": Wrong(
        "mount",
        KEYS,
        lambda host: host["mounts"].append(
            {"point": KEYS, "source": "tmpfs", "read_only": False, "inside": True}
        ),
        f"umount {KEYS}",
    ),
    "a disk that hangs": Wrong(
        "disk", MODELS, lambda host: host["silent"].append(MODELS), f"findmnt -T {MODELS}; dmesg | tail"
    ),
}


def differences(host: dict[str, Any], rendered: list[dict[str, Any]] | None = None) -> list[Any]:
    return list(drift.find_differences(expectation(), records(), host, rendered))


def test_a_host_as_expected_has_no_difference() -> None:
    assert differences(right_host()) == []


def test_the_table_has_sixty_rows() -> None:
    assert len(WRONGS) >= 60


@pytest.mark.parametrize("name", WRONGS)
def test_each_wrong_is_one_difference_with_its_remedy(name: str) -> None:
    wrong = WRONGS[name]
    host = right_host()
    wrong.change(host)
    found = differences(host)
    assert [(each.kind, each.what, each.known) for each in found] == [(wrong.kind, wrong.what, False)]
    assert found[0].remedy.startswith(wrong.remedy)
    assert found[0].seen.startswith(wrong.seen)
    assert found[0].kind in drift.KINDS


def test_a_secret_is_never_shown() -> None:
    host = right_host()
    host["paths"][KEYS]["sha256"] = "f" * 64
    (found,) = differences(host)
    assert "f" * 8 not in str(vars(found))
    assert "aa" not in found.expected


@pytest.mark.parametrize(
    "change",
    [
        unit("app.service", drop_ins=["/etc/systemd/system/app.service.d/known.conf"]),
        listens(address="0.0.0.0", port=7777),  # noqa: S104 - the text of a row
    ],
)
def test_what_the_inventory_lists_is_known(change: Callable[[dict[str, Any]], Any]) -> None:
    host = right_host()
    change(host)
    assert [each.known for each in differences(host)] == [True]


@pytest.mark.parametrize(
    "change",
    [
        # A file of the future: the clock was wrong, then or now.
        lambda host: host["times"].update({KEYS: NOW + 60}),
        # A reload has read it.
        lambda host: (
            host["times"].update({KEYS: NOW - 10}),
            host["processes"]["app.service"].update(changed=NOW - 5),
        ),
        # The firewall's rules are no configuration of the service.
        written("/etc/bedplate/app/rules.nft"),
        # What asks a name server, and what gets the answer of a DHCP server.
        listens(protocol="udp", port=50000),
        listens(protocol="udp", port=68),
        # A package of another platform is in the lock only.
        release(lock={"httpx": "1.0", "pywin32": "1"}),
        unit("app.service", active="activating", sub="start-post"),
        unit("app.service", active="reloading", sub="reload"),
        lambda host: host["users"].pop("debian"),
        # The folder is on another disk.
        become("/etc/bedplate/app", state="link", target="/srv", to=PATHS["/etc/bedplate/app"]),
    ],
)
def test_what_is_no_difference(change: Callable[[dict[str, Any]], Any]) -> None:
    host = right_host()
    change(host)
    assert differences(host) == []


def rendered(**arguments: Any) -> dict[str, Any]:
    """Return the arguments of a task of the role `app`."""
    declaration = {**DECLARATION, "role": "app", "file": "host.yml"}
    return {"declaration": declaration, "hashes": {}, "files": [], "units": [], **arguments}


def as_deployed() -> dict[str, Any]:
    """Return the arguments of a task that leads to what is recorded."""
    files = [
        {"path": "/etc/bedplate/app", "state": "directory", "mode": "0750"},
        {"path": KEYS, "mode": "0640", "secret": True},
        {"path": "/etc/bedplate/app/rules.nft", "remote_src": "/run/rules", "mode": "640"},
        {"path": "/opt/bedplate/app/current", "state": "link", "target": "releases/1-abc/venv"},
        {"path": "/usr/local/bin/app", "state": "link", "target": "/opt/bedplate/app/current/bin/app"},
        {"path": "/etc/bedplate/app/former", "state": "absent"},
    ]
    hashes = {KEYS: "aa", f"{UNITS}/app.service": "bb", f"{UNITS}/app.timer": "cc"}
    return rendered(group="app", files=files, units=["app.service", "app.timer"], hashes=hashes)


def test_what_the_inventory_renders_as_recorded_is_no_difference() -> None:
    host = right_host()
    host["paths"]["/etc/bedplate/app/former"] = {"state": "absent"}
    assert differences(host, [as_deployed()]) == []


def test_an_inventory_that_was_never_deployed_differs() -> None:
    task = as_deployed()
    task["hashes"][KEYS] = "ff"
    task["units"] = ["app.service"]
    host = right_host()
    host["paths"]["/etc/bedplate/app/former"] = {**ROOT_FILE, "sha256": "1"}
    found = [(each.what, each.expected) for each in differences(host, [task])]
    assert found == [
        ("/etc/bedplate/app/former", "nothing"),
        (KEYS, "the declared content"),
        (f"{UNITS}/app.timer", "nothing"),
    ]


def test_a_role_that_was_not_installed_is_named() -> None:
    expected = expectation()
    expected.roles["other"] = {"declaration": {}, "services": {}}
    (found,) = drift.find_differences(expected, records(), right_host())
    assert (found.what, found.remedy) == ("role other", "ansible-playbook site.yml --tags other")
    host = {**right_host(), "paths": {}, "processes": {}, "strays": [], "listeners": []}
    both = drift.find_differences(expected, {}, {**host, "mounts": []}, [as_deployed()])
    assert [(each.kind, each.remedy) for each in both] == [("host", SITE), ("host", SITE)]


def test_a_run_of_some_roles_keeps_what_is_expected_of_the_others() -> None:
    old = expectation()
    new = expectation()
    new.roles["app"]["openings"] = []
    new.roles["other"] = {"declaration": {}}
    new.noted = {"listeners": [["tcp", 1]], "tables": {"inet app": "ff"}, "mounts": []}
    kept = drift.merged(old, new, ["other"])
    assert kept.roles["app"]["openings"] == old.roles["app"]["openings"]
    assert list(kept.roles) == ["app", "other"]
    # What listened before Bedplate came stays known; the rest is as after this run.
    assert kept.noted == {"listeners": [["tcp", 445]], "tables": {"inet app": "ff"}, "mounts": []}
    assert drift.merged(old, new, ["app"]).roles["app"]["openings"] == []
    assert "other" not in drift.merged(old, new, ["app"]).roles
    assert drift.merged(None, new, ["app"]) is new
