"""Applications that do on purpose what goes wrong in others, as text for ``Project.write()``."""

import contextlib
import socket
from collections.abc import Iterator

from tests.kit import PATIENCE, Project, wait_for

WEBSOCKET = """
async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "hello"})
        while (await receive())["type"] == "websocket.receive":
            pass
"""

HELD = '''
"""Answers when a file is there."""
import asyncio, os, pathlib

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/held":
        pathlib.Path("arrived").touch()
        while not pathlib.Path("go").exists():
            await asyncio.sleep(0.01)
    body = b"%d" % os.getpid()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
'''


@contextlib.contextmanager
def held(project: Project, port: int) -> Iterator[socket.socket]:
    """Send a request to ``HELD``, and go on when the application has it."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for((project.directory / "arrived").exists, "the request arrives")
        yield client


def release(project: Project) -> None:
    """Have ``HELD`` answer."""
    (project.directory / "go").touch()


HANGING_IMPORT = """
import pathlib, time
pathlib.Path("importing").touch()
while not pathlib.Path("imported").exists():
    time.sleep(0.01)
"""

FAILING_LIFESPAN = """
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database today"})
"""

BLOCKING = """
import os, time

def stuck_in_here():
    time.sleep(3600)

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/block":
        stuck_in_here()
    if scope["path"] == "/exit":
        os._exit(0)
    if scope["path"] == "/spin":
        while True:
            pass
    body = b"%d" % os.getpid()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""
