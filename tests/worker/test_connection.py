"""One connection: pipelining, time-outs, limits, the ways to end, and real sockets."""

import asyncio
import socket
import struct
import sys
from typing import Any

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
    parser_class,
)
from asgictl_worker.http.cycle import HIGH_WATER
from asgictl_worker.http.parser_h11 import H11Parser
from asgictl_worker.http.parser_httptools import HttptoolsParser
from asgictl_worker.service import REST
from asgictl_worker.stall import LOOK
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


async def test_repeated_requests_with_bodies_are_read_however_they_come(parser):
    peer = Peer(echo, http=parser)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
    bodies = [b"%05d" % number for number in range(8)]
    peer.send(head + bodies[0])
    await peer.idle()
    for pieces in (
        [head + bodies[1]],
        [head, bodies[2]],
        [head + bodies[3][:2], bodies[3][2:]],
        [head[:9], head[9:] + bodies[4]],
        [head + bodies[5] + head + bodies[6] + head, bodies[7]],
    ):
        for piece in pieces:
            peer.send(piece)
        await peer.idle()
    assert peer.written == b"".join(response(b"POST /? " + body) for body in bodies)


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


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("raises", [True, False])
async def test_a_response_that_is_whole_on_the_wire_does_not_cost_the_next_one(
    method, raises, caplog
):
    async def app(scope, receive, send):
        headers = [(b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"whole", "more_body": True})
        if raises:
            raise ZeroDivisionError("oops")

    peer = Peer(app)
    peer.send((method + GET[3:]) * 2)
    await peer.idle()
    assert peer.written.count(b"HTTP/1.1 200 OK") == 2
    assert not peer.transport.closed
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2


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


async def test_a_connection_that_is_idle_for_a_while_forgets_and_goes_on(parser):
    peer = Peer(hello, http=parser, timeout_keep_alive=10.0)
    for count in range(1, 4):
        peer.send(GET)
        await peer.written_is(HELLO * count)
        assert peer.connection._parser.known_head == GET
        peer.wait(REST)
        assert peer.connection._parser.known_head == b""
    peer.wait(8.0)
    assert not peer.transport.closed
    peer.wait(1.0)
    assert peer.transport.closed


async def test_a_part_of_a_head_after_a_rest_has_its_time(parser):
    peer = Peer(hello, http=parser, timeout_keep_alive=10.0, timeout_request_header=20.0)
    peer.send(GET)
    await peer.written_is(HELLO)
    peer.wait(REST)
    peer.send(GET[:10])
    peer.wait(19.0)
    assert not peer.transport.closed
    peer.send(GET[10:])
    await peer.written_is(HELLO * 2)


@pytest.mark.parametrize("idle", [0, 0.3, 1.0])
async def test_a_connection_that_may_not_be_idle_for_long_does_not_rest(idle):
    peer = Peer(hello, timeout_keep_alive=idle)
    peer.send(GET)
    await peer.written_is(HELLO)
    peer.wait(idle + 0.3)
    assert peer.transport.closed


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


async def test_a_request_that_has_just_ended_counts_no_more():
    done = asyncio.Event()

    async def app(scope, receive, send):
        await done.wait()
        await hello(scope, receive, send)

    peer = Peer(app, limit_concurrency=1)
    other = Peer(hello, service=peer.service)

    class Eager(type(peer.transport)):
        """Its client is so fast that its next request comes before the event loop turns."""

        def write(self, data):
            super().write(data)
            asyncio.get_running_loop().call_soon(other.send, GET)

    peer.transport.__class__ = Eager
    peer.send(GET)
    await until(lambda: peer.service.counters.in_flight == 1)
    done.set()
    await other.written_is(HELLO)
    await peer.idle()
    assert peer.service.counters.in_flight == 0


async def test_websockets_count_as_requests_and_are_turned_away_too():
    peer = Peer(never, limit_concurrency=1)
    peer.connection.transport.set_protocol = lambda protocol: None
    peer.connection.transport.resume_reading = lambda: None
    peer.send(UPGRADE)
    await until(lambda: peer.service.counters.in_flight == 1)
    for request in (GET, UPGRADE):
        other = Peer(hello, service=peer.service)
        other.send(request)
        assert other.written == refusal(
            b"503 Service Unavailable", b"too many requests in progress", b"retry-after: 5"
        )
        assert other.transport.closed
    for task in list(peer.service.tasks):
        task.cancel()
    await until(lambda: not peer.service.tasks)


