"""Processes: fork, reap, signal, and the few prctl(2) calls that Python does not have.

A child is known by its pidfd (pidfd_open(2), Linux 5.3), so a signal can never reach a
stranger that got the pid later. Where there are none, pid and SIGCHLD have to do.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

monotonic = time.monotonic

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

_MANY_DESCRIPTORS = 1 << 16

BLOCKABLE = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: with a code, or killed by a signal named without the ``SIG``."""

    code: int | None
    signal: str = ""


class Child:
    """A process that this one has forked, or adopted, until it has been reaped."""

    __slots__ = ("_status", "pid", "pidfd")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = -1
        self._status: ExitStatus | None = None
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self.pidfd = os.pidfd_open(pid)

    def send(self, signal_name: str) -> None:
        """Send a signal, named without the ``SIG``; one that is gone already gets none."""
        number = signal.Signals["SIG" + signal_name]
        if self._status:
            return  # the pid may be a stranger's by now
        with contextlib.suppress(ProcessLookupError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, number)
            else:
                os.kill(self.pid, number)

    def reap(self) -> ExitStatus | None:
        """Return how the process ended, or None while it lives (waitid(2))."""
        if self._status is None:
            try:
                result = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                # Somebody else has reaped it: another part of a program that embeds us.
                self._status = ExitStatus(code=None, signal="unknown")
            else:
                self._status = _exit_status(result) if result else None
        return self._status

    def wait(self, seconds: float) -> ExitStatus | None:
        """Wait for the end of a process that is about to end; None if it does not."""
        deadline = monotonic() + seconds
        while (status := self.reap()) is None and monotonic() < deadline:
            time.sleep(0.001)
        return status

    def close(self) -> None:
        """Give the pidfd back."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _exit_status(result: os.waitid_result) -> ExitStatus:
    if result.si_code == os.CLD_EXITED:
        return ExitStatus(code=result.si_status)
    return ExitStatus(code=None, signal=signal_name(result.si_status))


def signal_name(number: int) -> str:
    """Return a signal's name without the ``SIG``, or its number if it has none."""
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)


def fork() -> int:
    """Fork with all signals blocked, and leave them blocked in the child.

    A signal that arrives between the fork and the child's own set-up would run the
    parent's handlers there, and be lost; see ``unblock_signals()``.

    Raises:
        OSError: no process could be made (fork(2): EAGAIN, ENOMEM).
    """
    for stream in (sys.stdout, sys.stderr):
        # None if the descriptor was closed when we began; a full disk must not stop a fork.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    before = block_signals()
    try:
        pid = os.fork()
    except BaseException:
        restore_signals(before)
        raise
    if pid:
        restore_signals(before)
    return pid


def fork_to_hear(work: Callable[[int], NoReturn]) -> tuple[Child, int]:
    """Fork a child that writes into a pipe; return it, and the end to read, which never blocks.

    Args:
        work: what the child does, with the end to write. Signals are blocked, as after ``fork()``.

    Raises:
        OSError: no process or no descriptor is to be had.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read_end, False)
    try:
        pid = fork()
    except OSError:
        os.close(read_end)
        os.close(write_end)
        raise
    if pid == 0:
        work(write_end)
    os.close(write_end)
    return Child(pid), read_end


def block_signals() -> set[signal.Signals]:
    """Hold all signals back until ``restore_signals()``; return which were held before."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKABLE)  # type: ignore[return-value]


def restore_signals(before: set[signal.Signals]) -> None:
    """Hold back only those signals that were before ``block_signals()``."""
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_signals() -> None:
    """Let signals through again, in a child that has put its handlers in order."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor from 3 on, except those to keep.

    A channel or lifeline that a sibling holds open would never report the death of its owner.
    """
    kept = set(keep)
    for fd in _open_descriptors():
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)


def _open_descriptors() -> Iterable[int]:
    # Not closerange(): before Linux 5.9 it tries every number up to the limit, which
    # containers set to a thousand million.
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return [int(name) for name in os.listdir(folder)]
        except OSError:
            continue  # not mounted, or no descriptor is left to open it with
    return range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _MANY_DESCRIPTORS))


def fill_standard_descriptors() -> None:
    """Open /dev/null wherever standard input, output or error is closed.

    Otherwise the next socket would take that number, and what a library or the application
    prints would go to a client.
    """
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        os.set_inheritable(fd, True)
        fd = os.open(os.devnull, os.O_RDWR)
    os.close(fd)


def adopt_orphans() -> bool:
    """Make orphans among the descendants children of this process; False where it cannot."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, signal_number: int) -> bool:
    """Ask for a signal when the parent ends (PR_SET_PDEATHSIG).

    Called after privileges were dropped, since that clears it. Returns False if the parent
    is gone already: then no signal would come.
    """
    _prctl(_PR_SET_PDEATHSIG, signal_number)
    return os.getppid() == parent


def forbid_new_privileges() -> bool:
    """Make set-user-id programs powerless in this process and its children."""
    return _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return False
    # The C library reads full words; ctypes would pass ints.
    rest = [ctypes.c_ulong(number) for number in (value, 0, 0, 0)]
    return bool(prctl(option, *rest) == 0)


def prefer_as_victim(points: int) -> None:
    """Make the kernel take this process before its parent when memory runs out (proc(5))."""
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/oom_score_adj", encoding="utf-8") as file:
            before = int(file.read())
        with open("/proc/self/oom_score_adj", "w", encoding="utf-8") as file:
            file.write(str(min(1000, before + points)))
