"""Tell a client that reads slowly from one that does not read at all.

Whoever does not read holds what was written for it, in our memory and in the kernel's. It is
given up when nothing at all has moved for ``timeout_write``. What counts is every byte that the
client acknowledged, not what we could write: the kernel asks for more only when a third of its
buffer is free, and for a slow client that may take minutes.

Source: tcp(7), unix(7), SIOCOUTQ.
"""

import asyncio
import fcntl
import struct
import sys
import termios

LOOK = 2.0
"""Seconds between two looks at a client that has something to read, at most."""


class Stall:
    """Remembers when a client was last seen to read.

    Args:
        transport: what is written to.
        now: monotonic seconds.
    """

    __slots__ = ("_since", "_transport", "_unsent")

    def __init__(self, transport: asyncio.Transport, now: float) -> None:
        self._transport = transport
        self._since = now
        self._unsent = unsent(transport)

    def lasts(self, now: float) -> float:
        """Return for how many seconds, as far as was looked, nothing has moved."""
        left = unsent(self._transport)
        if left != self._unsent:
            self._unsent = left
            self._since = now
        return now - self._since


def unsent(transport: asyncio.Transport) -> int:
    """Return how many bytes the client has not acknowledged, ours and the kernel's together."""
    waiting = transport.get_write_buffer_size()
    connection = transport.get_extra_info("socket")
    if connection is None or sys.platform != "linux":
        return waiting
    try:
        kernels = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):  # it is closed already
        return waiting
    return waiting + int(struct.unpack("i", kernels)[0])
