"""The worker under the real Gunicorn."""

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import httpx
import psutil
import pytest
from tests.authority import Authority
from tests.conftest import SERVERS
from tests.kit import (
    PATIENCE,
    Load,
    Project,
    Server,
    application,
    read_until_closed,
    wait_for,
)
from tests.system.applications import BLOCKING, FAILING_LIFESPAN, HELD, held, release
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.sync.client import connect

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

WORKER = "asgictl_worker.gunicorn.AsgiWorker"

FULL = """
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
import asyncio, os

@asynccontextmanager
async def lifespan(app):
    print("application started", flush=True)
    yield {"answer": 42}
    print("application stopped", flush=True)

async def home(request):
    return JSONResponse({
        "answer": request.state.answer,
        "body": len(await request.body()),
        "client": request.client.host,
        "loop": type(asyncio.get_running_loop()).__module__.split(".")[0],
        "root_path": request.scope["root_path"],
        "scheme": request.url.scheme,
    })

async def echo(socket):
    await socket.accept()
    while True:
        await socket.send_text((await socket.receive_text()).upper())

app = Starlette(lifespan=lifespan, routes=[
    Route("/", home, methods=["GET", "POST"]), WebSocketRoute("/ws", echo),
])
"""


class Gunicorn(Server):
    """A running Gunicorn with our workers."""

    COMMAND: ClassVar[tuple[str, ...]] = ("-m", "gunicorn", "--no-control-socket", "-k", WORKER)

    def wait_until_ready(self, within: float = PATIENCE, workers: int = 1) -> "Gunicorn":
        def ready() -> bool:
            assert self.process.poll() is None, f"ended with code {self.process.returncode}"
            return len(self.workers()) == workers

        wait_for(ready, f"{workers} workers", within)
        return self

    def workers(self) -> set[int]:
        """Return the pids of the workers that were ready, and are alive."""
        ready = {int(pid) for pid in re.findall(r"ready: pid=(\d+)", self.log())}
        return ready & self.children()

    @property
    def port(self) -> int:
        """Return the port that it says it listens on."""
        return int(self.assert_log(r"Listening at: https?://127\.0\.0\.1:(\d+)")[1])


Run = Callable[..., Gunicorn]


@pytest.fixture
def start(request: pytest.FixtureRequest, project: Project) -> Iterator[Run]:
    """Start Gunicorn; whatever is left at the end is killed."""
    # The report of a failed test shows the logs of these.
    servers: list[Server] = request.node.stash.setdefault(SERVERS, [])

    def start(*options: str, **how: dict[str, str]) -> Gunicorn:
        server = Gunicorn(project, "-b", "127.0.0.1:0", *options, "app:app", **how)  # type: ignore[arg-type]
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.destroy()


@pytest.fixture
def serve(start: Run) -> Run:
    """Start Gunicorn and wait for its workers."""

    def serve(*options: str, workers: int = 1, **how: dict[str, str]) -> Gunicorn:
        return start("-w", str(workers), *options, **how).wait_until_ready(workers=workers)

    return serve


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_requests_websockets_and_lifespan(serve: Run, project: Project, loop: str) -> None:
    project.write(FULL)
    options = ("--asgi-loop", loop, "--root-path", "/api", "--asgi-lifespan", "on")
    server = serve(*options, "--forwarded-allow-ips", "127.0.0.1")
    headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    answer = httpx.post(server.url + "/", content=b"x" * 200_000, headers=headers).json()
    assert answer == {
        "answer": 42,
        "body": 200_000,
        "client": "203.0.113.7",
        "loop": loop,
        "root_path": "/api",
        "scheme": "https",
    }
    with connect(f"ws://127.0.0.1:{server.port}/ws", proxy=None) as client:
        client.send("hello")
        assert client.recv(PATIENCE) == "HELLO"
    server.stop()
    assert "application started" in server.log()
    assert "application stopped" in server.log()


def test_a_request_in_progress_is_finished_before_the_stop(serve: Run, project: Project) -> None:
    project.write(HELD)
    server = serve("--graceful-timeout", "20")
    with held(project, server.port) as client:
        server.signal("TERM")
        server.assert_log("draining: pid=")
        release(project)
        answer = read_until_closed(client)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer.lower()
    server.accept_files()
    server.assert_ended(0)
    server.assert_not_logged("SIGKILL|Perhaps out of memory|Traceback")


