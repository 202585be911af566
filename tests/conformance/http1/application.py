"""What a server serves in the conformance cases; it needs nothing but an ASGI server.

By default it tells what it was asked; other paths answer in all the ways that HTTP knows, and
in many that an application should not. ``/report?<id>`` tells what happened to the request
that carried that id.
"""

import asyncio
import json

REPORTS = {}
PARTS = (b"one ", b"two ", b"three")


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
    else:
        path = scope["path"]
        await ROUTES.get(path, mistake if path.startswith("/mistake/") else echo)(
            scope, receive, send
        )


async def lifespan(receive, send):
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def start(send, status=200, *headers):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def body(send, data=b"", more=False):
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def whole(send, data, *headers, status=200):
    await start(send, status, (b"content-length", b"%d" % len(data)), *headers)
    await body(send, data)


def key(scope):
    return scope["query_string"].decode()


async def read(receive):
    """Return the whole body, or None if it never ended."""
    data = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        data += message.get("body", b"")
        if not message.get("more_body", False):
            return data


async def echo(scope, receive, send):
    """Tell what was asked, with the whole body."""
    data = await read(receive)
    if data is None:
        return
    headers = [
        [name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]
    ]
    told = {
        "method": scope["method"],
        "path": scope["path"],
        "raw_path": (scope.get("raw_path") or b"").decode("latin-1"),
        "query": scope["query_string"].decode("latin-1"),
        "http_version": scope["http_version"],
        "scheme": scope["scheme"],
        "root_path": scope.get("root_path", ""),
        "asgi": scope["asgi"].get("version"),
        "host": [value for name, value in headers if name == "host"],
        "x": [value for name, value in headers if name == "x"],
        "names": [name for name, _ in headers],
        "headers_are_bytes": all(
            type(name) is bytes and type(value) is bytes for name, value in scope["headers"]
        ),
        "client": bool(scope.get("client")) and type(scope["client"][1]).__name__,
        "server": bool(scope.get("server")) and type(scope["server"][1]).__name__,
        "body": data.decode("latin-1") if len(data) < 100_000 else len(data),
    }
    await whole(send, json.dumps(told).encode(), (b"content-type", b"application/json"))


async def probe(scope, receive, send):
    await whole(send, b"probe")


async def hello(scope, receive, send):
    await start(send)
    await body(send, b"hello")


async def nothing(scope, receive, send):
    await start(send)
    await body(send)


async def stream(scope, receive, send):
    await start(send)
    for part in PARTS:
        await body(send, part, True)
        await asyncio.sleep(0.01)
    await body(send)


async def stream_length(scope, receive, send):
    await start(send, 200, (b"content-length", b"%d" % len(b"".join(PARTS))))
    for part in PARTS:
        await body(send, part, True)
        await asyncio.sleep(0.01)
    await body(send)


async def stream_empty_parts(scope, receive, send):
    await start(send)
    for part in (b"", b"a", b"", b"b", b""):
        await body(send, part, True)
    await body(send)


async def large(scope, receive, send):
    await start(send)
    for _ in range(64):
        await body(send, b"x" * 65536, True)
    await body(send)


async def large_at_once(scope, receive, send):
    await whole(send, b"x" * (4 * 1024 * 1024))


async def delayed(scope, receive, send):
    await asyncio.sleep(0.2)
    await whole(send, b"delayed")


async def early(scope, receive, send):
    """Answer without asking for the body."""
    await whole(send, b"early")


async def early_stream(scope, receive, send):
    """Begin to answer, then read the body."""
    await start(send)
    await body(send, b"begun ", True)
    data = await read(receive)
    await body(send, b"%d" % len(data or b""))


async def first_part(scope, receive, send):
    """Answer after the first part of the body."""
    message = await receive()
    await whole(send, message.get("body", b"")[:3])


def with_status(status, *headers, data=b"a body"):
    async def answer(scope, receive, send):
        await start(send, status, *headers)
        await body(send, data)

    return answer


def with_headers(*headers, data=b"hello"):
    return with_status(200, *headers, data=data)


