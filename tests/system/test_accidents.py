"""Accidents that people and machines cause, staged with real processes."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from tests.conftest import Serve
from tests.kit import PATIENCE, Load, Project, application, read_until_closed, wait_for
from tests.moments import MOMENTS, options
from tests.system.applications import HANGING_IMPORT

pytestmark = [pytest.mark.system]

HANGING_LIFESPAN = """
import asyncio
async def app(scope, receive, send):
    await asyncio.sleep(3600)
"""

ORPHANS = """
import os
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    for _ in range(5):
        if os.fork() == 0:
            os.fork()
            os._exit(3)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
"""


def test_a_machine_that_stood_still_is_held_against_nobody(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", "--timeout", "4")
    before = server.workers()
    for pid in (server.pid, *before):
        os.kill(pid, signal.SIGSTOP)
    woken = time.monotonic() + 6
    wait_for(lambda: time.monotonic() > woken, "time passes")
    for pid in (server.pid, *before):
        os.kill(pid, signal.SIGCONT)
    server.assert_log("the supervisor itself was held up for")
    with Load(server.port, keep_alive=2, closing=1) as load:
        load.assert_nothing_lost()
    assert server.workers() == before
    server.assert_not_logged("killing")
    server.stop()


def test_a_worker_that_obeys_nothing_is_left_behind_by_no_stop(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--timeout-graceful-shutdown", "0", "--timeout-lifespan-shutdown", "0.1")
    (worker,) = server.workers()
    os.kill(worker, signal.SIGSTOP)  # from now on, only SIGKILL reaches it
    server.stop()
    for words in ("terminating", "does not leave, aborting", "does not leave on SIGABRT, killing"):
        assert re.search(rf"{words} worker=0", server.log()), words


def test_a_reload_whose_start_up_hangs_is_refused_after_the_boot_time_out(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", "--timeout-boot", "5")
    before = server.workers()
    project.write(HANGING_LIFESPAN)
    with Load(server.port, keep_alive=2, closing=1) as load:
        server.signal("HUP")
        server.assert_log("reload refused.*not ready after .* still in stage 'lifespan'")
        load.wait_for_answers(20)
    load.assert_nothing_lost()
    assert server.workers() == before
    server.stop()


def test_a_storm_of_hups_is_a_few_reloads(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--min-ready", "0")
    began = time.monotonic()
    for _ in range(300):
        server.signal("HUP")
    server.assert_log("reloaded: generation")
    assert server.log().count("is being checked") <= 2 + time.monotonic() - began
    server.stop()


def test_a_hup_before_the_first_worker_is_ready_is_not_forgotten(
    start: Serve, project: Project
) -> None:
    project.write(HANGING_IMPORT + application("1"))
    server = start("app:app", "--port", "0", "--min-ready", "0")
    wait_for((project.directory / "importing").exists, "a worker imports")
    server.signal("HUP")
    (project.directory / "imported").touch()
    server.wait_until_ready()
    server.assert_log("reloaded: generation 2")
    server.accept_files()
    server.stop()


def test_a_canary_that_dies_on_trial_refuses_its_reload(start: Serve, project: Project) -> None:
    with MOMENTS["soak"](lambda *more: start(*options(project), *more), project) as server:
        canary = int(server.assert_log(r"ready after .* pid=(\d+) generation=2")[1])
        os.kill(canary, signal.SIGSEGV)
        server.assert_log("reload refused, generation 1 serves on: a worker was killed by SIGSEGV")
        server.wait_for_workers(2, other_than={canary})
        server.stop()


def test_a_flood_of_ttin_stops_at_the_limit(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--max-workers", "2")
    for _ in range(3):
        server.signal("TTIN")
        server.wait_for_workers(2)
    server.assert_log("workers are too many: the limit is 2")
    server.stop()


def has_namespaces() -> bool:
    unshare = shutil.which("unshare")
    command = [unshare or "", "--pid", "--fork", "--mount-proc", "--kill-child", "true"]
    return bool(unshare) and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not has_namespaces(), reason="needs the right to make a pid namespace")
def test_as_process_1_it_buries_everybody_and_obeys_term(project: Project) -> None:
    project.write(ORPHANS)
    path, log = project.directory.parent / "socket", project.directory.parent / "log"
    with log.open("wb") as output:
        outer = subprocess.Popen(
            [
                *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
                *(sys.executable, "-m", "asgictl", "app:app", "--workers", "2"),
                *("--uds", str(path), "--control", "none"),
            ],
            cwd=project.directory,
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(lambda: "workers are ready" in log.read_text(), "the fleet is ready")
        (supervisor,) = psutil.Process(outer.pid).children()
        for _ in range(5):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(str(path))
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert read_until_closed(client).startswith(b"HTTP/1.1 200")
        # Orphans are its own children here; the rest are the workers' to bury.
        wait_for(lambda: len(supervisor.children()) == 2, "all orphans are buried")
        supervisor.terminate()
        assert outer.wait(30) == 0
    finally:
        outer.kill()
        outer.wait()
    assert "was killed" not in log.read_text()
