# SPDX-License-Identifier: Apache-2.0
"""Compares the host with what its inventory declared at the last deployment (bedplate-drift.timer).

Writes the result for the node exporter, and one line for each difference to standard output.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from .drift import Difference, find_differences, wanted_paths
from .drift_host import EXPECTED, STATUS, load_expectation, look_at_host, write_status
from .host_record import RECORDS, RecordError, load_record

# A service that restarts and a deployment that goes on differ for a while.
CONFIRM_SECONDS = 60
AGAIN_SECONDS, AGAIN_TIMES = 20, 36
"""While something differs it compares again until the next run, so that the page knows of a repair."""


def compare() -> list[Difference]:
    """Return what differs now, except stopped services: the dashboard names them within seconds.

    Raises RecordError and OSError.
    """
    expected = load_expectation(EXPECTED)
    records = load_record(RECORDS)
    seen = look_at_host(expected, records, wanted_paths(records, None))
    differences = find_differences(expected, records, seen)
    return [each for each in differences if (each.kind, each.expected) != ("service", "active")]


def still(differences: Iterable[Difference]) -> list[Difference]:
    """Return which of these still differ."""
    before = {(each.kind, each.what) for each in differences}
    return [each for each in compare() if (each.kind, each.what) in before]


def are_known(differences: Iterable[Difference]) -> bool:
    """Return whether none of these is wrong."""
    return all(each.known for each in differences)


def watch() -> Iterator[list[Difference]]:
    """Compare once, or again and again while something differs; yields what differs each time."""
    differences = compare()
    if not are_known(differences):
        time.sleep(CONFIRM_SECONDS)
        differences = still(differences)
    yield differences
    for _ in range(AGAIN_TIMES):
        if are_known(differences):
            return
        time.sleep(AGAIN_SECONDS)
        differences = still(differences)
        yield differences


def report(differences: Sequence[Difference]) -> None:
    """Write the result for the node exporter, and one line for each difference."""
    for difference in differences:
        print(("known: " if difference.known else "") + difference.sentence, flush=True)
    write_status(STATUS, differences)


def main() -> None:
    """Compare, and report each result that differs from the last."""
    last: list[Difference] | None = None
    try:
        for differences in watch():
            if differences != last:
                report(differences)
            last = differences
    except (RecordError, OSError, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr)
        unknown = Difference(
            kind="host", what=str(EXPECTED), expected="a comparison", seen=str(error), remedy="make drift"
        )
        report([unknown])


if __name__ == "__main__":
    main()