def test_a_request_that_does_not_end_is_cut_before_the_arbiter_kills(
    serve: Run, project: Project
) -> None:
    project.write(HELD)
    server = serve("--graceful-timeout", "4")
    with held(project, server.port) as client:
        server.signal("TERM")
        server.assert_log("the time to drain is over")
        read_until_closed(client)
    server.accept_files()
    server.assert_ended(0)
    server.assert_not_logged("SIGKILL|Perhaps out of memory")


def test_a_quick_stop_waits_for_nobody(serve: Run, project: Project) -> None:
    project.write(HELD)
    server = serve("--graceful-timeout", "60")
    with held(project, server.port):
        server.accept_files()
        server.stop("QUIT", within=15)


def test_three_reloads_under_load_lose_nothing_and_end_with_the_new_code(
    serve: Run, project: Project
) -> None:
    project.write(application("0"))
    server = serve(workers=2)
    with Load(server.port, keep_alive=16, closing=4) as load:
        for version in ("1", "2", "3"):
            project.write(application(version))
            old = server.workers()
            server.signal("HUP")
            server.wait_for_workers(2, other_than=old)
            wait_for(lambda old=old: not old & server.children(), "the old workers leave")
        load.wait_for_answers(200)
    load.assert_nothing_lost()
    assert set(load.tally.by_version) == {"0", "1", "2", "3"}
    server.stop()


def test_a_websocket_is_told_to_come_back_at_a_reload(serve: Run, project: Project) -> None:
    project.write(FULL)
    server = serve()
    with connect(f"ws://127.0.0.1:{server.port}/ws", proxy=None) as client:
        client.send("hello")
        client.recv(PATIENCE)
        server.signal("HUP")
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == CloseCode.SERVICE_RESTART
    server.stop()


def test_workers_are_replaced_after_max_requests_and_nothing_is_lost(
    serve: Run, project: Project
) -> None:
    project.write(application("0"))
    server = serve("--max-requests", "300", "--max-requests-jitter", "100", workers=2)
    first = server.workers()
    with Load(server.port, keep_alive=8, closing=4) as load:
        wait_for(lambda: not first & server.workers(), "both workers are replaced")
        load.wait_for_answers(200)
    load.assert_nothing_lost()
    server.assert_log(r"leaving: pid=\d+ reason=\d+ requests served")
    server.stop()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_blocked_worker_is_aborted_and_says_where_it_was_stuck(
    serve: Run, project: Project, loop: str
) -> None:
    project.write(BLOCKING)
    server = serve("--asgi-loop", loop, "--timeout", "2")
    (first,) = server.workers()
    # What is answered while the process falls is a matter of luck.
    with contextlib.suppress(httpx.TransportError):
        assert httpx.get(server.url + "/block", timeout=PATIENCE).status_code == 500
    server.assert_log(rf"WORKER TIMEOUT \(pid:{first}\)")
    server.assert_log(r"aborted by the arbiter after 2 s without a beat, here:\n.*app\.py")
    server.wait_for_workers(1, other_than={first})
    assert httpx.get(server.url + "/").text.isdigit()
    server.stop()


def test_a_worker_that_is_busy_with_requests_beats_on(serve: Run, project: Project) -> None:
    project.write(application("0"))
    server = serve("--timeout", "2")
    (worker,) = server.workers()
    with Load(server.port, keep_alive=16, closing=4) as load:
        until = psutil.Process(worker).create_time() + 6
        # The arbiter looks once a second, so by then it has looked often enough.
        wait_for(lambda: load.tally.answered and time.time() > until, "six seconds pass")
    load.assert_nothing_lost()
    assert server.workers() == {worker}
    server.stop()


def test_an_application_that_ends_the_process_is_not_taken_for_a_failed_boot(
    serve: Run, project: Project
) -> None:
    project.write(FULL + "\nimport sys\nasync def leave(r):\n"
                  "    asyncio.get_running_loop().call_soon(sys.exit, 3)\n"
                  "    await asyncio.sleep(60)\n"
                  "app.routes.append(Route('/leave', leave))\n")  # fmt: skip
    server = serve()
    (first,) = server.workers()
    with pytest.raises(httpx.TransportError):
        httpx.get(server.url + "/leave", timeout=PATIENCE)
    server.wait_for_workers(1, other_than={first})
    server.assert_log("the application ended this worker")
    server.stop()


