"""One WebSocket: the answer to its handshake, one run of the application, and the end.

The cycle is the protocol of its transport: from the hand-over on nothing stands between them.
What travels is made and read by ``handshake`` and ``frames``; here stands what it means to the
application, and what time and back-pressure ask for.

What the cycle waits for is its ``deadline``, and what the passing of it means:

==========  ====================================  ==================================
state       when                                  at the deadline
==========  ====================================  ==================================
CONNECTING  the application decides               (there is none)
DENYING     the application answers with HTTP     cut if the client does not read
OPEN        until the next ping                   ping
OPEN        the client does not read              cut
OPEN        the worker drains                     close with 1012
OPEN        since the last ping                   close with 1011 if all was silent
OPEN        the client has closed                 answer its close frame
CLOSING     the client is to close too            cut
CLOSED      the client is to read what was sent   cut
==========  ====================================  ==================================

Sources: the WebSocket message format of ASGI, version 2.5; RFC 6455, sections 5.5 and 7.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from enum import Enum
from http import HTTPStatus
from typing import Any

from asgictl_worker.access_format import Details
from asgictl_worker.http.cycle import CLIENT_LEFT, TASK_OPTIONS, is_about_disconnect
from asgictl_worker.http.http1 import Writer
from asgictl_worker.http.request import Request
from asgictl_worker.http.response import ClientDisconnected, ResponseError
from asgictl_worker.service import Service
from asgictl_worker.stall import LOOK, Stall
from asgictl_worker.timers import INTERVAL, NEVER
from asgictl_worker.waiters import Waiters
from asgictl_worker.websocket import handshake
from asgictl_worker.websocket.frames import Close, CloseCode, Frames, Ping, Pong
from asgictl_worker.websocket.handshake import BadHandshake, Handshake

logger = logging.getLogger("asgictl.worker")

CLOSE_TIMEOUT = 10.0
"""Seconds in which the client must answer a close frame, and read what is still to be sent."""

LAST_WORDS = 1.0
"""Seconds in which the application can answer what the client sent before it closed."""

EARLY_BYTES = 64 * 1024
"""Bytes taken before the handshake is answered; more stays in the kernel."""

MAX_QUEUED = 256 * 1024
"""Bytes (or characters) of messages that fill the queue, however few they are: ``ws_max_queue``
messages of the longest kind would fill the memory."""

NO_PONG = "no answer to a ping"
PING = b"asgictl"
"""The payload of pings. Pongs need not be told apart: any byte from the client shows life."""


class State(Enum):
    """How far a WebSocket is."""

    CONNECTING = "before accepting or closing the WebSocket"
    DENYING = "in the middle of a response instead of a WebSocket"
    OPEN = "while the WebSocket is open"
    CLOSING = "after closing the WebSocket"
    CLOSED = "after the end of the WebSocket"


TRANSITIONS: dict[State, dict[str, State]] = {
    State.CONNECTING: {
        "websocket.accept": State.OPEN,
        "websocket.close": State.CLOSED,
        "websocket.http.response.start": State.DENYING,
    },
    # The last part of the body makes it CLOSED.
    State.DENYING: {"websocket.http.response.body": State.DENYING},
    State.OPEN: {"websocket.send": State.OPEN, "websocket.close": State.CLOSING},
    State.CLOSING: {},
    State.CLOSED: {},
}
"""What the application may send, and where that leads."""

# hot: names of the module are found faster than attributes of the class
_CONNECTING, _DENYING, _OPEN, _CLOSING, _CLOSED = State


class UnexpectedMessage(ResponseError):
    """The application sent a message that does not exist, or has no place here."""

    def __init__(self, kind: object, state: State) -> None:
        self.kind, self.state = kind, state
        expected = " or ".join(TRANSITIONS[state]) or "nothing"
        super().__init__(f"the application sent {kind!r} {state.value}, where {expected} can come")


class InvalidMessage(ResponseError):
    """The application sent a message with a part that is missing or cannot be sent."""

    def __init__(self, kind: str, what: str) -> None:
        self.kind, self.what = kind, what
        super().__init__(f"the application sent {kind!r} {what}")


class Unfinished(ResponseError):
    """The application returned without an answer to the handshake, or in the middle of it."""

    def __init__(self, state: State) -> None:
        self.state = state
        super().__init__(f"the application returned {state.value}")


class WebSocketCycle(asyncio.Protocol):
    """Serves one WebSocket, from the parsed head of its handshake to the end of its transport.

    Args:
        service: what connections share; the cycle takes its connection's place among them.
        transport: of the connection.
        request: one whose ``upgrade`` is ``websocket``.
        scope: of the kind ``websocket``.

    Attributes:
        deadline: when ``on_tick()`` is to be called, in the time of the ticker.
    """

    __slots__ = (
        "_aborted",
        "_disconnect",
        "_early",
        "_ending",
        "_frames",
        "_handshake",
        "_has_closed",
        "_head_sent",
        "_heard",
        "_judgement",
        "_leaves_at",
        "_next_ping",
        "_owed_pong",
        "_peer",
        "_queue",
        "_queued",
        "_readers",
        "_reading_paused",
        "_request",
        "_scope",
        "_service",
        "_stall",
        "_started",
        "_state",
        "_task",
        "_transport",
        "_unsent",
        "_writer",
        "_writers",
        "_writing_paused",
        "deadline",
        "request_id",
    )

    def __init__(
        self,
        service: Service,
        transport: asyncio.Transport,
        request: Request,
        scope: dict[str, Any],
    ) -> None:
        client = scope["client"]
        self.deadline = NEVER
        self.request_id = ""
        self._service = service
        self._transport = transport
        self._request = request
        self._scope = scope
        self._peer = "unix" if client is None else f"{client[0]}:{client[1]}"
        self._started = time.perf_counter()
        self._state = _CONNECTING
        self._task: asyncio.Task[None] | None = None
        self._aborted = False
        self._handshake: Handshake
        self._frames: Frames
        # From the client to the application.
        self._early = b""
        # Texts and bytes as they are: of small messages, each would cost as much again as a
        # dictionary, and one read can hold forty thousand of them.
        self._queue: deque[str | bytes | dict[str, Any]] = deque()
        self._queued = 0
        self._readers = Waiters(service.loop)
        self._reading_paused = False
        self._disconnect: dict[str, Any] | None = None
        self._ending: Close | None = None
        self._has_closed = False  # the application itself
        # From the application to the client.
        self._writer = Writer(service.ticker, service.defaults)
        self._writers = Waiters(service.loop)
        self._writing_paused = False
        self._head_sent = False
        self._owed_pong: bytes | None = None
        # Signs of life: when to ask for one, when to judge, and what was seen since asked.
        self._next_ping = self._judgement = self._leaves_at = NEVER
        self._stall: Stall | None = None
        self._heard = False
        self._unsent = 0

    def start(self, early: bytes = b"") -> None:
        """Take the transport over, and run the application if the handshake is a good one.

        Args:
            early: what was received behind the head of the request.
        """
        service = self._service
        service.connections.add(self)
        self._transport.set_protocol(self)
        self._transport.resume_reading()
        self._early = early
        counters = service.counters
        counters.websockets += 1
        counters.websockets_total += 1
        try:
            self._handshake = handshake.negotiate(
                self._request, per_message_deflate=service.settings.ws_per_message_deflate
            )
        except BadHandshake as error:
            self._respond(error.status, list(error.headers), error.reason.encode())
            return
        self._queue.append({"type": "websocket.connect"})
        counters.in_flight += 1
        task = asyncio.Task(
            self._run(service), loop=service.loop, context=service.context.copy(), **TASK_OPTIONS
        )
        if not task.done():
            self._task = task
            service.tasks.add(task)
            if not TASK_OPTIONS:
                task.add_done_callback(self._has_ended)

    def details(self) -> Details:
        """Return what only some formats of the access log want to know."""
        return Details(self._request.headers, self._writer.headers, self.request_id)

    def __str__(self) -> str:
        """Return what logs call this: the request line and the client."""
        request = self._request
        return (
            f'WebSocket "{request.method} {request.target.decode("ascii")} '
            f'HTTP/{request.http_version}" from {self._peer}'
        )

    # -- What the event loop tells

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client: messages, pings, and the end."""
        self._heard = True
        counters = self._service.counters
        counters.bytes_received += len(data)
        state = self._state
        if state is not _OPEN and state is not _CLOSING:
            if state is not _CLOSED:
                self._early += data
                if len(self._early) >= EARLY_BYTES:
                    self._pause_reading()
            return
        queue = self._queue
        frames = self._frames
        for event in frames.receive(data):
            if not isinstance(event, (str, bytes)):
                self._control(event)
                continue
            counters.messages_received += 1
            if self._state is _OPEN:
                queue.append(event)
                self._queued += len(event)
        if queue:
            self._readers.wake()
            if (
                len(queue) >= self._service.settings.ws_max_queue
                or self._queued >= MAX_QUEUED
                or frames.is_behind
            ):
                self._pause_reading()

    def _control(self, event: Ping | Pong | Close) -> None:
        """Answer a control frame."""
        if isinstance(event, Close):
            self._closed_by_client(event)
        elif isinstance(event, Ping) and self._state is _OPEN:
            if self._writing_paused:
                # Only the last one needs an answer (RFC 6455, section 5.5.3), and the pongs
                # for somebody who does not read them must not fill our memory.
                self._owed_pong = event.payload
            else:
                self._transport.write(self._frames.pong(event.payload))

    def _closed_by_client(self, close: Close) -> None:
        """Take a close frame of the client, or its breach of a rule, which ends it as well."""
        if self._state is not _OPEN:
            self._close_transport()
            return
        self._ending = close
        self._disconnected(close.code, close.reason)
        if self._queue:
            # What came before was sent in good faith, and may be answered yet.
            self._arm(LAST_WORDS)
        else:
            self._answer_close(close)

    def _answer_close(self, close: Close) -> None:
        # The code of a close frame is sent back; that of a breach tells the client which.
        self._close(close.code, close.reason if close.failed else "")

    def eof_received(self) -> None:
        """Let the transport close: without a close frame, that is the end."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits for this client."""
        self._service.forget(self)
        self._service.counters.websockets -= 1
        self.deadline = NEVER
        if self._state is _CONNECTING or self._state is _DENYING:
            self._log(self._writer.status if self._head_sent else CLIENT_LEFT)
        elif self._state is _OPEN:
            self._frames.forget()
        self._state = _CLOSED
        self._disconnected(CloseCode.ABNORMAL, "")
        self._writing_paused = False
        self._writers.wake()

    def pause_writing(self) -> None:
        """Let senders wait: the client does not read."""
        self._writing_paused = True
        self.deadline = min(self.deadline, self._service.ticker.now + LOOK)

    def resume_writing(self) -> None:
        """Let senders go on."""
        self._writing_paused = False
        self._stall = None
        self._heard = True
        if self._owed_pong is not None:
            payload, self._owed_pong = self._owed_pong, None
            if self._state is _OPEN:
                self._transport.write(self._frames.pong(payload))
        self._writers.wake()

    # -- What the server tells

    def on_tick(self, now: float) -> None:
        """Act on the deadline."""
        if self._writing_paused and (self._state is _OPEN or self._state is _DENYING):
            if self._stall is None:
                self._stall = Stall(self._transport, now)
            if self._stall.lasts(now) >= (self._service.settings.timeout_write or NEVER):
                logger.debug("the client does not read, cutting %s", self)
                self._transport.abort()
                return
            if self._state is _DENYING:
                self.deadline = now + LOOK
                return
        elif self._state is not _OPEN:
            self._transport.abort()
            return
        if self._ending is not None:
            self._answer_close(self._ending)
            return
        settings = self._service.settings
        transport = self._transport
        if now >= self._judgement:
            self._judgement = NEVER
            # Alive is also who sends one long message, or reads one: the pong is on its way.
            # And of a client that we do not listen to, nothing can be said.
            alive = self._heard or transport.get_write_buffer_size() < self._unsent
            if not alive and not self._reading_paused:
                self._disconnected(CloseCode.ABNORMAL, NO_PONG)
                self._close(CloseCode.INTERNAL_ERROR, NO_PONG)
                return
        if now >= self._next_ping:
            transport.write(self._frames.ping(PING))
            self._next_ping = now + (settings.ws_ping_interval or NEVER)
            if settings.ws_ping_timeout and self._judgement == NEVER:
                self._judgement = now + settings.ws_ping_timeout
                self._heard = False
                self._unsent = transport.get_write_buffer_size()
        if now >= self._leaves_at:
            self._close(CloseCode.SERVICE_RESTART)
            return
        look = now + LOOK if self._writing_paused else NEVER
        self.deadline = min(self._next_ping, self._judgement, self._leaves_at, look)

    def drain(self, now: float, leaves_at: float) -> None:
        """Close with 1012 when it is our turn: the client should come back, to another worker."""
        self._leaves_at = leaves_at
        if self._state is _OPEN:
            self.deadline = min(self.deadline, leaves_at)
            if leaves_at <= now:
                self._close(CloseCode.SERVICE_RESTART)

    def abort(self) -> None:
        """End it now: the time to drain is over."""
        self._aborted = True
        if self._task is not None:
            self._task.cancel()
        if self._state is _CLOSING or self._state is _CLOSED:
            self._transport.abort()

    # -- What the application calls

    async def receive(self) -> dict[str, Any]:
        """Return the next message; behind ``websocket.disconnect`` that one again."""
        queue = self._queue
        while not queue:
            if self._disconnect is not None:
                if self._ending is not None and self._state is _OPEN:
                    self._answer_close(self._ending)
                return self._disconnect.copy()
            await self._readers.join()
        event = queue.popleft()
        if isinstance(event, dict):
            return event
        self._queued -= len(event)
        if (
            self._reading_paused
            and len(queue) <= self._service.settings.ws_max_queue // 2
            and self._queued <= MAX_QUEUED // 2
        ):
            self._read_on()
        if isinstance(event, str):
            return {"type": "websocket.receive", "text": event}
        return {"type": "websocket.receive", "bytes": event}

    async def send(self, message: dict[str, Any]) -> None:
        """Take one message of the application; wait while the client does not read.

        Raises:
            ClientDisconnected: nobody would read it.
            ResponseError: it has no place here, or cannot be put on the wire.
        """
        while self._writing_paused:
            await self._writers.join()
        kind = message["type"]
        # hot: the rules are those of TRANSITIONS, spelled out
        if self._state is _OPEN:
            if kind == "websocket.send":
                text = message.get("text")
                if type(text) is str and message.get("bytes") is None:  # hot: saves a call
                    frame = self._frames.text(text)
                else:
                    frame = self._frame(message)
                counters = self._service.counters
                counters.messages_sent += 1
                counters.bytes_sent += len(frame)
                self._transport.write(frame)
                return
            if kind == "websocket.close":
                self._close_for_application(message)
                return
        elif self._state is _CONNECTING:
            if kind == "websocket.accept":
                self._accept(message)
                return
            if kind == "websocket.close":
                self._has_closed = True
                self._respond(403)
                return
            if kind == "websocket.http.response.start":
                self._start_denial(message)
                return
        elif self._state is _DENYING:
            if kind == "websocket.http.response.body":
                self._deny(message)
                return
        elif not self._has_closed:
            raise ClientDisconnected
        raise UnexpectedMessage(kind, self._state)

    # -- Inside

    async def _run(self, service: Service) -> None:
        try:
            await service.app(self._scope, self.receive, self.send)
            if self._state is _OPEN:
                if self._ending is not None:
                    self._answer_close(self._ending)
                else:
                    self._close(CloseCode.NORMAL)
            elif self._state is _CONNECTING or self._state is _DENYING:
                raise Unfinished(self._state)
        except GeneratorExit:
            # The event loop is gone and the coroutine is thrown away: there is nobody left.
            raise
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, (Exception, asyncio.CancelledError)):
                raise
        finally:
            service.counters.in_flight -= 1
            if self._task is not None:
                service.tasks.discard(self._task)

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        """See to a task that was cancelled before its first step, so that it never ran."""
        if task.cancelled():
            self._service.counters.in_flight -= 1
            self._service.tasks.discard(task)
            self._fail(asyncio.CancelledError())

    def _fail(self, error: BaseException) -> None:
        """Report what the application did, and tell the client what it can be told."""
        if self._aborted and isinstance(error, asyncio.CancelledError):
            logger.warning("out of time, cancelled %s", self)
        elif self._disconnect is None or not is_about_disconnect(error):
            self._service.counters.errors_total += 1
            # The traceback of a broken promise says where the application sent the message.
            what = (
                str(error) if isinstance(error, ResponseError) else "exception in the application"
            )
            logger.error("%s: %s", what, self, exc_info=error)
        if self._state is _OPEN:
            if self._aborted:
                self._close(CloseCode.SERVICE_RESTART)
                self._close_transport()
            else:
                self._close(CloseCode.INTERNAL_ERROR)
        elif self._state is _CONNECTING or (self._state is _DENYING and not self._head_sent):
            status = 503 if self._aborted else 500
            self._respond(status, text=HTTPStatus(status).phrase.encode())
        elif self._state is _DENYING:
            # A response that ends in the middle must not look complete.
            self._transport.abort()

    def _frame(self, message: dict[str, Any]) -> bytes:
        """Return the frame of a ``websocket.send``."""
        data = message.get("bytes")
        text = message.get("text")
        if data is not None:
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise InvalidMessage("websocket.send", f"with bytes of type {type(data).__name__}")
            return self._frames.binary(bytes(data))
        if text is None:
            raise InvalidMessage("websocket.send", "without bytes and without text")
        if not isinstance(text, str):
            raise InvalidMessage("websocket.send", f"with text of type {type(text).__name__}")
        return self._frames.text(text)

    def _accept(self, message: dict[str, Any]) -> None:
        subprotocol = message.get("subprotocol")
        headers = handshake.answer(self._handshake, subprotocol, message.get("headers") or ())
        self._transport.write(handshake.switch(self._writer, self._request, headers))
        if subprotocol is not None and subprotocol not in self._scope["subprotocols"]:
            logger.warning(
                "the application accepted with subprotocol %r, which the client did not offer; "
                "most clients fail then: %s",
                subprotocol,
                self,
            )
        settings = self._service.settings
        self._frames = Frames(settings.ws_max_size, self._handshake.deflate)
        self._state = _OPEN
        self._log(101)
        if settings.ws_ping_interval:
            self._next_ping = self._service.ticker.now + settings.ws_ping_interval + INTERVAL
            self.deadline = self._next_ping
        if self._service.draining:
            self._close(CloseCode.SERVICE_RESTART)
        if self._early:
            early, self._early = self._early, b""
            self._resume_reading()
            self.data_received(early)

    def _close_for_application(self, message: dict[str, Any]) -> None:
        code = message.get("code")
        self._close(CloseCode.NORMAL if code is None else code, message.get("reason") or "")
        self._has_closed = True
        self._queue.clear()

    def _close(self, code: int, reason: str = "") -> None:
        """Send a close frame, and wait for that of the client if it did not come first."""
        transport = self._transport
        transport.write(self._frames.close(code, reason))
        self._state = _CLOSING
        self._disconnected(code, reason)
        self._resume_reading()
        self._arm(CLOSE_TIMEOUT)
        if self._ending is None:
            return
        if self._ending.failed and transport.can_write_eof():
            # The client may be sending still. Closing would reset the connection under it,
            # and it would never read why; so what comes is thrown away for a while.
            transport.write_eof()
        else:
            self._close_transport()

    def _start_denial(self, message: dict[str, Any]) -> None:
        self._writer.start(
            self._request, message["status"], message.get("headers", ()), keep_alive=False
        )
        self._state = _DENYING

    def _deny(self, message: dict[str, Any]) -> None:
        """Send a part of the response instead of a WebSocket (``websocket.http.response``)."""
        body = message.get("body", b"")
        if not isinstance(body, bytes):
            raise InvalidMessage(message["type"], f"with a body of type {type(body).__name__}")
        more = message.get("more_body", False)
        data = self._writer.body(body, more)
        self._head_sent = True
        # Not writelines(): CVE-2024-12254, as in connection.py.
        for part in filter(None, (data,) if isinstance(data, bytes) else data):
            self._service.counters.bytes_sent += len(part)
            self._transport.write(part)
        if not more:
            self._log(self._writer.status)
            self._disconnected(CloseCode.ABNORMAL, "")
            self._close_transport()

    def _respond(
        self, status: int, headers: Sequence[tuple[bytes, bytes]] = (), text: bytes = b""
    ) -> None:
        """Answer the handshake with an error."""
        content_type = (b"content-type", b"text/plain; charset=utf-8")
        self._start_denial({"status": status, "headers": [*headers, content_type]})
        self._deny({"body": text})

    def _disconnected(self, code: int, reason: str) -> None:
        """Let the application know, behind the messages that are still waiting for it."""
        if self._disconnect is None:
            self._disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
            self._readers.wake()

    def _close_transport(self) -> None:
        """Close when all is written, or when it is plain that the client does not read it."""
        self._state = _CLOSED
        self._transport.close()
        self._arm(CLOSE_TIMEOUT)

    def _arm(self, seconds: float) -> None:
        self.deadline = self._service.ticker.now + seconds + INTERVAL

    def _pause_reading(self) -> None:
        if not self._reading_paused and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def _read_on(self) -> None:
        """Look at what was left for later, and then at what the client sends."""
        if self._state is _OPEN and self._frames.is_behind:
            if not self._queue:
                self.data_received(b"")
            if self._queue:
                return  # whoever takes that comes here again
        self._resume_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def _log(self, status: int) -> None:
        """Note how the handshake was answered."""
        request = self._request
        seconds = time.perf_counter() - self._started
        self._service.counters.request(request.method, status, seconds)
        access_log = self._service.access_log
        if access_log is not None:
            access_log.request(
                self._peer,
                request.method,
                request.target,
                request.http_version,
                status,
                self._writer.size if self._head_sent else 0,
                seconds,
                self,
            )
