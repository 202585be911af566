"""SIGHUP brings new code without losing a request, and broken code never gets to serve."""

import time

import pytest
from tests.conftest import Serve
from tests.kit import PATIENCE, Load, Project, application, read_until_closed, wait_for
from tests.system.applications import (
    FAILING_LIFESPAN,
    HANGING_IMPORT,
    HELD,
    WEBSOCKET,
    held,
    release,
)
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.sync.client import connect

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


def test_three_reloads_under_load_lose_nothing_and_end_with_the_new_code(
    serve: Serve, project: Project
) -> None:
    project.write(application("0"))
    server = serve("--workers", "4", "--min-ready", "0.2")
    with Load(server.port) as load:
        for version in ("1", "2", "3"):
            project.write(application(version))
            server.reload(within=60)
        done = time.monotonic()
        load.wait_for_answers(1000)
    load.assert_nothing_lost()
    assert set(load.tally.by_version) == {"0", "1", "2", "3"}
    late = {version for version, asked in load.tally.last_asked.items() if asked > done}
    assert late == {"3"}, "old code answered after the reload"
    assert load.tally.told_to_close > 0
    server.stop()


def test_a_reload_with_one_worker_loses_nothing(serve: Serve, project: Project) -> None:
    project.write(application("0"))
    server = serve("--min-ready", "0.2")
    with Load(server.port) as load:
        project.write(application("1"))
        server.reload()
        load.wait_for_answers(200)
    load.assert_nothing_lost()
    server.stop()


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("raise RuntimeError('broken on purpose')", "RuntimeError: broken on purpose"),
        ("def app(: pass", "SyntaxError"),
        ("application = None", "app:app|attribute 'app'|no attribute|'app'"),
        (FAILING_LIFESPAN, "no database today"),
    ],
    ids=["exception", "syntax", "attribute", "lifespan"],
)
def test_a_reload_of_broken_code_is_refused_with_its_reason_and_the_old_code_serves_on(
    serve: Serve, project: Project, broken: str, reason: str
) -> None:
    project.write(application("good"))
    server = serve("--workers", "2", "--min-ready", "0.2")
    old = server.workers()
    with Load(server.port, keep_alive=16, closing=4) as load:
        project.write(broken)
        server.signal("HUP")
        server.assert_log("reload refused")
        server.assert_log(reason)
        load.wait_for_answers(200)
        assert server.workers() == old

        project.write(application("better"))
        server.reload()
        load.wait_for_answers(200)
    load.assert_nothing_lost()
    assert set(load.tally.by_version) == {"good", "better"}
    assert server.log().count("reload refused") == 1
    assert server.log().count("Traceback") <= 1, "the reason is logged once, not by each process"
    server.stop()


def test_a_websocket_is_told_to_come_back_when_its_worker_is_replaced(
    serve: Serve, project: Project
) -> None:
    project.write(WEBSOCKET)
    server = serve("--min-ready", "0")
    with connect(f"ws://127.0.0.1:{server.port}", proxy=None) as client:
        assert client.recv(PATIENCE) == "hello"
        server.signal("HUP")
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == CloseCode.SERVICE_RESTART
    server.assert_log("reloaded: generation")
    server.stop()


def test_a_request_in_progress_is_finished_by_the_old_worker_and_its_connection_closed(
    serve: Serve, project: Project
) -> None:
    project.write(HELD)
    server = serve("--min-ready", "0")
    (old,) = server.workers()
    with held(project, server.port) as client:
        server.signal("HUP")
        server.assert_log("reloaded: generation")
        assert old in server.workers(), "the old worker waits for its request"
        release(project)
        answer = read_until_closed(client)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in head.lower()
    assert int(body) == old
    server.wait_for_workers(1, other_than={old})
    server.accept_files()
    server.stop()


def test_a_second_hup_during_a_reload_brings_the_newest_code(
    serve: Serve, project: Project
) -> None:
    project.write(application("0"))
    server = serve("--workers", "2", "--min-ready", "0.2")
    with Load(server.port, keep_alive=16, closing=4) as load:
        project.write(HANGING_IMPORT + application("1"))
        server.signal("HUP")
        wait_for((project.directory / "importing").exists, "the new code is being imported")
        project.write(application("2"))
        server.signal("HUP")
        server.assert_log("reloaded: generation 3")
        load.wait_for_answers(200)
        server.wait_for_workers(2)
    load.assert_nothing_lost()
    assert set(load.tally.by_version) == {"0", "2"}
    server.accept_files()
    server.stop()


def test_a_fleet_scaled_by_hand_keeps_its_size_over_a_reload(
    serve: Serve, project: Project
) -> None:
    project.write(application("0"))
    server = serve("--workers", "1", "--min-ready", "0")
    server.signal("TTIN")
    before = server.wait_for_workers(2)
    server.reload()
    server.wait_for_workers(2, other_than=before)
    server.stop()


def test_workers_that_have_served_enough_are_replaced_without_losing_a_request(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", "--max-requests", "500", "--max-requests-jitter", "200")
    first = server.workers()
    with Load(server.port, keep_alive=16, closing=4) as load:
        wait_for(lambda: not server.workers() & first, "both workers are replaced")
        load.wait_for_answers(200)
    load.assert_nothing_lost()
    server.stop()
