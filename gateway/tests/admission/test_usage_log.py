"""The file that keeps the usage across a kill."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bedplate_gateway.admission.limits import Limits, Usage
from bedplate_gateway.admission.usage_log import UsageLog
from bedplate_gateway.keys import Key


def key(alias: str = "a", **fields: object) -> Key:
    return Key.model_validate({"alias": alias, "secrets": [], **fields})


def open_usage_log(path: Path, rpm: int = 5) -> tuple[UsageLog, Limits]:
    usage_log = UsageLog(path)
    limits = Limits([key(rpm=rpm, tpm=100)], {}, usage_log.append)
    limits.replay(usage_log.read(), 100.0)
    usage_log.export = limits.export
    usage_log.rewrite()
    return usage_log, limits


def test_the_usage_log_brings_back_what_was_used(tmp_path: Path) -> None:
    _, limits = open_usage_log(tmp_path / "limits")
    for at in (90.0, 91.0, 92.0):
        limits.count_request("a", "m", at)
    limits.refund_request("a", "m", 91.0)
    limits.charge_tokens("a", "m", 50, 93.0)
    limits.charge_tokens("a", "m", -20, 94.0)
    # Nothing is closed: the process was killed.
    _, after = open_usage_log(tmp_path / "limits")
    assert after.export() == [
        Usage("key", "a", "requests", 90.0, 1),
        Usage("key", "a", "requests", 92.0, 1),
        Usage("key", "a", "tokens", 93.0, 30),
    ]


def test_the_usage_log_forgets_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    _, limits = open_usage_log(path)
    limits.count_request("a", "m", 90.0)
    with path.open("a") as file:
        file.write('["key", "a", "requ')
    _, after = open_usage_log(path)
    assert len(after.export()) == 1


def test_the_files_stay_small_and_keep_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate_gateway.admission.usage_log.ROTATE_BYTES", 2000)
    path = tmp_path / "limits"
    usage_log, limits = open_usage_log(path, rpm=1000)
    # Whatever counts is written once: a file of that many lines would keep the event loop.
    usage_log.export = lambda: pytest.fail("the file was written anew")
    for number in range(500):
        now = number * 10.0
        limits.exceeded("a", "m", "requests", now)
        limits.count_request("a", "m", now)
        assert [usage for usage in usage_log.read() if usage.at > now - 60] == limits.export()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 5000
    usage_log.export = limits.export
    usage_log.rewrite()
    assert usage_log.read() == limits.export()
    assert list(tmp_path.iterdir()) == [path]


def test_a_refund_after_a_start_does_not_make_the_file_look_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, limits = open_usage_log(tmp_path / "limits", rpm=1000)
    limits.count_request("a", "m", 40.0)
    limits.count_request("a", "m", 99.0)
    monkeypatch.setattr("bedplate_gateway.admission.usage_log.ROTATE_BYTES", 10)
    usage_log, limits = open_usage_log(tmp_path / "limits", rpm=1000)
    limits.refund_request("a", "m", 40.0)
    limits.count_request("a", "m", 101.0)
    assert {99.0, 101.0} <= {usage.at for usage in usage_log.read()}


def test_a_large_file_is_kept_while_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate_gateway.admission.usage_log.ROTATE_BYTES", 2000)
    _, limits = open_usage_log(tmp_path / "limits", rpm=1000)
    for number in range(500):
        limits.count_request("a", "m", 90.0 + number / 50)
    _, after = open_usage_log(tmp_path / "limits", rpm=1000)
    assert len(after.export()) == 500


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: the kernel refuses the write, after its first bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_room_the_limits_hold_in_memory_and_the_file_is_mended_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "limits"
    usage_log, limits = open_usage_log(path)
    limits.count_request("a", "m", 90.0)
    with no_room(path.stat().st_size + 10):
        for at in (91.0, 92.0):
            limits.count_request("a", "m", at)
            usage_log.retry()
        assert limits.exceeded("a", "m", "requests", 93.0) is None
        limits.count_request("a", "m", 93.0)
        limits.count_request("a", "m", 94.0)
        assert limits.exceeded("a", "m", "requests", 95.0)
        # What was written before the failure is still there.
        assert [usage.at for usage in usage_log.read()] == [90.0]
        assert len(caplog.records) == 1
        assert "cannot be written (File too large): limits hold" in caplog.text
        failed_without_room = usage_log.failed
    usage_log.retry()
    assert (failed_without_room, usage_log.failed) == (True, False)
    assert caplog.text.count("is written again.") == 1
    limits.charge_tokens("a", "m", 5, 95.0)
    assert [usage.at for usage in usage_log.read()] == [90.0, 91.0, 92.0, 93.0, 94.0, 95.0]
    assert sorted(path.parent.iterdir()) == [path]


def test_a_start_without_room_serves(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    _, limits = open_usage_log(path)
    limits.count_request("a", "m", 90.0)
    with no_room(10):
        usage_log, limits = open_usage_log(path)
        assert usage_log.failed
        limits.count_request("a", "m", 91.0)
    assert [usage.at for usage in usage_log.read()] == [90.0]


def test_a_log_that_another_process_continues_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    usage_log, limits = open_usage_log(path)
    with no_room(0):
        limits.count_request("a", "m", 90.0)
    assert usage_log.failed
    usage_log.close()
    path.unlink()
    usage_log.retry()
    assert not path.exists()
