"""Real frameworks behind real workers, used while the fleet is reloaded and scaled."""

import asyncio
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import Serve
from tests.kit import PATIENCE, Project, wait_for
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.typing import Subprotocol

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]

APPS = Path(__file__).parent / "apps"
CLIENTS = 6
BIG = bytes(range(256)) * 800
_numbers = itertools.count(1)


def lines(count: int) -> str:
    return "".join(f"line {number}\n" for number in range(count))


async def talk(
    url: str, chat: Callable[[ClientConnection], Awaitable[None]], **options: Any
) -> None:
    """Open a WebSocket and run ``chat``; a worker that leaves may end it, but has to say 1012."""
    ended: ConnectionClosed | None = None
    async with connect(url.replace("http", "ws") + "/socket", proxy=None, **options) as socket:
        try:
            await chat(socket)
        except ConnectionClosed as closed:
            ended = closed
    assert ended is None or (ended.rcvd and ended.rcvd.code == CloseCode.SERVICE_RESTART), ended


async def use_fastapi(client: httpx.AsyncClient, url: str) -> str:
    number = next(_numbers)
    answer = await client.get(f"/items/{number}", params={"limit": 3})
    assert answer.status_code == 200
    version = answer.json()["version"]
    assert answer.json() == {"item_id": number, "version": version, "limit": 3, "offset": 0}

    item = {"name": "Schraube", "price": 0.25, "tags": ["ä", "ö"]}
    answer = await client.post("/items", json=item)
    assert (answer.status_code, answer.json()) == (201, item)
    answer = await client.post("/items", json={"name": "no price"})
    assert answer.status_code == 422

    answer = await client.get("/state")
    assert answer.json()["started_here"] is True
    assert answer.json()["count"] >= 1

    answer = await client.post(f"/notes/{number}", content=f"note {number}")
    assert answer.status_code == 202
    deadline = time.monotonic() + PATIENCE
    while (answer := await client.get(f"/notes/{number}")).status_code == 404:
        assert time.monotonic() < deadline, "the background task has not run"
    assert answer.json() == {"text": f"note {number}"}

    answer = await client.get("/stream/50")
    assert answer.text == lines(50)

    async def chat(socket: ClientConnection) -> None:
        assert socket.subprotocol == "echo"
        for text in ("one", "zwö", "x" * 10_000):
            await socket.send(text)
            assert f'"echo":"{text}"' in str(await socket.recv())

    await talk(url, chat, subprotocols=[Subprotocol("other"), Subprotocol("echo")])
    return str(version)


