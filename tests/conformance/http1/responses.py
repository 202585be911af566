"""Responses: framing, fields, and what becomes of an application's mistakes."""

from tests.conformance.http1.case import (
    Answer,
    Case,
    Outcome,
    Then,
    answered,
    must,
    refused,
    should,
)

DATE = r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z][a-z] \d{4} \d\d:\d\d:\d\d GMT"
UNFRAMED = {"content-length": None, "transfer-encoding": None}
STREAM = b"one two three"


def get(path: bytes, *lines: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    """Return a request for a path."""
    head = b"%b %b HTTP/%b\r\nHost: a\r\n" % (method, path, version)
    return head + b"".join(each + b"\r\n" for each in lines) + b"\r\n"


def head(path: bytes) -> bytes:
    """Return a HEAD request for a path."""
    return get(path, method=b"HEAD")


RESPONSES = [
    must("answer.one-part", "RFC 9112, section 6.3", get(b"/hello"), answered(body=b"hello")),
    must("answer.no-content-at-all", "RFC 9112, section 6.3", get(b"/nothing"), answered(body=b"")),
    must(
        "answer.stream",
        "RFC 9112, section 7.1",
        get(b"/stream"),
        answered(body=STREAM),
        answered(body=STREAM, then=Then.CLOSED),
    ),
    must(
        "answer.stream-of-known-length",
        "RFC 9112, section 6.2",
        get(b"/stream-length"),
        answered(body=STREAM, headers={"content-length": "13", "transfer-encoding": None}),
    ),
    must(
        "answer.empty-parts",
        "RFC 9112, section 7.1: an empty part is not the last chunk",
        get(b"/stream-empty-parts"),
        answered(body=b"ab"),
    ),
    must("answer.large", "RFC 9112, section 7.1", get(b"/large"), answered(body=b"x" * 64 * 65536)),
    must(
        "answer.large-at-once",
        "RFC 9112, section 6.2",
        get(b"/large-at-once"),
        answered(body=b"x" * 4 * 1024 * 1024),
    ),
    must(
        "answer.to-1-0-stream",
        "RFC 9112, section 6.1: no transfer coding to HTTP/1.0",
        get(b"/stream", version=b"1.0"),
        answered(body=STREAM, headers={"transfer-encoding": None}, then=Then.CLOSED),
    ),
    must(
        "answer.to-1-0-stream-kept",
        "RFC 9112, section 6.1: no transfer coding to HTTP/1.0",
        get(b"/stream", b"Connection: keep-alive", version=b"1.0"),
        answered(body=STREAM, headers={"transfer-encoding": None}, then=Then.CLOSED),
    ),
    must(
        "answer.to-head",
        "RFC 9110, section 9.3.2: no content, and the headers of GET",
        head(b"/probe"),
        answered(body=b"", headers={"content-length": "5"}),
    ),
    must("answer.to-head-one-part", "RFC 9110, section 9.3.2", head(b"/hello"), answered(body=b"")),
    must("answer.to-head-stream", "RFC 9110, section 9.3.2", head(b"/stream"), answered(body=b"")),
    must(
        "answer.to-head-large",
        "RFC 9110, section 9.3.2",
        head(b"/large-at-once"),
        answered(body=b"", headers={"content-length": "4194304"}),
    ),
    must(
        "answer.to-head-failed",
        "RFC 9110, section 9.3.2",
        head(b"/mistake/raise-before"),
        answered(status=(500,), body=b"", then=Then.EITHER),
    ),
    must(
        "answer.to-head-refused",
        "RFC 9110, section 9.3.2: no content, whatever is wrong",
        b"HEAD / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
        refused(400, body=b"", then=Then.EITHER),
    ),
    must(
        "answer.204",
        "RFC 9110, section 15.3.5; RFC 9112, section 6.1",
        get(b"/204"),
        answered(status=(204,), headers=UNFRAMED, then=Then.EITHER),
    ),
    must(
        "answer.204-with-length",
        "RFC 9110, section 8.6: no Content-Length in a 204",
        get(b"/204-length"),
        answered(status=(204,), headers=UNFRAMED, then=Then.EITHER),
    ),
    must(
        "answer.304",
        "RFC 9110, section 15.4.5",
        get(b"/304"),
        answered(status=(304,), headers={"transfer-encoding": None}, then=Then.EITHER),
    ),
    must(
        "answer.304-with-length",
        "RFC 9110, section 15.4.5",
        get(b"/304-length"),
        answered(status=(304,), headers={"transfer-encoding": None}, then=Then.EITHER),
    ),
    must(
        "answer.404",
        "RFC 9110, section 15.5.5",
        get(b"/404"),
        answered(status=(404,), body=b"a body"),
    ),
    must(
        "answer.500",
        "RFC 9110, section 15.6.1: an application's own does not end the connection",
        get(b"/500"),
        answered(status=(500,), body=b"a body"),
        answered(status=(500,), body=b"a body", then=Then.CLOSED),
    ),
    must(
        "answer.599",
        "RFC 9110, section 15: any status of three digits",
        get(b"/599"),
        answered(status=(599,), body=b"a body"),
    ),
    must(
        "answer.coding-of-the-application",
        "ASGI, Response Start: transfer codings are the server's",
        get(b"/chunked"),
        answered(body=b"hello"),
    ),
    must(
        "answer.coding-and-length",
        "RFC 9112, section 6.2: never both",
        get(b"/chunked-and-length"),
        answered(body=b"hello"),
    ),
    must(
        "answer.date",
        "RFC 9110, section 6.6.1: an origin server with a clock sends it",
        get(b"/hello"),
        answered(headers={"date": DATE}),
    ),
    must(
        "answer.date-404",
        "RFC 9110, section 6.6.1: in 2xx, 3xx and 4xx",
        get(b"/404"),
        answered(status=(404,), headers={"date": DATE}),
    ),
    must(
        "answer.date-refused",
        "RFC 9110, section 6.6.1: in 2xx, 3xx and 4xx",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        refused(400, headers={"date": DATE}, then=Then.EITHER),
    ),
    must(
        "answer.date-of-the-application",
        "RFC 9110, section 6.6.1: one date",
        get(b"/date"),
        answered(headers={"date": "Sun, 06 Nov 1994 08:49:37 GMT"}),
    ),
    must(
        "answer.server-of-the-application",
        "RFC 9110, section 10.2.4: one name",
        get(b"/server"),
        answered(headers={"server": "mine"}),
    ),
    must(
        "answer.value-of-obsolete-text",
        "ASGI, Response Start: byte strings",
        get(b"/obsolete-text"),
        answered(headers={"y": "\xe4"}),
    ),
    must(
        "answer.empty-value",
        "RFC 9112, section 5",
        get(b"/empty-value"),
        answered(headers={"y": ""}),
    ),
    must(
        "answer.name-in-capitals",
        "RFC 9110, section 5.1",
        get(b"/capitals"),
        answered(headers={"x-capitals": "Yes"}),
    ),
    should(
        "answer.refusal-has-a-length",
        "RFC 9112, section 6.3",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        refused(400, headers={"content-length": r"\d+"}, then=Then.EITHER),
        refused(400, headers={"transfer-encoding": "chunked"}, then=Then.EITHER),
    ),
    should(
        "answer.refusal-says-close",
        "RFC 9112, section 9.6",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        refused(400, headers={"connection": "(?i)close"}),
    ),
]

# A body of the application's that never ended must not look complete to the client.
CUT = Outcome((Answer(status=(200,), cut=True),), Then.CLOSED)
FAILED = answered(status=(500,), then=Then.EITHER)
NOTHING = Outcome((), Then.CLOSED)


def mistake(name: str, source: str, *expect: Outcome, own: Outcome | None = None) -> Case:
    """Declare what becomes of one of the mistakes that the application knows."""
    return must(f"mistake.{name}", source, get(b"/mistake/" + name.encode()), *expect, own=own)


def injected(name: str) -> Case:
    """Declare that a field cannot become two: refused, or sent without harm."""
    return mistake(
        name,
        "RFC 9110, section 5.5: CR, LF and NUL are never sent in a field",
        FAILED,
        NOTHING,
        answered(body=b"hello", headers={"x-injected": None}, then=Then.EITHER),
        own=FAILED,
    )


def unsendable(name: str, source: str) -> Case:
    """Declare that the client hears of a failure."""
    return mistake(name, source, FAILED, NOTHING, own=FAILED)


MISTAKES = [
    mistake("raise-before", "RFC 9110, section 15.6.1", FAILED),
    mistake("raise-after-start", "RFC 9110, section 15.6.1", FAILED, CUT, NOTHING, own=FAILED),
    mistake("raise-in-chunks", "RFC 9112, section 8: the last chunk must not be sent", CUT),
    mistake("raise-in-length", "RFC 9112, section 8", CUT),
    mistake("raise-after-end", "ASGI, Response Body", answered(body=b"hello", then=Then.EITHER)),
    mistake("return-before", "RFC 9110, section 15.6.1", FAILED),
    mistake("return-after-start", "RFC 9110, section 15.6.1", FAILED, CUT, NOTHING, own=FAILED),
    mistake("return-in-chunks", "RFC 9112, section 8: the last chunk must not be sent", CUT),
    mistake("return-in-length", "RFC 9112, section 8", CUT),
    mistake(
        "too-long",
        "RFC 9110, section 8.6: never more than the length",
        FAILED,
        CUT,
        NOTHING,
        answered(body=b"hello", then=Then.EITHER),
        own=FAILED,
    ),
    mistake(
        "too-long-in-parts",
        "RFC 9110, section 8.6: never more than the length",
        CUT,
        answered(body=b"hello", then=Then.EITHER),
    ),
    mistake(
        "too-short", "RFC 9112, section 8: the client can tell", FAILED, CUT, NOTHING, own=FAILED
    ),
    unsendable("body-first", "ASGI, Response Start comes first"),
    mistake(
        "start-twice",
        "ASGI, Response Start comes once",
        FAILED,
        CUT,
        NOTHING,
        answered(body=b"hello", then=Then.EITHER),
        own=FAILED,
    ),
    mistake(
        "start-in-stream",
        "ASGI, Response Start comes once",
        CUT,
        answered(body=b"parthello", then=Then.EITHER),
        own=CUT,
    ),
    mistake(
        "body-after-end",
        "ASGI, Response Body: nothing after the last",
        answered(body=b"hello", then=Then.EITHER),
    ),
    unsendable("unknown-message", "ASGI, Response events"),
    mistake(
        "body-of-text",
        "ASGI, Response Body: a byte string",
        FAILED,
        CUT,
        NOTHING,
        answered(body=b"hello", then=Then.EITHER),
        own=FAILED,
    ),
    *(
        injected(name)
        for name in ("crlf-in-value", "lf-in-value", "cr-in-value", "nul-in-value", "crlf-in-name")
    ),
    unsendable("space-in-name", "RFC 9110, section 5.1: a name is a token"),
    unsendable("colon-in-name", "RFC 9110, section 5.1: a name is a token"),
    unsendable("empty-name", "RFC 9110, section 5.1: a name is a token"),
    mistake(
        "text-in-headers",
        "ASGI, Response Start: byte strings",
        FAILED,
        NOTHING,
        answered(headers={"y": "1"}, then=Then.EITHER),
        own=FAILED,
    ),
    mistake(
        "two-lengths",
        "RFC 9110, section 8.6",
        FAILED,
        NOTHING,
        answered(body=b"hello", then=Then.EITHER),
        own=FAILED,
    ),
    mistake(
        "length-of-letters",
        "RFC 9110, section 8.6",
        FAILED,
        NOTHING,
        answered(body=b"hello", then=Then.EITHER),
        own=FAILED,
    ),
    mistake(
        "negative-length",
        "RFC 9110, section 8.6",
        FAILED,
        NOTHING,
        answered(body=b"hello", then=Then.EITHER),
        own=FAILED,
    ),
    *(
        unsendable(name, "RFC 9110, section 15: a final status is from 200 to 599")
        for name in ("status-100", "status-99", "status-1000")
    ),
    mistake("status-of-text", "ASGI, Response Start: an integer", FAILED, NOTHING, own=FAILED),
]

CASES: list[Case] = [*RESPONSES, *MISTAKES]
