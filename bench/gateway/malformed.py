"""The rows `malformed` of bench/gateway.md: 2,000 odd requests, each of which the gateway must survive.

With --edge they go through HAProxy with the role's configuration.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.tests.test_malformed import examine
from tests.support.servers import edge

REQUESTS = 240 if "--quick" in sys.argv else 2000


@contextmanager
def through_the_edge(path: Path) -> Iterator[int]:
    """Run HAProxy before the socket; yields its port."""
    with edge(path, tls=False) as server:
        yield int(server.url.rpartition(":")[2])


def main() -> None:
    """Send them, and print a table of the answers."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        counters = examine(Path(folder), REQUESTS, through_the_edge if "--edge" in sys.argv else None)
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
