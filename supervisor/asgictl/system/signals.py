"""Signals that the supervisor obeys, and how they wake its loop.

A handler may run anywhere; so the handlers only take a note, and the interpreter writes into
a pipe that the loop polls (signal.set_wakeup_fd). Signals of one kind that arrive together
are one: they are requests, not counters (signal(7)).
"""

import contextlib
import os
import signal
from types import FrameType

from asgictl.system import kernel

OBEYED = ("TERM", "INT", "QUIT", "HUP", "TTIN", "TTOU", "USR1", "USR2")
"""Signals that become events (docs/reference/signals.md)."""

IGNORED = ("PIPE",)
"""Signals whose default action would end us for nothing."""


class SignalPipe:
    """The pipe that signals come out of."""

    def __init__(self) -> None:
        self._arrived: set[str] = set()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        handlers = dict.fromkeys((*OBEYED, "CHLD"), self._note)
        self._before = {
            _number_of(name): signal.signal(_number_of(name), handlers.get(name, signal.SIG_IGN))
            for name in (*handlers, *IGNORED)
        }
        self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # What the pipe holds would do, but for a storm that fills it: a TERM must not get lost.
        self._arrived.add(kernel.signal_name(number))

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._read

    def read(self) -> set[str]:
        """Return the names, without ``SIG``, of the signals that have arrived."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 65536):
                pass
        # The handlers of all that was in the pipe have run by now: each signal is noted to the
        # interpreter before it is written there.
        arrived, self._arrived = self._arrived, set()
        return arrived

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


def _nothing(_number: int, _frame: FrameType | None) -> None:
    pass


def _number_of(name: str) -> signal.Signals:
    return signal.Signals["SIG" + name]
