"""One request, one response, one run of the application, whichever parser read the request.

``receive`` and ``send`` are the only coroutines. What they do is decided by two values: how
far the response is (``Phase``), and whether the client can still be reached. Everything that
is written goes out through the connection's ``Writer``.
"""

import asyncio
import logging
import os
import stat
import sys
from asyncio import Task
from bisect import bisect_left
from http import HTTPStatus
from random import getrandbits
from time import perf_counter
from typing import Any, Protocol

from asgictl_worker.access_format import Details
from asgictl_worker.counters import BOUNDS, METHOD_CELLS, SHORTEST, SPARED_BITS, STATUS_CELLS
from asgictl_worker.http import files
from asgictl_worker.http.http1 import CONTINUE, LARGE, Writer, early_hint, trailer_lines
from asgictl_worker.http.request import METHODS, BadRequest, Request
from asgictl_worker.http.response import (
    BodyLengthMismatch,
    ClientDisconnected,
    IncompleteResponse,
    InvalidResponse,
    Phase,
    ResponseError,
    UnexpectedMessage,
)
from asgictl_worker.service import Service
from asgictl_worker.waiters import Waiters

logger = logging.getLogger("asgictl.worker")

HIGH_WATER = 64 * 1024
"""Stop reading while the application has this many bytes of a body before it."""

CLIENT_LEFT = 499
"""What the access log says where there was nobody to send a status to, as nginx does."""

RETRY_AFTER = b"5"
"""Seconds after which a client that was turned away may come back."""

# hot: names of the module are found faster than attributes of the class
_WAITING, _HELD, _STREAMING, _COPYING, _TRAILING, _COMPLETE = Phase

# hot: a plain dictionary; "-" stands for the method of what cannot be understood
_METHOD_CELLS = {method: METHOD_CELLS[method] for method in (*METHODS.split(), "-")}

TASK_OPTIONS: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
"""Eagerly: most applications answer without waiting, and the event loop need not turn."""


class Owner(Protocol):
    """What a cycle needs of its connection."""

    service: Service
    transport: asyncio.Transport
    writer: Writer
    peer: str
    held: list[bytes]
    reading_paused: bool
    write_paused: bool

    def write(self, data: bytes | tuple[bytes, ...]) -> None:
        """Write, behind what is held."""

    def write_soon(self, data: bytes) -> None:
        """Hold small parts until the event loop turns, to write them at once."""

    def response_ended(self) -> None:
        """Go on with the connection: the response is complete."""

    def cut(self, *, visible: bool) -> None:
        """End the connection in the middle of a response."""

    def pause_writing(self) -> None:
        """Let senders wait: the client does not read."""

    def resume_writing(self) -> None:
        """Let senders go on."""

    def resume_reading(self) -> None:
        """Read on: the application wants more of the body."""

    async def wait_until_writable(self) -> None:
        """Wait until the client has read enough of what was written, or is gone."""