@pytest.mark.parametrize("upgrade", [False, True])
async def test_surplus_connections_are_turned_away_when_they_ask(upgrade, parser):
    first = Peer(hello, http=parser, limit_connections=1)
    surplus = Peer(hello, service=first.service)
    assert surplus.written == b""
    surplus.send(UPGRADE if upgrade else GET)
    assert surplus.written == refusal(
        b"503 Service Unavailable", b"too many connections", b"retry-after: 5"
    )
    assert surplus.transport.closed
    surplus.lose()
    # The others are served, and the next one is when there is room again.
    first.send(GET)
    await first.written_is(HELLO)
    first.lose()
    last = Peer(hello, service=first.service)
    last.send(GET)
    await last.written_is(HELLO)


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


@pytest.mark.parametrize("count", [1, MAX_BURST + 5])
@pytest.mark.parametrize("rest", [b"", b"GET / HT"])
async def test_requests_that_wait_are_answered_to_a_client_that_has_half_closed(
    count, rest, parser
):
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        await hello(scope, receive, send)

    peer = Peer(slow, http=parser)
    peer.send(GET * (count + 1) + rest)
    peer.send_eof()
    assert not peer.transport.closed
    await peer.written_is(HELLO * (count + 1))
    await until(lambda: peer.transport.closed)
    assert peer.written == HELLO * (count + 1)


