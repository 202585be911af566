"""Whole WebSockets over real sockets, against the client of the websockets library."""

import asyncio
import contextlib
import os
import ssl
from urllib.parse import urlsplit

import pytest
import trustme
from tests.worker.waiting import until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asgictl_worker.server import Server
from asgictl_worker.settings import WorkerSettings


@contextlib.asynccontextmanager
async def serving(app, **settings):
    """Serve on a free port; the server and its URL."""
    server = Server(app, WorkerSettings(lifespan="off", access_log=False, **settings))
    running = asyncio.create_task(server.serve(port=0))
    await until(lambda: server.started.is_set() or running.done())
    try:
        yield server, f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/chat"
    finally:
        server.stop(within=1)
        await running


async def ask(url, *, version=13, early=b""):
    """Send a handshake over a bare connection."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: %d\r\n\r\n%b"
        % (version, early)
    )
    return reader, writer


async def shake_hands(url, **how):
    """Open a WebSocket over a bare connection."""
    reader, writer = await ask(url, **how)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return reader, writer


async def echo(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_messages_of_all_sizes_come_back(compression, http):
    async with (
        serving(echo, http=http) as (_, url),
        connect(url, compression=compression, max_size=None) as client,
    ):
        for size in (0, 1, 125, 126, 4096, 65535, 65536, 1_000_000, 10_000_000):
            text, binary = "ä" * (size // 2), os.urandom(size)
            await client.send(text)
            await client.send(binary)
            assert await client.recv() == text
            assert await client.recv() == binary


async def test_everything_works_over_tls(tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem
    certificate.write_to_path(str(tmp_path / "certificate.pem"))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with serving(echo, ssl_certfile=str(tmp_path / "certificate.pem"), ws_max_size=2**20) as (
        _,
        url,
    ):
        async with connect(url.replace("ws:", "wss:"), ssl=trusting) as client:
            for message in ("hello", "x" * 100_000, os.urandom(1_000_000)):
                await client.send(message)
                assert await client.recv() == message
        client = await connect(url.replace("ws:", "wss:"), ssl=trusting, compression=None)
        await client.send(bytes(2**20 + 1))
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
        assert caught.value.rcvd.code == 1009


async def test_fragments_and_pings_mix():
    async with serving(echo) as (_, url), connect(url) as client:
        await client.send(["Hel", "lo ", "wörld"])
        assert await client.recv() == "Hello wörld"
        await (await client.ping(b"there?"))


async def test_many_messages_in_a_row_are_not_lost_or_reordered():
    async with serving(echo, ws_max_queue=4) as (_, url), connect(url, compression=None) as client:

        async def send():
            for number in range(3000):
                await client.send(str(number))

        sending = asyncio.create_task(send())
        assert [int(await client.recv()) for _ in range(3000)] == list(range(3000))
        await sending


async def test_an_application_that_does_not_receive_stops_the_client():
    begin = asyncio.Event()
    received = []

    async def slow(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await begin.wait()
        while (message := await receive())["type"] == "websocket.receive":
            received.append(len(message["bytes"]))

    async with serving(slow) as (_, url), connect(url, compression=None) as client:
        count = 0
        with contextlib.suppress(TimeoutError):
            while True:
                await asyncio.wait_for(client.send(bytes(1_000_000)), 1)
                count += 1
                assert count < 100, "nothing stops the client"
        begin.set()
        # The message that was cut short goes out in full behind the others.
        await until(lambda: len(received) >= count)


async def test_a_client_that_does_not_read_stops_the_application():
    sent = []

    async def flood(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        with contextlib.suppress(OSError):
            while len(sent) < 1000:
                await send({"type": "websocket.send", "bytes": bytes(1_000_000)})
                sent.append(None)

    async with serving(flood) as (_, url):
        client = await connect(url, compression=None, max_queue=1, ping_interval=None)
        stalled = -1
        while stalled != len(sent):
            stalled = len(sent)
            # Long enough for a message, if anybody took it.
            await asyncio.sleep(0.3)
        assert stalled < 100
        client.transport.abort()


async def test_a_client_in_the_middle_of_a_message_that_is_too_long_reads_why_it_is_refused():
    async with serving(echo, ws_max_size=10_000) as (_, url):
        reader, writer = await shake_hands(url)
        # So much that most of it is still on its way when the server refuses it: closed at
        # once, the connection would be reset, and the code lost with it.
        size = 20_000_000
        writer.write(b"\x82\xff" + size.to_bytes(8, "big") + bytes(4))
        for _ in range(200):
            writer.write(bytes(size // 200))
            await writer.drain()
        answer = await reader.read()
        assert answer[0] == 0x88
        assert answer[2:] == b"\x03\xf1the message is longer than 10000 bytes"
        writer.close()


async def test_close_codes_travel_both_ways():
    ends = asyncio.Queue()

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][0]})
        message = await receive()
        if message["type"] == "websocket.receive":
            await send({"type": "websocket.close", "code": 4001, "reason": "as you wish"})
            message = await receive()
        ends.put_nowait((message["code"], message["reason"]))

    async with serving(app) as (_, url):
        async with connect(url, subprotocols=["chat"]) as client:
            assert client.subprotocol == "chat"
            await client.close(4000, "bye")
        assert await ends.get() == (4000, "bye")
        async with connect(url, subprotocols=["chat"]) as client:
            await client.send("close, please")
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "as you wish")
        assert await ends.get() == (4001, "as you wish")
        client = await connect(url, subprotocols=["chat"])
        client.transport.abort()
        assert await ends.get() == (1006, "")


async def test_refusals_are_http_responses():
    async def app(scope, receive, send):
        await receive()
        if scope["query_string"] == b"deny":
            await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b"who?"})
        else:
            await send({"type": "websocket.close"})

    async with serving(app) as (_, url):
        with pytest.raises(InvalidStatus) as caught:
            await connect(url)
        assert caught.value.response.status_code == 403
        with pytest.raises(InvalidStatus) as caught:
            await connect(url + "?deny")
        assert caught.value.response.status_code == 401
        assert caught.value.response.body == b"who?"


async def test_another_version_is_answered_with_426_and_the_connection_ends():
    async with serving(echo) as (_, url):
        reader, writer = await ask(url, version=8)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 426 ")
        assert b"\r\nsec-websocket-version: 13\r\n" in answer
        writer.close()


async def test_frames_right_behind_the_handshake_are_not_lost():
    async with serving(echo) as (_, url):
        reader, writer = await shake_hands(
            url, early=b"\x81\x82\x00\x00\x00\x00hi\x88\x80\x00\x00\x00\x00"
        )
        assert await reader.readexactly(4) == b"\x81\x02hi"
        writer.write(b"\x88\x80\x00\x00\x00\x00")
        assert await reader.read() == b"\x88\x00"
        writer.close()


async def test_stopping_closes_with_1012_and_lets_the_application_finish():
    ends = asyncio.Queue()

    async def app(scope, receive, send):
        await echo(scope, receive, send)
        ends.put_nowait("finished")

    async with serving(app) as (server, url), connect(url) as client:
        await client.send("x")
        await client.recv()
        server.stop(within=20)
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
        assert caught.value.rcvd.code == 1012
        assert await ends.get() == "finished"


async def test_pings_keep_a_client_and_drop_one_that_is_silent():
    ends = asyncio.Queue()

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        ends.put_nowait(await receive())

    async with serving(app, ws_ping_interval=0.1, ws_ping_timeout=0.1) as (_, url):
        async with connect(url) as client:
            await asyncio.wait({asyncio.create_task(client.wait_closed())}, timeout=2)
            assert client.close_code is None
        assert (await ends.get())["code"] == 1000
        client = await connect(url)
        client.transport.pause_reading()
        assert (await ends.get())["code"] == 1006
        client.transport.abort()


async def test_a_trusted_proxy_says_who_the_client_is_and_that_it_spoke_tls():
    scopes = asyncio.Queue()

    async def app(scope, receive, send):
        scopes.put_nowait(scope)
        await echo(scope, receive, send)

    said = {"X-Forwarded-For": "1.1.1.1, 203.0.113.7:80", "X-Forwarded-Proto": "https"}
    async with (
        serving(app, forwarded_allow_ips="127.0.0.0/8") as (_, url),
        connect(url, additional_headers=said),
    ):
        scope = await scopes.get()
    assert scope["client"] == ("203.0.113.7", 80)
    assert scope["scheme"] == "wss"
