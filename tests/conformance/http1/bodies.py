"""Bodies of requests: where they end, and what could be read in two ways."""

from tests.conformance.http1.case import (
    DROPPED,
    Answer,
    AwaitAnswer,
    AwaitInterim,
    Bytewise,
    Case,
    HalfClose,
    Pause,
    Then,
    answered,
    must,
    refused,
    several,
    should,
)
from tests.conformance.http1.requests import BAD, OWN, REFUSED, saw

LAST = b"0\r\n\r\n"
# RFC 9112, section 6.3: after an invalid length the connection has to end.
FATAL = refused(400)
# Where a chunk goes wrong the application may have begun; the server can only answer or leave.
BROKEN = answered(status=range(400, 600), then=Then.CLOSED)


def post(*lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    """Return a request with these lines behind the Host, and a body."""
    head = b"".join(
        (b"POST / HTTP/%b\r\nHost: a\r\n" % version, *(each + b"\r\n" for each in lines))
    )
    return head + b"\r\n" + body


def length(value: bytes, body: bytes = b"abc") -> bytes:
    """Return a request with this Content-Length."""
    return post(b"Content-Length: " + value, body=body)


def coded(value: bytes, body: bytes = b"3\r\nabc\r\n" + LAST) -> bytes:
    """Return a request with this Transfer-Encoding."""
    return post(b"Transfer-Encoding: " + value, body=body)


def chunks(body: bytes) -> bytes:
    """Return a request with this body, which is said to be in chunks."""
    return coded(b"chunked", body)


LENGTHS = [
    must("length.three", "RFC 9112, section 6.2", length(b"3"), saw(body="abc")),
    must("length.zero", "RFC 9112, section 6.2", length(b"0", b""), saw(body="")),
    must("length.none", "RFC 9112, section 6.3: no length, no body", post(), saw(body="")),
    must(
        "length.zeros-first",
        "RFC 9110, section 8.6: one or more digits",
        length(b"0003"),
        saw(body="abc"),
        FATAL,
    ),
    must("length.white-space", "RFC 9110, section 5.5", length(b"\t 3 \t"), saw(body="abc")),
    must(
        "length.get",
        "RFC 9110, section 9.3.1",
        length(b"3").replace(b"POST", b"GET"),
        saw(method="GET", body="abc"),
    ),
    must(
        "length.delete",
        "RFC 9110, section 9.3.5",
        length(b"3").replace(b"POST", b"DELETE"),
        saw(body="abc"),
    ),
    must("length.bytewise", "RFC 9112, section 6.2", [Bytewise(length(b"3"))], saw(body="abc")),
    must(
        "length.body-later",
        "RFC 9112, section 6.2",
        [length(b"3", b""), Pause(), b"a", Pause(), b"bc"],
        saw(body="abc"),
    ),
    must(
        "length.body-like-request",
        "RFC 9112, section 6.2",
        length(b"18", b"GET / HTTP/1.1\r\n\r\n"),
        saw(body="GET / HTTP/1.1\r\n\r\n"),
    ),
    must(
        "length.megabyte",
        "RFC 9112, section 6.2",
        length(b"1000000", b"x" * 1_000_000),
        saw(body=1_000_000),
    ),
    must(
        "length.every-byte",
        "RFC 9112, section 6.2",
        length(b"256", bytes(range(256))),
        saw(body=bytes(range(256)).decode("latin-1")),
    ),
    *(
        must(
            f"length.{name}",
            "RFC 9112, section 6.3: an invalid length is answered with 400 and the end",
            length(value),
            FATAL,
        )
        for name, value in {
            "negative": b"-3",
            "signed": b"+3",
            "hexadecimal": b"0x3",
            "underscore": b"1_0",
            "fraction": b"3.0",
            "letters": b"abc",
            "empty": b"",
            "two-words": b"3 3",
            "semicolon": b"3;",
            "superscript": b"\xb3",
            "differing-list": b"3, 4",
            "quoted": b'"3"',
            "exponent": b"3e0",
        }.items()
    ),
    must(
        "length.differing-lines",
        "RFC 9112, section 6.3",
        post(b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"),
        FATAL,
    ),
    must("length.nul", "RFC 9110, section 5.5", length(b"3\x00"), REFUSED),
    must(
        "length.equal-list",
        "RFC 9112, section 6.3: refused, or taken as one",
        length(b"3, 3"),
        FATAL,
        saw(body="abc"),
        own=FATAL,
    ),
    must(
        "length.equal-lines",
        "RFC 9112, section 6.3: refused, or taken as one",
        post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"),
        FATAL,
        saw(body="abc"),
        own=FATAL,
    ),
    must(
        "length.beyond-64-bits",
        "RFC 9110, section 8.6: integers must not overflow",
        [length(b"18446744073709551619"), HalfClose()],
        refused(400, 408, 413),
        DROPPED,
        refused(500),
        own=FATAL,
    ),
    must(
        "length.beyond-32-bits",
        "RFC 9110, section 8.6: integers must not overflow",
        [length(b"4294967299"), HalfClose()],
        refused(400, 408, 413),
        DROPPED,
        refused(500),
    ),
    must(
        "length.space-before-colon",
        "RFC 9112, section 5.1",
        post(b"Content-Length : 3", body=b"abc"),
        BAD,
    ),
    must(
        "length.underscore-in-name",
        "RFC 9110, section 5.1: another field",
        post(b"Content_Length: 30", b"Content-Length: 3", body=b"abc"),
        saw(body="abc"),
        BAD,
    ),
    must(
        "length.folded",
        "RFC 9112, section 5.2",
        post(b"Content-Length:", b" 3", body=b"abc"),
        BAD,
        saw(body="abc"),
        own=OWN,
    ),
    must(
        "length.named-by-connection",
        "RFC 9110, section 7.6.1: Connection does not change the framing",
        post(b"Connection: close, Content-Length", b"Content-Length: 3", body=b"abc"),
        answered(saw={"body": "abc"}, then=Then.CLOSED),
        refused(400),
    ),
    must(
        "length.beside-upgrade",
        "RFC 9110, section 7.8: without a 101 the request is what it is",
        post(b"Connection: upgrade", b"Upgrade: h2c", b"Content-Length: 3", body=b"abc"),
        saw(body="abc"),
        REFUSED,
    ),
    must(
        "length.body-too-short",
        "RFC 9112, section 8: an incomplete request is not taken as complete",
        [length(b"10"), HalfClose()],
        DROPPED,
        refused(),
        refused(500),
    ),
    should(
        "length.body-too-long",
        "RFC 9112, section 6.3: what follows is the next request",
        length(b"3", b"abcJUNK / HTTP/9\r\n\r\n"),
        several(
            Answer(status=(200,), saw={"body": "abc"}),
            Answer(status=(400, 501, 505)),
            then=Then.CLOSED,
        ),
        several(Answer(status=(200,), saw={"body": "abc"}), then=Then.CLOSED),
    ),
]

CODINGS = [
    must("coding.chunked", "RFC 9112, section 7.1", coded(b"chunked"), saw(body="abc")),
    must(
        "coding.capitals",
        "RFC 9112, section 7: names are not case-sensitive",
        coded(b"CHUNKED"),
        saw(body="abc"),
    ),
    must("coding.white-space", "RFC 9110, section 5.5", coded(b"\t chunked \t"), saw(body="abc")),
    must(
        "coding.get",
        "RFC 9110, section 9.3.1",
        coded(b"chunked").replace(b"POST", b"GET"),
        saw(body="abc"),
    ),
    must(
        "coding.bytewise", "RFC 9112, section 7.1", [Bytewise(coded(b"chunked"))], saw(body="abc")
    ),
    must(
        "coding.empty-elements",
        "RFC 9110, section 5.6.1.2: empty elements of a list are ignored",
        coded(b", chunked"),
        saw(body="abc"),
        refused(400, 501),
    ),
    *(
        must(
            f"coding.{name}",
            "RFC 9112, section 6.3: without chunked as the last coding, 400 and the end",
            coded(value),
            refused(400, 501),
            own=FATAL,
        )
        for name, value in {
            "gzip": b"gzip",
            "chunked-not-last": b"chunked, gzip",
            "identity": b"identity",
            "chunked-then-identity": b"chunked, identity",
            "empty": b"",
            "xchunked": b"xchunked",
            "chunkedx": b"chunkedx",
            "quoted": b'"chunked"',
            "two-words": b"chunked chunked",
            "vertical-tab": b"\x0bchunked",
            "non-breaking-space": b"\xa0chunked",
            "nul": b"chunked\x00",
        }.items()
    ),
    should(
        "coding.gzip-chunked",
        "RFC 9112, section 6.1: an unknown coding gets 501",
        coded(b"gzip, chunked"),
        refused(400, 501),
        own=refused(501),
    ),
    should(
        "coding.chunked-twice",
        "RFC 9112, section 6.1: chunked is applied once",
        coded(b"chunked, chunked"),
        refused(400, 501),
        own=FATAL,
    ),
    should(
        "coding.chunked-in-two-lines",
        "RFC 9112, section 6.1: chunked is applied once",
        post(
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: chunked",
            body=b"3\r\nabc\r\n" + LAST,
        ),
        refused(400, 501),
        own=FATAL,
    ),
    should(
        "coding.identity-in-second-line",
        "RFC 9112, section 6.3: chunked is not the last coding",
        post(
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: identity",
            body=b"3\r\nabc\r\n" + LAST,
        ),
        refused(400, 501),
        own=FATAL,
    ),
    should(
        "coding.with-parameter",
        "RFC 9112, section 7.1: chunked has no parameters",
        coded(b"chunked;q=1"),
        refused(400, 501),
        own=FATAL,
    ),
    *(
        must(
            f"coding.{name}",
            "RFC 9112, section 6.1: refused, or the coding counts; the connection ends in any case",
            post(*lines, body=b"3\r\nabc\r\n" + LAST),
            FATAL,
            answered(saw={"body": "abc"}, then=Then.CLOSED),
            own=FATAL,
        )
        for name, lines in {
            "beside-length": (b"Transfer-Encoding: chunked", b"Content-Length: 3"),
            "behind-length": (b"Content-Length: 3", b"Transfer-Encoding: chunked"),
            "beside-length-of-all": (b"Transfer-Encoding: chunked", b"Content-Length: 13"),
            "beside-length-zero": (b"Content-Length: 0", b"Transfer-Encoding: chunked"),
        }.items()
    ),
    must(
        "coding.smuggled-behind-length",
        "RFC 9112, section 11.2: what stands in a body is never served as a request",
        post(
            b"Content-Length: 5",
            b"Transfer-Encoding: chunked",
            body=LAST + b"GET /mark?smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        FATAL,
        answered(saw={"body": ""}, then=Then.CLOSED),
        own=FATAL,
    ),
    *(
        must(
            f"coding.{name}",
            "RFC 9112, section 6.3: without chunked as the last coding, 400 and the end",
            post(*lines, body=b"3\r\nabc\r\n" + LAST),
            refused(400, 501),
            own=FATAL,
        )
        for name, lines in {
            "unknown-in-second-line": (b"Transfer-Encoding: chunked", b"Transfer-Encoding: cow"),
            "unknown-in-list": (b"Transfer-Encoding: chunked, cow",),
        }.items()
    ),
    should(
        "coding.unknown-in-first-line",
        "RFC 9112, section 6.1: an unknown coding gets 501",
        post(b"Transfer-Encoding: cow", b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n" + LAST),
        refused(400, 501),
        own=FATAL,
    ),
    must(
        "coding.behind-space",
        "RFC 9112, section 5.2: refused, or part of the line before",
        post(b"Content-Length: 3", b"X: y", b" Transfer-Encoding: chunked", body=b"abc"),
        REFUSED,
        saw(body="abc"),
        own=FATAL,
    ),
    must(
        "coding.behind-nul",
        "RFC 9110, section 5.5",
        post(b"Content-Length: 3", b"X: y\x00\r\nTransfer-Encoding: chunked", body=b"abc"),
        REFUSED,
        own=FATAL,
    ),
    must(
        "coding.without-colon",
        "RFC 9112, section 5",
        post(b"Content-Length: 3", b"Transfer-Encoding chunked", body=b"abc"),
        REFUSED,
        own=FATAL,
    ),
    must(
        "coding.in-1-0",
        "RFC 9112, section 6.1: faulty framing; the connection ends",
        post(
            b"Connection: keep-alive",
            b"Transfer-Encoding: chunked",
            body=b"3\r\nabc\r\n" + LAST,
            version=b"1.0",
        ),
        FATAL,
        answered(then=Then.CLOSED),
        own=FATAL,
    ),
    must(
        "coding.space-before-colon",
        "RFC 9112, section 5.1",
        post(b"Transfer-Encoding : chunked", body=LAST),
        BAD,
    ),
    must(
        "coding.folded",
        "RFC 9112, section 5.2",
        post(b"Transfer-Encoding:", b" chunked", body=b"3\r\nabc\r\n" + LAST),
        refused(400, 501),
        saw(body="abc"),
        own=FATAL,
    ),
    must(
        "coding.underscore-in-name",
        "RFC 9110, section 5.1: another field",
        post(b"Transfer_Encoding: chunked", b"Content-Length: 3", body=b"abc"),
        saw(body="abc"),
        BAD,
    ),
    must(
        "coding.behind-bare-line-feed",
        "RFC 9112, section 2.2: a line end, or invalid",
        post(b"X: y\nTransfer-Encoding: chunked", body=b"3\r\nabc\r\n" + LAST),
        REFUSED,
        saw(body="abc"),
        own=FATAL,
    ),
    must(
        "coding.behind-bare-carriage-return",
        "RFC 9112, section 2.2: invalid, or a space",
        post(b"X: y\rTransfer-Encoding: chunked", b"Content-Length: 3", body=b"abc"),
        REFUSED,
        saw(body="abc"),
        own=FATAL,
    ),
]


def chunk_is_refused(name: str, source: str, body: bytes) -> Case:
    """Declare that a body cannot be understood."""
    return should(f"chunk.{name}", source, chunks(body), BROKEN, DROPPED, own=OWN)


CHUNKS = [
    must(
        "chunk.several",
        "RFC 9112, section 7.1",
        chunks(b"1\r\na\r\n2\r\nbc\r\n" + LAST),
        saw(body="abc"),
    ),
    must("chunk.none", "RFC 9112, section 7.1", chunks(LAST), saw(body="")),
    must(
        "chunk.hexadecimal",
        "RFC 9112, section 7.1",
        chunks(b"a\r\n0123456789\r\nB\r\n0123456789a\r\n" + LAST),
        saw(body="01234567890123456789a"),
    ),
    must(
        "chunk.zeros-first",
        "RFC 9112, section 7.1",
        chunks(b"0003\r\nabc\r\n" + LAST),
        saw(body="abc"),
    ),
    must(
        "chunk.last-of-zeros",
        "RFC 9112, section 7.1",
        chunks(b"3\r\nabc\r\n000\r\n\r\n"),
        saw(body="abc"),
    ),
    must(
        "chunk.with-line-ends",
        "RFC 9112, section 7.1",
        chunks(b"8\r\na\r\n0\r\n\r\n\r\n" + LAST),
        saw(body="a\r\n0\r\n\r\n"),
    ),
    must(
        "chunk.of-100000-bytes",
        "RFC 9112, section 7.1",
        chunks(b"186A0\r\n" + b"x" * 100_000 + b"\r\n" + LAST),
        saw(body=100_000),
    ),
    must(
        "chunk.thousand",
        "RFC 9112, section 7.1",
        chunks(b"1\r\nx\r\n" * 1000 + LAST),
        saw(body="x" * 1000),
    ),
    must(
        "chunk.cut-everywhere",
        "RFC 9112, section 7.1",
        [
            chunks(b"3"),
            Pause(),
            b"\r",
            Pause(),
            b"\nab",
            Pause(),
            b"c\r",
            Pause(),
            b"\n0\r\n\r",
            Pause(),
            b"\n",
        ],
        saw(body="abc"),
    ),
    *(
        must(
            f"chunk.extension-{name}",
            "RFC 9112, section 7.1.1: unknown extensions are ignored",
            chunks(b"3" + extension + b"\r\nabc\r\n0" + extension + b"\r\n\r\n"),
            saw(body="abc"),
        )
        for name, extension in {
            "alone": b";a",
            "with-value": b";a=b",
            "in-quotes": b';a="b;c"',
            "repeated": b";a=b;c=d",
            "with-white-space": b" ; a = b",
        }.items()
    ),
    must(
        "chunk.extension-of-100000-bytes",
        "RFC 9112, section 7.1.1: their length is limited, with a 4xx",
        chunks(b"3;" + b"a" * 100_000 + b"\r\nabc\r\n" + LAST),
        saw(body="abc"),
        BROKEN,
        DROPPED,
        own=OWN,
    ),
    *(
        chunk_is_refused(
            f"size-{name}",
            "RFC 9112, section 7.1: one or more hexadecimal digits",
            text + b"\r\nabc\r\n" + LAST,
        )
        for name, text in {
            "letter": b"g",
            "prefixed": b"0x3",
            "signed": b"+3",
            "negative": b"-3",
            "empty": b"",
            "underscore": b"0_3",
            "fraction": b"3.0",
            "space-first": b" 3",
            "two-words": b"3 3",
            "nul": b"3\x00",
            "vertical-tab": b"3\x0b",
            "comma": b"3,3",
        }.items()
    ),
    must(
        "chunk.size-space-behind",
        "RFC 9112, section 7.1.1: white space has a place only before an extension",
        chunks(b"3 \r\nabc\r\n" + LAST),
        saw(body="abc"),
        BROKEN,
        DROPPED,
        own=OWN,
    ),
    must(
        "chunk.size-beyond-64-bits",
        "RFC 9112, section 7.1: integers must not overflow",
        [chunks(b"10000000000000003\r\nabc\r\n" + LAST), HalfClose()],
        BROKEN,
        DROPPED,
        refused(500),
        own=OWN,
    ),
    must(
        "chunk.size-beyond-32-bits",
        "RFC 9112, section 7.1: integers must not overflow",
        [chunks(b"100000003\r\nabc\r\n" + LAST), HalfClose()],
        BROKEN,
        DROPPED,
        refused(500),
    ),
    chunk_is_refused("line-feed-behind-size", "RFC 9112, section 7.1", b"3\nabc\r\n" + LAST),
    chunk_is_refused("line-feed-behind-data", "RFC 9112, section 7.1", b"3\r\nabc\n" + LAST),
    chunk_is_refused(
        "line-feed-in-extension", "RFC 9112, section 7.1.1", b"3;a\nb\r\nabc\r\n" + LAST
    ),
    chunk_is_refused(
        "carriage-return-in-extension", "RFC 9112, section 7.1.1", b"3;a\rb\r\nabc\r\n" + LAST
    ),
    chunk_is_refused("nul-in-extension", "RFC 9112, section 7.1.1", b"3;a\x00\r\nabc\r\n" + LAST),
    chunk_is_refused("carriage-return-behind-data", "RFC 9112, section 7.1", b"3\r\nabc\rX" + LAST),
    chunk_is_refused("letters-for-line-end", "RFC 9112, section 7.1", b"3\r\nabcXX" + LAST),
    chunk_is_refused("data-too-long", "RFC 9112, section 7.1", b"3\r\nabcd\r\n" + LAST),
    chunk_is_refused("data-too-short", "RFC 9112, section 7.1", b"3\r\nab\r\n" + LAST),
    chunk_is_refused("line-feeds-only", "RFC 9112, section 7.1", b"3\nabc\n0\n\n"),
    chunk_is_refused("trailer-without-colon", "RFC 9112, section 7.1.2", b"0\r\nx\r\n\r\n"),
    chunk_is_refused("trailer-space-before-colon", "RFC 9112, section 5.1", b"0\r\nx : y\r\n\r\n"),
    chunk_is_refused("trailer-nul", "RFC 9110, section 5.5", b"0\r\nx: y\x00\r\n\r\n"),
    must(
        "chunk.trailer-folded",
        "RFC 9112, section 5.2: refused, or spaces",
        chunks(b"3\r\nabc\r\n0\r\nx: y\r\n z\r\n\r\n"),
        saw(body="abc"),
        BROKEN,
        DROPPED,
        own=OWN,
    ),
    must(
        "chunk.trailer",
        "RFC 9112, section 7.1.2: kept apart, or dropped",
        chunks(b"3\r\nabc\r\n0\r\nX: y\r\nZ:\r\n\r\n"),
        saw(body="abc", x=[]),
    ),
    must(
        "chunk.trailer-with-length",
        "RFC 9110, section 6.5.1: a trailer does not change the framing",
        chunks(b"0\r\nContent-Length: 30\r\nTransfer-Encoding: gzip\r\nHost: b\r\n\r\n"),
        saw(body="", host=["a"]),
        BROKEN,
    ),
    must(
        "chunk.twenty-thousand-trailers",
        "RFC 9110, section 5.4: more than the server wishes to process gets a 4xx",
        chunks(b"0\r\n" + b"x: y\r\n" * 20_000 + b"\r\n"),
        saw(body=""),
        BROKEN,
        DROPPED,
        own=refused(431),
    ),
    must(
        "chunk.no-last",
        "RFC 9112, section 8: without the last chunk a body is incomplete",
        [chunks(b"3\r\nabc\r\n"), HalfClose()],
        DROPPED,
        BROKEN,
        refused(500),
    ),
    must(
        "chunk.no-end-behind-last",
        "RFC 9112, section 7.1: an empty line ends the body",
        chunks(b"3\r\nabc\r\n0\r\nGET /mark?no-end HTTP/1.1\r\nHost: a\r\n\r\n"),
        BROKEN,
        DROPPED,
        own=OWN,
    ),
]

CONTINUE = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"

EXPECTATIONS = [
    must(
        "continue.awaited",
        "RFC 9110, section 10.1.1: 100 or a final answer",
        [CONTINUE + b"Content-Length: 3\r\n\r\n", AwaitInterim(), b"abc"],
        answered(saw={"body": "abc"}, interim=(100,)),
        refused(417),
        own=answered(saw={"body": "abc"}, interim=(100,)),
    ),
    must(
        "continue.awaited-in-chunks",
        "RFC 9110, section 10.1.1",
        [CONTINUE + b"Transfer-Encoding: chunked\r\n\r\n", AwaitInterim(), b"3\r\nabc\r\n" + LAST],
        answered(saw={"body": "abc"}, interim=(100,)),
    ),
    must(
        "continue.capitals",
        "RFC 9110, section 10.1.1: not case-sensitive",
        [CONTINUE.replace(b"c", b"C") + b"Content-Length: 3\r\n\r\n", AwaitInterim(), b"abc"],
        answered(saw={"body": "abc"}, interim=(100,)),
    ),
    must(
        "continue.not-awaited",
        "RFC 9110, section 10.1.1: 100 may be left out when the body is here",
        CONTINUE + b"Content-Length: 3\r\n\r\nabc",
        answered(saw={"body": "abc"}, interim=()),
        answered(saw={"body": "abc"}, interim=(100,)),
    ),
    must(
        "continue.without-body",
        "RFC 9110, section 10.1.1: 100 may be left out where no body follows",
        CONTINUE.replace(b"POST", b"GET") + b"\r\n",
        answered(interim=()),
        answered(interim=(100,)),
        own=answered(interim=()),
    ),
    must(
        "continue.length-zero",
        "RFC 9110, section 10.1.1: 100 may be left out where no body follows",
        CONTINUE + b"Content-Length: 0\r\n\r\n",
        answered(interim=()),
        answered(interim=(100,)),
        own=answered(interim=()),
    ),
    must(
        "continue.in-1-0",
        "RFC 9110, section 10.1.1: the expectation of an HTTP/1.0 client is ignored",
        [CONTINUE.replace(b"1.1", b"1.0") + b"Content-Length: 3\r\n\r\n", Pause(), b"abc"],
        answered(saw={"body": "abc"}, interim=(), then=Then.CLOSED),
    ),
    must(
        "continue.unwanted",
        "RFC 9110, section 10.1.1: a final answer instead; the body is read, or the connection ends",
        [CONTINUE.replace(b"/ ", b"/early ") + b"Content-Length: 3\r\n\r\n", AwaitAnswer(), b"abc"],
        answered(body=b"early", then=Then.EITHER),
        own=answered(body=b"early", interim=(), then=Then.CLOSED),
    ),
    must(
        "continue.unwanted-but-sent",
        "RFC 9112, section 9.3: the body is read, or the connection ends",
        CONTINUE.replace(b"/ ", b"/early ") + b"Content-Length: 3\r\n\r\nabc",
        answered(body=b"early", then=Then.EITHER),
    ),
    must(
        "continue.after-the-answer-began",
        "RFC 9110, section 15.2: nothing interim comes behind a final answer",
        [
            CONTINUE.replace(b"/ ", b"/early-stream ") + b"Content-Length: 3\r\n\r\n",
            Pause(),
            b"abc",
        ],
        answered(body=b"begun 3", then=Then.EITHER),
    ),
    should(
        "continue.other-expectation",
        "RFC 9110, section 10.1.1: 417, or ignored",
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: cake\r\nContent-Length: 3\r\n\r\nabc",
        refused(417, then=Then.EITHER),
        saw(body="abc"),
    ),
    must(
        "continue.pipelined",
        "RFC 9110, section 10.1.1",
        [
            b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n" + CONTINUE + b"Content-Length: 3\r\n\r\n",
            AwaitAnswer(),
            AwaitInterim(),
            b"abc",
        ],
        several(
            Answer(status=(200,), body=b"hello"),
            Answer(status=(200,), saw={"body": "abc"}, interim=(100,)),
        ),
    ),
]

CASES: list[Case] = [*LENGTHS, *CODINGS, *CHUNKS, *EXPECTATIONS]
