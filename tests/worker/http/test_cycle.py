"""What an application sees and what becomes of what it sends, over both parsers."""

import asyncio
import contextvars
import functools
import logging
import sys

import pytest
from tests.worker.http.wire import (
    CLOSE,
    DATE,
    GET,
    HELLO,
    Peer,
    echo,
    hello,
    read_body,
    refusal,
    response,
)
from tests.worker.waiting import until

from asgictl_worker.connection import MAX_HELD
from asgictl_worker.http.cycle import HIGH_WATER
from asgictl_worker.http.response import ClientDisconnected

START = {"type": "http.response.start", "status": 200}
KIND = b"content-type: text/plain; charset=utf-8"
ERROR = response(b"Internal Server Error", KIND, status=b"500 Internal Server Error")
ERROR_AND_CLOSE = response(
    b"Internal Server Error", KIND, status=b"500 Internal Server Error", end=CLOSE
)


def body(data: bytes = b"", more: bool = False) -> dict:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def exchange(app, data=GET, *, eof=False, **options):
    """Send bytes, wait for the application, and return the peer."""
    peer = Peer(app, **options)
    peer.send(data)
    if eof:
        peer.send_eof()
    await peer.idle()
    return peer


def errors(caplog):
    return [record for record in caplog.records if record.name == "asgictl.worker"]


# -- The scope


async def scope_of(data: bytes, **options) -> dict:
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await hello(scope, receive, send)

    await exchange(app, data, **options)
    return scopes[0]


async def test_the_scope_says_what_was_asked_for(parser):
    data = b"PUT /a%20b/%C3%A4?c=%20&d HTTP/1.1\r\nHost: example.org\r\nX-Y: z\r\n\r\n"
    assert await scope_of(data, http=parser) == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "method": "PUT",
        "scheme": "http",
        "path": "/a b/ä",
        "raw_path": b"/a%20b/%C3%A4",
        "query_string": b"c=%20&d",
        "root_path": "",
        "headers": [(b"host", b"example.org"), (b"x-y", b"z")],
        "client": ("10.0.0.7", 52100),
        "server": ("10.0.0.1", 8000),
        "extensions": {
            "http.response.pathsend": {},
            "http.response.zerocopysend": {},
            "http.response.early_hint": {},
        },
    }


async def test_a_unix_socket_has_a_path_and_no_client():
    scope = await scope_of(GET, unix=True)
    assert (scope["client"], scope["server"]) == (None, ("/run/app.sock", None))


async def test_a_root_path_is_part_of_the_path():
    scope = await scope_of(GET.replace(b"/ ", b"/x ", 1), root_path="/api")
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/api", "/api/x", b"/api/x")


async def test_a_trusted_proxy_says_who_the_client_is():
    data = GET[:-2] + b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n\r\n"
    peer = await exchange(hello, data + GET)
    scope = await scope_of(data)
    assert (scope["client"], scope["scheme"]) == (("192.0.2.1", 0), "https")
    assert peer.log.lines == [
        "192.0.2.1:0 GET / 1.1 200 5",
        "10.0.0.7:52100 GET / 1.1 200 5",
    ]


async def test_forwarding_headers_are_ignored_if_the_settings_say_so():
    data = GET[:-2] + b"X-Forwarded-For: 192.0.2.1\r\n\r\n"
    peer = Peer(hello)
    peer.service.proxy_trust = None
    peer.send(data)
    await peer.idle()
    assert peer.log.lines == ["10.0.0.7:52100 GET / 1.1 200 5"]


async def test_nothing_that_an_application_changes_is_seen_by_another_request(parser):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(
            {key: value.copy() for key, value in scope.items() if isinstance(value, (dict, list))}
        )
        for value in scope.values():
            if isinstance(value, dict):
                for inner in value.values():
                    if isinstance(inner, dict):
                        inner["changed"] = True
                value["changed"] = True
            if isinstance(value, list):
                value.clear()
        await hello(scope, receive, send)

    peer = await exchange(app, GET * 3, http=parser, state={"shared": 1})
    for _ in range(3):  # as a whole, a repeated request is known again
        peer.send(GET)
        await peer.idle()
    assert scopes[0]["state"] == {"shared": 1}
    assert scopes == [scopes[0]] * 6


