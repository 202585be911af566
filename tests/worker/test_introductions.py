"""Connections that begin with a header of the PROXY protocol, over real sockets."""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.authority import Authority
from tests.worker.test_proxy_protocol import REST, V4, block, field
from tests.worker.waiting import until

from asgictl_worker import introductions
from asgictl_worker.errors import BadSetting
from asgictl_worker.server import Server
from asgictl_worker.settings import WorkerSettings

GET = b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"
LINE = b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\r\n"
TOLD = b"http client=('203.0.113.7', 4711) server=('10.0.0.1', 443)"


async def app(scope: Any, receive: Any, send: Any) -> None:
    text = f"{scope['scheme']} client={scope['client']} server={scope['server']}"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text.encode()})


@contextlib.asynccontextmanager
async def serving(*, uds: str | None = None, **settings: Any) -> AsyncIterator[Server]:
    """Serve with the PROXY protocol on."""
    found = {"access_log": False, "lifespan": "off", "proxy_protocol": True} | settings
    server = Server(app, WorkerSettings(**found))
    task = asyncio.create_task(server.serve(port=0, uds=uds))
    try:
        await server.started.wait()
        yield server
    finally:
        server.stop(0)
        await task


def connect(server: Server) -> socket.socket:
    """Return a connection that takes and gives bytes at once."""
    address = server.sockets[0].getsockname()
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    client = socket.socket(family)
    client.settimeout(20)
    client.connect(address)
    return client


async def ask(server: Server, *parts: bytes) -> bytes:
    """Send the parts one by one and return the answer; nothing if the connection is cut."""
    with connect(server) as client:
        for number, part in enumerate(parts):
            for _ in range(3 if number else 0):
                # The server lives in this loop: it reads what is here before more is sent.
                await asyncio.sleep(0)
            client.sendall(part)
        return await read(client)


async def read(client: socket.socket) -> bytes:
    """Return everything up to the end."""
    loop = asyncio.get_running_loop()
    client.setblocking(False)
    received = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while part := await asyncio.wait_for(loop.sock_recv(client, 65536), 20):
            received += part
    return received


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("header", [LINE, block(0x21, 0x11, V4)])
async def test_the_application_sees_the_two_ends_that_the_proxy_saw(header: bytes) -> None:
    async with serving() as server:
        assert body(await ask(server, header + GET)) == TOLD


@pytest.mark.parametrize("header", [LINE, block(0x21, 0x11, V4 + field(4, bytes(100)))])
async def test_the_header_may_come_in_any_pieces(header: bytes) -> None:
    data = header + GET
    async with serving() as server:
        for cut in (1, 5, 12, 13, 16, 20, len(header) - 1, len(header), len(header) + 3):
            assert body(await ask(server, data[:cut], data[cut:])) == TOLD
        assert body(await ask(server, *(data[at : at + 1] for at in range(len(data))))) == TOLD


async def test_a_client_that_spoke_tls_with_the_proxy_is_on_https() -> None:
    header = block(0x21, 0x11, V4 + field(0x20, b"\x01\0\0\0\0"))
    async with serving() as server:
        assert body(await ask(server, header + GET)) == TOLD.replace(b"http ", b"https ")


@pytest.mark.parametrize("header", [block(0x20, 0, b""), b"PROXY UNKNOWN\r\n"])
async def test_a_connection_of_the_proxys_own_has_its_real_ends(header: bytes) -> None:
    async with serving() as server:
        text = body(await ask(server, header + GET))
        assert text.startswith(b"http client=('127.0.0.1', ")
        assert text.endswith(b" server=('127.0.0.1', %d)" % server.sockets[0].getsockname()[1])


async def test_the_client_that_was_told_is_who_may_send_forwarding_headers() -> None:
    forwarded = GET.replace(b"\r\n\r\n", b"\r\nx-forwarded-for: 198.51.100.1\r\n\r\n")
    async with serving() as server:
        assert b"client=('203.0.113.7', 4711)" in await ask(server, LINE + forwarded)
    async with serving(forwarded_allow_ips="203.0.113.0/24", proxy_allow_from="127.0.0.1") as other:
        assert b"client=('198.51.100.1', 0)" in await ask(other, LINE + forwarded)


async def test_the_header_comes_before_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with serving(**authority.issue().settings) as server:
        port = server.sockets[0].getsockname()[1]

        def talk() -> bytes:
            with socket.create_connection(("127.0.0.1", port), 20) as plain:
                plain.sendall(LINE)
                context = authority.client()
                with context.wrap_socket(plain, server_hostname="localhost") as client:
                    client.sendall(GET)
                    received = b""
                    with contextlib.suppress(ssl.SSLEOFError):
                        while part := client.recv(65536):
                            received += part
                    return received

        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(None, talk)
        assert body(answer) == TOLD.replace(b"http ", b"https ")


