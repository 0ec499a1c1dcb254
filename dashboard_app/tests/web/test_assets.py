"""Static files: cached by version, compressed, and only those that the page needs."""

import gzip
import hashlib
import json

import pytest
from bedplate_dashboard.web import assets
from bedplate_dashboard.web.app import create_app
from flask.testing import FlaskClient

from dashboard_app.tests.sample_server import SamplePoller
from dashboard_app.tests.samples import SAMPLES


def test_ages_run_without_the_wall_clock() -> None:
    assert b"Date" not in assets.load()["page.js"].content
    assert b"performance.now()" in assets.load()["page.js"].content


@pytest.fixture
def client() -> FlaskClient:
    return create_app(SamplePoller(SAMPLES["healthy"])).test_client()


@pytest.mark.parametrize(
    "name", ["page.css", "page.js", "plots.js", "uPlot.js", "uPlot.css", "icon-down.svg"]
)
def test_a_file_is_cached_until_it_changes(client: FlaskClient, name: str) -> None:
    asset = assets.load()[name]
    versioned = client.get(f"/static/{name}?v={asset.version}")
    assert versioned.data == asset.content
    assert versioned.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    compressed = client.get(f"/static/{name}", headers={"Accept-Encoding": "gzip, br"})
    assert (compressed.headers["Cache-Control"], compressed.headers["Vary"]) == (
        "no-cache",
        "Accept-Encoding",
    )
    assert gzip.decompress(compressed.data) == asset.content
    again = client.get(
        f"/static/{name}", headers={"Accept-Encoding": "gzip", "If-None-Match": compressed.headers["ETag"]}
    )
    assert (again.status_code, again.data) == (304, b"")


def test_no_other_file_is_served(client: FlaskClient) -> None:
    assert client.get("/static/../wsgi.py").status_code == 404
    assert client.get("/static/LICENSE").status_code == 404
    assert client.get("/static/vendored.json").status_code == 404
    assert client.get("/static/vendor/uplot/vendored.json").status_code == 404


def test_a_missing_file_of_uplot_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "PLOT_FILES", {"uPlot.js": "vendor/uplot/gone.js"})
    with pytest.raises(assets.AssetError, match=r"gone\.js cannot be read \(No such file or directory\)"):
        assets.load()


def test_uplots_files_are_those_that_npm_published() -> None:
    folder = assets.STATIC / "vendor/uplot"
    vendored = json.loads((folder / "vendored.json").read_text())
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "vendored.json"
    }
    assert hashes == vendored["sha256"]
    assert set(assets.PLOT_FILES.values()) <= {f"vendor/uplot/{name}" for name in hashes}
    assert f"uPlot (v{vendored['version']})" in (folder / "uPlot.iife.min.js").read_text()
    assert "MIT License" in (folder / "LICENSE").read_text()
