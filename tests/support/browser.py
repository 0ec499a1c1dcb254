"""The dashboard's page in Debian's Chromium, and every error in it."""

import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

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
# The rules of axe-core that are checked.
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
DETECTED_SECONDS = 5.0
HEALTHY_AGAIN_SECONDS = 20.0
NETWORK_CHANGED = "net::ERR_NETWORK_CHANGED"
"""Chromium ends all connections when an interface of this machine comes or goes, such as other hosts'."""
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
    """One page that is kept open; `problems` are console messages, errors, dialogs and foreign requests."""

    page: Page
    url: str
    problems: list[str] = field(default_factory=list)
    network_changed: bool = False

    def __post_init__(self) -> None:
        self.page.set_default_timeout(1000 * DETECTED_SECONDS)
        self.page.add_init_script(VIOLATIONS)
        self.page.on("console", self._console)
        self.page.on("pageerror", self._error)
        self.page.on("dialog", self._dialog)
        self.page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if NETWORK_CHANGED in message.text:
            self.network_changed = True
        elif message.type in ("error", "warning"):
            self.problems.append(f"console: {message.text}")

    def _error(self, error: Error) -> None:
        self.problems.append(f"error: {error}")

    def _dialog(self, dialog: Dialog) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.url}/", "data:", f"blob:{self.url}/")):
            self.problems.append(f"request to elsewhere: {request.url}")

    def open(self, query: str = "") -> Self:
        """Open the page and wait for its sentence."""
        try:
            self.page.goto(f"{self.url}/{query}")
        except Error as error:
            if NETWORK_CHANGED not in error.message:
                raise
            self.page.goto(f"{self.url}/{query}")
        self.sentence.wait_for()
        return self

    @property
    def live(self) -> Locator:
        """The part that changes."""
        return self.page.locator("main#live")

    @property
    def sentence(self) -> Locator:
        """The sentence at the top."""
        return self.live.locator(".sentence")

    @property
    def word(self) -> str:
        """Healthy, Degraded, Down or Unknown."""
        return self.live.get_attribute("data-word") or ""

    def card(self, name: str) -> Locator:
        """One section by the id of its heading."""
        return self.page.locator(f"section[aria-labelledby={name}]")

    def number(self, what: str) -> float:
        """Return the number in base units behind the one that is shown."""
        return float(self.live.locator(f"[data-what={what}]").first.get_attribute("data-value") or "nan")

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> float:
        """Wait until the condition holds and return the seconds that took; fail after `seconds`."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < seconds, (
                f"not shown within {seconds:.1f} s: {self.describe()}"
            )
            self.page.wait_for_timeout(50)
        return time.monotonic() - started

    def describe(self) -> str:
        """Return the changing part, for messages."""
        return f"{self.word}: {self.live.inner_text()[:1500]}"

    def shows(self, word: str, text: str) -> bool:
        """Return whether the page shows a state, and a text (a regular expression) in its changing part."""
        return self.word == word and re.search(text, self.live.inner_text()) is not None

    def violations(self) -> list[str]:
        """Return what the content security policy blocked."""
        found: list[str] = self.page.evaluate("window.violations")
        return found


class PageOpener:
    """Opens the page, each time in a fresh profile; `login` is user and password, None without a login."""

    def __init__(
        self,
        browser: Browser,
        url: str,
        login: tuple[str, str] | None = None,
        trusted: ssl.SSLContext | None = None,
    ) -> None:
        self._browser = browser
        self.url = url
        self._options: dict[str, Any] = {}
        if login:
            self._options["http_credentials"] = dict(zip(("username", "password"), login, strict=True))
        # httpx verifies the certificate; Chromium has a store of its own for CAs.
        self._options["ignore_https_errors"] = trusted is not None
        self.client = httpx.Client(
            base_url=url, auth=login, verify=trusted or True, trust_env=False, timeout=10
        )

    @contextmanager
    def __call__(self, query: str = "", *, script: str = "", **options: Any) -> Iterator[WatchedPage]:
        """Open the page; `script` runs before its own scripts, `options` are a Playwright context's."""
        context = self._browser.new_context(**{"viewport": DESKTOP, **self._options, **options})
        if script:
            context.add_init_script(script)
        try:
            yield WatchedPage(context.new_page(), self.url).open(query)
        finally:
            context.close()


@dataclass
class FaultTimes:
    """How long the page took to show a fault and, after it was fixed, to be healthy again, in seconds."""

    fault: str
    word: str
    shown: float
    healthy: float | None = None


class Times:
    """The table of all faults' times."""

    def __init__(self) -> None:
        self.rows: list[FaultTimes] = []

    def print_table(self) -> None:
        """Print the times as a Markdown table."""
        print("\n| fault | the page shows | shown after | healthy again after the fix |\n|---|---|---|---|")
        for row in self.rows:
            again = "" if row.healthy is None else f"{row.healthy:.1f} s"
            print(f"| {row.fault} | {row.word} | {row.shown:.1f} s | {again} |")