async def test_a_waiting_request_whose_body_will_never_come_is_told_so(parser):
    kinds = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "GET":
            await asyncio.sleep(0)
            await hello(scope, receive, send)
            return
        while not kinds or kinds[-1] == "http.request":
            kinds.append((await receive())["type"])

    peer = Peer(app, http=parser)
    peer.send(GET + b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nab")
    peer.send_eof()
    await until(lambda: peer.transport.closed)
    assert kinds == ["http.request", "http.disconnect"]


@pytest.mark.parametrize("cut", [0, 1])
async def test_the_answer_to_a_head_that_is_refused_has_no_content(cut, parser):
    peer = Peer(hello, http=parser)
    peer.send(b"HEAD / HTTP/1.1\r\n\r\n", cut=cut)
    assert peer.written.startswith(b"HTTP/1.1 400 ")
    assert peer.written.endswith(b"\r\n\r\n")
    assert peer.log.lines == ["10.0.0.7:52100 HEAD - 1.1 400 0"]


async def test_requests_behind_each_other_are_all_answered_to_a_half_closed_client():
    peer = Peer(hello)
    peer.send(GET)
    await peer.written_is(HELLO)
    peer.service.app = echo
    peer.send(GET)
    peer.send_eof()
    await until(lambda: peer.transport.closed)
    assert peer.written == HELLO + response(b"GET /? ")


async def test_many_requests_that_are_answered_at_once_are_not_lost_by_the_clients_end(parser):
    peer = Peer(hello, http=parser)
    peer.send(GET * (3 * MAX_BURST + 5))
    peer.send_eof()
    await until(lambda: peer.transport.closed)
    assert peer.written == HELLO * (3 * MAX_BURST + 5)


async def test_requests_that_wait_for_a_half_closed_client_to_read_are_not_lost(parser):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        peer.connection.pause_writing()
        await hello(scope, receive, send)

    peer = Peer(app, http=parser)
    peer.send(GET * 4)
    peer.send_eof()
    for count in range(1, 5):
        await peer.written_is(HELLO * count)
        await turns()
        peer.connection.resume_writing()
    await until(lambda: peer.transport.closed)
    assert peer.written == HELLO * 4


async def test_answers_let_in_no_more_requests_while_too_many_wait(parser):
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        await hello(scope, receive, send)

    peer = Peer(slow, http=parser)
    count = 0
    for _ in range(200):
        if peer.transport.reading:
            peer.send(GET * 1000)
            count += 1000
        await asyncio.sleep(0)
        assert len(peer.connection._parser.buffer) <= HIGH_WATER + 1000 * len(GET)
    head, body = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n", b"abc"
    # What stands at the end of the buffer is read on.
    for rest in (head[:20], head[20:], body):
        await until(lambda: peer.transport.reading)
        peer.send(rest)
    await peer.idle()
    await until(lambda: peer.written.count(b"hello") == count + 1)


# -- Requests that take too long


async def test_a_request_that_takes_too_long_is_cancelled_and_answered_504(parser, caplog):
    peer = Peer(never, http=parser, timeout_request=5.0)
    peer.send(GET)
    await turns()
    peer.wait(4.0)
    assert peer.written == b""
    peer.wait(1.0)
    assert peer.written == refusal(b"504 Gateway Timeout", b"the application took too long")
    await peer.idle()
    assert peer.transport.closed
    assert 'out of time, cancelled "GET / HTTP/1.1"' in caplog.text
    assert peer.service.counters.in_flight == 0


async def test_by_default_a_request_may_take_its_time():
    peer = Peer(never)
    peer.send(GET)
    await turns()
    assert peer.connection.deadline == NEVER


async def test_a_request_that_was_answered_in_time_leaves_no_deadline_behind():
    peer = Peer(hello, timeout_request=5.0, timeout_keep_alive=60.0)
    peer.send(GET)
    await peer.written_is(HELLO)
    peer.wait(6.0)
    peer.send(GET)
    await peer.written_is(HELLO * 2)


async def test_a_response_that_takes_too_long_is_cut():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await asyncio.Event().wait()

    peer = Peer(app, timeout_request=5.0)
    peer.send(GET)
    await until(lambda: peer.written)
    peer.wait(5.0)
    assert peer.transport.closed
    assert not peer.written.endswith(b"0\r\n\r\n")
    await peer.idle()


async def test_an_application_that_ignores_its_time_out_hears_that_nobody_listens():
    go = asyncio.Event()
    outcome = []

    async def app(scope, receive, send):
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                outcome.append("cancelled")
        outcome.append((await receive())["type"])
        try:
            await hello(scope, receive, send)
        except OSError:
            outcome.append("refused")

    peer = Peer(app, timeout_request=5.0)
    peer.send(GET)
    await turns()
    peer.wait(5.0)
    await turns()
    go.set()
    await peer.idle()
    assert outcome == ["cancelled", "http.disconnect", "refused"]
    assert peer.written.startswith(b"HTTP/1.1 504 ")


POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
NO_BODY = refusal(b"408 Request Timeout", b"the body of the request did not arrive in time")


@pytest.mark.parametrize("sent", [POST, POST + b"abc", CHUNKED, CHUNKED + b"3\r\nabc"])
async def test_a_body_that_stops_arriving_is_408(sent, parser):
    peer = Peer(echo, http=parser, timeout_request_body=5.0)
    peer.send(sent)
    await turns()
    peer.wait(4.0)
    assert peer.written == b""
    peer.wait(1.0)
    assert peer.written == NO_BODY
    assert peer.transport.eof_written
    peer.lose()


async def test_a_body_that_arrives_slowly_is_taken(parser):
    peer = Peer(echo, http=parser, timeout_request_body=5.0)
    peer.send(POST)
    for _ in range(10):
        await turns()
        peer.wait(4.0)
        peer.send(b"x")
    await peer.written_is(response(b"POST /? xxxxxxxxxx"))


async def test_a_client_is_not_blamed_while_nobody_reads_its_body():
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await echo(scope, receive, send)

    peer = Peer(app, timeout_request_body=5.0)
    size = 2 * HIGH_WATER
    peer.send(POST.replace(b"10", b"%d" % size) + bytes(size - 1))
    await turns()
    assert not peer.transport.reading
    peer.wait(60.0)
    assert peer.written == b""
    go.set()
    await until(lambda: peer.transport.reading)
    peer.wait(4.0)
    peer.send(b"\0")
    await peer.written_is(response(b"POST /? " + bytes(size)))


async def test_a_client_that_waits_for_continue_is_not_blamed():
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await echo(scope, receive, send)

    peer = Peer(app, timeout_request_body=5.0)
    peer.send(POST.replace(b"\r\n\r\n", b"\r\nexpect: 100-continue\r\n\r\n"))
    await turns()
    peer.wait(60.0)
    assert peer.written == b""
    go.set()
    await until(lambda: peer.written)
    peer.wait(4.0)
    peer.send(b"0123456789")
    await until(lambda: b"POST /? 0123456789" in peer.written)


async def test_a_body_that_stops_in_the_middle_of_the_response_cuts_it():
    messages = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        messages.append(await receive())
        messages.append(await receive())

    peer = Peer(app, timeout_request_body=5.0)
    peer.send(POST + b"abc")
    await until(lambda: messages)
    peer.wait(5.0)
    await peer.idle()
    assert messages[1] == {"type": "http.disconnect"}
    assert peer.transport.closed


# -- Clients that do not read


async def test_a_client_that_reads_nothing_is_cut(parser):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        for _ in range(9):
            await send({"type": "http.response.body", "body": b"a", "more_body": True})

    peer = Peer(app, http=parser, timeout_write=10.0)
    peer.transport.full = True
    peer.connection.pause_writing()
    peer.send(GET)
    await turns()
    peer.wait(9.0)
    assert not peer.transport.closed
    peer.wait(4.0)
    assert peer.transport.aborted
    peer.lose()
    await peer.idle()


async def test_a_client_that_reads_a_little_now_and_then_is_waited_for():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body"})

    peer = Peer(app, timeout_write=10.0)
    peer.connection.pause_writing()
    peer.send(GET)
    await turns()
    for left in range(20, 0, -1):
        peer.transport.full = left
        peer.wait(6.0)
    assert not peer.transport.closed
    peer.transport.full = 0
    peer.connection.resume_writing()
    await peer.idle()
    assert peer.written.endswith(b"0\r\n\r\n")


async def test_without_the_time_out_a_client_may_wait_as_long_as_it_likes():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})

    peer = Peer(app, timeout_write=None)
    peer.transport.full = True
    peer.connection.pause_writing()
    peer.send(GET)
    await turns()
    peer.wait(1000.0)
    assert not peer.transport.closed


