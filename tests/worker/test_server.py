import asyncio
import contextlib
import contextvars
import errno
import logging
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.worker.waiting import until

import asgictl_worker
from asgictl_worker import acceptor
from asgictl_worker.acceptor import BATCH, BATCH_ALONE, Acceptor, PlainSocket
from asgictl_worker.application import adapt
from asgictl_worker.lifespan import StartupFailed
from asgictl_worker.proxy_protocol import Told
from asgictl_worker.server import Server
from asgictl_worker.settings import WorkerSettings

GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"
SETTINGS = WorkerSettings(access_log=False, lifespan="off")


class App:
    """Answers at once, unless the path asks for something else."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.waiting = 0
        self.cancelled = 0
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        self.paths.append(path)
        self.waiting += 1
        try:
            if path == "/wait":
                await self.release.wait()
            while path == "/stubborn" and not self.release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


@contextlib.asynccontextmanager
async def serving(
    app: Any, settings: WorkerSettings = SETTINGS, **how: Any
) -> AsyncIterator[tuple[Server, asyncio.Task[None]]]:
    """Serve on a free port; stop at the end, if the test has not."""
    server = Server(app, settings)
    how = how or {"port": 0}
    task = asyncio.create_task(server.serve(**how))
    started = asyncio.create_task(server.started.wait())
    await asyncio.wait([task, started], return_when=asyncio.FIRST_COMPLETED)
    started.cancel()
    if task.done():
        task.result()
    try:
        yield server, task
    finally:
        server.stop(0)
        await task


def url(server: Server, path: str = "/") -> str:
    host, port = server.sockets[0].getsockname()[:2]
    return f"http://{host}:{port}{path}"


async def connect(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*server.sockets[0].getsockname()[:2])


@contextlib.asynccontextmanager
async def connected(
    server: Server,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await connect(server)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


# -- Embedded


async def test_a_server_runs_in_somebodys_own_loop() -> None:
    async with serving(App()) as (server, task), httpx.AsyncClient() as client:
        assert (await client.get(url(server))).text == "ok"
        server.stop()
        await task


async def test_the_package_offers_the_server_by_name() -> None:
    assert asgictl_worker.Server is Server
    assert asgictl_worker.WorkerSettings is WorkerSettings
    assert asgictl_worker.__version__[0].isdigit()
    assert {"Server", "WorkerSettings", "__version__"} <= set(dir(asgictl_worker))
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = asgictl_worker.nothing_of_that_name


async def test_an_application_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "named_for_server.py").write_text(
        "async def app(scope, receive, send):\n"
        "    await send({'type': 'http.response.start', 'status': 204})\n"
        "    await send({'type': 'http.response.body'})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = WorkerSettings(app_dir=str(tmp_path), access_log=False)
    async with (
        serving("named_for_server:app", settings) as (server, _),
        httpx.AsyncClient() as client,
    ):
        assert (await client.get(url(server))).status_code == 204


def _wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("content-type", "text/plain")])
    return [b"wsgi ", environ["PATH_INFO"].encode()]


def _asgi2(scope: Any) -> Any:
    async def run(receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": f"asgi2 {scope['path']}".encode()})

    return run


@pytest.mark.parametrize(("app", "text"), [(_wsgi, "wsgi /path"), (_asgi2, "asgi2 /path")])
async def test_older_interfaces_are_served(app: Any, text: str) -> None:
    async with serving(adapt(app)) as (server, _), httpx.AsyncClient() as client:
        assert (await client.get(url(server, "/path"))).text == text


async def test_sockets_that_were_given_stay_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with serving(App(), sockets=[listener]) as (server, _), httpx.AsyncClient() as client:
            assert (await client.get(url(server))).text == "ok"
        assert listener.fileno() != -1
        with socket.create_connection(listener.getsockname()):
            pass


async def test_sockets_that_were_made_are_closed() -> None:
    async with serving(App()) as (server, _):
        address = server.sockets[0].getsockname()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def test_a_name_is_served_on_all_its_addresses_and_one_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    async with serving(App(), host="", port=0) as (server, _), httpx.AsyncClient() as client:
        ports = {listener.getsockname()[1] for listener in server.sockets}
        assert len(ports) == 1
        for listener in server.sockets:
            host = "[::1]" if listener.family == socket.AF_INET6 else "127.0.0.1"
            assert (await client.get(f"http://{host}:{ports.copy().pop()}/")).text == "ok"


async def test_a_port_in_use_is_told_before_the_application_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = Server(App(), WorkerSettings(lifespan="on"))
        with pytest.raises(OSError, match=r"[Aa]ddress already in use"):
            await server.serve(port=other.getsockname()[1])


async def test_a_unix_socket_is_served_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with serving(App(), uds=str(path)), httpx.AsyncClient(transport=transport) as client:
        assert (await client.get("http://test/")).text == "ok"
    assert not path.exists()


async def test_a_unix_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with serving(App(), uds=str(path)):
        assert stat.S_ISSOCK(path.stat().st_mode)


@pytest.mark.parametrize("kind", ["file", "live socket"])
async def test_nothing_else_is_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as other:
        if kind == "file":
            path.write_text("precious")
        else:
            other.bind(str(path))
            other.listen()
        with pytest.raises(OSError, match=r"[Aa]ddress already in use"):
            await Server(App(), SETTINGS).serve(uds=str(path))
    assert path.exists()


async def test_somebody_elses_socket_at_our_path_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    async with serving(App(), uds=str(path)):
        path.rename(tmp_path / "moved")
        path.write_text("precious")
    assert path.read_text() == "precious"


async def test_signals_are_left_alone_unless_asked() -> None:
    before = signal.getsignal(signal.SIGTERM)
    async with serving(App()):
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_stop_it_if_asked(number: signal.Signals) -> None:
    async with serving(App(), port=0, handle_signals=True) as (_, task):
        os.kill(os.getpid(), number)
        await task
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


async def test_the_state_reaches_the_requests() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            scope["state"]["shared"] = seen
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            scope["state"]["shared"].append("used")
            scope["state"]["own"] = "not seen by others"
            seen.append(sorted(scope["state"]))
            await App()(scope, receive, send)

    settings = WorkerSettings(access_log=False)
    async with serving(app, settings) as (server, _), httpx.AsyncClient() as client:
        await client.get(url(server))
        await client.get(url(server))
    assert seen == ["used", ["own", "shared"], "used", ["own", "shared"]]


@pytest.mark.parametrize(("reset", "seen"), [(False, "import"), (True, "unset")])
async def test_requests_have_the_context_from_before_the_startup(reset: bool, seen: str) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("import")
    values: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        values.append(variable.get())
        if scope["type"] == "lifespan":
            variable.set("startup")
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            values.append(variable.get())
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await App()(scope, receive, send)

    settings = WorkerSettings(access_log=False, reset_contextvars=reset)
    async with serving(app, settings) as (server, task), httpx.AsyncClient() as client:
        await client.get(url(server))
        await client.aclose()
        server.stop()
        await task
    assert values == ["import", seen, "startup"]


async def test_a_startup_that_fails_ends_serve_without_listening() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    server = Server(app, WorkerSettings())
    with pytest.raises(StartupFailed, match="no database"):
        await server.serve(port=0)
    assert not server.started.is_set()


async def test_stop_during_startup_ends_it() -> None:
    heard = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        heard.set()
        await asyncio.Event().wait()

    server = Server(app, WorkerSettings())
    task = asyncio.create_task(server.serve(port=0))
    await heard.wait()
    server.stop()
    await task
    assert not server.started.is_set()


async def test_cancelling_serve_still_shuts_the_application_down() -> None:
    steps: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        steps.append((await receive())["type"])
        await send({"type": "lifespan.startup.complete"})
        steps.append((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})

    server = Server(app, WorkerSettings())
    task = asyncio.create_task(server.serve(port=0))
    await server.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["lifespan.startup", "lifespan.shutdown"]


# -- Draining


async def test_a_request_in_progress_is_answered_before_the_end() -> None:
    app = App()
    async with serving(app) as (server, task), httpx.AsyncClient() as client:
        asking = asyncio.create_task(client.get(url(server, "/wait")))
        await until(lambda: app.waiting)
        server.stop()
        await asyncio.sleep(0)
        assert not task.done()
        app.release.set()
        response = await asking
        assert response.text == "ok"
        assert response.headers["connection"] == "close"
        await task


async def test_an_idle_connection_has_a_window_to_be_used() -> None:
    settings = WorkerSettings(access_log=False, lifespan="off", drain_idle_window=10)
    async with serving(App(), settings) as (server, task), connected(server) as (reader, writer):
        writer.write(GET)
        await reader.readuntil(b"ok")
        server.stop()
        await until(lambda: server.service.draining)
        writer.write(GET)
        answer = await reader.read()
        assert b"200 OK" in answer
        assert b"connection: close" in answer
        await task


async def test_an_idle_connection_is_closed_after_its_window() -> None:
    settings = WorkerSettings(access_log=False, lifespan="off", drain_idle_window=0.05)
    async with serving(App(), settings) as (server, task), connected(server) as (reader, writer):
        writer.write(GET)
        await reader.readuntil(b"ok")
        server.stop()
        assert await reader.read() == b""
        await task


async def test_what_waits_in_the_kernels_queue_is_answered_when_the_listener_goes_away() -> None:
    async with serving(App()) as (server, task):
        address = server.sockets[0].getsockname()
        clients = [socket.create_connection(address) for _ in range(10)]
        for client in clients:
            client.sendall(GET)
        server.stop()
        await task
        for client in clients:
            with client:
                client.settimeout(5)
                assert b"200 OK" in client.recv(4096)


async def test_what_waits_in_a_shared_queue_is_left_to_the_others() -> None:
    app = App()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with (
            serving(app, sockets=[listener]) as (server, task),
            connected(server) as (_, busy),
        ):
            busy.write(GET.replace(b"/ ", b"/wait "))
            await until(lambda: app.waiting)
            server.stop()
            await until(lambda: server.service.draining)
            with socket.create_connection(listener.getsockname()) as client:
                client.sendall(GET)
                app.release.set()
                await task
        assert app.paths == ["/wait"]


async def test_requests_that_do_not_end_are_cancelled_at_the_deadline(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App()
    async with serving(app) as (server, task), connected(server) as (reader, writer):
        writer.write(GET.replace(b"/ ", b"/wait "))
        await until(lambda: app.waiting)
        server.stop(0.05)
        await task
        await reader.read()
    assert app.cancelled == 1
    assert "closing 1 connections, cancelling 1 requests" in caplog.text


async def test_streams_that_do_not_end_hear_of_the_disconnect_at_the_deadline() -> None:
    outcome: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        try:
            outcome.append((await receive())["type"])
        except asyncio.CancelledError:
            outcome.append("cancelled")

    async with serving(app) as (server, task), connected(server) as (reader, writer):
        writer.write(GET)
        await reader.readuntil(b"a\r\n")
        server.stop(0.05)
        await task
        # It is cut, so that the client can tell.
        assert await reader.read() == b""
    assert outcome == ["http.disconnect"]


async def test_streams_that_do_not_listen_are_cancelled_soon_after_the_deadline() -> None:
    app = App()

    async def streaming(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await app(scope, receive, send)

    async with serving(streaming) as (server, task), connected(server) as (reader, writer):
        writer.write(GET.replace(b"/ ", b"/wait "))
        await until(lambda: app.waiting)
        server.stop(0.05)
        await task
        await reader.read()
    assert app.cancelled == 1


async def test_a_client_that_does_not_read_cannot_stay_beyond_the_deadline() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": bytes(16 * 1024 * 1024)})

    async with serving(app) as (server, task):
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            client.sendall(GET)
            await until(lambda: server.service.connections)
            await until(lambda: any(each.write_paused for each in server.service.connections))
            server.stop(0.05)
            await task
            assert not server.service.connections


async def test_streams_of_events_are_ended_one_after_the_other_and_do_not_hold_up_the_drain() -> (
    None
):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        start = {"type": "http.response.start", "status": 200}
        await send({**start, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"

    settings = WorkerSettings(access_log=False, lifespan="off", timeout_graceful_shutdown=3600)
    async with serving(app, settings) as (server, task), contextlib.AsyncExitStack() as stack:
        readers = []
        for _ in range(60):
            reader, writer = await stack.enter_async_context(connected(server))
            writer.write(GET)
            await reader.readuntil(b"data: 1\n\n")
            readers.append(reader)
        server.stop()
        await until(lambda: server.service.draining)
        turns = sorted(each.leaves_at for each in server.service.connections)
        assert turns[-1] - turns[0] == pytest.approx(0.59)
        for reader in readers:
            assert (await reader.read()).endswith(b"0\r\n\r\n")
        await task


@pytest.mark.parametrize(
    ("connections", "left", "spread"),
    [(0, 30, 0), (10, 30, 0.1), (10_000, 30, 5), (10_000, 8, 2), (10_000, -1, 0), (10, 0, 0)],
)
def test_how_long_it_takes_to_send_clients_away(
    connections: int, left: float, spread: float
) -> None:
    assert Server(App(), SETTINGS)._spread(connections, left) == pytest.approx(spread)


async def test_a_second_stop_hurries() -> None:
    app = App()
    async with serving(app) as (server, task), connected(server) as (_, writer):
        writer.write(GET.replace(b"/ ", b"/wait "))
        await until(lambda: app.waiting)
        server.stop()
        await until(lambda: server.service.draining)
        server.stop()
        await task
    assert app.cancelled == 1


async def test_a_later_stop_never_prolongs() -> None:
    app = App()
    async with serving(app) as (server, task), connected(server) as (_, writer):
        writer.write(GET.replace(b"/ ", b"/wait "))
        await until(lambda: app.waiting)
        server.stop(0.05)
        server.stop(3600)
        await task


async def test_requests_that_ignore_their_cancellation_are_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgictl_worker.server.CANCEL_GRACE", 0.01)
    app = App()
    try:
        async with serving(app) as (server, task), connected(server) as (_, writer):
            writer.write(GET.replace(b"/ ", b"/stubborn "))
            await until(lambda: app.waiting)
            server.stop(0)
            await task
    finally:
        app.release.set()
        await until(lambda: not app.waiting)
    assert "these ignore their cancellation" in caplog.text
    assert __file__ in caplog.text


async def test_work_after_the_response_is_waited_for() -> None:
    release = asyncio.Event()
    done: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await App()(scope, receive, send)
        await release.wait()
        done.append("in the background")

    async with serving(app) as (server, task), httpx.AsyncClient() as client:
        await client.get(url(server))
        await client.aclose()
        server.stop()
        await until(lambda: not server.service.connections)
        assert not task.done()
        release.set()
        await task
    assert done == ["in the background"]


# -- Accepting


class Echo(asyncio.Protocol):
    made: list["Echo"]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.made.append(self)


@contextlib.contextmanager
def accepting(listener: Any, allowance: Callable[[], int] | None = None) -> Any:
    made: list[Echo] = []
    kind = type("Connection", (Echo,), {"made": made})
    each = Acceptor(asyncio.get_running_loop(), [listener], lambda ends: kind(), allowance)
    try:
        yield each, made
    finally:
        each.stop()
        for protocol in made:
            protocol.transport.abort()  # type: ignore[attr-defined]


@pytest.fixture
def listener() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as each:
        yield each


def clients(listener: socket.socket, number: int) -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    for _ in range(number):
        stack.enter_context(socket.create_connection(listener.getsockname()))
    return stack


class Counting:
    """A listener that counts, and fails when it is told to."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.accepted = 0
        self.failures: list[OSError] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)

    def accept(self) -> Any:
        if self.failures:
            raise self.failures.pop()
        accepted = self._listener.accept()
        self.accepted += 1
        return accepted


