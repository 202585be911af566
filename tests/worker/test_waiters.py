"""Waiting for the same thing in several tasks."""

import asyncio

from asgictl_worker.waiters import Waiters


async def test_waiters_wake_all_that_still_wait():
    waiters = Waiters(asyncio.get_running_loop())
    first, second, third = waiters.join(), waiters.join(), waiters.join()
    second.cancel()
    waiters.wake()
    assert first.done()
    assert third.done()
    waiters.wake()


async def test_those_who_gave_up_are_forgotten():
    waiters = Waiters(asyncio.get_running_loop())
    for _ in range(100):
        waiters.join().cancel()
    assert len(waiters._futures) == 1
