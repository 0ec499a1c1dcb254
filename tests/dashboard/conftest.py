"""The scenario's host, a browser, and the table of times."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gateway_lab import Stack, stack_of
from playwright.sync_api import Browser, sync_playwright
from watched_page import Looker, Times, WatchedPage, start


@pytest.fixture(scope="session")
def stack() -> Stack:
    """The host with the whole stack."""
    return stack_of("dashboard")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    with sync_playwright() as playwright:
        chromium = start(playwright)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def look(stack: Stack, browser: Browser) -> Looker:
    """Opens the host's dashboard."""
    login = stack("cat /etc/bedplate/bedplate-dashboard/login 2>/dev/null || true")
    return Looker(browser, stack.url.replace(":8000", ":3001"), login)


@pytest.fixture(scope="session")
def times() -> Iterator[Times]:
    """How long each fault took to be told; printed at the end."""
    kept = Times()
    yield kept
    kept.tell()


@pytest.fixture(scope="module")
def kept_open(look: Looker) -> Iterator[WatchedPage]:
    """One page for all tests of a module, never loaded anew."""
    with look() as page:
        yield page


@pytest.fixture
def page(kept_open: WatchedPage) -> Iterator[WatchedPage]:
    """The page that is kept open: healthy before a test, and nothing went wrong in it meanwhile."""
    kept_open.wait_until(lambda: kept_open.word == "Healthy", 30)
    yield kept_open
    assert kept_open.troubles == []
    assert kept_open.violations() == []
