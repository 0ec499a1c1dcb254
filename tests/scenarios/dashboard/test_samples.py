"""Pages that a lab host cannot show (GPUs, many models), in the browser: dark, light, wide and narrow."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from dashboard_app.tests.samples import SAMPLES
from tests.support.browser import DESKTOP, PHONE, RULES, PageOpener, WatchedPage
from tests.support.stack import ROOT


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """Return the address of each sample."""
    server = subprocess.Popen(
        [sys.executable, "-m", "dashboard_app.tests.sample_server", "0"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/dashboard_app/src"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield dict(server.stdout.readline().split() for _ in SAMPLES)
    finally:
        server.terminate()
        server.wait()


def test_the_models_that_fit(browser: Browser, addresses: dict[str, str]) -> None:
    for colours in ("light", "dark"):
        for size in (DESKTOP, PHONE):
            context = browser.new_context(color_scheme=colours, viewport=size)
            page = WatchedPage(context.new_page(), addresses["gpu"].rstrip("/"))
            page.page.goto(f"{page.url}/models")
            result = Axe().run(page.page, options=RULES)
            assert result.violations_count == 0, result.generate_report()
            assert page.page.evaluate("document.documentElement.scrollWidth") <= size["width"]
            assert page.problems + page.violations() == []
            context.close()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample(browser: Browser, addresses: dict[str, str], name: str) -> None:
    open_page = PageOpener(browser, addresses[name].rstrip("/"))
    found = {}
    for colours in ("light", "dark"):
        for size in (DESKTOP, PHONE):
            with open_page(color_scheme=colours, viewport=size) as page:
                page.page.wait_for_load_state()
                wide = page.page.evaluate("document.documentElement.scrollWidth")
                result = Axe().run(page.page, options=RULES)
                where = f"{colours} {size['width']}"
                if result.violations_count:
                    found[f"axe, {where}"] = result.generate_report()
                if wide > size["width"]:
                    found[f"scrolls sideways, {where}"] = str(wide)
                if page.problems + page.violations():
                    found[f"problems, {where}"] = "; ".join(page.problems + page.violations())
    assert found == {}, "\n".join(f"{what}: {text}" for what, text in found.items())