async def wait(scope, receive, send):
    """Wait for the client to leave, and remember what was received, and what send() then did."""
    received = []
    REPORTS[key(scope) + "!"] = True
    while not received or received[-1] == "http.request":
        received.append((await receive())["type"])
    REPORTS[key(scope)] = received


async def stream_until_lost(scope, receive, send):
    """Stream until send() says that the client has left, or receive() does."""
    await start(send)
    REPORTS[key(scope) + "!"] = True
    left = asyncio.ensure_future(wait_for_disconnect(receive))
    for _ in range(3000):
        try:
            await body(send, b"tick", True)
        except OSError:
            REPORTS[key(scope)] = ["OSError"]
            raise
        if left.done():
            break
        await asyncio.sleep(0.01)
    REPORTS[key(scope)] = [left.result() if left.done() else "nothing"]


async def wait_for_disconnect(receive):
    while (await receive())["type"] == "http.request":
        pass
    return "http.disconnect"


async def send_after_disconnect(scope, receive, send):
    REPORTS[key(scope) + "!"] = True
    await wait_for_disconnect(receive)
    try:
        await start(send)
        await body(send, b"too late")
    except OSError:
        REPORTS[key(scope)] = ["OSError"]
    except BaseException as error:
        REPORTS[key(scope)] = [type(error).__name__]
        raise
    else:
        REPORTS[key(scope)] = ["nothing"]


async def receive_after(scope, receive, send):
    """Remember what comes when the response is complete."""
    await read(receive)
    await whole(send, b"done")
    REPORTS[key(scope)] = [(await receive())["type"]]


async def messages(scope, receive, send):
    """Tell which messages came, bodies joined where the server cut them."""
    kinds = []
    more = True
    while more:
        message = await receive()
        kinds.append(message["type"])
        more = message.get("more_body", False)
    await whole(send, json.dumps({"kinds": sorted(set(kinds))}).encode())


async def mark(scope, receive, send):
    """Remember that this was asked for."""
    REPORTS[key(scope)] = ["asked"]
    await whole(send, b"marked")


async def report(scope, receive, send):
    """Tell what became of another request, as soon as it is known."""
    for _ in range(1000):
        if key(scope) in REPORTS:
            break
        await asyncio.sleep(0.01)
    await whole(send, json.dumps({"report": REPORTS.get(key(scope))}).encode())


async def report_now(scope, receive, send):
    await whole(send, json.dumps({"report": REPORTS.get(key(scope))}).encode())


# -- What an application should not do


async def mistake(scope, receive, send):
    await read(receive)
    await MISTAKES[scope["path"].removeprefix("/mistake/")](send)


async def raise_before(send):
    raise RuntimeError("on purpose")


async def raise_after_start(send):
    await start(send)
    raise RuntimeError("on purpose")


async def raise_in_chunks(send):
    await start(send)
    await body(send, b"part", True)
    raise RuntimeError("on purpose")


async def raise_in_length(send):
    await start(send, 200, (b"content-length", b"10"))
    await body(send, b"part", True)
    raise RuntimeError("on purpose")


async def raise_after_end(send):
    await whole(send, b"hello")
    raise RuntimeError("on purpose")


async def return_before(send):
    pass


async def return_after_start(send):
    await start(send)


async def return_in_chunks(send):
    await start(send)
    await body(send, b"part", True)


async def return_in_length(send):
    await start(send, 200, (b"content-length", b"10"))
    await body(send, b"part", True)


async def too_long(send):
    await start(send, 200, (b"content-length", b"5"))
    await body(send, b"helloworld")


async def too_long_in_parts(send):
    await start(send, 200, (b"content-length", b"5"))
    await body(send, b"hello", True)
    await body(send, b"world")


async def too_short(send):
    await start(send, 200, (b"content-length", b"10"))
    await body(send, b"hello")


async def body_first(send):
    await body(send, b"hello")


async def start_twice(send):
    await start(send)
    await start(send)
    await body(send, b"hello")


async def start_in_stream(send):
    await start(send)
    await body(send, b"part", True)
    await start(send)
    await body(send, b"hello")


