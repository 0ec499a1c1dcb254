"""The page is accessible: without scripts, by keyboard, on a phone, in dark mode, with a screen reader."""

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import ViewportSize

from tests.support.browser import DESKTOP, PHONE, RULES, PageOpener, WatchedPage
from tests.support.stack import Stack

CONTROLS = "a[href]:visible, button:visible, summary:visible, [tabindex='0']:visible"
# The focused element, and whether its focus is visible.
FOCUSED = """(() => {
  const element = document.activeElement, style = getComputedStyle(element);
  return element === document.body ? null
    : [element.outerHTML.slice(0, 80), style.outlineStyle !== "none" || style.boxShadow !== "none"];
})()"""
WRONG_CLOCK = """(() => {
  const off = DAYS * 86400000, real = Date;
  window.Date = class extends real {
    constructor(...given) { given.length ? super(...given) : super(real.now() + off); }
    static now() { return real.now() + off; }
  };
})();"""


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(open_page: PageOpener, colours: str, size: ViewportSize) -> None:
    with open_page(color_scheme=colours, viewport=size) as page:
        found = Axe().run(page.page, options=RULES)
        assert found.violations_count == 0, found.generate_report()
        assert page.problems == []


@pytest.mark.parametrize("width", [320, 390, 768, 1440, 2560])
def test_no_width_scrolls_sideways(open_page: PageOpener, width: int) -> None:
    with open_page(viewport={"width": width, "height": 800}) as page:
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_control_is_reached_by_keyboard_and_shows_its_focus(open_page: PageOpener) -> None:
    with open_page() as page:
        wanted = page.page.locator(CONTROLS).count()
        assert wanted > 3
        reached = set()
        for _ in range(wanted):
            page.page.keyboard.press("Tab")
            reached.add(tuple(page.page.evaluate(FOCUSED)))
        assert [html for html, shown in reached if not shown] == []
        assert len(reached) == wanted


def test_focus_survives_the_updates(page: WatchedPage) -> None:
    button = page.page.get_by_role("button").first
    button.focus()
    page.page.wait_for_timeout(4500)
    assert button.evaluate("element => element === document.activeElement")


def test_a_screen_reader_reads_the_sentence(page: WatchedPage) -> None:
    assert "can be served" in page.page.get_by_role("status").first.inner_text()
    assert page.page.get_by_role("heading", level=1).count() == 1
    assert page.page.get_by_role("main").count() == 1
    # Ages change each second and must not be read aloud each time.
    assert page.page.locator("[role=status] [data-age], [aria-live] [data-age]").count() == 0


def test_without_a_stream_the_page_polls(open_page: PageOpener) -> None:
    with open_page() as page:
        page.page.route("**/events", lambda route: route.abort())
        with page.page.expect_request("**/live", timeout=10000):
            page.open()
        # Longer than the page waits before it reports a lost connection.
        page.page.wait_for_timeout(7000)
        assert page.word == "Healthy"


def test_without_scripts(open_page: PageOpener, stack: Stack) -> None:
    with open_page(java_script_enabled=False) as page:
        assert "can be served" in page.sentence.inner_text()
        assert stack.model in page.card("models").inner_text()
        # The page reloads itself every few seconds.
        page.page.wait_for_event("load", timeout=10000)
        assert "can be served" in page.sentence.inner_text()


@pytest.mark.parametrize("days", [3, -400])
def test_a_browser_whose_clock_is_wrong(open_page: PageOpener, days: int) -> None:
    with open_page(script=WRONG_CLOCK.replace("DAYS", str(days))) as page:
        page.page.wait_for_timeout(7000)
        assert page.word == "Healthy"
        ages = page.page.locator("[data-age]").all_inner_texts()
        assert ages
        assert [age for age in ages if age.endswith(" d")] == []
        assert page.problems == []


def test_motion_is_reduced_on_request(open_page: PageOpener) -> None:
    with open_page(reduced_motion="reduce") as page:
        moving = "animation => animation.effect.getComputedTiming().duration > 1"
        assert page.page.evaluate(f"document.getAnimations().filter({moving}).length") == 0


def test_the_kiosk_and_the_range(open_page: PageOpener) -> None:
    with open_page("?kiosk") as page:
        assert page.card("chain").is_visible()
        assert page.problems == []
    with open_page("?range=1d") as page:
        page.card("history").locator("canvas").first.wait_for()
        page.page.get_by_role("link", name="hour").first.click()
        page.page.wait_for_url("**range=1h**")
        page.card("history").locator("canvas").first.wait_for()
        assert page.problems == []


def test_headers_are_strict(open_page: PageOpener) -> None:
    answer = open_page.client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert open_page.client.post("/").status_code == 405


def test_strangers_see_nothing(open_page: PageOpener, stack: Stack) -> None:
    with httpx.Client(base_url=open_page.url, verify=stack.trusted(), trust_env=False) as stranger:
        for path in ("/", "/live", "/events", "/api/status.json", "/api/history.json?range=1h", "/metrics"):
            answer = stranger.get(path)
            assert (path, answer.status_code) == (path, 401)
            assert "smollm2" not in answer.text
            assert answer.headers["www-authenticate"].startswith("Basic ")
        assert stranger.get("/", auth=("bedplate", "wrong-password")).status_code == 401
        assert stranger.get("/healthz").status_code == 200
