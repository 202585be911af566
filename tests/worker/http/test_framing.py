"""Both parsers: which heads and bodies they take, which they refuse, and that they agree."""

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.worker.http.parsing import PARSERS, Sink, cut, parse

from asgictl_worker.http import framing
from asgictl_worker.settings import WorkerSettings


def status_of(parser: str, data: bytes, **settings: Any) -> int | None:
    """Return the status of a refusal, however the bytes are cut; None if there is none."""
    whole = parse(parser, [data], **settings)
    for size in (1, 2, 7):
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        assert parse(parser, pieces, **settings) == whole
    return whole[-1][1] if whole and whole[-1][0] == "refused" else None


HEAD = b"POST / HTTP/1.1\r\nhost: a\r\n"

GOOD_HEADS = {
    "a target with everything": b"GET /a%20b/~c;d=1?e=/?&f=%zz HTTP/1.1\r\nhost: a\r\n\r\n",
    "a URL": b"GET http://b:80/c?d HTTP/1.1\r\nhost: b:80\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
    "an empty host": b"GET / HTTP/1.1\r\nhost:\r\n\r\n",
    "a host with an empty port": b"GET / HTTP/1.1\r\nhost: a:\r\n\r\n",
    "a host of a name service": b"GET / HTTP/1.1\r\nhost: my_app.internal:80\r\n\r\n",
    "an IPv6 host": b"GET / HTTP/1.1\r\nhost: [::1]:8000\r\n\r\n",
    "no host in HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "white space around a value": b"GET / HTTP/1.1\r\nhost:\t a \t\r\nx:  b c\t\r\n\r\n",
    "an empty value": b"GET / HTTP/1.1\r\nhost: a\r\nx:\r\ny: \r\n\r\n",
    "obsolete text": b"GET / HTTP/1.1\r\nhost: a\r\nx: \xe4\xf6\xfc\r\n\r\n",
    "capitals": b"GET / HTTP/1.1\r\nHOST: a\r\nX-Y: z\r\n\r\n",
    "the same header twice": b"GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\nx: 2\r\n\r\n",
    "an empty line before it": b"\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "zero bytes": HEAD + b"content-length: 0\r\n\r\n",
    "an odd method": b"M-SEARCH / HTTP/1.1\r\nhost: a\r\n\r\n",
    "an upgrade": b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "a body": HEAD + b"content-length: 3\r\n\r\nabc",
    "chunks": HEAD
    + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0A;x=y\r\n0123456789\r\n0\r\n\r\n",
    "chunked in capitals": HEAD + b"transfer-encoding: CHUNKED\r\n\r\n0\r\n\r\n",
    "trailers": HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\nx: y\r\nz:\r\n\r\n",
}

