"""`traffic run` in a test: profiles, handlers that refuse, and the report of a run."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from bedplate_traffic.cli import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


class Ran:
    """One run: its exit status and its report."""

    def __init__(self, folder: Path, url: str, *arguments: str) -> None:
        self.file = folder / "report.json"
        self.status = run(*arguments, "--url", url, "--json", str(self.file))
        self.report: Any = json.loads(self.file.read_text())

    def of(self, name: str) -> Any:
        (report,) = (report for report in self.report["classes"] if report["name"] == name)
        return report

    @property
    def only(self) -> Any:
        (report,) = self.report["classes"]
        return report


def profile(folder: Path, *classes: dict[str, Any], **settings: Any) -> str:
    file = folder / "mine.yml"
    file.write_text(yaml.safe_dump({"max_seconds": 10, "classes": list(classes), **settings}))
    return str(file)


def burst(name: str = "a", size: int = 10, **settings: Any) -> dict[str, Any]:
    return {"name": name, "load": {"shape": "burst", "size": size}, **settings}


def refusing(times: int, headers: dict[str, str]) -> tuple[Any, list[float]]:
    """Return a handler that refuses its first requests, and the moments at which requests arrived."""
    arrivals: list[float] = []

    async def handle(_: web.Request) -> web.Response:
        arrivals.append(time.monotonic())
        if len(arrivals) <= times:
            text = f"slow down for {len(arrivals)}.5 s"
            return web.json_response({"error": {"message": text}}, status=429, headers=headers)
        message = {"role": "assistant", "content": "hi"}
        body = {"choices": [{"message": message}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
        return web.json_response(body)

    return handle, arrivals
