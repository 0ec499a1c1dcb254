"""Clients that go on asking while the gateway is reloaded, restarted and killed: restart_load.py [--quick].

Without --url it asks the lab host `bedplate` (make up), whose systemd does what is measured.
"""

import argparse
import asyncio
import json
import random
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai

from tests.support.servers import engine, fake_engine

ROOT = Path(__file__).resolve().parents[2]
LAB_HOST = "bedplate"
SETTINGS = "/etc/bedplate/bedplate-gateway/gateway.json"
ACTIONS = {
    "nothing": "true",
    "reload": "systemctl reload bedplate-gateway",
    "restart": "systemctl restart bedplate-gateway",
    "kill -9": "systemctl kill --signal=KILL bedplate-gateway",
}
MESSAGES = [{"role": "user", "content": "Count to five."}]
MAY_FAIL = {"kill -9"}
"""What cannot be asked of these: requests that run then are lost with the process."""


@dataclass(frozen=True)
class Target:
    """Whom to ask, and how a command runs on its host."""

    url: str
    key: str
    model: str
    remote: list[str]
    body: dict[str, Any]


@dataclass
class Tally:
    """What clients saw: seconds of each answer, and what went wrong, counted."""

    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


class Raw:
    """A client that sees every broken connection: it asks once and no more."""

    def __init__(self, target: Target, *, keep_alive: bool) -> None:
        """Keep a connection between requests, or make a new one for each."""
        self._target = target
        connector = aiohttp.TCPConnector(force_close=not keep_alive)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=300))

    async def ask(self, *, stream: bool) -> None:
        """Ask once; raises when the answer is not whole."""
        target = self._target
        body = {"model": target.model, "messages": MESSAGES, "stream": stream, **target.body}
        headers = {"authorization": f"Bearer {target.key}"}
        url = f"{target.url}/v1/chat/completions"
        async with self._session.post(url, json=body, headers=headers) as answer:
            content = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}")
            if stream and b"[DONE]" not in content:
                raise RuntimeError("stream without an end")
            if not stream:
                json.loads(content)

    async def close(self) -> None:
        """Close its connections."""
        await self._session.close()


class Package:
    """A client as users have it: OpenAI's package, with the retries that it does by itself."""

    def __init__(self, target: Target) -> None:
        """Make one as its documentation says."""
        self._target = target
        self._client = openai.AsyncOpenAI(base_url=f"{target.url}/v1", api_key=target.key, timeout=300)

    async def ask(self, *, stream: bool) -> None:
        """Ask once; raises when the answer is not whole."""
        create: Any = self._client.chat.completions.create
        target = self._target
        answer = await create(model=target.model, messages=MESSAGES, stream=stream, extra_body=target.body)
        if stream:
            async for _ in answer:
                pass

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()


Client = Raw | Package
CLIENTS: dict[str, Callable[[Target], Client]] = {
    "a new connection each": lambda target: Raw(target, keep_alive=False),
    "keep-alive": lambda target: Raw(target, keep_alive=True),
    "`openai` package": Package,
}


async def one_client(client: Client, tally: Tally, end: asyncio.Event) -> None:
    """Ask until the end, with pauses of up to half a second, so that connections are idle at times."""
    while not end.is_set():
        started = time.monotonic()
        try:
            await client.ask(stream=random.random() < 0.5)  # noqa: S311 - nothing secret
        except Exception as error:
            tally.failures[f"{type(error).__name__}: {error}"[:100]] += 1
            await asyncio.sleep(0.2)
        else:
            tally.seconds.append(time.monotonic() - started)
        await asyncio.sleep(random.random() * 0.5)  # noqa: S311 - nothing secret
    await client.close()


