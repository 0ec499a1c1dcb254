"""Writes report files."""

from pathlib import Path

from bedplate_traffic.errors import CannotStartError


def write_text(path: Path, text: str) -> None:
    """Write a report; raises CannotStartError when that fails."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CannotStartError(
            f"The report {path} cannot be written ({error.strerror}): name another."
        ) from None
