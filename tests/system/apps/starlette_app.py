"""Static files and server-sent events with Starlette."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from version import VERSION


async def upload(request: Request) -> JSONResponse:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return JSONResponse({"size": size, "version": VERSION})


async def events(request: Request) -> StreamingResponse:
    async def stream() -> AsyncIterator[str]:
        for number in range(int(request.query_params["count"])):
            yield f"id: {number}\ndata: event {number}\n\n"
            await asyncio.sleep(0)

    return StreamingResponse(stream(), media_type="text/event-stream")


app = Starlette(
    routes=[
        Route("/upload", upload, methods=["POST"]),
        Route("/events", events),
        Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
    ]
)
