"""Wait for conditions, with a deadline, without sleeping for a fixed time."""

import asyncio
import time
from collections.abc import Callable

PATIENCE = 20.0
"""Seconds for whatever has to happen soon; generous, since test machines are slow."""


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop turn until ``condition()`` is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition has not come true"
        await asyncio.sleep(0.001)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until ``condition()`` is true, for something that another process does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition has not come true"
        time.sleep(0.001)
