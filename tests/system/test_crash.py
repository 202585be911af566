"""Whatever dies or hangs, the others serve on and somebody takes its place."""

import os
import signal
import socket
import time

import pytest
from tests.conftest import Serve
from tests.kit import PATIENCE, Load, Project, application, is_listening, wait_for
from tests.system.applications import BLOCKING

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


def test_a_killed_worker_costs_nobody_but_its_own_requests(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--workers", "4")
    with Load(server.port, keep_alive=32, closing=8) as load:
        wait_for(lambda: len(load.tally.by_pid) == 4, "every worker answers")
        victim = min(server.workers())
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        server.wait_for_workers(4, other_than={victim})
        replaced = time.monotonic()
        load.wait_for_answers(500)
    failures = load.tally.failures
    assert {failure.kind for failure in failures} <= {"reset", "truncated"}
    assert {failure.pid for failure in failures} <= {victim, None}, "other workers lost requests"
    assert len(failures) <= 40, "each client has one request in progress at most"
    assert all(killed <= failure.at <= replaced + 1 for failure in failures)
    server.assert_log(f"KILL.*pid={victim}")
    server.stop()


def test_a_killed_worker_has_a_successor_within_a_second(serve: Serve, project: Project) -> None:
    """The best of three counts: a busy machine may take a second for anything."""
    project.write(application("1"))
    took = []
    for _ in range(3):
        server = serve("--workers", "2")
        victim = min(server.workers())
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        server.wait_for_workers(2, other_than={victim})
        took.append(time.monotonic() - killed)
        server.stop()
        if took[-1] < 1.0:
            break
    assert min(took) < 1.0


@pytest.mark.parametrize("path", ["/block", "/spin"])
def test_a_blocked_event_loop_is_shown_in_the_log_and_then_replaced(
    serve: Serve, project: Project, path: str
) -> None:
    project.write(BLOCKING)
    server = serve("--workers", "2", "--timeout", "2")
    before = server.workers()
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        where = "stuck_in_here" if path == "/block" else r'app\.py", line 1[0-9] in app'
        server.assert_log(where)
        assert server.workers() == before, "half of the time-out is for looking, not for killing"
        server.assert_log("no heartbeat for .* killing")
        assert client.recv(100) == b"", "the request that hung is lost, not answered wrongly"
    wait_for(lambda: len(server.workers()) == 2 and server.workers() != before, "a successor")
    assert len(server.workers() & before) == 1, "the other worker was left in peace"
    server.stop()


def test_a_stopped_worker_is_neither_killed_nor_forgotten(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", "--timeout", "2")
    before = server.workers()
    victim = min(before)
    os.kill(victim, signal.SIGSTOP)
    server.assert_log(rf"stopped.*pid={victim}")
    os.kill(victim, signal.SIGCONT)
    server.assert_log(rf"beats again.*pid={victim}")
    assert server.workers() == before
    server.stop()


@pytest.mark.parametrize("blocked", [False, True], ids=["serving", "blocked"])
def test_a_killed_supervisor_leaves_no_worker_and_no_port_within_five_seconds(
    serve: Serve, project: Project, blocked: bool
) -> None:
    project.write(BLOCKING)
    server = serve("--workers", "2")
    port = server.port
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(
            b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"/block" if blocked else b"/")
        )
        assert blocked or client.recv(100)
        killed = time.monotonic()
        os.kill(server.pid, signal.SIGKILL)
        server.ended()
        wait_for(lambda: not server.session(), "all workers are gone", 5.0)
        wait_for(lambda: not is_listening(port), "the port is free", 5.0)
        assert time.monotonic() - killed < 5.0


def test_a_worker_that_exits_by_itself_is_replaced(serve: Serve, project: Project) -> None:
    project.write(BLOCKING)
    server = serve("--workers", "2")
    before = server.workers()
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall(b"GET /exit HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(100) == b""
    wait_for(lambda: len(server.workers()) == 2 and server.workers() != before, "a successor")
    server.stop()
