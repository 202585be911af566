"""The applications that the benchmarks serve: plain ASGI, so that the server is what is measured."""

import asyncio
import gc
import os
from typing import Any

TEXT = b"Hello, World!"
CHUNK = b"x" * 1024


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """Answer 13 bytes, as small as answers get; reloads are seen by the pid in a header."""
    assert scope["type"] == "http"
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"13")]
    if scope["path"] == "/pid":
        headers.append((b"x-pid", b"%d" % os.getpid()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": TEXT})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request's body with the same bytes."""
    assert scope["type"] == "http"
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = b"".join(parts)
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream(scope: Any, receive: Any, send: Any) -> None:
    """Answer 10 KiB in ten messages, without a length: the server has to use chunks."""
    assert scope["type"] == "http"
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/plain")],
        }
    )
    for _ in range(10):
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def websocket(scope: Any, receive: Any, send: Any) -> None:
    """Send every message back; a plain request is answered too, which tells that the server is up."""
    if scope["type"] == "http":
        await plain(scope, receive, send)
        return
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        text = message.get("text")
        if text is not None:
            await send({"type": "websocket.send", "text": text})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})


async def waiting(scope: Any, receive: Any, send: Any) -> None:
    """Answer after 10 ms, as if a database had been asked."""
    await asyncio.sleep(0.01)
    await plain(scope, receive, send)


async def collecting(scope: Any, receive: Any, send: Any) -> None:
    """Answer like ``plain``; /collect runs the garbage collector before."""
    if scope["path"] == "/collect":
        gc.collect()
        scope["path"] = "/pid"
    await plain(scope, receive, send)


_listeners: set[Any] = set()


async def broadcast(scope: Any, receive: Any, send: Any) -> None:
    """Send each message to all WebSockets that are open."""
    if scope["type"] == "http":
        await plain(scope, receive, send)
        return
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    _listeners.add(send)
    try:
        while (message := await receive())["type"] == "websocket.receive":
            for listener in tuple(_listeners):
                await listener({"type": "websocket.send", "text": message["text"]})
    finally:
        _listeners.discard(send)
