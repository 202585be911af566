"""Signals that the supervisor obeys, and how they wake its loop.

A handler would run anywhere; so the handlers do nothing, and the interpreter writes each
signal's number into a pipe that the loop polls (signal.set_wakeup_fd). Signals of one kind
that arrive together are one: they are requests, not counters (signal(7)).
"""

import os
import signal
from types import FrameType

OBEYED = ("TERM", "INT", "QUIT", "HUP", "TTIN", "TTOU", "USR1")
"""Signals that become events (docs/reference/signals.md)."""

IGNORED = ("PIPE", "WINCH", "USR2")
"""Signals whose default action would harm: a resized terminal must not end a server."""


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Exist, so that the signal interrupts poll() and is written into the pipe."""


class SignalPipe:
    """The pipe that signals come out of."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for name in IGNORED:
            signal.signal(signal.Signals["SIG" + name], signal.SIG_IGN)
        for name in (*OBEYED, "CHLD"):
            signal.signal(signal.Signals["SIG" + name], _nothing)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._read

    def read(self) -> set[str]:
        """Return the names, without ``SIG``, of the signals that have arrived."""
        try:
            numbers = os.read(self._read, 4096)
        except BlockingIOError:
            return set()
        return {signal.Signals(number).name.removeprefix("SIG") for number in numbers}

    def close(self) -> None:
        """Give the default actions back."""
        signal.set_wakeup_fd(-1)
        for name in (*OBEYED, *IGNORED, "CHLD"):
            signal.signal(signal.Signals["SIG" + name], signal.SIG_DFL)
        os.close(self._read)
        os.close(self._write)


def reset_in_child() -> None:
    """Undo the supervisor's handlers in a forked child, before signals are unblocked.

    With an inherited wake-up descriptor, a signal sent to the child would wake the parent.
    Signals that are meant for the supervisor alone are ignored: Ctrl-C and ``pkill -HUP``
    reach the workers too, but it is the supervisor that decides what they mean.
    """
    signal.set_wakeup_fd(-1)
    for name in OBEYED:
        signal.signal(signal.Signals["SIG" + name], signal.SIG_IGN)
    for name in (*IGNORED, "CHLD", "TERM"):
        signal.signal(signal.Signals["SIG" + name], signal.SIG_DFL)
    signal.signal(signal.SIGWINCH, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
