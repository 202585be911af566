"""Write to a descriptor that others share, without ever waiting for it.

Standard error may be a pipe that nobody reads or a terminal on which somebody pressed
Ctrl-S. An event loop that waits for it answers nobody, so an ``Outlet`` keeps a bounded
backlog, drops what does not fit, and says how much that was when there is room again.

Setting ``O_NONBLOCK`` on an inherited descriptor would be felt by every process that shares
it (the application's ``print`` would fail): pipes and terminals are opened once more, and
sockets are asked call by call.
"""

import os
import select
import socket
import stat
import time
from collections.abc import Callable

BACKLOG = 256 * 1024
"""How many bytes are kept for a reader that has fallen behind."""


class Outlet:
    """One descriptor to write to, with a bounded backlog."""

    __slots__ = ("_dropped", "_kept", "_notice", "_own", "_pid", "_write", "fd", "is_terminal")

    def __init__(self, fd: int, notice: Callable[[int], str] | None = None) -> None:
        """Look at what ``fd`` is, once; a closed one swallows everything.

        Args:
            fd: an open descriptor.
            notice: returns the line that says how many were lost.
        """
        self.fd = fd
        self._notice = notice or "asgictl: {} log lines were dropped, nobody took them".format
        self.is_terminal = os.isatty(fd)
        self._kept = bytearray()
        self._dropped = 0
        self._pid = os.getpid()
        self._own: int | None = None
        self._write = self._how_to_write()

    @property
    def dropped(self) -> int:
        """How many lines were lost since the last time that this was said."""
        return self._dropped

    def write(self, lines: bytes) -> None:
        """Write whole lines, or keep them for later, or drop and count them."""
        if (self._kept or self._dropped) and not self.flush():
            self._keep(lines)
            return
        taken = self._try(lines)
        if taken < len(lines):
            # The rest of a line that was begun must follow, whatever its length.
            self._keep(lines[taken:], begun=taken > 0)

    def flush(self, timeout: float = 0.0) -> bool:
        """Write what was kept, waiting at most ``timeout`` seconds; return whether all went."""
        deadline = time.monotonic() + timeout
        while self._kept:
            taken = self._try(bytes(self._kept))
            del self._kept[:taken]
            left = deadline - time.monotonic()
            if not taken and (left <= 0 or not _writable(self.fd, left)):
                return False
        if self._dropped:
            lost, self._dropped = self._dropped, 0
            notice = f"{self._notice(lost)}\n".encode()
            taken = self._try(notice)
            if self._dropped:
                self._dropped = lost
            else:
                self._kept += notice[taken:]
        return not self._kept

    def close(self) -> None:
        """Close what was opened here; ``fd`` itself stays open."""
        own, self._own = self._own, None
        # A child that was forked from us has closed it already, and the number may be another
        # file's by now.
        if own is not None and os.getpid() == self._pid:
            os.close(own)

    def _how_to_write(self) -> Callable[[bytes], int]:
        """Return what writes to ``fd`` without waiting, and raises BlockingIOError instead."""
        fd = self.fd
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            # Not even later: the number may become another file's.
            return len
        if stat.S_ISSOCK(mode):
            return lambda data: _send(fd, data)
        if stat.S_ISFIFO(mode) or self.is_terminal:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            try:
                own = self._own = os.open(f"/dev/fd/{fd}", flags)
            except OSError:
                # It belongs to another user, as after dropping privileges.
                return lambda data: _write_if_writable(fd, data)
            return lambda data: os.write(own, data)
        return lambda data: os.write(fd, data)

    def _keep(self, lines: bytes, *, begun: bool = False) -> None:
        if begun or len(self._kept) + len(lines) <= BACKLOG:
            self._kept += lines
        else:
            self._dropped += lines.count(b"\n")

    def _try(self, data: bytes) -> int:
        try:
            return self._write(data)
        except BlockingIOError:
            return 0
        except OSError:
            # The reader left or the disk is full: there is nobody to tell, and no use in waiting.
            self._dropped += data.count(b"\n")
            return len(data)


def _send(fd: int, data: bytes) -> int:
    connection = socket.socket(fileno=fd)
    try:
        return connection.send(data, socket.MSG_DONTWAIT)
    finally:
        connection.detach()


def _write_if_writable(fd: int, data: bytes) -> int:
    # A pipe that is writable takes PIPE_BUF bytes at once (pipe(7)).
    return os.write(fd, data[: select.PIPE_BUF]) if _writable(fd, 0) else 0


def _writable(fd: int, timeout: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return bool(poller.poll(timeout * 1000))