@pytest.mark.parametrize("settings", [{}, {"root_path": "/api"}, {"timeout_request": 9.0}])
@pytest.mark.parametrize("state", [None, {"shared": 1}])
async def test_a_repeated_request_has_the_scope_of_the_first(settings, state, parser):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await hello(scope, receive, send)

    peer = Peer(app, http=parser, state=state, **settings)
    other = GET.replace(b"/ ", b"/%41?b ", 1)
    for data in (GET, GET, GET, other, other, other, GET):
        peer.send(data)
        await peer.idle()
    assert scopes[:3] == [scopes[0]] * 3
    assert scopes[3:6] == [scopes[3]] * 3
    assert scopes[6] == scopes[0]
    assert (scopes[5]["path"], scopes[5]["query_string"]) == (scopes[5]["root_path"] + "/A", b"b")


async def test_a_repeated_request_is_served_as_its_connection_then_is(parser):
    peer = Peer(hello, http=parser)
    for count in range(3):
        peer.send(GET)
        await peer.written_is(HELLO * (count + 1))
        await peer.idle()
    peer.service.draining = peer.service.has_deadlines = True
    peer.send(GET)
    last = HELLO.replace(b"\r\n\r\n", b"\r\n" + CLOSE + b"\r\n")
    await peer.written_is(HELLO * 3 + last)


async def test_without_lifespan_there_is_no_state():
    assert "state" not in await scope_of(GET)


# -- Context


async def test_every_request_has_a_context_of_its_own():
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("worker")
    seen = []

    async def app(scope, receive, send):
        seen.append(variable.get())
        variable.set("request")
        await asyncio.sleep(0)
        await hello(scope, receive, send)
        seen.append(variable.get())

    await exchange(app, GET * 3)
    assert sorted(seen) == ["request"] * 3 + ["worker"] * 3
    assert variable.get() == "worker"


async def test_contexts_can_be_empty():
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("worker")
    seen = []

    async def app(scope, receive, send):
        seen.append(variable.get())
        await hello(scope, receive, send)

    await exchange(app, GET, reset_contextvars=True)
    assert seen == ["unset"]


async def test_the_application_runs_in_a_task_of_its_own():
    tasks = []

    async def app(scope, receive, send):
        tasks.append(asyncio.current_task())
        async with asyncio.timeout(10):
            await hello(scope, receive, send)

    await exchange(app, GET * 2)
    assert tasks[0] is not tasks[1]
    assert None not in tasks
    assert asyncio.current_task() not in tasks


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks cannot start eagerly")
async def test_an_application_that_never_waits_has_answered_at_once(parser):
    peer = Peer(hello, http=parser)
    peer.send(GET)
    assert peer.transport.writes == [HELLO]


# -- Requests


async def test_a_request_without_body_is_told_once_and_then_the_disconnect(parser):
    messages = []

    async def app(scope, receive, send):
        messages.append(await receive())
        await hello(scope, receive, send)
        messages.append(await receive())
        messages.append(await receive())

    await exchange(app, http=parser)
    assert messages == [
        {"type": "http.request", "body": b"", "more_body": False},
        {"type": "http.disconnect"},
        {"type": "http.disconnect"},
    ]


@pytest.mark.parametrize("cut", [0, 1, 7])
@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 11\r\n\r\nhello world",
        b"Transfer-Encoding: chunked\r\n\r\n6\r\nhello \r\n5\r\nworld\r\n0\r\nx: y\r\n\r\n",
    ],
)
async def test_a_body_reaches_the_application_whole(rest, cut, parser):
    peer = Peer(echo, http=parser)
    data = b"POST /a?b HTTP/1.1\r\nHost: a\r\n" + rest
    peer.send(data * 2, cut=cut)
    await peer.written_is(response(b"POST /a?b hello world") * 2)


async def test_parts_of_a_body_are_told_as_they_come(parser):
    messages = []

    async def app(scope, receive, send):
        while not messages or messages[-1]["more_body"]:
            messages.append(await receive())
        await hello(scope, receive, send)

    peer = Peer(app, http=parser)
    peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n")
    for part in (b"ab", b"cd", b"ef"):
        count = len(messages)
        peer.send(part)
        await until(lambda count=count: len(messages) > count)
    assert [message["body"] for message in messages] == [b"ab", b"cd", b"ef"]
    assert [message["more_body"] for message in messages] == [True, True, False]


