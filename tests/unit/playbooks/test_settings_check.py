"""settings_check: every setting of every role with values that could do harm, in process and in one run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
TABLE: dict[str, Any] = yaml.safe_load((ROOT / "playbooks/settings.yml").read_text())
ROWS: dict[str, Any] = TABLE["settings"]
KINDS: dict[str, Any] = TABLE["setting_kinds"]
HOST_NAME = "inventory_hostname"

# A valid value of each kind.
SAMPLES = {
    "account_or_empty": "ops@example.org",
    "address": "10.2.0.3",
    "alias": "team-1",
    "alias_or_empty": "team-1",
    "card": "10de:2bbf",
    "checksum": f"sha256:{'0' * 64}",
    "chip": "GB202",
    "control_file": "/srv/edge files/edge.crt",
    "control_file_or_empty": "edge.crt",
    "day": "2026-11-28",
    "directory": "https://acme.example.org:14000/dir",
    "dns_name": "llm.example.org",
    "engine_duration": "1h30m",
    "engine_keep_alive": "-1",
    "environment_name": "OLLAMA_FLASH_ATTENTION",
    "environment_value": "http://10.0.0.1:3128/?a=%20",
    "expiry": "2027-01-31T00:00:00Z",
    "host": "gpu1.example.org",
    "host_and_port": "10.2.0.9:9100",
    "host_path": "/srv/models-1/ollama",
    "job": "node",
    "kernel": "6.12.117+deb13-amd64",
    "line": "mail user",
    "mail": "Ops <ops@example.org>, b@example.org",
    "memory": "2G",
    "memory_share": "90%",
    "metrics_path": "/metrics",
    "model": "hf.co/bartowski/Llama-3.2:Q4_K_M",
    "model_or_empty": "llama3.2:3b",
    "parameter": "num_predict",
    "password": "a password of people",
    "reference": "http://10.0.0.1:5000/library/a:b",
    "release": "0.35.1",
    "retention_size": "5GB",
    "retention_time": "30d",
    "secret": "sk-0123456789abcdef",
    "source": "/srv/my models/small.gguf",
    "stack": "rack-2",
    "text": "{{ .System }}\n",
    "tls": "own",
    "url": "http://[fd00::1]:8000/llm/v1/",
    "url_or_empty": "http://10.2.0.9:4318",
    "url_of_hook": "https://hooks.example.org:8443/T0/B1?token=a%20b",
    "user": "bedplate",
    "wait": "30s",
}
TEXTS: dict[str, Any] = {
    "empty": "",
    "huge": "a" * 200_000,
    "negative": "-5",
    "newline inside": "a\nEnvironment=LD_PRELOAD=/tmp/x",
    "nul": "a\0b",
    "double quote": 'a"b',
    "single quote": "a'b",
    "backslash": "a\\",
    "percent": "a%hb",
    "dollar": "a${HOME}b",
    "braces": "{{ 7 * 7 }}",
    "unicode": "modèle\u2028🦙",
    "traversal": "../../etc",
    "traversal inside": "/srv/../etc",
    "space": "a b",
}
NUMBERS: dict[str, Any] = {
    **TEXTS,
    "huge": 10**30,
    "negative": -5,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "boolean": True,
}
# Added to a valid value.
ENDINGS = {
    "newline inside": "\n",
    "double quote": '"',
    "single quote": "'",
    "backslash": "\\",
    "percent": "%h",
    "dollar": "$HOME",
    "braces": "{{ 7 * 7 }}",
    "space": " #",
}
TYPES: dict[str, Any] = {"list": ["a"], "dictionary": {"a": 1}, "null": None}
CONTAINERS: dict[str, Any] = {
    "text": "a",
    "number": 7,
    "boolean": True,
    "null": None,
    "list of lists": [["a"]],
}

ON_CONTROL = "a path on the control machine is opened there, by the user who named it"
QUOTED = "the templates write it as JSON text"
DEFAULT = "an empty text means the default"
PLAIN_FILE = "systemd expands nothing in a file of environment variables, and the shell of a task quotes it"
SENT = "Ansible sends it to Ollama's API as JSON"
HASHED = "HAProxy gets its hash, and others send it encoded"
HEADER = "it stands in JSON and in a header of HTTP, where printable ASCII means itself"
MARKS = ("double quote", "single quote", "backslash", "percent", "dollar")
REST = (*MARKS, "negative", "braces", "unicode", "traversal", "traversal inside")
# Why a kind may have what looks dangerous.
HARMLESS: dict[str, dict[str, str]] = {
    "account_or_empty": {"empty": DEFAULT},
    "alias_or_empty": {"empty": DEFAULT},
    "url_or_empty": {"empty": DEFAULT},
    "checksum": {"empty": DEFAULT},
    "chip": {"space": "it only selects a row of the role's table"},
    "control_file": dict.fromkeys([*REST, "space"], ON_CONTROL),
    "environment_value": dict.fromkeys(
        ["negative", "percent", "dollar", "braces", "unicode", "traversal", "traversal inside", "space"],
        PLAIN_FILE,
    )
    | {"empty": "an empty variable"},
    "line": dict.fromkeys([*REST, "space"], QUOTED),
    "metrics_path": {"traversal inside": "the target's own server reads it"},
    "model": {"list": "a model has several fallbacks"},
    "model_or_empty": {"empty": DEFAULT},
    "secret": dict.fromkeys([*MARKS, "negative", "traversal", "traversal inside"], HEADER),
    "text": dict.fromkeys(
        ["empty", "newline inside", "space", *REST],
        SENT,
    )
    | {"list": "some parameters of Ollama have several values"},
    "user": {"negative": "only HAProxy and its clients use it"},
    "gpu_driver_vendor": {"empty": DEFAULT},
    "password": {"empty": DEFAULT} | dict.fromkeys([*MARKS, "braces", "space"], HASHED),
    "url_of_hook": dict.fromkeys(["percent", "dollar"], QUOTED),
}
HARMLESS["control_file_or_empty"] = HARMLESS["control_file"] | {"empty": DEFAULT}
HARMLESS["source"] = HARMLESS["control_file"]


class Case(NamedTuple):
    """A setting whose leaf `rule` has a value that could do harm."""

    setting: str
    rule: str
    what: str
    value: Any


@pytest.fixture(scope="module")
def plugin(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/action_plugins/settings_check.py")


def settings() -> dict[str, dict[str, Any]]:
    """The settings that a user may change, and the host's name."""
    found: dict[str, dict[str, Any]] = {HOST_NAME: {"type": "str"}}
    for file in sorted(ROOT.glob("roles/*/meta/argument_specs.yml")):
        specs = yaml.safe_load(file.read_text())["argument_specs"]
        if "validate" in specs:
            found |= {
                name: spec for name, spec in specs["main"]["options"].items() if not spec.get("required")
            }
    return found


