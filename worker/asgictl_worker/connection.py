"""One connection: its transport, its requests one after the other, its time-outs, its end.

The parser finds requests and stops after each; a cycle runs the application; when the response
is complete the parser goes on. So there is at most one cycle that can write, and pipelined
requests wait as bytes. A WebSocket takes the transport over, and nothing stays behind here.

Every state but one has a deadline:

==============  =========================================  ==================
state           when                                       at the deadline
==============  =========================================  ==================
IDLE            no part of a request is here               forget what would save work
RESTING         none has been here for long, or ever       close
HEAD            a part of a head is here                   answer 408, close
BUSY            a cycle runs                               see below
DISCARDING      the response came before the whole body    close
LINGERING       the last answer is written                 close
CLOSED          the transport is closed, or handed over    cut
==============  =========================================  ==================

A request that takes longer than ``timeout_request`` is answered 504, a client that sends no more
of a body 408, and one that reads nothing for ``timeout_write`` is cut, in this state and in the
later ones. While a worker drains, streams of events end when it is their turn.
"""

import asyncio
import contextlib
import logging
import select
import socket
import struct
from enum import Enum
from functools import cache
from typing import Any, ClassVar, Literal, cast

from asgictl_worker import tls_scope
from asgictl_worker.http import framing
from asgictl_worker.http.cycle import HIGH_WATER, HTTPCycle
from asgictl_worker.http.framing import ENDED, Parser
from asgictl_worker.http.http1 import Writer
from asgictl_worker.http.request import BadRequest, Request
from asgictl_worker.proxy_protocol import Told, ends
from asgictl_worker.service import Service
from asgictl_worker.stall import LOOK, Stall
from asgictl_worker.timers import INTERVAL, NEVER
from asgictl_worker.waiters import Waiters
from asgictl_worker.websocket.cycle import WebSocketCycle

logger = logging.getLogger("asgictl.worker")

LINGER = 2.0
"""Seconds in which a client that still sends can read its last answer."""

FAREWELL = 0.5
"""Seconds in which a client may answer the end of TLS, before its connection is closed."""

MAX_HELD = 32 * 1024
"""Bytes of small parts of a response that are held until the event loop turns."""

MAX_DISCARDED = 1024 * 1024
"""Bytes that are read for nothing to let a client read its answer, or keep its connection."""

MAX_BURST = 32
"""Pipelined requests answered before other connections have their turn."""

_RESET = struct.pack("ii", 1, 0)
"""No time to linger: the end of the connection is a reset (socket(7), SO_LINGER)."""


class State(Enum):
    """What a connection is waiting for."""

    IDLE = 0
    HEAD = 1
    BUSY = 2
    DISCARDING = 3
    LINGERING = 4
    CLOSED = 5
    RESTING = 6


# hot: names of the module are found faster than attributes of the class
_IDLE, _HEAD, _BUSY, _DISCARDING, _LINGERING, _CLOSED, _RESTING = State


@cache
def parser_class(name: Literal["auto", "httptools", "h11"]) -> type[Parser]:
    """Return the parser of that name; auto takes httptools where it imports."""
    if name != "h11":
        try:
            from asgictl_worker.http.parser_httptools import HttptoolsParser
        except ImportError:
            if name == "httptools":
                raise
        else:
            return HttptoolsParser
    from asgictl_worker.http.parser_h11 import H11Parser

    return H11Parser