async def body_after_end(send):
    await whole(send, b"hello")
    await body(send, b"more")


async def unknown_message(send):
    await send({"type": "http.response.unheard-of"})


async def body_of_text(send):
    await start(send)
    await body(send, "hello")


def wrong_headers(*headers, status=200):
    async def answer(send):
        await start(send, status, *headers)
        await body(send, b"hello")

    return answer


MISTAKES = {
    "raise-before": raise_before,
    "raise-after-start": raise_after_start,
    "raise-in-chunks": raise_in_chunks,
    "raise-in-length": raise_in_length,
    "raise-after-end": raise_after_end,
    "return-before": return_before,
    "return-after-start": return_after_start,
    "return-in-chunks": return_in_chunks,
    "return-in-length": return_in_length,
    "too-long": too_long,
    "too-long-in-parts": too_long_in_parts,
    "too-short": too_short,
    "body-first": body_first,
    "start-twice": start_twice,
    "start-in-stream": start_in_stream,
    "body-after-end": body_after_end,
    "unknown-message": unknown_message,
    "body-of-text": body_of_text,
    "crlf-in-value": wrong_headers((b"y", b"1\r\nx-injected: 1")),
    "lf-in-value": wrong_headers((b"y", b"1\nx-injected: 1")),
    "cr-in-value": wrong_headers((b"y", b"1\rx-injected: 1")),
    "nul-in-value": wrong_headers((b"y", b"1\x002")),
    "crlf-in-name": wrong_headers((b"y: 1\r\nx-injected", b"1")),
    "space-in-name": wrong_headers((b"y z", b"1")),
    "colon-in-name": wrong_headers((b"y:z", b"1")),
    "empty-name": wrong_headers((b"", b"1")),
    "text-in-headers": wrong_headers(("y", "1")),
    "two-lengths": wrong_headers((b"content-length", b"5"), (b"content-length", b"9")),
    "length-of-letters": wrong_headers((b"content-length", b"five")),
    "negative-length": wrong_headers((b"content-length", b"-5")),
    "status-100": wrong_headers(status=100),
    "status-99": wrong_headers(status=99),
    "status-1000": wrong_headers(status=1000),
    "status-of-text": wrong_headers(status="200 OK"),
}

ROUTES = {
    "/probe": probe,
    "/hello": hello,
    "/nothing": nothing,
    "/stream": stream,
    "/stream-length": stream_length,
    "/stream-empty-parts": stream_empty_parts,
    "/large": large,
    "/large-at-once": large_at_once,
    "/delayed": delayed,
    "/early": early,
    "/early-stream": early_stream,
    "/first-part": first_part,
    "/204": with_status(204),
    "/204-empty": with_status(204, data=b""),
    "/204-length": with_status(204, (b"content-length", b"6")),
    "/304": with_status(304),
    "/304-empty": with_status(304, data=b""),
    "/304-length": with_status(304, (b"content-length", b"6")),
    "/404": with_status(404),
    "/500": with_status(500),
    "/599": with_status(599),
    "/chunked": with_headers((b"transfer-encoding", b"chunked")),
    "/chunked-and-length": with_headers(
        (b"transfer-encoding", b"chunked"), (b"content-length", b"5")
    ),
    "/close": with_headers((b"connection", b"close")),
    "/close-in-list": with_headers((b"connection", b"Keep-Alive, Close")),
    "/date": with_headers((b"date", b"Sun, 06 Nov 1994 08:49:37 GMT")),
    "/server": with_headers((b"server", b"mine")),
    "/cookies": with_headers((b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")),
    "/obsolete-text": with_headers((b"y", b"\xe4")),
    "/empty-value": with_headers((b"y", b"")),
    "/capitals": with_headers((b"X-Capitals", b"Yes")),
    "/wait": wait,
    "/stream-until-lost": stream_until_lost,
    "/send-after-disconnect": send_after_disconnect,
    "/receive-after": receive_after,
    "/messages": messages,
    "/mark": mark,
    "/report": report,
    "/report-now": report_now,
}
