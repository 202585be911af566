"""SIGUSR2: the program on disk takes over the process of the running one, with all it has."""

import os
import signal
import socket

import httpx
import pytest
from tests.conftest import Serve
from tests.kit import Load, Project, application, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["plain", "preload"])
def test_two_upgrades_under_load_lose_nothing_and_keep_pid_and_workers(
    serve: Serve, project: Project, preload: tuple[str, ...]
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", "--pid", "server.pid", *preload)
    workers, descriptors = server.workers(), len(os.listdir(f"/proc/{server.pid}/fd"))
    with Load(server.port, keep_alive=16, closing=4) as load:
        for count in (1, 2):
            server.signal("USR2")
            server.assert_log("has taken over 2 workers", count=count)
        load.wait_for_answers(200)
    load.assert_nothing_lost()
    assert server.workers() == workers
    assert (project.directory / "server.pid").read_text() == f"{server.pid}\n"
    assert len(os.listdir(f"/proc/{server.pid}/fd")) == descriptors
    server.stop()


def test_after_an_upgrade_everything_still_works(serve: Serve, project: Project) -> None:
    project.write(application("0"))
    server = serve("--workers", "2", "--min-ready", "0.2")
    server.signal("USR2")
    server.assert_log("has taken over")
    before = server.workers()
    os.kill(min(before), signal.SIGKILL)
    server.wait_for_workers(2, other_than={min(before)})
    server.signal("TTIN")
    server.wait_for_workers(3)
    project.write(application("1"))
    server.reload()
    assert httpx.get(server.url).json()["version"] == "1"
    server.stop()


def test_connections_that_wait_in_the_kernel_survive_an_upgrade(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "1")
    (worker,) = server.workers()
    os.kill(worker, signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", server.port)) as waiting:
        waiting.sendall(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        server.signal("USR2")
        server.assert_log("has taken over")
        os.kill(worker, signal.SIGCONT)
        assert waiting.recv(1000).startswith(b"HTTP/1.1 200")
    server.stop()


def test_an_upgrade_that_fails_its_check_changes_nothing(serve: Serve, project: Project) -> None:
    (project.directory / "asgictl.toml").write_text("workers = 2\n")
    project.write(application("1"))
    server = serve()
    workers = server.workers()
    (project.directory / "asgictl.toml").write_text("workers = 'many'\n")
    server.signal("USR2")
    server.assert_log("upgrade refused, everything is as it was.*")
    server.assert_log("many")
    assert server.workers() == workers
    assert httpx.get(server.url).json()["version"] == "1"
    server.accept_files()
    server.stop()


def test_a_stop_that_arrives_in_the_middle_of_an_upgrade_is_obeyed(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2")
    server.signal("USR2")
    server.assert_log("asking .* whether it can take over")
    server.stop()


def test_a_unix_socket_goes_along_and_is_removed_at_the_end(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--uds", "app.sock")
    server.signal("USR2")
    server.assert_log("has taken over")
    transport = httpx.HTTPTransport(uds=str(project.directory / "app.sock"))
    with httpx.Client(transport=transport) as client:
        assert client.get("http://here/").json()["version"] == "1"
    server.signal("TERM")
    assert server.ended() == 0
    wait_for(lambda: not list(project.directory.glob("app.sock*")), "the socket is removed")
