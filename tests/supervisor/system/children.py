"""Forked children for tests of what cannot be done to the test process itself."""

import contextlib
import faulthandler
import os
import pickle
import resource
import signal
import traceback
from collections.abc import Callable
from typing import TypeVar

import pytest

from asgictl.system import kernel

T = TypeVar("T")

_started: list[kernel.Child] = []

NOBODY = 65534
FORKS = [
    # No watcher thread: a fork copies only the thread that forks, and CPython warns of others.
    pytest.mark.timeout(60, method="signal"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]
"""What a module marks its tests with that fork."""

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def start(work: Callable[[], object], *, outlives_us: bool = False) -> kernel.Child:
    """Fork a child that does ``work`` and ends with what it returns, or with 1 if it raises."""
    parent = os.getpid()
    pid = kernel.fork()
    if pid == 0:
        code = 1
        try:
            faulthandler.disable()
            if not outlives_us:
                kernel.die_with_parent(parent, signal.SIGKILL)
            kernel.unblock_signals()
            code = int(work() or 0)  # type: ignore[call-overload]
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    child = kernel.Child(pid)
    _started.append(child)
    return child


def end_all() -> None:
    """Kill and reap whatever a test has left behind."""
    while _started:
        child = _started.pop()
        if child.pidfd >= 0:
            child.send("KILL")
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, 0)
        child.close()


def ended(child: kernel.Child) -> kernel.ExitStatus:
    """Wait until a child has ended, reap it and return how."""
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    status = child.reap()
    child.close()
    assert status is not None
    return status


def in_child(work: Callable[[], T]) -> T:
    """Return what ``work`` returns in a forked child.

    Raises:
        AssertionError: it raised, or the child died.
    """
    read_end, write_end = os.pipe()
    # High, where no rule about low descriptors reaches it.
    high = os.dup2(write_end, 900, inheritable=False)
    os.close(write_end)

    def child() -> None:
        try:
            answer: tuple[bool, object] = (True, work())
        except BaseException:
            answer = (False, traceback.format_exc())
        with open(high, "wb") as file:
            pickle.dump(answer, file)

    process = start(child)
    os.close(high)
    with open(read_end, "rb") as file:
        data = file.read()
    status = ended(process)
    assert data, f"the child died: {status}"
    worked, result = pickle.loads(data)
    assert worked, result
    return result  # type: ignore[no-any-return]


def refuse_forks() -> None:
    """Make every fork of this process fail with EAGAIN (getrlimit(2), RLIMIT_NPROC)."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)  # the limit does not bind root
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def use_up_descriptors(leave: int = 0) -> None:
    """Make every open() fail with EMFILE, after ``leave`` more (getrlimit(2), RLIMIT_NOFILE)."""
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, highest + 1))
    filler = []
    while True:
        try:
            filler.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            break
    for fd in filler[:leave]:
        os.close(fd)


def status_field(name: str) -> str:
    """Return a field of /proc/self/status (proc(5))."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith(name + ":"))
