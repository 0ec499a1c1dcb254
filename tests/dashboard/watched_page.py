"""The dashboard's page in Debian's Chromium, as a person sees it, and everything that went wrong in it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Dialog,
    Error,
    Locator,
    Page,
    Playwright,
    Request,
    ViewportSize,
)

CHROMIUM = Path("/usr/bin/chromium")
# Chromium's own sandbox needs a user that is not root, and its shared memory more than a container has.
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage"]
DESKTOP: ViewportSize = {"width": 1440, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
# What axe-core looks for.
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
TOLD_SECONDS = 5.0
HEALTHY_AGAIN_SECONDS = 20.0
VIOLATIONS = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) =>
  violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


def start(playwright: Playwright) -> Browser:
    """Start Debian's Chromium, which `make browser` installs."""
    assert CHROMIUM.exists(), "there is no Chromium: run make browser"
    return playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@dataclass
class WatchedPage:
    """One page that is kept open. `troubles` is what a clean page has none of."""

    page: Page
    url: str
    troubles: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Listen before the first byte comes."""
        self.page.set_default_timeout(1000 * TOLD_SECONDS)
        self.page.add_init_script(VIOLATIONS)
        self.page.on("console", self._console)
        self.page.on("pageerror", self._error)
        self.page.on("dialog", self._dialog)
        self.page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.troubles.append(f"console: {message.text}")

    def _error(self, error: Error) -> None:
        self.troubles.append(f"error: {error}")

    def _dialog(self, dialog: Dialog) -> None:
        self.troubles.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.url}/", "data:")):
            self.troubles.append(f"request to elsewhere: {request.url}")

    def open(self, query: str = "") -> WatchedPage:
        """Open the page and wait for its sentence."""
        self.page.goto(f"{self.url}/{query}")
        self.sentence.wait_for()
        return self

    @property
    def live(self) -> Locator:
        """The part that changes."""
        return self.page.locator("main#live")

    @property
    def sentence(self) -> Locator:
        """The one sentence on top."""
        return self.live.locator(".sentence")

    @property
    def word(self) -> str:
        """Healthy, Degraded, Down or Unknown."""
        return self.live.get_attribute("data-word") or ""

    def card(self, name: str) -> Locator:
        """One section by the id of its heading."""
        return self.page.locator(f"section[aria-labelledby={name}]")

    def number(self, what: str) -> float:
        """A number in base units, as it stands behind the one that is shown."""
        return float(self.live.locator(f"[data-what={what}]").first.get_attribute("data-value") or "nan")

    def wait_until(self, told: Callable[[], bool], seconds: float) -> float:
        """Look at the page until it tells something; returns after how many seconds it did."""
        started = time.monotonic()
        while not told():
            assert time.monotonic() - started < seconds, f"not told within {seconds:.1f} s: {self.says()}"
            self.page.wait_for_timeout(50)
        return time.monotonic() - started

    def says(self) -> str:
        """The whole changing part, for messages."""
        return f"{self.word}: {self.live.inner_text()[:1500]}"

    def tells(self, word: str, text: str) -> bool:
        """Whether the page says a state, and a text (a regular expression) anywhere in its changing part."""
        return self.word == word and re.search(text, self.live.inner_text()) is not None

    def violations(self) -> list[str]:
        """What the content security policy forbade."""
        found: list[str] = self.page.evaluate("window.violations")
        return found


class Looker:
    """Opens the page, each time in a fresh profile, as a person who knows the login."""

    def __init__(self, browser: Browser, url: str, login: str = "") -> None:
        """`login` is user:password, or empty where the page is open."""
        self._browser = browser
        self.url = url
        user, _, password = login.partition(":")
        self._login: dict[str, Any] = (
            {"http_credentials": {"username": user, "password": password}} if login else {}
        )
        self.client = httpx.Client(
            base_url=url, auth=(user, password) if login else None, trust_env=False, timeout=10
        )

    @contextmanager
    def __call__(self, query: str = "", *, script: str = "", **options: Any) -> Iterator[WatchedPage]:
        """Open the page; `script` runs before its own, `options` are Playwright's of a context."""
        context = self._browser.new_context(**{"viewport": DESKTOP, **self._login, **options})
        if script:
            context.add_init_script(script)
        try:
            yield WatchedPage(context.new_page(), self.url).open(query)
        finally:
            context.close()


@dataclass
class Told:
    """When the page told a fault, in seconds after it was there, and its repair, in seconds after that."""

    fault: str
    word: str
    told: float
    healthy: float | None = None


class Times:
    """How long each fault took to be told."""

    def __init__(self) -> None:
        """Start empty."""
        self.rows: list[Told] = []

    def tell(self) -> None:
        """Print them as a table."""
        print("\n| fault | the page says | told after | healthy again after its repair |\n|---|---|---|---|")
        for row in self.rows:
            again = "" if row.healthy is None else f"{row.healthy:.1f} s"
            print(f"| {row.fault} | {row.word} | {row.told:.1f} s | {again} |")
