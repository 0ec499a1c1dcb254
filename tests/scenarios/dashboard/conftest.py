"""The scenario's host, a browser, and the table of times."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.support.browser import PageOpener, Times, WatchedPage, start
from tests.support.stack import Stack, stack_of


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
def open_page(stack: Stack, browser: Browser) -> PageOpener:
    """Return a function that opens the host's dashboard."""
    return PageOpener(browser, stack.dashboard_url, stack.login, stack.trusted())


@pytest.fixture(scope="session")
def times() -> Iterator[Times]:
    """Collect how long each fault took to be shown; printed at the end."""
    kept = Times()
    yield kept
    kept.print_table()


@pytest.fixture(scope="module")
def kept_open(open_page: PageOpener) -> Iterator[WatchedPage]:
    """Open one page for all tests of a module; it is never reloaded."""
    with open_page() as page:
        yield page


@pytest.fixture
def page(stack: Stack, kept_open: WatchedPage) -> Iterator[WatchedPage]:
    """Return the page that is kept open: healthy before a test, and without problems after it."""
    kept_open.wait_until(lambda: kept_open.word == "Healthy", 30)
    kept_open.problems.clear()
    yield kept_open
    if problems := kept_open.problems + kept_open.violations():
        journal = stack("journalctl -u bedplate-edge -u bedplate-dashboard -n 20 --output=short-iso")
        pytest.fail("\n".join([*problems, journal]), pytrace=False)
