"""The applications of the benchmarks that need a framework, as most applications have one."""

import os
import tempfile
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

FILE_SIZE = 50 * 1024


class Item(BaseModel):
    """What the JSON case sends."""

    name: str
    price: float
    tags: list[str]


json = FastAPI()


@json.get("/")
async def read_item(item: int = 1) -> Item:
    """Answer a small object through validation and serialisation."""
    return Item(name=f"item {item}", price=9.5, tags=["a", "b", "c"])


_directory = os.environ.get("BENCHMARK_DIRECTORY") or tempfile.gettempdir()
_path = os.path.join(_directory, f"asgictl-benchmark-{FILE_SIZE}.bin")
if not os.path.exists(_path):
    with open(_path, "wb") as _handle:
        _handle.write(b"f" * FILE_SIZE)


async def _file(request: Request) -> Any:
    return FileResponse(_path)


file = Starlette(routes=[Route("/", _file)])