@pytest.mark.parametrize(
    ("code", "options", "exit_code", "reason"),
    [
        ("import no_such_thing", (), 3, "No module named 'no_such_thing'"),
        ("application = None", (), 4, "Failed to find attribute 'app' in 'app'"),
        ("raise RuntimeError('broken on purpose')", (), 3, "broken on purpose"),
        (FAILING_LIFESPAN, (), 3, "cannot boot: .* no database today"),
        (FULL, ("--certfile", "app.py"), 3, "ssl_certfile 'app.py': there is no certificate in"),
        (FULL, ("--keyfile", "app.py"), 3, "ssl_keyfile is set but ssl_certfile is not"),
    ],
    ids=["import", "attribute", "exception", "lifespan", "certificate", "key"],
)
def test_a_worker_that_cannot_boot_ends_gunicorn_with_its_code(
    start: Run, project: Project, code: str, options: tuple[str, ...], exit_code: int, reason: str
) -> None:
    project.write(code)
    server = start(*options)
    assert server.ended() == exit_code
    server.assert_log(reason)
    wait_for(lambda: not server.session(), "no process is left")


def test_tls_and_client_certificates(serve: Run, project: Project, tmp_path: Path) -> None:
    project.write(FULL)
    authority = Authority(tmp_path / "authority")
    issued = authority.issue()
    options = ("--certfile", issued.certfile, "--keyfile", issued.keyfile)
    server = serve(*options, "--ca-certs", authority.certfile, "--cert-reqs", "2")
    url = f"https://localhost:{server.port}/"
    agent = authority.client(authority.issue("agent", file="agent"))
    assert httpx.get(url, verify=agent, trust_env=False).json()["scheme"] == "https"
    with pytest.raises(httpx.TransportError):
        httpx.get(url, verify=authority.client(), trust_env=False)
    with connect(f"wss://localhost:{server.port}/ws", ssl=agent, proxy=None) as client:
        client.send("hello")
        assert client.recv(PATIENCE) == "HELLO"
    server.stop()


def test_reloads_swap_the_certificate_under_load(
    serve: Run, project: Project, tmp_path: Path
) -> None:
    project.write(application("0"))
    authority = Authority(tmp_path / "authority")
    issued = authority.issue()
    server = serve("--certfile", issued.certfile, "--keyfile", issued.keyfile, workers=2)
    with Load(server.port, keep_alive=8, closing=2, tls=authority.client()) as load:
        project.write(application("1"))
        authority.issue()
        old = server.workers()
        server.signal("HUP")
        server.wait_for_workers(2, other_than=old)
        load.wait_for_answers(100)
    load.assert_nothing_lost()
    server.stop()


HOOK = """
import ssl
def ssl_context(conf, default_ssl_context_factory):
    context = default_ssl_context_factory()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    print("hook called", flush=True)
    return context
"""


def test_gunicorns_hook_makes_the_context(serve: Run, project: Project, tmp_path: Path) -> None:
    project.write(FULL).write(HOOK, "gunicorn.conf.py")
    authority = Authority(tmp_path / "authority")
    issued = authority.issue()
    server = serve("--certfile", issued.certfile, "--keyfile", issued.keyfile)
    url = f"https://localhost:{server.port}/"
    assert httpx.get(url, verify=authority.client(), trust_env=False).status_code == 200
    server.assert_log("hook called")
    server.stop()


def test_access_lines_have_the_format_that_was_asked_for(serve: Run, project: Project) -> None:
    project.write(FULL)
    atoms = '%(h)s %(m)s %(U)s %(q)s %(H)s %(s)s "%(r)s" "%(a)s" D=%(D)s'
    server = serve("--access-logfile", "-", "--access-logformat", atoms)
    httpx.get(server.url + "/?a=1", headers={"user-agent": "test"})
    line = r'^127\.0\.0\.1 GET / a=1 HTTP/1\.1 200 "GET /\?a=1 HTTP/1\.1" "test" D=\d+$'
    server.assert_log(line)
    server.stop()


