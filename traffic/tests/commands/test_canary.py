"""`traffic canary`: sends a request only for a model that is loaded and used, and writes its metrics."""

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from bedplate_traffic.cli import main
from bedplate_traffic.commands.canary import ModelUse, State, find_skip_reason
from prometheus_client.parser import text_string_to_metric_families

from traffic.tests.traffic_fakes import serving

MODEL = "smollm2:135m"


class FakeGateway:
    """Serves chat completions and metrics as a test configures them."""

    def __init__(self) -> None:
        self.loaded = 1
        self.others = 0
        self.own = 0
        self.status = 200
        self.requests: list[Any] = []

    def application(self) -> web.Application:
        application = web.Application()
        application.add_routes(
            [web.get("/metrics", self._metrics), web.post("/v1/chat/completions", self._chat)]
        )
        return application

    async def _metrics(self, _: web.Request) -> web.Response:
        def requests(alias: str, status: int, model: str = MODEL) -> str:
            labels = f'alias="{alias}",model="{model}",path="/v1/chat/completions",status="{status}"'
            return f"bedplate_gateway_requests_total{{{labels}}}"

        lines = [
            "# TYPE bedplate_gateway_requests_total counter",
            f"{requests('default', 200)} {self.others}",
            f"{requests('canary', 200)} {self.own}",
            f"{requests('default', 429)} 17",
            f"{requests('default', 200, 'other')} 23",
            "# TYPE bedplate_gateway_engine_loaded gauge",
            f'bedplate_gateway_engine_loaded{{engine="one",model="{MODEL}"}} 0',
            f'bedplate_gateway_engine_loaded{{engine="two",model="{MODEL}"}} {self.loaded}',
            'bedplate_gateway_engine_loaded{engine="two",model="other"} 1',
        ]
        return web.Response(text="\n".join(lines) + "\n")

    async def _chat(self, request: web.Request) -> web.Response:
        self.requests.append(await request.json())
        assert request.headers["Authorization"] == "Bearer sk-canary"
        self.own += 1
        if self.status != 200:
            return web.json_response({"error": {"message": "engine gone"}}, status=self.status)
        chunk = '{"choices":[{"delta":{"content":"yes"}}],"usage":{"prompt_tokens":3,"completion_tokens":1}}'
        return web.Response(text=f"data: {chunk}\n\ndata: [DONE]\n\n", content_type="text/event-stream")


class Canary:
    """Runs the command with its own files."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        (folder / "key").write_text("sk-canary\n")
        self.arguments = ["canary", "--url", url, "--metrics-url", url.replace("/v1", "/metrics")]
        self.arguments += ["--model", MODEL, "--key-file", str(folder / "key")]
        self.arguments += ["--state", str(folder / "state.json"), "--textfile", str(folder / "canary.prom")]

    def check(self) -> tuple[str, dict[str, float]]:
        """Run the command; returns its result, and its other metrics."""
        with pytest.raises(SystemExit) as ended:
            main(self.arguments)
        assert ended.value.code == 0
        result, metrics = "", {}
        for family in text_string_to_metric_families((self.folder / "canary.prom").read_text()):
            for sample in family.samples:
                assert sample.labels.pop("model") == MODEL
                if family.name == "bedplate_traffic_canary_result":
                    result = sample.labels["result"] if sample.value else result
                else:
                    metrics[sample.name.removeprefix("bedplate_traffic_canary_")] = sample.value
        return result, metrics


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


def test_it_sends_one_request_each_time_other_clients_were_answered(
    tmp_path: Path, gateway: FakeGateway
) -> None:
    with serving(gateway.application) as url:
        canary = Canary(tmp_path, url)
        assert canary.check()[0] == "not_used"
        gateway.others = 3
        result, metrics = canary.check()
        assert result == "answered"
        assert metrics["success"] == 1
        assert 0 < metrics["first_token_seconds"] <= metrics["seconds"] < 5
        # Its own request is no use by other clients, and the metrics of its last answer stay.
        result, again = canary.check()
        assert (result, again["seconds"]) == ("not_used", metrics["seconds"])
        assert again["last_run_timestamp_seconds"] > metrics["last_run_timestamp_seconds"]
        assert len(gateway.requests) == 1
        gateway.others = 1
        assert canary.check()[0] == "answered"
    assert gateway.requests[0]["max_tokens"] == 1


def test_a_model_that_is_not_loaded_gets_no_request(tmp_path: Path, gateway: FakeGateway) -> None:
    gateway.loaded, gateway.others = 0, 3
    with serving(gateway.application) as url:
        result, metrics = Canary(tmp_path, url).check()
    assert (result, metrics["success"], gateway.requests) == ("not_loaded", 1, [])


def test_a_failed_check_is_repeated_until_it_succeeds(tmp_path: Path, gateway: FakeGateway) -> None:
    gateway.others, gateway.status = 3, 503
    with serving(gateway.application) as url:
        canary = Canary(tmp_path, url)
        for _ in range(2):
            result, metrics = canary.check()
            assert (result, metrics["success"]) == ("failed", 0)
        gateway.status = 200
        assert canary.check()[0] == "answered"
        assert canary.check()[0] == "not_used"
    assert len(gateway.requests) == 3


def test_an_unreachable_gateway_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, metrics = Canary(tmp_path, "http://127.0.0.1:1/v1").check()
    assert (result, metrics["success"]) == ("failed", 0)
    assert "http://127.0.0.1:1/metrics returns no metrics" in capsys.readouterr().out


def test_a_broken_state_file_is_ignored(tmp_path: Path, gateway: FakeGateway) -> None:
    gateway.others = 1
    with serving(gateway.application) as url:
        canary = Canary(tmp_path, url)
        (tmp_path / "state.json").write_text('{"us')
        assert canary.check()[0] == "answered"


@pytest.mark.parametrize("name", ["key", "canary.prom", "state.json"])
def test_an_unusable_file_is_named_in_the_error(
    tmp_path: Path, gateway: FakeGateway, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with serving(gateway.application) as url:
        canary = Canary(tmp_path, url)
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).mkdir()
        with pytest.raises(SystemExit) as ended:
            main(canary.arguments)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert str(tmp_path) in message


@pytest.mark.parametrize(
    ("use", "state", "reason"),
    [
        (ModelUse(loaded=True, uses=5), State(uses=4), None),
        (ModelUse(loaded=True, uses=4), State(uses=4), "not_used"),
        (ModelUse(loaded=True, uses=4), State(uses=4, failed=True), None),
        (ModelUse(loaded=False, uses=5), State(uses=4, failed=True), "not_loaded"),
        (ModelUse(loaded=True, uses=0), State(uses=4), "not_used"),
        (ModelUse(loaded=True, uses=1), State(uses=4), None),
    ],
)
def test_when_it_skips_the_request(use: ModelUse, state: State, reason: str | None) -> None:
    assert find_skip_reason(use, state) == reason
