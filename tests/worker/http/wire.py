"""One connection without a network: bytes in, bytes out, and a clock that is moved by hand."""

import asyncio
from typing import Any

from tests.worker.waiting import until

from asgictl_worker.access_log import Exchange
from asgictl_worker.asgi import as_coroutine_function
from asgictl_worker.connection import Connection
from asgictl_worker.proxy import ProxyTrust
from asgictl_worker.service import Service
from asgictl_worker.settings import WorkerSettings
from asgictl_worker.timers import INTERVAL, Ticker

DATE = b"date: Sun, 22 Nov 2026 21:30:00 GMT\r\n"
GET = b"GET / HTTP/1.1\r\nhost: example.org\r\n\r\n"
HELLO = b"HTTP/1.1 200 OK\r\n" + DATE + b"server: asgictl\r\ncontent-length: 5\r\n\r\nhello"


class FakeTransport(asyncio.Transport):
    """Keeps what is written; the network behind it takes all, or nothing while ``full``."""

    def __init__(
        self, *, unix: bool = False, client: tuple[str, int] = ("10.0.0.7", 52100)
    ) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.reading = True
        self.full = False
        self.closed = self.aborted = self.eof_written = False
        self._extra: dict[str, Any] = {
            "peername": "" if unix else client,
            "sockname": "/run/app.sock" if unix else ("10.0.0.1", 8000),
        }

    @property
    def written(self) -> bytes:
        return b"".join(self.writes)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._extra.get(name, default)

    def write(self, data: Any) -> None:
        assert type(data) is bytes
        assert data
        assert not self.closed
        assert not self.eof_written
        self.writes.append(data)

    def get_write_buffer_size(self) -> int:
        return int(self.full)

    def write_eof(self) -> None:
        self.eof_written = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True


class Log:
    """An access log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def request(
        self,
        client: str,
        method: str,
        target: bytes,
        http_version: str,
        status: int,
        size: int,
        seconds: float,
        exchange: Exchange | None = None,
    ) -> None:
        assert 0 <= seconds < 60
        self.lines.append(f"{client} {method} {target.decode()} {http_version} {status} {size}")


class Peer:
    """The client's end of a connection."""

    def __init__(
        self,
        app: Any,
        *,
        unix: bool = False,
        client: tuple[str, int] = ("10.0.0.7", 52100),
        state: dict[str, Any] | None = None,
        service: Service | None = None,
        **settings: Any,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.log = Log()
        self.service = service or Service(
            app=as_coroutine_function(app),
            settings=WorkerSettings(**settings),
            loop=loop,
            ticker=Ticker(loop),
            access_log=self.log,  # type: ignore[arg-type]
            proxy_trust=ProxyTrust("10.0.0.7"),
            state=state,
        )
        self.service.ticker.date = DATE
        self.connection = Connection(self.service)
        self.transport = FakeTransport(unix=unix, client=client)
        self.connection.connection_made(self.transport)

    @property
    def written(self) -> bytes:
        return self.transport.written

    def send(self, data: bytes, *, cut: int = 0) -> None:
        """Send bytes, in pieces of ``cut`` bytes unless that is 0; not while nobody reads."""
        for start in range(0, len(data), cut or len(data)):
            if not self.transport.closed:
                self.connection.data_received(data[start : start + (cut or len(data))])

    def send_eof(self) -> None:
        """Close the sending half."""
        if not self.connection.eof_received():
            self.transport.close()
            self.lose()

    def lose(self) -> None:
        """Let the connection end."""
        self.transport.closed = True
        self.connection.connection_lost(None)

    def wait(self, seconds: float) -> None:
        """Move the clock, tick by tick, by so much that a time-out of ``seconds`` must fire."""
        end = self.service.ticker.now + seconds + 2 * INTERVAL
        while self.service.ticker.now < end:
            self.service.ticker.now += INTERVAL
            if self.connection.deadline <= self.service.ticker.now:
                self.connection.on_tick(self.service.ticker.now)

    async def written_is(self, expected: bytes) -> None:
        """Wait until exactly this was written in all."""
        await until(lambda: len(self.written) >= len(expected))
        assert self.written == expected

    async def idle(self) -> None:
        """Wait until no application runs, and none is going to."""
        parser = self.connection._parser
        await until(lambda: not self.service.tasks and not parser.buffer)


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Say hello."""
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"hello"})


async def read_body(receive: Any) -> bytes:
    """Return the whole body of a request."""
    body = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request", message
        body += message["body"]
        if not message["more_body"]:
            return body


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Send method, target and body back."""
    body = await read_body(receive)
    text = f"{scope['method']} {scope['path']}?{scope['query_string'].decode()} ".encode() + body
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": text})


def response(body: bytes, *lines: bytes, status: bytes = b"200 OK", end: bytes = b"") -> bytes:
    """Return a response as it is written: ``lines`` stand before the length, ``end`` behind."""
    head = [b"HTTP/1.1 " + status, DATE[:-2], b"server: asgictl", *lines]
    head.append(b"content-length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n" + end + b"\r\n" + body


CLOSE = b"connection: close\r\n"


def refusal(status: bytes, reason: bytes, *lines: bytes) -> bytes:
    """Return the answer to a request that was not understood."""
    kind = b"content-type: text/plain; charset=utf-8"
    return response(reason, kind, *lines, status=status, end=CLOSE)