def test_the_proxy_protocol_and_request_ids(serve: Run, project: Project) -> None:
    project.write(FULL)
    atoms = "%(h)s %(s)s id=%({request_id}e)s"
    server = serve(
        *("--proxy-protocol", "--access-logfile", "-", "--access-logformat", atoms),
        environment={"ASGICTL_REQUEST_ID_HEADER": "X-Request-ID"},
    )
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall(
            b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\r\n"
            b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        )
        answer = read_until_closed(client)
    assert b'"client":"203.0.113.7"' in answer
    identity = re.search(rb"x-request-id: (\S+)\r\n", answer)
    assert identity is not None
    server.assert_log(rf"^203\.0\.113\.7 200 id={identity[1].decode()}$")
    server.stop()


def test_there_are_no_access_lines_unless_asked_for(serve: Run, project: Project) -> None:
    project.write(FULL)
    server = serve()
    httpx.get(server.url + "/")
    server.stop()
    server.assert_not_logged("GET /")


def test_a_wsgi_application_is_served_too(serve: Run, project: Project) -> None:
    project.write(
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('content-type', 'text/plain')])\n"
        "    return [environ['PATH_INFO'].encode()]\n"
    )
    server = serve()
    assert httpx.get(server.url + "/here").text == "/here"
    server.stop()


def test_an_application_may_be_preloaded(serve: Run, project: Project) -> None:
    project.write(FULL)
    server = serve("--preload", workers=2)
    assert httpx.get(server.url + "/").json()["answer"] == 42
    server.stop()


SUBCLASS = """
from asgictl_worker.gunicorn import AsgiWorker
class Worker(AsgiWorker):
    SETTINGS = {"server_header": False, "header": ("x-mine: yes",)}
"""


def test_variables_and_subclasses_set_what_gunicorn_has_no_option_for(
    serve: Run, project: Project
) -> None:
    project.write(FULL).write(SUBCLASS, "mine.py")
    server = serve(
        "-k", "mine.Worker", environment={"ASGICTL_HEADER": "x-mine: no", "ASGICTL_WS": "none"}
    )
    headers = httpx.get(server.url + "/").headers
    assert headers["x-mine"] == "yes"
    assert "server" not in headers
    with pytest.raises(Exception, match="HTTP 4"), connect(f"ws://127.0.0.1:{server.port}/ws"):
        pass
    server.stop()


def test_a_wrong_variable_ends_gunicorn_with_its_name(start: Run, project: Project) -> None:
    project.write(FULL)
    server = start(environment={"ASGICTL_WS_MAX_QUEUE": "many"})
    assert server.ended() == 3
    server.assert_log("cannot boot: ws_max_queue cannot be 'many'")


def test_options_without_effect_are_warned_about_and_the_others_are_not(
    serve: Run, project: Project
) -> None:
    project.write(FULL)
    server = serve("--threads", "4", "--keep-alive", "5")
    server.assert_log("threads has no effect with AsgiWorker: a worker runs one event loop")
    assert server.log().count("has no effect") == 1
    server.stop()


def test_log_files_are_opened_again_on_usr1(serve: Run, project: Project, tmp_path: Path) -> None:
    project.write(FULL)
    log = tmp_path / "access.log"
    server = serve("--access-logfile", str(log))
    httpx.get(server.url + "/before")
    wait_for(lambda: "/before" in log.read_text(), "a line is written")
    log.rename(tmp_path / "old.log")
    server.signal("USR1")
    wait_for(log.exists, "the file is made again")
    (worker,) = server.workers()

    def reopened() -> bool:
        httpx.get(server.url + "/after")
        return "/after" in log.read_text()

    wait_for(reopened, "lines are written to the new file")
    assert server.workers() == {worker}
    server.stop()


def test_workers_leave_when_the_arbiter_is_gone(serve: Run, project: Project) -> None:
    project.write(FULL)
    server = serve()
    (worker,) = server.workers()
    os.kill(server.pid, signal.SIGKILL)
    server.ended()
    wait_for(lambda: worker not in server.session(), "the worker leaves")
    server.assert_log("reason=the arbiter is gone")
    server.assert_log("application stopped")
