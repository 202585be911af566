"""Signals that the supervisor obeys, and how they wake its loop.

A handler would run anywhere; so the handlers do nothing, and the interpreter writes each
signal's number into a pipe that the loop polls (signal.set_wakeup_fd). Signals of one kind
that arrive together are one: they are requests, not counters (signal(7)).
"""

import os
import signal
from types import FrameType

from asgictl.system import kernel

OBEYED = ("TERM", "INT", "QUIT", "HUP", "TTIN", "TTOU", "USR1", "USR2")
"""Signals that become events (docs/reference/signals.md)."""

IGNORED = ("PIPE",)
"""Signals whose default action would end us for nothing."""


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Exist, so that the signal interrupts poll() and is written into the pipe."""


class SignalPipe:
    """The pipe that signals come out of."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._before = {
            number: signal.signal(number, handler)
            for names, handler in (
                (IGNORED, signal.SIG_IGN),
                ((*OBEYED, "CHLD"), _nothing),
            )
            for number in map(_number_of, names)
        }
        self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._read

    def read(self) -> set[str]:
        """Return the names, without ``SIG``, of the signals that have arrived."""
        try:
            numbers = os.read(self._read, 4096)
        except BlockingIOError:
            return set()
        # Others may have handlers of their own, in a program that embeds us.
        return {name for name in map(kernel.signal_name, numbers) if name in (*OBEYED, "CHLD")}

    def close(self) -> None:
        """Give everything back as it was."""
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            # None stands for a handler that was not made by Python; it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.close(self._read)
        os.close(self._write)


def reset_in_child() -> None:
    """Undo the supervisor's handlers in a forked child, before signals are unblocked.

    With an inherited wake-up descriptor, a signal sent to the child would wake the parent.
    Signals that are meant for the supervisor alone do nothing: Ctrl-C and ``pkill -HUP``
    reach the workers too, but it is the supervisor that decides what they mean. They get a
    handler and are not ignored, since programs that the application starts would ignore
    them too (execve(2)).
    """
    signal.set_wakeup_fd(-1)
    for name in OBEYED:
        signal.signal(_number_of(name), _nothing)
    for name in ("TERM", "CHLD"):
        signal.signal(_number_of(name), signal.SIG_DFL)


def _number_of(name: str) -> signal.Signals:
    return signal.Signals["SIG" + name]
