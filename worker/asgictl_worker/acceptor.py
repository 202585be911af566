"""Accept connections from listeners that several workers share.

``loop.create_server()`` accepts whatever the kernel's queue holds before it does anything
else. That suits a single process; among workers, the first to wake takes a whole burst, and
long-lived connections stay where they landed. Here a worker that is not alone takes a few per
turn of its loop and leaves the rest to whoever wakes next. It costs some 7 microseconds more
per connection under uvloop than uvloop's own server, and the same under asyncio.
"""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from asgictl_worker.introductions import Introductions
from asgictl_worker.proxy_protocol import Told, ends
from asgictl_worker.tls import TLS

logger = logging.getLogger("asgictl.worker")

BATCH = 4
"""Connections accepted per listener and turn of the loop when other workers listen, too: one
at a time would cost half as much again in system calls."""

BATCH_ALONE = 64
"""The same for a worker without others; more would keep requests in progress waiting."""

QUEUE = 4096
"""Connections that ``finish()`` takes at most; clients may be as fast as we are."""

PAUSE = 1.0
"""Seconds without accepting when the process or the host is out of descriptors or memory."""

HOLD = 0.004
"""Seconds for which connections are left to the other workers, when the allowance is used up."""

POLITENESS = 0.1
"""Seconds for which, hold after hold, they are left to the others at most: on a busy machine
it takes a while until those have their turn."""

IMPOLITENESS = 0.2
"""Seconds for which nobody is waited for after that was in vain: whoever should have come is
stuck."""

COMPLAIN_EVERY = 60.0
"""Seconds between two log lines about exhausted resources."""

_WILDCARDS = {"0.0.0.0", "::"}
"""Addresses of listeners whose connections have addresses of their own."""

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# accept(2): errors of the new connection, not of the listener.
_GONE_ALREADY = {
    errno.ECONNABORTED,
    errno.EINTR,
    errno.EPERM,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ETIMEDOUT,
}


class PlainSocket(socket.socket):
    """A socket whose family and type are plain numbers.

    ``socket.socket`` makes members of enumerations of them, each time that it is asked. Python
    and the event loop ask half a dozen times for each connection, which took a twentieth of
    the processor time of a request that has a connection of its own.
    """

    __slots__ = ()
    family = socket.SocketType.family  # type: ignore[assignment]  # a member is a number, too
    type = socket.SocketType.type  # type: ignore[assignment]


