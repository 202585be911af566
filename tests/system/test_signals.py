"""What each signal does, and that it is obeyed in every phase."""

import os
import signal
import time

import pytest
from tests.conftest import Serve
from tests.kit import Load, Project, Server, application, read_until_closed, wait_for
from tests.moments import MOMENTS, options
from tests.system.applications import HANGING_IMPORT, HELD, held, release

pytestmark = [pytest.mark.system]

PROMPT = 5.0
"""Seconds in which a stop that waits for nobody has to be over, on a slow machine."""


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_graceful_stop_finishes_requests_in_progress(
    serve: Serve, project: Project, name: str
) -> None:
    project.write(HELD)
    server = serve("--workers", "2")
    with held(project, server.port) as client:
        server.signal(name)
        server.assert_log("stopping: requests in progress are finished first")
        server.assert_log("draining: .*reason=stop", count=2)  # the worker knows it as well
        release(project)
        answer = read_until_closed(client)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer.lower()
    server.accept_files()
    server.assert_ended(0)


@pytest.mark.parametrize("names", [("QUIT",), ("INT", "INT"), ("TERM", "QUIT")], ids="-".join)
def test_a_fast_stop_waits_for_no_request(
    serve: Serve, project: Project, names: tuple[str, ...]
) -> None:
    project.write(HELD)
    server = serve("--workers", "2")
    with held(project, server.port):
        server.accept_files()
        for name in names[:-1]:
            server.signal(name)
            server.assert_log("stopping: requests in progress")
        server.stop(names[-1], within=PROMPT)


def test_a_stop_under_load_cuts_no_answer(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--workers", "4")
    load = Load(server.port)
    with load:
        server.stop()
    # Nobody listens any more, so new connections are refused. Between the last accept() and
    # the close() of the last worker, TCP leaves a moment in which one may still be cut.
    assert set(load.tally.kinds()) <= {"refused", "unreachable", "reset"}, load.tally.kinds()
    assert load.tally.kinds().get("reset", 0) + load.tally.kinds().get("unreachable", 0) <= 5
    lost = [item for item in load.tally.failures if item.kind == "reset" and item.pid]
    assert not lost, f"{len(lost)} requests were lost on connections in use"


@pytest.mark.parametrize("name", ["INT", "QUIT"])
def test_a_stop_during_boot_is_obeyed_at_once(start: Serve, project: Project, name: str) -> None:
    project.write(HANGING_IMPORT + application("1"))
    server = start("app:app", "--port", "0", "--workers", "2")
    wait_for((project.directory / "importing").exists, "a worker imports")
    server.accept_files()
    server.stop(name, within=PROMPT)


@pytest.mark.parametrize("name", ["INT", "QUIT"])
def test_a_stop_during_a_reload_is_obeyed_at_once(
    serve: Serve, project: Project, name: str
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2")
    project.write(HANGING_IMPORT + application("2"))
    server.signal("HUP")
    wait_for((project.directory / "importing").exists, "the new code is being imported")
    server.accept_files()
    server.stop(name, within=PROMPT)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stop_is_obeyed_at_any_moment_and_leaves_nothing_behind(
    start: Serve, project: Project, moment: str
) -> None:
    def begin(*more: str) -> Server:
        return start(*options(project), *more)

    with MOMENTS[moment](begin, project) as server:
        server.signal("TERM")
        server.assert_log("stopping: requests in progress are finished first", within=PROMPT)
        release(project)
        assert server.ended(3 * PROMPT) == 0
    wait_for(lambda: not server.session(), "no process is left", PROMPT)
    assert list(server.scratch.iterdir()) == []
    server.assert_not_logged("internal error")


def test_ttin_and_ttou_change_the_number_of_workers_and_lose_nothing(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2")
    with Load(server.port, keep_alive=16, closing=4) as load:
        for count in (3, 4):
            server.signal("TTIN")
            server.wait_for_workers(count)
        for count in (3, 2, 1):
            server.signal("TTOU")
            server.wait_for_workers(count)
            load.wait_for_answers(100)
    load.assert_nothing_lost()
    server.signal("TTOU")
    server.assert_log("at least one|last worker|minimum|1 worker|below")
    assert len(server.workers()) == 1
    server.stop()


def test_a_worker_that_somebody_terminates_drains_and_is_replaced(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2")
    before = server.workers()
    with Load(server.port, keep_alive=16, closing=4) as load:
        os.kill(min(before), signal.SIGTERM)
        server.wait_for_workers(2, other_than={min(before)})
        load.wait_for_answers(200)
    load.assert_nothing_lost()
    server.stop()


@pytest.mark.parametrize("name", ["HUP", "INT", "TTIN", "TTOU", "USR1", "WINCH"])
def test_a_signal_meant_for_the_supervisor_does_not_hurt_a_worker(
    serve: Serve, project: Project, name: str
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2")
    before = server.workers()
    with Load(server.port, keep_alive=8, closing=2) as load:
        for worker in before:
            os.kill(worker, getattr(signal, f"SIG{name}"))
        load.wait_for_answers(500)
        assert server.workers() == before
    load.assert_nothing_lost()
    server.stop()


def test_the_supervisor_is_idle_between_the_beats(serve: Serve, project: Project) -> None:
    """Every return from a blocking call is a voluntary context switch (proc(5))."""
    project.write(application("1"))
    server = serve("--workers", "2", "--timeout", "30")
    beats_per_second = 1.0

    def switches() -> int:
        with open(f"/proc/{server.pid}/status") as status:
            lines = dict(line.split(":", 1) for line in status)
        return int(lines["voluntary_ctxt_switches"])

    wait_for(lambda: server.workers(), "workers")
    began, before = time.monotonic(), switches()
    wait_for(lambda: time.monotonic() >= began + 5, "five seconds pass")
    woken, seconds = switches() - before, time.monotonic() - began
    assert woken <= 2 * beats_per_second * seconds + 4
    server.stop()
