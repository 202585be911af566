"""asgictl --reload: from a saved file to the answer of the new code, and back from broken code."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from tests.kit import Project, Server, run, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

APP = """
import asyncio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["path"] == "/slow":
        print("slow begins", flush=True)
        await asyncio.sleep(60)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%s"})
"""


def app(version: str) -> str:
    return APP % version


@pytest.fixture
def develop(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*arguments: str, text: str = app("one"), **given: dict[str, str]) -> Server:
        project = Project(tmp_path / "project").write(text)
        options = ("--reload", "--port", "0", "--reload-delay", "0.05", *arguments, "app:app")
        server = Server(project, *options, **given)  # type: ignore[arg-type]
        servers.append(server)
        return server.wait_until_ready()

    yield start
    for server in servers:
        server.destroy()


def answer(server: Server) -> str:
    """Return what a new connection is answered; it may have to wait for that."""
    return httpx.get(server.url, timeout=30).text


def assert_served(server: Server, text: str) -> None:
    """Assert that this is what is answered; a save that was seen twice may come between."""

    def served() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return answer(server) == text
        return False

    wait_for(served, f"{text!r} is served")


def save_until_seen(server: Server, text: str, name: str = "app.py") -> None:
    """Save a file, again until it was noticed and no old worker is left.

    Nobody knows when watching has begun.
    """
    before = server.workers()
    seen = server.log().count(f"{name} changed")
    saved = 0.0

    def noticed() -> bool:
        nonlocal saved
        if time.monotonic() > saved + 2.0:
            server.project.write(text, name)
            saved = time.monotonic()
        return server.log().count(f"{name} changed") > seen

    wait_for(noticed, f"{name} is seen to have changed")
    wait_for(lambda: not before & server.children(), "the old workers leave")


def test_a_saved_file_is_served_broken_code_is_shown_and_the_next_save_heals(
    develop: Callable[..., Server],
) -> None:
    server = develop("--workers", "2")
    port = server.port
    assert_served(server, "one")

    save_until_seen(server, app("two"))
    assert_served(server, "two")

    save_until_seen(server, "import nothing_of_that_name")

    def page() -> httpx.Response | None:
        with contextlib.suppress(httpx.TransportError):
            found = httpx.get(server.url, headers={"accept": "text/html"}, timeout=30)
            return found if found.is_error else None
        return None

    broken = wait_for(page, "the traceback is served")
    assert broken.status_code == 500
    assert "ModuleNotFoundError" in broken.text
    assert "app.py" in broken.text
    server.assert_log("save a file to try again")

    save_until_seen(server, app("three"))
    assert_served(server, "three")
    assert server.port == port
    server.stop("INT")


def test_a_request_during_the_change_waits_for_the_new_code(
    develop: Callable[..., Server],
) -> None:
    server = develop()
    save_until_seen(server, "import time; time.sleep(1.5)\n" + app("two"))

    # From here on there is no old code, and the new code is being imported.
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        received = b""
        while part := client.recv(4096):
            received += part
    assert received.startswith(b"HTTP/1.1 200")
    assert received.endswith(b"two")


def test_open_connections_and_requests_in_progress_do_not_hold_the_new_code_up(
    develop: Callable[..., Server],
) -> None:
    server = develop()
    idle = httpx.Client()
    assert idle.get(server.url).text == "one"

    url = server.url

    def hang() -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{url}/slow", timeout=60)

    hanging = threading.Thread(target=hang)
    hanging.start()
    server.assert_log("slow begins")
    save_until_seen(server, app("two"))
    assert_served(server, "two")
    idle.close()
    server.stop()
    hanging.join(30)


def test_settings_are_read_again_when_their_file_is_saved(
    develop: Callable[..., Server], tmp_path: Path
) -> None:
    Project(tmp_path / "project").write("workers = 1\n", "asgictl.toml")
    server = develop()
    save_until_seen(server, "workers = 2\n", "asgictl.toml")
    server.assert_log("reloaded: generation 2")
    wait_for(lambda: len(server.workers()) == 2, "the new number of workers")
    server.stop()


def test_code_that_is_broken_from_the_start_is_shown_and_healed(
    develop: Callable[..., Server],
) -> None:
    server = develop(text="def broken(:\n")
    assert "SyntaxError" in answer(server)

    save_until_seen(server, app("one"))
    assert_served(server, "one")
    server.stop()


def test_where_nothing_is_reported_files_are_looked_at(develop: Callable[..., Server]) -> None:
    server = develop(environment={"WATCHFILES_FORCE_POLLING": "true"})
    save_until_seen(server, app("two"))
    assert_served(server, "two")
    server.stop()


def test_a_wrong_name_ends_the_start(tmp_path: Path) -> None:
    project = Project(tmp_path / "project").write(app("one"))
    ended = run(project, "--reload", "--port", "0", "app:ap")
    assert ended.code == 3
    assert "did you mean app:app?" in ended.stderr


def test_the_end_of_the_watcher_is_told_and_survived(develop: Callable[..., Server]) -> None:
    server = develop()
    (watcher,) = server.children() - server.workers()
    psutil.Process(watcher).kill()
    server.assert_log("files are watched no more")
    assert_served(server, "one")
    server.stop()