@pytest.mark.parametrize("request_", [GET, GET.replace(b"\r\n\r\n", b"\r\n" + CLOSE + b"\r\n")])
async def test_a_client_that_does_not_read_its_last_answer_is_cut(request_):
    peer = Peer(hello, timeout_keep_alive=5.0, timeout_write=10.0)
    peer.send(request_)
    await peer.idle()
    peer.transport.full = True
    peer.connection.on_tick(peer.service.ticker.now)
    peer.wait(9.0)
    assert not peer.transport.aborted
    peer.wait(4.0)
    assert peer.transport.aborted


async def test_a_client_still_reads_its_answer_when_the_connection_has_been_idle_for_long():
    peer = Peer(hello, timeout_keep_alive=5.0, timeout_write=10.0)
    peer.send(GET)
    await peer.written_is(HELLO)
    for left in range(5, 0, -1):
        peer.transport.full = left
        peer.wait(8.0)
        assert not peer.transport.closed
    peer.transport.full = 0
    peer.wait(LOOK + 5.0)  # it may just have looked
    assert peer.transport.closed


# -- Draining


async def test_while_draining_an_idle_connection_has_a_window_and_is_then_closed():
    peer = Peer(hello, drain_idle_window=1.0, timeout_keep_alive=100.0)
    peer.send(GET)
    await peer.written_is(HELLO)
    peer.service.draining = True
    peer.connection.drain(peer.service.ticker.now, peer.service.ticker.now)
    peer.wait(0.2)
    assert not peer.transport.closed
    peer.wait(0.8)
    assert peer.transport.closed


async def test_while_draining_a_request_in_the_window_is_answered_and_closed(parser):
    peer = Peer(hello, http=parser, drain_idle_window=1.0)
    peer.service.draining = True
    peer.connection.drain(peer.service.ticker.now, peer.service.ticker.now)
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
    peer.connection.drain(peer.service.ticker.now, peer.service.ticker.now)
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
    peer.connection.drain(peer.service.ticker.now, peer.service.ticker.now)
    go.set()
    await peer.idle()
    assert not peer.transport.closed
    peer.wait(1.0)
    assert peer.transport.closed


EVENTS = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}


def stream(outcome, start=EVENTS):
    """An application that sends something whenever the event that it returns is set."""
    go = asyncio.Event()

    async def app(scope, receive, send):
        assert (await receive())["type"] == "http.request"
        await send(start)
        try:
            while True:
                await send(
                    {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}
                )
                await go.wait()
                go.clear()
        except OSError:
            outcome.append("refused")
            outcome.append((await receive())["type"])

    return app, go


