"""A lab host with the whole stack: API clients, playbook runs, and load on its gateway."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import yaml

from tests.support.hosts import run_script, running_hosts, users_environment

ROOT = Path(__file__).resolve().parents[2]
SOON_SECONDS = 20.0


class Stack:
    """The host `one` with the whole stack; `url` is the gateway's without /v1.

    `settings` are those with which the scenario installed it.
    """

    def __init__(self, name: str, variables: dict[str, Any], settings: dict[str, Any] | None = None) -> None:
        self.name = name
        self.settings = settings or {}
        self.address = str(variables["bedplate_bind_address"])
        self.url = f"https://{self.address}:8000"
        self.dashboard_url = f"https://{self.address}:3001"
        self.prometheus_url = f"https://{self.address}:9090"
        self.metrics_url = "http://127.0.0.1:9464/metrics"
        self.model = "smollm2:135m"
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        self.keys_file = home / "bedplate" / variables["bedplate_name"] / "keys.json"
        self.ca_file = self.keys_file.with_name("trust.crt")

    def keys(self) -> list[str]:
        """Return the secrets of all keys."""
        return list(json.loads(self.keys_file.read_text())["keys"].values())

    @property
    def login(self) -> tuple[str, str]:
        """The user and the password of dashboard, Prometheus and Alertmanager."""
        return "bedplate", self.keys_file.with_name("edge-password").read_text()

    def trusted(self) -> ssl.SSLContext:
        """Return what verifies the certificate of the host's edge."""
        return ssl.create_default_context(cafile=self.ca_file)

    def status(self) -> dict[str, Any]:
        """Return what the dashboard reports."""
        answer = httpx.get(
            f"{self.dashboard_url}/api/status.json", auth=self.login, verify=self.trusted(), trust_env=False
        )
        document: dict[str, Any] = answer.json()
        return document

    def key(self, alias: str) -> str:
        """Return the secret that `make key` prints."""
        return str(json.loads(self.keys_file.read_text())["keys"][alias])

    def __call__(self, script: str, *, fails: bool = False, stdin: str = "") -> str:
        """Run a script on the host without SSH and return its output."""
        return run_script(self.name, script, fails=fails, stdin=stdin)

    def play(
        self,
        *arguments: str,
        playbook: str = "site.yml",
        settings: dict[str, Any] | None = None,
        seconds: float = 600,
        checkout: Path = ROOT,
    ) -> int:
        """Run a playbook like a user; returns the number of changed tasks."""
        passed, output = run_playbook(
            playbook, *arguments, settings=settings, seconds=seconds, checkout=checkout
        )
        assert passed, output
        return sum(int(number) for number in re.findall(r" changed=(\d+)", output))

    def play_fails(
        self,
        *arguments: str,
        playbook: str = "site.yml",
        settings: dict[str, Any] | None = None,
        checkout: Path = ROOT,
    ) -> str:
        """Run a playbook that must fail; returns its output in one line, because Ansible folds long ones."""
        passed, output = run_playbook(playbook, *arguments, settings=settings, checkout=checkout)
        assert not passed, output
        return " ".join(output.split())

    def verify(self) -> None:
        """Check the running stack with the scenario's settings; fails with the failed checks."""
        self.play(playbook="playbooks/verify.yml", settings=self.settings)

    def client(self, secret: str = "", seconds: float = 60) -> httpx.Client:
        """Return a client with a key and persistent connections, and with this timeout."""
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        return httpx.Client(
            base_url=self.url, headers=headers, timeout=seconds, verify=self.trusted(), trust_env=False
        )

    def chat(self, client: httpx.Client, **fields: Any) -> httpx.Response:
        """Send one small chat request."""
        body = {
            "model": self.model,
            "max_tokens": 1,
            "messages": [{"role": "user", "content": "Count from one to a hundred."}],
        }
        return client.post("/v1/chat/completions", json=body | fields)

    def limited_keys(self) -> list[dict[str, Any]]:
        """Return the host's keys that have a limit of requests per minute."""
        keys = json.loads(self("cat /etc/bedplate/bedplate-gateway/keys.json"))["keys"]
        return [key for key in keys if key.get("rpm")]

    def key_status(self, secret: str) -> str:
        """Return "ok" if the gateway accepts a key, else the error message of its 401."""
        with self.client(secret) as client:
            answer = client.get("/v1/models")
        assert answer.status_code in (200, 401), answer.text
        if answer.status_code == 200:
            return "ok"
        error = answer.json()["error"]
        assert (error["code"], answer.headers["www-authenticate"]) == ("invalid_api_key", "Bearer")
        return str(error["message"])

    def main_pid(self) -> str:
        """Return the process id of the gateway's main process."""
        return self("systemctl show --property=MainPID --value bedplate-gateway").strip()