class Acceptor:
    """Accepts on listening sockets and gives every connection a protocol of its own.

    The listeners stay the property of whoever made them; they are never closed here.

    Attributes:
        pending: connections that are accepted and not yet made known to their protocol, most
            of them for one turn of the loop, and with TLS as long as the handshake takes.
    """

    __slots__ = (
        "_addresses",
        "_allowance",
        "_complain_at",
        "_held_first",
        "_held_last",
        "_impolite_until",
        "_introductions",
        "_listeners",
        "_loop",
        "_make",
        "_open",
        "_resume",
        "_tls",
        "pending",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listeners: Sequence[socket.socket],
        make_protocol: Callable[..., asyncio.Protocol],
        allowance: Callable[[], int | None] | None = None,
        tls: TLS | None = None,
        introductions: Introductions | None = None,
    ) -> None:
        """Prepare to accept; nothing is accepted before ``start()``.

        Args:
            loop: the running loop.
            listeners: sockets that listen already.
            make_protocol: makes the protocol of one connection; called with what is known of
                its two ends, by the kernel or from a proxy.
            allowance: says how many connections to take now; with zero, they are left to the
                other workers for a moment, and None says that there are no others. Asked
                whenever there are some, so it must be cheap.
            tls: connections begin with a handshake, or end.
            introductions: before that, a proxy says who its client is, or they end.
        """
        self._listeners = tuple(listeners)
        self._loop = loop
        self._make = make_protocol
        self._allowance = allowance
        self._open = False
        self._held_first = self._held_last = self._impolite_until = 0.0
        self._tls = tls
        self._introductions = introductions
        self.pending: set[socket.socket] = set()
        self._resume: asyncio.TimerHandle | None = None
        self._complain_at = 0.0
        self._addresses: dict[socket.socket, Any] = {}
        for listener in listeners:
            listener.setblocking(False)
            address = listener.getsockname()
            is_wildcard = not isinstance(address, str) and address[0] in _WILDCARDS
            self._addresses[listener] = None if is_wildcard else address
            if listener.family != socket.AF_UNIX:
                # Connections inherit it from their listener.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        """Accept from now on."""
        self._open = True
        self._watch()

    def stop(self) -> None:
        """Accept no more; connections in the kernel's queue are left to the other workers."""
        self._open = False
        self._unwatch()

    def finish(self) -> None:
        """Accept what the kernel's queue holds, then no more: the listeners go away for good."""
        self.stop()
        for listener in self._listeners:
            for _ in range(QUEUE):
                if not self._accept(listener):
                    break
        self._listeners = ()  # whoever owns them may close them now

    def give_up_pending(self) -> None:
        """End what is not set up yet: a client that has shaken hands so far has lost nothing."""
        for connection in self.pending:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _watch(self) -> None:
        self._resume = None
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._on_readable, listener)

    def _unwatch(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())

    def _pause(self, seconds: float) -> None:
        self._unwatch()
        if self._open:
            self._resume = self._loop.call_later(seconds, self._watch)

    def _on_readable(self, listener: socket.socket) -> None:
        allowed = None if self._allowance is None else self._allowance()
        if allowed is None:
            batch = BATCH_ALONE
        elif allowed > 0:
            batch = min(BATCH, allowed)
        elif self._is_polite():
            self._pause(HOLD)
            return
        else:
            batch = 1
        for _ in range(batch):
            if not self._accept(listener):
                break
        if self._allowance is not None:
            self._allowance()  # the others are to see at once what was taken

    def _is_polite(self) -> bool:
        """Return whether to leave a connection to the others once more."""
        now = self._loop.time()
        if now < self._impolite_until:
            return False
        if now - self._held_last > 2 * POLITENESS:
            self._held_first = now  # what we held back before was taken
        self._held_last = now
        if now - self._held_first > POLITENESS:
            self._impolite_until = now + IMPOLITENESS
            return False
        return True

    def _accept(self, listener: socket.socket) -> bool:
        """Accept one connection; return whether there may be more."""
        try:
            connection, address = listener.accept()
            connection.__class__ = PlainSocket
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _GONE_ALREADY:
                return True
            self._complain(listener, error)
            self._pause(PAUSE)
            return False
        self.pending.add(connection)
        if self._introductions is None:
            # hot: both are known here, and the transport would ask the kernel for them again
            server = self._addresses[listener] or connection.getsockname()
            self._set_up(connection, partial(self._make, ends(address, server)))
        else:
            self._introductions.hear(connection, self._introduced)
        return True

    def _introduced(self, connection: socket.socket, told: Told | None, good: bool) -> None:
        if good:
            self._set_up(connection, self._make if told is None else partial(self._make, told))
        else:
            self.pending.discard(connection)
            connection.close()

    def _set_up(self, connection: socket.socket, make: Callable[..., asyncio.Protocol]) -> None:
        tls = self._tls
        if tls is None:
            connecting = self._loop.connect_accepted_socket(make, connection)
        else:
            connecting = self._loop.connect_accepted_socket(
                make,
                connection,
                ssl=tls.context,
                ssl_handshake_timeout=tls.handshake_timeout,
            )
        self._drive(connecting, connection)

    def _drive(
        self,
        connecting: Coroutine[Any, Any, Any],
        connection: socket.socket,
        _: asyncio.Future[None] | None = None,
    ) -> None:
        # hot: a coroutine that waits for one future needs no task; saves 10 us per connection.
        try:
            waiter = connecting.send(None)
        except StopIteration:
            self.pending.discard(connection)
        except Exception as error:
            self.pending.discard(connection)
            logger.debug("a connection was lost before it was set up: %r", error)
            connection.close()
        else:
            waiter.add_done_callback(partial(self._drive, connecting, connection))

    def _complain(self, listener: socket.socket, error: OSError) -> None:
        now = self._loop.time()
        if now < self._complain_at:
            return
        self._complain_at = now + COMPLAIN_EVERY
        if error.errno in _EXHAUSTED:
            logger.error(
                "cannot accept connections: %s; trying again every %g s (raise the limit of open "
                "files, or start more workers)",
                error.strerror,
                PAUSE,
            )
        else:
            logger.error("cannot accept connections on %s: %s", listener.getsockname(), error)
