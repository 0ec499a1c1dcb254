"""meta/host.yml: each role declares all that its tasks and units leave on a host, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from ansible.module_utils import host_record
from jinja2.nativetypes import NativeEnvironment

from tests.support.declarations import DECLARING, declared
from tests.unit.roles.test_roles import ROLES, ROOT, SHARED, UNIT, installed_units, load, tasks_of

# All but those of every host.
OF_GROUPS = set(DECLARING) - {"bedplate", "node_exporter"}
KINDS = {"models", "samples", "usage"}
# Modules with which a role writes to a host, and the argument that says where.
WRITERS = {
    "ansible.builtin.copy": "dest",
    "ansible.builtin.template": "dest",
    "ansible.builtin.unarchive": "dest",
    "ansible.builtin.file": "path",
    "ansible.builtin.lineinfile": "path",
    "apt_components": "path",
    "download": "dest",
}
# What the wiring gives to a role.
WIRED = {
    "__bedplate_host.former_gateway": "litellm.service",
    "gateway_litellm_key_file": "/etc/bedplate/bedplate-gateway/litellm-key",
    "ollama_models_dir": "/var/lib/ollama/models",
    "prometheus_storage_dir": "/var/lib/prometheus/bedplate",
}
# systemd makes these folders for a unit; the last word of each is the folder's root.
UNIT_FOLDERS = {"StateDirectory": "/var/lib", "RuntimeDirectory": "/run"}


def literal(role: str, text: str) -> str:
    """Return a path of a task, without what only a run knows at its end."""
    names = {**load(ROOT / "roles" / role / "vars/main.yml"), **WIRED}
    while found := re.search(r"\{\{ ([\w.]+) \}\}", text):
        text = text.replace(found[0], str(names.get(found[1], "{% unknown %}")))
    return re.split(r"\{[{%]", text)[0].rstrip("/")


def written(role: str) -> Iterator[tuple[str, str, str]]:
    """Each path that a role's tasks write on the host: the task's name, the declaring role, and the path."""
    for task in tasks_of(role):
        if task.get("delegate_to") == "localhost":
            continue
        for module, argument in WRITERS.items():
            if module in task:
                yield task["name"], role, literal(role, task[module][argument])
        given = task.get("service_files", {})
        owner = given.get("role", role)
        # A loop over the masks of other roles, and the programs of other roles.
        if "{{" not in owner:
            for entry in given.get("files", []):
                yield task["name"], owner, literal(role, entry["path"])


@pytest.mark.parametrize("role", DECLARING)
def test_each_path_of_a_task_is_declared(role: str) -> None:
    paths = list(written(role))
    assert [path for path in paths if not declared(path[1]).covers(path[2])] == []
    assert all(path.startswith("/") for _, _, path in paths)


def test_such_paths_are_found() -> None:
    found = {path for role in DECLARING for _, _, path in written(role)}
    assert len(found) > 60
    assert {"/var/lib/ollama/import", "/opt/bedplate/ollama/releases", "/run/bedplate-download"} <= found
    assert not declared("ollama").covers("/opt/bedplate/other")


@pytest.mark.parametrize("role", DECLARING)
def test_each_unit_of_a_role_is_declared_and_installed(role: str) -> None:
    assert sorted(declared(role).units) == installed_units(role)


@pytest.mark.parametrize("role", DECLARING)
def test_each_user_of_a_task_is_declared(role: str) -> None:
    for task in tasks_of(role):
        users = re.findall(r"[a-z]+(?:-[a-z]+)*", str(task.get("service_files", {}).get("user", "")))
        assert set(users) <= {*declared(role).users, "edge", "groups"}, task["name"]


@pytest.mark.parametrize("role", DECLARING)
def test_the_folders_that_systemd_makes_for_a_unit_are_declared(role: str) -> None:
    declaration = declared(role)
    for unit in declaration.units:
        text = (ROOT / f"templates/systemd/{unit}.j2").read_text()
        for option, root in UNIT_FOLDERS.items():
            for folder in re.findall(rf"^{option}=(\S+)$", text, re.MULTILINE):
                assert declaration.covers(f"{root}/{folder}"), unit


@pytest.mark.parametrize("role", DECLARING)
def test_a_declaration_is_tidy(role: str) -> None:
    declaration = declared(role)
    assert set(declaration.data) <= KINDS
    given = yaml.safe_load((ROOT / "roles" / role / "meta/host.yml").read_text())
    assert all(given.values()), "leave out a key with nothing in it"
    for key in ("paths", "shared", "runtime", "whole"):
        assert getattr(declaration, key) == sorted(set(getattr(declaration, key))), key
    for path in [*declaration.paths, *declaration.shared, *declaration.runtime, *declaration.data_folders]:
        assert re.fullmatch(r"(/[\w.@-]+)+", path), path
    for unit in [*declaration.units, *declaration.masks]:
        assert re.fullmatch(UNIT, unit), unit


def test_the_default_of_a_folder_is_that_of_its_role() -> None:
    for role in DECLARING:
        text = (ROOT / "roles" / role / "meta/host.yml").read_text()
        for name, default in re.findall(r"(\w+) \| default\('([^']+)'\)", text):
            assert load(ROOT / "roles" / role / "defaults/main.yml")[name] == default


def test_no_path_is_declared_by_two_roles() -> None:
    """But traffic has the canary's metrics in the folder of the node exporter."""
    folders = [(role, path) for role in DECLARING for path in declared(role).paths]
    shared = {
        (one, other)
        for one, path in folders
        for other, folder in folders
        if one != other and host_record.is_inside(path, [folder])
    }
    assert shared == {("traffic", "node_exporter")}


