"""Filters: durations, sizes, rates and shares as the page shows them."""

from bedplate_dashboard.web import filters


def test_lengths_and_sizes() -> None:
    ages = [filters.format_age(seconds) for seconds in (-1, 0.44, 59, 600, 7300, 900000)]
    assert ages == ["0.0 s", "0.4 s", "59 s", "10 min", "2 h", "10 d"]
    times = [filters.format_milliseconds(seconds) for seconds in (None, 0.0004, 0.0123, 1.2, 75.4)]
    assert times == ["", "0.4 ms", "12 ms", "1.20 s", "75 s"]
    sizes = [filters.format_size(amount) for amount in (None, 270_900_000, 4_900_000_000, 1.2e12)]
    assert sizes == ["", "271 MB", "4.9 GB", "1.2 TB"]
    assert [filters.format_days(amount) for amount in (0.1, 41.2)] == ["under 1 d", "41 d"]


def test_rates_and_shares() -> None:
    numbers = [
        filters.format_number(amount) for amount in (None, 0, 0.0512, 3.14, 42, 97.5, 5200, 20000, 3_400_000)
    ]
    assert numbers == ["\u2013", "0", "0.05", "3.1", "42", "97.5", "5200", "20k", "3.4M"]
    ratios = [filters.format_percent(ratio) for ratio in (None, 0, 0.001, 0.42, 0.982, 0.99999, 1)]
    assert [ratio.replace("\u202f", "") for ratio in ratios] == [
        "\u2013",
        "0%",
        "<1%",
        "42%",
        "98.2%",
        "99.9%",
        "100%",
    ]
    shares = [
        filters.describe_gpu_share(gpu, memory) for gpu, memory in ((None, 1), (0, 0), (0, 9), (9, 9), (3, 9))
    ]
    assert shares == ["", "", "CPU", "GPU", "33% GPU"]
