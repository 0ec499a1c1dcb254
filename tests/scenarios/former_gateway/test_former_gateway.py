"""A host on which the gateway is litellm.service: site.yml replaces it, and no client notices."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.stack import Load, Stack

MAX_REFUSED_SECONDS = 10.0
INTERVAL_SECONDS = 0.05
LIMIT, WINDOW_SECONDS = 100, 60.0
# A request may count at another moment than it was sent.
COUNT_TOLERANCE = 2
LEFTOVERS = """
find / -xdev -name '*bedplate[-_]litellm*' -not -path '/proc/*' -not -path '/sys/*'
find /etc/bedplate/litellm -type f -not -name config.yaml -not -name master-key
find /opt/bedplate/litellm/releases -mindepth 1 -maxdepth 1 -not -name '[1-9].*'
ls -d /run/litellm /var/lib/litellm 2>/dev/null || true
systemctl cat litellm | grep bedplate-litellm || true
"""


class Watch:
    """New connections to the gateway's port, and the requests that one limited key has left."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._stop = threading.Event()
        self.refused: list[float] = []
        """When a connection was refused, in seconds of the monotonic clock."""
        self.used: list[tuple[float, int]] = []
        """When a request of the limited key was sent, and how many of its limit the answer calls used."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch for the length of a block."""
        threads = [threading.Thread(target=run) for run in (self._connect, self._use_limit)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def refused_seconds(self) -> float:
        """From the first refused connection to the last."""
        return max(self.refused) - min(self.refused) + INTERVAL_SECONDS if self.refused else 0.0

    def miscounted(self) -> list[tuple[int, int]]:
        """The answers that call another number used than were sent in the last minute: (used, sent)."""
        found = []
        for number, (now, used) in enumerate(self.used, 1):
            sent = sum(1 for then, _ in self.used[:number] if now - then < WINDOW_SECONDS)
            if abs(used - sent) > COUNT_TOLERANCE:
                found.append((used, sent))
        return found

    def _connect(self) -> None:
        host, port = self._stack.url.removeprefix("http://").split(":")
        while not self._stop.wait(INTERVAL_SECONDS):
            try:
                socket.create_connection((host, int(port)), timeout=10).close()
            except OSError:
                self.refused.append(time.monotonic())

    def _use_limit(self) -> None:
        with self._stack.client(self._stack.key("ratelimit")) as client:
            while not self._stop.wait(1):
                sent = time.monotonic()
                answer = self._stack.chat(client)
                assert answer.status_code == 200, answer.text
                remaining = int(answer.headers["x-ratelimit-remaining-requests"])
                self.used.append((sent, LIMIT - remaining))


def prometheus(stack: Stack, query: str) -> list[float]:
    """The values of an instant query."""
    credentials = (
        '--user "bedplate:$(cat /etc/bedplate/prometheus/password)" --cacert /etc/bedplate/prometheus/ca.crt'
    )
    address = stack.url.removeprefix("http://").split(":")[0]
    answer = stack(
        f"curl --silent --fail {credentials} --get --data-urlencode 'query={query}' https://{address}:9090/api/v1/query"
    )
    return [float(sample["value"][1]) for sample in json.loads(answer)["data"]["result"]]


def test_site_replaces_it_and_no_client_notices(stack: Stack) -> None:
    assert "bedplate-litellm" in stack("systemctl cat litellm")
    keys = stack.keys_file.read_text()
    stack.play("--check")
    watch, load = Watch(stack), Load(stack, clients=2, tokens=64, stream=True)
    with watch.running(), load.running():
        time.sleep(70)
        assert stack.play() > 0
        time.sleep(5)
    print(f"refused for {watch.refused_seconds():.2f} s ({len(watch.refused)} connections)")
    assert watch.refused_seconds() <= MAX_REFUSED_SECONDS
    assert load.failed() == []
    assert watch.miscounted() == []
    assert stack.keys_file.read_text() == keys


def test_nothing_of_it_is_left(stack: Stack) -> None:
    assert stack(LEFTOVERS) == ""


def test_the_history_stays(stack: Stack) -> None:
    assert prometheus(stack, 'count(count_over_time(up{job="litellm"}[1h]))') == [1]
    assert prometheus(stack, 'up{job="gateway"}') == [1]


def test_a_second_run_changes_nothing(stack: Stack) -> None:
    assert stack.play() == 0
