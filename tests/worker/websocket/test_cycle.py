import asyncio
import contextvars
import logging
import struct

import pytest
from tests.worker.waiting import until
from tests.worker.websocket.conversation import Conversation, Script, every_pair, settle

from asgictl_worker.http.response import ClientDisconnected, InvalidResponse
from asgictl_worker.timers import NEVER
from asgictl_worker.websocket.cycle import (
    CLOSE_TIMEOUT,
    EARLY_BYTES,
    LAST_WORDS,
    MAX_QUEUED,
    TRANSITIONS,
    InvalidMessage,
    State,
    UnexpectedMessage,
)
from asgictl_worker.websocket.frames import MAX_INFLATED, InvalidClose
from asgictl_worker.websocket.handshake import ReservedHeader

LINE = 'WebSocket "GET /chat?room=1 HTTP/1.1" from 203.0.113.7:4711'


def accepted(script=None, **options):
    """Return a script whose WebSocket is open, and its conversation."""

    async def opened():
        app = script or Script()
        talk = Conversation(app, **options).start()
        assert await app.receive() == {"type": "websocket.connect"}
        await app.send("accept")
        await talk.until(lambda: talk.answer)
        assert talk.answer.status_code == 101
        return app, talk

    return opened()


async def echo(scope, receive, send):
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


# -- The handshake


async def test_accept_answers_101_and_opens_the_websocket():
    app, talk = await accepted(subprotocols=["soap", "chat"])
    assert talk.scope["subprotocols"] == ["soap", "chat"]
    assert app.scope["state"] == {"started": True}
    assert talk.answer.headers["Server"] == "asgictl"
    assert "Date" in talk.answer.headers
    assert talk.access.lines == [("203.0.113.7:4711", "GET /chat?room=1 HTTP/1.1", 101)]
    assert talk.service.counters.in_flight == 1
    assert talk.service.counters.requests_total == 1
    assert talk.service.connections == {talk.cycle}
    assert talk.transport.get_protocol() is talk.cycle


async def test_accept_carries_subprotocol_and_headers():
    app = Script()
    talk = Conversation(app, subprotocols=["chat"]).start()
    await app.receive()
    await app.send(
        "accept", subprotocol="chat", headers=[(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    )
    talk.read()
    assert talk.client.subprotocol == "chat"
    assert talk.answer.headers.get_all("Set-Cookie") == ["a=1", "b=2"]


async def test_a_subprotocol_that_was_not_offered_is_warned_about(caplog):
    app = Script()
    Conversation(app, subprotocols=["soap"]).start()
    await app.receive()
    await app.send("accept", subprotocol="chat")
    assert "'chat', which the client did not offer" in caplog.text
    assert LINE in caplog.text


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ([(b"x-a", b"1\r\nset-cookie: b")], InvalidResponse),
        ([(b"x-a\r\nx-b", b"1")], InvalidResponse),
        ([("x-a", "1")], InvalidResponse),
        ([(b"sec-websocket-accept", b"1")], ReservedHeader),
    ],
)
async def test_headers_that_cannot_be_sent_are_refused_and_another_try_is_possible(headers, error):
    app = Script()
    talk = Conversation(app).start()
    with pytest.raises(error):
        await app.send("accept", headers=headers)
    assert not talk.transport.written
    await app.send("accept")
    talk.read()
    assert talk.answer.status_code == 101


async def test_a_subprotocol_cannot_carry_a_line_end():
    app = Script()
    Conversation(app).start()
    with pytest.raises(InvalidResponse):
        await app.send("accept", subprotocol="a\r\nset-cookie: b")


async def test_close_before_accept_answers_403():
    app = Script()
    talk = Conversation(app).start()
    await app.send("close")
    assert (await app.receive())["type"] == "websocket.connect"
    assert await app.receive() == {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    app.do("return")
    await talk.ended()
    assert talk.answer.status_code == 403
    assert talk.answer.headers["Connection"] == "close"
    assert talk.access.lines[0][2] == 403
    assert talk.service.counters.errors_total == 0


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ((b"sec-websocket-version", b"8"), 426),
        ((b"sec-websocket-key", b"short"), 400),
        ((b"sec-websocket-extensions", b"foo="), 400),
    ],
)
async def test_a_bad_handshake_never_reaches_the_application(header, status):
    app = Script()
    talk = Conversation(app, headers=[header]).start()
    await talk.ended()
    assert talk.answer.status_code == status
    assert talk.answer.body
    if status == 426:
        assert talk.answer.headers["Sec-WebSocket-Version"] == "13"
    assert app.scope is None
    assert talk.access.lines[0][2] == status


