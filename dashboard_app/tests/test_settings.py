"""Invalid settings are refused in one sentence: the setting, its value and the remedy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bedplate_dashboard.settings import Secrets, SettingsError, load, load_model_fits, load_secrets


def set_in(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: Any) -> None:
        for step in path[:-1]:
            config = config[step]
        config[path[-1]] = to

    return change


def write(tmp_path: Path, config: object) -> dict[str, str]:
    file = tmp_path / "config.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    return {"BEDPLATE_DASHBOARD_CONFIG": str(file)}


def test_a_good_file_is_read(tmp_path: Path, config: dict[str, Any]) -> None:
    config["gateway_url"] = "http://127.0.0.1:8000/"
    settings = load(write(tmp_path, config))
    assert settings.gateway_url == "http://127.0.0.1:8000"
    assert settings.declared_models == ("small:1b", "embed")


WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], list[str]]] = {
    "not an address": (
        set_in("gateway_url", to="127.0.0.1:8000"),
        ["gateway_url", "'127.0.0.1:8000'", "http://"],
    ),
    "bad port": (set_in("prometheus_url", to="http://h:99999"), ["prometheus_url", "'http://h:99999'"]),
    "a password": (set_in("public_gateway_url", to="http://a:b@h"), ["public_gateway_url", "user"]),
    "no hosts": (set_in("inference_hosts", to=[]), ["inference_hosts", "at least 1"]),
    "a host twice": (set_in("inference_hosts", 1, "name", to="gpu1"), ["inference_hosts", "gpu1", "twice"]),
    "a host's name": (
        set_in("inference_hosts", 0, "name", to="a b;c"),
        ["inference_hosts.0.name", "'a b;c'"],
    ),
    "a model's name": (set_in("inference_hosts", 0, "models", to=["a\x1b[2J"]), ["models.0", "printable"]),
    "an unknown setting": (set_in("gatway_url", to="x"), ["gatway_url", "'x'"]),
}


@pytest.mark.parametrize(("change", "parts"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_named(
    tmp_path: Path, config: dict[str, Any], change: Callable[[dict[str, Any]], None], parts: list[str]
) -> None:
    change(config)
    with pytest.raises(SettingsError) as caught:
        load(write(tmp_path, config))
    message = str(caught.value)
    assert "\n" not in message
    assert "config.json" in message
    for part in parts:
        assert part in message


def test_a_missing_setting_is_named(tmp_path: Path, config: dict[str, Any]) -> None:
    del config["verify_report"]
    with pytest.raises(SettingsError, match="verify_report: Field required; correct it"):
        load(write(tmp_path, config))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"config\.json: the file as a whole: Invalid JSON"):
        load(write(tmp_path, "{"))


def test_a_missing_file_or_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="BEDPLATE_DASHBOARD_CONFIG is not set"):
        load({})
    with pytest.raises(SettingsError, match="nothing-here, which cannot be read"):
        load({"BEDPLATE_DASHBOARD_CONFIG": str(tmp_path / "nothing-here")})


def test_the_key_comes_from_the_credentials(tmp_path: Path) -> None:
    (tmp_path / "gateway-key").write_text("sk-secret\n")
    assert load_secrets({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == Secrets("sk-secret")


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"sk-se cret", b"sk-sec\nret", b"sk-s\xc3\xa9cret", b"sk-\xff"]
)
def test_an_invalid_key_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "gateway-key").write_bytes(content)
    with pytest.raises(SettingsError, match="gateway-key") as caught:
        load_secrets({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert "sk-" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="CREDENTIALS_DIRECTORY is not set"):
        load_secrets({})
    with pytest.raises(SettingsError, match="gateway-key cannot be read"):
        load_secrets({"CREDENTIALS_DIRECTORY": str(tmp_path)})


@pytest.mark.parametrize("text", [None, "", "{}", '[{"host": "gpu1"}]'])
def test_a_list_of_models_that_fit_is_the_roles(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "model-fits.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match="cannot be read as a list of models that fit; deploy"):
        load_model_fits(file)
