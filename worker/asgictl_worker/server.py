"""Serve an application in a running event loop: start, accept, drain, stop.

``Server.serve()`` is all of it in one call, for those who bring their own loop. A forked
worker (``main.py``) takes the same steps one by one, because it has to report in between.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from asgictl_worker import application, request_ids
from asgictl_worker.acceptor import Acceptor
from asgictl_worker.access_log import open_access_log
from asgictl_worker.asgi import Application, as_coroutine_function
from asgictl_worker.connection import Connection
from asgictl_worker.hygiene import CANCEL_GRACE, describe
from asgictl_worker.introductions import Introductions
from asgictl_worker.lifespan import Lifespan
from asgictl_worker.proxy import ProxyTrust
from asgictl_worker.request_ids import RequestIds
from asgictl_worker.service import Service
from asgictl_worker.settings import WorkerSettings
from asgictl_worker.timers import Ticker
from asgictl_worker.tls import TLS

logger = logging.getLogger("asgictl.worker")

LAST_WORDS = 0.5
"""Seconds to wait, at most, for a reader of the log that is behind when we leave."""


IDLE_GRACE = 0.01
"""Seconds in which idle connections that may not stay are read a last time."""

HANDSHAKE_GRACE = 1.0
"""Seconds that a TLS handshake may go on while draining: time for three round trips around the
world. Whoever does not speak at all would hold us up for the whole handshake time-out."""

LEAVING_RATE = 100
"""WebSockets and streams of events that are ended per second, if there is no need to hurry."""


class Server:
    """Serves one application, in one event loop, once.

    It leaves signals, logging and the process alone. To stop it, call ``stop()`` from the
    loop's thread; to be told that it accepts, wait for ``started``. If it does not come to
    that, ``serve()`` raises: wait for both, as a ``TaskGroup`` does.

    Attributes:
        started: an ``asyncio.Event``, set as soon as connections are accepted.
        stopping: an ``asyncio.Event``, set as soon as ``stop()`` is called.
        sockets: the listening sockets; with port 0, ask them for the port.
        tls: the TLS of all connections, or None; ``tls.load()`` renews the certificate.
    """

    def __init__(
        self,
        app: Application | str,
        settings: WorkerSettings | None = None,
        *,
        tls: TLS | None = None,
    ) -> None:
        """Prepare to serve; nothing happens before ``serve()`` or ``startup()``.

        Args:
            app: an ASGI callable, or its name as ``module:attribute``.
            settings: how to serve it; the defaults without.
            tls: made from the settings, if they ask for TLS and it is not given.
        """
        self.settings = settings or WorkerSettings()
        self.tls = tls or (TLS(self.settings) if self.settings.uses_tls else None)
        self.started = asyncio.Event()
        self.sockets: tuple[socket.socket, ...] = ()
        self.stopping = asyncio.Event()
        self._app = app
        self._service: Service | None = None
        self._lifespan: Lifespan | None = None
        self._acceptor: Acceptor | None = None
        self._drain_until = float("inf")

    @property
    def service(self) -> Service:
        """What the connections share, counters included; there is none before ``startup()``."""
        assert self._service is not None, "startup() comes first"
        return self._service

    async def serve(
        self,
        sockets: Sequence[socket.socket] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        uds: str | None = None,
        backlog: int = 2048,
        handle_signals: bool = False,
    ) -> None:
        """Serve until ``stop()`` is called; then drain, shut down and return.

        Args:
            sockets: listening sockets, which stay yours: they are not closed. Without them,
                sockets are made from the other arguments and closed at the end.
            host: listen on this address or name.
            port: listen on this port; 0 takes a free one.
            uds: listen on a UNIX socket at this path instead.
            backlog: how many connections the kernel holds until they are accepted.
            handle_signals: stop on SIGTERM and SIGINT; only in the main thread.

        Raises:
            AsgictlError: the application cannot be loaded or its startup failed.
            OSError: the address cannot be bound.
        """
        async with contextlib.AsyncExitStack() as stack:
            own = sockets is None
            if sockets is None:
                # Bound before the application starts, so that a port in use is told at once.
                sockets = stack.enter_context(_bind(await _addresses(host, port, uds)))
            if handle_signals:
                stack.enter_context(_signals(self.stop))
            stack.push_async_callback(self.shutdown)
            if not await self.startup():
                return
            if own:
                for listener in sockets:
                    listener.listen(backlog)
            try:
                self.start_accepting(sockets)
                await self.stopping.wait()
            finally:
                self.stop_accepting(for_good=own)
                # Without a stop this is a cancellation, and there is no time to give.
                await self.drain(None if self.stopping.is_set() else 0.0)

    def stop(self, within: float | None = None) -> None:
        """Stop gracefully; ``serve()`` returns when that is done. A second call hurries it.

        Args:
            within: seconds that requests in progress may take; by default
                ``timeout_graceful_shutdown``, and nothing at the second call.
        """
        if within is None:
            within = 0.0 if self.stopping.is_set() else self.settings.timeout_graceful_shutdown
        self._drain_until = min(self._drain_until, asyncio.get_running_loop().time() + within)
        self.stopping.set()

    # -- The steps

    async def startup(self) -> bool:
        """Load the application, if it is a name, and take it through its lifespan startup.

        Returns:
            Whether it is to be served; False if ``stop()`` was called in the meantime.

        Raises:
            AsgictlError: the application cannot be loaded or its startup failed.
        """
        settings = self.settings
        if self.tls is not None:
            self.tls.load()
        app = self._app
        if isinstance(app, str):
            app = load(app, settings)
        loop = asyncio.get_running_loop()
        self._lifespan = Lifespan(app, settings.lifespan)
        starting = loop.create_task(self._lifespan.startup())
        stopping = loop.create_task(self.stopping.wait())
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            starting.cancel()
        await asyncio.wait([starting])
        if starting.cancelled():
            return False
        starting.result()
        if settings.request_id_header is not None:
            app = request_ids.entered(app)
        self._service = Service(
            app=as_coroutine_function(app),
            settings=settings,
            loop=loop,
            ticker=Ticker(loop),
            access_log=open_access_log(settings, loop),
            proxy_trust=ProxyTrust(settings.forwarded_allow_ips, take_host=settings.forwarded_host)
            if settings.proxy_headers
            else None,
            state=self._lifespan.state,
        )
        self._service.ticker.start(self._service)
        return not self.stopping.is_set()

    def start_accepting(
        self, sockets: Sequence[socket.socket], allowance: Callable[[], int | None] | None = None
    ) -> None:
        """Accept connections on listening sockets; see ``Acceptor`` for ``allowance``."""
        service = self.service
        self.sockets = tuple(sockets)
        self._acceptor = Acceptor(
            service.loop,
            sockets,
            partial(self._connection_class(), service),
            allowance,
            self.tls,
            Introductions(service.loop, self.settings) if self.settings.proxy_protocol else None,
        )
        self._acceptor.start()
        self.started.set()

    def _connection_class(self) -> Callable[..., Connection]:
        settings = self.settings
        if settings.request_id_header is None:
            return Connection
        from asgictl_worker.identified import IdentifiedConnection  # only for those who ask

        trust = ProxyTrust(settings.forwarded_allow_ips)
        return partial(IdentifiedConnection, RequestIds(settings.request_id_header, trust))

    def stop_accepting(self, *, for_good: bool = False) -> None:
        """Accept no more.

        Args:
            for_good: nobody else will accept from these listeners, so take what the kernel's
                queue holds first: to the clients, those connections are open already.
        """
        if self._acceptor is None:
            return
        if for_good:
            self._acceptor.finish()
        else:
            self._acceptor.stop()

    async def drain(self, within: float | None = None) -> None:
        """Let requests in progress finish; when the time is over, end them.

        Idle connections stay open for ``drain_idle_window``, so that a request on its way is
        answered; answers carry ``Connection: close``. WebSockets are closed with 1012, and
        streams of events ended, one after the other: their clients come back at once.

        Args:
            within: seconds that this may take; by default what ``stop()`` was told, which may
                be called again meanwhile.
        """
        service = self.service
        loop = service.loop
        if within is not None:
            self._drain_until = min(self._drain_until, loop.time() + within)
        service.draining = service.has_deadlines = True
        now = loop.time()
        connections = list(service.connections)
        share = self._spread(len(connections), self._drain_until - now) / max(1, len(connections))
        for number, connection in enumerate(connections):
            connection.drain(now, now + number * share)
        if not self.settings.drain_idle_window:
            await self._close_idle()
        pause = 0.005
        patience = loop.time() + HANDSHAKE_GRACE
        while self._busy():
            if self._acceptor is not None and loop.time() >= patience:
                self._acceptor.give_up_pending()
            left = self._drain_until - loop.time()
            if left <= 0:
                await self._abort()
                return
            # Nobody waits for the last connection but us, so asking now and then is enough.
            pause = min(pause * 1.5, 0.1)
            await asyncio.sleep(min(pause, left))

    async def _close_idle(self) -> None:
        """Close idle connections now and not at the next tick; first read what has arrived."""
        loop = self.service.loop
        await asyncio.sleep(IDLE_GRACE)
        for connection in list(self.service.connections):
            if connection.deadline <= loop.time():
                connection.on_tick(loop.time())

    def _spread(self, connections: int, left: float) -> float:
        """Return in how many seconds those are sent away who would all come back at once."""
        return min(self.settings.drain_spread, connections / LEAVING_RATE, max(0.0, left / 4))

    @property
    def connections(self) -> int:
        """How many connections there are, those included that are being set up."""
        pending = len(self._acceptor.pending) if self._acceptor is not None else 0
        return pending + len(self.service.connections)

    def _busy(self) -> bool:
        return bool(self.connections or self.service.tasks)

    async def shutdown(self) -> None:
        """Take the application through its lifespan shutdown and write the last log lines."""
        if self._lifespan is not None:
            await self._lifespan.shutdown(self.settings.timeout_lifespan_shutdown)
        if self._service is not None:
            self._service.ticker.stop()
            if self._service.access_log is not None:
                self._service.access_log.flush(LAST_WORDS)

    async def _abort(self) -> None:
        service = self.service
        tasks = set(service.tasks)
        logger.warning(
            "the time to drain is over: closing %d connections, cancelling %d requests",
            len(service.connections),
            len(tasks),
        )
        for connection in list(service.connections):
            connection.abort()
        if self._acceptor is not None:
            self._acceptor.give_up_pending()
        if tasks:
            # Streams have heard of the disconnect, and may want to say so to somebody. Both
            # waits together are what the supervisor grants beyond the drain.
            _, tasks = await asyncio.wait(tasks, timeout=CANCEL_GRACE / 2)
        for task in tasks:
            task.cancel()
        if tasks:
            _, tasks = await asyncio.wait(tasks, timeout=CANCEL_GRACE / 2)
        if tasks:
            logger.warning(
                "these ignore their cancellation: %s", ", ".join(sorted(map(describe, tasks)))
            )
        # What was cut may have been waiting for its client to read.
        for connection in list(service.connections):
            connection.abort()
        # Transports report their end in the loop's next turns.
        for _ in range(10):
            if service.connections:
                await asyncio.sleep(0)


def load(name: str, settings: WorkerSettings) -> Application:
    """Load the application as the settings say; see ``application.load()``."""
    return application.load(
        name,
        app_dir=settings.app_dir,
        factory=settings.factory,
        interface=settings.interface,
    )


# -- Listening sockets, for those who have no supervisor


@dataclass(frozen=True, slots=True)
class _Address:
    family: int
    sockaddr: Any


async def _addresses(host: str, port: int, uds: str | None) -> list[_Address]:
    if uds is not None:
        return [_Address(socket.AF_UNIX, uds)]
    found = await asyncio.get_running_loop().getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return list(dict.fromkeys(_Address(family, sockaddr) for family, *_, sockaddr in found))


@contextlib.contextmanager
def _bind(addresses: list[_Address]) -> Iterator[list[socket.socket]]:
    """Bind all addresses or none, all to one port; close the sockets at the end."""
    port = 0
    with contextlib.ExitStack() as stack:
        sockets = []
        for address in addresses:
            listener = stack.enter_context(socket.socket(address.family))
            sockets.append(listener)
            if address.family == socket.AF_UNIX:
                _remove_stale(address.sockaddr)
                listener.bind(address.sockaddr)
                stack.callback(_remove, address.sockaddr, os.stat(address.sockaddr).st_ino)
                continue
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if address.family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            where, asked, *rest = address.sockaddr
            listener.bind((where, asked or port, *rest))
            port = listener.getsockname()[1]
        yield sockets


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more; bind() tells of anything else."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


def _remove(path: str, inode: int) -> None:
    # Somebody may have put another socket there since.
    with contextlib.suppress(OSError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