async def test_a_unix_socket_hears_headers_too(tmp_path: Path) -> None:
    async with serving(uds=str(tmp_path / "s")) as server:
        assert body(await ask(server, LINE + GET)) == TOLD
        assert body(await ask(server, LINE[:9], LINE[9:] + GET)) == TOLD


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (GET, "no header of the PROXY protocol, but bytes that begin no header"),
        (b"PROXY TCP4 nonsense\r\n" + GET, "a line without two addresses and two ports"),
        (block(0x21, 0x11, V4 + field(3, b"\0\0\0\0")), "a wrong checksum"),
    ],
)
async def test_without_a_good_header_a_connection_is_cut_and_the_reason_logged(
    data: bytes, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as server:
        assert await ask(server, data) == b""
        await until(lambda: caplog.records)
        assert problem in caplog.text
        assert "refused a connection from 127.0.0.1:" in caplog.text
        assert server.connections == 0


async def test_a_header_that_ends_early_is_a_problem(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        with connect(server) as client:
            client.sendall(LINE[:10])
        await until(lambda: "the header of the PROXY protocol ended early" in caplog.text)
        await until(lambda: not server.connections)


async def test_who_only_knocks_is_no_problem(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        connect(server).close()
        assert body(await ask(server, LINE + GET)) == TOLD
        await until(lambda: not server.connections)
        assert not caplog.records


async def test_a_header_must_come_in_time(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(timeout_request_header=0.1) as server:
        assert await ask(server, LINE[:10]) == b""
        assert "no header of the PROXY protocol in 0.1 s" in caplog.text
        assert await ask(server, b"") == b""


@pytest.mark.parametrize("allow", [{"forwarded_allow_ips": ""}, {"proxy_allow_from": "10.0.0.1"}])
async def test_who_is_not_on_the_list_is_refused_whatever_it_sends(
    allow: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(**allow) as server:
        assert await ask(server, LINE + GET) == b""
        assert "it may not, see --proxy-allow-from" in caplog.text


async def test_refusals_are_not_all_logged_but_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as server:
        for _ in range(4):
            assert await ask(server, GET) == b""
        assert len(caplog.records) == 1
        monkeypatch.setattr(introductions, "COMPLAIN_EVERY", 0.0)
    caplog.clear()
    owner = introductions.Introductions(asyncio.get_running_loop(), WorkerSettings())
    monkeypatch.setattr(introductions, "COMPLAIN_EVERY", 3600.0)
    for _ in range(3):
        owner.complain(("::1", 80, 0, 0), "this")
    owner._complain_at = 0.0
    owner.complain("", "that")
    assert [record.getMessage() for record in caplog.records] == [
        "refused a connection from [::1]:80: this",
        "refused a connection from a UNIX socket: that (and 2 others before)",
    ]


@pytest.mark.parametrize("name", ["proxy_allow_from", "forwarded_allow_ips"])
def test_a_list_that_cannot_be_understood_is_refused_with_the_setting(name: str) -> None:
    with pytest.raises(BadSetting, match=rf"{name} .* where 'lb\.internal' is not an address"):
        WorkerSettings(**{name: "127.0.0.1,lb.internal"})


async def test_who_says_nothing_does_not_hold_up_the_end() -> None:
    async with serving(timeout_request_header=3600.0) as server:
        clients = [connect(server) for _ in range(3)]
        clients[0].sendall(LINE[:20])
        await until(lambda: server.connections == 3)
    for client in clients:
        client.close()


async def test_connections_do_not_mix_up_their_headers() -> None:
    async with serving() as server:

        async def one(number: int) -> None:
            header = LINE.replace(b"4711", b"%d" % (1000 + number))
            expected = TOLD.replace(b"4711", b"%d" % (1000 + number))
            assert (
                body(await ask(server, header[: number % 40] + b"", header[number % 40 :] + GET))
                == expected
            )

        await asyncio.gather(*map(one, range(60)))


async def test_descriptors_are_given_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    async with serving() as server:
        await ask(server, LINE + GET)
        before = len(os.listdir("/dev/fd"))
        for _ in range(20):
            await ask(server, LINE + GET)
            await ask(server, LINE[:10], LINE[10:] + GET)
            await ask(server, REST)
        await until(lambda: not server.connections)
        assert len(os.listdir("/dev/fd")) <= before + 1
