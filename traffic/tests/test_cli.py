"""The choice of the command."""

import pytest
from bedplate_traffic import cli

from traffic.tests.fake_endpoint import refused


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no command 'runn': use one of run, compare, " in refused(capsys, "runn", "smoke")


def test_an_installation_without_the_fake_engine_says_where_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda _: None)
    message = refused(capsys, "fake-server")
    assert "The fake engine is not part of this installation: run `make install` in a checkout" in message