async def test_a_worker_among_others_takes_a_few_connections_per_turn(
    listener: socket.socket,
) -> None:
    counting = Counting(listener)
    with accepting(counting, lambda: 1000) as (each, made), clients(listener, 3 * BATCH):
        each.start()
        most = before = 0
        while counting.accepted < 3 * BATCH:
            await asyncio.sleep(0)
            most = max(most, counting.accepted - before)
            before = counting.accepted
        assert most == BATCH
        await until(lambda: len(made) == 3 * BATCH)


@pytest.mark.parametrize("allowance", [None, lambda: None])
async def test_a_worker_that_is_alone_takes_what_there_is(
    allowance: Any, listener: socket.socket
) -> None:
    counting = Counting(listener)
    number = min(BATCH_ALONE, 20)
    with accepting(counting, allowance) as (each, _), clients(listener, number):
        each.start()
        await until(lambda: counting.accepted)
        assert counting.accepted == number


async def test_connections_do_not_wait_for_more_bytes(listener: socket.socket) -> None:
    with accepting(listener) as (each, made), clients(listener, 1):
        each.start()
        await until(lambda: made)
        connection = made[0].transport.get_extra_info("socket")
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_nothing_is_accepted_before_start_and_after_stop(listener: socket.socket) -> None:
    with accepting(listener) as (each, made):
        with clients(listener, 1):
            await asyncio.sleep(0.02)
            assert not made
            each.start()
            await until(lambda: made)
        each.stop()
        with clients(listener, 1):
            await asyncio.sleep(0.02)
            assert len(made) == 1
            each.finish()
            await until(lambda: len(made) == 2)