async def test_reading_pauses_while_the_application_does_not_receive(parser):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await echo(scope, receive, send)

    peer = Peer(app, http=parser)
    size = 3 * HIGH_WATER
    peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
    sent = 0
    while peer.transport.reading:
        peer.send(b"x" * 10_000)
        sent += 10_000
    assert HIGH_WATER < sent <= HIGH_WATER + 10_000
    go.set()
    await until(lambda: peer.transport.reading)
    peer.send(b"x" * (size - sent))
    await until(lambda: not peer.service.tasks)
    assert peer.written.endswith(b"x" * size)


async def test_two_can_wait_for_the_same_body(parser):
    async def app(scope, receive, send):
        async with asyncio.TaskGroup() as group:
            first = group.create_task(receive())
            second = group.create_task(receive())
            await asyncio.sleep(0)
            first.cancel()
        assert (await second)["body"] == b"abc"
        await hello(scope, receive, send)

    peer = Peer(app, http=parser)
    peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
    for _ in range(5):
        await asyncio.sleep(0)
    peer.send(b"abc")
    await peer.written_is(HELLO)


# -- 100 Continue (RFC 9110, section 10.1.1)

EXPECT = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_continue_is_sent_when_the_application_asks_for_the_body(parser):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await echo(scope, receive, send)

    peer = Peer(app, http=parser)
    peer.send(EXPECT)
    for _ in range(5):
        await asyncio.sleep(0)
    assert peer.written == b""
    go.set()
    await peer.written_is(CONTINUE)
    peer.send(b"abc")
    await peer.written_is(CONTINUE + response(b"POST /? abc"))
    assert not peer.transport.closed


async def test_continue_is_not_sent_if_the_body_is_here(parser):
    peer = await exchange(echo, EXPECT + b"abc", http=parser)
    assert peer.written == response(b"POST /? abc")


async def test_without_continue_the_connection_closes_for_the_client_may_send_or_not(parser):
    peer = await exchange(hello, EXPECT, http=parser)
    assert peer.written == response(b"hello", end=CLOSE)
    assert peer.transport.eof_written


async def test_continue_is_not_sent_after_the_response_has_begun(parser):
    async def app(scope, receive, send):
        await send(START)
        await send(body(b"a", more=True))
        assert (await receive())["body"] == b"abc"
        await send(body())

    peer = Peer(app, http=parser)
    peer.send(EXPECT)
    await until(lambda: peer.written)
    peer.send(b"abc")
    await peer.idle()
    assert b"100" not in peer.written


# -- Responses


async def test_a_small_response_is_one_write(parser):
    peer = await exchange(hello, http=parser)
    assert peer.transport.writes == [HELLO]


async def test_the_start_of_a_response_waits_for_the_body():
    go = asyncio.Event()

    async def app(scope, receive, send):
        await send(START)
        await go.wait()
        await send(body(b"a", more=True))
        await asyncio.sleep(0)
        await send(body(b"b"))

    peer = Peer(app)
    peer.send(GET)
    for _ in range(5):
        await asyncio.sleep(0)
    assert peer.written == b""
    go.set()
    await peer.idle()
    first, second = peer.transport.writes
    assert first.endswith(b"\r\n\r\n1\r\na\r\n")
    assert second == b"1\r\nb\r\n0\r\n\r\n"


async def test_parts_of_one_turn_of_the_loop_are_one_write():
    async def app(scope, receive, send):
        await send(START)
        for _ in range(3):
            await send(body(b"a", more=True))
        await send(body(b""))

    peer = await exchange(app)
    (all_at_once,) = peer.transport.writes
    assert all_at_once.endswith(b"\r\n\r\n" + 3 * b"1\r\na\r\n" + b"0\r\n\r\n")


async def test_parts_are_not_held_beyond_a_limit():
    part = b"a" * 1000

    async def app(scope, receive, send):
        await send(START)
        for _ in range(100):
            await send(body(part, more=True))
        await send(body(b""))

    peer = await exchange(app)
    assert peer.written.count(part) == 100
    assert 2 < len(peer.transport.writes) < 10
    assert max(map(len, peer.transport.writes)) < MAX_HELD + 2000


