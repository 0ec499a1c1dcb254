# SPDX-License-Identifier: Apache-2.0
"""Compares the host with what its inventory declared at the last deployment (bedplate-drift.timer).

Writes the result for the node exporter, and one line for each difference to standard output.
"""

from __future__ import annotations

import subprocess
import sys
import time

from .drift import Difference, find_differences, wanted_paths
from .drift_host import EXPECTED, STATUS, load_expectation, look_at_host, write_status
from .host_record import RECORDS, RecordError, load_record

# A service that restarts and a deployment that goes on differ for a while.
CONFIRM_SECONDS = 60


def compare() -> list[Difference]:
    """Return what differs now, except stopped services: the dashboard names them within seconds.

    Raises RecordError and OSError.
    """
    expected = load_expectation(EXPECTED)
    records = load_record(RECORDS)
    seen = look_at_host(expected, records, wanted_paths(records, None))
    differences = find_differences(expected, records, seen)
    return [each for each in differences if (each.kind, each.expected) != ("service", "active")]


def confirmed() -> list[Difference]:
    """Return what differs now and still does after a while."""
    first = compare()
    if all(each.known for each in first):
        return first
    time.sleep(CONFIRM_SECONDS)
    before = {(each.kind, each.what) for each in first}
    return [each for each in compare() if (each.kind, each.what) in before]


def main() -> None:
    """Compare, and report."""
    try:
        differences = confirmed()
    except (RecordError, OSError, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr)
        unknown = Difference(
            kind="host", what=str(EXPECTED), expected="a comparison", seen=str(error), remedy="make drift"
        )
        differences = [unknown]
    for difference in differences:
        print(("known: " if difference.known else "") + difference.sentence)
    write_status(STATUS, differences)


if __name__ == "__main__":
    main()
