"""WSGI applications in threads: what they are told, what they send, and how they end."""

import asyncio
import contextvars
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.worker.waiting import until

from asgictl_worker.application import WSGI_THREADS, adapt
from asgictl_worker.wsgi import WSGI, BodyIncomplete, BrokenWSGI


def scope(**more: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": "/mnt/ü/x",
        "root_path": "/mnt",
        "query_string": b"a=1",
        "headers": [
            (b"host", b"example.org"),
            (b"content-type", b"text/plain"),
            (b"content-length", b"3"),
            (b"x-twice", b"1"),
            (b"x-twice", b"\xfc"),
        ],
        "http_version": "1.1",
        "scheme": "https",
        "server": ("example.org", 443),
        "client": ("203.0.113.7", 4711),
        **more,
    }


class Exchange:
    """One request to a WSGI application, without a server."""

    def __init__(self, app: Any, *messages: Any, threads: int = 2) -> None:
        self.wsgi = WSGI(app, threads)
        self.messages = list(messages or [{"type": "http.request", "body": b""}])
        self.sent: list[Any] = []
        self.gone = False

    async def receive(self) -> Any:
        return self.messages.pop(0)

    async def send(self, message: Any) -> None:
        if self.gone:
            raise OSError("gone")
        self.sent.append(message)

    async def run(self, **more: Any) -> bytes:
        try:
            await self.wsgi(scope(**more), self.receive, self.send)
        finally:
            await asyncio.to_thread(self.wsgi.executor.shutdown)
        return b"".join(message.get("body", b"") for message in self.sent)


def plain(text: bytes) -> Any:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [text]

    return app


# -- What the application is told


async def test_the_environ_says_what_was_asked_for() -> None:
    seen: dict[str, Any] = {}

    def app(environ: Any, start_response: Any) -> Any:
        seen.update(environ)
        return plain(b"")(environ, start_response)

    await Exchange(app).run()
    assert seen["REQUEST_METHOD"] == "POST"
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("/mnt", "/\xc3\xbc/x")
    assert (seen["QUERY_STRING"], seen["SERVER_PROTOCOL"]) == ("a=1", "HTTP/1.1")
    assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("example.org", "443")
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == ("203.0.113.7", "4711")
    assert (seen["CONTENT_TYPE"], seen["CONTENT_LENGTH"]) == ("text/plain", "3")
    assert seen["HTTP_X_TWICE"] == "1,\xfc"
    assert seen["wsgi.url_scheme"] == "https"
    assert seen["wsgi.errors"] is sys.stderr


async def test_a_peer_on_a_unix_socket_has_no_address() -> None:
    seen: dict[str, Any] = {}

    def app(environ: Any, start_response: Any) -> Any:
        seen.update(environ)
        return plain(b"")(environ, start_response)

    await Exchange(app).run(client=None, server=("/run/app.sock", None))
    assert "REMOTE_ADDR" not in seen
    assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("/run/app.sock", "0")


async def test_the_context_of_the_request_is_seen_in_the_thread() -> None:
    variable = contextvars.ContextVar("variable", default=b"")
    variable.set(b"of the request")

    def app(environ: Any, start_response: Any) -> Any:
        return plain(variable.get())(environ, start_response)

    assert await Exchange(app).run() == b"of the request"


PARTS = [
    {"type": "http.request", "body": b"on", "more_body": True},
    {"type": "http.request", "body": b"", "more_body": True},
    {"type": "http.request", "body": b"e\ntwo\n", "more_body": True},
    {"type": "http.request", "body": b"three", "more_body": False},
]


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda body: [body.read()], [b"one\ntwo\nthree"]),
        (lambda body: [body.read(5), body.read(100), body.read(1)], [b"one\nt", b"wo\nthree", b""]),
        (lambda body: [body.readline(100), body.readline(2)], [b"one\n", b"tw"]),
        (lambda body: body.readlines(), [b"one\n", b"two\n", b"three"]),
        (list, [b"one\n", b"two\n", b"three"]),
    ],
)
async def test_a_body_is_read_whole_however_it_came(read: Any, expected: Any) -> None:
    seen: list[bytes] = []

    def app(environ: Any, start_response: Any) -> Any:
        seen.extend(read(environ["wsgi.input"]))
        return plain(b"")(environ, start_response)

    await Exchange(app, *PARTS).run()
    assert seen == expected


