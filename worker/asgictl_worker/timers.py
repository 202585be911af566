"""One coarse tick per worker instead of a timer per request.

A connection that waits for something writes the time of its patience into ``deadline``; the
tick looks at these and calls ``on_tick()`` where one has passed. Arming a time-out is one
store and cancelling it another, where a timer of the event loop costs two microseconds.

``now`` is as old as the last tick, so whoever arms a time-out adds one ``INTERVAL``; then it
never fires early, and late by at most two intervals.
"""

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Protocol

INTERVAL = 0.2
"""Seconds between two ticks."""

NEVER = float("inf")
"""The deadline of something that waits for nothing."""


Turned = Callable[[float], None]
"""Called with each tick, and the seconds by which it is late."""


class Ticking(Protocol):
    """What the ticker expects of a connection."""

    deadline: float

    def on_tick(self, now: float) -> None:
        """Act on the deadline that has passed, and set the next one."""


class Watched(Protocol):
    """What the ticker expects of the service."""

    connections: set["Ticking"]


class Ticker:
    """The worker's clock: cheap to read, and the source of the ``Date`` header.

    Attributes:
        now: monotonic seconds, at most one interval old.
        on_turn: wants to know of each tick.
        date: the ready-made header line, refreshed once per second.
    """

    __slots__ = (
        "_connections",
        "_due",
        "_handle",
        "_loop",
        "_merciful",
        "_second",
        "date",
        "now",
        "on_turn",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._connections: set[Ticking] = set()
        self._handle: asyncio.TimerHandle | None = None
        self._second = -1
        self._due = 0.0
        self._merciful = False
        self.on_turn: Turned | None = None
        self.now = loop.time()
        self.date = b""
        self._refresh()

    def start(self, service: Watched) -> None:
        """Tick until ``stop()``, over the connections that the service has by then."""
        self._connections = service.connections
        self._refresh()
        self._schedule()

    def stop(self) -> None:
        """Tick no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _schedule(self) -> None:
        self._due = self.now + INTERVAL
        self._handle = self._loop.call_at(self._due, self._tick)

    def _refresh(self) -> None:
        self.now = self._loop.time()
        second = int(time.time())
        if second != self._second:
            self._second = second
            self.date = f"date: {formatdate(usegmt=True)}\r\n".encode("ascii")

    def _tick(self) -> None:
        self._refresh()
        now = self.now
        if self.on_turn is not None:
            self.on_turn(max(0.0, now - self._due))
        # A tick that comes late was held up by the application, and so were the bytes that
        # the clients have sent in the meantime: those are read before anybody is judged. But
        # never twice in a row, for an overloaded worker is always late.
        self._merciful = now - self._due > INTERVAL and not self._merciful
        if not self._merciful:
            expired = [item for item in self._connections if item.deadline <= now]
            for item in expired:
                item.on_tick(now)
        self._schedule()
