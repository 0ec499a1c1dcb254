"""What locust does in the bench: streamed chat requests, read to the end; times into a file.

FastHttpUser is the cheapest client that locust has. RATE: requests a second of all users together, each of
whom asks once a second; without it they ask again at once. COUNT: how many requests there are.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, constant, constant_throughput, events, task

COUNT = int(os.environ["COUNT"])
BODY: dict[str, Any] = {
    "model": "fake",
    "messages": [{"role": "user", "content": os.environ["PROMPT"]}],
    "max_tokens": int(os.environ["TOKENS"]),
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
}
times: list[tuple[float, float]] = []


class Asker(FastHttpUser):
    """A user of the endpoint."""

    wait_time = constant_throughput(1) if os.environ.get("RATE") else constant(0)

    @task
    def ask(self) -> None:
        """Ask once, note the times, and end the run after the last request."""
        start, first, usage = time.perf_counter(), None, None
        with self.client.post(
            "/v1/chat/completions", json=BODY, stream=True, catch_response=True
        ) as response:
            while line := response.stream.readline(b"\n"):
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    chunk = json.loads(line[6:])
                    first = first or time.perf_counter()
                    usage = chunk.get("usage") or usage
            if first is None or not usage:
                response.failure("no whole answer")
                return
        times.append((first - start, time.perf_counter() - start))
        if len(times) >= COUNT:
            # Not from within a user, who would wait for its own end.
            gevent.spawn(self.environment.runner.quit)


@events.quitting.add_listener
def write(**_: Any) -> None:
    """Leave the times behind."""
    Path(os.environ["TIMES"]).write_text(json.dumps(times))