async def test_a_part_is_written_before_the_application_waits():
    never = asyncio.Event()

    async def app(scope, receive, send):
        await send(START)
        await send(body(b"a", more=True))
        await never.wait()

    peer = Peer(app)
    peer.send(GET)
    await until(lambda: peer.written.endswith(b"\r\n\r\n1\r\na\r\n"))
    peer.lose()


async def test_what_was_sent_before_an_error_reaches_the_client():
    async def app(scope, receive, send):
        await send(START)
        await send(body(b"a", more=True))
        raise RuntimeError("no more")

    peer = await exchange(app)
    assert peer.written.endswith(b"\r\n\r\n1\r\na\r\n")
    assert peer.transport.closed


async def test_a_body_can_be_any_kind_of_bytes():
    async def app(scope, receive, send):
        await send(START)
        await send(body(bytearray(b"a"), more=True))
        await send(body(memoryview(b"b"), more=True))
        await send(body(b"c"))

    assert (await exchange(app)).written.endswith(b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n")


async def test_sending_waits_while_the_client_does_not_read():
    sent = []

    async def app(scope, receive, send):
        await send(START)
        for number in range(3):
            await send(body(b"x", more=True))
            sent.append(number)
        await send(body())

    peer = Peer(app)
    peer.connection.pause_writing()
    peer.send(GET)
    for _ in range(10):
        await asyncio.sleep(0)
    assert sent == []
    peer.connection.resume_writing()
    await peer.idle()
    assert sent == [0, 1, 2]


async def test_an_application_that_waits_to_send_hears_that_the_client_has_left():
    outcome = []

    async def app(scope, receive, send):
        await send(START)
        try:
            while True:
                await send(body(b"x", more=True))
        except OSError as error:
            outcome.append(error)
            raise

    peer = Peer(app)
    peer.connection.pause_writing()
    peer.send(GET)
    for _ in range(3):
        await asyncio.sleep(0)
    peer.lose()
    await peer.idle()
    assert isinstance(outcome[0], ClientDisconnected)


async def test_a_large_response_is_written_whole():
    async def app(scope, receive, send):
        await send(START)
        await send(body(b"x" * 1_000_000))

    peer = await exchange(app)
    assert peer.written == response(b"x" * 1_000_000)


# -- Files


async def send_file(path, data=GET, headers=(), **options):
    async def app(scope, receive, send):
        await send({**START, "headers": headers})
        await send({"type": "http.response.pathsend", "path": str(path)})

    return await exchange(app, data, **options)


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 600_001])
async def test_a_file_is_sent_with_its_length(size, tmp_path):
    content = bytes(index % 251 for index in range(size))
    (tmp_path / "file").write_bytes(content)
    peer = await send_file(tmp_path / "file", GET * 2)
    await peer.written_is(response(content) * 2)