def run_playbook(
    playbook: str,
    *arguments: str,
    settings: dict[str, Any] | None = None,
    seconds: float = 600,
    checkout: Path = ROOT,
) -> tuple[bool, str]:
    """Run a checkout's playbook on this checkout's hosts; returns whether it passed, and its output."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ansible", "playbook", f"--inventory={ROOT}/inventory/lab", playbook),
            *arguments,
            *([f"--extra-vars={json.dumps(settings)}"] if settings else []),
        ],
        cwd=checkout,
        env={**users_environment(), "ANSIBLE_CONFIG": str(checkout / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return done.returncode == 0, done.stdout + done.stderr


def stack_of(scenario: str) -> Stack:
    """Return the host `one` of a running scenario."""
    hosts = running_hosts()
    assert "one" in hosts, f"there is no host `one`: run molecule converge --scenario-name {scenario}"
    return Stack("one", hosts["one"], converged_settings(scenario))


def converged_settings(scenario: str) -> dict[str, Any]:
    """Return the settings with which a scenario ran site.yml, beside those of the lab's inventory."""
    file = ROOT / "molecule" / scenario / "converge.yml"
    plays = yaml.safe_load(file.read_text()) if file.exists() else []
    site = [
        play for play in plays if str(play.get("ansible.builtin.import_playbook", "")).endswith("/site.yml")
    ]
    return dict(site[0].get("vars", {})) if site else {}


class Outcome(NamedTuple):
    """Result of one request under load: its status or error, and its duration in seconds."""

    result: str
    seconds: float


class Load:
    """Clients that send one chat request after the other, half of them on persistent connections.

    An incomplete response counts as failed, also a stream without its [DONE].
    """

    def __init__(
        self, stack: Stack, clients: int, *, tokens: int = 4, stream: bool = False, seconds: float = 60
    ) -> None:
        self._stack = stack
        self._seconds = seconds
        self._secret = stack.key("bench")
        self._fields = {"max_tokens": tokens, "stream": stream}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number % 2 == 0,)) for number in range(clients)
        ]
        self.outcomes: list[Outcome] = []

    def _run(self, keep_alive: bool) -> None:
        client = self._stack.client(self._secret, self._seconds)
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                answer = self._stack.chat(client, **self._fields)
                cut = self._fields["stream"] and not answer.text.endswith("data: [DONE]\n\n")
                result = "incomplete" if answer.status_code == 200 and cut else str(answer.status_code)
            except httpx.HTTPError as error:
                result = repr(error)
            self.outcomes.append(Outcome(result, time.monotonic() - started))
            if not keep_alive:
                client.close()
                client = self._stack.client(self._secret, self._seconds)
        client.close()

    def failed(self) -> list[str]:
        """Return all results other than 200."""
        return [outcome.result for outcome in self.outcomes if outcome.result != "200"]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send requests for the duration of the block, then print a summary."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
        longest = max(outcome.seconds for outcome in self.outcomes)
        print(
            f"\n{len(self.outcomes)} requests, {len(self.failed())} failed, the longest took {longest:.1f} s"
        )


def wait_for(condition: Callable[[], bool], seconds: float = SOON_SECONDS) -> float:
    """Wait until the condition is true; returns the seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.2)
    return time.monotonic() - started
