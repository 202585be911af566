"""How much memory connections cost: thousands that wait, and one that floods us."""

import asyncio
import contextlib
import gc
import socket
import struct
import tracemalloc
import zlib

import pytest
from tests.worker.http.wire import GET, hello
from tests.worker.waiting import until

from asgictl_worker.http import framing
from asgictl_worker.http.cycle import HIGH_WATER

IDLE_BUDGET = 1400
"""Bytes that asgictl keeps for one idle connection. The event loop adds as much or more, and the
benchmarks measure the whole process."""

CONNECTIONS = 100

REQUEST = (
    b"GET /items HTTP/1.1\r\nhost: example.org\r\nuser-agent: Mozilla/5.0 (X11; Linux x86_64)"
    b"\r\naccept: text/html,application/xhtml+xml\r\naccept-encoding: gzip, deflate, br\r\n"
    b"accept-language: en-US,en;q=0.9\r\ncookie: session=%032d\r\n\r\n"
)


async def test_an_idle_connection_stays_within_its_budget_of_memory(serve, monkeypatch):
    # What a worker remembers of heads is bounded, and no part of a connection.
    monkeypatch.setattr(framing, "MAX_SHARED_HEAD", 0)
    address, service = await serve(hello, timeout_keep_alive=600.0)
    service.access_log = None
    clients = []
    loop = asyncio.get_running_loop()

    async def ask(count):
        for number in range(count):
            client = socket.socket()
            client.setblocking(False)
            await loop.sock_connect(client, address)
            await loop.sock_sendall(client, REQUEST % number)
            await loop.sock_recv(client, 4096)
            clients.append(client)

    def rests():
        return all(each._parser.known_head == b"" for each in service.connections)

    await ask(10)
    await until(rests)
    gc.collect()
    tracemalloc.start()
    try:
        await ask(CONNECTIONS)
        await until(rests)
        gc.collect()
        own = [
            tracemalloc.Filter(True, f"*/{name}") for name in ("asgictl_worker/*", "conftest.py")
        ]
        traces = tracemalloc.take_snapshot().filter_traces(own).statistics("filename")
    finally:
        tracemalloc.stop()
        for client in clients:
            client.close()
    assert sum(each.size for each in traces) / CONNECTIONS < IDLE_BUDGET


# -- Somebody who does not take what the other sends

FLOOD = 64 * 1024 * 1024
"""Bytes that are sent to somebody who does not take them."""

HELD = 1024 * 1024
"""What we may keep of them: the buffers of one connection, and what one read delivers."""

PART = bytes(16 * 1024)


class Growth:
    """How much more Python has allocated since it began."""

    def __enter__(self):
        gc.collect()
        tracemalloc.start()
        return self

    def __exit__(self, *_):
        tracemalloc.stop()

    @property
    def size(self):
        return tracemalloc.get_traced_memory()[0]


async def steady(value):
    """Wait until a number has not changed for a while, and return it."""
    before, same = None, 0
    while same < 20:
        await asyncio.sleep(0.01)
        now = value()
        same = same + 1 if now == before else 0
        before = now
    return before


async def flood(sock, data, sent):
    """Send over and over; ``sent`` counts the bytes that were taken."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while sent[0] < FLOOD:
            await loop.sock_sendall(sock, data)
            sent[0] += len(data)


@contextlib.asynccontextmanager
async def client(address):
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, address)
    with sock:
        yield sock


def streaming(sent):
    """An application that sends as much as it may."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        while sent[0] < FLOOD:
            await send({"type": "http.response.body", "body": PART, "more_body": True})
            sent[0] += len(PART)

    return app


async def test_a_client_that_does_not_read_costs_bounded_memory(serve):
    sent = [0]
    address, service = await serve(streaming(sent))
    async with client(address) as sock:
        with Growth() as growth:
            sock.send(GET)
            await until(lambda: sent[0])
            await steady(lambda: sent[0])
            assert growth.size < HELD
        assert sent[0] < FLOOD  # most of that in the kernel
        [connection] = service.connections
        assert connection.transport.get_write_buffer_size() < HIGH_WATER + 2 * len(PART)


