"""The log's way to a real pipe that nobody reads."""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from bedplate_gateway import log_writer
from bedplate_gateway.log_writer import LogWriter

LINES = 20_000
"""Of 100 bytes each: more than the pipe and the queue hold."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    os.close(reader)


def line(number: int) -> str:
    return f"{number:099d}"


def log(writer: LogWriter, text: str) -> None:
    writer.emit(logging.makeLogRecord({"msg": text}))


def read(reader: int, until: str) -> list[str]:
    """Read up to the last line."""
    text, deadline = "", time.monotonic() + 10
    while not text.endswith(f"{until}\n"):
        assert time.monotonic() < deadline, text[-500:]
        try:
            text += os.read(reader, 1 << 20).decode()
        except BlockingIOError:
            time.sleep(0.01)
    return text.splitlines()


def test_a_pipe_that_nobody_reads_stops_nobody_and_the_gap_is_told_where_it_is(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    writer = LogWriter(descriptor)
    slowest = 0.0
    for number in range(LINES):
        started = time.thread_time()
        log(writer, line(number))
        slowest = max(slowest, time.thread_time() - started)
    assert slowest < 0.05
    assert 0 < writer.dropped < LINES
    kept = LINES - writer.dropped
    started = time.monotonic()
    writer.flush()
    assert time.monotonic() - started < log_writer.FLUSH_SECONDS + 0.5

    told = f"{writer.dropped} lines of this log were dropped, because nobody read it in time."
    assert read(reader, told) == [*map(line, range(kept)), told]
    log(writer, "again")
    assert read(reader, "again") == ["again"]
    assert writer.dropped == LINES - kept


def test_a_line_that_is_too_long_is_told(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    writer = LogWriter(descriptor)
    log(writer, "x" * log_writer.MAX_BYTES)
    log(writer, "next")
    told = "1 lines of this log were dropped, because nobody read it in time."
    assert read(reader, "next") == [told, "next"]


def test_a_reader_that_went_away_ends_nothing(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "FLUSH_SECONDS", 0.01)
    reader, descriptor = pipe
    writer = LogWriter(descriptor)
    with open(os.devnull, "rb") as other:  # noqa: PTH123 - its descriptor replaces the pipe's
        os.dup2(other.fileno(), reader)
    for _ in range(3):
        log(writer, "lost")
        time.sleep(0.1)
    assert writer.dropped == 3


def test_the_last_lines_are_written_before_the_process_ends() -> None:
    code = (
        "import logging, os\nfrom bedplate_gateway import log_writer\nlog_writer.install()\n"
        "for number in range(1000): logging.info('line %d', number)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": os.environ.get("PYTHONPATH", "") or ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert re.findall(r"line (\d+)", ended.stderr) == [str(number) for number in range(1000)]
