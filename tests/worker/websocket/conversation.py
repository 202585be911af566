"""One WebSocket without a network: a cycle on a fake transport, and a client that reads it."""

import asyncio
import itertools
from typing import Any

from tests.worker.waiting import until
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from asgictl_worker.http.request import Request
from asgictl_worker.service import Service
from asgictl_worker.settings import WorkerSettings
from asgictl_worker.timers import NEVER, Ticker
from asgictl_worker.websocket.cycle import WebSocketCycle


class FakeTransport(asyncio.Transport):
    """Keeps what is written; its other end reads when the test says so."""

    def __init__(self, protocol: asyncio.Protocol | None = None, *, half_closable: bool = True):
        super().__init__()
        self.protocol = protocol
        self.written = bytearray()
        self.unsent = 0
        self.reading = True
        self.closing = self.aborted = self.eof_written = False
        self.half_closable = half_closable
        self.lost = False

    def set_protocol(self, protocol):
        self.protocol = protocol

    def get_protocol(self):
        return self.protocol

    def write(self, data):
        assert isinstance(data, bytes)
        assert not self.eof_written
        if not self.lost:
            self.written += data

    def get_write_buffer_size(self):
        return self.unsent

    def can_write_eof(self):
        return self.half_closable

    def write_eof(self):
        self.eof_written = True

    def is_closing(self):
        return self.closing

    def is_reading(self):
        return self.reading

    def pause_reading(self):
        assert self.reading
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def close(self):
        if not self.closing:
            self.closing = True
            if not self.unsent:
                asyncio.get_running_loop().call_soon(self.lose)

    def abort(self):
        self.aborted = self.closing = True
        asyncio.get_running_loop().call_soon(self.lose)

    def lose(self, error: Exception | None = None):
        if not self.lost:
            self.lost = self.closing = True
            self.protocol.connection_lost(error)


class Lines:
    """An access log that keeps client, target and status."""

    def __init__(self):
        self.lines = []

    def request(self, client, method, target, http_version, status, size, seconds, exchange):
        self.lines.append((client, f"{method} {target.decode()} HTTP/{http_version}", status))


_kept: list["Conversation"] = []
"""A loop does not keep its tasks, and a test may let go of all that does."""


class Conversation:
    """A cycle with an application, and a client of the websockets library before it.

    ``answer``, ``received`` and ``closed`` are what the client got: the response to its
    handshake, the payloads of messages and pings, the close code and reason.
    """

    def __init__(self, app: Any, *, headers=(), offer=(), subprotocols=None, **settings: Any):
        loop = asyncio.get_running_loop()
        _kept.append(self)
        self.access = Lines()
        self.service = Service(
            app=app,
            settings=WorkerSettings(**settings),
            loop=loop,
            ticker=Ticker(loop),
            access_log=self.access,
            proxy_trust=None,
            state={"started": True},
        )
        self.client = ClientProtocol(
            parse_uri("ws://example.org/chat?room=1"),
            extensions=[ClientPerMessageDeflateFactory()] if offer == "deflate" else None,
            subprotocols=subprotocols,
            max_size=None,
        )
        asked = self.client.connect()
        self.client.send_request(asked)
        self.client.data_to_send()
        fields = [(name.lower().encode(), value.encode()) for name, value in asked.headers.items()]
        replaced = {name for name, _ in headers}
        fields = [field for field in fields if field[0] not in replaced]
        fields += [field for field in headers if field[1] is not None]
        self.request = Request("GET", b"/chat?room=1", "1.1", fields)
        self.scope = self.request.scope(
            "websocket",
            client=("203.0.113.7", 4711),
            server=("127.0.0.1", 80),
            scheme="ws",
            state=self.service.state,
        )
        self.transport = FakeTransport()
        self.cycle = WebSocketCycle(self.service, self.transport, self.request, self.scope)
        self.answer: Any = None
        self.received: list[Any] = []

    def start(self, early: bytes = b"") -> "Conversation":
        self.cycle.start(early)
        return self

    async def open(self) -> "Conversation":
        """Start, and wait until the handshake is accepted."""
        self.start()
        await self.until(lambda: self.answer is not None)
        assert self.answer.status_code == 101, self.answer
        return self

    # -- What the client does

    def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.client.send_text(message.encode())
        else:
            self.client.send_binary(message)
        self.deliver()

    def deliver(self) -> None:
        """Give the cycle what the client has written."""
        data = b"".join(self.client.data_to_send())
        if data:
            self.cycle.data_received(data)

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        self.client.send_close(code, reason)
        self.deliver()

    def read(self) -> list[Any]:
        """Let the client read all that was written; return its messages so far."""
        data = bytes(self.transport.written)
        self.transport.written.clear()
        if data:
            self.client.receive_data(data)
            assert self.client.parser_exc is None
        if self.transport.lost and self.client.state is OPEN:
            self.client.receive_eof()
        for event in self.client.events_received():
            if isinstance(event, Frame):
                self.received.append((event.opcode.name, bytes(event.data)))
            else:
                self.answer = event
        self.closed = self.client.close_rcvd and (
            int(self.client.close_rcvd.code),
            self.client.close_rcvd.reason,
        )
        return self.received

    async def until(self, condition: Any) -> None:
        """Let both sides go on until something is true."""

        def met() -> Any:
            self.read()
            return condition()

        await until(met)

    async def ended(self) -> None:
        """Wait until application and transport have ended."""
        await self.until(lambda: not self.service.tasks and not self.service.connections)
        assert self.service.counters.in_flight == 0
        assert self.cycle.deadline == NEVER

    def tick(self, seconds: float) -> None:
        """Move the clock as the ticker does: on_tick() whenever a deadline has passed."""
        ticker = self.service.ticker
        end = ticker.now + seconds
        while ticker.now < end:
            ticker.now = min(end, ticker.now + 0.2)
            if self.cycle.deadline <= ticker.now:
                self.cycle.on_tick(ticker.now)


class Script:
    """An application that does what the test tells it, one call after the other."""

    def __init__(self):
        self.calls = asyncio.Queue()
        self.scope = None

    async def __call__(self, scope, receive, send):
        self.scope = scope
        while True:
            call, future = await self.calls.get()
            if call == "return":
                return
            if isinstance(call, BaseException):
                raise call
            function = receive if call == "receive" else send
            arguments = () if call == "receive" else (call,)
            try:
                result = await function(*arguments)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

    def do(self, call):
        """Begin a call; ``receive``, ``return``, an exception, or a message to send."""
        future = asyncio.get_running_loop().create_future()
        self.calls.put_nowait((call, future))
        return future

    async def receive(self):
        return await asyncio.wait_for(self.do("receive"), 20)

    async def send(self, kind, **parts):
        return await asyncio.wait_for(self.do({"type": f"websocket.{kind}", **parts}), 20)


async def settle():
    """Let everything happen that can happen without the test."""
    for _ in range(20):
        await asyncio.sleep(0)


def every_pair(states, kinds):
    return list(itertools.product(states, kinds))
