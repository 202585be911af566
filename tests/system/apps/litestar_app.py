"""Litestar: typed handlers, state from a lifespan hook, a stream and a WebSocket."""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from litestar import Litestar, WebSocket, get, post, websocket
from litestar.datastructures import State
from litestar.exceptions import WebSocketDisconnect
from litestar.response import Stream
from version import VERSION


@dataclass
class Order:
    article: str
    amount: int


@post("/orders")
async def order(data: Order) -> dict[str, Any]:
    return {"article": data.article, "total": data.amount * 2, "version": VERSION}


@get("/state")
async def show_state(state: State) -> dict[str, bool]:
    return {"started_here": state.pid == os.getpid()}


@get("/stream/{count:int}")
async def stream(count: int) -> Stream:
    async def parts() -> AsyncIterator[str]:
        for number in range(count):
            yield f"line {number}\n"

    return Stream(parts())


@websocket("/socket")
async def socket(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_bytes(await socket.receive_bytes())
    except WebSocketDisconnect:
        pass


def remember(app: Litestar) -> None:
    app.state.pid = os.getpid()


app = Litestar([order, show_state, stream, socket], on_startup=[remember])
