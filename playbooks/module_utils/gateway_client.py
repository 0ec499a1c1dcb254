# SPDX-License-Identifier: Apache-2.0
"""Client of the gateway's API for Ansible modules; uses only the standard library."""

from __future__ import annotations

import json
import math
import ssl
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

# A chat request waits in the queue and for the engine.
CHAT_SECONDS = 20.0
LIST_SECONDS = 5.0
# After a server has not answered once, it gets no more than this.
SILENT_SECONDS = 1.0
# The code of the edge's own errors (roles/edge/templates/haproxy.cfg.j2).
EDGE_CODE = "service_unavailable"
JOURNAL_COMMAND = "journalctl -u bedplate-gateway -n 50"


class Answer(NamedTuple):
    """One response; `status` is -1 if the gateway did not respond, `late` if it was waited for in vain.

    Times are monotonic seconds.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    started: float
    ended: float
    late: bool = False

    def document(self) -> dict[str, Any]:
        """Return the JSON object in the body; empty if the body is no JSON object."""
        try:
            document = json.loads(self.body)
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}

    def number(self, header: str) -> int:
        """Return a header as an integer; -1 if it is missing or no integer."""
        text = self.headers.get(header, "")
        return int(text) if text.isdecimal() else -1

    def error_code(self) -> str:
        """Return the code of an error in OpenAI's format; empty if there is none."""
        error = self.document().get("error")
        return str(error.get("code")) if isinstance(error, dict) else ""

    def over_limit(self) -> bool:
        """Return whether the request was refused for a limit of requests or tokens."""
        return self.status == 429 and self.error_code() == "rate_limit_exceeded"


class Gateway:
    """Client of one gateway, or of another server that `name` names; `url` is without /v1.

    `ca_file` has the CAs that verify the certificate of an https URL. No request lasts beyond `deadline`, in
    monotonic seconds.
    """

    def __init__(
        self, url: str, name: str = "the gateway", ca_file: str | None = None, deadline: float = math.inf
    ) -> None:
        self.url = url
        self.name = name
        parts = urlsplit(url)
        self._address = parts.netloc
        self._deadline = deadline
        self._silent = False
        self._trusted = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None

    def request(self, method: str, path: str, key: str | None = None, body: object = None) -> Answer:
        """Send one request on a new connection; `body` is sent as JSON."""
        seconds = SILENT_SECONDS if self._silent else LIST_SECONDS if body is None else CHAT_SECONDS
        seconds = min(seconds, self.seconds_left())
        if seconds <= 0:
            return Answer(-1, {}, b"", time.monotonic(), time.monotonic(), late=True)
        connection = self._connection(seconds)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        started = time.monotonic()
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, names, response.read(), started, time.monotonic())
        except TimeoutError:
            self._silent = True
            return Answer(-1, {}, b"", started, time.monotonic(), late=True)
        except (OSError, HTTPException):
            return Answer(-1, {}, b"", started, time.monotonic())
        finally:
            connection.close()
        # The edge answers for a gateway that does not.
        if answer.error_code() == EDGE_CODE:
            return Answer(-1, {}, b"", started, answer.ended)
        return answer

    def seconds_left(self) -> float:
        """Return the seconds until the deadline."""
        return self._deadline - time.monotonic()

    def _connection(self, seconds: float) -> HTTPConnection:
        if self._trusted is None:
            return HTTPConnection(self._address, timeout=seconds)
        return HTTPSConnection(self._address, timeout=seconds, context=self._trusted)

    def models(self, key: str) -> Answer:
        """Request the list of models, which uses no limit."""
        return self.request("GET", "/v1/models", key)

    def chat(self, key: str, model: str, **fields: object) -> Answer:
        """Send a chat request for one token, with more fields where given."""
        body = {
            "model": model,
            "max_tokens": 1,
            "messages": [{"role": "user", "content": "Count to ten."}],
        }
        return self.request("POST", "/v1/chat/completions", key, body | fields)

    def describe(self, answer: Answer) -> str:
        """Return the answer's status and error code, or that there was none, for a report."""
        if answer.late:
            return f"{self.name} gave no answer in time at {self.url}"
        if answer.status == -1:
            return f"{self.name} does not respond at {self.url}"
        return f"status {answer.status}{' ' * bool(answer.error_code())}{answer.error_code()}"


def model_names(listed: Answer) -> list[str]:
    """Return the model names in a response of /v1/models."""
    data = listed.document().get("data")
    return [str(model.get("id")) for model in data] if isinstance(data, list) else []
