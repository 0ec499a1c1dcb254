"""Tasks that live as long as the process, which ends with any of them, so that systemd starts it again."""

import asyncio
import logging
import os
from collections.abc import Coroutine
from typing import Never

log = logging.getLogger(__name__)


def start(name: str, work: Coroutine[None, None, Never]) -> asyncio.Task[Never]:
    """Start a task that ends only by being cancelled."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_end_process)
    return task


def _end_process(task: asyncio.Task[Never]) -> None:
    if task.cancelled():
        return
    log.critical(
        "The task %s ended (%r): this process ends, and systemd starts it again.",
        task.get_name(),
        task.exception(),
    )
    for handler in logging.getLogger().handlers:
        handler.flush()
    # A clean stop could wait for what the dead task should have done.
    os._exit(1)
