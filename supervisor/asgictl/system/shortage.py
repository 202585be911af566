"""When descriptors or processes run out: what is held back, what is said before and then.

Descriptors are held back so that somebody can still ask what is wrong while there are no others.
Processes cannot be held back; so a limit on them is told before it is reached (cgroups(7)).
"""

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from asgictl.system import machine

SPARE_DESCRIPTORS = 2
"""One for a client of the control socket, one for whatever is read from /proc for it."""

SHORT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})

NEAR = 0.9
"""Share of the processes that are allowed, from which on it is told."""
FAR = 0.75
"""Share below which the next time is told again."""


class SpareDescriptors:
    """Descriptors that are held back, and lent to what must not fail for want of one."""

    def __init__(self, count: int = SPARE_DESCRIPTORS) -> None:
        self._count = count
        self._held: list[int] = []
        self.take_back()

    def lend(self) -> bool:
        """Close one, so that the next descriptor can be opened; False if none is left."""
        if not self._held:
            return False
        os.close(self._held.pop())
        return True

    def take_back(self) -> None:
        """Hold as many back as before, as far as there are any."""
        with contextlib.suppress(OSError):
            while len(self._held) < self._count:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Lend one for a while."""
        self.lend()
        try:
            yield
        finally:
            self.take_back()

    def close(self) -> None:
        """Hold nothing back any more."""
        while self.lend():
            pass
        self._count = 0


class TaskLimit:
    """How many processes and threads the control groups of this process still allow."""

    def __init__(self, root: Path = machine.ROOT) -> None:
        self._root = root
        self._told = False

    def fullest(self) -> tuple[int, int, Path] | None:
        """Return what is taken, what is allowed, and where, of the group with the least room."""
        found = []
        # Each time anew: a process may be moved to another group.
        for folder in machine.control_groups("pids", self._root):
            with contextlib.suppress(OSError, ValueError):
                limit = (folder / "pids.max").read_text("utf-8").strip()
                if limit != "max":
                    taken = int((folder / "pids.current").read_text("utf-8"))
                    found.append((taken, int(limit), folder))
        return min(found, key=lambda item: item[1] - item[0], default=None)

    def warning(self) -> str:
        """Return words when the limit has come near, once until it is far again."""
        fullest = self.fullest()
        if fullest is None:
            return ""
        taken, limit, folder = fullest
        if taken < FAR * limit:
            self._told = False
        if taken < NEAR * limit or self._told:
            return ""
        self._told = True
        return (
            f"{taken} of the {limit} processes and threads that {folder} allows are taken; at the "
            f"limit no worker can be replaced: {_RAISE_TASKS}"
        )


_RAISE_TASKS = "see TasksMax= of the service, or the limit on processes of the container"


def why_no_fork(error: OSError, tasks: TaskLimit) -> str:
    """Return words for a fork that has failed, with what would help if that is known."""
    text = f"cannot fork: {error.strerror}"
    if error.errno in SHORT_OF_DESCRIPTORS:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        text += f" (this process may open {limit}: see LimitNOFILE= of the service, or ulimit -n)"
    elif error.errno == errno.EAGAIN and (fullest := tasks.fullest()):
        taken, limit, folder = fullest
        if taken >= limit:
            text += f" ({taken} of {limit} processes and threads in {folder}: {_RAISE_TASKS})"
    return text