async def test_the_application_may_answer_with_http_instead():
    app = Script()
    talk = Conversation(app).start()
    await app.send("http.response.start", status=418, headers=[(b"x-tea", b"pot")])
    assert not talk.transport.written, "the head waits for the first part of the body"
    await app.send("http.response.body", body=b"short ", more_body=True)
    await app.send("http.response.body", body=b"and stout")
    app.do("return")
    await talk.ended()
    assert talk.answer.status_code == 418
    assert talk.answer.headers["X-Tea"] == "pot"
    assert talk.answer.body == b"short and stout"
    assert talk.answer.headers["Connection"] == "close"
    assert talk.access.lines == [("203.0.113.7:4711", "GET /chat?room=1 HTTP/1.1", 418)]


async def test_large_parts_of_an_http_answer_arrive_whole():
    app = Script()
    talk = Conversation(app).start()
    await app.send("http.response.start", status=403)
    await app.send("http.response.body", body=b"x" * 200_000)
    talk.read()
    assert talk.answer.body == b"x" * 200_000


async def test_the_body_of_an_http_answer_must_be_bytes():
    app = Script()
    Conversation(app).start()
    await app.send("http.response.start", status=403)
    with pytest.raises(InvalidMessage, match="body of type str"):
        await app.send("http.response.body", body="no")


async def test_what_the_client_sends_before_the_answer_waits_for_it():
    talk = Conversation(echo)
    frame = b"\x81\x82\x00\x00\x00\x00hi"
    talk.start(early=frame)
    talk.cycle.data_received(frame[:3])
    talk.cycle.data_received(frame[3:])
    await talk.until(lambda: len(talk.received) == 2)
    assert talk.received == [("TEXT", b"hi")] * 2


async def test_more_than_a_little_before_the_answer_stays_in_the_kernel():
    app = Script()
    talk = Conversation(app).start()
    talk.cycle.data_received(b"\x82\xff" + (EARLY_BYTES * 2).to_bytes(8, "big") + bytes(4))
    talk.cycle.data_received(bytes(EARLY_BYTES))
    assert not talk.transport.reading
    await app.receive()
    await app.send("accept")
    assert talk.transport.reading
    talk.cycle.data_received(bytes(EARLY_BYTES))
    assert await app.receive() == {"type": "websocket.receive", "bytes": bytes(EARLY_BYTES * 2)}


# -- Messages


async def test_text_and_bytes_arrive_at_either_side():
    app, talk = await accepted()
    talk.send("Grüße")
    assert await app.receive() == {"type": "websocket.receive", "text": "Grüße"}
    talk.send(b"\x00\xff")
    assert await app.receive() == {"type": "websocket.receive", "bytes": b"\x00\xff"}
    await app.send("send", text="hello")
    await app.send("send", text="hello", bytes=None)
    await app.send("send", bytes=b"\x01", text=None)
    await app.send("send", bytes=bytearray(b"\x02"))
    await app.send("send", bytes=memoryview(b"\x03"))
    await app.send("send", text="")
    assert talk.read() == [
        ("TEXT", b"hello"),
        ("TEXT", b"hello"),
        ("BINARY", b"\x01"),
        ("BINARY", b"\x02"),
        ("BINARY", b"\x03"),
        ("TEXT", b""),
    ]


async def test_messages_are_compressed_when_that_was_agreed_on():
    app, talk = await accepted(offer="deflate")
    talk.send("x" * 5000)
    assert (await app.receive())["text"] == "x" * 5000
    await app.send("send", text="y" * 5000)
    assert len(talk.transport.written) < 100
    assert talk.read() == [("TEXT", b"y" * 5000)]


async def test_compression_can_be_switched_off():
    talk = await Conversation(echo, offer="deflate", ws_per_message_deflate=False).open()
    assert "Sec-WebSocket-Extensions" not in talk.answer.headers


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({}, "without bytes and without text"),
        ({"text": None, "bytes": None}, "without bytes and without text"),
        ({"text": b"x"}, "with text of type bytes"),
        ({"bytes": "x"}, "with bytes of type str"),
        ({"bytes": 5}, "with bytes of type int"),
    ],
)
async def test_a_message_without_content_is_refused_and_the_websocket_stays_open(parts, reason):
    app, talk = await accepted()
    with pytest.raises(InvalidMessage, match=reason):
        await app.send("send", **parts)
    await app.send("send", text="still open")
    assert talk.read() == [("TEXT", b"still open")]


