"""The static model registry, over real HTTP."""

import hashlib
import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bedplate_lab.errors import LabError
from bedplate_lab.registry import Server

BLOB = b"weights of a model"
DIGEST = hashlib.sha256(BLOB).hexdigest()


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[Server]:
    manifest = tmp_path / "manifests/registry.example/library/tiny/1b"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"layers": []}')
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / f"sha256-{DIGEST}").write_bytes(BLOB)
    server = Server(tmp_path, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def send(server: Server, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    return response.status, dict(response.headers), response.read()


def test_a_manifest_is_found_by_name_and_tag(server: Server) -> None:
    assert send(server, "GET", "/v2/library/tiny/manifests/1b")[::2] == (200, b'{"layers": []}')
    assert send(server, "GET", "/v2/library/tiny/manifests/2b")[0] == 404


def test_head_of_a_blob_has_its_size_and_get_redirects_to_another_name(server: Server) -> None:
    path = f"/v2/library/tiny/blobs/sha256:{DIGEST}"
    status, headers, _ = send(server, "HEAD", path)
    assert (status, headers["Content-Length"]) == (200, str(len(BLOB)))
    status, headers, _ = send(server, "GET", path)
    assert status == 307
    assert headers["Location"] == f"http://[::ffff:127.0.0.1]:{server.server_port}/data/sha256:{DIGEST}"


def test_ranges_of_a_blob_are_served(server: Server) -> None:
    status, headers, body = send(server, "GET", f"/data/sha256:{DIGEST}", Range="bytes=3-6")
    assert (status, body, headers["Content-Range"]) == (206, BLOB[3:7], f"bytes 3-6/{len(BLOB)}")
    assert send(server, "GET", f"/data/sha256:{DIGEST}", Range="bytes=8-")[2] == BLOB[8:]


@pytest.mark.parametrize(
    "path", ["/", "/data/sha256:" + "0" * 64, "/v2/library/../../etc/manifests/passwd", "/data/x"]
)
def test_every_other_path_is_not_found(server: Server, path: str) -> None:
    assert send(server, "GET", path)[0] == 404


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="OLLAMA_MODELS"):
        Server(tmp_path, "127.0.0.1", 0)
