"""Quart: forms, a generator as body, start-up hooks and a WebSocket."""

import os
from collections.abc import AsyncIterator
from typing import Any

from quart import Quart, request, websocket
from version import VERSION

app = Quart(__name__)
started: list[int] = []


@app.before_serving
async def remember() -> None:
    started.append(os.getpid())


@app.get("/state")
async def show_state() -> dict[str, Any]:
    return {"started_here": started == [os.getpid()], "version": VERSION}


@app.post("/form")
async def form() -> tuple[dict[str, str], int]:
    return dict(await request.form), 201


@app.get("/stream/<int:count>")
async def stream(count: int) -> AsyncIterator[bytes]:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(count):
            yield b"line %d\n" % number

    return parts()


@app.websocket("/socket")
async def socket() -> None:
    while True:
        await websocket.send(await websocket.receive())
