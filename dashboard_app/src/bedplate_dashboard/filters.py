"""How the page and the text say lengths of time, sizes, rates and shares: filters of the templates."""

from __future__ import annotations

from datetime import UTC, datetime

NOTHING = "\u2013"  # an en dash


def age(seconds: float) -> str:
    """Say a length of time in one unit: 0.4 s, 12 s, 3 min, 5 h, 2 d."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} d"


def days(amount: float) -> str:
    """Say how long something lasts: under 1 d, 41 d."""
    return "under 1 d" if amount < 1 else f"{amount:.0f} d"


def milliseconds(seconds: float | None) -> str:
    """Say a latency: 0.4 ms, 12 ms, 1.20 s, 75 s."""
    if seconds is None:
        return ""
    if seconds >= 10:
        return f"{seconds:.0f} s"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.00995 else f"{seconds * 1000:.1f} ms"


def size(amount: float | None) -> str:
    """Say bytes as people buy memory: 270 MB, 4.9 GB, 1.2 TB."""
    if amount is None:
        return ""
    if amount < 1e9:
        return f"{amount / 1e6:.0f} MB"
    if amount < 1e12:
        return f"{amount / 1e9:.1f} GB"
    return f"{amount / 1e12:.1f} TB"


def number(amount: float | None) -> str:
    """Say a count or a rate with at most three digits: 0, 0.05, 3.1, 42, 1.2k, 3.4M."""
    if amount is None:
        return NOTHING
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if amount >= limit:
            return f"{amount / (1e6 if unit == 'M' else 1e3):.3g}{unit}"
    if amount == round(amount):
        return f"{amount:.0f}"
    if amount >= 100:
        return f"{amount:.0f}"
    return f"{amount:.1f}" if amount >= 1 else f"{amount:.2f}"


def percent(ratio: float | None) -> str:
    """Say a share: 0 %, 42 %, 99.4 %; never 100 % for less than all, never 0 % for more than none."""
    if ratio is None:
        return NOTHING
    if 0.9 < ratio < 1:
        return f"{min(ratio * 100, 99.9):.1f}\u202f%"
    if 0 < ratio < 0.01:
        return "<1\u202f%"
    return f"{ratio * 100:.0f}\u202f%"


def share(gpu: int | None, memory: int | None) -> str:
    """Say where a loaded model lies: GPU, CPU, or how much of it on the GPU."""
    if not memory or gpu is None:
        return ""
    part = min(1.0, gpu / memory)
    return "CPU" if part == 0 else "GPU" if part == 1 else f"{part:.0%} GPU"


def utc(moment: datetime) -> str:
    """Write a time as RFC 3339 in UTC with whole seconds."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


FILTERS = {
    "age": age,
    "days": days,
    "ms": milliseconds,
    "size": size,
    "number": number,
    "percent": percent,
    "utc": utc,
}
