"""Words to systemd, or whatever stands behind $NOTIFY_SOCKET (sd_notify(3))."""

import contextlib
import os
import socket
import time
from collections.abc import Mapping

PRIVATE_VARIABLES = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
)
"""Meant for the supervisor alone: an application that speaks for it would confuse systemd."""


class ServiceManager:
    """Sends status words; without a service manager it does nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_interval = 0.0
        """Seconds between two pings, or 0 when no watchdog waits for us."""
        for_us = environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
        with contextlib.suppress(ValueError):
            if self._address and for_us:
                self.watchdog_interval = int(environ.get("WATCHDOG_USEC", "0")) / 2 / 1e6

    def ready(self, status: str) -> None:
        """Say that the service is up, or that a reload has ended."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self, status: str) -> None:
        """Say that a reload has begun; systemd matches it by the clock's value."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS={status}")

    def stopping(self, status: str) -> None:
        """Say that the service is leaving."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """Show a line of text in ``systemctl status``."""
        self._send(f"STATUS={status}")

    def extend(self, seconds: float) -> None:
        """Ask for more time to start, reload or stop."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def ping(self) -> None:
        """Tell the watchdog that the loop turns."""
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the NUL of an abstract address (unix(7)).
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end,
        ):
            end.setblocking(False)
            end.sendto(text.encode(), address)