async def test_pings_are_answered():
    _, talk = await accepted()
    talk.client.send_ping(b"there?")
    talk.deliver()
    assert talk.read() == [("PONG", b"there?")]


def reach(state):
    """Return the messages that lead to a state."""
    return {
        State.CONNECTING: [],
        State.DENYING: [{"type": "websocket.http.response.start", "status": 403}],
        State.OPEN: [{"type": "websocket.accept"}],
        State.CLOSING: [{"type": "websocket.accept"}, {"type": "websocket.close"}],
        State.CLOSED: [{"type": "websocket.close"}],
    }[state]


PARTS = {"websocket.send": {"text": "x"}, "websocket.http.response.start": {"status": 403}}
KINDS = sorted({kind for kinds in TRANSITIONS.values() for kind in kinds})


@pytest.mark.parametrize(("state", "kind"), every_pair(State, [*KINDS, "websocket.unknown"]))
async def test_send_takes_exactly_what_the_table_allows(state, kind):
    app = Script()
    talk = Conversation(app).start()
    for message in reach(state):
        await app.do(message)
    assert talk.cycle._state is state
    message = {"type": kind, **PARTS.get(kind, {}), "more_body": True}
    if kind in TRANSITIONS[state]:
        await app.do(message)
        assert talk.cycle._state is TRANSITIONS[state][kind]
    else:
        with pytest.raises(UnexpectedMessage, match=kind) as caught:
            await app.do(message)
        assert all(expected in str(caught.value) for expected in TRANSITIONS[state])
        assert talk.cycle._state is state


# -- The end


@pytest.mark.parametrize(
    ("code", "reason", "reported"),
    [(1000, "", 1000), (1001, "gone", 1001), (4321, "own €", 4321), (None, "", 1005)],
)
async def test_a_close_of_the_client_is_answered_and_reported(code, reason, reported):
    app, talk = await accepted()
    talk.close(code, reason)
    expected = {"type": "websocket.disconnect", "code": reported, "reason": reason}
    assert await app.receive() == expected
    assert await app.receive() == expected, "and nothing else, ever"
    with pytest.raises(ClientDisconnected) as caught:
        await app.send("send", text="x")
    assert isinstance(caught.value, OSError)
    app.do("return")
    await talk.ended()
    assert talk.closed == (reported, "")
    assert not talk.transport.aborted


@pytest.mark.parametrize(
    "ending", [b"\x88\x82\x00\x00\x00\x00\x0f\xa0", b"\x83\x80\x00\x00\x00\x00"]
)
async def test_messages_before_the_end_can_be_answered_before_it(ending):
    app, talk = await accepted()
    code = 4000 if ending[0] == 0x88 else 1002
    hello = b"\x81\x82\x00\x00\x00\x00hi"
    talk.cycle.data_received(hello + hello + ending)
    for _ in range(2):
        assert (await app.receive())["text"] == "hi"
        await app.send("send", text="hello")
    talk.read()
    assert talk.closed is None
    assert (await app.receive())["code"] == code
    assert [kind for kind, _ in talk.read()] == ["TEXT", "TEXT", "CLOSE"]
    assert talk.closed[0] == code
    with pytest.raises(ClientDisconnected):
        await app.send("send", text="too late")


async def test_an_application_that_does_not_receive_cannot_put_the_end_off():
    app, talk = await accepted()
    talk.send("unheard")
    talk.close(4000)
    await app.send("send", text="still allowed")
    talk.tick(LAST_WORDS + 1)
    talk.read()
    assert talk.closed == (4000, "")
    with pytest.raises(ClientDisconnected):
        await app.send("send", text="too late")


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ("return", 4000),
        (ZeroDivisionError("oops"), 1011),
        ({"type": "websocket.close", "code": 4001}, 4001),
    ],
)
async def test_whatever_the_application_does_last_completes_the_close_of_the_client(last, code):
    app, talk = await accepted()
    talk.send("unheard")
    talk.close(4000)
    app.do(last)
    app.do("return")
    await talk.ended()
    assert talk.closed == (code, "")
    assert not talk.transport.aborted