async def test_an_answer_to_head_has_the_length_of_the_file_only(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    peer = await send_file(tmp_path / "file", GET.replace(b"GET", b"HEAD"))
    assert peer.written == response(b"abc").removesuffix(b"abc")


async def test_a_file_that_is_not_there_is_an_error(tmp_path, caplog):
    peer = await send_file(tmp_path / "none")
    assert peer.written == ERROR
    assert "FileNotFoundError" in caplog.text


async def test_a_file_shorter_than_promised_is_an_error(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"abc")
    peer = await send_file(tmp_path / "file", headers=[(b"content-length", b"4")])
    assert peer.written == ERROR
    assert "promised Content-Length: 4 but sent 3" in caplog.text


async def test_a_file_waits_for_a_client_that_does_not_read(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 600_000)
    peer = Peer(lambda *_: None)

    async def app(scope, receive, send):
        await send(START)
        await send({"type": "http.response.pathsend", "path": str(tmp_path / "file")})

    peer.service.app = app
    peer.connection.pause_writing()
    peer.send(GET)
    await until(lambda: peer.written)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert len(peer.written) < 300_000
    peer.connection.resume_writing()
    await peer.idle()
    assert peer.written == response(b"x" * 600_000)


# -- Disconnects


async def test_an_application_hears_that_the_client_has_left(parser):
    messages = []

    async def app(scope, receive, send):
        messages.append(await receive())
        messages.append(await receive())
        with pytest.raises(OSError, match="disconnected"):
            await send(START)

    peer = Peer(app, http=parser)
    peer.send(GET)
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(messages) == 1
    peer.lose()
    await peer.idle()
    assert messages[1] == {"type": "http.disconnect"}
    assert peer.log.lines == ["10.0.0.7:52100 GET / 1.1 499 0"]


async def test_asking_over_and_over_whether_the_client_has_left_costs_nothing():
    waiters = []

    async def app(scope, receive, send):
        await receive()
        for _ in range(100):
            waiting = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
        waiters.extend(receive.__self__._waiters._futures)
        await hello(scope, receive, send)

    peer = await exchange(app)
    assert peer.written == HELLO
    assert len(waiters) == 1


async def test_a_body_that_breaks_off_is_a_disconnect(parser):
    messages = []

    async def app(scope, receive, send):
        messages.append(await receive())
        messages.append(await receive())

    peer = Peer(app, http=parser)
    peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
    peer.send_eof()
    await until(lambda: len(messages) == 2)
    assert messages == [
        {"type": "http.request", "body": b"abc", "more_body": True},
        {"type": "http.disconnect"},
    ]


async def test_a_half_closed_client_gets_its_answer(parser):
    peer = await exchange(
        echo, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", eof=True, http=parser
    )
    await until(lambda: peer.transport.closed)
    assert peer.written == response(b"POST /? abc")


async def test_a_half_closed_client_looks_like_one_that_has_left_and_is_answered_still(parser):
    messages = []

    async def app(scope, receive, send):
        messages.append(await receive())
        messages.append(await receive())
        await hello(scope, receive, send)

    peer = await exchange(app, eof=True, http=parser)
    assert [message["type"] for message in messages] == ["http.request", "http.disconnect"]
    assert peer.written == HELLO
    assert peer.transport.closed


async def test_errors_about_the_disconnect_are_not_the_applications(caplog):
    async def app(scope, receive, send):
        await receive()
        await receive()
        try:
            await send(START)
        except OSError:
            raise RuntimeError("as frameworks do") from None

    peer = Peer(app)
    peer.send(GET)
    for _ in range(3):
        await asyncio.sleep(0)
    peer.lose()
    await peer.idle()
    assert errors(caplog) == []
    assert peer.service.counters.errors_total == 0


async def test_other_errors_after_a_disconnect_are_reported(caplog):
    async def app(scope, receive, send):
        await receive()
        await receive()
        raise RuntimeError("oops")

    peer = Peer(app)
    peer.send(GET)
    for _ in range(3):
        await asyncio.sleep(0)
    peer.lose()
    await peer.idle()
    assert len(errors(caplog)) == 1
    assert "oops" in caplog.text
    assert peer.written == b""


# -- Errors


async def raise_at_once(scope, receive, send):
    raise RuntimeError("the secret of the application")


async def raise_after_start(scope, receive, send):
    await send({**START, "headers": [(b"x", b"secret")]})
    raise RuntimeError("the secret of the application")


@pytest.mark.parametrize("app", [raise_at_once, raise_after_start])
async def test_an_exception_is_one_record_and_a_500_that_reveals_nothing(app, parser, caplog):
    peer = await exchange(app, http=parser)
    assert peer.written == ERROR
    assert not peer.transport.closed
    [record] = errors(caplog)
    assert record.levelno == logging.ERROR
    assert record.getMessage() == (
        'exception in the application: "GET / HTTP/1.1" from 10.0.0.7:52100'
    )
    assert "the secret of the application" in caplog.text
    assert peer.service.counters.errors_total == 1
    assert peer.log.lines == ["10.0.0.7:52100 GET / 1.1 500 21"]


async def raise_in_the_middle(scope, receive, send):
    await asyncio.sleep(0)
    raise RuntimeError("the secret of the application")


@pytest.mark.parametrize("app", [raise_at_once, raise_in_the_middle])
async def test_an_exception_is_logged_in_the_context_of_its_request(app, caplog):
    variable = contextvars.ContextVar("variable", default="none")

    async def named(scope, receive, send):
        variable.set("request")
        await app(scope, receive, send)

    class Handler(logging.Handler):
        def emit(self, record):
            seen.append(variable.get())

    seen = []
    handler = Handler()
    logging.getLogger("asgictl.worker").addHandler(handler)
    await exchange(named)
    assert seen == ["request"]


class Deferred:
    """An application that is no coroutine function, like those of some middlewares."""

    def __init__(self, app):
        self.app = app

    def __call__(self, scope, receive, send):
        return self.app(scope, receive, send)


async def test_an_application_may_return_anything_that_can_be_awaited(parser):
    def later(scope, receive, send):
        return asyncio.ensure_future(hello(scope, receive, send))

    for app in (Deferred(hello), later, functools.partial(hello), lambda *three: hello(*three)):
        peer = await exchange(app, http=parser)
        assert peer.written == HELLO


@pytest.mark.parametrize(
    "app", [lambda: None, lambda *three: None, lambda *three: 1 / 0, functools.partial(hello, 1)]
)
async def test_an_application_that_cannot_be_called_is_a_500(app, parser, caplog):
    peer = await exchange(app, http=parser)
    assert peer.written == ERROR
    assert len(errors(caplog)) == 1
    assert peer.service.counters.in_flight == 0


async def test_an_exception_before_the_body_was_read_closes_the_connection(parser):
    peer = await exchange(
        raise_at_once, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", http=parser
    )
    assert peer.written == ERROR_AND_CLOSE
    assert peer.transport.eof_written


async def test_an_exception_in_the_middle_of_a_response_cuts_the_connection(parser, caplog):
    async def app(scope, receive, send):
        await send(START)
        await send(body(b"a", more=True))
        raise RuntimeError("oops")

    peer = await exchange(app, http=parser)
    assert peer.written.endswith(b"1\r\na\r\n")
    assert peer.transport.closed
    assert not peer.transport.aborted
    assert len(errors(caplog)) == 1
    assert peer.log.lines == ["10.0.0.7:52100 GET / 1.1 200 1"]


async def test_a_cut_that_looks_like_an_end_is_a_reset(parser):
    async def app(scope, receive, send):
        await send(START)
        await send(body(b"a", more=True))
        raise RuntimeError("oops")

    peer = await exchange(app, b"GET / HTTP/1.0\r\n\r\n", http=parser)
    assert peer.transport.aborted


async def test_an_exception_after_the_response_is_reported_only(parser, caplog):
    async def app(scope, receive, send):
        await hello(scope, receive, send)
        raise RuntimeError("oops")

    peer = await exchange(app, GET * 2, http=parser)
    assert peer.written == HELLO * 2
    assert len(errors(caplog)) == 2


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "without sending a response"),
        ([START], "without any http.response.body"),
    ],
)
async def test_returning_too_early_is_a_500(messages, sentence, parser, caplog):
    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    peer = await exchange(app, http=parser)
    assert peer.written == ERROR
    [record] = errors(caplog)
    assert sentence in record.getMessage()