class HTTPCycle:
    """Runs the application for one request.

    Attributes:
        aborted: its time was over.
        owes_continue: the client waits for ``100 Continue``.
        request_id: if requests get one.
    """

    # hot: CPython looks up an attribute that shadows one of the class in two dictionaries each
    # time, so all are slots, filled here.
    __slots__ = (
        "_body",
        "_body_ended",
        "_connection",
        "_gone",
        "_half_closed",
        "_phase",
        "_request",
        "_scope",
        "_started",
        "_task",
        "_trailers",
        "_waiters",
        "aborted",
        "owes_continue",
        "request_id",
    )

    def __init__(self, connection: Owner, request: Request, scope: dict[str, Any]) -> None:
        self._connection = connection
        self._request = request
        self._scope = scope
        self._phase = _WAITING
        # What the application has not taken; None when it has taken the end.
        self._body: bytes | bytearray | None = b""
        self._body_ended = True
        # The client cannot be reached any more, or sends nothing more.
        self._gone = self._half_closed = False
        # Those that the application has sent, if it promised some.
        self._trailers: bytes | None = None
        self._waiters: Waiters | None = None
        self._task: asyncio.Task[None] | None = None
        self._started = 0.0
        self.aborted = self.owes_continue = False
        self.request_id = ""
        if request.has_body:
            self._body_ended = False
            if request.expect_continue:
                self.owes_continue = True

    def start(self) -> None:
        """Run the application, until it waits for something if the Python is new enough."""
        service = self._connection.service
        counters = service.counters
        if counters.spared:
            counters.spared -= 1
        else:
            self._started = perf_counter()
            if counters.is_sparing:
                counters.spared = getrandbits(SPARED_BITS)
        context = service.context.copy()
        try:
            # hot: the application's own coroutine; another one around it would cost a thirtieth
            task = Task(
                service.app(self._scope, self.receive, self.send),
                loop=service.loop,
                context=context,
                **TASK_OPTIONS,
            )
        except BaseException as error:
            context.run(self._fail, error)
            if not isinstance(error, Exception):
                raise
            return
        if not task.done():
            self._task = task
            service.tasks.add(task)
            counters.in_flight += 1
            task.add_done_callback(self._has_ended, context=context)
        elif self._phase is not _COMPLETE or task.cancelled() or task.exception() is not None:
            context.run(self._conclude, task)

    # -- What the connection tells

    def body_came_with_head(self, body: bytes) -> None:
        """Take the whole body before the application runs."""
        self._body = body
        self._body_ended = True
        self.owes_continue = False

    def body_received(self, data: bytes) -> bool:
        """Take a part of the body; return whether it is time to stop reading."""
        body = self._body
        if not body:
            self._body = body = data
            self.owes_continue = False
        else:
            if isinstance(body, bytes):
                self._body = body = bytearray(body)
            body += data
        if self._waiters is not None:
            self._waiters.wake()
        return len(body) > HIGH_WATER

    def body_ended(self) -> None:
        """Know that the body is complete."""
        self._body_ended = True
        if self._waiters is not None:
            self._waiters.wake()

    def half_closed(self) -> None:
        """Know that the client sends nothing more; it may still read, or be gone."""
        self._half_closed = True
        if self._waiters is not None:
            self._waiters.wake()

    def lost(self) -> None:
        """Know that the client cannot be reached any more."""
        if self._phase is not _COMPLETE:
            self._gone = True
            self._body = None
            if self._waiters is not None:
                self._waiters.wake()
            self._log()

    def abort(self) -> None:
        """End the request: its time is over.

        A response that has begun is cut, and its application hears ``http.disconnect``, which
        streams listen to; others are cancelled, and answered with an error.
        """
        self.aborted = True
        if not self.is_answerable and self._phase is not _COMPLETE:
            logger.warning("out of time, cut off %s", self)
            self._cut()
            self._gone = True
        elif self._task is not None:
            self._task.cancel()

    def end_stream(self) -> bool:
        """End a stream of events, if it is one; return whether it was.

        Its client takes the end for an interruption, and comes back to another worker.
        """
        writer = self._connection.writer
        if self._phase is not _STREAMING and self._phase is not _HELD:
            return False
        if self._trailers is not None or not writer.is_event_stream:
            return False
        writer.keep_alive = False
        try:
            self._write(b"", more=False)
        except BodyLengthMismatch:  # it has a length, so it ends by itself
            return False
        self._gone = True
        return True

    def time_out(self) -> None:
        """Answer 504 and cancel the application: the request takes too long."""
        self.aborted = True
        self.refuse(BadRequest(504, "the application took too long"))
        if self._task is not None:
            self._task.cancel()

    def refuse(self, error: BadRequest) -> None:
        """Answer with an error and close, or cut a response that has begun.

        To the application, if it runs, the client is gone.
        """
        if self._task is None:  # the application may not have been started
            self._started = self._started or perf_counter()
        if self.is_answerable:
            self._answer(error.status, error.reason, close=True)
        else:
            self._cut()
        self._gone = True

    def details(self) -> Details:
        """Return what only some formats of the access log want to know."""
        # What the writer has may be left from the response before this one.
        headers = () if self.is_answerable else self._connection.writer.headers
        return Details(self._request.headers, headers, self.request_id)

    @property
    def is_answerable(self) -> bool:
        """Whether nothing of the response is written yet."""
        phase = self._phase
        return (
            phase is _WAITING
            or phase is _HELD
            or (phase is _COPYING and not self._connection.writer.begun)
        )

    def __str__(self) -> str:
        request = self._request
        line = f"{request.method} {request.target.decode('ascii')} HTTP/{request.http_version}"
        return f'"{line}" from {self._connection.peer}'

    # -- What the application calls

    async def receive(self) -> dict[str, Any]:
        """Return the next part of the body, later ``http.disconnect``."""
        while True:
            if self._gone or self._phase is _COMPLETE:
                return {"type": "http.disconnect"}
            body = self._body
            if self._body_ended:
                if body is not None:
                    self._body = None
                    if self._connection.reading_paused:
                        self._connection.resume_reading()
                    return {"type": "http.request", "body": bytes(body), "more_body": False}
            elif body:
                self._body = b""
                self._connection.resume_reading()
                return {"type": "http.request", "body": bytes(body), "more_body": True}
            if self._half_closed:
                # It may be a client that has closed, and nobody would ever tell. What is
                # sent is still written: it may also be one that waits for the answer.
                return {"type": "http.disconnect"}
            if self.owes_continue and not self._body_ended:
                self.owes_continue = False
                if self._phase is _WAITING or self._phase is _HELD:
                    self._connection.transport.write(CONTINUE)
                    self._connection.resume_reading()  # only now is the client waited for
            await self._wait()

    async def send(self, message: dict[str, Any]) -> None:
        """Take one message of the response.

        Raises:
            ClientDisconnected: nobody would read it.
            ResponseError: it has no place here, or cannot be put on the wire.
        """
        if self._gone:
            raise ClientDisconnected  # as _check_client()
        # hot: the rules are those of response.TRANSITIONS, spelled out
        kind = message["type"]
        phase = self._phase
        connection = self._connection
        if kind == "http.response.start" and phase is _WAITING:
            request = self._request
            connection.writer.start(
                request,
                message["status"],
                message.get("headers", ()),
                request.keep_alive and not self.owes_continue and not connection.service.draining,
            )
            if message.get("trailers"):
                self._trailers = b""
            self._phase = _HELD
        elif kind == "http.response.body" and (phase is _HELD or phase is _STREAMING):
            more = message.get("more_body", False)
            self._write(message.get("body", b""), more)
            if more and connection.write_paused:
                await connection.wait_until_writable()
        else:
            await self._send_otherwise(message)

    # -- Inside

    async def _send_otherwise(self, message: dict[str, Any]) -> None:
        """Take a message of one of the extensions."""
        kind = message["type"]
        phase = self._phase
        connection = self._connection
        if kind == "http.response.pathsend" and phase is _HELD:
            await self._send_path(message["path"])
        elif kind == "http.response.zerocopysend" and (phase is _HELD or phase is _STREAMING):
            await self._send_open_file(message)
        elif kind == "http.response.early_hint" and (
            phase is _WAITING or phase is _HELD or phase is _STREAMING
        ):
            # RFC 9110, section 15.2: an HTTP/1.0 client would take it for the response.
            if phase is not _STREAMING and self._request.http_version == "1.1":
                connection.transport.write(early_hint(message["links"]))
                await connection.wait_until_writable()
        elif kind == "http.response.trailers" and phase is _TRAILING:
            assert self._trailers is not None
            self._trailers += trailer_lines(message.get("headers", ()))
            if not message.get("more_trailers", False):
                accepted = self._trailers if self._request.accepts_trailers else b""
                connection.write(connection.writer.end(accepted))
                self._end()
        else:
            raise UnexpectedMessage(kind, phase)

    def _write(self, body: Any, more: bool) -> None:
        """Write a part of the body, and with the last one end the response."""
        if type(body) is not bytes:
            body = _as_bytes(body)
        connection = self._connection
        writer = connection.writer
        if more or self._trailers is not None:
            data = writer.body(body, True)
            self._phase = _STREAMING if more else _TRAILING
            if type(data) is bytes:
                connection.write_soon(data)
            else:
                connection.write(data)
            return
        data = writer.body(body, False)
        counters = connection.service.counters
        if type(data) is bytes and not connection.held:  # hot: as write()
            counters.bytes_sent += len(data)
            connection.transport.write(data)
        else:
            connection.write(data)
        self._phase = _COMPLETE
        # hot: from here _log(), without the calls and without doubt
        request = self._request
        kind = _METHOD_CELLS[request.method] + STATUS_CELLS[writer.status]
        if self._started:
            seconds = perf_counter() - self._started
            cell = kind + (bisect_left(BOUNDS, seconds) if seconds > SHORTEST else 0)
            counters.usual[kind] = cell
            counters.cells[cell] += 1
            counters.seconds += seconds
            counters.timed += 1
            access_log = connection.service.access_log
            if access_log is not None:
                access_log.request(
                    connection.peer,
                    request.method,
                    request.target,
                    request.http_version,
                    writer.status,
                    writer.size,
                    seconds,
                    self,
                )
        else:
            counters.untimed[kind] += 1
        if self._waiters is not None:
            self._waiters.wake()
        connection.response_ended()

    async def _send_path(self, path: str) -> None:
        connection = self._connection
        # Opening may take its time, too. A message that comes meanwhile has no place, or the
        # file would end up in the answer to the next request.
        self._phase = _COPYING
        try:
            file, size, content = await connection.service.loop.run_in_executor(
                None, files.take, path, LARGE
            )
        except BaseException:
            if self._phase is _COPYING:
                self._phase = _HELD
            raise
        try:
            self._check_client()
            self._phase = _HELD
            connection.writer.declare(size)
            if file is None:
                self._write(content, more=False)
            else:
                await self._send_file(file.fileno(), 0, size, more=False)
        finally:
            if file is not None:
                file.close()

    async def _send_open_file(self, message: dict[str, Any]) -> None:
        """Send a part of a file that the application has opened, as ``os.sendfile()`` would."""
        file = message["file"]
        descriptor = file if isinstance(file, int) else file.fileno()
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise InvalidResponse("file", file, "it must be a regular file")
        offset, count = message.get("offset"), message.get("count")
        begin = os.lseek(descriptor, 0, os.SEEK_CUR) if offset is None else offset
        size = max(0, facts.st_size - begin)
        if count is not None:
            size = min(size, count)
        if begin < 0 or size < 0:
            raise InvalidResponse("offset and count", (offset, count), "they must be lengths")
        await self._send_file(descriptor, begin, size, message.get("more_body", False))
        if offset is None:
            os.lseek(descriptor, begin + size, os.SEEK_SET)

    async def _send_file(self, file: int, offset: int, size: int, more: bool) -> None:
        """Write a part of a file, of which ``size`` bytes are there."""
        connection = self._connection
        writer = connection.writer
        phase = self._phase
        self._phase = _COPYING
        try:
            if size < LARGE or writer.bodiless:
                data = b"" if writer.bodiless else await files.read(file, offset, size)
                self._check_client()
                self._phase = phase
                self._write(data, more)
                if more:
                    await connection.wait_until_writable()
                return
            head, end = writer.frame(size, more or self._trailers is not None)
        except BaseException:
            # Nothing of it is written, so the client can still be told.
            if self._phase is _COPYING:
                self._phase = phase
            raise
        writer.size -= size
        connection.write(head)
        await files.copy(connection, file, offset, size, self._note_copied)
        connection.write(end)
        if more or self._trailers is not None:
            self._phase = _STREAMING if more else _TRAILING
        else:
            self._end()

    def _note_copied(self, count: int) -> None:
        connection = self._connection
        connection.writer.size += count
        connection.service.counters.bytes_sent += count
        self._check_client()

    def _check_client(self) -> None:
        """See that the response still waits for its file.

        The application may have ended meanwhile, and the connection serves the next request.
        """
        if self._gone or self._phase is not _COPYING:
            raise ClientDisconnected

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        """Know that an application has ended which had to wait for something."""
        service = self._connection.service
        service.tasks.discard(task)
        service.counters.in_flight -= 1
        self._conclude(task)

    def _conclude(self, task: asyncio.Task[None]) -> None:
        """See how the application has ended, and make the best of it."""
        error: BaseException | None
        try:
            error = task.exception()
        except asyncio.CancelledError as cancelled:
            error = cancelled
        if error is not None:
            self._fail(error)
        elif self._phase is not _COMPLETE and not self._gone:
            self._fail(IncompleteResponse(self._phase))

    def _fail(self, error: BaseException) -> None:
        """Report what the application did, and give the client what can be given."""
        status = 500
        what = "exception in the application"
        if self.aborted and isinstance(error, asyncio.CancelledError):
            status = 503
            logger.warning("out of time, cancelled %s", self)
        elif not (self._gone and is_about_disconnect(error)):
            self._connection.service.counters.errors_total += 1
            if isinstance(error, ResponseError):
                what = str(error)
            logger.error("%s: %s", what, self, exc_info=error)
        if self._gone:
            return
        if self.is_answerable:
            self._answer(status, HTTPStatus(status).phrase, close=not self._body_ended)
        elif self._phase is _COMPLETE:
            return
        elif self._connection.writer.is_whole and self._phase is not _COPYING:
            # The client has all that was promised, and sees nothing wrong: the next request
            # may be on its way.
            self._connection.write(b"")
            self._end()
        else:
            self._cut()

    def _end(self) -> None:
        """Go on after a response that is written whole, as ``_write()`` does."""
        self._settle()
        self._connection.response_ended()

    def _settle(self) -> None:
        self._phase = _COMPLETE
        self._log()
        if self._waiters is not None:
            self._waiters.wake()

    def _cut(self) -> None:
        """End a response that has begun, and cannot be completed."""
        self._settle()
        self._connection.cut(visible=self._connection.writer.ends_visibly)

    def _answer(self, status: int, text: str, *, close: bool) -> None:
        """Write a whole response that is not the application's."""
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        if status == 503:
            headers.append((b"retry-after", RETRY_AFTER))
        may_keep = self._request.keep_alive and not self._connection.service.draining
        self._connection.writer.start(self._request, status, headers, may_keep and not close)
        self._phase = _HELD
        self._trailers = None  # the application promised them for its own response
        self._write(text.encode(), more=False)

    def _log(self) -> None:
        service = self._connection.service
        request = self._request
        writer = self._connection.writer
        written = not self.is_answerable
        status = writer.status if written else CLIENT_LEFT
        seconds = perf_counter() - self._started if self._started else None
        service.counters.request(request.method, status, seconds)
        if service.access_log is not None:
            service.access_log.request(
                self._connection.peer,
                request.method,
                request.target,
                request.http_version,
                status,
                writer.size if written else 0,
                seconds or 0.0,
                self,
            )

    async def _wait(self) -> None:
        if self._waiters is None:
            self._waiters = Waiters(self._connection.service.loop)
        await self._waiters.join()


def _as_bytes(body: Any) -> bytes:
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body)
    raise InvalidResponse("body", body, "it must be bytes")


def is_about_disconnect(error: BaseException | None) -> bool:
    """Whether an error is, or comes from, a ``send()`` to a client that has gone.

    So is a group of which all are: that is how task groups report it.
    """
    while error is not None:
        if isinstance(error, (ClientDisconnected, asyncio.CancelledError)):
            return True
        if isinstance(error, BaseExceptionGroup):
            return all(map(is_about_disconnect, error.exceptions))
        error = error.__cause__ or error.__context__
    return False
