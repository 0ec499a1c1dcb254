# SPDX-License-Identifier: Apache-2.0
"""The gateway as a client sees it, for the modules that prove its promises; standard library only."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlsplit

# A question waits in the queue and for the engine.
ANSWER_SECONDS = 150.0
LIST_SECONDS = 10.0
LOOK = "journalctl -u bedplate-gateway -n 50"
Check = dict[str, Any]


class Answer(NamedTuple):
    """One answer; `status` is -1 where none came. Times are monotonic seconds."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    started: float
    ended: float

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the body, empty where it is none."""
        try:
            document = json.loads(self.body)
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}

    def number(self, header: str) -> int:
        """Return a header as a whole number, -1 where it is none."""
        text = self.headers.get(header, "")
        return int(text) if text.isdecimal() else -1

    def error_code(self) -> str:
        """Return the code of an error in OpenAI's shape, empty where there is none."""
        error = self.document().get("error")
        return str(error.get("code")) if isinstance(error, dict) else ""

    def over_limit(self) -> bool:
        """Say whether it was refused for a limit of requests or tokens."""
        return self.status == 429 and self.error_code() == "rate_limit_exceeded"


class Gateway:
    """The gateway at an address."""

    def __init__(self, url: str) -> None:
        """`url` is without /v1."""
        self.url = url
        self._address = urlsplit(url).netloc

    def ask(self, method: str, path: str, key: str | None = None, body: object = None) -> Answer:
        """Send one request on a connection of its own."""
        connection = HTTPConnection(self._address, timeout=LIST_SECONDS if body is None else ANSWER_SECONDS)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        started = time.monotonic()
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read(), started, time.monotonic())
        except (OSError, HTTPException):
            return Answer(-1, {}, b"", started, time.monotonic())
        finally:
            connection.close()

    def models(self, key: str) -> Answer:
        """Ask for the models, which costs nothing."""
        return self.ask("GET", "/v1/models", key)

    def chat(self, key: str, model: str) -> Answer:
        """Ask the smallest question."""
        body = {
            "model": model,
            "max_tokens": 1,
            "messages": [{"role": "user", "content": "Count to ten."}],
        }
        return self.ask("POST", "/v1/chat/completions", key, body)

    def seen(self, answer: Answer) -> str:
        """Say what an answer was."""
        if answer.status == -1:
            return f"the gateway does not answer at {self.url}"
        return f"status {answer.status}{' ' * bool(answer.error_code())}{answer.error_code()}"


def model_names(listed: Answer) -> list[str]:
    """Return the names in a list of models."""
    data = listed.document().get("data")
    return [str(model.get("id")) for model in data] if isinstance(data, list) else []


def check(name: str, ok: bool | None, seen: str, next_command: str = LOOK) -> Check:
    """Return one line of a report; `ok` is None where it could not be asked."""
    return {"name": name, "ok": ok, "seen": seen, "next": next_command}
