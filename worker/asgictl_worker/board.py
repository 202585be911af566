"""The board: memory that all workers of one supervisor share, to spread connections evenly.

Whoever wakes first takes the next connection from a shared listener, and long-lived
connections stay where they landed: left alone, one worker ends with ten times the load of
another. So each worker shows how many connections it has, and one that has clearly more
than the least loaded lets the others go first, for a moment. It is only politeness: a
connection that nobody takes in that moment is taken by whoever looks next, so a stalled
sibling costs a moment and no connection.

Each worker writes its own row only, in single aligned words, so there is nothing to lock.
"""

import mmap
import os
from typing import Final

ROWS: Final = 2048
"""Workers take rows by their number, modulo this."""

_WORD: Final = 4
SIZE: Final = (2 * ROWS + 1) * _WORD

STALE_AFTER: Final = 3.0
"""Seconds without a stamp after which a row no longer counts: its worker stalls or is gone."""


class Board:
    """One worker's view of the board.

    Args:
        fd: the shared memory, ``SIZE`` bytes of zeros at first.
        worker: the worker's number.
        now: seconds on the monotonic clock, which all processes of the host share.
    """

    __slots__ = ("_change", "_connections", "_memory", "_now", "_row", "_rows", "_seen", "_stamps")

    def __init__(self, fd: int, worker: int, now: float) -> None:
        self._memory = mmap.mmap(fd, SIZE)
        words = memoryview(self._memory).cast("I")
        self._connections = words[:ROWS]
        self._stamps = words[ROWS : 2 * ROWS]
        self._change = words[2 * ROWS :]
        self._row = worker % ROWS
        self._rows: list[int] = []
        self._seen = 0
        self.refresh(now, 0)
        self._tell(worker)

    def refresh(self, now: float, connections: int) -> None:
        """Show that this worker is alive, and find out which others are; called with each beat."""
        self._connections[self._row] = connections
        self._stamps[self._row] = _stamp(now)
        self._now = now
        self._look()

    def _look(self) -> None:
        self._seen = self._change[0]
        oldest = _stamp(self._now - STALE_AFTER)
        # Most rows are empty; looking for the others here keeps it out of every accept.
        self._rows = [
            row for row, stamp in enumerate(self._stamps) if stamp > oldest and row != self._row
        ]

    def _tell(self, worker: int) -> None:
        """Make all others look again: a worker has come or gone."""
        self._change[0] = (self._change[0] + worker + 1) & 0xFFFFFFFF

    def show(self, connections: int) -> None:
        """Show how many connections this worker has now."""
        self._connections[self._row] = connections

    def hide(self) -> None:
        """Count no more: this worker accepts nothing from now on."""
        self._stamps[self._row] = 0
        self._tell(self._row)

    def allowance(self, connections: int) -> int | None:
        """Return how many connections more this worker should take now, having so many.

        Zero or less: others have clearly fewer, let them go first. None: there are no others.
        """
        counts = self._connections
        counts[self._row] = connections
        if self._change[0] != self._seen:
            self._look()
        if not self._rows:
            return None
        least = min([counts[row] for row in self._rows])
        # Some slack, or every single connection would send all workers but one away.
        return least + 2 + least // 8 - connections


def _stamp(now: float) -> int:
    return int(now * 10) & 0xFFFFFFFF


def create() -> int:
    """Return the descriptor of a new board."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("asgictl-board", os.MFD_CLOEXEC)
    else:
        import tempfile

        fd, path = tempfile.mkstemp(prefix="asgictl-board-")
        os.unlink(path)
    os.truncate(fd, SIZE)
    return fd