async def test_without_allowance_connections_are_left_to_others_and_taken_later(
    listener: socket.socket,
) -> None:
    allowance = 0
    asked = 0

    def ask() -> int:
        nonlocal asked
        asked += 1
        return allowance

    with accepting(listener, ask) as (each, made), clients(listener, 1):
        each.start()
        await until(lambda: asked >= 2)
        assert not made
        allowance = 1
        await until(lambda: made)


async def test_no_more_than_the_allowance_is_taken_at_once(listener: socket.socket) -> None:
    taken: list[int] = []
    counting = Counting(listener)

    def ask() -> int:
        taken.append(counting.accepted)
        return 1

    with accepting(counting, ask) as (each, made), clients(listener, 3):
        each.start()
        await until(lambda: len(made) == 3)
    # Asked before and, for the others to see it, after each.
    assert taken == [0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_exhausted_resources_pause_accepting_and_are_logged_once(
    number: int,
    listener: socket.socket,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acceptor, "PAUSE", 0.01)
    counting = Counting(listener)
    counting.failures = [OSError(number, os.strerror(number)) for _ in range(3)]
    with accepting(counting) as (each, made), clients(listener, 1):
        each.start()
        await until(lambda: made)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "raise the limit of open files" in caplog.text


async def test_stop_ends_a_pause_too(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "PAUSE", 0.01)
    counting = Counting(listener)
    counting.failures = [OSError(errno.EMFILE, "")]
    with accepting(counting) as (each, made), clients(listener, 1):
        each.start()
        await until(lambda: not counting.failures)
        each.stop()
        await asyncio.sleep(0.05)
        assert not made


async def test_a_client_that_left_the_queue_hurts_nobody(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    counting = Counting(listener)
    counting.failures = [OSError(errno.ECONNABORTED, "")]
    with accepting(counting) as (each, made), clients(listener, 1):
        each.start()
        await until(lambda: made)
    assert caplog.text == ""


async def test_real_exhaustion_ends_when_descriptors_are_back(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    monkeypatch.setattr(acceptor, "PAUSE", 0.01)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with accepting(listener) as (each, made), clients(listener, 1):
        each.start()
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            await until(lambda: each._resume is not None)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: made)


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", "::1", "::"])
async def test_both_ends_of_a_connection_are_known_when_it_is_made(bound):
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with (
        socket.create_server((bound, 0), family=family) as listener,
        contextlib.ExitStack() as made,
    ):
        told: list[Told] = []

        def make(ends: Told) -> asyncio.Protocol:
            told.append(ends)
            return asyncio.Protocol()

        acceptor = Acceptor(asyncio.get_running_loop(), [listener], make)
        made.callback(acceptor.stop)
        acceptor.start()
        host = "::1" if ":" in bound else "127.0.0.1"
        client = made.enter_context(socket.socket(family))
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (host, listener.getsockname()[1]))
        await until(lambda: told)
        assert told == [Told(client.getsockname()[:2], (host, listener.getsockname()[1]))]


async def test_a_unix_listener_is_known_by_its_path(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen()
        told: list[Told] = []

        def make(ends: Told) -> asyncio.Protocol:
            told.append(ends)
            return asyncio.Protocol()

        acceptor = Acceptor(asyncio.get_running_loop(), [listener], make)
        acceptor.start()
        client.connect(path)
        await until(lambda: told)
        acceptor.stop()
        assert told == [Told(None, (path, None))]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_plain_socket_is_like_any_other(family: int, tmp_path: Path) -> None:
    address = ("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "sock")
    with socket.socket(family) as ordinary:
        ordinary.bind(address)
        ordinary.listen()
        with PlainSocket(fileno=os.dup(ordinary.fileno())) as listener:
            assert (listener.family, listener.type) == (ordinary.family, ordinary.type)
            assert type(listener.family) is type(listener.type) is int
            assert listener.getsockname() == ordinary.getsockname()
            with socket.socket(family) as client:
                client.connect(listener.getsockname())
                connection, _ = listener.accept()
                connection.__class__ = PlainSocket
                with connection:
                    assert (connection.family, connection.type) == (family, socket.SOCK_STREAM)
                    client.sendall(b"x")
                    assert connection.recv(1) == b"x"
