"""The house rules of the roles: what they may read, how they are declared and in which order they work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment, TemplateError, nodes

from tests.support.rendering import wired_names

ROOT = Path(__file__).resolve().parents[3]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
# Roles that others call with inputs of their own.
SHARED = ("python_app",)
STEPS = ("validate", "probe", "install", "configure", "service", "models")
TAGS = {"validate.yml": "always", "probe.yml": ["never", "gpu-probe"]}
UNIT = r"[a-z-]+@?\.(?:service|timer|target)"
# Keys of tasks whose values are bare expressions.
EXPRESSIONS = ("when", "that", "until", "failed_when", "changed_when")
pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
JINJA = Environment(trim_blocks=True, extensions=["jinja2.ext.do"])  # noqa: S701 - parses only
# In rules the usual brackets are Prometheus'.
RULES_JINJA = JINJA.overlay(variable_start_string="[[", variable_end_string="]]")


def load(path: Path) -> Any:
    """Read a YAML file; an absent one is empty."""
    return yaml.safe_load(path.read_text()) if path.exists() else {}


def spec(role: str, entry: str = "main") -> dict[str, dict[str, Any]]:
    """The declared options of a role's entry point."""
    found: dict[str, dict[str, Any]] = load(ROOT / "roles" / role / "meta/argument_specs.yml")[
        "argument_specs"
    ][entry]["options"]
    return found


def expressions(value: Any, bare: bool = False) -> Iterator[str]:
    """Every Jinja template in a YAML value; bare conditions become one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from expressions(inner, key in EXPRESSIONS)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner, bare)
    elif isinstance(value, str):
        yield "{{ " + value + " }}" if bare and "{{" not in value else value


def names_read(template: str, environment: Environment = JINJA) -> set[str]:
    """The variables that a template reads."""
    return {name.name for name in environment.parse(template).find_all(nodes.Name) if name.ctx == "load"}


def tasks_of(role: str) -> Iterator[dict[str, Any]]:
    """Every task of a role; a block's are its own."""
    found = [task for path in sorted((ROOT / "roles" / role / "tasks").iterdir()) for task in load(path)]
    for task in found:
        found += [inner for part in ("block", "rescue", "always") for inner in task.get(part, ())]
        yield task


def installed_units(role: str) -> list[str]:
    """The units that a role installs, as units or as files."""
    names = set()
    for task in tasks_of(role):
        # A list, or an expression with lists in it.
        arguments = task.get("service_files", {})
        names |= set(re.findall(UNIT, str(arguments.get("units", ""))))
        names |= set(re.findall(rf"/systemd/({UNIT})\.j2", str(arguments.get("files", ""))))
    return sorted(names)


def templates(role: str) -> Iterator[tuple[str, str]]:
    """Each template of a role with its file: tasks, handlers, variables, files to be filled in and units."""
    folder = ROOT / "roles" / role
    for path in sorted(folder.glob("*/*.yml")):
        if path.parent.name != "meta":
            for text in expressions(load(path)):
                yield str(path.relative_to(ROOT)), text
    units = [ROOT / "templates/systemd" / f"{unit}.j2" for unit in installed_units(role)]
    for path in [*sorted(folder.glob("templates/*")), *units]:
        text = path.read_text()
        if path.name.endswith(".rules.yml.j2"):
            text = "".join("{{ " + name + " }}" for name in sorted(names_read(text, RULES_JINJA)))
        yield str(path.relative_to(ROOT)), text


@pytest.mark.parametrize("role", ROLES)
def test_a_role_reads_its_own_variables_only(role: str) -> None:
    others = tuple(
        f"{prefix}{other}_" for other in ROLES if other not in (role, "bedplate") for prefix in ("", "__")
    )
    for file, template in templates(role):
        for name in names_read(template):
            assert not name.startswith(others), f"{file} reads {name}"


def test_every_unit_is_installed_by_one_role() -> None:
    installed = sorted(unit for role in ROLES for unit in installed_units(role))
    templates = sorted(path.stem for path in (ROOT / "templates/systemd").glob("[a-z]*.j2"))
    assert installed == templates


@pytest.mark.parametrize("role", ROLES)
def test_a_changed_unit_notifies_a_handler(role: str) -> None:
    handlers = {handler["name"] for handler in load(ROOT / "roles" / role / "handlers/main.yml")}
    for task in tasks_of(role):
        units = set(re.findall(UNIT, str(task.get("service_files", {}).get("units", ""))))
        # Nothing runs in a target. bedplate-heal@ runs anew for each question, gpu-devices once at boot.
        resting = {"bedplate.target", "bedplate-heal@.service", "bedplate-heal@.timer", "gpu-devices.service"}
        needed = {f"Restart {unit.partition('.')[0]}" for unit in units - resting}
        notified = set(re.findall(r"Restart [a-z-]+", str(task.get("notify", ""))))
        assert needed <= notified & handlers, task["name"]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_names_no_group(role: str) -> None:
    for file, template in templates(role):
        assert not names_read(template) & {"groups", "group_names", "hostvars"}, file


