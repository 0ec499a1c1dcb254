"""The chat page's files: strict headers, cached by version, compressed, and those that npm published."""

import asyncio
import gzip
import hashlib
import json
import re
from typing import Any

import pytest
from bedplate_gateway.chat import pages
from bedplate_gateway.http.request import ClientRequest

FILES = pages.load()


def ask(path: str, query: str = "", encoding: str = "") -> tuple[dict[str, str], bytes]:
    """Return headers and body of the answer."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    scope = {
        "raw_path": path.encode(),
        "method": "GET",
        "headers": [(b"accept-encoding", encoding.encode())],
        "query_string": query.encode(),
    }
    asyncio.run(FILES[path].respond(ClientRequest(scope, receive, send)))
    assert sent[0]["status"] == 200
    return {name.decode(): value.decode() for name, value in sent[0]["headers"]}, sent[1]["body"]


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    headers, page = ask("/chat")
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    # Nothing that the policy would block.
    assert not re.search(rb'<style|<script>|style="|\bon\w+="|https?://(?!www\.w3\.org)', page)


def test_the_page_names_each_file_with_its_version() -> None:
    _, page = ask("/chat")
    named = re.findall(r'"(/chat/[\w.]+)\?v=(\w+)"', page.decode())
    assert {path for path, _ in named} == set(FILES) - {"/chat"}
    for path, version in named:
        headers, content = ask(path, f"v={version}")
        assert headers["cache-control"] == "public, max-age=31536000, immutable"
        assert hashlib.sha256(content).hexdigest().startswith(version)
    # A page of another release.
    assert ask("/chat/chat.js", "v=0123")[0]["cache-control"] == "no-cache"
    assert ask("/chat")[0]["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_sent_compressed_to_whom_accepts_it(path: str) -> None:
    plain, content = ask(path)
    packed, compressed = ask(path, encoding="br, gzip")
    assert "content-encoding" not in plain
    assert (packed["content-encoding"], packed["vary"]) == ("gzip", "accept-encoding")
    assert gzip.decompress(compressed) == content
    assert plain["content-type"].endswith("; charset=utf-8")


def test_the_page_loads_less_than_100_kb() -> None:
    assert sum(len(ask(path, encoding="gzip")[1]) for path in FILES) < 60_000


@pytest.mark.parametrize("name", ["marked", "dompurify"])
def test_npms_files_are_those_that_were_published(name: str) -> None:
    folder = pages.STATIC / "vendor" / name
    vendored = json.loads((folder / "vendored.json").read_text())
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "vendored.json"
    }
    assert hashes == vendored["sha256"]
    assert set(hashes) == set(vendored["files"])
    assert "LICENSE" in hashes
    script = next(path for path in folder.iterdir() if path.suffix == ".js").read_text()
    assert re.search(rf"{name} v?{re.escape(vendored['version'])}\b", script[:200], re.IGNORECASE)
