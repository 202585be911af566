"""What FastAPI applications are made of: models, dependencies, tasks, streams, WebSockets, state."""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from version import VERSION


class Item(BaseModel):
    name: str
    price: float
    tags: list[str] = []


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"started_by": os.getpid(), "requests": []}


app = FastAPI(lifespan=lifespan)


async def paging(limit: int = 10, offset: int = 0) -> dict[str, int]:
    return {"limit": limit, "offset": offset}


@app.get("/items/{item_id}")
async def read_item(
    item_id: int, page: Annotated[dict[str, int], Depends(paging)]
) -> dict[str, Any]:
    return {"item_id": item_id, "version": VERSION, **page}


@app.post("/items", status_code=201)
async def create_item(item: Item) -> Item:
    return item


@app.get("/state")
async def state(request: Request) -> dict[str, Any]:
    # The dictionary is this request's own copy; what it holds is the worker's.
    request.state.requests.append(1)
    return {
        "started_here": request.state.started_by == os.getpid(),
        "count": len(request.state.requests),
    }


@app.post("/notes/{name}", status_code=202)
async def write_note(name: int, tasks: BackgroundTasks, request: Request) -> dict[str, str]:
    text = (await request.body()).decode()
    tasks.add_task(save, Path(f"note-{name}"), text)
    return {"status": "accepted"}


def save(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.rename(path)


@app.get("/notes/{name}")
def read_note(name: int) -> dict[str, str]:
    try:
        return {"text": Path(f"note-{name}").read_text()}
    except FileNotFoundError:
        raise HTTPException(404, "not yet") from None


@app.get("/stream/{count}")
async def stream(count: int) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        for number in range(count):
            yield f"line {number}\n"

    return StreamingResponse(lines(), media_type="text/plain")


@app.websocket("/socket")
async def socket(websocket: WebSocket) -> None:
    await websocket.accept(
        subprotocol="echo" if "echo" in websocket.scope["subprotocols"] else None
    )
    async for text in websocket.iter_text():
        await websocket.send_json({"echo": text, "version": VERSION})