async def test_returning_in_the_middle_of_a_response_cuts_the_connection(parser, caplog):
    async def app(scope, receive, send):
        await send(START)
        await send(body(b"a", more=True))

    peer = await exchange(app, http=parser)
    assert peer.transport.closed
    assert "more_body was true" in caplog.text


BROKEN = {
    "a body before the start": ([body()], "http.response.start comes first"),
    "two starts": ([START, START], "http.response.body or a file comes next"),
    "an unknown type": ([{"type": "http.nonsense"}], "'http.nonsense'"),
    "a bad header": ([{**START, "headers": [(b"x", b"a\r\nb")]}], "the value has a line end"),
    "a bad status": ([{**START, "status": 99}], "it must be an integer from 200"),
    "a body of text": ([START, body("text")], "it must be bytes"),
    "too long a body": (
        [{**START, "headers": [(b"content-length", b"1")]}, body(b"ab")],
        "promised Content-Length: 1 but sent at least 2",
    ),
    "too short a body": (
        [{**START, "headers": [(b"content-length", b"3")]}, body(b"ab")],
        "promised Content-Length: 3 but sent 2",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_promise_is_one_record_and_a_500(name, parser, caplog):
    messages, sentence = BROKEN[name]

    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    peer = await exchange(app, http=parser)
    assert peer.written == ERROR
    [record] = errors(caplog)
    assert sentence in record.getMessage()
    assert '"GET / HTTP/1.1" from 10.0.0.7:52100' in record.getMessage()
    assert record.exc_info
    assert peer.service.counters.errors_total == 1


@pytest.mark.parametrize("last", [body(b"bc"), body(b"")])
async def test_a_broken_length_in_the_middle_cuts_the_connection(last, parser, caplog):
    async def app(scope, receive, send):
        await send({**START, "headers": [(b"content-length", b"2")]})
        await send(body(b"a", more=True))
        await send(last)

    peer = await exchange(app, http=parser)
    assert peer.written.endswith(b"\r\n\r\na")
    assert peer.transport.closed
    assert len(errors(caplog)) == 1


async def test_a_message_after_the_end_is_reported_and_harms_nobody(parser, caplog):
    async def app(scope, receive, send):
        await hello(scope, receive, send)
        await send(body(b"more"))

    peer = await exchange(app, GET * 2, http=parser)
    assert peer.written == HELLO * 2
    assert "already complete" in caplog.text


async def test_an_application_that_is_no_coroutine_is_an_error(caplog):
    peer = await exchange(lambda scope, receive, send: None)
    assert peer.written == ERROR
    assert len(errors(caplog)) == 1


async def test_a_cancellation_from_inside_is_an_error(caplog):
    async def app(scope, receive, send):
        raise asyncio.CancelledError

    peer = await exchange(app)
    assert peer.written == ERROR
    assert len(errors(caplog)) == 1


# -- Refusals while the application runs


async def test_a_broken_body_is_refused_and_the_application_hears_a_disconnect(parser, caplog):
    messages = []

    async def app(scope, receive, send):
        messages.append(await receive())
        messages.append(await receive())
        await hello(scope, receive, send)

    peer = Peer(app, http=parser)
    peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    await until(lambda: messages)
    peer.send(b"nonsense\r\n")
    await peer.idle()
    assert messages[1] == {"type": "http.disconnect"}
    reason = b"the size of a chunk is not a number"
    assert peer.written == refusal(b"400 Bad Request", reason)
    assert errors(caplog) == []
    assert peer.log.lines == [f"10.0.0.7:52100 POST / 1.1 400 {len(reason)}"]


async def test_a_broken_body_cuts_a_response_that_has_begun(parser):
    async def app(scope, receive, send):
        await send(START)
        await send(body(b"a", more=True))
        assert (await receive())["type"] == "http.disconnect"

    peer = Peer(app, http=parser)
    peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    await until(lambda: peer.written)
    peer.send(b"nonsense\r\n")
    await peer.idle()
    assert peer.written.endswith(b"1\r\na\r\n")
    assert peer.transport.closed


async def test_chunks_beyond_the_limit_are_413(parser):
    peer = Peer(echo, http=parser, limit_request_body=3)
    peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    peer.send(b"3\r\nabc\r\n1\r\n")
    await peer.idle()
    phrase = b"413 Content Too Large" if sys.version_info >= (3, 13) else None
    assert peer.written.startswith(b"HTTP/1.1 413 " if phrase is None else b"HTTP/1.1 " + phrase)
    assert CLOSE in peer.written


# -- Abort


async def test_an_aborted_request_is_cancelled_and_answered_503(caplog):
    async def app(scope, receive, send):
        await asyncio.Event().wait()

    peer = Peer(app)
    peer.send(GET)
    peer.service.draining = True
    await until(lambda: peer.service.tasks)
    await asyncio.sleep(0)
    peer.connection.abort()
    await peer.idle()
    text = b"Service Unavailable"
    assert peer.written == response(
        text, KIND, b"retry-after: 5", status=b"503 Service Unavailable", end=CLOSE
    )
    [record] = errors(caplog)
    assert record.levelno == logging.WARNING
    assert '"GET / HTTP/1.1" from 10.0.0.7:52100' in record.getMessage()
    assert peer.transport.closed


async def test_requests_are_counted():
    go = asyncio.Event()

    async def app(scope, receive, send):
        await read_body(receive)
        await go.wait()
        await hello(scope, receive, send)

    peer = Peer(app)
    peer.send(GET)
    await until(lambda: peer.service.counters.in_flight == 1)
    go.set()
    await peer.idle()
    counters = peer.service.counters
    assert (counters.in_flight, counters.requests_total, counters.errors_total) == (0, 1, 0)
    assert DATE in peer.written