async def test_draining_completes_the_close_of_the_client():
    _, talk = await accepted()
    talk.send("unheard")
    talk.close(4000)
    talk.cycle.drain(0.0, 0.0)
    assert talk.transport.closing


async def test_a_connection_that_is_lost_reports_1006():
    app, talk = await accepted()
    waiting = app.do("receive")
    talk.transport.lose(ConnectionResetError())
    assert await waiting == {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    app.do("return")
    await talk.ended()


async def test_a_client_that_leaves_before_the_answer_reports_1006():
    app = Script()
    talk = Conversation(app).start()
    talk.transport.lose()
    await app.receive()
    assert (await app.receive())["code"] == 1006
    with pytest.raises(ClientDisconnected):
        await app.send("accept")
    app.do("return")
    await talk.ended()
    assert talk.access.lines[0][2] == 499


async def test_end_of_file_without_a_close_lets_the_transport_close():
    _, talk = await accepted()
    assert not talk.cycle.eof_received()


@pytest.mark.parametrize(
    ("message", "closed"),
    [
        ({}, (1000, "")),
        ({"code": 4000, "reason": "enough"}, (4000, "enough")),
        ({"code": None, "reason": None}, (1000, "")),
    ],
)
async def test_a_close_of_the_application_waits_for_that_of_the_client(message, closed):
    app, talk = await accepted()
    talk.send("too late to be read")
    await app.send("close", **message)
    talk.read()
    assert talk.closed == closed
    assert await app.receive() == {
        "type": "websocket.disconnect",
        "code": closed[0],
        "reason": closed[1],
    }
    with pytest.raises(UnexpectedMessage, match="after closing"):
        await app.send("send", text="x")
    app.do("return")
    await until(lambda: not talk.service.tasks)
    assert not talk.transport.closing
    talk.deliver()  # the client's library has answered
    await talk.ended()
    assert not talk.transport.aborted


async def test_messages_after_the_close_of_the_application_are_dropped():
    app, talk = await accepted(ws_max_queue=1)
    talk.send("1")
    assert not talk.transport.reading
    await app.send("close")
    assert talk.transport.reading, "or the client's close would never be seen"
    talk.send("2")
    assert (await app.receive())["type"] == "websocket.disconnect"


async def test_a_client_that_does_not_answer_a_close_is_cut():
    app, talk = await accepted()
    await app.send("close")
    talk.tick(CLOSE_TIMEOUT - 0.1)
    assert not talk.transport.aborted
    talk.tick(1)
    assert talk.transport.aborted


async def test_a_client_that_does_not_read_the_end_is_cut():
    _, talk = await accepted()
    talk.transport.unsent = 100
    talk.close()
    assert talk.transport.closing
    assert not talk.transport.lost
    talk.tick(CLOSE_TIMEOUT + 1)
    assert talk.transport.aborted


@pytest.mark.parametrize("code", [1005, 3000, 4999])
async def test_the_application_may_choose_the_code(code):
    app, talk = await accepted()
    await app.send("close", code=code)
    talk.read()
    assert talk.closed[0] == code


@pytest.mark.parametrize("code", [0, 999, 1006, 2000, 5000, "1000"])
async def test_a_code_that_cannot_travel_is_refused(code):
    app, talk = await accepted()
    with pytest.raises(InvalidClose):
        await app.send("close", code=code)
    await app.send("send", text="still open")
    assert talk.read() == [("TEXT", b"still open")]


@pytest.mark.parametrize(
    ("data", "code", "half_closable"),
    [
        (b"\x83\x80\x00\x00\x00\x00", 1002, True),
        (b"\x81\x81\x00\x00\x00\x00\xff", 1007, True),
        (b"\x82\xff\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00", 1009, True),
        (b"\x83\x80\x00\x00\x00\x00", 1002, False),
    ],
)
async def test_a_client_that_breaks_a_rule_is_told_which(data, code, half_closable):
    app, talk = await accepted()
    talk.transport.half_closable = half_closable
    talk.cycle.data_received(data)
    talk.read()
    assert talk.closed[0] == code
    assert talk.closed[1]
    received = await app.receive()
    assert (received["code"], received["reason"]) == talk.closed
    app.do("return")
    if half_closable:
        # To close now could reset the connection before the client has read the code.
        assert talk.transport.eof_written
        talk.cycle.data_received(data)
        assert not talk.transport.closing
        talk.transport.lose()
    await talk.ended()
    assert talk.service.counters.errors_total == 0


async def test_a_client_that_breaks_a_rule_while_closing_is_not_waited_for():
    app, talk = await accepted()
    await app.send("close")
    talk.cycle.data_received(b"\x83\x80\x00\x00\x00\x00")
    assert talk.transport.closing


async def test_a_message_that_is_too_long_is_refused():
    app, talk = await accepted(ws_max_size=10)
    talk.send("x" * 11)
    assert (await app.receive())["code"] == 1009


# -- The application fails, or just returns


async def test_an_exception_closes_with_1011_and_is_logged_once(caplog):
    app, talk = await accepted()
    app.do(ZeroDivisionError("oops"))
    await talk.until(lambda: talk.closed)
    assert talk.closed == (1011, "")
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage() == f"exception in the application: {LINE}"
    assert "oops" in caplog.text
    talk.deliver()
    await talk.ended()
    assert talk.service.counters.errors_total == 1


async def test_an_exception_before_the_answer_is_a_500(caplog):
    app = Script()
    talk = Conversation(app).start()
    app.do(ZeroDivisionError("oops"))
    await talk.ended()
    assert talk.answer.status_code == 500
    assert talk.answer.body == b"Internal Server Error"
    assert talk.access.lines[0][2] == 500
    assert caplog.text.count("oops") == 1


async def test_a_denial_that_is_cut_is_logged_with_the_status_that_the_client_got(caplog):
    app = Script()
    talk = Conversation(app).start()
    await app.send("http.response.start", status=418)
    await app.send("http.response.body", body=b"short", more_body=True)
    app.do(ZeroDivisionError("oops"))
    await talk.ended()
    assert [line[2] for line in talk.access.lines] == [418]
    assert caplog.text.count("oops") == 1


async def test_an_exception_before_the_body_of_a_denial_is_a_500():
    app = Script()
    talk = Conversation(app).start()
    await app.send("http.response.start", status=418)
    app.do(ZeroDivisionError("oops"))
    await talk.ended()
    assert talk.answer.status_code == 500


async def test_an_exception_in_a_denial_cuts_it():
    app = Script()
    talk = Conversation(app).start()
    await app.send("http.response.start", status=418)
    await app.send("http.response.body", body=b"x", more_body=True)
    app.do(ZeroDivisionError("oops"))
    await until(lambda: talk.transport.lost)
    assert talk.transport.aborted
    assert bytes(talk.transport.written).endswith(b"\r\n1\r\nx\r\n")


async def test_an_application_that_returns_closes_with_1000():
    app, talk = await accepted()
    app.do("return")
    await talk.until(lambda: talk.closed)
    assert talk.closed == (1000, "")
    talk.deliver()
    await talk.ended()
    assert talk.service.counters.errors_total == 0


@pytest.mark.parametrize("begun", [False, True])
async def test_an_application_that_returns_without_an_answer_is_a_500(begun, caplog):
    app = Script()
    talk = Conversation(app).start()
    if begun:
        await app.send("http.response.start", status=418)
    app.do("return")
    await talk.ended()
    assert talk.answer.status_code == 500
    assert "the application returned" in caplog.text
    assert talk.service.counters.errors_total == 1


async def translate(receive, send):
    while True:
        await receive()
        try:
            await send({"type": "websocket.send", "text": "x"})
        except OSError as error:
            raise RuntimeError("as frameworks do") from error


async def in_a_group(receive, send):
    async with asyncio.TaskGroup() as group:
        group.create_task(translate(receive, send))


@pytest.mark.parametrize("go_on", [translate, in_a_group])
async def test_an_application_that_lets_the_disconnect_pass_is_not_an_error(go_on, caplog):
    async def careless(scope, receive, send):
        await send({"type": "websocket.accept"})
        await go_on(receive, send)

    talk = await Conversation(careless).open()
    await asyncio.sleep(0)
    talk.close()
    await talk.ended()
    assert talk.service.counters.errors_total == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_an_exception_after_the_disconnect_is_logged(caplog):
    app, talk = await accepted()
    talk.close()
    app.do(ZeroDivisionError("oops"))
    await talk.ended()
    assert "oops" in caplog.text
    assert talk.service.counters.errors_total == 1


async def test_a_message_out_of_order_that_nobody_catches_is_logged_with_its_rule(caplog):
    async def eager(scope, receive, send):
        await send({"type": "websocket.send", "text": "x"})

    talk = Conversation(eager).start()
    await talk.ended()
    assert talk.answer.status_code == 500
    (record,) = caplog.records
    assert record.getMessage() == (
        "the application sent 'websocket.send' before accepting or closing the WebSocket, where "
        "websocket.accept or websocket.close or websocket.http.response.start can come: " + LINE
    )


# -- Back-pressure


async def test_reading_pauses_while_the_queue_is_full_and_goes_on_when_it_is_half_empty():
    app, talk = await accepted(ws_max_queue=4)
    for number in range(3):
        talk.send(str(number))
    assert talk.transport.reading
    talk.send("3")
    assert not talk.transport.reading
    assert (await app.receive())["text"] == "0"
    assert not talk.transport.reading
    assert (await app.receive())["text"] == "1"
    assert talk.transport.reading
    assert [(await app.receive())["text"] for _ in range(2)] == ["2", "3"]


async def test_a_queue_of_one_works():
    app, talk = await accepted(ws_max_queue=1)
    for text in "ab":
        talk.send(text)
        assert not talk.transport.reading
        assert (await app.receive())["text"] == text
        assert talk.transport.reading


async def test_one_large_message_fills_the_queue():
    app, talk = await accepted()
    talk.send(bytes(MAX_QUEUED))
    assert not talk.transport.reading
    await app.receive()
    assert talk.transport.reading


async def test_a_queue_is_full_when_its_messages_are_long_together():
    app, talk = await accepted()
    for _ in range(3):
        talk.send(bytes(MAX_QUEUED // 4))
        assert talk.transport.reading
    talk.send("x" * (MAX_QUEUED // 4))
    assert not talk.transport.reading
    await app.receive()
    assert not talk.transport.reading
    await app.receive()
    assert talk.transport.reading


async def test_what_inflates_a_lot_is_inflated_as_the_application_takes_it():
    app, talk = await accepted(offer="deflate", ws_max_queue=32)
    size = MAX_INFLATED // 2
    for _ in range(9):
        talk.client.send_binary(bytes(size))
    talk.client.send_text(b"last")
    data = b"".join(talk.client.data_to_send())
    # The beginning of another message comes along, and its rest later.
    talk.client.send_text(b"and one more")
    more = b"".join(talk.client.data_to_send())
    talk.cycle.data_received(data + more[:3])
    for _ in range(9):
        assert not talk.transport.reading
        assert len(talk.cycle._queue) <= 2
        assert len((await app.receive())["bytes"]) == size
    assert (await app.receive())["text"] == "last"
    assert talk.transport.reading
    talk.cycle.data_received(more[3:])
    assert (await app.receive())["text"] == "and one more"


async def test_a_message_in_progress_is_forgotten_with_its_connection():
    app, talk = await accepted()
    first_half = frame_of(b"x" * 500_000)[:400_000]
    talk.cycle.data_received(first_half)
    assert sum(map(len, talk.cycle._frames._parts)) > 390_000
    talk.transport.lose()
    assert talk.cycle._frames._parts == []
    assert (await app.receive())["code"] == 1006


def frame_of(payload):
    """Return a binary message, whose mask changes nothing."""
    return struct.pack("!BBQ4x", 0x82, 0x80 | 127, len(payload)) + payload


async def test_a_client_that_reads_nothing_is_cut():
    app, talk = await accepted(timeout_write=10.0, ws_ping_interval=None)
    talk.transport.unsent = 100_000
    talk.cycle.pause_writing()
    sending = app.do({"type": "websocket.send", "text": "x"})
    talk.tick(9.0)
    # It still sends, so it is there; but nobody can talk to it.
    talk.send("hello")
    assert not talk.transport.aborted
    talk.tick(5.0)
    assert talk.transport.aborted
    with pytest.raises(ClientDisconnected):
        await sending


async def test_a_client_that_reads_slowly_is_waited_for():
    _, talk = await accepted(timeout_write=10.0)
    talk.cycle.pause_writing()
    for left in range(100_000, 0, -10_000):
        talk.transport.unsent = left
        talk.tick(8.0)
    assert not talk.transport.closing
    talk.cycle.resume_writing()
    talk.tick(15.0)
    assert not talk.transport.closing


async def test_a_refused_client_that_reads_nothing_of_its_answer_is_cut():
    app = Script()
    talk = Conversation(app, timeout_write=10.0).start()
    await app.receive()
    await app.send("http.response.start", status=403)
    talk.transport.unsent = 100_000
    talk.cycle.pause_writing()
    sending = app.do({"type": "websocket.http.response.body", "body": b"x", "more_body": True})
    talk.tick(14.0)
    assert talk.transport.aborted
    with pytest.raises(ClientDisconnected):
        await sending


async def test_send_waits_while_the_client_does_not_read():
    app, talk = await accepted()
    talk.cycle.pause_writing()
    sending = app.do({"type": "websocket.send", "text": "x"})
    await settle()
    assert not sending.done()
    assert talk.read() == []
    talk.cycle.resume_writing()
    await sending
    assert talk.read() == [("TEXT", b"x")]


async def test_send_does_not_wait_for_a_client_that_is_gone():
    app, talk = await accepted()
    talk.cycle.pause_writing()
    sending = app.do({"type": "websocket.send", "text": "x"})
    await settle()
    talk.transport.lose()
    with pytest.raises(ClientDisconnected):
        await sending


async def test_a_client_that_does_not_read_is_owed_one_pong_at_most():
    _, talk = await accepted()
    talk.cycle.pause_writing()
    for number in range(1000):
        talk.client.send_ping(b"%d" % number)
    talk.deliver()
    assert not talk.transport.written
    talk.cycle.resume_writing()
    assert talk.read() == [("PONG", b"999")]


async def test_a_receive_that_was_cancelled_loses_no_message():
    results = asyncio.Queue()

    async def impatient(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        for _ in range(50):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(receive(), 0.0001)
        results.put_nowait("ready")
        results.put_nowait(await receive())

    talk = await Conversation(impatient).open()
    await results.get()
    assert len(talk.cycle._readers._futures) <= 2
    talk.send("x")
    assert (await results.get())["text"] == "x"


async def test_two_that_receive_get_a_message_each():
    results = asyncio.Queue()

    async def twofold(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})

        async def one():
            results.put_nowait(await receive())

        await asyncio.gather(one(), one())

    talk = await Conversation(twofold).open()
    await settle()
    talk.send("a")
    assert (await results.get())["text"] == "a"
    talk.send("b")
    assert (await results.get())["text"] == "b"


# -- Time


async def test_a_client_that_answers_pings_stays():
    _, talk = await accepted(ws_ping_interval=20, ws_ping_timeout=20)
    for _ in range(10):
        talk.tick(20)
        talk.read()
        talk.deliver()
    pings = [payload for kind, payload in talk.received if kind == "PING"]
    assert 9 <= len(pings) <= 10
    assert talk.closed is None


async def test_a_client_that_is_silent_is_closed_with_1011_and_reported_as_1006():
    app, talk = await accepted(ws_ping_interval=20, ws_ping_timeout=5)
    talk.tick(24)
    assert ("PING", b"asgictl") in talk.read()
    assert talk.closed is None
    talk.tick(2)
    talk.read()
    assert talk.closed == (1011, "no answer to a ping")
    assert await app.receive() == {
        "type": "websocket.disconnect",
        "code": 1006,
        "reason": "no answer to a ping",
    }
    talk.tick(CLOSE_TIMEOUT + 1)
    assert talk.transport.aborted
    app.do("return")
    await talk.ended()


async def test_a_long_message_on_its_way_is_a_sign_of_life():
    _, talk = await accepted(ws_ping_interval=20, ws_ping_timeout=5)
    talk.cycle.data_received(b"\x82\xff" + (100_000).to_bytes(8, "big") + bytes(4))
    for _ in range(100):
        talk.tick(1)
        talk.cycle.data_received(b"x")
    assert talk.read()
    assert talk.closed is None


async def test_a_client_that_reads_slowly_is_alive():
    _, talk = await accepted(ws_ping_interval=20, ws_ping_timeout=5)
    talk.cycle.pause_writing()
    for unsent in range(1000, 900, -1):
        talk.transport.unsent = unsent
        talk.tick(1)
    assert talk.read()
    assert talk.closed is None


async def test_a_client_that_is_not_listened_to_is_not_judged():
    _, talk = await accepted(ws_max_queue=1, ws_ping_interval=20, ws_ping_timeout=5)
    talk.send("x")
    assert not talk.transport.reading
    talk.tick(300)
    talk.read()
    assert talk.closed is None


@pytest.mark.parametrize("interval", [None, 0])
async def test_pings_can_be_switched_off(interval):
    _, talk = await accepted(ws_ping_interval=interval)
    assert talk.cycle.deadline == NEVER


@pytest.mark.parametrize("patience", [None, 0])
async def test_without_a_timeout_pings_go_on_for_ever(patience):
    _, talk = await accepted(ws_ping_interval=1, ws_ping_timeout=patience)
    talk.tick(1000)
    assert len(talk.read()) > 700
    assert talk.closed is None


# -- Drain and abort


async def test_draining_closes_with_1012_and_lets_the_application_finish():
    app, talk = await accepted()
    talk.send("still to be read")
    talk.service.draining = True
    talk.cycle.drain(0.0, 0.0)
    talk.read()
    assert talk.closed == (1012, "")
    assert (await app.receive())["text"] == "still to be read"
    assert (await app.receive())["code"] == 1012
    with pytest.raises(ClientDisconnected):
        await app.send("send", text="x")
    app.do("return")
    talk.deliver()
    await talk.ended()


async def test_draining_waits_for_the_turn_of_each_client():
    _, talk = await accepted(ws_ping_interval=1.0)
    now = talk.service.ticker.now
    talk.cycle.drain(now, now + 3.0)
    talk.tick(2.8)
    talk.read()
    assert not talk.closed
    talk.tick(0.4)
    talk.read()
    assert talk.closed == (1012, "")


async def test_draining_before_the_answer_closes_after_it():
    app = Script()
    talk = Conversation(app).start()
    talk.service.draining = True
    talk.cycle.drain(0.0, 0.0)
    await app.receive()
    await app.send("accept")
    talk.read()
    assert talk.answer.status_code == 101
    assert talk.closed == (1012, "")
    assert (await app.receive())["code"] == 1012


async def test_draining_twice_says_it_once():
    _, talk = await accepted()
    talk.cycle.drain(0.0, 0.0)
    talk.cycle.drain(0.0, 0.0)
    talk.read()
    assert talk.closed == (1012, "")


@pytest.mark.parametrize("drained", [False, True])
async def test_abort_cancels_the_application_and_closes(drained, caplog):
    _, talk = await accepted()
    if drained:
        talk.cycle.drain(0.0, 0.0)
    talk.cycle.abort()
    await talk.ended()
    assert talk.closed == (1012, "")
    assert f"out of time, cancelled {LINE}" in caplog.text
    assert talk.service.counters.errors_total == 0


async def test_abort_before_the_first_step_of_the_application_is_a_503():
    talk = Conversation(Script()).start()
    talk.cycle.abort()
    await talk.ended()
    assert talk.answer.status_code == 503


async def test_abort_before_the_answer_is_a_503():
    talk = Conversation(Script()).start()
    await asyncio.sleep(0)
    talk.cycle.abort()
    await talk.ended()
    assert talk.answer.status_code == 503


async def test_abort_after_the_application_has_ended_cuts():
    app, talk = await accepted()
    app.do("return")
    await until(lambda: not talk.service.tasks)
    talk.cycle.abort()
    await talk.ended()
    assert talk.transport.aborted


async def test_an_application_that_cancels_itself_is_an_error(caplog):
    async def cancels(scope, receive, send):
        await send({"type": "websocket.accept"})
        raise asyncio.CancelledError

    talk = await Conversation(cancels).open()
    await talk.until(lambda: talk.closed)
    assert talk.closed == (1011, "")
    assert talk.service.counters.errors_total == 1


async def test_what_asks_the_program_to_exit_is_passed_on():
    async def exits(scope, receive, send):
        raise KeyboardInterrupt

    talk = Conversation(exits)
    with pytest.raises(KeyboardInterrupt):
        await talk.cycle._run(talk.service)


# -- Context


async def test_context_variables_do_not_leak_from_one_websocket_to_the_next():
    variable = contextvars.ContextVar("variable", default="clean")
    seen = []

    async def app(scope, receive, send):
        seen.append(variable.get())
        variable.set("dirty")
        await send({"type": "websocket.accept"})

    await Conversation(app).open()
    await Conversation(app).open()
    assert seen == ["clean", "clean"]