class Connection(asyncio.Protocol):
    """Serves one accepted socket.

    Attributes:
        transport: writes to the client.
        client: its address and port, None on a UNIX socket.
        server: the address and port that it connected to, or the path and None.
        scheme: ``http`` or ``https``.
        heard: when a part of a body came last, or was asked for, in the time of the ticker.
        peer: for logs, whom the current request comes from.
        deadline: when ``on_tick()`` is to be called, in the time of the ticker.
        leaves_at: when a stream of events is to end, because the worker drains.
        held: parts of a response that are written when the event loop turns.
        reading_paused: the transport was told not to read.
        write_paused: the client does not read what was written.
        writer: writes the responses.
    """

    __slots__ = (
        "_burst",
        "_cycle",
        "_discarded",
        "_eof",
        "_expiry",
        "_flush_is_due",
        "_half_closable",
        "_held_size",
        "_idle_times",
        "_is_surplus",
        "_own_peer",
        "_parser",
        "_stall",
        "_state",
        "_tls",
        "_told",
        "_unstarted",
        "_writable_waiters",
        "client",
        "deadline",
        "heard",
        "held",
        "leaves_at",
        "peer",
        "reading_paused",
        "scheme",
        "server",
        "service",
        "transport",
        "write_paused",
        "writer",
    )

    cycle_class: ClassVar[type[HTTPCycle]] = HTTPCycle
    writer_class: ClassVar[type[Writer]] = Writer

    def __init__(self, service: Service, told: Told | None = None) -> None:
        """Prepare to serve.

        Args:
            service: what it shares with the others.
            told: its two ends, where they are known before it is made.
        """
        self.service = service
        self._told = told
        self.deadline = self.leaves_at = self._expiry = NEVER
        self.heard = 0.0
        self._stall: Stall | None = None
        self.reading_paused = False
        self.write_paused = False
        self.writer = self.writer_class(service.ticker, service.defaults)
        self._parser = parser_class(service.settings.http)(
            self, service.settings, service.shared_heads
        )
        self._cycle: HTTPCycle | None = None
        self._unstarted: HTTPCycle | None = None
        self._state = _RESTING
        self._idle_times = service.idle_times
        self._writable_waiters: Waiters | None = None
        self.held: list[bytes] = []
        self._held_size = 0
        self._flush_is_due = False
        self._burst = 0
        self._discarded = 0
        self._eof = False

    # -- What the event loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request."""
        self.transport = cast("asyncio.Transport", transport)
        told = self._told
        if told is None:
            told = ends(transport.get_extra_info("peername"), transport.get_extra_info("sockname"))
        self.client, self.server, is_secure = told
        self.peer = self._own_peer = _in_words(self.client)
        ssl_object = transport.get_extra_info("ssl_object")
        self._tls = None if ssl_object is None else tls_scope.describe(ssl_object)
        self.scheme = "https" if is_secure or ssl_object is not None else "http"
        self._half_closable = ssl_object is None
        service = self.service
        service.connections.add(self)
        service.counters.connections_total += 1
        settings = service.settings
        limit = settings.limit_connections
        self._is_surplus = limit is not None and len(service.connections) > limit
        now = service.ticker.now
        patience = settings.timeout_request_header
        if service.draining:
            patience = settings.drain_idle_window
            self.leaves_at = now
        self.deadline = now + patience + INTERVAL

    def data_received(self, data: bytes) -> None:
        """Pass on what the client sent."""
        self.service.counters.bytes_received += len(data)
        parser = self._parser
        # hot: whoever polls asks for the same again, and it need not be found in the bytes.
        if data == parser.known_head and parser.state == framing.HEAD and not parser.buffer:
            request = parser.known_request
            service = self.service
            if request.settled is None or service.has_deadlines:
                self._settle(request)
                parser.feed(data)
            else:
                parser.state = ENDED
                # What request_received() would do for a request that asks nothing of us.
                self._state = _BUSY
                self.deadline = NEVER
                self.peer = self._own_peer
                scope = request.repeated_scope(service.state)
                cycle_class = self.cycle_class  # by itself the look-up is faster than in a call
                self._cycle = cycle = cycle_class(self, request, scope)
                cycle.start()
        elif self._state is _LINGERING:
            self._discard(data)
        else:
            parser.feed(data)
            if parser.buffer:  # hot: of most requests nothing is left
                self._look_at_rest()

    def eof_received(self) -> bool:
        """Answer what is here, if the transport lets us; return whether it is to stay open."""
        self._eof = True
        if not self._half_closable:
            return False
        if self._cycle is not None:
            self._cycle.half_closed()
            self.deadline = min(self.deadline, self.service.ticker.now + LOOK)
            return True
        # Requests that wait for their turn are answered, too.
        return self._parser.state == ENDED and bool(self._parser.buffer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell those who wait for this client."""
        self.service.forget(self)
        self.held.clear()
        self.deadline = NEVER
        self._state = _CLOSED
        self.resume_writing()
        cycle, self._cycle = self._cycle, None
        if cycle is not None:
            cycle.lost()
        self._parser.close()

    def pause_writing(self) -> None:
        """Let senders wait: the client does not read."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """Let senders go on."""
        self.write_paused = False
        self._stall = None
        if self._writable_waiters is not None:
            self._writable_waiters.wake()
        if self._state is _IDLE and self._parser.state == ENDED:
            # The next request has waited until this client reads its answers.
            self.deadline = self.service.ticker.now + self._idle_times[0]
            self.service.loop.call_soon(self._proceed)

    # -- What the ticker and the server tell

    def on_tick(self, now: float) -> None:
        """Act on the deadline."""
        self.deadline = NEVER
        state = self._state
        if state is _BUSY:
            self._look_at_request(now)
        elif state is _HEAD:
            self._refuse(BadRequest(408, "the request did not arrive in time"))
        elif self.transport.get_write_buffer_size() and state is not _DISCARDING:
            # It reads, slowly: the answer is worth more than our descriptor.
            if self._is_stuck(now):
                self._abort()
            else:
                self.deadline = now + LOOK
        elif state is _CLOSED:
            self._end_tls(now)
        elif state is _IDLE and self._idle_times[1]:
            self._state = _RESTING
            self.deadline = now + self._idle_times[1]
            self._parser.forget()
            self.writer.forget()
        else:
            self._close()

    def drain(self, now: float, leaves_at: float) -> None:
        """Close soon if idle; responses say so from now on (``Service.draining``).

        Args:
            now: monotonic seconds.
            leaves_at: when it is the turn of this connection, if it streams events.
        """
        self.leaves_at = leaves_at
        if self._state is _BUSY:
            self.deadline = min(self.deadline, leaves_at)
        window = self.service.settings.drain_idle_window
        # For those whose response has begun, and could not say it.
        self._idle_times = (min(self._idle_times[0], window + INTERVAL), 0.0)
        if self._state is _IDLE or self._state is _RESTING:
            self.deadline = min(self.deadline, now + window)

    def abort(self) -> None:
        """End everything: the time to drain is over."""
        if self._cycle is not None:
            self._cycle.abort()
        else:
            self._abort()

    # -- What the parser finds

    def request_received(self, request: Request, body: bytes = b"") -> None:
        """Run the application for a request; ``body`` is what came of its body."""
        service = self.service
        settings = service.settings
        self._state = _BUSY
        self.deadline = NEVER
        if service.has_deadlines or (request.has_body and self._parser.state != ENDED):
            self._set_deadline(request)
        client, scheme, peer = self.client, self.scheme, self._own_peer
        server = self.server
        if request.forwarded and service.proxy_trust is not None:
            client, scheme, server = service.proxy_trust.resolve(
                request.headers, client, scheme, server
            )
            peer = _in_words(client)
        self.peer = peer
        refusal = self._find_refusal() if service.has_limits else None
        if request.upgrade == b"websocket" and settings.ws != "none" and refusal is None:
            self._upgrade(request, client, scheme, server)
            return
        scope = request.scope("http", client, server, scheme, settings.root_path, service.state)
        if self._tls is not None:
            scope["extensions"]["tls"] = self._tls.copy()
        self._cycle = cycle = self.cycle_class(self, request, scope)
        if refusal is not None:
            cycle.refuse(refusal)
        elif body:
            if self._parser.state == ENDED:
                cycle.body_came_with_head(body)
            elif cycle.body_received(body):
                self._pause_reading()
            cycle.start()
        elif request.has_body and self._parser.buffer:
            # What is here of the body comes first: most applications need not wait then.
            self._unstarted = cycle
        else:
            cycle.start()

    def body_received(self, data: bytes) -> None:
        """Give a part of the body to the application, if it still wants it."""
        self.heard = self.service.ticker.now
        if self._cycle is None:
            self._discard(data)
        elif self._cycle.body_received(data):
            self._pause_reading()

    def body_ended(self) -> None:
        """Know that the request is complete."""
        if self._cycle is not None:
            self._cycle.body_ended()
            self.bytes_ended()
        elif self._state is _DISCARDING:
            self._become_idle()

    def bytes_ended(self) -> None:
        """Run the application with what is here."""
        cycle = self._unstarted
        if cycle is not None:
            self._unstarted = None
            cycle.start()

    def request_refused(self, error: BadRequest) -> None:
        """Answer what cannot be understood, and close."""
        if self._state is _DISCARDING:
            self._finish()
        else:
            self._refuse(error)

    # -- What a cycle tells

    def response_ended(self) -> None:
        """Go on to the next request, or to the end."""
        self._cycle = None
        parser = self._parser
        if (  # hot: nearly always; as _become_idle(), where nothing is left to do
            self.writer.keep_alive
            and parser.state == ENDED
            and not (parser.buffer or self._eof or self.reading_paused or self.write_paused)
        ):
            self._state = _IDLE
            self.deadline = self.service.ticker.now + self._idle_times[0]
            parser.state = framing.HEAD
        elif not self.writer.keep_alive or (
            self._eof and not (parser.state == ENDED and parser.buffer)
        ):
            self._finish()
        elif parser.state == ENDED:
            self._become_idle()
        else:
            # The answer came before the whole body. The rest is read and dropped, within
            # limits, for it may be short and the connection is useful yet.
            self._state = _DISCARDING
            self._discarded = 0
            self.deadline = self.service.ticker.now + LINGER + INTERVAL
            self.resume_reading()

    def cut(self, *, visible: bool) -> None:
        """End the connection in the middle of a response.

        Args:
            visible: the client sees that something is missing. If not, only a reset tells
                (RFC 9112, section 8).
        """
        self._cycle = None
        if visible:
            if self.held:
                self._flush()
            self._close()
            return
        connection = self.transport.get_extra_info("socket")
        if connection is not None and self._half_closable:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._abort()

    def resume_reading(self) -> None:
        """Read on: somebody took what was there, or asks for more."""
        self.heard = self.service.ticker.now
        if self.reading_paused:
            self.reading_paused = False
            self.transport.resume_reading()

    def write(self, data: bytes | tuple[bytes, ...]) -> None:
        """Write, behind what is held."""
        parts = (data,) if isinstance(data, bytes) else data
        # Large parts are not copied. And not writelines(): asyncio's never pauses the writer
        # before CPython 3.13.2 (CVE-2024-12254), and a client that does not read would fill
        # the memory.
        if self.held:
            self.held.append(parts[0])
            self._flush()
            parts = parts[1:]
        for part in filter(None, parts):
            self._write(part)

    def write_soon(self, data: bytes) -> None:
        """Hold small parts until the event loop turns, to write them at once.

        A system call for each part would cost as much as all the rest of a response in ten
        parts. Nobody waits longer for it: the loop turns before it sleeps.
        """
        self.held.append(data)
        self._held_size += len(data)
        if self._held_size > MAX_HELD:
            self._flush()
        elif not self._flush_is_due:
            self._flush_is_due = True
            self.service.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._flush_is_due = False
        if self.held:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self.held)
        self.held.clear()
        self._held_size = 0
        self._write(data)

    def _write(self, data: bytes) -> None:
        self.service.counters.bytes_sent += len(data)
        self.transport.write(data)
        if self.transport.is_closing():
            # It has just found that the client is gone. An application that never waits would
            # go on to write; now it waits, and the event loop can tell us.
            self.write_paused = True

    async def wait_until_writable(self) -> None:
        """Wait until the client has read enough of what was written, or is gone."""
        while self.write_paused:
            self.deadline = min(self.deadline, self.service.ticker.now + LOOK)
            if self._writable_waiters is None:
                self._writable_waiters = Waiters(self.service.loop)
            await self._writable_waiters.join()

    # -- Inside

    def _settle(self, request: Request) -> None:
        """Prepare for more repetitions of a request, if nothing has to be asked each time."""
        service = self.service
        if not (request.has_body or self._tls or service.has_limits or service.has_deadlines):
            request.settle(self.client, self.server, self.scheme, service.settings.root_path)

    def _find_refusal(self) -> BadRequest | None:
        """Return why no request can be served now, if so."""
        service = self.service
        limit = service.settings.limit_concurrency
        if limit is not None and service.counters.in_flight >= limit:
            # Of those that have just ended, the event loop may not have told us yet.
            ended = sum(task.done() for task in service.tasks)
            if service.counters.in_flight - ended >= limit:
                return BadRequest(503, "too many requests in progress")
        return BadRequest(503, "too many connections") if self._is_surplus else None

    def _set_deadline(self, request: Request) -> None:
        """See to a request that may take too long, for what reason ever."""
        service = self.service
        settings = service.settings
        now = self.heard = service.ticker.now
        self._expiry = now + (settings.timeout_request or NEVER) + INTERVAL
        deadline = min(self._expiry, self.leaves_at)
        if request.has_body:
            deadline = min(deadline, now + (settings.timeout_request_body or NEVER) + INTERVAL)
        self.deadline = deadline

    def _look_at_request(self, now: float) -> None:
        """See whether anybody takes too long."""
        cycle = self._cycle
        assert cycle is not None
        if now >= self._expiry:
            cycle.time_out()
            return
        if now >= self.leaves_at:
            if cycle.end_stream():
                return
            # Perhaps it only becomes a stream.
            self.leaves_at = now + LOOK
        deadline = min(self._expiry, self.leaves_at)
        if self.write_paused:
            if self._is_stuck(now):
                logger.debug("the client does not read, cutting %s", cycle)
                self._abort()
                return
            deadline = min(deadline, now + LOOK)
        if self.reading_paused or self._eof:
            if self._poll(0):
                # A reset, of which nobody tells us while we do not read.
                self._abort()
                return
            deadline = min(deadline, now + LOOK)
        is_over = self._parser.state in (ENDED, framing.FAILED)
        if not (is_over or self.reading_paused or cycle.owes_continue):
            patience = (self.service.settings.timeout_request_body or NEVER) + INTERVAL
            if now >= self.heard + patience:
                self._refuse(BadRequest(408, "the body of the request did not arrive in time"))
                return
            deadline = min(deadline, self.heard + patience)
        self.deadline = deadline

    def _is_stuck(self, now: float) -> bool:
        """Whether the client has read nothing for too long."""
        if self._stall is None:
            self._stall = Stall(self.transport, now)
        return self._stall.lasts(now) >= (self.service.settings.timeout_write or NEVER)

    def _become_idle(self) -> None:
        """Wait for the next request, or go on with the one that is here."""
        self._state = _IDLE
        self.deadline = self.service.ticker.now + self._idle_times[0]
        parser = self._parser
        if self.reading_paused and len(parser.buffer) <= HIGH_WATER:
            # Else each answer would let in more requests than one.
            self.resume_reading()
        if self.write_paused:
            # Answers that nobody reads would pile up; resume_writing() goes on.
            self.deadline = self.service.ticker.now + LOOK
        elif not parser.buffer:
            parser.proceed()
        elif parser.is_advancing and self._burst < MAX_BURST:
            self._burst += 1
            parser.state = framing.HEAD
        else:
            self.service.loop.call_soon(self._proceed)

    def _proceed(self) -> None:
        """Go on with pipelined requests."""
        self._burst = 0
        if self._state is _IDLE and self._parser.state == ENDED and not self.write_paused:
            parser = self._parser
            parser.proceed()
            self._look_at_rest()
            if (
                self.reading_paused
                and self._state is not _CLOSED
                and (parser.state != ENDED or len(parser.buffer) <= HIGH_WATER)
            ):
                self.resume_reading()
            if self._eof:
                self._see_last_request()

    def _see_last_request(self) -> None:
        """Go on after the client's end, with what it had sent before."""
        parser = self._parser
        if self._cycle is not None:
            self._cycle.half_closed()
        elif parser.state == ENDED and parser.buffer:
            # More of them wait for their turn, or until this client reads its answers.
            return
        elif self._state is _IDLE or self._state is _HEAD:
            self._close()

    def _look_at_rest(self) -> None:
        """See to what the parser could not use up."""
        parser = self._parser
        if parser.state == ENDED:
            if len(parser.buffer) > HIGH_WATER:
                # Pipelined requests; less than this is read on, to hear of the client's end.
                self._pause_reading()
        elif (
            (self._state is _IDLE or self._state is _RESTING)
            and parser.state == framing.HEAD
            and parser.buffer
        ):
            self._state = _HEAD
            service = self.service
            patience = service.settings.timeout_request_header
            self.deadline = service.ticker.now + patience + INTERVAL

    def _upgrade(
        self,
        request: Request,
        client: tuple[str, int] | None,
        scheme: str,
        server: tuple[str, int | None] | None,
    ) -> None:
        """Hand the transport over to a WebSocket."""
        service = self.service
        scope = request.scope(
            "websocket",
            client,
            server,
            "wss" if scheme == "https" else "ws",
            service.settings.root_path,
            service.state,
        )
        if self._tls is not None:
            scope["extensions"]["tls"] = self._tls.copy()
        self._state = _CLOSED
        service.connections.discard(self)
        self._websocket(request, scope).start(self._parser.take_rest())

    def _websocket(self, request: Request, scope: dict[str, Any]) -> WebSocketCycle:
        return WebSocketCycle(self.service, self.transport, request, scope)

    def _refuse(self, error: BadRequest) -> None:
        """Answer with an error instead of the application, if that is still possible."""
        if self._cycle is None:
            request = Request("GET", b"/", "1.1", [(b"host", b"")])
            # For the access log: it is not known what was asked for.
            request.method, request.target = "HEAD" if error.is_for_head else "-", b"-"
            request.is_usual = False
            self._state = _BUSY
            self._cycle = self.cycle_class(self, request, {})
        self._unstarted = None
        logger.debug("refused a request from %s: %s", self.peer, error)
        self._cycle.refuse(error)

    def _finish(self) -> None:
        """Close after the last response, in a way that the client can read it."""
        parser = self._parser
        if self._eof or (parser.state == ENDED and not parser.buffer and not self.reading_paused):
            self._close()
            return
        # To close with unread bytes would reset the connection, and the client could lose the
        # answer (RFC 9112, section 9.6). So only our side is closed first.
        parser.stop()
        self._state = _LINGERING
        self._discarded = 0
        self.deadline = self.service.ticker.now + LINGER + INTERVAL
        if self._half_closable:
            self.transport.write_eof()
        self.resume_reading()

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > MAX_DISCARDED:
            self._close()

    def _pause_reading(self) -> None:
        # After the client's end there is nothing to pause, and to resume would repeat the end.
        if not (self.reading_paused or self._eof):
            self.reading_paused = True
            self.deadline = min(self.deadline, self.service.ticker.now + LOOK)
            self.transport.pause_reading()

    def _close(self) -> None:
        """Close when everything is written."""
        self._state = _CLOSED
        self._parser.stop()
        self.transport.close()
        if not self._half_closable:
            self.deadline = self.service.ticker.now + FAREWELL + INTERVAL
        elif self.transport.get_write_buffer_size():
            self.deadline = self.service.ticker.now + LOOK

    def _end_tls(self, now: float) -> None:
        """Close a connection whose client does not answer the end of TLS.

        It need not (RFC 8446, section 6.1), and clients that do not look at their idle
        connections never will. What is not sent yet stands in the way of new bytes, so if
        the socket takes some, all is sent.
        """
        if self._poll(select.POLLOUT) or self._is_stuck(now):
            self._abort()
        else:
            self.deadline = now + FAREWELL

    def _poll(self, events: int) -> bool:
        """Whether one of these has happened to the socket, or its connection has ended."""
        connection = self.transport.get_extra_info("socket")
        if connection is None or connection.fileno() < 0:
            return False
        poller = select.poll()
        poller.register(connection, events)
        return bool(poller.poll(0))

    def _abort(self) -> None:
        """Close at once."""
        self.held.clear()
        self._state = _CLOSED
        self._parser.stop()
        self.transport.abort()


def _in_words(client: tuple[str, int] | None) -> str:
    return "unix" if client is None else f"{client[0]}:{client[1]}"
