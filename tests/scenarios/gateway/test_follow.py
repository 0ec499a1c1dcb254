"""`make requests` and `make logs FOLLOW=1` show what happens now, over the inventory's own connection."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import IO

from tests.support.stack import ROOT, Stack

SECONDS = 30


def copy_lines(output: IO[str], lines: queue.Queue[str]) -> None:
    """Put each line into the queue, until the output ends."""
    for line in output:
        lines.put(line)


@contextlib.contextmanager
def following(*arguments: str) -> Iterator[queue.Queue[str]]:
    """Run make as a user does, until Ctrl-C; its lines come through the queue."""
    lines: queue.Queue[str] = queue.Queue()
    with subprocess.Popen(
        ["make", *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        output = process.stdout
        assert output is not None
        threading.Thread(target=copy_lines, args=(output, lines), daemon=True).start()
        try:
            yield lines
        finally:
            os.killpg(process.pid, signal.SIGINT)


def wait_for(lines: queue.Queue[str], words: str) -> str:
    """Return the first line with the words."""
    deadline = time.monotonic() + SECONDS
    seen = []
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=left)
            seen.append(line)
            if words in line:
                return line
    raise AssertionError(f"no line has {words!r}: {seen}")


def test_a_request_is_a_row_and_a_line(stack: Stack) -> None:
    with following("requests") as rows, following("logs", "SERVICE=gateway", "FOLLOW=1") as lines:
        wait_for(rows, "time     status alias")
        wait_for(lines, "bedplate-gateway[")
        with stack.client(stack.key("interactive")) as client:
            answer = stack.chat(client)
        assert wait_for(rows, "interactive").split()[1:5] == ["200", "interactive", "high", stack.model]
        assert answer.headers["x-request-id"] in wait_for(lines, answer.headers["x-request-id"])
