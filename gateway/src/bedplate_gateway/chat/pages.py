"""The chat page's files, ours and those of npm, read and compressed once at startup.

scripts/vendor-npm fetched the latter; each vendored.json in static/vendor has their version and hashes.
"""

import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from bedplate_gateway.http.request import ClientRequest

STATIC = Path(__file__).with_name("static")
PAGE = "/chat"
VENDORED = {"marked.js": "vendor/marked/marked.umd.js", "purify.js": "vendor/dompurify/purify.min.js"}
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
YEAR_SECONDS = 365 * 24 * 3600
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types dompurify"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "vary": "accept-encoding",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True)
class File:
    """One file as it is served; `version` changes with its content."""

    content: bytes
    compressed: bytes
    content_type: str
    version: str

    async def respond(self, client: ClientRequest) -> None:
        """Send it, compressed to whoever accepts that."""
        # While two releases serve, a page of one may get a file of the other.
        current = client.query == f"v={self.version}".encode()
        keep = f"public, max-age={YEAR_SECONDS}, immutable" if current else "no-cache"
        headers = HEADERS | {"cache-control": keep}
        if "gzip" in (client.header("accept-encoding") or ""):
            await client.respond(
                200, self.compressed, headers | {"content-encoding": "gzip"}, self.content_type
            )
        else:
            await client.respond(200, self.content, headers, self.content_type)


def load() -> dict[str, File]:
    """Read every file, by its path.

    The page names each file with a version that changes with its content, so browsers keep them.
    """
    paths = {path.name: path for path in STATIC.iterdir() if path.is_file()}
    paths |= {name: STATIC / path for name, path in VENDORED.items()}
    contents = {name: path.read_bytes() for name, path in paths.items()}
    page = contents.pop("chat.html").decode()

    files = {name: _file(name, content) for name, content in contents.items()}
    page = re.sub(
        rf'(?<="){PAGE}/([\w.-]+)(?=")', lambda match: f"{match[0]}?v={files[match[1]].version}", page
    )
    return {
        PAGE: _file("chat.html", page.encode()),
        **{f"{PAGE}/{name}": file for name, file in files.items()},
    }


def _file(name: str, content: bytes) -> File:
    return File(
        content,
        gzip.compress(content, mtime=0),
        f"{MEDIA_TYPES[Path(name).suffix]}; charset=utf-8",
        hashlib.sha256(content).hexdigest()[:12],
    )
