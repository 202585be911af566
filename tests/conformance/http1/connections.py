"""Connections: kept, pipelined, upgraded, half closed, broken, and told to the application."""

from tests.conformance.http1.bodies import BROKEN, chunks, length, post
from tests.conformance.http1.case import (
    DROPPED,
    REFUSALS,
    Answer,
    AwaitAnswer,
    AwaitReport,
    Bytewise,
    Case,
    HalfClose,
    Outcome,
    Pause,
    Reset,
    Then,
    Unread,
    answered,
    must,
    refused,
    several,
    should,
)
from tests.conformance.http1.responses import STREAM, get, head

CLOSE = {"connection": "(?i)close"}


def ok(body: bytes) -> Answer:
    """Return a 200 with this body."""
    return Answer(status=(200,), body=body)


KEEPING = [
    must(
        "keep.1-1",
        "RFC 9112, section 9.3: persistent unless told",
        get(b"/hello"),
        answered(body=b"hello"),
    ),
    must(
        "keep.1-1-close",
        "RFC 9112, section 9.6",
        get(b"/hello", b"Connection: close"),
        answered(body=b"hello", then=Then.CLOSED),
    ),
    should(
        "keep.close-is-answered",
        "RFC 9112, section 9.6: the last answer says close",
        get(b"/hello", b"Connection: close"),
        answered(headers=CLOSE, then=Then.CLOSED),
    ),
    must(
        "keep.close-in-capitals",
        "RFC 9110, section 7.6.1: not case-sensitive",
        get(b"/hello", b"Connection: CLOSE"),
        answered(then=Then.CLOSED),
    ),
    must(
        "keep.close-in-list",
        "RFC 9110, section 7.6.1",
        get(b"/hello", b"Connection: x, close"),
        answered(then=Then.CLOSED),
    ),
    must(
        "keep.close-in-second-line",
        "RFC 9110, section 7.6.1",
        get(b"/hello", b"Connection: keep-alive", b"Connection: close"),
        answered(then=Then.CLOSED),
    ),
    must(
        "keep.closed-is-not-close",
        "RFC 9110, section 7.6.1",
        get(b"/hello", b"Connection: closed"),
        answered(body=b"hello"),
    ),
    must(
        "keep.keep-alive-and-close",
        "RFC 9112, section 9.3: close goes first",
        get(b"/hello", b"Connection: keep-alive, close"),
        answered(then=Then.CLOSED),
    ),
    must(
        "keep.1-0",
        "RFC 9112, section 9.3",
        get(b"/hello", version=b"1.0"),
        answered(body=b"hello", then=Then.CLOSED),
    ),
    must(
        "keep.1-0-keep-alive",
        "RFC 9112, section 9.3: kept, and said so, or closed",
        get(b"/probe", b"Connection: keep-alive", version=b"1.0"),
        answered(body=b"probe", headers={"connection": "(?i)keep-alive"}),
        answered(body=b"probe", then=Then.CLOSED),
        own=answered(body=b"probe", headers={"connection": "(?i)keep-alive"}),
    ),
    must(
        "keep.1-0-keep-alive-and-close",
        "RFC 9112, section 9.3",
        get(b"/hello", b"Connection: keep-alive, close", version=b"1.0"),
        answered(then=Then.CLOSED),
    ),
    must(
        "keep.application-closes",
        "RFC 9112, section 9.6",
        get(b"/close"),
        answered(body=b"hello", headers=CLOSE, then=Then.CLOSED),
    ),
    must("keep.after-404", "RFC 9112, section 9.3", get(b"/404"), answered(status=(404,))),
    must(
        "keep.after-head",
        "RFC 9112, section 9.3",
        [head(b"/hello"), AwaitAnswer(), get(b"/hello")],
        several(Answer(status=(200,), body=b""), ok(b"hello")),
        heads=(0,),
    ),
    must(
        "keep.after-204",
        "RFC 9112, section 9.3",
        [get(b"/204-empty"), AwaitAnswer(), get(b"/hello")],
        several(Answer(status=(204,)), ok(b"hello")),
    ),
    must(
        "keep.after-304",
        "RFC 9112, section 9.3",
        [get(b"/304-empty"), AwaitAnswer(), get(b"/hello")],
        several(Answer(status=(304,)), ok(b"hello")),
    ),
    must(
        "keep.after-body",
        "RFC 9112, section 9.3",
        [length(b"3"), AwaitAnswer(), get(b"/hello")],
        several(Answer(status=(200,), saw={"body": "abc"}), ok(b"hello")),
    ),
    must(
        "keep.after-empty-line",
        "RFC 9112, section 2.2: an empty line before a request is ignored",
        [length(b"3") + b"\r\n", AwaitAnswer(), get(b"/hello")],
        several(Answer(status=(200,), saw={"body": "abc"}), ok(b"hello")),
    ),
    must(
        "keep.ten-in-turn",
        "RFC 9112, section 9.3",
        [step for _ in range(10) for step in (get(b"/hello"), AwaitAnswer())][:1]
        + [each for number in range(1, 10) for each in (AwaitAnswer(number), get(b"/hello"))],
        several(*[ok(b"hello")] * 10),
    ),
]

