"""The page's static files, ours and uPlot's, read and compressed once at startup.

scripts/vendor-npm fetched uPlot's files; static/vendor/uplot/vendored.json has their version and hashes.
"""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flask import Flask, Response, abort, request

MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
STATIC = Path(__file__).with_name("static")
PLOT_FILES = {"uPlot.css": "vendor/uplot/uPlot.min.css", "uPlot.js": "vendor/uplot/uPlot.iife.min.js"}
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
    files = {path.name: path for path in STATIC.iterdir() if path.is_file()}
    files |= {name: STATIC / path for name, path in PLOT_FILES.items()}
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
