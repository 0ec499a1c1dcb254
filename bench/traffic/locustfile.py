"""The bench's load for locust: streamed chat requests, read to the end; the times are written to a file.

FastHttpUser is locust's cheapest client. RATE: requests per second of all users together, each of whom sends
one per second; without it each sends the next one at once. COUNT: the number of requests.
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


class ChatUser(FastHttpUser):
    """A user of the endpoint."""

    wait_time = constant_throughput(1) if os.environ.get("RATE") else constant(0)

    @task
    def send(self) -> None:
        """Send one request, record its times, and end the run after the last request."""
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
                response.failure("no complete answer")
                return
        times.append((first - start, time.perf_counter() - start))
        if len(times) >= COUNT:
            # In another greenlet: quit() waits for the end of every user, including this one.
            gevent.spawn(self.environment.runner.quit)


@events.quitting.add_listener
def write(**_: Any) -> None:
    """Write the times to the file."""
    Path(os.environ["TIMES"]).write_text(json.dumps(times))