async def measure(
    target: Target, make: Callable[[Target], Client], action: str, times: int, clients: int
) -> Tally:
    """Return what so many clients saw while something was done a few times."""
    tally = Tally()
    end = asyncio.Event()
    tasks = [asyncio.create_task(one_client(make(target), tally, end)) for _ in range(clients)]
    await asyncio.sleep(4)
    for _ in range(times):
        # Else five starts within a minute are the start limit.
        for command in ("systemctl reset-failed bedplate-gateway", ACTIONS[action]):
            doing = await asyncio.create_subprocess_exec(*target.remote, *shlex.split(command))
            if await doing.wait():
                sys.exit(f"{command} failed")
        await asyncio.sleep(4)
    end.set()
    await asyncio.gather(*tasks)
    return tally


@contextmanager
def lab_target() -> Iterator[Target]:
    """Point the lab host's gateway at a fake engine on this machine, for the time of the bench."""
    remote = [str(ROOT / "lab/lab"), "exec", LAB_HOST, "--"]

    def on_host(*command: str, text: str | None = None) -> str:
        done = subprocess.run([*remote, *command], input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{shlex.join(command)} on the lab host {LAB_HOST} failed (make up?): {done.stderr}")
        return done.stdout

    # The host's way out is this machine's end of the lab's bridge.
    machine = on_host("ip", "route", "show", "default").split()[2]
    key = subprocess.run(
        ["make", "--silent", "key", "ALIAS=bench"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    before = on_host("cat", SETTINGS)
    # Sixteen answers of half a second at a time.
    with fake_engine(address="0.0.0.0", concurrency=16, prompt_seconds=0.2, seconds_per_token=0.02) as fake:  # noqa: S104 - the lab host reaches it there
        settings = json.loads(before)
        settings["engines"] = [engine(fake.url.replace("127.0.0.1", machine), slots=16)]
        try:
            on_host("tee", SETTINGS, text=json.dumps(settings))
            on_host("systemctl", "reload", "bedplate-gateway")
            url = f"http://{settings['api']['address']}:{settings['api']['port']}"
            yield Target(url, key, "fake", remote, {"max_tokens": 16})
        finally:
            on_host("tee", SETTINGS, text=before)
            on_host("systemctl", "reload", "bedplate-gateway")


async def run(target: Target, actions: list[str], times: int, clients: int) -> bool:
    """Print the table; return whether nothing failed that should not."""
    print(
        f"{clients} clients, half of their answers streams; each action {times} times, 4 s apart. "
        "A request that runs at kill -9 is lost with the process; none is refused.\n"
    )
    print("| action | clients with | answers | failed | p50 s | longest s |")
    print("|---|---|---|---|---|---|")
    good = True
    for action in actions:
        for name, make in CLIENTS.items():
            tally = await measure(target, make, action, times, clients)
            failed = sum(tally.failures.values())
            good &= not failed or action in MAY_FAIL
            seconds = sorted(tally.seconds) or [0.0]
            print(
                f"| {action} | {name} | {len(tally.seconds)} | {failed} "
                f"| {seconds[len(seconds) // 2]:.1f} | {seconds[-1]:.1f} |",
                flush=True,
            )
            for failure, count in tally.failures.most_common(5):
                print(f"{action}, {name}: {count} x {failure}", file=sys.stderr)
    return good


def main() -> None:
    """Run the bench; the exit status is 1 when a request failed that should not have."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="each action once")
    parser.add_argument("--url", help="of the gateway, without /v1")
    parser.add_argument("--key", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--remote", default="", help="what runs a command on the gateway's host: ssh web1")
    parser.add_argument("--body", default='{"max_tokens": 8}', help="more fields of the requests, as JSON")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--actions", default=",".join(ACTIONS), help=f"default: {','.join(ACTIONS)}")
    options = parser.parse_args()
    body = json.loads(options.body)
    given = Target(options.url, options.key, options.model, shlex.split(options.remote), body)
    with nullcontext(given) if options.url else lab_target() as target:
        actions = options.actions.split(",")
        good = asyncio.run(run(target, actions, 1 if options.quick else 3, options.clients))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