async def test_an_application_that_does_not_receive_costs_bounded_memory(serve):
    taken = []
    go = asyncio.Event()

    async def app(scope, receive, send):
        taken.append(await receive())
        await go.wait()

    address, service = await serve(app)
    sent = [0]
    async with client(address) as sock:
        with Growth() as growth:
            head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % (2 * FLOOD)
            await asyncio.get_running_loop().sock_sendall(sock, head)
            sending = asyncio.create_task(flood(sock, PART, sent))
            await until(lambda: taken)
            await steady(lambda: sent[0])
            assert growth.size < HELD
        assert sent[0] < FLOOD
        sending.cancel()
        go.set()
    await until(lambda: not service.connections)


async def test_pipelined_requests_that_wait_cost_bounded_memory(serve):
    go = asyncio.Event()
    started = []

    async def app(scope, receive, send):
        started.append(True)
        await go.wait()

    address, service = await serve(app)
    sent = [0]
    async with client(address) as sock:
        with Growth() as growth:
            sending = asyncio.create_task(flood(sock, GET * 300, sent))
            await until(lambda: started)
            await steady(lambda: sent[0])
            assert growth.size < HELD
        assert sent[0] < FLOOD
        assert len(started) == 1
        sending.cancel()
        go.set()
    await until(lambda: not service.connections)


async def test_answers_that_a_client_does_not_read_cost_bounded_memory(serve):
    started = []

    async def app(scope, receive, send):
        started.append(True)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": bytes(256 * 1024)})

    address, service = await serve(app)
    async with client(address) as sock:
        loop = asyncio.get_running_loop()
        with Growth() as growth:
            await loop.sock_sendall(sock, GET * 300)
            await until(lambda: started)
            await steady(lambda: len(started))
            assert growth.size < HELD
        assert len(started) < 100
        # And when it reads, it gets them all.
        await loop.sock_sendall(sock, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        size = 0
        while data := await loop.sock_recv(sock, 1 << 20):
            size += len(data)
        assert size > 301 * 256 * 1024
        assert len(started) == 301
    await until(lambda: not service.connections)


UPGRADE = (
    b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"sec-websocket-extensions: permessage-deflate\r\n\r\n"
)


def masked(opcode, payload, *, fin=True):
    """Return a frame whose mask changes nothing."""
    first = opcode | fin << 7
    if len(payload) < 126:
        return struct.pack("!BB4x", first, 0x80 | len(payload)) + payload
    return struct.pack("!BBQ4x", first, 0x80 | 127, len(payload)) + payload


def bomb():
    stream = zlib.compressobj(wbits=-15)
    data = stream.compress(bytes(500_000)) + stream.flush(zlib.Z_SYNC_FLUSH)
    return masked(0x42, data[:-4])


FLOODS = {
    "tiny messages": (masked(1, b"ab") * 2000, 6 * HELD),
    "usual messages": (masked(2, PART) * 4, HELD),
    "compressed messages": (bomb() * 20, 4 * HELD),
}
"""What is sent, and what it may cost while nobody takes it."""


@pytest.mark.parametrize("name", FLOODS)
async def test_a_websocket_that_nobody_receives_from_costs_bounded_memory(name, serve):
    data, bound = FLOODS[name]
    accepted = []
    go = asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        accepted.append(True)
        await go.wait()

    address, service = await serve(app)
    sent = [0]
    async with client(address) as sock:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, UPGRADE)
        await until(lambda: accepted)
        with Growth() as growth:
            sending = asyncio.create_task(flood(sock, data, sent))
            await until(lambda: sent[0])
            await steady(lambda: sent[0])
            assert growth.size < bound
        sending.cancel()
        go.set()
    await until(lambda: not service.connections)


async def test_a_connection_that_was_reset_frees_what_it_held_while_its_application_goes_on(serve):
    go = asyncio.Event()
    started = []

    async def app(scope, receive, send):
        started.append(True)
        await go.wait()

    address, service = await serve(app)
    sent = [0]
    with Growth() as growth:
        async with client(address) as sock:
            head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % FLOOD
            await asyncio.get_running_loop().sock_sendall(sock, head)
            sending = asyncio.create_task(flood(sock, PART, sent))
            await until(lambda: started)
            await steady(lambda: sent[0])
            held = growth.size
            assert held > HIGH_WATER
            sending.cancel()
            await asyncio.wait([sending])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # While we do not read, only the next look at the socket tells us.
        await until(lambda: not service.connections)
        gc.collect()
        assert service.tasks
        assert growth.size < held - HIGH_WATER
    go.set()
