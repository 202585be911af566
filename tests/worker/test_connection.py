"""One connection: pipelining, time-outs, limits, the ways to end, and real sockets."""

import asyncio
import socket
import struct
import sys

import pytest
from tests.worker.http.wire import (
    CLOSE,
    GET,
    HELLO,
    Peer,
    echo,
    hello,
    refusal,
    response,
)
from tests.worker.waiting import until

from asgictl_worker.connection import (
    LINGER,
    MAX_BURST,
    MAX_DISCARDED,
    Connection,
    parser_class,
)
from asgictl_worker.http.cycle import HIGH_WATER
from asgictl_worker.http.parser_h11 import H11Parser
from asgictl_worker.http.parser_httptools import HttptoolsParser
from asgictl_worker.timers import NEVER


@pytest.fixture(params=["httptools", "h11"])
def parser(request: pytest.FixtureRequest) -> str:
    return request.param


async def never(scope, receive, send):
    await asyncio.Event().wait()


async def turns(count: int = 10) -> None:
    """Let the event loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


# -- The parser


@pytest.mark.parametrize(
    ("name", "parser"),
    [("auto", HttptoolsParser), ("httptools", HttptoolsParser), ("h11", H11Parser)],
)
def test_the_settings_choose_the_parser(name, parser):
    assert parser_class(name) is parser


def test_without_httptools_auto_takes_h11(monkeypatch):
    monkeypatch.setitem(sys.modules, "asgictl_worker.http.parser_httptools", None)
    assert parser_class.__wrapped__("auto") is H11Parser
    with pytest.raises(ImportError):
        parser_class.__wrapped__("httptools")


# -- Pipelining


@pytest.mark.parametrize("cut", [0, 1, 7])
async def test_pipelined_requests_are_answered_in_order(cut, parser):
    async def app(scope, receive, send):
        # The first takes longest, and has nothing in common with the next but the connection.
        await turns(20 - 5 * int(scope["path"][1:]))
        await echo(scope, receive, send)

    peer = Peer(app, http=parser)
    for number in range(3):
        peer.send(b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" % number, cut=cut)
    await peer.written_is(b"".join(response(b"POST /%d? abc" % number) for number in range(3)))
    assert not peer.transport.closed


async def test_a_pipelined_request_begins_when_the_response_before_it_is_complete():
    running = []
    gates = [asyncio.Event(), asyncio.Event()]

    async def app(scope, receive, send):
        number = int(scope["path"][1:])
        running.append(number)
        await gates[number].wait()
        await hello(scope, receive, send)

    peer = Peer(app)
    peer.send(b"GET /0 HTTP/1.1\r\nHost: a\r\n\r\nGET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
    await turns()
    assert running == [0]
    gates[0].set()
    await until(lambda: running == [0, 1])
    gates[1].set()
    await peer.written_is(HELLO * 2)


async def test_a_pipelined_request_does_not_wait_for_what_the_application_does_afterwards():
    go = asyncio.Event()

    async def app(scope, receive, send):
        await hello(scope, receive, send)
        await go.wait()

    peer = Peer(app)
    peer.send(GET * 3)
    await peer.written_is(HELLO * 3)
    assert peer.service.counters.in_flight == 3
    go.set()
    await peer.idle()
    assert peer.service.counters.in_flight == 0


async def test_a_long_row_of_requests_is_answered_without_deep_recursion(parser):
    count = 10 * MAX_BURST
    peer = Peer(hello, http=parser)
    peer.send(GET * count)
    await peer.written_is(HELLO * count)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks cannot start eagerly")
async def test_after_a_burst_others_have_their_turn():
    peer = Peer(hello)
    peer.send(GET * (3 * MAX_BURST))
    assert peer.written.count(b"hello") == MAX_BURST + 1
    await peer.written_is(HELLO * (3 * MAX_BURST))


async def test_reading_pauses_while_many_requests_wait(parser):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await hello(scope, receive, send)

    peer = Peer(app, http=parser)
    count = 0
    while peer.transport.reading:
        peer.send(GET)
        count += 1
    assert HIGH_WATER // len(GET) < count < HIGH_WATER // len(GET) + 5
    go.set()
    await peer.written_is(HELLO * count)
    assert peer.transport.reading


async def test_nothing_is_answered_after_a_response_that_closes(parser):
    last = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    peer = Peer(hello, http=parser)
    peer.send(last + GET)
    await peer.written_is(response(b"hello", end=CLOSE))
    await turns()
    assert peer.transport.eof_written
    assert peer.service.counters.requests_total == 1


async def test_an_error_behind_a_good_request_is_answered_behind_it(parser):
    peer = Peer(hello, http=parser)
    peer.send(GET + b"GET / HTTP/1.1\r\n\r\n")
    await peer.written_is(HELLO + refusal(b"400 Bad Request", b"no Host header"))
    assert peer.log.lines == ["10.0.0.7:52100 GET / 1.1 200 5", "10.0.0.7:52100 - - 1.1 400 14"]


# -- Keep-alive


async def test_connections_are_kept_and_closed_as_the_client_asks(parser):
    peer = Peer(hello, http=parser)
    peer.send(GET)
    await peer.written_is(HELLO)
    assert not peer.transport.closed
    peer.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    await peer.written_is(HELLO + response(b"hello", end=CLOSE))
    assert peer.transport.closed


async def test_http_1_0_closes_unless_asked(parser):
    peer = Peer(hello, http=parser)
    peer.send(b"GET / HTTP/1.0\r\n\r\n")
    await peer.written_is(response(b"hello", end=CLOSE))
    assert peer.transport.closed


async def test_http_1_0_can_keep_the_connection(parser):
    peer = Peer(hello, http=parser)
    peer.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2)
    await peer.written_is(response(b"hello", end=b"connection: keep-alive\r\n") * 2)
    assert not peer.transport.closed


async def test_a_body_that_nobody_reads_is_dropped_and_the_connection_kept(parser):
    peer = Peer(hello, http=parser)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
    peer.send(head)
    await peer.written_is(HELLO)
    peer.send(b"x" * 100_000 + GET, cut=30_000)
    await peer.written_is(HELLO * 2)
    assert not peer.transport.closed
    assert peer.connection.deadline < NEVER


async def test_a_body_that_nobody_reads_is_not_waited_for_without_end(parser):
    peer = Peer(hello, http=parser)
    peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
    await peer.written_is(HELLO)
    peer.wait(LINGER)
    assert peer.transport.closed


async def test_of_a_body_that_nobody_reads_not_everything_is_taken(parser):
    peer = Peer(hello, http=parser)
    peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
    await peer.written_is(HELLO)
    peer.send(b"x" * (MAX_DISCARDED + 1), cut=60_000)
    assert peer.transport.closed


async def test_broken_chunks_that_nobody_reads_end_the_connection(parser):
    peer = Peer(hello, http=parser)
    peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    await peer.written_is(HELLO)
    peer.send(b"nonsense\r\n")
    assert peer.written == HELLO
    assert peer.transport.eof_written


# -- Time-outs


async def test_a_connection_that_sends_nothing_is_closed():
    peer = Peer(hello, timeout_request_header=3.0)
    peer.wait(2.0)
    assert not peer.transport.closed
    peer.wait(1.0)
    assert peer.transport.closed
    assert peer.written == b""


async def test_a_head_that_takes_too_long_is_408(parser):
    peer = Peer(hello, http=parser, timeout_request_header=3.0)
    peer.wait(2.0)
    peer.send(b"GET / HT")
    peer.wait(2.0)
    # What trickles in does not buy time.
    peer.send(b"TP")
    peer.wait(1.0)
    assert peer.written == refusal(b"408 Request Timeout", b"the request did not arrive in time")
    assert peer.transport.eof_written
    assert peer.log.lines == ["10.0.0.7:52100 - - 1.1 408 34"]


async def test_a_head_that_arrives_in_time_is_answered_whenever(parser):
    peer = Peer(never, http=parser, timeout_request_header=3.0)
    peer.send(GET[:10])
    peer.wait(2.0)
    peer.send(GET[10:])
    await turns()
    peer.wait(1000.0)
    assert not peer.transport.closed
    assert peer.service.tasks
    peer.connection.abort()
    await peer.idle()


async def test_a_second_head_has_its_own_time(parser):
    peer = Peer(hello, http=parser, timeout_request_header=3.0, timeout_keep_alive=10.0)
    peer.send(GET)
    await peer.written_is(HELLO)
    peer.wait(8.0)
    peer.send(b"GET")
    peer.wait(2.0)
    assert peer.written == HELLO
    peer.wait(1.0)
    assert b" 408 " in peer.written


async def test_a_pipelined_part_of_a_head_has_its_time_from_the_response_on(parser):
    peer = Peer(hello, http=parser, timeout_request_header=3.0, timeout_keep_alive=100.0)
    peer.send(GET + b"GET")
    await peer.written_is(HELLO)
    await turns()
    peer.wait(3.0)
    assert b" 408 " in peer.written


async def test_an_idle_connection_is_closed_after_a_while(parser):
    peer = Peer(hello, http=parser, timeout_keep_alive=5.0)
    peer.send(GET)
    await peer.written_is(HELLO)
    peer.wait(4.0)
    assert not peer.transport.closed
    peer.send(GET)
    await peer.written_is(HELLO * 2)
    peer.wait(4.0)
    assert not peer.transport.closed
    peer.wait(1.0)
    assert peer.transport.closed
    assert not peer.transport.aborted


async def test_line_ends_between_requests_are_no_request(parser):
    peer = Peer(hello, http=parser)
    peer.send(GET + b"\r\n")
    await peer.written_is(HELLO)
    peer.send(GET)
    await peer.written_is(HELLO * 2)


# -- Answers to clients that still send


async def test_after_a_refusal_the_rest_is_read_so_that_the_answer_arrives(parser):
    peer = Peer(hello, http=parser)
    peer.send(b"GET / HTTP/1.1\r\n\r\n" + GET)
    expected = refusal(b"400 Bad Request", b"no Host header")
    assert peer.written == expected
    assert peer.transport.eof_written
    assert peer.transport.reading
    peer.send(GET)
    assert peer.written == expected
    peer.send_eof()
    assert peer.transport.closed


async def test_a_client_that_never_stops_sending_is_not_listened_to_for_ever(parser):
    peer = Peer(hello, http=parser)
    peer.send(b"nonsense\r\n\r\n")
    peer.send(b"x" * (MAX_DISCARDED + 1), cut=60_000)
    assert peer.transport.closed


async def test_a_client_that_does_not_close_is_closed(parser):
    peer = Peer(hello, http=parser)
    peer.send(b"nonsense\r\n\r\n")
    peer.wait(LINGER)
    assert peer.transport.closed


async def test_a_client_that_reads_slowly_is_given_time():
    peer = Peer(hello)
    peer.send(b"nonsense\r\n\r\n")
    peer.transport.full = True
    peer.wait(5 * LINGER)
    assert not peer.transport.closed
    peer.transport.full = False
    peer.wait(LINGER)
    assert peer.transport.closed


async def test_bytes_that_come_while_the_transport_closes_are_lost(parser):
    peer = Peer(hello, http=parser)
    peer.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    await until(lambda: peer.transport.closed)
    peer.connection.data_received(GET)
    assert peer.service.counters.requests_total == 1


# -- Limits


async def test_too_many_requests_are_turned_away(parser):
    peer = Peer(never, http=parser, limit_concurrency=1)
    peer.send(GET)
    await until(lambda: peer.service.counters.in_flight == 1)
    other = Peer(hello, service=peer.service)
    other.send(GET)
    assert other.written == refusal(
        b"503 Service Unavailable", b"too many requests in progress", b"retry-after: 5"
    )
    assert other.transport.closed
    peer.connection.abort()
    await peer.idle()
    peer.service.app = hello
    other = Peer(hello, service=peer.service)
    other.send(GET)
    await other.written_is(HELLO)


# -- Ends


async def test_connections_are_known_to_the_service_while_they_live():
    peer = Peer(hello)
    assert peer.service.connections == {peer.connection}
    peer.lose()
    assert peer.service.connections == set()
    assert peer.connection.deadline == NEVER


async def test_an_end_of_the_client_between_requests_ends_the_connection():
    peer = Peer(hello)
    peer.send_eof()
    assert peer.transport.closed


async def test_requests_behind_each_other_are_all_answered_to_a_half_closed_client():
    peer = Peer(hello)
    peer.send(GET)
    await peer.written_is(HELLO)
    peer.service.app = echo
    peer.send(GET)
    peer.send_eof()
    await until(lambda: peer.transport.closed)
    assert peer.written == HELLO + response(b"GET /? ")


# -- Draining


async def test_while_draining_an_idle_connection_has_a_window_and_is_then_closed():
    peer = Peer(hello, drain_idle_window=1.0, timeout_keep_alive=100.0)
    peer.send(GET)
    await peer.written_is(HELLO)
    peer.service.draining = True
    peer.connection.drain(peer.service.ticker.now)
    peer.wait(0.2)
    assert not peer.transport.closed
    peer.wait(0.8)
    assert peer.transport.closed


async def test_while_draining_a_request_in_the_window_is_answered_and_closed(parser):
    peer = Peer(hello, http=parser, drain_idle_window=1.0)
    peer.service.draining = True
    peer.connection.drain(peer.service.ticker.now)
    peer.send(GET)
    await peer.written_is(response(b"hello", end=CLOSE))
    assert peer.transport.closed


async def test_while_draining_requests_in_progress_are_finished(parser):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await hello(scope, receive, send)

    peer = Peer(app, http=parser)
    peer.send(GET)
    await turns()
    peer.service.draining = True
    peer.connection.drain(peer.service.ticker.now)
    peer.wait(100.0)
    go.set()
    await peer.written_is(response(b"hello", end=CLOSE))
    assert peer.transport.closed


async def test_a_response_that_had_begun_before_the_drain_is_followed_by_the_window():
    go = asyncio.Event()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await go.wait()
        await send({"type": "http.response.body"})

    peer = Peer(app, drain_idle_window=1.0, timeout_keep_alive=100.0)
    peer.send(GET)
    await until(lambda: peer.written)
    peer.service.draining = True
    peer.connection.drain(peer.service.ticker.now)
    go.set()
    await peer.idle()
    assert not peer.transport.closed
    peer.wait(1.0)
    assert peer.transport.closed


async def test_a_connection_that_is_accepted_while_draining_has_the_window():
    peer = Peer(hello, drain_idle_window=1.0)
    peer.service.draining = True
    late = Peer(hello, service=peer.service)
    late.wait(0.3)
    assert not late.transport.closed
    late.wait(0.7)
    assert late.transport.closed


async def test_an_idle_connection_can_be_aborted():
    peer = Peer(hello)
    peer.connection.abort()
    assert peer.transport.aborted


# -- WebSockets

UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def test_without_websockets_an_upgrade_is_an_ordinary_request(parser):
    peer = Peer(echo, http=parser, ws="none")
    peer.send(UPGRADE)
    await peer.written_is(response(b"GET /chat? "))


# -- Real sockets


@pytest.fixture
async def serve():
    """Serve an application on a real socket; return its address and the service."""
    servers = []

    async def serve(app, **settings):
        peer = Peer(app, **settings)
        service = peer.service
        peer.lose()
        service.ticker.start(service)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(service), "127.0.0.1", 0)
        servers.append((server, service))
        return server.sockets[0].getsockname(), service

    yield serve
    for server, service in servers:
        server.close()
        for connection in list(service.connections):
            connection.abort()
        for task in list(service.tasks):
            task.cancel()
        await until(lambda service=service: not service.connections and not service.tasks)
        service.ticker.stop()


async def test_a_refused_upload_gets_its_answer_though_it_is_still_sent(serve, parser):
    address, _ = await serve(echo, http=parser, limit_request_body=1000)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n")
    for _ in range(5):
        writer.write(b"x" * 100_000)
        await turns(3)
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"the body is too long")
    writer.close()


async def test_a_client_that_has_closed_its_half_gets_its_answer(serve, parser):
    async def app(scope, receive, send):
        await asyncio.sleep(0.01)
        await echo(scope, receive, send)

    address, _ = await serve(app, http=parser)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
    writer.write_eof()
    assert (await reader.read()).endswith(b"POST /? abc")
    writer.close()


async def test_a_client_that_does_not_read_holds_back_the_application(serve):
    sent = 0

    async def app(scope, receive, send):
        nonlocal sent
        await send({"type": "http.response.start", "status": 200})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            sent += 1

    address, service = await serve(app)
    reader, writer = await asyncio.open_connection(*address, limit=1)
    writer.write(GET)
    await until(lambda: any(each.write_paused for each in service.connections))
    before = sent
    await turns(50)
    assert sent == before
    while sent == before:
        await reader.read(65536)
    writer.transport.abort()
    await until(lambda: not service.tasks)


async def test_a_client_that_resets_is_forgotten(serve):
    address, service = await serve(never)
    with socket.create_connection(address) as client:
        client.sendall(GET)
        await until(lambda: service.counters.in_flight == 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await until(lambda: not service.connections)


async def test_a_response_cut_short_is_a_reset_where_nothing_else_tells(serve, caplog):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await asyncio.sleep(0.05)
        raise RuntimeError("oops")

    address, _ = await serve(app)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    assert (await reader.readuntil(b"half")).endswith(b"\r\n\r\nhalf")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_a_large_body_goes_both_ways(serve, parser):
    address, _ = await serve(echo, http=parser)
    body = bytes(index % 251 for index in range(3_000_000))
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n" % len(body))
    writer.write(b"Connection: close\r\n\r\n" + body)
    assert (await reader.read()).endswith(b"POST /? " + body)
    writer.close()


async def test_time_outs_are_in_force_without_anybody_moving_the_clock(serve):
    address, service = await serve(hello, timeout_keep_alive=0.1)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(GET)
    assert (await reader.read()).endswith(b"hello")
    assert not service.connections
    writer.close()