async def test_a_body_that_ends_too_early_is_an_error_and_not_a_short_body() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        return plain(environ["wsgi.input"].read())(environ, start_response)

    exchange = Exchange(app, PARTS[0], {"type": "http.disconnect"})
    with pytest.raises(BodyIncomplete):
        await exchange.run()
    assert not exchange.sent


# -- What it sends


async def test_a_response_of_one_part_is_one_message() -> None:
    exchange = Exchange(plain(b"all"))
    await exchange.run()
    assert exchange.sent == [
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/plain")],
        },
        {"type": "http.response.body", "body": b"all", "more_body": False},
    ]


async def test_parts_are_sent_as_they_come_and_the_iterable_is_closed() -> None:
    closed = threading.Event()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        try:
            write = start_response("404 Not Found", [])
            write(b"written ")
            yield b""
            yield b"and "
            yield b"returned"
        finally:
            closed.set()

    exchange = Exchange(app)
    assert await exchange.run() == b"written and returned"
    assert exchange.sent[0]["status"] == 404
    assert [message["body"] for message in exchange.sent[1:]] == [
        b"written ",
        b"and ",
        b"returned",
        b"",
    ]
    assert closed.is_set()


async def test_an_error_page_replaces_a_response_that_has_not_begun() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        try:
            raise KeyError("no such page")
        except KeyError:
            start_response("500 Oops", [], sys.exc_info())
        return [b"handled"]

    exchange = Exchange(app)
    assert await exchange.run() == b"handled"
    assert exchange.sent[0]["status"] == 500


async def test_an_error_after_the_beginning_cannot_be_replaced() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"begun"
        try:
            raise KeyError("too late")
        except KeyError:
            start_response("500 Oops", [], sys.exc_info())
        yield b"never sent"

    exchange = Exchange(app)
    with pytest.raises(KeyError, match="too late"):
        await exchange.run()
    assert [message.get("body") for message in exchange.sent] == [None, b"begun"]


@pytest.mark.parametrize(
    ("calls", "error"),
    [([], "did not call"), (["200 OK", "200 OK"], "called twice"), (["OK"], "status 'OK'")],
)
async def test_broken_rules_are_told(calls: list[str], error: str) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        for status in calls:
            start_response(status, [])
        return [b"x"]

    exchange = Exchange(app)
    with pytest.raises(BrokenWSGI, match=error):
        await exchange.run()
    assert not exchange.sent


# -- How it ends


@pytest.mark.timeout(10)
async def test_an_iterator_that_is_used_up_in_the_application_is_an_error_and_no_hang() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        return [next(iter(()))]

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        await Exchange(app).run()


async def test_who_sends_to_a_client_that_has_left_gets_an_error_and_ends() -> None:
    closed = threading.Event()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            while True:
                yield b"more"
        finally:
            closed.set()

    exchange = Exchange(app)
    running = asyncio.create_task(exchange.run())
    await until(lambda: len(exchange.sent) > 3)
    exchange.gone = True
    with pytest.raises(OSError, match="gone"):
        await running
    assert closed.is_set()


async def test_a_request_that_is_cancelled_ends_in_its_thread_when_it_sends_next() -> None:
    go_on, closed = threading.Event(), threading.Event()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            yield b"begun"
            assert go_on.wait(30)
            for _ in range(100):
                yield b"more"
        finally:
            closed.set()

    exchange = Exchange(app)
    running = asyncio.create_task(exchange.wsgi(scope(), exchange.receive, exchange.send))
    await until(lambda: len(exchange.sent) == 2)
    running.cancel()
    await asyncio.wait([running])
    exchange.gone = True
    go_on.set()
    await until(closed.is_set)
    assert len(exchange.sent) == 2
    await asyncio.to_thread(exchange.wsgi.executor.shutdown)


async def test_websockets_are_refused_and_a_lifespan_has_nothing_to_do() -> None:
    exchange = Exchange(plain(b""), {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    for kind in ("websocket", "lifespan"):
        await exchange.wsgi({"type": kind}, exchange.receive, exchange.send)
    assert [message["type"] for message in exchange.sent] == [
        "websocket.close",
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


@pytest.mark.parametrize("interface", ["auto", "wsgi"])
def test_the_number_of_threads_is_bounded(interface: Any) -> None:
    app: Any = adapt(plain(b""), interface)
    assert app.executor._max_workers == WSGI_THREADS
