"""Words to systemd, or whatever stands behind $NOTIFY_SOCKET (sd_notify(3))."""

import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from math import inf

PRIVATE_VARIABLES = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
)
"""Meant for the supervisor alone: an application that speaks for it would confuse systemd."""

PINGS_PER_TIMEOUT = 3
"""One may be left out, and still none is late."""

MAX_STATUS = 500
"""How many characters of a text are shown."""

_MAX_UNSENT = 16
_RETRY = 0.1
"""Seconds until a full queue is tried again: a start whose READY got lost is a failed one."""


class ServiceManager:
    """Sends status words; without a service manager it does nothing. It never waits.

    Attributes:
        due: when to call ``on_time()``, on the monotonic clock.
        watchdog_interval: seconds between two pings, or infinity if no watchdog waits.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address: str | None = None
        self._unsent: deque[bytes] = deque(maxlen=_MAX_UNSENT)
        self._withheld = False
        self.due = self._retry_due = self._ping_due = inf
        self.watchdog_interval = inf
        address = environ.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return
        # A leading @ stands for the NUL of an abstract address (unix(7)).
        self._address = "\0" + address[1:] if address[0] == "@" else address
        # Kept open: there may be no descriptor left when there is something to say.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        timeout = environ.get("WATCHDOG_USEC", "")
        for_us = environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
        if for_us and timeout.isdecimal() and int(timeout):
            self.watchdog_interval = int(timeout) / 1e6 / PINGS_PER_TIMEOUT
            self.due = self._ping_due = time.monotonic()

    def ready(self, status: str) -> None:
        """Say that the service is up, or that a reload has ended."""
        self._say("READY=1", _status(status))

    def reloading(self, status: str) -> None:
        """Say that a reload has begun; systemd matches it by the clock's value."""
        microseconds = time.monotonic_ns() // 1000
        self._say("RELOADING=1", f"MONOTONIC_USEC={microseconds}", _status(status))

    def stopping(self, status: str) -> None:
        """Say that the service is leaving."""
        self._say("STOPPING=1", _status(status))

    def status(self, status: str) -> None:
        """Show a line of text in ``systemctl status``."""
        self._say(_status(status))

    def extend(self, seconds: float) -> None:
        """Ask for more time to start, reload or stop."""
        self._say(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def withhold_ping(self) -> None:
        """Leave the next ping out, because something is wrong.

        Once is forgiven. If it goes on, the watchdog misses the pings and restarts us.
        """
        self._withheld = True

    def on_time(self, now: float) -> None:
        """Do what is due: say what could not be said before, and pet the watchdog."""
        if now >= self._retry_due:
            self._retry_due = inf
            self._flush()
        if now >= self._ping_due:
            self._ping_due = now + self.watchdog_interval
            withheld, self._withheld = self._withheld, False
            if not withheld:
                self._say("WATCHDOG=1")
        self.due = min(self._retry_due, self._ping_due)

    def close(self) -> None:
        """Say nothing more."""
        if self._address is not None:
            self._address, self.due = None, inf
            self._socket.close()

    def _say(self, *words: str) -> None:
        if self._address is not None:
            self._unsent.append("\n".join(words).encode("utf-8", "replace"))
            self._flush()

    def _flush(self) -> None:
        assert self._address is not None
        while self._unsent:
            try:
                self._socket.sendto(self._unsent[0], self._address)
            except BlockingIOError:
                self._retry_due = time.monotonic() + _RETRY
                self.due = min(self._retry_due, self._ping_due)
                return
            except OSError:
                pass  # nobody listens there, and later nobody will either
            self._unsent.popleft()


def _status(text: str) -> str:
    # A line break would begin another assignment.
    return f"STATUS={' '.join(text.split())[:MAX_STATUS]}"
