"""The writer: status, headers and parts of the body in, bytes out."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgictl_worker.http import http1
from asgictl_worker.http.http1 import LARGE, DefaultFields, Writer
from asgictl_worker.http.request import Request
from asgictl_worker.http.response import BodyLengthMismatch, InvalidResponse
from asgictl_worker.settings import WorkerSettings

DATE = b"date: Sun, 22 Nov 2026 21:30:00 GMT\r\n"
START = b"HTTP/1.1 200 OK\r\n" + DATE + b"server: asgictl\r\n"


class Clock:
    date = DATE


def writer(**settings: Any) -> Writer:
    return Writer(Clock(), DefaultFields(WorkerSettings(**settings)))


def request(method: str = "GET", version: str = "1.1") -> Request:
    return Request(method, b"/", version, [(b"host", b"a")])


def joined(data: Any) -> bytes:
    return data if isinstance(data, bytes) else b"".join(data)


def write(
    *parts: bytes,
    to: Request | None = None,
    status: Any = 200,
    headers: Any = (),
    keep_alive: bool = True,
    by: Writer | None = None,
) -> bytes:
    """Return all bytes of a response."""
    by = by or writer()
    by.start(to or request(), status, headers, keep_alive)
    last = len(parts) - 1
    return b"".join(joined(by.body(part, index < last)) for index, part in enumerate(parts))


# -- Framing (RFC 9112, section 6)


def test_the_length_of_a_single_part_is_added():
    assert write(b"hello") == START + b"content-length: 5\r\n\r\nhello"


def test_an_empty_body_has_a_length():
    assert write(b"") == START + b"content-length: 0\r\n\r\n"


def test_a_declared_length_stays_where_the_application_put_it():
    headers = [(b"content-length", b"5"), (b"x", b"y")]
    assert write(b"hel", b"lo", headers=headers) == (
        START + b"content-length: 5\r\nx: y\r\n\r\nhello"
    )


def test_a_body_of_unknown_length_goes_out_in_chunks():
    assert write(b"hello", b"", b"world", b"") == (
        START + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n"
    )


def test_the_last_chunk_and_the_end_go_out_together():
    by = writer()
    by.start(request(), 200, (), True)
    by.body(b"a", True)
    assert by.body(b"b", False) == b"1\r\nb\r\n0\r\n\r\n"


def test_an_empty_first_part_sends_the_head():
    by = writer()
    by.start(request(), 200, (), True)
    assert not by.begun
    assert by.body(b"", True) == START + b"transfer-encoding: chunked\r\n\r\n"
    assert by.begun
    assert by.body(b"", True) == b""


def test_a_transfer_encoding_of_the_application_is_not_sent():
    headers = [(b"transfer-encoding", b"chunked")]
    assert write(b"hello", headers=headers) == START + b"content-length: 5\r\n\r\nhello"


def test_http_1_0_gets_the_end_of_the_connection_instead_of_chunks():
    by = writer()
    old = Request("GET", b"/", "1.0", [(b"connection", b"keep-alive")])
    assert write(b"a", b"b", to=old, by=by) == START + b"connection: close\r\n\r\nab"
    assert not by.keep_alive
    assert not by.ends_visibly


def test_http_1_0_is_told_that_the_connection_is_kept():
    old = Request("GET", b"/", "1.0", [(b"connection", b"keep-alive")])
    assert write(b"a", to=old) == (START + b"content-length: 1\r\nconnection: keep-alive\r\n\r\na")


def test_a_connection_that_is_not_kept_is_announced():
    assert write(b"a", keep_alive=False) == (
        START + b"content-length: 1\r\nconnection: close\r\n\r\na"
    )


@pytest.mark.parametrize("value", [b"close", b"Close"])
def test_the_application_can_close_the_connection(value):
    by = writer()
    data = write(b"a", headers=[(b"connection", value)], by=by)
    assert data == START + b"content-length: 1\r\nconnection: close\r\n\r\na"
    assert not by.keep_alive


def test_the_application_cannot_keep_the_connection():
    data = write(b"a", headers=[(b"connection", b"keep-alive")], keep_alive=False)
    assert data == START + b"content-length: 1\r\nconnection: close\r\n\r\na"


def test_other_connection_options_are_passed_on():
    data = write(b"", status=426, headers=[(b"connection", b"upgrade"), (b"upgrade", b"x")])
    assert b"connection: upgrade\r\nupgrade: x\r\n" in data


def test_an_answer_to_head_has_no_body():
    headers = [(b"content-length", b"5")]
    assert write(b"hello", to=request("HEAD"), headers=headers) == (
        START + b"content-length: 5\r\n\r\n"
    )
    assert write(b"hel", b"lo", to=request("HEAD")) == START + b"\r\n"


def test_no_content_has_neither_body_nor_length():
    data = write(b"x", status=204, headers=[(b"content-length", b"0"), (b"x", b"y")])
    assert data == b"HTTP/1.1 204 No Content\r\n" + DATE + b"server: asgictl\r\nx: y\r\n\r\n"


def test_not_modified_may_have_a_length_but_no_body():
    data = write(b"", status=304, headers=[(b"content-length", b"5")])
    assert data.endswith(b"server: asgictl\r\ncontent-length: 5\r\n\r\n")


def test_a_large_part_is_not_copied():
    by = writer()
    by.start(request(), 200, (), True)
    part = b"x" * LARGE
    head, body, _ = by.body(part, False)
    assert body is part
    assert head.endswith(b"\r\n\r\n")
    by.start(request(), 200, (), True)
    head, body, end = by.body(part, True)
    assert body is part
    assert (head[-7:], end) == (b"10000\r\n", b"\r\n")


def test_bytes_of_the_body_are_counted():
    by = writer()
    write(b"abc", b"de", b"", by=by)
    assert by.size == 5
    write(b"abc", to=request("HEAD"), by=by)
    assert by.size == 0


# -- Promises


@pytest.mark.parametrize("parts", [(b"abcd",), (b"ab", b"cd"), (b"abcd", b"")])
def test_more_than_promised_is_not_written(parts):
    with pytest.raises(BodyLengthMismatch, match=r"Content-Length: 3 but sent at least 4"):
        write(*parts, headers=[(b"content-length", b"3")])


@pytest.mark.parametrize("parts", [(b"ab",), (b"a", b"b"), (b"", b"")])
def test_less_than_promised_is_told_at_the_end(parts):
    with pytest.raises(BodyLengthMismatch, match=r"Content-Length: 3 but sent"):
        write(*parts, headers=[(b"content-length", b"3")])


def test_a_length_is_declared_unless_it_was():
    by = writer()
    by.start(request(), 200, (), True)
    by.declare(3)
    assert joined(by.body(b"abc", False)) == START + b"content-length: 3\r\n\r\nabc"
    by.start(request(), 200, [(b"content-length", b"4")], True)
    by.declare(3)
    assert joined(by.body(b"abcd", False)) == START + b"content-length: 4\r\n\r\nabcd"


# -- Status


def test_a_status_without_a_name_has_an_empty_phrase():
    assert write(b"", status=299).startswith(b"HTTP/1.1 299 \r\n")


@pytest.mark.parametrize("status", [100, 199, 0, -1, 1000, "200", None, 2.5])
def test_a_status_that_is_none_is_refused(status):
    with pytest.raises(InvalidResponse, match="status"):
        write(b"", status=status)


# -- Headers

BAD_HEADERS = {
    "a line end in a value": (b"x", b"a\r\nset-cookie: b"),
    "a line feed in a value": (b"x", b"a\nb"),
    "a carriage return in a value": (b"x", b"a\rb"),
    "a NUL in a value": (b"x", b"a\x00b"),
    "an empty name": (b"", b"a"),
    "a space in a name": (b"x y", b"a"),
    "a colon in a name": (b"x:", b"a"),
    "a line end in a name": (b"x\r\ny", b"a"),
    "text as a value": (b"x", "a"),
    "text as a name": ("x", b"a"),
    "a number as a value": (b"x", 1),
    "bytes that can change": (b"x", bytearray(b"a")),
    "a name that can change": (bytearray(b"x"), b"a"),
    "a value that is None": (b"x", None),
    "a length that is none": (b"content-length", b"1x"),
    "a negative length": (b"content-length", b"-1"),
    "one item": (b"x",),
    "three items": (b"x", b"y", b"z"),
    "no pair": 1,
    "a connection that is text": (b"connection", "close"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_bad_header_is_refused_and_named(name):
    by = writer()
    with pytest.raises(InvalidResponse) as caught:
        by.start(request(), 200, [(b"good", b"1"), BAD_HEADERS[name]], True)
    assert caught.value.value == BAD_HEADERS[name]
    assert by.begun


@pytest.mark.parametrize("headers", [None, 1])
def test_headers_that_are_no_list_are_refused(headers):
    with pytest.raises(InvalidResponse, match="list"):
        write(b"", headers=headers)


def test_two_lengths_are_refused():
    with pytest.raises(InvalidResponse, match="already"):
        write(b"a", headers=[(b"content-length", b"1"), (b"Content-Length", b"1")])


def test_bad_headers_of_a_generator_are_refused_all_the_same():
    with pytest.raises(InvalidResponse):
        write(b"a", headers=(item for item in [(b"x", b"a\nb")]))


def test_headers_can_be_any_iterable_of_pairs():
    expected = START + b"x: 1\r\nx: 2\r\ncontent-length: 0\r\n\r\n"
    assert write(b"", headers=[[b"x", b"1"], [b"x", b"2"]]) == expected
    assert write(b"", headers=(item for item in [(b"x", b"1"), (b"x", b"2")])) == expected


def test_names_keep_their_case():
    assert b"X-Custom: y\r\n" in write(b"", headers=[(b"X-Custom", b"y")])
    assert write(b"ab", headers=[(b"Content-Length", b"2")]).count(b"ontent-") == 1


def test_date_and_server_of_the_application_replace_ours():
    headers = [(b"date", b"yesterday"), (b"server", b"mine")]
    assert write(b"", headers=headers) == (
        b"HTTP/1.1 200 OK\r\ndate: yesterday\r\nserver: mine\r\ncontent-length: 0\r\n\r\n"
    )


def test_date_and_server_can_be_turned_off():
    data = write(b"", by=writer(date_header=False, server_header=False))
    assert data == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def test_headers_of_the_settings_are_on_every_response():
    by = writer(header=("X-Served-By: me", "Server: other"))
    expected = b"X-Served-By: me\r\nServer: other\r\n".lower()
    for _ in range(2):
        data = write(b"", by=by)
        assert expected in data.lower()
        assert b"asgictl" not in data


def test_names_are_remembered_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(http1, "_KINDS", dict(http1._KINDS))
    monkeypatch.setattr(http1, "_MAX_KINDS", len(http1._KINDS) + 2)
    for number in range(5):
        name = b"x-%d" % number
        assert name + b": y\r\n" in write(b"", headers=[(name, b"y")])
    assert len(http1._KINDS) == http1._MAX_KINDS


# -- What is known from the response before

HEADERS = st.lists(
    st.sampled_from(
        [
            (b"x", b"1"),
            (b"x", b"2"),
            [b"x", b"1"],
            (b"content-length", b"2"),
            (b"connection", b"close"),
            (b"transfer-encoding", b"chunked"),
            (b"date", b"now"),
            (b"server", b"s"),
        ]
    ),
    max_size=3,
).filter(lambda items: sum(item[0] == b"content-length" for item in items) < 2)
RESPONSES = st.tuples(
    st.sampled_from(["GET", "HEAD"]),
    st.sampled_from(["1.1", "1.0"]),
    st.sampled_from([200, 204, 299, 304, 404]),
    HEADERS,
    st.booleans(),
    st.sampled_from([(b"ab",), (b"a", b"b")]),
)


@given(st.lists(RESPONSES, min_size=2, max_size=4))
def test_a_response_does_not_depend_on_those_before_it(responses):
    by = writer()
    for method, version, status, headers, keep_alive, parts in responses:
        alone = writer()
        for each in (alone, by):
            each.start(request(method, version), status, headers, keep_alive)
        last = len(parts) - 1
        for index, part in enumerate(parts):
            assert by.body(part, index < last) == alone.body(part, index < last)
        assert (by.keep_alive, by.size, by.status) == (alone.keep_alive, alone.size, alone.status)


def test_headers_that_changed_in_place_are_noticed():
    by = writer()
    headers = [[b"x", b"1"]]
    write(b"", headers=headers, by=by)
    headers[0][1] = b"2"
    assert b"x: 2\r\n" in write(b"", headers=headers, by=by)


@pytest.mark.parametrize("before", [(), [(b"date", b"today")]])
def test_headers_that_are_none_are_never_taken_for_known(before):
    by = writer()
    by.start(request(), 200, before, True)
    by.body(b"", False)
    with pytest.raises(InvalidResponse, match="must be a list"):
        by.start(request(), 200, None, True)


def test_a_writer_that_forgot_writes_the_same():
    by = writer()
    outputs = []
    for _ in range(3):
        by.start(request(), 200, [(b"x", b"y")], True)
        outputs.append(by.body(b"a", False))
        by.forget()
    assert len(set(outputs)) == 1


def test_a_new_date_is_noticed():
    clock = Clock()
    by = Writer(clock, DefaultFields(WorkerSettings()))
    write(b"", headers=[(b"x", b"1")], by=by)
    clock.date = b"date: later\r\n"
    assert b"date: later\r\n" in write(b"", headers=[(b"x", b"1")], by=by)


def test_a_refused_response_leaves_nothing_behind():
    by = writer()
    write(b"ab", headers=[(b"x", b"1")], by=by)
    with pytest.raises(InvalidResponse):
        by.start(request(), 404, [(b"x", b"\n")], True)
    with pytest.raises(InvalidResponse):
        by.start(request(), 99, [(b"x", b"1")], True)
    assert write(b"ab", headers=[(b"x", b"1")], by=by) == (
        START + b"x: 1\r\ncontent-length: 2\r\n\r\nab"
    )
