"""The page's static files, ours and uPlot's, read and compressed once at startup.

uPlot is read from the package `uplot-python`, which the lock file pins by hash: this needs no second registry
and no copy of uPlot in this repository. Two of its files are read; nothing is imported.
"""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from flask import Flask, Response, abort, request

MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PLOT_PACKAGE = "uplot-python"
PLOT_FILES = {"uPlot.css": "uplot/static/uPlot.min.css", "uPlot.js": "uplot/static/uPlot.iife.js"}
YEAR_SECONDS = 365 * 24 * 3600


class AssetError(Exception):
    """A static file is missing; the message is one sentence with the remedy."""


@dataclass(frozen=True)
class Asset:
    """One file as it is served; `version` changes with its content."""

    content: bytes
    compressed: bytes
    media_type: str
    version: str


def load() -> dict[str, Asset]:
    """Read every static file, by name; raises AssetError."""
    files = {path.name: path for path in Path(__file__).with_name("static").iterdir()}
    try:
        package = distribution(PLOT_PACKAGE)
    except PackageNotFoundError as error:
        raise AssetError(f"{PLOT_PACKAGE} is not installed; deploy the dashboard again.") from error
    files |= {name: Path(str(package.locate_file(place))) for name, place in PLOT_FILES.items()}
    assets = {}
    for name, path in files.items():
        try:
            content = path.read_bytes()
        except OSError as error:
            raise AssetError(
                f"{path} cannot be read ({error.strerror}); deploy the dashboard again."
            ) from error
        assets[name] = Asset(
            content=content,
            compressed=gzip.compress(content, mtime=0),
            media_type=MEDIA_TYPES[path.suffix],
            version=hashlib.sha256(content).hexdigest()[:12],
        )
    return assets


def register(app: Flask, assets: Mapping[str, Asset]) -> None:
    """Serve the files below /static/; addresses made by `asset("page.css")` are cached for a year."""

    @app.get("/static/<name>", endpoint="static")
    def send_file(name: str) -> Response:
        asset = assets.get(name)
        if asset is None:
            abort(404)
        compressed = request.accept_encodings.quality("gzip") > 0
        response = Response(
            asset.compressed if compressed else asset.content,
            content_type=f"{asset.media_type}; charset=utf-8",
        )
        if compressed:
            response.content_encoding = "gzip"
        response.vary.add("Accept-Encoding")
        response.set_etag(f"{asset.version}{'-gzip' if compressed else ''}")
        if request.args.get("v") == asset.version:
            response.cache_control.public = True
            response.cache_control.max_age = YEAR_SECONDS
            response.cache_control.immutable = True
        else:
            response.cache_control.no_cache = True
        response.make_conditional(request)
        return response

    app.jinja_env.globals["asset"] = lambda name: f"/static/{name}?v={assets[name].version}"
