"""Page, text, API and metrics: every value is escaped, and the dashboard is read-only."""

import dataclasses
import gzip
import json
import re
import shlex
import time
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import pytest
from bedplate_dashboard.health.judge import Snapshot
from bedplate_dashboard.health.poller import Poller
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.sources.collect import Contact, HostAnswer, Observation, PrometheusAnswer, ReportFile
from bedplate_dashboard.sources.payloads import Check, EngineState, Pull, Report
from bedplate_dashboard.web.app import build_client_snippets, create_app
from flask.testing import FlaskClient

from dashboard_app.tests.observed import SECRETS
from dashboard_app.tests.situations import litellm

HOSTILE = "<img src=x onerror=alert(1)>'\"&{{7*7}}"


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def test_the_state_comes_first_in_the_api(show: Callable[..., FlaskClient], all_well: Observation) -> None:
    body = show(all_well).get("/api/status.json").text
    assert body.startswith('{"state": "healthy", "schema": 2, ')
    status = json.loads(body)
    assert list(status) == [
        *(
            "state",
            "schema",
            "at",
            "since",
            "reason",
            "next",
            "next_on",
            "stale",
            "age_seconds",
            "poll_seconds",
            "poll_number",
        ),
        *("name", "base_url", "faults", "chain", "gateway", "inference_hosts", "models", "gpus", "traffic"),
        *("limits", "queue", "litellm", "machines", "prometheus", "operations"),
    ]
    assert (status["at"], status["since"]) == ("2026-03-01T12:00:00Z", "2026-03-01T12:00:00Z")
    assert status["models"][0] | {"placements": None} == {
        "name": "small:1b",
        "can_be_served": True,
        "listed": True,
        "placements": None,
        "answered": None,
        "tokens_per_second": None,
    }
    assert status["operations"]["verify"]["ok"] is None
    assert status["litellm"] is None


def test_litellm_in_the_api(show: Callable[..., FlaskClient], all_well: Observation) -> None:
    client = show(litellm(1, through=7)(all_well))
    show(litellm(0, through=9, direct=1, bypass=4)(all_well))
    status = client.get("/api/status.json").get_json()
    assert status["litellm"] == {
        "up": False,
        "requests": {"litellm": 2, "direct": 1, "bypass": 4},
        "added_seconds": None,
        "memory_bytes": None,
    }
    assert (status["state"], status["next"]) == ("degraded", "journalctl -u litellm -n 50")
    (hop,) = (hop for hop in status["chain"] if hop["kind"] == "litellm")
    assert (hop["state"], hop["version"]) == ("warn", "1.110.2")


def test_nothing_is_healthy_before_the_first_poll(client: FlaskClient) -> None:
    status = json.loads(client.get("/api/status.json").data)
    assert (status["state"], status["stale"], status["models"]) == ("degraded", True, None)
    page = client.get("/").text
    assert "Unknown." in page
    assert "good" not in page
    assert client.get("/?format=text").text.startswith("UNKNOWN for ")


def test_an_old_poll_is_not_healthy(
    poller: Poller, show: Callable[..., FlaskClient], all_well: Observation
) -> None:
    client = show(all_well)
    assert '<main id="live" class="good"' in client.get("/live").text
    last = poller._last
    assert isinstance(last, Snapshot)
    poller._last = dataclasses.replace(last, monotonic=time.monotonic() - 60)
    assert '<main id="live" class="none" data-word="Unknown"' in client.get("/live").text
    status = json.loads(client.get("/api/status.json").data)
    assert (status["state"], status["stale"], round(status["age_seconds"])) == ("degraded", True, 60)


def hostile(observation: Observation) -> Observation:
    state = EngineState.model_validate(
        {
            "schema": 1,
            "at": "2026-03-01T12:00:00Z",
            "engine": {"up": True, "version": HOSTILE, "error": HOSTILE},
            "models": [{"name": "small:1b", "digest": HOSTILE, "loaded": True}, {"name": HOSTILE}],
        }
    )
    down = state.model_copy(update={"engine": state.engine.model_copy(update={"up": False})})
    check = Check(host=HOSTILE, name=HOSTILE, ok=False, seen=HOSTILE, next=HOSTILE)
    report = Report(schema_=1, ok=False, at=observation.at, checks=(check,))
    contact = Contact("answered", 0.1)
    return dataclasses.replace(
        observation,
        hosts=(HostAnswer("gpu1", contact, state), HostAnswer("gpu2", contact, down)),
        prometheus=PrometheusAnswer(contact=Contact("failed", 0.1, HOSTILE), alerts=None, version=HOSTILE),
        verify=ReportFile(report),
    )


def test_hostile_values_are_escaped(config: dict[str, Any], all_well: Observation) -> None:
    config["name"] = HOSTILE
    config["inference_hosts"][0]["models"] = ["small:1b", HOSTILE]
    poller = Poller(Settings.model_validate_json(json.dumps(config)), SECRETS)
    client = create_app(poller).test_client()
    poller.update(hostile(all_well))
    page = client.get("/").text
    assert "&lt;img src=x" in page
    elements = Elements(page).elements
    assert "img" not in [tag for tag, _ in elements]
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
    assert "{{7*7}}" in page
    assert "&lt;img" not in client.get("/?format=text").text


