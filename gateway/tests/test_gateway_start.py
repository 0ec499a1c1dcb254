import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from bedplate_gateway import start


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A keys file and a credential as the unit gives them; returns the credential's folder."""
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"schema": 1, "keys": []}))
    (tmp_path / "master-key").write_text("sk-master\n")
    monkeypatch.setenv("BEDPLATE_KEYS_FILE", str(keys))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    # Set here, so that monkeypatch takes back what main() puts there.
    monkeypatch.setenv("LITELLM_MASTER_KEY", "")
    return tmp_path


@pytest.mark.usefixtures("prepared")
def test_litellm_runs_with_the_master_key(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    fake_proxy_cli = SimpleNamespace(run_server=lambda: seen.append(os.environ["LITELLM_MASTER_KEY"]))
    monkeypatch.setitem(sys.modules, "litellm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "litellm.proxy", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "litellm.proxy.proxy_cli", fake_proxy_cli)
    start.main()
    assert seen == ["sk-master"]


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as raised:
        start.main()
    assert raised.value.code == 78
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_a_missing_credential_is_refused(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (prepared / "master-key").unlink()
    assert "master-key cannot be read" in refused(capsys)


def test_an_empty_credential_is_refused(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (prepared / "master-key").write_text("\n")
    assert "master-key is empty" in refused(capsys)


@pytest.mark.usefixtures("prepared")
def test_a_start_by_hand_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert "CREDENTIALS_DIRECTORY is not set" in refused(capsys)


def test_a_broken_keys_file_is_refused(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (prepared / "keys.json").write_text("{")
    assert "keys.json is not JSON" in refused(capsys)
