"""What a worker has done, counted in memory that the supervisor reads by itself.

Each worker has a row in the memory that all workers share (its beginning is the board's). So
nobody has to be asked: a blocked worker's numbers are read like any other's, and those of a
killed one are still there. Requests are counted in the row itself, in one cell for each
method, class of status and step of the time that they took. All else is counted in plain
attributes, and put into the row five times a second.

Every request is counted. To read the clock twice costs as much as all the counting, so a busy
worker whose times nobody writes into an access log times some of them, chosen at random. The
others are put into the row with the tick, as if they had taken as long as the last timed one
of their method and class of status.

A worker that runs alone has a row of its own, which nobody else sees.
"""

import contextlib
import mmap
import os
import struct
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from time import monotonic, thread_time
from typing import Final

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other")
CLASSES: Final = ("other", "1xx", "2xx", "3xx", "4xx", "5xx")
BOUNDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Seconds that the requests of each step took at most; those of one step more took longer."""
STEPS: Final = len(BOUNDS) + 1
CELLS: Final = len(METHODS) * len(CLASSES) * STEPS


class _MethodCells(dict[str, int]):
    """Where the cells of each method begin; those that are not told apart share some."""

    def __missing__(self, method: str) -> int:
        return (len(METHODS) - 1) * len(CLASSES) * STEPS


# hot: look-ups in place of calls and calculations
METHOD_CELLS: Final = _MethodCells(
    (method, row * len(CLASSES) * STEPS) for row, method in enumerate(METHODS)
)
STATUS_CELLS: Final = tuple(status // 100 * STEPS if status < 600 else 0 for status in range(1000))
"""Where in the cells of its method those of a status begin."""
SHORTEST: Final = BOUNDS[0]

# A row: whose it is and how to read it, what the tick puts there, and the cells.
_OWNER: Final = struct.Struct("QQ")
_LAYOUT: Final = 1
"""Changes with any meaning, for rows may be those of another version (upgrade in place)."""
_TICK: Final = struct.Struct("4d10Q")
_CELLS: Final = struct.Struct(f"{CELLS}Q")
_AT_TICK: Final = _OWNER.size
_AT_CELLS: Final = 256

ROW: Final = 8192
"""Bytes of a row: whole pages, so that they can be given back."""
ROWS: Final = 2048
"""Workers take rows by their number, modulo this."""
START: Final = 64 * 1024
"""Where the rows begin in the shared memory; a multiple of every page size."""
SIZE: Final = START + ROWS * ROW

TICK: Final = 0.2
"""Seconds between two calls of ``Counters.tick()``: the interval of ``timers.py``."""
BUSY: Final = 200
"""Requests in a tick, from which on it is enough to time some."""
SPARED_BITS: Final = 4
"""Of the random number of requests that are not timed after one that is: 7.5 in the mean."""

TICKS: Final = 5
"""How many of the last ticks the worst lag is looked for in: those of a second."""


class Counters:
    """What one worker counts.

    Attributes:
        cells: requests that are answered, by method, class of status and step of time.
        seconds: the time that they took altogether; that of those without a time is added at
            the next tick.
        timed: how many were timed since then.
        untimed: how many were not, by the first cell of their method and class of status.
        usual: likewise, where the last timed request was counted.
        times_all: somebody wants the time of every request.
        is_sparing: some requests need not be timed now.
        spared: how many of the next ones.
        in_flight: HTTP requests and WebSockets for which the application runs now.
        errors_total: exceptions of the application, and promises that it has broken (a body
            too short, no response).
        connections_total: connections that were set up.
        websockets: those that are open now.
        websockets_total: those that were ever begun.
        messages_received: messages of WebSockets from clients.
        messages_sent: and to clients.
        bytes_received: of HTTP and WebSockets, as they are inside of TLS.
        bytes_sent: likewise.
    """

    __slots__ = (
        "_answered",
        "_busy",
        "_lags",
        "_memory",
        "_offset",
        "_ticked",
        "_timed_seconds",
        "_worked",
        "bytes_received",
        "bytes_sent",
        "cells",
        "connections_total",
        "errors_total",
        "in_flight",
        "is_sparing",
        "messages_received",
        "messages_sent",
        "seconds",
        "spared",
        "timed",
        "times_all",
        "untimed",
        "usual",
        "websockets",
        "websockets_total",
    )

    def __init__(self) -> None:
        self.in_flight = self.errors_total = 0
        self.connections_total = self.websockets = self.websockets_total = 0
        self.messages_received = self.messages_sent = 0
        self.bytes_received = self.bytes_sent = 0
        self._lags: deque[float] = deque(maxlen=TICKS)
        self.seconds = self._busy = self._ticked = self._worked = self._timed_seconds = 0.0
        self.usual = list(range(CELLS))
        self.untimed = [0] * CELLS
        self.timed = self.spared = self._answered = 0
        self.times_all = self.is_sparing = False
        self._use(bytearray(ROW), 0)

    def _use(self, memory: bytearray | mmap.mmap, offset: int) -> None:
        self._memory, self._offset = memory, offset
        row = memoryview(memory)[offset : offset + ROW]
        self.cells = row[_AT_CELLS : _AT_CELLS + _CELLS.size].cast("Q")

    def share(self, fd: int, worker: int) -> None:
        """Count in memory that the supervisor reads; before anything is counted.

        Args:
            fd: the shared memory; if it has no rows, nobody reads them.
            worker: the worker's number.

        Raises:
            OSError: it cannot be mapped.
        """
        if os.fstat(fd).st_size < SIZE:
            return
        memory = mmap.mmap(fd, ROWS * ROW, offset=START)
        offset = worker % ROWS * ROW
        memory[offset : offset + ROW] = bytes(ROW)
        self._use(memory, offset)
        self._ticked, self._worked = monotonic(), thread_time()
        self.tick(0.0, 0)
        # Last: from now on the row is believed.
        _OWNER.pack_into(memory, offset, worker + 1, _LAYOUT)

    @property
    def requests_total(self) -> int:
        """How many requests were answered, or given up."""
        return sum(self.cells) + sum(self.untimed)

    def request(self, method: str, status: int, seconds: float | None) -> None:
        """Count a request that is answered, or given up.

        Args:
            method: of the request.
            status: of the response, 499 if the client left before there was one.
            seconds: from the head of the request to the end of the response, or None if it was
                not timed.
        """
        kind = METHOD_CELLS[method] + STATUS_CELLS[status]
        if seconds is None:
            self.untimed[kind] += 1
            return
        self.usual[kind] = cell = kind + bisect_left(BOUNDS, seconds)
        self.cells[cell] += 1
        self.seconds += seconds
        self.timed += 1

    def tick(self, lateness: float, connections: int) -> None:
        """Put into the row what is not counted there; called five times a second.

        Args:
            lateness: seconds by which this call is later than it should be.
            connections: how many are open now.
        """
        now, worked = monotonic(), thread_time()
        elapsed = now - self._ticked
        # A loop that is blocked is busy, though it may not use a processor.
        self._busy += min(elapsed, max(worked - self._worked, lateness))
        self._ticked, self._worked = now, worked
        self._lags.append(lateness)
        self._see_to_times()
        _TICK.pack_into(
            self._memory,
            self._offset + _AT_TICK,
            now,
            max(self._lags),
            self._busy,
            self.seconds,
            self.in_flight,
            connections,
            self.websockets,
            self.connections_total,
            self.websockets_total,
            self.messages_received,
            self.messages_sent,
            self.bytes_received,
            self.bytes_sent,
            self.errors_total,
        )

    def _see_to_times(self) -> None:
        """Add the time of requests without one, and see whether to time all of the next."""
        if any(self.untimed):
            for kind, count in enumerate(self.untimed):
                if count:
                    self.cells[self.usual[kind]] += count
            self.untimed = [0] * CELLS
        answered = self.requests_total - self._answered
        self.is_sparing = answered > BUSY and not self.times_all
        if not self.is_sparing:
            self.spared = 0
        if self.timed:  # if none was, the next tick sees to them
            mean = (self.seconds - self._timed_seconds) / self.timed
            self.seconds += mean * (answered - self.timed)
        if self.timed or not answered:
            self._answered += answered
            self._timed_seconds = self.seconds
            self.timed = 0


@dataclass(frozen=True, slots=True)
class Row:
    """What a worker has counted, as the supervisor reads it; see ``Counters``."""

    cells: tuple[int, ...]
    ticked: float = 0.0
    """Monotonic seconds of the last tick."""
    lag: float = 0.0
    """Seconds by which the event loop was late, at worst within the last second before that."""
    busy: float = 0.0
    """Seconds that the event loop has worked, or was blocked."""
    seconds: float = 0.0
    in_flight: int = 0
    connections: int = 0
    websockets: int = 0
    connections_total: int = 0
    websockets_total: int = 0
    messages_received: int = 0
    messages_sent: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    errors: int = 0


class Rows:
    """The rows of all workers."""

    def __init__(self, fd: int) -> None:
        """Begin to read.

        Args:
            fd: the shared memory; it is made long enough.
        """
        if os.fstat(fd).st_size < SIZE:
            os.truncate(fd, SIZE)
        self._memory = mmap.mmap(fd, ROWS * ROW, offset=START)

    def read(self, worker: int) -> Row | None:
        """Return what a worker has counted, or None if it has not begun to."""
        offset = worker % ROWS * ROW
        if _OWNER.unpack_from(self._memory, offset) != (worker + 1, _LAYOUT):
            return None
        return Row(
            _CELLS.unpack_from(self._memory, offset + _AT_CELLS),
            *_TICK.unpack_from(self._memory, offset + _AT_TICK),
        )

    def clear(self, worker: int) -> None:
        """Give back the memory of a worker that has ended."""
        offset = worker % ROWS * ROW
        self._memory[offset : offset + _OWNER.size] = bytes(_OWNER.size)
        if hasattr(mmap, "MADV_REMOVE"):
            # Pages may be larger than a row; then it stays until its next owner takes it.
            with contextlib.suppress(OSError):
                self._memory.madvise(mmap.MADV_REMOVE, offset, ROW)
