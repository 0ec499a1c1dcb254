"""The scenario's host, a browser, and the table of times."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gateway_lab import Stack, stack_of
from playwright.sync_api import Browser, sync_playwright
from watched_page import Times, WatchedPage, start, watched


@pytest.fixture(scope="session")
def stack() -> Stack:
    """The host with everything on it."""
    return stack_of("dashboard")


@pytest.fixture(scope="session")
def url(stack: Stack) -> str:
    """The dashboard's address."""
    return stack.url.replace(":8000", ":3001")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    with sync_playwright() as playwright:
        chromium = start(playwright)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def times() -> Iterator[Times]:
    """How long each fault took to be told; printed at the end."""
    kept = Times()
    yield kept
    kept.tell()


@pytest.fixture(scope="module")
def kept_open(browser: Browser, url: str) -> Iterator[WatchedPage]:
    """One page for all tests of a module, never loaded anew."""
    with watched(browser, url) as page:
        yield page


@pytest.fixture
def page(kept_open: WatchedPage) -> Iterator[WatchedPage]:
    """The page that is kept open: healthy before a test, and nothing went wrong in it meanwhile."""
    kept_open.wait_until(lambda: kept_open.word == "Healthy", 30)
    yield kept_open
    assert kept_open.troubles == []
    assert kept_open.violations() == []
