"""The checks of URL and key."""

import io
from pathlib import Path
from typing import Any

import pytest

from traffic.tests.fake_endpoint import KEY, FakeEndpoint, exit_status, refused


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


@pytest.mark.parametrize("source", ["file", "-"])
def test_a_key_of_a_file_or_standard_input_needs_no_environment(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{KEY}\n"))
    # The file goes before the environment, whose key the endpoint would refuse.
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    assert exit_status("--max", "1", "--key-file", source if source == "-" else str(file)) == 0
    assert len(fake.bodies) == 1


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n", "No key is given: set "),
        (b"sk-a\nsk-b\n", "The key contains characters that no key has: check "),
        (b"\xff\xfe", "is not text: name the right file."),
        (b"k" * 4097, "has more than 4096 characters: name the right file."),
    ],
)
def test_a_file_without_one_key_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    refusal = refused(capsys, "--max", "1", "--key-file", str(file))
    assert message in refusal
    assert str(file) in refusal


@pytest.mark.usefixtures("fake")
def test_a_missing_key_file_and_an_empty_standard_input_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "The key file /nowhere cannot be read (No such file or directory): check its path and its mode."
    assert message in refused(capsys, "--max", "1", "--key-file", "/nowhere")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "standard input" in refused(capsys, "--max", "1", "--key-file=-")
