"""The gateway's chat page: a real gateway with a fake engine that sets the pace, and once the host's own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page

from tests.support import fake_chat_engine
from tests.support.browser import DESKTOP, PHONE, RULES, WatchedPage
from tests.support.fake_chat_engine import FakeChatEngine
from tests.support.servers import free_port, get
from tests.support.stack import Stack, wait_for

KEYS: dict[str, dict[str, Any]] = {
    "me": {},
    "other": {},
    "limited": {"rpm": 1},
    "no-model": {"models": ["none"]},
}
SEER = "seer:7b"
KEYS_FILE = "/etc/bedplate/bedplate-gateway/keys.json"
ANSWER = """# Title

Some **bold** text and `code`.

| a | b |
|---|---|
| 1 | 2 |

```python
print("hello")
```

1. one
2. two [link](https://example.org/x)
"""
HOSTILE = """<script>window.hit = 1</script>
<img src=x onerror="window.hit = 2">
<svg/onload=window.hit=3><math><mtext><table><mglyph><style><img src onerror=window.hit=4>
<iframe srcdoc="<script>parent.hit = 5</script>"></iframe> <form action="https://evil.example"><input></form>

![leak](https://evil.example/seen.png) [run](javascript:window.hit=6) [data](data:text/html,<b>1</b>)
[vb](vbscript:x) <javascript:window.hit=7> [mixed](JaVaScRiPt:window.hit=8) [entity](&#106;avascript:hit=9)

[quote](https://example.org/"onmouseover="window.hit=10) `<b onclick=1>` [id](#key)

```html"><img src=x onerror=window.hit=11>
<script>window.hit = 12</script>
```
"""


@dataclass
class Gateway:
    """A gateway of this checkout in front of a fake engine."""

    folder: Path
    engine: FakeChatEngine
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, **revoked: bool) -> None:
        """Start it, with the keys `sk-ALIAS`."""
        keys = [
            {
                "alias": alias,
                "secrets": [{"sha256": hashlib.sha256(f"sk-{alias}".encode()).hexdigest()}],
                "revoked": revoked.get(alias, False),
                **fields,
            }
            for alias, fields in KEYS.items()
        ]
        models = [{"name": name, "slots": 1, "context": 4096} for name in fake_chat_engine.MODELS]
        settings = {
            "api": {"address": "127.0.0.1", "port": self.port},
            "metrics": {"address": "127.0.0.1", "port": free_port()},
            "engines": [{"name": "one", "kind": "ollama", "url": self.engine.url, "models": models}],
            "keys_file": str(self.folder / "keys.json"),
            "state_dir": str(self.folder),
            "drain_seconds": 1,
        }
        (self.folder / "keys.json").write_text(json.dumps({"schema": 2, "keys": keys}))
        (self.folder / "gateway.json").write_text(json.dumps(settings))
        run = [sys.executable, "-c", "from bedplate_gateway.cli import main; main()"]
        self.process = subprocess.Popen(
            [*run, str(self.folder / "gateway.json")], env=dict(os.environ), stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 30
        while get(f"{self.url}/health/readiness", seconds=1)[0] != 200:
            assert time.monotonic() < end, "the gateway did not start"
            time.sleep(0.05)

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> None:
        """Stop it."""
        if self.process is not None:
            self.process.send_signal(with_signal)
            self.process.wait()

    def ask(self, alias: str = "other") -> threading.Thread:
        """Send a chat in the background."""
        body = {"model": SEER, "messages": [{"role": "user", "content": "x" * 20}], "stream": True}
        headers = {"authorization": f"Bearer sk-{alias}"}
        thread = threading.Thread(
            target=httpx.post,
            args=(f"{self.url}/v1/chat/completions",),
            kwargs={"json": body, "headers": headers, "timeout": 30, "trust_env": False},
        )
        thread.start()
        return thread


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A running gateway."""
    with fake_chat_engine.running() as engine:
        started = Gateway(tmp_path_factory.mktemp("gateway"), engine, free_port())
        started.start()
        yield started
        started.stop()


@pytest.fixture
def engine(gateway: Gateway) -> FakeChatEngine:
    """The fake engine, at full speed and with an echo for an answer."""
    fresh = gateway.engine
    fresh.replies, fresh.thoughts, fresh.times = {}, "", 1
    fresh.first_seconds = fresh.part_seconds = 0.0
    fresh.turns = threading.Semaphore(0)
    fresh.part_size = 8
    fresh.requests.clear()
    return fresh


class Chat:
    """The page as a person uses it."""

    def __init__(self, page: Page, url: str) -> None:
        self.watched = WatchedPage(page, url)
        self.page = page

    def enter(self, key: str) -> None:
        """Paste a key."""
        self.page.fill("#key-input", key)
        self.page.keyboard.press("Enter")

    def send(self, text: str) -> None:
        """Send a message."""
        self.page.fill("#prompt", text)
        self.page.keyboard.press("Enter")

    def ask(self, text: str) -> Locator:
        """Send a message and return its finished answer."""
        self.send(text)
        return self.finished()

    @property
    def last(self) -> Locator:
        """The last answer."""
        return self.page.locator("article.assistant").last

    @property
    def error(self) -> Locator:
        """The error of the last answer."""
        return self.last.locator(".error")

    def finished(self, seconds: float = 10) -> Locator:
        """Wait for the end of the last answer."""
        self.last.locator(".as-curl").wait_for(timeout=1000 * seconds)
        if self.watched.network_changed and self.error.is_visible():
            # Chromium ended the connection, because another host came or went.
            self.watched.network_changed = False
            self.last.locator(".again").click()
            return self.finished(seconds)
        return self.last

    def problems(self) -> list[str]:
        """Return what went wrong in the browser; a refused request is not wrong."""
        found = [each for each in self.watched.problems if "Failed to load resource" not in each]
        return found + self.watched.violations()


@contextmanager
def opened(browser: Browser, url: str, key: str | None = "sk-me", **options: Any) -> Iterator[Chat]:
    """Open the page in a fresh profile, and paste a key."""
    context = browser.new_context(**{"viewport": DESKTOP, **options})
    try:
        chat = Chat(context.new_page(), url)
        chat.page.goto(f"{url}/chat")
        if key:
            chat.enter(key)
            chat.page.locator("#prompt").wait_for()
        yield chat
        assert chat.problems() == []
    finally:
        context.close()


@pytest.fixture
def chat(browser: Browser, gateway: Gateway, engine: FakeChatEngine) -> Iterator[Chat]:
    """The page with a good key."""
    assert engine is gateway.engine
    with opened(browser, gateway.url) as page:
        yield page


def test_an_answer_streams_as_markdown_with_its_numbers(chat: Chat, engine: FakeChatEngine) -> None:
    engine.replies["Show all."] = ANSWER
    engine.thoughts = "Think about it."
    engine.part_seconds = 0.05
    chat.send("Show all.")
    # It is shown before it is complete.
    chat.last.locator("strong").wait_for()
    assert chat.page.locator("#stop").is_visible()
    answer = chat.finished()
    assert answer.locator("h3, th, td, .block pre, ol > li").count() == 1 + 2 + 2 + 1 + 2
    assert answer.locator("pre").inner_text().strip() == 'print("hello")'
    link = answer.locator(".answer a")
    assert (link.get_attribute("href"), link.get_attribute("rel")) == (
        "https://example.org/x",
        "noopener noreferrer nofollow",
    )
    assert answer.locator(".thoughts > div").text_content() == "Think about it. "
    numbers = answer.locator(".meta p").inner_text()
    assert re.fullmatch(r"first token after \d+ ms · \d+ tokens · \d+\.\d tokens/s", numbers), numbers
    assert chat.page.locator("#status").inner_text().startswith("The answer is complete. first token")
    # The next request has the whole conversation.
    chat.ask("And then?")
    assert [each["role"] for each in engine.requests[-1]["messages"]] == ["user", "assistant", "user"]
    assert engine.requests[-1]["messages"][1]["content"] == ANSWER


def test_the_key_stays_in_the_tab_and_out_of_the_command(browser: Browser, chat: Chat) -> None:
    answer = chat.ask("It's a test.")
    answer.locator(".as-curl").click()
    command = chat.page.locator("#curl-text").inner_text()
    assert "It'\\''s a test." in command
    assert "$OPENAI_API_KEY" in command
    assert "sk-me" not in chat.page.content()
    done = subprocess.run(["bash", "-c", f"set -- {command[7:]}; echo $#"], capture_output=True, check=True)
    assert done.stdout == b"7\n"
    assert chat.page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]
    # A reload keeps the key and forgets the conversation; another tab has neither.
    chat.page.reload()
    chat.page.locator("#prompt").wait_for()
    assert chat.page.locator("article").count() == 0
    second = chat.page.context.new_page()
    second.goto(f"{chat.watched.url}/chat")
    second.locator("#key-input").wait_for()
    assert browser.is_connected()


def test_hostile_markdown_is_text(chat: Chat) -> None:
    answer = chat.ask(HOSTILE)
    allowed = "a, blockquote, br, code, del, div, em, h3, hr, li, ol, p, pre, strong, table, tbody, td, th"
    strange = answer.locator(f".answer *:not({allowed}, thead, tr, ul, button.copy-block)")
    assert strange.count() == 0, strange.evaluate_all("found => found.map((each) => each.outerHTML)")
    attributes = answer.locator(".answer *").evaluate_all(
        "found => [...new Set(found.flatMap((each) => each.getAttributeNames()))].sort()"
    )
    assert set(attributes) <= {"class", "href", "rel", "start", "tabindex", "target", "type"}
    links = answer.locator(".answer a").evaluate_all("found => found.map((each) => each.href)")
    # One without an address leads nowhere.
    assert {link.partition(":")[0] for link in links} == {"", "https"}
    assert "<script>window.hit = 1</script>" in answer.inner_text()
    assert chat.page.evaluate("window.hit") is None


SLOW = {
    "brackets": "[" * 20_000,
    "quotes": "> " * 10_000 + "x",
    "stars": "*" * 20_000,
    "lists": "- " * 10_000,
    "ticks": "`" * 20_000,
    "tables": "|a" * 10_000 + "\n|-" * 9_000,
    "angles": "<" * 20_000,
    "addresses": "a@" * 10_000,
    "images": "![](" * 6_000,
    "references": "\n".join(f"[{number}]: x" for number in range(2_000)),
}
LONGEST_TASK = 2000
"""Milliseconds for which the page may take no input, on a machine that other tests keep busy."""
LARGEST_PIECE = 16_100
"""Characters that are rendered at once: a piece of 8,000, and at most as many that end its code block."""
WATCH_GAPS = """() => {
  window.longest = window.largest = 0;
  window.rendered ??= renderMarkdown;
  renderMarkdown = (text) => {
    window.largest = Math.max(window.largest, text.length);
    return rendered(text);
  };
  clearInterval(window.watching);
  let last = performance.now();
  window.watching = setInterval(() => {
    const now = performance.now();
    window.longest = Math.max(window.longest, now - last);
    last = now;
  }, 10);
}"""


def test_markdown_that_is_slow_to_parse_keeps_the_page_responsive(chat: Chat, engine: FakeChatEngine) -> None:
    engine.part_size = 500
    engine.replies = SLOW
    longest = {}
    for name in SLOW:
        chat.page.evaluate(WATCH_GAPS)
        chat.ask(name)
        longest[name] = chat.page.evaluate("window.longest")
        assert 0 < chat.page.evaluate("window.largest") <= LARGEST_PIECE, name
        chat.page.locator("#new").click()
    assert {name: gap for name, gap in longest.items() if gap > LONGEST_TASK} == {}


def test_an_answer_of_100000_tokens_keeps_the_page_responsive(chat: Chat, engine: FakeChatEngine) -> None:
    """A token is about four characters."""
    engine.replies["Go."], engine.part_size = ANSWER, 40
    engine.times = 400_000 // len(ANSWER)
    chat.page.evaluate(WATCH_GAPS)
    chat.send("Go.")
    answer = chat.finished(60)
    assert chat.page.evaluate("window.longest") < LONGEST_TASK
    assert 0 < chat.page.evaluate("window.largest") <= LARGEST_PIECE
    assert answer.locator("pre").count() == engine.times
    # The end is in view, and the page takes the next message.
    assert chat.page.evaluate("scrollY + innerHeight >= document.documentElement.scrollHeight - 60")
    engine.times = 1
    assert "And?" in chat.ask("And?").inner_text()


def test_the_place_in_the_queue_is_shown(gateway: Gateway, chat: Chat, engine: FakeChatEngine) -> None:
    def run_next() -> None:
        running = len(engine.requests)
        engine.turns.release()
        wait_for(lambda: len(engine.requests) > running)

    engine.first_seconds = 30
    threads = [gateway.ask() for _ in range(2)]
    wait_for(lambda: len(engine.requests) == 1)
    chat.send("Say hello.")
    waiting = chat.last.locator(".waiting")
    # One of the other key runs. Which of the two keys is next depends on what they used before.
    waiting.filter(has_text=re.compile(r"Place [12] of 2 in the queue")).wait_for()
    assert waiting.locator(".queue i").count() == 2
    while engine.requests[-1]["messages"][-1]["content"] != "Say hello.":
        run_next()
    waiting.filter(has_text="The model reads your message").wait_for()
    engine.turns.release(2)
    numbers = chat.finished().locator(".meta p").inner_text()
    assert re.match(r"queued [\d.]+ m?s · first token after [\d.]+ s", numbers), numbers
    for thread in threads:
        thread.join()


def test_an_answer_is_stopped_and_tried_again(chat: Chat, engine: FakeChatEngine) -> None:
    engine.part_seconds = 0.1
    engine.replies["Count."] = "one two three four five six seven " * 20
    chat.send("Count.")
    chat.last.get_by_text("three").wait_for()
    chat.page.keyboard.press("Escape")
    stopped = chat.finished()
    assert "stopped" in stopped.locator(".meta p").inner_text()
    assert stopped.locator(".error").is_hidden()
    engine.replies["Count."] = "one, and no more"
    engine.part_seconds = 0
    stopped.locator(".again").click()
    chat.last.get_by_text("no more").wait_for()
    assert chat.page.locator("article.assistant").count() == 1
    assert [each["role"] for each in engine.requests[-1]["messages"]] == ["user"]
    chat.page.locator("#new").click()
    assert chat.page.locator("article").count() == 0


def test_wrong_keys_are_explained(browser: Browser, gateway: Gateway) -> None:
    with opened(browser, gateway.url, key=None) as chat:
        chat.enter("sk-wrong")
        chat.page.get_by_text("The API key is not valid here").wait_for()
        chat.enter("ümlaut ☃")
        chat.page.get_by_text("A key has no spaces and no letters with accents").wait_for()
        chat.enter("sk-no-model")
        chat.page.get_by_text("No model can be used with this key now").wait_for()
        chat.enter("sk-me")
        chat.page.locator("#prompt").wait_for()
        assert chat.page.locator("#key").is_hidden()


def test_a_limit_counts_down(browser: Browser, gateway: Gateway, engine: FakeChatEngine) -> None:
    with opened(browser, gateway.url, "sk-limited") as chat:
        chat.ask("One.")
        chat.send("Two.")
        chat.error.filter(has_text="The limit of 1 requests per minute for your key is used up").wait_for()
        again = chat.last.locator(".again")
        assert again.is_disabled()
        assert re.fullmatch(r"Try again in \d+ s", again.inner_text())
        assert len(engine.requests) == 1


def test_a_gateway_that_restarts_during_an_answer(
    gateway: Gateway, chat: Chat, engine: FakeChatEngine
) -> None:
    engine.part_seconds = 0.1
    engine.replies["Count."] = "one two three four five six seven " * 20
    chat.send("Count.")
    chat.last.get_by_text("three").wait_for()
    gateway.stop(signal.SIGKILL)
    chat.error.filter(has_text="The answer was cut off").wait_for()
    assert "three" in chat.last.locator(".answer").inner_text()
    chat.last.locator(".again").click()
    chat.error.filter(has_text="The gateway does not answer").wait_for()
    # The key was revoked meanwhile: the conversation stays, and another key goes on with it.
    gateway.start(me=True)
    chat.last.locator(".again").click()
    chat.page.locator("#key-error").filter(has_text="This API key was revoked: ask for a new one.").wait_for()
    chat.enter("sk-other")
    chat.page.locator("#key").wait_for(state="hidden")
    engine.part_seconds = 0
    chat.last.locator(".again").click()
    chat.last.locator(".answer").get_by_text("seven").first.wait_for()
    gateway.stop()
    gateway.start()


def test_images_go_to_models_that_see(chat: Chat, engine: FakeChatEngine, tmp_path: Path) -> None:
    page = chat.page
    assert page.locator("#model option").all_inner_texts() == [SEER, "writer:3b"]
    page.screenshot(path=str(tmp_path / "a.png"))
    page.set_input_files("#files", str(tmp_path / "a.png"))
    page.set_input_files("#files", str(tmp_path / "a.png"))
    page.locator("#images img").nth(1).wait_for()
    page.get_by_role("button", name="Remove a.png").first.click()
    answer = chat.ask("What is this?")
    assert answer.locator(".error").is_hidden(), answer.inner_text()
    text, image = engine.requests[-1]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is this?"}
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert page.locator("article.user img").evaluate("image => image.naturalWidth") == DESKTOP["width"]
    answer.locator(".as-curl").click()
    assert '"data:image/png;base64,…"' in page.locator("#curl-text").inner_text()
    page.keyboard.press("Escape")
    page.select_option("#model", "writer:3b")
    assert page.locator("#attach").is_hidden()


def test_ten_tabs_get_their_answers(gateway: Gateway, chat: Chat, engine: FakeChatEngine) -> None:
    """Without TLS a browser opens six connections to an address, whatever the number of its tabs."""
    chats = [Chat(chat.page.context.new_page(), gateway.url) for _ in range(10)]
    for each in chats:
        each.page.goto(f"{gateway.url}/chat")
        each.enter("sk-me")
        each.page.locator("#prompt").wait_for()
    engine.first_seconds = 30
    for number, each in enumerate(chats):
        each.send(f"This is number {number}.")
    chats[-1].last.get_by_text("This browser has no connection left").wait_for()
    engine.first_seconds = 0
    engine.turns.release()
    for number, each in enumerate(chats):
        each.finished(20)
        assert each.error.is_hidden(), each.error.inner_text()
        assert f"number {number}." in each.last.locator(".answer").inner_text()
        assert each.problems() == []


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(
    browser: Browser, gateway: Gateway, engine: FakeChatEngine, colours: str, size: dict[str, int]
) -> None:
    with opened(browser, gateway.url, key=None, color_scheme=colours, viewport=size) as chat:

        def check(state: str) -> None:
            found = Axe().run(chat.page, options=RULES)
            assert found.violations_count == 0, f"{state}: {found.generate_report()}"
            assert chat.page.evaluate("document.documentElement.scrollWidth") <= size["width"], state

        chat.page.locator("#key-input").wait_for()
        check("asks for a key")
        chat.enter("sk-limited")
        chat.page.locator("#prompt").wait_for()
        check("before the first message")
        engine.replies["Show all."] = ANSWER + "\n" + "long" * 200
        engine.thoughts = "Think about it."
        chat.ask("Show all.")
        chat.send("Once more.")
        chat.error.wait_for()
        check("an answer and an error")
        chat.last.locator(".as-curl").click()
        check("the command")


def test_every_control_is_reached_by_keyboard(chat: Chat) -> None:
    chat.ask("Say hello.")
    chat.page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(20):
        chat.page.keyboard.press("Tab")
        reached.add(chat.page.evaluate("document.activeElement.id || document.activeElement.className"))
    wanted = ["model", "new", "change", "copy-answer", "as-curl", "again", "prompt", "attach", "send"]
    assert set(wanted) <= reached


def test_the_page_loads_nothing_from_elsewhere_and_less_than_100_kb(
    browser: Browser, gateway: Gateway
) -> None:
    with opened(browser, gateway.url, key=None) as chat:
        chat.page.locator("#key-input").wait_for()
        sizes = chat.page.evaluate("performance.getEntries().flatMap((each) => each.transferSize ?? [])")
        assert len(sizes) >= 7
        assert sum(sizes) < 60_000


def test_the_chat_of_the_host(browser: Browser, stack: Stack) -> None:
    """Through HAProxy and LiteLLM, with the real engine; the dashboard leads there."""
    context = browser.new_context(ignore_https_errors=True)
    with httpx.Client(auth=stack.login, verify=stack.trusted(), trust_env=False) as client:
        assert client.get(f"{stack.dashboard_url}/chat").headers["location"] == f"{stack.url}/chat"
    chat = Chat(context.new_page(), stack.url)
    chat.page.goto(f"{stack.url}/chat")
    chat.enter(stack.key("bench"))
    chat.page.locator("#prompt").wait_for()
    chat.send("Say hello.")
    answer = chat.finished(60)
    assert "tokens/s" in answer.locator(".meta p").inner_text()
    assert chat.error.is_hidden(), chat.error.inner_text()

    def begin() -> None:
        """Begin an answer that goes on until it is ended."""
        chat.page.locator("#new").click()
        chat.send("Count from one to a thousand, in words.")
        chat.last.locator(".answer").get_by_text(re.compile(r"\w")).first.wait_for()

    # The gateway dies in the middle.
    begin()
    stack("systemctl kill --kill-who=main --signal=KILL bedplate-gateway")
    chat.error.filter(has_text="The answer was cut off").wait_for()
    # A manual restart resets NRestarts, so that verify reports no crash.
    stack("systemctl restart bedplate-gateway")
    # LiteLLM is down. The key is revoked in the middle: the answer goes on, and the next message is refused.
    stack(f"systemctl stop litellm; cp --preserve {KEYS_FILE} /root/keys.json")
    try:
        begin()
        length = len(chat.last.locator(".answer").inner_text())
        revoke = f"""sed -i '/"alias": "bench"/,/"rpm"/s/"revoked": false/"revoked": true/' {KEYS_FILE}"""
        stack(f"{revoke}; systemctl reload bedplate-gateway")
        chat.page.keyboard.press("Escape")
        assert len(chat.finished().locator(".answer").inner_text()) > length
        assert chat.error.is_hidden(), chat.error.inner_text()
        chat.send("And now?")
        chat.page.locator("#key-error").filter(has_text="This API key was revoked").wait_for()
    finally:
        stack(f"mv /root/keys.json {KEYS_FILE}; systemctl reload bedplate-gateway; systemctl start litellm")
    assert chat.problems() == []
    context.close()