PIPELINES = [
    must(
        "pipeline.two",
        "RFC 9112, section 9.3.2",
        get(b"/hello") + get(b"/probe"),
        several(ok(b"hello"), ok(b"probe")),
    ),
    must(
        "pipeline.thirty",
        "RFC 9112, section 9.3.2",
        get(b"/hello") * 29 + get(b"/probe"),
        several(*[ok(b"hello")] * 29, ok(b"probe")),
    ),
    must(
        "pipeline.bytewise",
        "RFC 9112, section 9.3.2",
        [Bytewise(get(b"/hello") + get(b"/probe"))],
        several(ok(b"hello"), ok(b"probe")),
    ),
    must(
        "pipeline.cut-in-the-second",
        "RFC 9112, section 9.3.2",
        [get(b"/hello") + b"GET /pr", Pause(), b"obe HTTP/1.1\r\nHost: a\r\n\r\n"],
        several(ok(b"hello"), ok(b"probe")),
    ),
    must(
        "pipeline.slow-first",
        "RFC 9112, section 9.3.2: answers in the order of the requests",
        get(b"/delayed") + get(b"/hello"),
        several(ok(b"delayed"), ok(b"hello")),
    ),
    must(
        "pipeline.stream-first",
        "RFC 9112, section 9.3.2",
        get(b"/stream") + get(b"/hello"),
        several(ok(STREAM), ok(b"hello")),
    ),
    must(
        "pipeline.head-first",
        "RFC 9112, section 9.3.2",
        head(b"/hello") + get(b"/probe"),
        several(Answer(status=(200,), body=b""), ok(b"probe")),
    ),
    must(
        "pipeline.204-first",
        "RFC 9112, section 9.3.2",
        get(b"/204-empty") + get(b"/probe"),
        several(Answer(status=(204,)), ok(b"probe")),
    ),
    must(
        "pipeline.body-first",
        "RFC 9112, section 9.3.2",
        length(b"3") + get(b"/hello"),
        several(Answer(status=(200,), saw={"body": "abc"}), ok(b"hello")),
    ),
    must(
        "pipeline.chunks-first",
        "RFC 9112, section 9.3.2",
        chunks(b"3\r\nabc\r\n0\r\nX: y\r\n\r\n") + get(b"/hello"),
        several(Answer(status=(200,), saw={"body": "abc"}), ok(b"hello")),
    ),
    must(
        "pipeline.two-bodies",
        "RFC 9112, section 9.3.2",
        length(b"3") + chunks(b"2\r\nde\r\n0\r\n\r\n"),
        several(
            Answer(status=(200,), saw={"body": "abc"}), Answer(status=(200,), saw={"body": "de"})
        ),
    ),
    must(
        "pipeline.unread-body-first",
        "RFC 9112, section 9.3: the body is read, or the connection ends",
        length(b"3").replace(b"/ ", b"/early ", 1) + get(b"/hello"),
        several(ok(b"early"), ok(b"hello")),
        several(ok(b"early"), then=Then.CLOSED),
    ),
    must(
        "pipeline.unread-chunks-first",
        "RFC 9112, section 9.3: the body is read, or the connection ends",
        chunks(b"3\r\nabc\r\n0\r\n\r\n").replace(b"/ ", b"/early ", 1) + get(b"/hello"),
        several(ok(b"early"), ok(b"hello")),
        several(ok(b"early"), then=Then.CLOSED),
    ),
    must(
        "pipeline.unread-body-like-request",
        "RFC 9112, section 11.2: what stands in a body is never served as a request",
        [
            post(b"Content-Length: 50").replace(b"/ ", b"/early ", 1)
            + get(b"/mark?in-unread-body").ljust(50, b"x"),
            AwaitAnswer(),
            Reset(),
            get(b"/report-now?in-unread-body"),
        ],
        several(ok(b"early"), Answer(status=(200,), saw={"report": None})),
    ),
    must(
        "pipeline.head-with-body",
        "RFC 9112, section 6.3: a HEAD may have a body, too",
        length(b"3").replace(b"POST", b"HEAD") + get(b"/hello"),
        several(Answer(status=(200,), body=b""), ok(b"hello")),
        several(Answer(status=(200,), body=b""), then=Then.CLOSED),
        heads=(0,),
    ),
    must(
        "pipeline.refused-body-like-request",
        "RFC 9112, section 11.2: what follows a refusal is not a request",
        [
            post(b"Content-Length: 50", b"Content-Length: 51")
            + get(b"/mark?in-refused-body").ljust(50, b"x"),
            AwaitAnswer(),
            Reset(),
            get(b"/report-now?in-refused-body"),
        ],
        several(Answer(status=REFUSALS), Answer(status=(200,), saw={"report": None})),
    ),
    must(
        "pipeline.behind-refused-upgrade",
        "RFC 9112, section 9.3.2",
        get(
            b"/hello",
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
        )
        + get(b"/hello"),
        several(Answer(status=REFUSALS), ok(b"hello")),
        several(Answer(status=REFUSALS), then=Then.CLOSED),
    ),
    must(
        "pipeline.close-first",
        "RFC 9112, section 9.6: nothing behind close is processed",
        [
            get(b"/hello", b"Connection: close") + get(b"/mark?behind-close"),
            AwaitAnswer(),
            Reset(),
            get(b"/report-now?behind-close"),
        ],
        several(ok(b"hello"), Answer(status=(200,), saw={"report": None})),
    ),
    must(
        "pipeline.1-0-first",
        "RFC 9112, section 9.3: nothing behind an HTTP/1.0 request is processed",
        [
            get(b"/hello", version=b"1.0") + get(b"/mark?behind-1-0"),
            AwaitAnswer(),
            Reset(),
            get(b"/report-now?behind-1-0"),
        ],
        several(ok(b"hello"), Answer(status=(200,), saw={"report": None})),
    ),
    should(
        "pipeline.bad-second",
        "RFC 9112, section 9.3.2: the first is answered all the same",
        get(b"/hello") + b"GET / HTTP/1.1\r\nX : y\r\n\r\n",
        several(ok(b"hello"), Answer(status=REFUSALS), then=Then.EITHER),
        several(ok(b"hello"), then=Then.CLOSED),
        own=several(ok(b"hello"), Answer(status=(400,)), then=Then.CLOSED),
    ),
    should(
        "pipeline.bad-behind-slow",
        "RFC 9112, section 9.3.2: the first is answered all the same",
        get(b"/delayed") + b"GET / HTTP/1.1\r\nX : y\r\n\r\n",
        several(ok(b"delayed"), Answer(status=REFUSALS), then=Then.EITHER),
        several(ok(b"delayed"), then=Then.CLOSED),
        own=several(ok(b"delayed"), Answer(status=(400,)), then=Then.CLOSED),
    ),
    must(
        "pipeline.failed-first",
        "RFC 9112, section 9.3.2",
        get(b"/mistake/raise-before") + get(b"/hello"),
        several(Answer(status=(500,)), ok(b"hello")),
        several(Answer(status=(500,)), then=Then.CLOSED),
    ),
    must(
        "pipeline.with-empty-lines",
        "RFC 9112, section 2.2",
        get(b"/hello") + b"\r\n" + get(b"/probe"),
        several(ok(b"hello"), ok(b"probe")),
    ),
]

