"""port_connections: real connections to ports of this machine."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def module(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/library/port_connections.py")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def target(port: int, *, address: str = "127.0.0.1", seconds: float = 5) -> dict[str, Any]:
    """Return a target on this machine."""
    return {"host": "box", "address": address, "port": port, "seconds": seconds}


def test_results_are_in_order(
    module: ModuleType, run_module: Callable[..., dict[str, Any]], listener: socket.socket
) -> None:
    opened = listener.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as other:
        closed = other.getsockname()[1]
    result = run_module(module, {"targets": [target(closed), target(opened)]})
    assert result["connections"] == [
        {"host": "box", "port": closed, "source": "", "error": ""},
        {"host": "box", "port": opened, "source": "127.0.0.1", "error": ""},
    ]


def test_all_together_wait_as_long_as_one(
    module: ModuleType, run_module: Callable[..., dict[str, Any]]
) -> None:
    """A full backlog ignores further connections, like a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        clients = [socket.create_connection(("127.0.0.1", port))]
        started = time.monotonic()
        result = run_module(module, {"targets": [target(port, seconds=0.5)] * 100})
        took = time.monotonic() - started
        clients[0].close()
    assert {entry["source"] for entry in result["connections"]} == {""}
    assert {entry["error"] for entry in result["connections"]} == {""}
    assert 0.4 < took < 5


def test_more_than_one_batch(
    module: ModuleType,
    run_module: Callable[..., dict[str, Any]],
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 2)
    port = listener.getsockname()[1]
    result = run_module(module, {"targets": [target(port)] * 7})
    assert [entry["source"] for entry in result["connections"]] == ["127.0.0.1"] * 7


def test_an_unknown_name_is_an_error(module: ModuleType, run_module: Callable[..., dict[str, Any]]) -> None:
    (result,) = run_module(module, {"targets": [target(9, address="box.invalid")]})["connections"]
    assert result["source"] == ""
    assert result["error"].startswith("box.invalid: ")
