"""The page, its text and its files: each sample is shown correctly, in few bytes, all values escaped."""

import functools
import itertools
import re
from html.parser import HTMLParser

import pytest
from bedplate_dashboard.web.app import create_app
from flask.testing import FlaskClient

from dashboard_app.tests.sample_server import SamplePoller
from dashboard_app.tests.samples import HOSTILE, SAMPLES

SECTIONS = (
    "faults",
    "chain",
    "models",
    "gpus",
    "traffic",
    "limits",
    "queue",
    "history",
    "machines",
    "operations",
)
KIBIBYTES_100 = 100 * 1024
VOID = frozenset({"meta", "link", "br", "img", "input", "rect", "circle", "path"})


class Page(HTMLParser):
    """Every element with its attributes, and the text of it and of what it holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        texts: list[str] = []
        self.handle_data(" ")
        self.elements.append((tag, dict(attrs), texts))
        if tag not in VOID:
            self._open.append(texts)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            self._open.pop()
            self.handle_data(" ")

    def handle_data(self, data: str) -> None:
        for texts in self._open:
            texts.append(data)

    def find(self, name: str, value: str | None = None) -> list[tuple[dict[str, str | None], str]]:
        """Return attributes and text of the elements with this attribute, and value if given."""
        return [
            (attributes, re.sub(r" ([.,:;])", r"\1", " ".join("".join(texts).split())))
            for _, attributes, texts in self.elements
            if name in attributes and value in (None, attributes[name])
        ]

    def text(self, name: str, value: str) -> str:
        """Return the text of the only element with this attribute."""
        ((_, text),) = self.find(name, value)
        return text


@functools.cache
def open_sample(name: str) -> FlaskClient:
    return create_app(SamplePoller(SAMPLES[name])).test_client()


@functools.cache
def page_of(name: str, query: str = "") -> Page:
    answer = open_sample(name).get(f"/{query}")
    assert answer.status_code == 200
    return Page(answer.text)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_page_has_all_sections_in_one_order(name: str) -> None:
    # The script replaces section by section, so empty ones are present and hidden.
    page = page_of(name)
    labels = [str(attributes["aria-labelledby"]) for attributes, _ in page.find("aria-labelledby")]
    assert labels == [*SECTIONS, "use"]
    ids = [str(attributes["id"]) for attributes, _ in page.find("id")]
    assert len(ids) == len(set(ids))
    shown = {
        str(found["aria-labelledby"]) for found, _ in page.find("aria-labelledby") if "hidden" not in found
    }
    assert shown <= set(ids)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_live_part_is_the_same_alone(name: str) -> None:
    client = open_sample(name)
    alone = Page(client.get("/live").text)
    whole = Page(client.get("/").text)
    assert [tag for tag, _, _ in alone.elements][:1] == ["main"]
    assert alone.text("role", "status") == whole.text("role", "status")


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_is_inline_and_no_value_is_markup(name: str) -> None:
    for tag, attributes, texts in page_of(name).elements:
        assert tag not in ("img", "style", "iframe")
        assert "style" not in attributes
        assert not [key for key in attributes if key.startswith("on")]
        if tag == "script":
            assert str(attributes["src"]).startswith("/static/")
            assert texts == []


def test_hostile_values_are_shown_as_they_are() -> None:
    page = page_of("hostile")
    assert HOSTILE in page.text("role", "status")
    assert page.text("id", "next").endswith(HOSTILE)
    assert page.find("data-model", HOSTILE)
    assert "{{7*7}}" in page.text("id", "live")
    assert "&lt;" not in open_sample("hostile").get("/?format=text").text


@pytest.mark.parametrize(
    ("name", "word", "shape"),
    [
        ("healthy", "Healthy", "good"),
        ("degraded", "Degraded", "warn"),
        ("down", "Down", "bad"),
        ("stale", "Unknown", "none"),
        ("starting", "Unknown", "none"),
    ],
)
def test_the_state_is_a_word_and_a_shape(name: str, word: str, shape: str) -> None:
    page = page_of(name)
    ((live, _),) = page.find("id", "live")
    assert (live["data-word"], live["class"]) == (word, shape)
    assert page.text("role", "status").startswith(f"{word}. ")
    assert page.find("class", f"icon {shape}")[0][0]["aria-label"] == word


@pytest.mark.parametrize("name", SAMPLES)
def test_ages_are_not_read_aloud(name: str) -> None:
    text = open_sample(name).get("/live").text
    (sentence,) = re.findall(r'<p class="sentence".*?</p>', text, re.DOTALL)
    assert "data-age" not in sentence
    assert text.count("aria-live") == 1


def test_what_to_type_next() -> None:
    page = page_of("degraded")
    assert page.text("id", "next") == "journalctl -u ollama -n 50"
    assert "Next, on gpu2" in page.find("class", "next")[0][1]
    others = page.text("aria-labelledby", "faults")
    assert (
        "The disk of gpu1 is full: 0.1 GB left on /. For 4 min. on gpu1 du -xh / | sort -h | tail" in others
    )
    ((hidden, _),) = page_of("healthy").find("aria-labelledby", "faults")
    assert "hidden" in hidden


@pytest.mark.parametrize(
    ("name", "model", "checks"),
    [
        ("healthy", "smollm2:135m", {"listed": "ok", "present": "ok", "answered": "ok"}),
        ("quiet", "smollm2:135m", {"listed": "ok", "present": "ok", "answered": "unknown"}),
        ("degraded", "qwen3:8b", {"listed": "bad", "present": "unknown", "answered": "bad"}),
        ("down", "smollm2:135m", {"listed": "unknown", "present": "ok", "answered": "ok"}),
    ],
)
def test_the_three_checks_of_a_model(name: str, model: str, checks: dict[str, str]) -> None:
    text = open_sample(name).get("/live").text
    (body,) = re.findall(rf'<tbody data-model="{model}">.*?</tbody>', text, re.DOTALL)
    assert {found["data-check"]: found["data-state"] for found, _ in Page(body).find("data-check")} == checks


def test_a_model_with_a_fault_comes_first() -> None:
    assert [found["data-model"] for found, _ in page_of("degraded").find("data-model")] == [
        "qwen3:8b",
        "smollm2:135m",
    ]


def test_numbers_are_available_in_base_units() -> None:
    numbers = {
        str(found["data-what"]): found["data-value"] for found, _ in page_of("healthy").find("data-what")
    }
    assert numbers == {
        "requests_per_second": str(110 / 60),
        "requests": "110",
        "tokens_out_per_second": "97.5",
        "tokens_out": str(SAMPLES["healthy"].verdict.traffic.completion_tokens),  # type: ignore[union-attr]
        "tokens_in_per_second": "48.2",
        "tokens_in": str(SAMPLES["healthy"].verdict.traffic.prompt_tokens),  # type: ignore[union-attr]
        "ttft_p50": "0.18",
        "ttft_p95": "0.92",
        "latency_p50": "1.1",
        "latency_p95": "4.6",
        "success_ratio": "0.982",
        "refused_429": "8",
        "refused_503": "2",
    }


def test_the_request_path_is_clients_gateway_queue_litellm_hosts_and_their_gpus() -> None:
    hops = page_of("degraded").find("data-hop")
    assert [(found["data-hop"], found.get("data-host"), found["data-state"]) for found, _ in hops] == [
        ("clients", None, "ok"),
        ("gateway", None, "warn"),
        ("queue", None, "warn"),
        ("litellm", None, "ok"),
        ("gpu1", "gpu1", "ok"),
        ("gpu", "gpu1", "ok"),
        ("gpu2", "gpu2", "bad"),
        ("gpu", "gpu2", "unknown"),
    ]
    assert "Ollama did not answer /api/version within 1 s" in hops[6][1]
    assert "last error 3 h ago: Ollama does not listen" in hops[4][1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "healthy",
            "LiteLLM 98 requests in the last minute, 12 direct; adds 21 ms; 443 MB 1.110.2",
        ),
        (
            "bypassed",
            "LiteLLM does not answer, so requests go directly to the engines "
            "0 requests in the last minute, 98 around it, 12 direct 1.110.2",
        ),
        ("down", "LiteLLM unknown 1.110.2"),
    ],
)
def test_litellm_in_the_request_path(name: str, text: str) -> None:
    assert page_of(name).text("data-hop", "litellm") == text


def test_a_gateway_without_litellm_shows_none() -> None:
    assert "LiteLLM" not in page_of("gpu").text("aria-labelledby", "chain")


@pytest.mark.parametrize(
    ("name", "section", "words"),
    [
        ("down", "traffic", "unknown: the gateway returns no metrics"),
        ("down", "limits", "unknown: the gateway returns no metrics"),
        ("down", "queue", "unknown: the gateway returns no metrics"),
        ("degraded", "history", "Prometheus does not answer (connection refused): no history is recorded."),
        ("degraded", "operations", "Alerts unknown: Prometheus does not answer"),
        ("degraded", "operations", "Ollama on gpu2 is 0.23.1, pinned: 0.24.0"),
        ("degraded", "operations", "required: gpu2"),
        (
            "degraded",
            "operations",
            "Inventory gpu2: 3 differences, first file /etc/bedplate/heal.json 4 min ago make drift",
        ),
        ("healthy", "operations", "Inventory as declared, compared 9 min ago"),
        ("degraded", "queue", "low 9 wait, oldest 31 s"),
        ("degraded", "machines", "ollama failed, 5 restarts"),
        ("degraded", "machines", "90 MB free of 64.4 GB, under 1 d left"),
        ("alerting", "operations", "Alerts 2 active, listed above"),
        ("alerting", "faults", "Alerts DiskFull: / on gpu1 is 97 % full. An alert, 60 min ago. du -xh"),
        ("quiet", "operations", "Verify not run yet: make verify"),
        ("quiet", "traffic", "no requests"),
        ("healthy", "limits", "default 940 of 1000 tokens"),
        ("healthy", "limits", "1 other limit, nothing used: batch 600 requests"),
        (
            "gpu",
            "gpus",
            "NVIDIA H100 80GB HBM3 gpu1 #0 Use 97.0 % Memory 65.5 GB of 85.9 GB 71 °C 640 W",
        ),
        ("gpu", "models", "47.0 GB 66% GPU stays"),
        ("many", "models", "8 of 8 hosts"),
    ],
)
def test_the_text_of_a_section(name: str, section: str, words: str) -> None:
    # Plots and icons have no text, so this is all that a reader gets.
    assert words in page_of(name).text("aria-labelledby", section)


def test_the_range_stands_in_the_address() -> None:
    chosen = page_of("healthy", "?range=1d").find("aria-current")
    assert [(found["href"], text) for found, text in chosen] == [("?range=1d", "1 day")]
    assert page_of("healthy").find("aria-current")[0][1] == "1 hour"
    assert page_of("healthy", "?kiosk").find("data-range")[0][0]["href"] == "?range=1h&kiosk"


def test_a_kiosk_is_a_class_of_the_page() -> None:
    assert page_of("healthy", "?kiosk").elements[0][:2] == ("html", {"lang": "en", "class": "kiosk"})
    assert page_of("healthy").elements[0][:2] == ("html", {"lang": "en"})


def test_it_works_without_scripts() -> None:
    text = open_sample("healthy").get("/?range=1d").text
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in text
    assert 'their data is at <a href="/api/history.json?range=1d">' in text


def test_the_snippets_hold_the_base_url_and_no_key() -> None:
    text = open_sample("healthy").get("/").text
    assert "sk-secret" not in text
    assert page_of("healthy").text("id", "base") == "http://10.1.2.3:8000/v1"
    assert "http://10.1.2.3:8000/v1" in page_of("healthy").text("id", "snippet-2")


def test_the_text_of_a_degraded_stack() -> None:
    lines = open_sample("degraded").get("/?format=text").text.splitlines()
    assert lines[0].startswith("DEGRADED for 7 min, since ")
    assert lines[2] == "next, on gpu2: journalctl -u ollama -n 50"
    assert "gpu2         BAD  Ollama did not answer /api/version within 1 s; has 0 of 1 models" in lines
    assert "waiting      9 of class low, the oldest for 31 s" in lines
    assert "qwen3:8b  CANNOT BE SERVED; NOT LISTED; presence unknown; FAILED 8 min ago (canary)" in lines
    assert "inventory    gpu2 had 3 differences 4 min ago: make drift" in lines
    assert "version      Ollama on gpu2 is 0.23.1, pinned: 0.24.0" in lines


@pytest.mark.parametrize("name", SAMPLES)
def test_the_text_has_no_empty_values(name: str) -> None:
    lines = open_sample(name).get("/?format=text").text.splitlines()
    assert not [line for line in lines if "None" in line or line != line.rstrip()]
    assert "" not in [first + second for first, second in itertools.pairwise(lines)]


@pytest.mark.parametrize("name", SAMPLES)
def test_the_page_is_small(name: str) -> None:
    client = open_sample(name)
    page = client.get("/", headers={"Accept-Encoding": "gzip"})
    files = [str(found.get("src") or found.get("href")) for found, _ in page_of(name).find("src")]
    files += [str(found["href"]) for found, _ in page_of(name).find("rel")]
    sizes = [len(client.get(file, headers={"Accept-Encoding": "gzip"}).data) for file in files]
    assert len(files) == 6
    assert len(page.data) + sum(sizes) < KIBIBYTES_100