CLOSING = [
    should(
        "close.half-closed",
        "RFC 9293, section 3.6: the other half stays open",
        [get(b"/hello"), HalfClose()],
        answered(body=b"hello", then=Then.CLOSED),
    ),
    should(
        "close.half-closed-slow",
        "RFC 9293, section 3.6",
        [get(b"/delayed"), HalfClose()],
        answered(body=b"delayed", then=Then.CLOSED),
    ),
    should(
        "close.half-closed-stream",
        "RFC 9293, section 3.6",
        [get(b"/stream"), HalfClose()],
        answered(body=STREAM, then=Then.CLOSED),
    ),
    should(
        "close.half-closed-body",
        "RFC 9293, section 3.6",
        [length(b"3"), HalfClose()],
        answered(saw={"body": "abc"}, then=Then.CLOSED),
    ),
    should(
        "close.half-closed-pipeline",
        "RFC 9293, section 3.6",
        [get(b"/delayed") + get(b"/hello"), HalfClose()],
        several(ok(b"delayed"), ok(b"hello"), then=Then.CLOSED),
    ),
    must("close.without-request", "RFC 9112, section 9.5", [HalfClose()], DROPPED),
    must(
        "close.in-line",
        "RFC 9112, section 8: an incomplete head is no request",
        [b"GET /mark?in-line HT", HalfClose()],
        DROPPED,
        refused(),
    ),
    must(
        "close.in-head",
        "RFC 9112, section 8: an incomplete head is no request",
        [b"GET /mark?in-head HTTP/1.1\r\nHost: a\r\n", HalfClose()],
        DROPPED,
        refused(),
    ),
    should(
        "close.answer-before-body",
        "RFC 9112, section 9.6: what is still sent does not cost the client the answer",
        [post(b"Content-Length: 600000").replace(b"/ ", b"/early ", 1), Unread(b"x" * 600_000)],
        answered(body=b"early", then=Then.EITHER),
    ),
    should(
        "close.refusal-before-body",
        "RFC 9112, section 9.6: what is still sent does not cost the client the answer",
        [post(b"Content-Length: 600000", b"Content-Length: 600001"), Unread(b"x" * 600_000)],
        refused(400),
    ),
    should(
        "close.refusal-before-chunks",
        "RFC 9112, section 9.6: what is still sent does not cost the client the answer",
        [chunks(b"xyz\r\n"), Unread(b"x" * 600_000)],
        BROKEN,
    ),
    should(
        "close.answer-after-first-part",
        "RFC 9112, section 9.3: the rest is read, or the connection ends",
        [
            length(b"300000", b"abc").replace(b"/ ", b"/first-part ", 1),
            AwaitAnswer(),
            b"x" * 299_997,
        ],
        answered(body=b"abc", then=Then.EITHER),
    ),
]