async def use_starlette(client: httpx.AsyncClient, url: str) -> str:
    answer = await client.get("/static/big.bin")
    assert answer.status_code == 200
    assert answer.content == BIG
    answer = await client.get("/static/big.bin", headers={"If-None-Match": answer.headers["etag"]})
    assert (answer.status_code, answer.content) == (304, b"")
    answer = await client.get("/static/big.bin", headers={"Range": "bytes=1000-1999"})
    assert (answer.status_code, answer.content) == (206, BIG[1000:2000])
    answer = await client.head("/static/style.css")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 0
    assert (await client.get("/static/none")).status_code == 404

    async with client.stream("GET", "/events", params={"count": 20}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        text = "".join([part async for part in stream.aiter_text()])
    assert text == "".join(f"id: {number}\ndata: event {number}\n\n" for number in range(20))

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"p" * 5000

    answer = await client.post("/upload", content=parts())
    assert answer.json()["size"] == 50_000
    return str(answer.json()["version"])


async def use_django(client: httpx.AsyncClient, url: str) -> str:
    number = next(_numbers)
    author = f"author-{number}"
    for title in ("first", "second"):
        answer = await client.post("/books", json={"title": title, "author": author})
        assert answer.status_code == 201
    answer = await client.get(f"/books/{answer.json()['id']}")
    assert answer.status_code == 200
    version = answer.json()["version"]
    assert answer.json() == {"title": "second", "author": author, "version": version}
    answer = await client.get(f"/authors/{author}")
    assert answer.json() == {"count": 2}
    answer = await client.get("/stream/50")
    assert answer.text == lines(50)
    return str(version)


async def use_litestar(client: httpx.AsyncClient, url: str) -> str:
    answer = await client.post("/orders", json={"article": "Nagel", "amount": 21})
    assert answer.status_code == 201
    version = answer.json()["version"]
    assert answer.json() == {"article": "Nagel", "total": 42, "version": version}
    assert (await client.post("/orders", json={"article": "Nagel"})).status_code == 400
    assert (await client.get("/state")).json() == {"started_here": True}
    assert (await client.get("/stream/50")).text == lines(50)

    async def chat(socket: ClientConnection) -> None:
        for message in (b"", b"\0\xff", BIG):
            await socket.send(message)
            assert await socket.recv() == message

    await talk(url, chat)
    return str(version)


async def use_quart(client: httpx.AsyncClient, url: str) -> str:
    answer = await client.post("/form", data={"name": "Käthe", "age": "7"})
    assert (answer.status_code, answer.json()) == (201, {"name": "Käthe", "age": "7"})
    assert (await client.get("/stream/50")).text == lines(50)

    async def chat(socket: ClientConnection) -> None:
        for message in ("eins", b"zwei", "d" * 70_000):
            await socket.send(message)
            assert await socket.recv() == message

    await talk(url, chat)
    answer = await client.get("/state")
    assert answer.json()["started_here"] is True
    return str(answer.json()["version"])


Use = Callable[[httpx.AsyncClient, str], Awaitable[str]]


class Users:
    """Several clients that use an application over and over; the first wrong answer ends them."""

    def __init__(self, url: str, use: Use) -> None:
        self.url, self.use = url, use
        self.uses: list[tuple[float, str]] = []
        """When a use began, and which version answered."""
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="users")
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "a client still waits for an answer"

    def versions(self, uses: int) -> set[str]:
        """Wait for uses that begin now or later, and return the versions that answered them."""
        now = time.monotonic()

        def since() -> list[str]:
            return [version for began, version in list(self.uses) if began >= now]

        wait_for(lambda: self.errors or len(since()) >= uses, f"{uses} more uses")
        for error in self.errors:
            raise error
        return set(since())

    async def _run(self) -> None:
        await asyncio.gather(*(self._user() for _ in range(CLIENTS)))

    async def _user(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE) as client:
            while not self._stop.is_set() and not self.errors:
                began = time.monotonic()
                try:
                    self.uses.append((began, await self.use(client, self.url)))
                except BaseException as error:
                    self.errors.append(error)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("fastapi", use_fastapi),
        ("starlette", use_starlette),
        ("django", use_django),
        ("litestar", use_litestar),
        ("quart", use_quart),
    ],
)
def test_a_framework_serves_every_request_through_a_reload_and_scaling(
    serve: Serve, project: Project, name: str, use: Use
) -> None:
    project.copy(APPS).write('VERSION = "old"\n', "version.py")
    (project.directory / "static" / "big.bin").write_bytes(BIG)
    if name == "django":
        subprocess.run([sys.executable, "django_app.py"], cwd=project.directory, check=True)
    server = serve("--workers", "4", "--min-ready", "0.2", name=f"{name}_app:app")
    users = Users(server.url, use)
    try:
        assert users.versions(2 * CLIENTS) == {"old"}

        project.write('VERSION = "new"\n', "version.py")
        server.reload(within=90)
        assert users.versions(2 * CLIENTS) == {"new"}

        server.signal("TTIN")
        server.wait_for_workers(5)
        assert users.versions(CLIENTS) == {"new"}

        server.signal("TTOU")
        server.wait_for_workers(4)
        assert users.versions(CLIENTS) == {"new"}
    finally:
        users.stop()
    assert not users.errors
    server.accept_files()
    server.stop()