async def test_while_draining_a_stream_of_events_is_ended_when_it_is_its_turn(parser):
    outcome = []
    app, go = stream(outcome)
    peer = Peer(app, http=parser)
    peer.send(GET)
    await until(lambda: peer.written)
    peer.service.draining = peer.service.has_deadlines = True
    now = peer.service.ticker.now
    peer.connection.drain(now, now + 3.0)
    peer.wait(2.0)
    assert not peer.transport.closed
    peer.wait(1.0)
    assert peer.written.endswith(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")
    assert peer.transport.closed
    assert peer.log.lines == ["10.0.0.7:52100 GET / 1.1 200 9"]
    go.set()
    await peer.idle()
    assert outcome == ["refused", "http.disconnect"]


@pytest.mark.parametrize("new", [False, True])
async def test_a_stream_of_events_that_begins_while_draining_is_ended_soon(new):
    app, go = stream([])
    peer = Peer(app)
    peer.service.draining = peer.service.has_deadlines = True
    if new:
        peer = Peer(app, service=peer.service)
    else:
        now = peer.service.ticker.now
        peer.connection.drain(now, now)
    peer.send(GET)
    await until(lambda: peer.written)
    peer.wait(2.0)
    assert peer.written.endswith(b"0\r\n\r\n")
    go.set()
    await peer.idle()


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-type", b"text/plain"), (b"x-type", b"text/event-stream")],
        [(b"content-type", b"text/event-stream"), (b"content-length", b"1000")],
    ],
)
async def test_while_draining_other_streams_go_on(headers):
    app, go = stream([], {**EVENTS, "headers": headers})
    peer = Peer(app)
    peer.send(GET)
    await until(lambda: peer.written)
    peer.service.draining = True
    peer.connection.drain(peer.service.ticker.now, peer.service.ticker.now)
    peer.wait(10.0)
    assert not peer.transport.closed
    count = len(peer.written)
    go.set()
    await until(lambda: len(peer.written) > count)


async def test_at_the_deadline_a_stream_is_cut_and_hears_of_it_instead_of_being_cancelled():
    outcome = []
    app, go = stream(outcome, {"type": "http.response.start", "status": 200})
    peer = Peer(app)
    peer.send(GET)
    await until(lambda: peer.written)
    peer.connection.abort()
    assert peer.transport.closed
    assert not peer.written.endswith(b"0\r\n\r\n")
    go.set()
    await peer.idle()
    assert outcome == ["refused", "http.disconnect"]


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


@pytest.mark.parametrize("before", ["half closed", "paused"])
async def test_a_reset_is_noticed_while_nothing_is_read(before, serve):
    messages = []
    go = asyncio.Event()

    async def app(scope, receive, send):
        messages.append(None)
        await go.wait()
        messages.append(await receive())

    address, service = await serve(app)
    with socket.create_connection(address) as client:
        if before == "half closed":
            client.sendall(GET)
            await until(lambda: messages)
            client.shutdown(socket.SHUT_WR)
            await until(lambda: any(each._eof for each in service.connections))
        else:
            client.sendall(POST.replace(b"10", b"500000"))
            await asyncio.get_running_loop().run_in_executor(None, client.sendall, bytes(300_000))
            await until(lambda: any(each.reading_paused for each in service.connections))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await until(lambda: not service.connections)
    assert service.tasks
    go.set()
    await until(lambda: not service.tasks)
    assert messages[1] == {"type": "http.disconnect"}


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


async def test_an_application_that_never_waits_hears_that_its_client_is_gone(serve, caplog):
    errors = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        try:
            while True:
                await send({"type": "http.response.body", "body": bytes(1000), "more_body": True})
        except OSError as error:
            errors.append(error)

    address, service = await serve(app)

    def read_some_and_reset() -> None:
        with socket.create_connection(address) as sock:
            sock.sendall(GET)
            size = 0
            while size < 1_000_000:
                size += len(sock.recv(1 << 16))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    for count in range(1, 4):
        await asyncio.get_running_loop().run_in_executor(None, read_some_and_reset)
        await until(lambda count=count: len(errors) == count)
    await until(lambda: not service.connections)
    assert "socket.send() raised exception" not in caplog.text
