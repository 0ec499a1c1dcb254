"""Fixtures: a key in the environment, and a fake endpoint."""

from collections.abc import Iterator

import pytest

from traffic.tests.fake_endpoint import KEY, FakeEndpoint


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the key, whichever one the user of this machine has set."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEndpoint]:
    """A fake endpoint, whose URL and key are set in the environment."""
    endpoint = FakeEndpoint()
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield endpoint
    endpoint.close()
