"""The checks of URL and key."""

from typing import Any

import pytest

from traffic.tests.fake_endpoint import refused


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000/v1",
        "http://127.0.0.1:8000",
        "ftp://127.0.0.1/v1",
        "http:///v1",
        "http://h:x/v1",
        "http://127.0.0.1/v1?a=b",
        "http://user:word@127.0.0.1/v1",
        "http://127.0.0.1/\x01/v1",
        "http://[::1/v1",
    ],
)
def test_a_bad_url_is_refused(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert "cannot be used: give http://HOST:PORT/v1" in refused(capsys, "--max", "1", "--url", url)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("host", ["192.0.1.1", "[2600::1]", "[::ffff:192.0.1.1]"])
def test_a_public_address_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("something was sent")

    monkeypatch.setattr("aiohttp.ClientSession._request", fail)
    assert "--allow-public" in refused(capsys, "--max", "1", "--url", f"http://{host}/v1")


@pytest.mark.parametrize("name", ["OPENAI_BASE_URL", "OPENAI_API_KEY"])
@pytest.mark.usefixtures("fake")
def test_a_missing_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.delenv(name)
    assert name in refused(capsys, "--max", "1")


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("key", ["sk-ä", "sk a", "sk\n"])
def test_a_malformed_key_is_refused(capsys: pytest.CaptureFixture[str], key: str) -> None:
    assert "characters that no key has" in refused(capsys, "--max", "1", "--key", key)