SETTINGS = settings()


def leaves(rule: str, spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every part of a setting that is no list and no dictionary."""
    kind = spec.get("type", "str")
    if kind == "list":
        yield from leaves(f"{rule}[]", {**spec, "type": spec.get("elements", "str")})
    elif kind == "dict" and "options" in spec:
        for name, option in spec["options"].items():
            yield from leaves(f"{rule}.{name}", option)
    elif kind == "dict":
        yield from ((f"{rule}.{part}", {"type": "str"}) for part in ("KEY", "VALUE"))
    elif kind != "raw":
        yield rule, spec


LEAVES = {rule: leaf for name, spec in SETTINGS.items() for rule, leaf in leaves(name, spec)}


def sample(rule: str, spec: Mapping[str, Any]) -> Any:
    """A valid value of a leaf."""
    row = ROWS.get(rule)
    if isinstance(row, list):
        return row[0]
    if row:
        return SAMPLES[row]
    return spec["choices"][-1] if "choices" in spec else True


def setting_with(rule: str, spec: Mapping[str, Any], leaf: str, value: Any) -> Any:
    """A valid value of a setting, but for the leaf, which has this value."""
    kind = spec.get("type", "str")
    if kind == "list":
        inner = {**spec, "type": spec.get("elements", "str")}
        return [setting_with(f"{rule}[]", inner, leaf, value)]
    if kind == "dict" and "options" in spec:
        return {
            name: setting_with(f"{rule}.{name}", option, leaf, value)
            for name, option in spec["options"].items()
        }
    if kind == "dict":
        key, entry = (
            value if f"{rule}.{part}" == leaf else sample(f"{rule}.{part}", {}) for part in ("KEY", "VALUE")
        )
        return {key: entry}
    return value if rule == leaf else sample(rule, spec)


def cases() -> Iterator[Case]:
    """Every leaf with every value that could do harm, and every setting with a wrong type."""
    for name, spec in SETTINGS.items():
        for rule, leaf in leaves(name, spec):
            texts = NUMBERS if isinstance(ROWS.get(rule), list) else TEXTS
            values = [*texts.items(), *(() if rule.endswith(".KEY") else TYPES.items())]
            values += [(what, f"{sample(rule, leaf)}{mark}") for what, mark in ENDINGS.items()]
            for what, value in values:
                if what != "null" or leaf.get("default", "") is not None:
                    yield Case(name, rule, what, setting_with(name, spec, rule, value))
        if spec.get("type") in ("list", "dict"):
            for what, value in CONTAINERS.items():
                yield Case(name, name, what, value)


CASES = list(cases())


def test_every_part_of_a_setting_has_a_row_and_every_row_is_used() -> None:
    needed = {rule for rule, spec in LEAVES.items() if spec.get("type") != "bool" and "choices" not in spec}
    assert needed - ROWS.keys() == set()
    # One name of a dictionary may have a row of its own.
    assert {rule for rule in ROWS.keys() - needed if f"{rule.rpartition('.')[0]}.VALUE" not in ROWS} == set()
    assert {row for row in ROWS.values() if isinstance(row, str)} == KINDS.keys() == SAMPLES.keys()


def test_there_are_enough_cases() -> None:
    assert len(CASES) > 3000


def test_valid_values_are_accepted(plugin: ModuleType) -> None:
    checker = plugin.Checker(plugin.Table(TABLE))
    for name, spec in SETTINGS.items():
        assert list(checker.problems(name, name, setting_with(name, spec, "", None), spec)) == []
        if "default" in spec:
            assert list(checker.problems(name, name, spec["default"], spec)) == []


def test_every_harmful_value_is_refused_with_name_value_and_remedy_or_has_a_reason(
    plugin: ModuleType,
) -> None:
    checker = plugin.Checker(plugin.Table(TABLE))
    accepted: set[tuple[str, str]] = set()
    for case in CASES:
        found = list(checker.problems(case.setting, case.setting, case.value, SETTINGS[case.setting]))
        if not found:
            row = ROWS.get(case.rule)
            accepted.add((row if isinstance(row, str) else case.rule, case.what))
            continue
        assert len(found) == 1, (case.rule, case.what, found)
        name = (
            re.escape(case.rule)
            .replace(r"\[\]", r"\[0\]")
            .replace(r"\.KEY", r"")
            .replace(r"\.VALUE", r"\..+")
        )
        said = rf"{name}[^:]* (is|has) .+: .+\."
        assert re.fullmatch(said, found[0]), (case.rule, case.what, found)
        assert len(found[0]) < 400
        assert found[0].isprintable(), found
    assert accepted == {(kind, what) for kind, reasons in HARMLESS.items() for what in reasons}


def test_secrets_are_not_shown(plugin: ModuleType) -> None:
    checker = plugin.Checker(plugin.Table(TABLE))
    for name, value in {
        "edge_password": "shortword",
        "gateway_keys": [{"alias": "team", "secret": "shortword\n"}],
        "gateway_extra_backends": "shortword",
        "alertmanager_email": ["shortword"],
        "bedplate_proxy_environment": {"https_proxy": 'http://user:shortword@h"'},
    }.items():
        (found, *_) = checker.problems(name, name, value, SETTINGS[name])
        assert "shortword" not in found
        assert "not shown" in found


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("gateway_port", "8001"),
        ("ollama_keep_alive", 300),
        ("edge_tls", False),
        ("traffic_canary_enabled", "yes"),
        ("prometheus_first_token_seconds", "0.5"),
        ("gateway_max_output_tokens", None),
        ("alertmanager_email", {}),
        ("ollama_models", [{"name": "a:b", "pull": "http://10.0.0.1:5000/library/a:b"}]),
        (
            "ollama_models",
            [{"name": "a:b", "gguf": "/a", "parameters": {"stop": ["\n", "</s>"], "num_ctx": 4096}}],
        ),
    ],
)
def test_what_people_write_is_accepted(plugin: ModuleType, setting: str, value: Any) -> None:
    checker = plugin.Checker(plugin.Table(TABLE))
    assert list(checker.problems(setting, setting, value, SETTINGS[setting])) == []


PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - settings_check:
      register: checked
      ignore_errors: true
    - ansible.builtin.copy:
        content: "{{ dict(ansible_play_hosts | zip(results)) | to_json }}"
        dest: "{{ out }}"
        mode: "0600"
      delegate_to: localhost
      connection: local
      run_once: true
      vars:
        results: "{{ ansible_play_hosts | map('extract', hostvars) | map(attribute='checked') }}"
        ansible_python_interpreter: "{{ ansible_playbook_python }}"
"""


def check_in_a_run(
    tmp_path: Path, hosts: dict[str, dict[str, Any]], role: str = ""
) -> dict[str, dict[str, Any]]:
    """Return the result for each host of one run of Ansible."""
    (tmp_path / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    (tmp_path / "play.yml").write_text(PLAY.replace("settings_check:", f"settings_check: {{{role}}}"))
    command = [sys.executable, "-m", "ansible", "playbook", "-i", "inventory.json", "play.yml"]
    subprocess.run(
        [*command, "-e", "out=out.json"],
        cwd=tmp_path,
        env={**os.environ, "ANSIBLE_HOME": str(tmp_path / ".ansible"), "ANSIBLE_FORKS": "2"}
        | {"ANSIBLE_ACTION_PLUGINS": str(ROOT / "playbooks/action_plugins")},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    checked: dict[str, dict[str, Any]] = json.loads((tmp_path / "out.json").read_text())
    return checked


def test_a_role_gets_what_the_wiring_has_to_set(tmp_path: Path) -> None:
    wired: dict[str, Any] = {
        "litellm_deployments": [],
        "litellm_other_models": [],
        "litellm_allowed_addresses": [],
        "litellm_engine_timeout_seconds": 60,
        "litellm_traces_endpoint": "",
        "litellm_master_key_file": "/etc/key",
        "bedplate_managed": "Managed by Bedplate",
    }
    hosts = {
        "complete": wired,
        "without": {name: value for name, value in wired.items() if name != "litellm_master_key_file"},
        "wrong": {**wired, "litellm_deployments": 1},
        "setting": {**wired, "litellm_listen_port": "many"},
    }
    checked = check_in_a_run(tmp_path, hosts, "role: litellm")
    assert not checked["complete"]["failed"], checked["complete"]
    assert "missing required arguments: litellm_master_key_file" in checked["without"]["msg"]
    assert "litellm_deployments" in checked["wrong"]["msg"]
    assert checked["setting"]["msg"] == "litellm_listen_port is 'many': use a whole number."


def test_expressions_that_cannot_be_evaluated_are_refused_in_one_run(tmp_path: Path) -> None:
    """A host for each setting: the value of all is an expression without its variable, or none at all."""
    values = {"undefined": "{{ no_such_variable }}", "unfinished": "{{ "}
    hosts: dict[str, dict[str, Any]] = {
        f"{name.replace('_', '-')}-{what}": {name: value}
        for name in SETTINGS
        if name != HOST_NAME
        for what, value in values.items()
    }
    hosts["model-as-text"] = {"ollama_models": ["smollm2"]}
    hosts["valid"] = {"gateway_port": "{{ 8000 + 1 }}"}
    hosts["bad%name"] = {}
    checked = check_in_a_run(tmp_path, hosts)
    assert checked.keys() == hosts.keys()
    accepted = [host for host, result in checked.items() if not result["failed"]]
    assert accepted == ["valid"]
    for name in SETTINGS.keys() - {HOST_NAME}:
        for what, value in values.items():
            message = checked[f"{name.replace('_', '-')}-{what}"]["msg"]
            secret = "not shown here" in message
            assert message.startswith(
                f"{name} is {'not shown here' if secret else repr(value)}, which Ansible cannot"
            )
            assert message.endswith("): correct it.")
    assert checked["model-as-text"]["msg"] == (
        "ollama_models[0] is 'smollm2': write a dictionary, such as {NAME: VALUE}."
    )
    assert (
        checked["bad%name"]["msg"] == "inventory_hostname is 'bad%name': use letters, digits and . _ - only."
    )
