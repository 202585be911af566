"""WSGI applications: each request in a thread, of which there are a bounded number.

The thread hands every part of a response to ``send()`` itself, and waits until it is taken. So
a client that reads slowly holds its thread back, and one that has left ends it: the application
gets the error, and its iterable is closed.

Source: PEP 3333. Of what follows from threads and not from WSGI: a request that is cancelled
goes on in its thread until it next reads or writes.
"""

import asyncio
import contextvars
import io
import sys
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from asgictl_worker.asgi import Message, Receive, Scope, Send
from asgictl_worker.http.response import ClientDisconnected

Environ = dict[str, Any]
Write = Callable[[bytes], None]
WSGIApplication = Callable[..., Iterable[bytes]]

_NAMES = {"content-length": "CONTENT_LENGTH", "content-type": "CONTENT_TYPE"}


class BodyIncomplete(ClientDisconnected):
    """The client left, or was given up, before its body was complete."""

    def __init__(self) -> None:
        OSError.__init__(
            self, "the body of the request has ended too early, as its client has left"
        )


class BrokenWSGI(RuntimeError):
    """The application broke a rule of WSGI."""


class WSGI:
    """A WSGI application as an ASGI one.

    Attributes:
        app: the application.
        executor: its threads, none of them before the first request.
    """

    def __init__(self, app: WSGIApplication, threads: int) -> None:
        self.app = app
        self.executor = ThreadPoolExecutor(threads, "WSGI")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; WebSockets are refused, and a lifespan has nothing to do."""
        if scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            loop = asyncio.get_running_loop()
            body = io.BufferedReader(_Body(loop, receive), 64 * 1024)
            response = _Response(loop, send)
            run = partial(response.run, self.app, environ(scope, body))
            # The id of the request, and what else stands there, is for the thread too.
            context = contextvars.copy_context()
            await loop.run_in_executor(self.executor, context.run, run)


def environ(scope: Scope, body: io.BufferedIOBase) -> Environ:
    """Return what a WSGI application is told of a request."""
    root = scope.get("root_path", "")
    found: Environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": _text(root),
        "PATH_INFO": _text(scope["path"].removeprefix(root)),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": body,
        # Its end is seen, though there may be no CONTENT_LENGTH.
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "asgi.scope": scope,
    }
    host, port = scope.get("server") or ("localhost", 80)
    found["SERVER_NAME"], found["SERVER_PORT"] = host, str(port or 0)
    if scope.get("client") is not None:
        found["REMOTE_ADDR"], found["REMOTE_PORT"] = scope["client"][0], str(scope["client"][1])
    for raw_name, raw_value in scope["headers"]:
        if b"_" in raw_name:
            continue  # X_Real_IP would pass for X-Real-IP, and its sender for the proxy
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        key = _NAMES.get(name) or "HTTP_" + name.upper().replace("-", "_")
        found[key] = f"{found[key]},{value}" if key in found else value
    return found


def _text(path: str) -> str:
    """Return a text as PEP 3333 wants it: its bytes, each as a character."""
    return path.encode("utf-8", "surrogateescape").decode("latin-1")


def _wait_for(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> Any:
    """Let the event loop do something, and wait for it in this thread."""
    return asyncio.run_coroutine_threadsafe(work, loop).result()


class _Body(io.RawIOBase):
    """The body of a request, for a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, receive: Receive) -> None:
        self._loop = loop
        self._receive = receive
        self._part = b""
        self._more = True

    def readable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See ``io.RawIOBase``."""
        while self._more and not self._part:
            message = _wait_for(self._loop, self._next())
            if message["type"] == "http.disconnect":
                raise BodyIncomplete
            self._part = message.get("body", b"")
            self._more = message.get("more_body", False)
        size = min(len(buffer), len(self._part))
        buffer[:size] = self._part[:size]
        self._part = self._part[size:]
        return size

    async def _next(self) -> Message:
        message: Message = await self._receive()
        return message


class _Response:
    """The response to one request, from a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Send) -> None:
        self._loop = loop
        self._send = send
        self._start: Message | None = None
        self._is_started = False

    def run(self, app: WSGIApplication, environment: Environ) -> None:
        """Run the application, and send what it returns."""
        try:
            self._run(app, environment)
        except StopIteration as error:
            # A future does not take it, and before CPython 3.12 its task would wait for ever.
            raise RuntimeError("the application raised StopIteration") from error

    def _run(self, app: WSGIApplication, environment: Environ) -> None:
        iterable = app(environment, self.start)
        try:
            if isinstance(iterable, (list, tuple)) and len(iterable) == 1:
                # One part is all, so its length is the response's.
                self._write(iterable[0], more=False)
                return
            for part in iterable:
                if part:
                    self.write(part)
            self._write(b"", more=False)
        finally:
            close = getattr(iterable, "close", None)
            if close is not None:
                close()

    def start(self, status: str, headers: Iterable[tuple[str, str]], exc_info: Any = None) -> Write:
        """Take status and headers; they are sent together with the first part of the body."""
        if exc_info is not None:
            try:
                if self._is_started:
                    # Too late for another status: the application cannot go on.
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # a circle otherwise, as PEP 3333 says
        elif self._start is not None:
            raise BrokenWSGI("start_response() was called twice")
        if not status[:3].isdecimal():
            raise BrokenWSGI(f"start_response() was called with the status {status!r}")
        self._start = {
            "type": "http.response.start",
            "status": int(status[:3]),
            "headers": [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers
            ],
        }
        return self.write

    def write(self, part: bytes) -> None:
        """Send a part of the body."""
        self._write(part, more=True)

    def _write(self, part: bytes, *, more: bool) -> None:
        if self._start is None:
            raise BrokenWSGI("the application did not call start_response()")
        messages: list[Message] = [{"type": "http.response.body", "body": part, "more_body": more}]
        if not self._is_started:
            self._is_started = True
            messages.insert(0, self._start)
        _wait_for(self._loop, self._take(messages))

    async def _take(self, messages: list[Message]) -> None:
        for message in messages:
            await self._send(message)
