import json
from pathlib import Path
from typing import Any

import pytest
from bedplate_gateway.settings import Queue, Settings, SettingsError, read_settings

MINIMAL: dict[str, Any] = {
    "api": {"address": "127.0.0.1", "port": 8000},
    "metrics": {"address": "127.0.0.1", "port": 9464},
    "engines": [],
    "keys_file": "keys.json",
    "state_dir": "state",
}


def read(folder: Path, **fields: object) -> Settings:
    path = folder / "gateway.json"
    path.write_text(json.dumps(MINIMAL | fields))
    return read_settings(path)


def test_a_class_without_a_queue_of_its_own_has_the_default(tmp_path: Path) -> None:
    settings = read(tmp_path, queues={"low": {"size": 3}})
    assert settings.queue("low").size == 3
    assert settings.queue("high") == Queue()
    # One key leaves room for others.
    assert Queue().size_per_key * 10 == Queue().size


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"shared": 1}, "shared"),
        ({"share": 0}, "share"),
        ({"metrics": {"address": "x", "port": 70_000}}, "metrics.port"),
        ({"queues": {"urgent": {}}}, "queues.urgent"),
        ({"engines": [{"name": "e", "kind": "other", "url": "u", "models": []}]}, "engines.0.kind"),
    ],
)
def test_unusable_settings_are_one_sentence_with_file_field_and_remedy(
    tmp_path: Path, fields: dict[str, Any], place: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, **fields)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'gateway.json'}, {place}")
    assert text.endswith(": deploy it again.")
    assert "\n" not in text
