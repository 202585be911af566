"""Say what a long start is busy with, so that nobody takes it for a hang.

While the application is imported no event loop turns, and threads would be in the way of its
forks. So the kernel's timer interrupts it between two lines, and the stack tells where it is.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

FIRST = 2.0
"""Seconds after which a start is long."""

AGAIN = 5.0
"""Seconds until it is said again."""


@contextlib.contextmanager
def of_import(tell: Callable[[str], None]) -> Iterator[None]:
    """Call ``tell`` now and then with what is being imported; only in the main thread.

    A handler of the application's own for SIGALRM is left alone.
    """

    def interrupt(_number: int, frame: FrameType | None) -> None:
        tell(f"importing {_module(frame)}")

    if signal.getsignal(signal.SIGALRM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, FIRST, AGAIN)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGALRM) is interrupt:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _module(frame: FrameType | None) -> str:
    """Return the innermost module whose import runs in a stack."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if frame.f_code.co_name == "<module>" and name:
            return str(name)
        frame = frame.f_back
    return "the application"


@contextlib.contextmanager
def of_startup(tell: Callable[[str], None]) -> Iterator[None]:
    """Call ``tell`` now and then while the application's startup is waited for."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def say() -> None:
        nonlocal timer
        tell("waiting for the application's startup")
        timer = loop.call_later(AGAIN, say)

    timer = loop.call_later(FIRST, say)
    try:
        yield
    finally:
        timer.cancel()
