"""Moments in the life of a server at which anything may arrive, a stop above all.

Each brings a server into its moment and keeps it there, for tests and for measurements.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from tests.kit import PATIENCE, Project, Server, application, wait_for
from tests.system.applications import HANGING_IMPORT, HELD

Start = Callable[..., Server]
"""Starts a server in the project, with these options."""

ONE_IMPORT = (
    """
import os
try:
    os.mkdir("imported once")
except FileExistsError:
"""
    + "\n".join("    " + line for line in HANGING_IMPORT.splitlines())
    + "\n"
)
"""The first process that imports it goes on, the others hang."""

CRASHING = """
import os, threading
async def app(scope, receive, send):
    await receive()
    threading.Timer(0.1, os._exit, [1]).start()
    await send({"type": "lifespan.startup.complete"})
    await receive()
"""


def _wait_for_file(server: Server, name: str) -> None:
    wait_for((server.project.directory / name).exists, f"the file {name!r} is there")


def _boot(start: Start, project: Project) -> Iterator[Server]:
    project.write(HANGING_IMPORT + application("1"))
    server = start("--workers", "2")
    _wait_for_file(server, "importing")
    yield server


def _canary(start: Start, project: Project) -> Iterator[Server]:
    project.write(application("1"))
    server = start("--workers", "2").wait_until_ready()
    project.write(HANGING_IMPORT + application("2"))
    server.signal("HUP")
    _wait_for_file(server, "importing")
    yield server


def _soak(start: Start, project: Project) -> Iterator[Server]:
    project.write(application("1"))
    server = start("--workers", "2", "--min-ready", "300").wait_until_ready()
    server.signal("HUP")
    server.assert_log("ready after .* generation=2")
    yield server


def _roll(start: Start, project: Project) -> Iterator[Server]:
    project.write(application("1"))
    server = start("--workers", "3", "--min-ready", "0").wait_until_ready()
    project.write(ONE_IMPORT + application("2"))
    server.signal("HUP")
    server.assert_log("generation 2 works in one worker")
    _wait_for_file(server, "importing")
    yield server


def _drain(start: Start, project: Project) -> Iterator[Server]:
    project.write(HELD)
    server = start("--workers", "1", "--min-ready", "0").wait_until_ready()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(server.scratch / "socket"))
        client.sendall(b"GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n")
        _wait_for_file(server, "arrived")
        server.signal("HUP")
        server.assert_log("reloaded: generation 2")
        yield server
        assert client.recv(100).startswith(b"HTTP/1.1 200"), "the drain was cut off"


def _back_off(start: Start, project: Project) -> Iterator[Server]:
    project.write(CRASHING)
    server = start("--workers", "1")
    server.assert_log("starting another in", count=3)
    yield server


MOMENTS: dict[str, Callable[[Start, Project], AbstractContextManager[Server]]] = {
    "boot": contextlib.contextmanager(_boot),
    "canary": contextlib.contextmanager(_canary),
    "soak": contextlib.contextmanager(_soak),
    "roll": contextlib.contextmanager(_roll),
    "drain": contextlib.contextmanager(_drain),
    "back-off": contextlib.contextmanager(_back_off),
}
"""The server listens on ``socket`` in its scratch directory, by the options of who starts it."""


def options(project: Project) -> list[str]:
    """Return what to start a server with, so that all it may leave behind is in one place."""
    scratch = project.directory.parent / "scratch"
    return ["app:app", "--uds", str(scratch / "socket"), "--pid", str(scratch / "pid")]