def test_such_readings_are_found() -> None:
    task = {
        "debug": {"msg": "{{ hostvars['a'].b }} {% if ollama_port %}{% endif %}"},
        "when": "group_names | length",
    }
    read = {name for text in expressions(task) for name in names_read(text)}
    assert read == {"hostvars", "ollama_port", "group_names"}
    with pytest.raises(TemplateError):
        names_read("{{ unclosed")


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_specification_agree(role: str) -> None:
    options = spec(role)
    defaults = load(ROOT / "roles" / role / "defaults/main.yml") or {}
    assert defaults.keys() <= options.keys()
    for name, value in defaults.items():
        assert re.match(rf"(__)?{role}_", name), name
        assert not options[name].get("required"), name
        if "{{" in str(value):
            assert "default" not in options[name], f"{name} is computed"
        else:
            assert options[name].get("default") == value, name
    for name, option in options.items():
        assert option["description"].endswith("."), name
        if "default" in option:
            assert name in defaults, f"{name} has a default in the specification only"


@pytest.mark.parametrize("role", sorted(set(ROLES) - set(SHARED)))
def test_options_without_a_default_are_wired_or_may_be_absent(role: str) -> None:
    wiring = wired_names()
    wired = {name for names in wiring.values() for name in names}
    group_vars = "".join(path.read_text() for path in (ROOT / "playbooks/group_vars").rglob("*.yml"))
    defaults = load(ROOT / "roles" / role / "defaults/main.yml") or {}
    for name, option in spec(role).items():
        assert option.get("required", False) == (name in wired), name
        assert ("(wired)" in option["description"]) == (name in wired), name
        if name not in wired and name not in defaults:
            assert name in group_vars, f"{name} is read nowhere"
            unguarded = re.findall(rf"\b{name}\b(?! \| default\()", group_vars)
            assert not unguarded, f"{name} may be absent, but something relies on it"


def test_every_wired_name_is_declared_by_a_role() -> None:
    declared = {name for role in ROLES for name in spec(role)}
    # The playbooks themselves use them.
    assert {name for names in wired_names().values() for name in names} - declared <= {
        "bedplate_openings",
        "bedplate_secrets_file",
        "bedplate_services",
    }


@pytest.mark.parametrize("role", ROLES)
def test_a_role_works_in_order(role: str) -> None:
    tasks = ROOT / "roles" / role / "tasks"
    entries = load(ROOT / "roles" / role / "meta/argument_specs.yml")["argument_specs"]
    assert entries.keys() == {"main", *({"validate"} if (tasks / "validate.yml").exists() else ())}
    assert entries.get("validate", entries["main"]) == entries["main"]
    if role in SHARED:
        return
    main = load(tasks / "main.yml")
    steps = [
        task.get("ansible.builtin.import_tasks") or task["ansible.builtin.include_tasks"] for task in main
    ]
    files = [step["file"] if isinstance(step, dict) else step for step in steps]
    assert files == [f"{step}.yml" for step in STEPS if (tasks / f"{step}.yml").exists()]
    beside = {path.name for path in tasks.iterdir()} - {"main.yml", *files}
    texts = "".join(path.read_text() for path in [*tasks.iterdir(), *(ROOT / "playbooks").glob("*.yml")])
    for file in beside:
        role_file = rf"(name: {role}\n +tasks_from: {Path(file).stem}\n)"
        called = rf"{role_file}|((import|include)_tasks:(\n +file:)? {file}\n)"
        assert re.search(called, texts), f"nobody calls {file}"
    assert [task.get("tags") for task in main] == [TAGS.get(file) for file in files]


def test_preflight_asks_every_role_that_validates() -> None:
    plays = load(ROOT / "playbooks/preflight.yml")
    asked = [
        task["ansible.builtin.import_role"]["name"]
        for play in plays
        for task in play["tasks"]
        if task.get("ansible.builtin.import_role", {}).get("tasks_from") == "validate"
    ]
    assert sorted(asked) == [role for role in ROLES if (ROOT / f"roles/{role}/tasks/validate.yml").exists()]
    assert {play["tags"] for play in plays} == {"always"}


def test_the_wiring_assumes_the_defaults_of_the_roles() -> None:
    """Defaults of roles cannot be read from outside, so group_vars name some again."""
    defaults = {
        name: value
        for role in ROLES
        for name, value in (load(ROOT / f"roles/{role}/defaults/main.yml") or {}).items()
    }
    named = [
        (name, int(value))
        for file in (ROOT / "playbooks").rglob("*.yml")
        for name, value in re.findall(r"\b([a-z_]+) \| default\((\d+)\)", file.read_text())
        if name in defaults
    ]
    assert len(named) > 10
    assert [(name, value) for name, value in named if defaults[name] != value] == []


def environments() -> Iterator[tuple[str, Any]]:
    """The environment of each task and play, with its file."""
    files = [*(ROOT / "roles").glob("*/*/*.yml"), *(ROOT / "playbooks").rglob("*.yml"), ROOT / "site.yml"]
    for path in files:
        entries = [load(path)]
        for entry in entries:
            if isinstance(entry, list):
                entries += entry
            elif isinstance(entry, dict):
                entries += entry.values()
                if "environment" in entry:
                    yield str(path.relative_to(ROOT)), entry["environment"]


def test_no_environment_of_a_task_has_a_secret() -> None:
    """Ansible puts it into the arguments of the remote shell, which ps and sudo's log show."""
    found = list(environments())
    assert len(found) > 10
    for path, environment in found:
        if isinstance(environment, dict):
            # The names of files.
            values = [value for name, value in environment.items() if not name.endswith("_FILE")]
            assert "{{" not in str(values), path
        else:
            assert environment == "{{ bedplate_download_environment }}", path