@pytest.mark.parametrize(
    ("groups", "alertmanager", "roles"),
    [
        (["inference"], True, "gpu_driver ollama exporter"),
        (["gateway"], True, "gateway litellm traffic edge"),
        (["monitoring"], False, "edge prometheus dashboard"),
        (
            ["inference", "gateway", "monitoring"],
            True,
            " ".join(OF_GROUPS),
        ),
    ],
)
def test_the_groups_of_a_host_name_its_roles(groups: list[str], alertmanager: bool, roles: str) -> None:
    text = load(ROOT / "playbooks/group_vars/all/all.yml")["__bedplate_roles"]
    environment = NativeEnvironment()
    environment.filters["bool"] = bool
    found = environment.from_string(text).render(group_names=groups, alertmanager_enabled=alertmanager)
    assert sorted(found) == sorted(["bedplate", "node_exporter", *roles.split()])


@pytest.mark.parametrize("file", ["hosts", "inference", "gateway", "monitoring"])
def test_the_playbooks_install_the_roles_that_the_wiring_names(file: str) -> None:
    text = (ROOT / f"playbooks/{file}.yml").read_text()
    named = load(ROOT / "playbooks/group_vars/all/all.yml")["__bedplate_roles"]
    imported = re.findall(r"import_role:\n +name: (\w+)\n", text)
    assert imported
    assert [role for role in imported if f"'{role}'" not in named] == []


@pytest.fixture(scope="module")
def filters(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/filter_plugins/declarations.py")


def test_the_packages_of_a_host_are_those_of_its_roles(filters: ModuleType) -> None:
    assert filters.declared_packages(["node_exporter", "edge", "edge", "ollama"], str(ROOT)) == [
        "prometheus-node-exporter",
        "haproxy",
        "lego",
    ]


def test_the_units_of_missing_packages_are_masked(filters: ModuleType) -> None:
    roles = ["node_exporter", "edge", "prometheus"]
    assert filters.package_masks(roles, str(ROOT), ["haproxy", "prometheus", "curl"]) == [
        {"role": "edge", "unit": "haproxy.service"},
        {"role": "prometheus", "unit": "prometheus.service"},
    ]
    assert filters.package_masks(roles, str(ROOT), []) == []
    # The unit of each package that has one, by its name.
    for role in DECLARING:
        assert {unit.removesuffix(".service") for unit in declared(role).masks} <= set(
            declared(role).packages
        )


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("all", DECLARING),
        ("node_exporter", ["node_exporter"]),
        ("node-exporter", ["node_exporter"]),
        ("host-facts", ["node_exporter"]),
        ("bedplate-gateway", ["gateway"]),
        ("traffic-canary", ["traffic"]),
        ("ollama", ["ollama"]),
        ("", []),
        ("olama", []),
        # The others need it.
        ("bedplate", []),
        ("bedplate-heal@", []),
    ],
)
def test_what_a_name_removes(filters: ModuleType, name: str, roles: list[str]) -> None:
    assert filters.roles_to_remove(name, str(ROOT)) == roles


def test_each_service_can_be_removed_by_its_name(filters: ModuleType) -> None:
    services = load(ROOT / "playbooks/group_vars/all/services.yml")["bedplate_services"]
    assert [name for name in services if not filters.roles_to_remove(name, str(ROOT))] == []


def test_the_declarations_are_those_of_the_files(filters: ModuleType) -> None:
    assert filters.declaring_roles(str(ROOT)) == DECLARING
    texts = [Path(file).read_text() for file in filters.declaration_files(str(ROOT))]
    found = filters.declarations(texts, str(ROOT))
    assert [host_record.declaration_from(given).role for given in found] == DECLARING
    assert found[0]["file"] == "roles/alertmanager/meta/host.yml"


def test_the_metrics_of_each_healed_service_are_declared() -> None:
    services = load(ROOT / "playbooks/group_vars/all/services.yml")["bedplate_services"]
    folder = "/var/lib/node-exporter/textfile"
    files = sorted(f"{folder}/heal-{name}.prom" for name, row in services.items() if "heal" in row)
    assert [path for path in declared("node_exporter").whole if path.startswith(folder)] == files


def test_what_is_whole_is_declared() -> None:
    for role in DECLARING:
        declaration = declared(role)
        assert [path for path in declaration.whole if not declaration.covers(path)] == []


def test_no_role_has_two_kinds_of_data() -> None:
    """So a folder that another setting had named has the kind of the others."""
    assert [role for role in DECLARING if len(declared(role).data) > 1] == []


def test_each_role_declares() -> None:
    assert sorted(set(ROLES) - set(SHARED)) == DECLARING
