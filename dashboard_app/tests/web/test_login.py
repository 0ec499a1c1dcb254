"""The login: basic authentication for every path but health and metrics."""

import dataclasses

import pytest
from bedplate_dashboard.health.poller import Poller
from bedplate_dashboard.web.app import create_app

from dashboard_app.tests.observed import SECRETS

LOGIN = dataclasses.replace(SECRETS, login="ops:word: of \u00fc")


@pytest.mark.parametrize(
    "path", ["/", "/live", "/events", "/api/status.json", "/static/page.css", "/nothing"]
)
def test_a_login_guards_everything(poller: Poller, path: str) -> None:
    client = create_app(poller, LOGIN).test_client()
    stranger = client.get(path)
    assert stranger.status_code == 401
    assert stranger.headers["WWW-Authenticate"] == 'Basic realm="rack", charset="UTF-8"'
    assert stranger.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "word" not in stranger.text.replace("password", "")
    for wrong in (("ops", "word"), ("op", "word: of \u00fc"), ("", "")):
        assert client.get(path, auth=wrong).status_code == 401
    assert client.get(path, headers={"Authorization": "Bearer x"}).status_code == 401
    assert client.get(path, auth=("ops", "word: of \u00fc")).status_code in (200, 404)


@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
def test_health_and_metrics_need_no_login(poller: Poller, path: str) -> None:
    assert create_app(poller, LOGIN).test_client().get(path).status_code == 200
