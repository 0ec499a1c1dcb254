"""A host with the gateway as litellm.service and no edge: site.yml brings it up to date."""

from __future__ import annotations

import ssl
import threading
import time

import httpx

from tests.support.prometheus import PrometheusApi
from tests.support.stack import Stack

MAX_INTERRUPTION_SECONDS = 60.0
LEFTOVERS = """
find / -xdev -name '*bedplate[-_]litellm*' -not -path '/proc/*' -not -path '/sys/*'
find /etc/bedplate/litellm -type f -not -name config.yaml -not -name master-key
find /opt/bedplate/litellm/releases -mindepth 1 -maxdepth 1 -not -name '[1-9].*'
ls -d /run/litellm /var/lib/litellm /etc/bedplate/prometheus/web.yml 2>/dev/null || true
systemctl cat litellm | grep bedplate-litellm || true
"""


class Interruption(threading.Thread):
    """Asks the API until it is stopped; `longest` is the longest time without an answer, in seconds."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self._place = f"{stack.address}:8000/health/liveliness"
        self._stop_asking = threading.Event()
        self.longest = 0.0

    def run(self) -> None:
        """Ask ten times a second, at first without TLS."""
        # The CA is made meanwhile.
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        last = time.monotonic()
        with httpx.Client(verify=unverified, trust_env=False, timeout=5) as client:
            while not self._stop_asking.wait(0.1):
                for scheme in ("http", "https"):
                    try:
                        answered = client.get(f"{scheme}://{self._place}").status_code == 200
                    except httpx.HTTPError:
                        continue
                    if answered:
                        self.longest = max(self.longest, time.monotonic() - last)
                        last = time.monotonic()

    def stop(self) -> None:
        """End the thread."""
        self._stop_asking.set()
        self.join()


def test_site_replaces_it(stack: Stack) -> None:
    assert "bedplate-litellm" in stack("systemctl cat litellm")
    keys = stack.keys_file.read_text()
    stack.play("--check")
    interruption = Interruption(stack)
    interruption.start()
    try:
        assert stack.play() > 0
    finally:
        interruption.stop()
    print(f"the API did not answer for {interruption.longest:.1f} s")
    assert interruption.longest <= MAX_INTERRUPTION_SECONDS
    assert stack.keys_file.read_text() == keys
    with stack.client(stack.key("bench")) as client:
        assert stack.chat(client).status_code == 200


def test_nothing_of_it_is_left(stack: Stack) -> None:
    assert stack(LEFTOVERS) == ""


def test_the_history_stays(stack: Stack) -> None:
    prometheus = PrometheusApi(stack)
    assert prometheus.value('count(count_over_time(up{job="litellm"}[1h]))') == 1
    assert prometheus.value('up{job="gateway"}') == 1


def test_a_second_run_changes_nothing(stack: Stack) -> None:
    assert stack.play() == 0
