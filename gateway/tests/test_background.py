import asyncio
import os
import subprocess
import sys
from typing import Never

import pytest
from bedplate_gateway import background

CODE = """
import asyncio, logging
from bedplate_gateway import background
logging.basicConfig(format="%(message)s")
async def fail():
    {end}
async def main():
    background.start("poller", fail())
    await asyncio.sleep(20)
asyncio.run(main())
"""


@pytest.mark.parametrize(("end", "why"), [("raise ValueError('x')", "ValueError('x')"), ("return", "None")])
def test_the_end_of_a_task_is_the_end_of_the_process_with_one_line(end: str, why: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CODE.format(end=end)],
        env={"PYTHONPATH": os.environ.get("PYTHONPATH", "") or ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=15,
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        f"The task poller ended ({why}): this process ends, and systemd starts it again.\n"
    )


def test_a_cancelled_task_ends_nothing() -> None:
    async def work() -> Never:
        while True:
            await asyncio.sleep(1)

    async def scenario() -> None:
        task = background.start("poller", work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
