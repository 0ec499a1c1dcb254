"""The time by which keys expire, with a system clock that steps."""

import logging
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from bedplate_gateway import clock
from bedplate_gateway.clock import ExpiryClock

NOW = 1_780_000_000.0
DAY = 86400.0


class SystemClock:
    """Wall clock and monotonic clock of a host."""

    def __init__(self) -> None:
        self.wall = NOW
        self.elapsed = 0.0

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.elapsed += seconds


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> SystemClock:
    system = SystemClock()
    monkeypatch.setattr(time, "time", lambda: system.wall)
    monkeypatch.setattr(time, "monotonic", lambda: system.elapsed)
    return system


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def run_for(expiry: ExpiryClock, system: SystemClock, seconds: float) -> None:
    for _ in range(int(seconds / 5)):
        system.pass_time(5)
        expiry.check()


def test_the_clock_is_the_systems_while_it_goes_on(
    tmp_path: Path, system: SystemClock, caplog: pytest.LogCaptureFixture
) -> None:
    expiry = ExpiryClock(tmp_path / "clock")
    run_for(expiry, system, 3600)
    assert (expiry.now(), expiry.offset) == (at(NOW + 3600), 0)
    # A time server corrects a small error.
    system.wall -= 60
    run_for(expiry, system, 30)
    assert expiry.offset == 0
    assert not caplog.records


def test_a_host_that_boots_in_1970_revives_no_key(
    tmp_path: Path, system: SystemClock, caplog: pytest.LogCaptureFixture
) -> None:
    run_for(ExpiryClock(tmp_path / "clock"), system, 3600)
    system.wall, system.elapsed = 100.0, 0.0
    expiry = ExpiryClock(tmp_path / "clock")
    run_for(expiry, system, 600)
    assert at(NOW + 3600 - clock.SAVE_SECONDS) <= expiry.now() <= at(NOW + 3600)
    assert expiry.offset < -NOW + 10_000
    assert len(caplog.records) == 1
    assert "The clock shows 1970-01-01T00:01:40+00:00, but 2026-05-28T" in caplog.text
    assert str(tmp_path / "clock") in caplog.text
    system.wall = NOW + 4000
    expiry.check()
    assert (expiry.now(), expiry.offset) == (at(NOW + 4000), 0)


def test_a_clock_far_ahead_is_told_and_once_corrected_expires_nothing(
    tmp_path: Path, system: SystemClock, caplog: pytest.LogCaptureFixture
) -> None:
    expiry = ExpiryClock(tmp_path / "clock")
    system.wall += 70 * 365 * DAY
    run_for(expiry, system, 1800)
    assert expiry.now() == at(system.wall)
    assert expiry.offset > 60 * 365 * DAY
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "keys that expired in between are refused" in caplog.text
    system.wall -= 70 * 365 * DAY
    expiry.check()
    assert (expiry.now(), expiry.offset) == (at(system.wall), 0)
    assert ExpiryClock(tmp_path / "clock").now() == at(system.wall)


def test_a_host_that_was_off_for_weeks_is_believed_after_an_hour(tmp_path: Path, system: SystemClock) -> None:
    ExpiryClock(tmp_path / "clock")
    system.wall += 21 * DAY
    expiry = ExpiryClock(tmp_path / "clock")
    assert expiry.offset == 21 * DAY
    run_for(expiry, system, clock.HOLD_SECONDS + 10)
    assert expiry.offset == 0
    system.wall -= 10 * DAY
    assert expiry.now() > at(NOW + 21 * DAY)


def test_a_folder_that_cannot_be_written_is_told_once(
    tmp_path: Path, system: SystemClock, caplog: pytest.LogCaptureFixture
) -> None:
    expiry = ExpiryClock(tmp_path / "missing" / "clock")
    run_for(expiry, system, 600)
    assert expiry.now() == at(NOW + 600)
    assert caplog.text.count("cannot be written (No such file or directory): make room there.") == 1


def test_the_time_is_kept_in_a_file_without_content(tmp_path: Path, system: SystemClock) -> None:
    file = tmp_path / "clock"
    run_for(ExpiryClock(file), system, 3600)
    assert file.stat().st_size == 0
    assert file.stat().st_mtime == pytest.approx(NOW + 3600, abs=clock.SAVE_SECONDS)