def reported(key: str, path: bytes, *reports: str) -> Case:
    """Declare what the application is told when the client has gone."""
    name = key.encode()
    return must(
        f"disconnect.{key}",
        "ASGI, Disconnect event",
        [get(path + b"?" + name), AwaitReport(key + "!"), Reset(), get(b"/report?" + name)],
        *(Outcome((Answer(status=(200,), saw={"report": [each]}),), Then.KEPT) for each in reports),
    )


DISCONNECTS = [
    must(
        "disconnect.while-waiting",
        "ASGI, Disconnect event",
        [get(b"/wait?waiting"), AwaitReport("waiting!"), Reset(), get(b"/report?waiting")],
        answered(saw={"report": ["http.request", "http.disconnect"]}),
    ),
    must(
        "disconnect.in-body",
        "ASGI, Disconnect event",
        [
            post(b"Content-Length: 10", body=b"abc").replace(b"/ ", b"/wait?body ", 1),
            AwaitReport("body!"),
            Reset(),
            get(b"/report?body"),
        ],
        answered(saw={"report": ["http.request", "http.disconnect"]}),
        answered(saw={"report": ["http.disconnect"]}),
    ),
    reported("streaming", b"/stream-until-lost", "OSError", "http.disconnect"),
    reported("sending-later", b"/send-after-disconnect", "OSError", "nothing"),
    must(
        "disconnect.after-response",
        "ASGI, Disconnect event: also after the response was sent",
        [get(b"/receive-after?after"), AwaitAnswer(), get(b"/report?after")],
        several(ok(b"done"), Answer(status=(200,), saw={"report": ["http.disconnect"]})),
    ),
]

UPGRADES = [
    must(
        "upgrade.unknown",
        "RFC 9110, section 7.8: an upgrade may be ignored",
        get(b"/hello", b"Connection: upgrade", b"Upgrade: foo/2"),
        answered(body=b"hello"),
    ),
    must(
        "upgrade.without-option",
        "RFC 9110, section 7.8: Upgrade counts only with the option",
        get(
            b"/hello",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ),
        answered(body=b"hello"),
        refused(400, 426, then=Then.EITHER),
    ),
    must(
        "upgrade.in-1-0",
        "RFC 9110, section 7.8: ignored in an HTTP/1.0 request",
        get(
            b"/hello",
            b"Connection: upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            version=b"1.0",
        ),
        answered(body=b"hello", then=Then.CLOSED),
        refused(400, 426),
    ),
    must(
        "upgrade.websocket",
        "RFC 6455, section 4.2.2",
        get(
            b"/",
            b"Connection: keep-alive, Upgrade",
            b"Upgrade: WebSocket",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ),
        Outcome(
            (
                Answer(
                    status=(101,),
                    headers={"sec-websocket-accept": r"s3pPLMBiTxaQ9kYGzzhZRbK\+xOo="},
                ),
            ),
            Then.CLOSED,
        ),
    ),
    must(
        "upgrade.websocket-of-another-version",
        "RFC 6455, section 4.2.2: 426 or the like, with the version that is spoken",
        get(
            b"/",
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 8",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ),
        refused(426, 400, headers={"sec-websocket-version": "13"}, then=Then.EITHER),
    ),
    must(
        "upgrade.websocket-without-key",
        "RFC 6455, section 4.2.1",
        get(b"/", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"),
        refused(then=Then.EITHER),
    ),
    must(
        "upgrade.websocket-by-post",
        "RFC 6455, section 4.2.1: GET only",
        get(
            b"/hello",
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            method=b"POST",
        ),
        refused(then=Then.EITHER),
        answered(body=b"hello"),
    ),
]

CASES: list[Case] = [*KEEPING, *PIPELINES, *CLOSING, *DISCONNECTS, *UPGRADES]
