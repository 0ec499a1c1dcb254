"""The row `malformed` of bench/gateway.md: 2,000 odd requests, each of which the gateway must survive."""

import sys
import tempfile
import time
from pathlib import Path

from gateway.tests.test_malformed import examine

REQUESTS = 240 if "--quick" in sys.argv else 2000


def main() -> None:
    """Send them, and print a table of the answers."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        counters = examine(Path(folder), REQUESTS)
    seconds = time.monotonic() - started
    statuses = sorted({status for counts in counters.values() for status in counts if status is not None})
    requests = sum(counts.total() for counts in counters.values())
    print(
        f"{requests} requests made by dice, 20 at a time, "
        f"in {seconds:.0f} s: no answer of 5xx, no hang, no slot lost after any 20 of them. "
        "Their numbers by status; `closed` had no answer, since the client left or sent no request."
    )
    print()
    print("| kind | closed | " + " | ".join(map(str, statuses)) + " |")
    print("|---" * (len(statuses) + 2) + "|")
    for kind, counts in sorted(counters.items()):
        print(f"| {kind} | " + " | ".join(str(counts[status] or "") for status in (None, *statuses)) + " |")


if __name__ == "__main__":
    main()
