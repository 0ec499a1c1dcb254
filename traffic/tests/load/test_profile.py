"""Profiles: the built-in ones, and one sentence for each error in a profile."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from bedplate_traffic.errors import CannotStartError
from bedplate_traffic.load.profile import load_profile, parse_profile, read_builtin_profiles

GOOD: dict[str, Any] = {
    "max_seconds": 10,
    "classes": [
        {"name": "a", "load": {"shape": "constant", "rate": 1, "seconds": 5}},
        {"name": "b", "load": {"shape": "closed", "concurrency": 2, "requests": 5}},
    ],
    "thresholds": [{"class": "a", "metric": "failed", "equals": 0}],
}


def changed(path: str, value: Any) -> str:
    """Return the good profile with one setting changed, as YAML; the value `...` removes the setting."""
    profile = copy.deepcopy(GOOD)
    parent: Any = profile
    *keys, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in keys:
        parent = parent[key]
    if value is ...:
        del parent[last]
    else:
        parent[last] = value
    return yaml.safe_dump(profile)


def refusal(text: str) -> str:
    with pytest.raises(CannotStartError) as refused:
        parse_profile("profile p", text)
    message = str(refused.value)
    assert "\n" not in message
    return message.removeprefix("The profile p")


def test_a_valid_profile_is_parsed() -> None:
    classes = parse_profile("profile p", yaml.safe_dump(GOOD)).classes
    assert [traffic_class.name for traffic_class in classes] == ["a", "b"]


def test_the_builtin_profiles_are_valid() -> None:
    assert set(read_builtin_profiles()) == {
        "cancel",
        "coldstart",
        "priority",
        "ratelimit",
        "smoke",
        "soak",
        "tpm",
    }
    for name in read_builtin_profiles():
        assert load_profile(name)[1].description


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("max_second", 3, ": there is no setting max_second, did you mean max_seconds?"),
        ("classes.0.lod", 3, ": there is no setting classes.a.lod, did you mean load?"),
        ("classes.0.load.rtae", 3, ": there is no setting classes.a.load.rtae, did you mean rate?"),
        ("max_seconds", ..., ": max_seconds is missing."),
        ("classes.0.load.rate", ..., ": classes.a.load.rate is missing."),
        ("max_seconds", "soon", ": max_seconds is 'soon': input should be a valid number"),
        ("max_seconds", -1, ": max_seconds is -1: input should be greater than 0."),
        ("max_seconds", float("nan"), ": max_seconds is nan: input should be"),
        ("classes.0.load.rate", 0, ": classes.a.load.rate is 0: input should be greater than 0."),
        ("classes.0.load.shape", "sqare", ": classes.a.load is"),
        ("classes.1.load.requests", ..., ": classes.b.load: set seconds or requests, so that it ends."),
        ("classes.1.name", "a", ": two classes have the same name (a, a)."),
        ("classes.1.name", "A b", ": classes.A b.name is 'A b': string should match pattern"),
        ("classes", [], ": classes is []: list should have at least 1 item"),
        ("classes", 7, ": classes is 7: input should be a valid list."),
        ("thresholds.0.class", "c", ": thresholds name the class 'c', but the classes are a, b."),
        (
            "thresholds.0.metric",
            "end_to_end.p59",
            ": thresholds.0: there is no metric 'end_to_end.p59': did you mean end_to_end.p99?",
        ),
        ("thresholds.0.metric", "zz", ": thresholds.0: there is no metric 'zz': use answered, "),
        ("thresholds.0.equals", ..., ": thresholds.0: set min, max or equals."),
        (
            "classes.0.prompt_words",
            {"distribution": "uniform", "min": 5, "max": 2},
            ": classes.a.prompt_words: min 5 is above max 2.",
        ),
    ],
)
def test_a_wrong_setting_gets_one_sentence(path: str, value: Any, message: str) -> None:
    assert refusal(changed(path, value)).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", " contains no settings"),
        (
            "max_seconds: 9\nclasses: [{name: a, load: {shape: constant, rat: 1, seconds: 2}}]",
            ": there is no setting classes.a.load.rat, did you mean rate?",
        ),
        ("[1]", " contains no settings"),
        ("a: [", " is not valid YAML: "),
        ("a: b: c", " is not valid YAML: mapping values are not allowed here in line 1."),
        ("!!python/object:os.system {}", " is not valid YAML: "),
        ("[" * 2000, " is not valid YAML"),
    ],
)
def test_a_text_that_is_no_profile_gets_one_sentence(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smok", "There is no profile 'smok': did you mean smoke?"),
        ("xyz", "There is no profile 'xyz': use cancel, coldstart"),
        ("nowhere.yml", "The profile nowhere.yml cannot be read (No such file or directory)."),
    ],
)
def test_an_unknown_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(CannotStartError) as refused:
        load_profile(name)
    assert str(refused.value).startswith(message)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.yml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CannotStartError, match="is not UTF-8 text"):
        load_profile(str(file))


def test_a_profile_file_gives_the_profile_its_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text(yaml.safe_dump(GOOD))
    assert load_profile(str(file))[0] == "mine"
