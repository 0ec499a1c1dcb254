"""Profiles: what is kept, and one sentence for each thing that may be wrong with one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from traffic.profile import kept_profiles, load_profile, parse_profile
from traffic.target import CannotStartError

GOOD: dict[str, Any] = {
    "max_seconds": 10,
    "classes": [
        {"name": "a", "load": {"shape": "constant", "rate": 1, "seconds": 5}},
        {"name": "b", "load": {"shape": "closed", "concurrency": 2, "requests": 5}},
    ],
    "thresholds": [{"class": "a", "metric": "failed", "equals": 0}],
}


def changed(path: str, value: Any) -> str:
    """Return the good profile with one setting changed, as YAML; the value `...` takes it away."""
    profile = copy.deepcopy(GOOD)
    here: Any = profile
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in way:
        here = here[step]
    if value is ...:
        del here[last]
    else:
        here[last] = value
    return yaml.safe_dump(profile)


def refusal(text: str) -> str:
    with pytest.raises(CannotStartError) as refused:
        parse_profile("profile p", text)
    message = str(refused.value)
    assert "\n" not in message
    return message.removeprefix("The profile p")


def test_the_good_one_is_taken() -> None:
    assert [one.name for one in parse_profile("profile p", yaml.safe_dump(GOOD)).classes] == ["a", "b"]


def test_the_kept_ones_are_good() -> None:
    assert set(kept_profiles()) == {"cancel", "coldstart", "priority", "ratelimit", "smoke", "soak", "tpm"}
    for name in kept_profiles():
        assert load_profile(name)[1].description


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("max_second", 3, ": max_second is no setting, did you mean max_seconds?"),
        ("classes.0.lod", 3, ": classes.a.lod is no setting, did you mean load?"),
        ("classes.0.load.rtae", 3, ": classes.a.load.rtae is no setting, did you mean rate?"),
        ("max_seconds", ..., ": max_seconds is missing."),
        ("classes.0.load.rate", ..., ": classes.a.load.rate is missing."),
        ("max_seconds", "soon", ": max_seconds is 'soon': input should be a valid number"),
        ("max_seconds", -1, ": max_seconds is -1: input should be greater than 0."),
        ("max_seconds", float("nan"), ": max_seconds is nan: input should be"),
        ("classes.0.load.rate", 0, ": classes.a.load.rate is 0: input should be greater than 0."),
        ("classes.0.load.shape", "sqare", ": classes.a.load is"),
        ("classes.1.load.requests", ..., ": classes.b.load: name seconds or requests, so that it ends."),
        ("classes.1.name", "a", ": it: two classes have the same name (a, a)."),
        ("classes.1.name", "A b", ": classes.A b.name is 'A b': string should match pattern"),
        ("classes", [], ": classes is []: list should have at least 1 item"),
        ("classes", 7, ": classes is 7: input should be a valid list."),
        ("thresholds.0.class", "c", ": it: thresholds name the class 'c', but there is only a, b."),
        (
            "thresholds.0.metric",
            "end_to_end.p59",
            ": thresholds.0: no metric is called 'end_to_end.p59': did you mean end_to_end.p99?",
        ),
        ("thresholds.0.metric", "zz", ": thresholds.0: no metric is called 'zz': there is answered, "),
        ("thresholds.0.equals", ..., ": thresholds.0: name min, max or equals."),
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
        ("", " holds no settings"),
        (
            "max_seconds: 9\nclasses: [{name: a, load: {shape: constant, rat: 1, seconds: 2}}]",
            ": classes.a.load.rat is no setting, did you mean rate?",
        ),
        ("[1]", " holds no settings"),
        ("a: [", " is no YAML: "),
        ("a: b: c", " is no YAML: mapping values are not allowed here in line 1."),
        ("!!python/object:os.system {}", " is no YAML: "),
        ("[" * 2000, " is no YAML"),
    ],
)
def test_what_is_no_profile_gets_one_sentence(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smok", "No profile is called 'smok': did you mean smoke?"),
        ("xyz", "No profile is called 'xyz': there is cancel, coldstart"),
        ("nowhere.yml", "The profile nowhere.yml cannot be read (No such file or directory)."),
    ],
)
def test_an_unknown_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(CannotStartError) as refused:
        load_profile(name)
    assert str(refused.value).startswith(message)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.yml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CannotStartError, match="is no UTF-8 text"):
        load_profile(str(file))


def test_a_file_has_its_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text(yaml.safe_dump(GOOD))
    assert load_profile(str(file))[0] == "mine"
