"""Hear from a proxy who its client is, before a connection is set up (``--proxy-protocol``).

The header is read from the bare socket, and not one byte more, so that what follows, be it
TLS or HTTP, begins where the event loop takes over. Whether there is a header is never
guessed: if there could be one for whoever wants, anybody could pretend to be anybody.
"""

import asyncio
import logging
import socket
from collections.abc import Callable

from asgictl_worker.proxy import ProxyTrust
from asgictl_worker.proxy_protocol import BadHeader, Header, Told
from asgictl_worker.settings import WorkerSettings

logger = logging.getLogger("asgictl.worker")

COMPLAIN_EVERY = 10.0
"""Seconds between two log lines about refused connections; whoever is refused tries again."""

_PEEK = 4096

Done = Callable[[socket.socket, Told | None, bool], None]
"""Called with the socket, with what was told, and whether the connection may be set up."""


class Introductions:
    """Reads the headers of new connections."""

    __slots__ = ("_complain_at", "_loop", "_silenced", "_timeout", "_trust")

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: WorkerSettings) -> None:
        """Prepare.

        Raises:
            NotAPeer: the list of those who may introduce somebody cannot be understood.
        """
        self._loop = loop
        self._timeout = settings.timeout_request_header
        if settings.proxy_allow_from is None:
            self._trust = ProxyTrust(settings.forwarded_allow_ips)
        else:
            self._trust = ProxyTrust(settings.proxy_allow_from, setting="proxy_allow_from")
        self._complain_at = loop.time()
        self._silenced = 0

    def hear(self, connection: socket.socket, done: Done) -> None:
        """Read the header of an accepted connection; ``done`` may be called at once."""
        try:
            peer = connection.getpeername()
        except OSError:
            done(connection, None, False)  # gone already
            return
        if not self._trust.trusts(peer[0] if isinstance(peer, tuple) else None):
            self.complain(
                peer,
                "it may not, see --proxy-allow-from (and --proxy-protocol is on for this port)",
            )
            done(connection, None, False)
            return
        connection.setblocking(False)
        _Introduction(self, self._loop, connection, peer, done).read(self._timeout)

    def complain(self, peer: object, problem: str) -> None:
        """Say why a connection was refused, now and then."""
        now = self._loop.time()
        if now < self._complain_at:
            self._silenced += 1
            return
        others = f" (and {self._silenced} others before)" if self._silenced else ""
        self._complain_at, self._silenced = now + COMPLAIN_EVERY, 0
        if isinstance(peer, tuple):
            whom = f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
        else:
            whom = "a UNIX socket"
        logger.warning("refused a connection from %s: %s%s", whom, problem, others)


class _Introduction:
    """One connection whose header is not complete."""

    __slots__ = ("_connection", "_done", "_header", "_loop", "_owner", "_peer", "_timer")

    def __init__(
        self,
        owner: Introductions,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        peer: object,
        done: Done,
    ) -> None:
        self._owner = owner
        self._loop = loop
        self._connection = connection
        self._peer = peer
        self._done = done
        self._header = Header()
        self._timer: asyncio.TimerHandle | None = None

    def read(self, timeout: float) -> None:
        """Read what is here, which is nearly always all of it; wait for the rest."""
        if not self._advance():
            self._timer = self._loop.call_later(timeout, self._too_late, timeout)
            self._loop.add_reader(self._connection.fileno(), self._advance)

    def _advance(self) -> bool:
        """Read on; return whether it is over, well or not."""
        header = self._header
        problem = ""
        try:
            while not header.complete:
                seen = self._connection.recv(_PEEK, socket.MSG_PEEK)
                if not seen:
                    # Nothing at all is what those do who only ask whether we are here.
                    problem = "the header of the PROXY protocol ended early" if header.begun else ""
                    break
                self._connection.recv(header.feed(seen))
        except (BlockingIOError, InterruptedError):
            return False
        except BadHeader as error:
            problem = f"no header of the PROXY protocol, but {error}"
        except OSError as error:
            logger.debug("a connection was lost before its PROXY protocol header: %s", error)
        self._end(problem)
        return True

    def _too_late(self, timeout: float) -> None:
        self._end(f"no header of the PROXY protocol in {timeout:g} s")

    def _end(self, problem: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._loop.remove_reader(self._connection.fileno())
        if problem:
            self._owner.complain(self._peer, problem)
        self._done(self._connection, self._header.told, self._header.complete and not problem)