BAD_HEADS = {
    # RFC 9112, section 2.2: lines end with CRLF, and nothing else does.
    "bare line feeds": (400, b"GET / HTTP/1.1\nhost: a\n\r\n\r\n"),
    "a bare line feed in a value": (400, b"GET / HTTP/1.1\r\nhost: a\r\nx: a\nb: c\r\n\r\n"),
    "a bare carriage return": (400, b"GET / HTTP/1.1\r\nhost: a\r\nx: a\rb: c\r\n\r\n"),
    "line ends turned round": (400, b"GET / HTTP/1.1\r\nhost: a\r\nx: a\n\rb\r\n\r\n"),
    "a carriage return in the line": (400, b"GET /\r HTTP/1.1\r\nhost: a\r\n\r\n"),
    "a NUL in a value": (400, b"GET / HTTP/1.1\r\nhost: a\r\nx: a\x00b\r\n\r\n"),
    "a NUL in a name": (400, b"GET / HTTP/1.1\r\nhost: a\r\nx\x00: a\r\n\r\n"),
    "a control character": (400, b"GET / HTTP/1.1\r\nhost: a\r\nx: a\x01\r\n\r\n"),
    "a delete": (400, b"GET / HTTP/1.1\r\nhost: a\r\nx: a\x7f\r\n\r\n"),
    # Section 3: the request line.
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"),
    "a space first": (400, b" GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nhost: a\r\n\r\n"),
    "two spaces behind": (400, b"GET /  HTTP/1.1\r\nhost: a\r\n\r\n"),
    "a space at the end": (400, b"GET / HTTP/1.1 \r\nhost: a\r\n\r\n"),
    "a tab": (400, b"GET\t/ HTTP/1.1\r\nhost: a\r\n\r\n"),
    "a tab in the target": (400, b"GET /\tb HTTP/1.1\r\nhost: a\r\n\r\n"),
    "no version": (400, b"GET /\r\nhost: a\r\n\r\n"),
    "no target": (400, b"GET HTTP/1.1\r\nhost: a\r\n\r\n"),
    "an empty target": (400, b"GET  HTTP/1.1\r\nhost: a\r\n\r\n"),
    "a method that is no token": (400, b"G(T / HTTP/1.1\r\nhost: a\r\n\r\n"),
    "a method in small letters": (501, b"get / HTTP/1.1\r\nhost: a\r\n\r\n"),
    "an unknown method": (501, b"BREW / HTTP/1.1\r\nhost: a\r\n\r\n"),
    "a tunnel": (501, b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n"),
    "HTTP/2": (505, b"GET / HTTP/2.0\r\nhost: a\r\n\r\n"),
    "the preface of HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/0.9": (505, b"GET / HTTP/0.9\r\nhost: a\r\n\r\n"),
    "another protocol": (400, b"GET / HTCPCP/1.1\r\nhost: a\r\n\r\n"),
    "a version in small letters": (400, b"GET / http/1.1\r\nhost: a\r\n\r\n"),
    "a version with more digits": (400, b"GET / HTTP/1.10\r\nhost: a\r\n\r\n"),
    "a target that is no path": (400, b"GET a HTTP/1.1\r\nhost: a\r\n\r\n"),
    "an asterisk with GET": (400, b"GET * HTTP/1.1\r\nhost: a\r\n\r\n"),
    "a fragment": (400, b"GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n"),
    "a fragment in a URL": (400, b"GET http://a/#b HTTP/1.1\r\nhost: a\r\n\r\n"),
    "another scheme": (400, b"GET ftp://a/ HTTP/1.1\r\nhost: a\r\n\r\n"),
    "a URL without host": (400, b"GET http:///b HTTP/1.1\r\nhost: a\r\n\r\n"),
    "a URL with a port only": (400, b"GET http://:80/b HTTP/1.1\r\nhost: a\r\n\r\n"),
    "a URL with two ports": (400, b"GET http://b:1:2/ HTTP/1.1\r\nhost: a\r\n\r\n"),
    "a URL with a user": (400, b"GET http://b@c/ HTTP/1.1\r\nhost: a\r\n\r\n"),
    "bytes above ASCII in the target": (400, b"GET /\xc3\xa4 HTTP/1.1\r\nhost: a\r\n\r\n"),
    # Section 3.2: the host.
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n"),
    "two hosts in HTTP/1.0": (400, b"GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n"),
    "a host with a path": (400, b"GET / HTTP/1.1\r\nhost: a/b\r\n\r\n"),
    "a host with a user": (400, b"GET / HTTP/1.1\r\nhost: a@b\r\n\r\n"),
    "a host with two ports": (400, b"GET / HTTP/1.1\r\nhost: a:1:2\r\n\r\n"),
    "a host with a port of letters": (400, b"GET / HTTP/1.1\r\nhost: a:http\r\n\r\n"),
    "an IPv6 host without end": (400, b"GET / HTTP/1.1\r\nhost: [::1\r\n\r\n"),
    "an IPv6 host without brackets": (400, b"GET / HTTP/1.1\r\nhost: ::1\r\n\r\n"),
    "two hosts in one": (400, b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n"),
    # Section 5: fields.
    "white space before the colon": (400, b"GET / HTTP/1.1\r\nhost: a\r\nx : b\r\n\r\n"),
    "a name with white space": (400, b"GET / HTTP/1.1\r\nhost: a\r\nx y: b\r\n\r\n"),
    "no colon": (400, b"GET / HTTP/1.1\r\nhost: a\r\nx\r\n\r\n"),
    "no name": (400, b"GET / HTTP/1.1\r\nhost: a\r\n: b\r\n\r\n"),
    "a name that is no token": (400, b"GET / HTTP/1.1\r\nhost: a\r\nx[y]: b\r\n\r\n"),
    "a name above ASCII": (400, b"GET / HTTP/1.1\r\nhost: a\r\n\xe4: b\r\n\r\n"),
    "a folded line": (400, b"GET / HTTP/1.1\r\nhost: a\r\nx: b\r\n c\r\n\r\n"),
    "a line folded with a tab": (400, b"GET / HTTP/1.1\r\nhost: a\r\nx: b\r\n\tc\r\n\r\n"),
    "a fold before the first field": (400, b"GET / HTTP/1.1\r\n host: a\r\n\r\n"),
    # Section 6: framing.
    "two lengths": (400, HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab"),
    "two equal lengths": (400, HEAD + b"content-length: 1\r\ncontent-length: 1\r\n\r\na"),
    "a list of lengths": (400, HEAD + b"content-length: 1, 1\r\n\r\na"),
    "a negative length": (400, HEAD + b"content-length: -1\r\n\r\n"),
    "a signed length": (400, HEAD + b"content-length: +1\r\n\r\na"),
    "a hexadecimal length": (400, HEAD + b"content-length: 0x1\r\n\r\na"),
    "a length with an underscore": (400, HEAD + b"content-length: 1_0\r\n\r\na"),
    "an empty length": (400, HEAD + b"content-length:\r\n\r\n"),
    "a length beyond all bounds": (400, HEAD + b"content-length: 99999999999999999999\r\n\r\n"),
    "length and chunks": (
        400,
        HEAD + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "chunks and length": (
        400,
        HEAD + b"transfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n0\r\n\r\n",
    ),
    "two codings": (
        400,
        HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "chunked twice": (400, HEAD + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "chunked not last": (400, HEAD + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    "not chunked": (400, HEAD + b"transfer-encoding: gzip\r\n\r\n"),
    "identity": (400, HEAD + b"transfer-encoding: identity\r\n\r\n"),
    "an empty coding": (400, HEAD + b"transfer-encoding:\r\n\r\n"),
    "gzip in chunks": (501, HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "a coding in disguise": (400, HEAD + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    "chunks in HTTP/1.0": (
        400,
        b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
}

BAD_CHUNKS = {
    # Section 7.1.
    "no number": b"\r\nabc\r\n0\r\n\r\n",
    "a number that is none": b"g\r\nabc\r\n0\r\n\r\n",
    "a prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "a sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "white space before": b" 3\r\nabc\r\n0\r\n\r\n",
    "white space behind": b"3 \r\nabc\r\n0\r\n\r\n",
    "a number beyond all bounds": b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "too many zeros": b"0" * 2000 + b"3\r\nabc\r\n0\r\n\r\n",
    "a bare line feed": b"3\nabc\r\n0\r\n\r\n",
    "a bare line feed in an extension": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "a bare carriage return in an extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "a NUL in an extension": b"3;a\x00\r\nabc\r\n0\r\n\r\n",
    "too many bytes": b"3\r\nabcd\r\n0\r\n\r\n",
    "no line end behind the bytes": b"3\r\nabc0\r\n\r\n",
    "only a line feed behind the bytes": b"3\r\nabc\n0\r\n\r\n",
    "half a line end behind the bytes": b"3\r\nabc\r0\r\n\r\n",
    "a trailer without colon": b"0\r\nx\r\n\r\n",
    "a trailer that is folded": b"0\r\nx: y\r\n z\r\n\r\n",
    "a trailer with a bare line feed": b"0\r\nx: y\nz: a\r\n\r\n",
    "white space in a trailer's name": b"0\r\nx : y\r\n\r\n",
}


@pytest.mark.parametrize("name", GOOD_HEADS)
def test_a_good_request_is_taken(name, parser):
    assert status_of(parser, GOOD_HEADS[name]) is None
    assert parse(parser, [GOOD_HEADS[name]])


@pytest.mark.parametrize("name", BAD_HEADS)
def test_a_bad_head_is_refused(name, parser):
    status, data = BAD_HEADS[name]
    assert status_of(parser, data) == status


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_bad_chunks_are_refused(name, parser):
    data = HEAD + b"transfer-encoding: chunked\r\n\r\n" + BAD_CHUNKS[name]
    assert status_of(parser, data) == 400


def test_a_head_is_told_as_it_was_sent(parser):
    [(kind, facts)] = parse(
        parser, [b"GET /a?b HTTP/1.1\r\nHost: c\r\nX-Y:  d e\t\r\nx-y:\r\nCookie: \xe4\r\n\r\n"]
    )
    assert kind == "request"
    assert facts[:4] == (
        "GET",
        b"/a?b",
        "1.1",
        ((b"host", b"c"), (b"x-y", b"d e"), (b"x-y", b""), (b"cookie", b"\xe4")),
    )


def test_a_newer_version_is_served_as_the_newest_that_is_known(parser):
    newer = b"GET /a HTTP/1.2\r\nhost: a\r\n\r\n"
    found = parse(parser, [newer, newer, newer.replace(b"1.2", b"1.1")])
    assert found[0] == found[1] == found[2]
    assert found[0][1][2] == "1.1"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\n",
        b"\r\nGET / HTTP/1.1\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n3\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\nx: y\n",
    ],
)
def test_a_bare_line_feed_is_refused_without_waiting_for_more(data, parser):
    assert status_of(parser, data) == 400


def test_the_host_of_a_url_replaces_the_header(parser):
    [(_, facts)] = parse(parser, [b"GET http://b.org?x HTTP/1.1\r\nx: 1\r\nHost: a.org\r\n\r\n"])
    assert facts[1] == b"/?x"
    assert facts[3] == ((b"host", b"b.org"), (b"x", b"1"))


def test_a_url_does_not_change_what_is_known_of_the_headers(parser):
    found = parse(
        parser,
        [
            b"GET http://b.org/ HTTP/1.1\r\nHost: a.org\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a.org\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a.org\r\n\r\n",
        ],
    )
    assert [facts[3] for _, facts in found] == [
        ((b"host", b"b.org"),),
        ((b"host", b"a.org"),),
        ((b"host", b"a.org"),),
    ]


@pytest.mark.parametrize(
    "second",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /other HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /# HTTP/1.1\r\nHost: a\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_known_from_earlier_requests_changes_nothing(second, parser):
    first = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert parse(parser, [first, second])[1:] == parse(parser, [second])


def test_what_is_known_is_the_last_plain_request(parser):
    sink = Sink()
    instance = PARSERS[parser](sink, WorkerSettings())
    plain = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
    for data in (plain, GOOD_HEADS["an upgrade"], GOOD_HEADS["chunks"], GOOD_HEADS["a URL"]):
        instance.feed(data)
        instance.proceed()
        assert instance.known_head == plain
        assert instance.known_request.target == b"/a"
    instance.feed(plain.replace(b"/a", b"/b"))
    instance.proceed()
    assert instance.known_head == plain.replace(b"/a", b"/b")
    assert instance.known_request.target == b"/b"
    instance.feed(GOOD_HEADS["a body"])
    instance.proceed()
    assert instance.known_head == GOOD_HEADS["a body"][:-3]


@pytest.mark.parametrize("bodies", [b"abc", b"abcdef", b"abcdefg", b"a"])
def test_what_comes_behind_a_known_head_is_read_as_ever(bodies, parser):
    head = GOOD_HEADS["a body"][:-3]
    pieces = [head + bodies[start : start + 3] for start in range(0, len(bodies), 3)]
    found = parse(parser, pieces)
    assert found == parse(parser, [b"".join(pieces)])
    assert b"".join(data for kind, data in found if kind == "body") == bodies


def test_a_known_head_may_come_without_its_body(parser):
    head = GOOD_HEADS["a body"][:-3]
    whole = parse(parser, [head + b"abc"])
    assert parse(parser, [head + b"abc", head, b"abc", head + b"a", b"bc"]) == whole * 3


def test_a_long_head_is_not_remembered(parser):
    instance = PARSERS[parser](Sink(), WorkerSettings())
    instance.feed(b"GET / HTTP/1.1\r\nHost: a\r\nx: %b\r\n\r\n" % (b"y" * framing.MAX_KNOWN_HEAD))
    assert instance.known_head == b""


def test_lines_are_forgotten_when_there_are_too_many(parser, monkeypatch):
    monkeypatch.setattr(framing, "MAX_KNOWN_LINES", 3)
    monkeypatch.setattr(framing, "_KNOWN_LINES", {})
    for number in range(10):
        parse(parser, [b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number])
        assert len(framing._KNOWN_LINES) <= 3


# -- What connections know of each other


@pytest.mark.parametrize("kind", GOOD_HEADS)
def test_what_other_connections_have_begun_with_changes_nothing(kind, parser):
    data = GOOD_HEADS[kind]
    alone = parse(parser, [data])
    shared = framing.SharedHeads()
    for _ in range(4):
        assert parse(parser, [data], shared) == alone
        assert parse(parser, [data, data], shared) == alone + alone
        assert parse(parser, cut(data, [20]), shared) == alone


@pytest.mark.parametrize("kind", BAD_HEADS)
def test_what_is_refused_is_refused_to_every_connection(kind, parser):
    status, data = BAD_HEADS[kind]
    shared = framing.SharedHeads()
    for _ in range(3):
        assert parse(parser, [data], shared)[-1] == ("refused", status)


def test_a_head_that_connections_begin_with_is_read_twice(parser, monkeypatch):
    heads = []
    read = PARSERS[parser].parse_head

    def parse_head(self, head, *line):
        heads.append(head)
        return read(self, head, *line)

    monkeypatch.setattr(PARSERS[parser], "parse_head", parse_head)
    shared = framing.SharedHeads()
    often = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    once = often.replace(b"/ ", b"/once ")
    for _ in range(5):
        parse(parser, [often], shared)
    parse(parser, [once], shared)
    assert heads == [often, often, once]
    assert list(shared.requests) == [often]


def test_only_what_a_connection_begins_with_is_shared(parser):
    shared = framing.SharedHeads()
    first, second = (b"GET / HTTP/1.1\r\nhost: %b\r\n\r\n" % name for name in (b"a", b"b"))
    for _ in range(3):
        parse(parser, [first, second], shared)
    assert list(shared.requests) == [first]


def test_a_body_is_limited_whoever_has_sent_its_head_before(parser):
    shared = framing.SharedHeads()
    data = GOOD_HEADS["a body"]
    for _ in range(3):
        parse(parser, [data], shared)
    assert shared.requests
    assert parse(parser, [data], shared, limit_request_body=2) == [("refused", 413)]


def test_what_connections_share_is_bounded(parser, monkeypatch):
    monkeypatch.setattr(framing, "MAX_SHARED_HEADS", 3)
    monkeypatch.setattr(framing, "MAX_SEEN", 5)
    monkeypatch.setattr(framing, "MAX_SHARED_HEAD", 100)
    shared = framing.SharedHeads()
    for number in range(10):
        for _ in range(2):
            parse(parser, [b"GET /%d HTTP/1.1\r\nhost: a\r\n\r\n" % number], shared)
        assert len(shared.requests) <= 3
        assert len(shared._seen) <= 5
    shared = framing.SharedHeads()
    for _ in range(3):
        parse(parser, [b"GET /%b HTTP/1.1\r\nhost: a\r\n\r\n" % (b"x" * 100)], shared)
    assert not shared.requests
    assert not shared._seen


# -- What the head asks of the connection


@pytest.mark.parametrize(
    ("version", "fields", "keep_alive"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"connection: close\r\n", False),
        (b"1.1", b"connection: Close\r\n", False),
        (b"1.1", b"connection: x, close\r\n", False),
        (b"1.1", b"connection: keep-alive\r\nconnection: close\r\n", False),
        (b"1.1", b"connection: keep-alive\r\n", True),
        (b"1.1", b"connection: closed\r\n", True),
        (b"1.0", b"", False),
        (b"1.0", b"connection: keep-alive\r\n", True),
        (b"1.0", b"connection: Keep-Alive, x\r\n", True),
        (b"1.0", b"connection: close\r\n", False),
    ],
)
def test_keep_alive_is_what_version_and_connection_say(version, fields, keep_alive, parser):
    [(_, facts)] = parse(parser, [b"GET / HTTP/%b\r\nhost: a\r\n%b\r\n" % (version, fields)])
    assert facts[7] is keep_alive


@pytest.mark.parametrize(
    ("version", "value", "expected"),
    [
        (b"1.1", b"100-continue", True),
        (b"1.1", b"100-Continue", True),
        (b"1.1", b"x", False),
        (b"1.0", b"100-continue", False),
    ],
)
def test_an_expectation_counts_in_http_1_1_only(version, value, expected, parser):
    head = b"POST / HTTP/%b\r\nhost: a\r\nexpect: %b\r\ncontent-length: 1\r\n\r\n"
    [(_, facts)] = parse(parser, [head % (version, value)])
    assert facts[8] is expected


@pytest.mark.parametrize(
    ("lines", "upgrade"),
    [
        (b"connection: Upgrade\r\nupgrade: WebSocket\r\n", b"websocket"),
        (b"connection: keep-alive, upgrade\r\nupgrade: websocket\r\n", b"websocket"),
        (b"upgrade: websocket\r\nconnection: x\r\nconnection: upgrade\r\n", b"websocket"),
        (b"upgrade: websocket\r\n", b""),
        (b"connection: upgrade\r\n", b""),
        (b"connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 1\r\n", b""),
        (b"connection: upgrade\r\nupgrade: websocket\r\ntransfer-encoding: chunked\r\n", b""),
    ],
)
def test_an_upgrade_counts_only_with_the_option_and_without_a_body(lines, upgrade, parser):
    [(_, facts), *_] = parse(parser, [b"GET / HTTP/1.1\r\nhost: a\r\n%b\r\n" % lines])
    assert facts[11] == upgrade


def test_an_upgrade_from_http_1_0_is_none(parser):
    head = b"GET / HTTP/1.0\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    [(_, facts)] = parse(parser, [head])
    assert facts[11] == b""


def test_what_follows_a_request_waits(parser):
    sink = Sink()
    instance = PARSERS[parser](sink, WorkerSettings())
    instance.feed(GOOD_HEADS["an upgrade"] + b"\x81\x00and more")
    instance.feed(b"!")
    assert len(sink.found) == 1
    assert instance.state == framing.ENDED
    assert instance.take_rest() == b"\x81\x00and more!"
    assert not instance.buffer


def test_nothing_is_found_after_a_refusal(parser):
    good = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
    assert parse(parser, [b"GET / HTTP/1.1\r\n\r\n" + good, good]) == [("refused", 400)]


# -- Limits

LIMITS = {
    "limit_request_line": 64,
    "limit_request_field_size": 64,
    "limit_request_fields": 3,
}


def test_a_request_line_of_the_longest_size_is_taken(parser):
    line = b"GET /" + b"x" * (64 - 14) + b" HTTP/1.1"
    assert len(line) == 64
    assert status_of(parser, line + b"\r\nhost: a\r\n\r\n", **LIMITS) is None
    longer = b"GET /x" + line[5:]
    assert status_of(parser, longer + b"\r\nhost: a\r\n\r\n", **LIMITS) == 414


def test_a_request_line_is_refused_before_its_end(parser):
    assert status_of(parser, b"GET /" + b"x" * 61, **LIMITS) == 414
    assert status_of(parser, b"GET /" + b"x" * 60, **LIMITS) is None


def test_a_header_of_the_longest_size_is_taken(parser):
    field = b"x: " + b"y" * 61
    assert len(field) == 64
    head = b"GET / HTTP/1.1\r\nhost: a\r\n%b\r\n\r\n"
    assert status_of(parser, head % field, **LIMITS) is None
    assert status_of(parser, head % (field + b"y"), **LIMITS) == 431


def test_the_greatest_number_of_headers_is_taken(parser):
    head = b"GET / HTTP/1.1\r\nhost: a\r\n"
    assert status_of(parser, head + b"x: y\r\n" * 2 + b"\r\n", **LIMITS) is None
    assert status_of(parser, head + b"x: y\r\n" * 3 + b"\r\n", **LIMITS) == 431


def test_a_head_without_end_is_refused(parser):
    data = b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 100
    assert status_of(parser, data, **LIMITS) == 431


@pytest.mark.parametrize("whole", [True, False])
def test_a_head_of_the_longest_size_is_taken(whole, parser):
    fields = b"x: %b\r\n" % (b"y" * 40) * 10
    head = b"GET / HTTP/1.1\r\nhost: a\r\n" + fields + b"\r\n"
    data = head if whole else head[:-2]
    assert status_of(parser, head, limit_request_head=len(head)) is None
    assert status_of(parser, data + b"\r\n" * whole, limit_request_head=len(data) - 1) == 431


def test_a_body_of_the_longest_size_is_taken(parser):
    head = HEAD + b"content-length: %d\r\n\r\n"
    assert status_of(parser, head % 5 + b"12345", limit_request_body=5) is None
    assert status_of(parser, head % 6 + b"123456", limit_request_body=5) == 413


def test_chunks_count_together(parser):
    head = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    chunk = b"3\r\nabc\r\n"
    assert status_of(parser, head + chunk * 2 + b"0\r\n\r\n", limit_request_body=6) is None
    assert status_of(parser, head + chunk * 2 + b"1\r\nd\r\n", limit_request_body=6) == 413


def test_trailers_have_the_limits_of_headers(parser):
    head = HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n"
    assert status_of(parser, head + b"x: y\r\n" * 3 + b"\r\n", **LIMITS) is None
    assert status_of(parser, head + b"x: y\r\n" * 4 + b"\r\n", **LIMITS) == 431
    assert status_of(parser, head + b"x: " + b"y" * 62 + b"\r\n\r\n", **LIMITS) == 431


# -- Properties


def a_few(*parts: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from(parts)


LINES = st.builds(
    b"%b%b%b%b%b\r\n".__mod__,
    st.tuples(
        a_few(b"GET", b"POST", b"HEAD", b"OPTIONS", b"BREW", b"get", b"", b"CONNECT", b"PRI"),
        a_few(b" ", b" ", b" ", b"  ", b"\t", b""),
        a_few(b"/", b"/a?b", b"*", b"http://h/p", b"/#", b"a", b"", b"//", b"/%00", b"/\x80"),
        a_few(b" ", b" ", b" ", b"  ", b"\t", b""),
        a_few(b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b"", b"RTSP/1.0"),
    ),
)
NAMES = a_few(
    b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"Expect"
) | a_few(b"X", b"", b"X ", b" X", b"X:", b"X\x00", b"\xe4", b"Proxy-Connection", b"Keep-Alive")
VALUES = a_few(
    b"a", b"", b"3", b"0", b"03", b"3, 3", b"+3", b"chunked", b"Chunked", b"gzip, chunked"
) | a_few(b"close", b"upgrade", b"websocket", b"100-continue", b"\x00", b"\xff", b"a\tb", b"h2c")
FIELDS = st.lists(
    st.builds(
        b"%b%b%b%b%b".__mod__,
        st.tuples(
            NAMES,
            a_few(b":", b":", b": ", b": ", b":\t", b" :", b""),
            VALUES,
            a_few(b"", b"", b"", b" ", b"\t", b"\r\n "),
            a_few(b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b""),
        ),
    ),
    max_size=5,
).map(b"".join)
BODIES = st.lists(
    a_few(b"3\r\n", b"abc", b"\r\n", b"0\r\n\r\n", b"3", b"0", b";x=y", b"\n", b"x: y\r\n", b" "),
    max_size=8,
).map(b"".join)
REQUESTS = st.builds(
    b"%b%b%b\r\n%b".__mod__,
    st.tuples(LINES, a_few(b"Host: h\r\n", b"host:h\r\n", b""), FIELDS, BODIES),
)
STREAMS = st.lists(REQUESTS, max_size=4).map(b"".join) | st.binary(max_size=200)
CUTS = st.lists(st.integers(0, 1000), max_size=8)


@given(STREAMS, CUTS)
@example(b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", [])
@example(b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 3, 3\r\n\r\nabc", [])
def test_both_parsers_find_the_same_in_any_bytes_however_they_are_cut(data, cuts):
    found = parse("httptools", [data])
    assert parse("h11", [data]) == found
    pieces = cut(data, cuts)
    assert parse("httptools", pieces) == found
    assert parse("h11", pieces) == found


@given(REQUESTS, st.integers(0, 200), st.binary(min_size=1, max_size=2), CUTS)
def test_both_parsers_agree_on_damaged_requests(data, place, damage, cuts):
    data = data[:place] + damage + data[place + 1 :]
    found = parse("httptools", [data])
    assert parse("h11", cut(data, cuts)) == found


TOKENS = st.from_regex(re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}"), fullmatch=True)
TEXTS = st.from_regex(
    re.compile(rb"([\x21-\x7e\x80-\xff]([\t\x20-\x7e\x80-\xff]{0,20}[\x21-\x7e\x80-\xff])?)?"),
    fullmatch=True,
)
PATHS = st.from_regex(re.compile(rb"/[\x21\x22\x24-\x7e]{0,20}"), fullmatch=True)


@given(
    PATHS,
    st.lists(st.tuples(TOKENS.map(lambda name: b"x-" + name), TEXTS), max_size=6),
    st.lists(st.binary(min_size=1, max_size=50), max_size=5),
    CUTS,
)
def test_what_is_valid_is_taken_and_told_exactly(path, fields, chunks, cuts):
    data = b"POST %b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n" % path
    data += b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
    data += b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    data += b"0\r\n\r\n"
    for parser in PARSERS:
        found = parse(parser, cut(data, cuts))
        assert found[0][1][1] == path
        expected = [(name.lower(), value) for name, value in fields]
        assert list(found[0][1][3][2:]) == expected
        body = [("body", b"".join(chunks))] if chunks else []
        assert found[1:] == [*body, ("end", None)]
