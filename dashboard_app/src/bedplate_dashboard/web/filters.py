"""Filters of the templates: how page and text show durations, sizes, rates, shares and times."""

from datetime import UTC, datetime

from bedplate_dashboard.health.model import Pull

NO_VALUE = "\u2013"  # an en dash


def format_age(seconds: float) -> str:
    """Format a duration in one unit: 0.4 s, 12 s, 3 min, 5 h, 2 d."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} d"


def format_days(amount: float) -> str:
    """Format a number of days: under 1 d, 41 d."""
    return "under 1 d" if amount < 1 else f"{amount:.0f} d"


def format_milliseconds(seconds: float | None) -> str:
    """Format a latency: 0.4 ms, 12 ms, 1.20 s, 75 s; empty for None."""
    if seconds is None:
        return ""
    if seconds >= 10:
        return f"{seconds:.0f} s"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.00995 else f"{seconds * 1000:.1f} ms"


def format_size(amount: float | None) -> str:
    """Format bytes in decimal units, as vendors label memory: 270 MB, 4.9 GB, 1.2 TB; empty for None."""
    if amount is None:
        return ""
    if amount < 1e9:
        return f"{amount / 1e6:.0f} MB"
    if amount < 1e12:
        return f"{amount / 1e9:.1f} GB"
    return f"{amount / 1e12:.1f} TB"


def format_number(amount: float | None) -> str:
    """Format a count or a rate with at most three digits: 0, 0.05, 3.1, 42, 1.2k, 3.4M; a dash for None."""
    if amount is None:
        return NO_VALUE
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if amount >= limit:
            return f"{amount / (1e6 if unit == 'M' else 1e3):.3g}{unit}"
    if amount == round(amount):
        return f"{amount:.0f}"
    if amount >= 100:
        return f"{amount:.0f}"
    return f"{amount:.1f}" if amount >= 1 else f"{amount:.2f}"


def format_percent(ratio: float | None) -> str:
    """Format a share: 0 %, 42 %, 99.4 %; 100 % means all and 0 % means none. A dash for None."""
    if ratio is None:
        return NO_VALUE
    if 0.9 < ratio < 1:
        return f"{min(ratio * 100, 99.9):.1f}\u202f%"
    if 0 < ratio < 0.01:
        return "<1\u202f%"
    return f"{ratio * 100:.0f}\u202f%"


def describe_gpu_share(gpu: int | None, memory: int | None) -> str:
    """Return where a loaded model is: GPU, CPU, or the share on the GPU; empty if unknown. Bytes."""
    if not memory or gpu is None:
        return ""
    part = min(1.0, gpu / memory)
    return "CPU" if part == 0 else "GPU" if part == 1 else f"{part:.0%} GPU"


def describe_pull(pull: Pull) -> str:
    """Return how far the pull of a model is: percent, size, speed, time left."""
    words = [
        f"{format_percent(min(1.0, pull.done_bytes / pull.total_bytes))} of {format_size(pull.total_bytes)}"
    ]
    if pull.left_seconds is not None:
        words += [f"{format_size(pull.bytes_per_second)}/s", f"{format_age(pull.left_seconds)} left"]
    return f"pulls {pull.model}: {', '.join(words)}"


def format_utc(moment: datetime) -> str:
    """Format a time as RFC 3339 in UTC with whole seconds."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


FILTERS = {
    "age": format_age,
    "days": format_days,
    "ms": format_milliseconds,
    "size": format_size,
    "number": format_number,
    "percent": format_percent,
    "utc": format_utc,
}