def test_the_page_needs_nothing_inline_and_nothing_from_elsewhere(
    show: Callable[..., FlaskClient], all_well: Observation
) -> None:
    response = show(all_well).get("/")
    elements = Elements(response.text).elements
    assert not [tag for tag, attributes in elements if "style" in attributes or tag == "style"]
    assert all("src" in attributes for tag, attributes in elements if tag == "script")
    links = [str(value) for _, names in elements for key, value in names.items() if key in ("src", "href")]
    targets = [urljoin("http://dashboard/", link) for link in links]
    assert all(target.startswith("http://dashboard/") for target in targets)
    for target in targets:
        # The chat is on the gateway.
        assert show(all_well).get(target).status_code == (302 if target.endswith("/chat") else 200)
    assert "sk-secret" not in response.text
    assert "$OPENAI_API_KEY" in response.text


def test_the_models_that_fit_each_host(show: Callable[..., FlaskClient], all_well: Observation) -> None:
    def texts() -> list[str]:
        body = re.sub(r"<[^>]+>", " ", show(all_well).get("/models").text.partition("<main")[2])
        return [" ".join(line.split()) for line in body.splitlines()]

    lines = texts()
    assert "gpu1 16.0 GB of memory, no GPU in use; context 4096, 2 slots" in lines
    assert "fits on the CPU: context 4096, up to 9 slots" in lines
    assert "huge:70b" in lines
    assert "declared, present" in lines
    assert "No deployment has read this host yet: run ansible-playbook site.yml." in lines


def test_the_chat_is_on_the_gateway(show: Callable[..., FlaskClient], all_well: Observation) -> None:
    response = show(all_well).get("/chat")
    assert (response.status_code, response.headers["Location"]) == (302, "http://10.1.2.3:8000/chat")


def test_a_pull_shows_percent_speed_and_time_left(
    show: Callable[..., FlaskClient], all_well: Observation
) -> None:
    host = all_well.hosts[0]
    assert host.state is not None
    pull = Pull(model="qwen3:8b", done=2_500_000_000, total=5_000_000_000, per_second=100_000_000)
    state = host.state.model_copy(update={"pull": pull})
    pulling = dataclasses.replace(
        all_well, hosts=(dataclasses.replace(host, state=state), *all_well.hosts[1:])
    )
    line = "gpu1 pulls qwen3:8b: 50\u202f% of 5.0 GB, 100 MB/s, 25 s left"
    for path in ("/", "/?format=text"):
        assert line in show(pulling).get(path).text
        assert "pulls" not in show(all_well).get(path).text
    status = show(pulling).get("/api/status.json").json
    assert status is not None
    assert status["inference_hosts"][0]["pull"] == {
        "model": "qwen3:8b",
        "done_bytes": 2_500_000_000,
        "total_bytes": 5_000_000_000,
        "bytes_per_second": 100_000_000,
        "left_seconds": 25.0,
    }
    assert status["inference_hosts"][1]["pull"] is None


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/?format=text", "/live", "/models", "/chat", "/none"),
        *("/api/status.json", "/events", "/healthz", "/metrics"),
    ],
)
def test_every_answer_has_security_headers_and_is_not_stored(client: FlaskClient, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_dashboard_is_read_only(client: FlaskClient, method: str) -> None:
    response = client.open("/api/status.json", method=method)
    assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD")
    assert response.text == "The dashboard is read-only: use GET.\n"


def test_errors_are_one_sentence(
    client: FlaskClient, poller: Poller, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = client.get("/<script>")
    assert (missing.status_code, missing.mimetype) == (404, "text/plain")
    assert missing.text == "Not found; the dashboard is at /.\n"
    assert client.get("/?format=xml").text == "format must be html or text.\n"
    assert client.get("/?format=xml").status_code == 400
    monkeypatch.setattr(poller, "status", lambda: 1 / 0)
    broken = client.get("/")
    assert broken.status_code == 500
    assert (
        broken.text
        == "The dashboard failed to answer this request; see journalctl -u bedplate-dashboard -n 50.\n"
    )
    assert client.get("/healthz").text == "ok\n"


def test_text_for_a_terminal(show: Callable[..., FlaskClient], all_well: Observation) -> None:
    lines = show(hostile(all_well)).get("/?format=text").text.splitlines()
    assert lines[0].startswith("DEGRADED for ")
    assert lines[1].startswith("1 of 2 declared models can be served: ")
    assert lines[2].startswith("next, on ")
    assert any(line.startswith("embed") and "CANNOT BE SERVED" in line for line in lines)


def test_the_curl_snippet_is_safe_to_paste(settings: Settings) -> None:
    odd = 'it\'s "odd" $(reboot)'
    host = settings.inference_hosts[0].model_copy(update={"models": (odd,)})
    snippets = build_client_snippets(settings.model_copy(update={"inference_hosts": (host,)}))
    words = shlex.split(snippets["curl"].replace("\\\n", " "))
    assert words[:2] == ["curl", "http://10.1.2.3:8000/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == odd
    compile(snippets["Python"], "snippet", "exec")


@pytest.mark.parametrize("path", ["/?range=2h", "/?range=", "/api/history.json?range=1y"])
def test_an_unknown_range_is_refused(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.text) == (400, "range must be 1h or 1d.\n")


def test_long_answers_are_compressed_for_clients_that_accept_gzip(
    show: Callable[..., FlaskClient], all_well: Observation
) -> None:
    client = show(all_well)
    plain = client.get("/live")
    compressed = client.get("/live", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert compressed.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in plain.headers["Vary"]
    assert 'id="live"' in gzip.decompress(compressed.data).decode()
    assert client.get("/healthz", headers={"Accept-Encoding": "gzip"}).text == "ok\n"
