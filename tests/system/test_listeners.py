"""Where asgictl can listen, and that it leaves those places as it found them."""

import os
import signal
import socket
import stat
from pathlib import Path

import pytest
from tests.conftest import Serve
from tests.kit import Load, Project, application, run

pytestmark = [pytest.mark.system]


def test_a_unix_socket_serves_through_a_reload_and_is_gone_afterwards(
    serve: Serve, project: Project, tmp_path: Path
) -> None:
    path = tmp_path / "app.sock"
    project.write(application("1"))
    server = serve("--uds", str(path), "--workers", "2", "--min-ready", "0.2")
    with Load(str(path), keep_alive=16, closing=4) as load:
        server.reload()
        load.wait_for_answers(100)
    load.assert_nothing_lost()
    server.stop()
    assert not path.exists()


def test_new_permissions_are_those_of_a_reload_that_was_not_refused(
    start: Serve, project: Project, tmp_path: Path
) -> None:
    path = tmp_path / "app.sock"

    def permissions() -> int:
        return stat.S_IMODE(path.stat().st_mode)

    project.write(application("1"))
    project.write(f'uds = "{path}"\nmin_ready = 0\nuds_permissions = "600"\n', "asgictl.toml")
    server = start("app:app").wait_until_ready()
    assert permissions() == 0o600
    project.write(f'uds = "{path}"\nmin_ready = 0\nuds_permissions = "660"\n', "asgictl.toml")
    project.write("raise LookupError\n")
    server.signal("HUP")
    server.assert_log("reload refused")
    assert permissions() == 0o600
    project.write(application("2"))
    server.reload()
    assert permissions() == 0o660
    server.stop()


def test_a_reload_makes_a_unix_socket_anew_whose_path_was_removed(
    serve: Serve, project: Project, tmp_path: Path
) -> None:
    path = tmp_path / "app.sock"
    project.write(application("1"))
    server = serve("--uds", str(path), "--workers", "2", "--min-ready", "0")
    path.unlink()  # as deploy scripts do that were written for another server
    server.reload()
    with Load(str(path), keep_alive=4, closing=2) as load:
        server.reload()
        load.wait_for_answers(50)
    load.assert_nothing_lost()
    server.stop()
    assert list(tmp_path.glob("app.sock*")) == []


def test_a_unix_socket_left_by_a_dead_server_is_taken_over(
    serve: Serve, project: Project, tmp_path: Path
) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    project.write(application("1"))
    server = serve("--uds", str(path))
    with Load(str(path), keep_alive=2, closing=1) as load:
        pass
    load.assert_nothing_lost()
    server.stop()


def test_a_unix_socket_of_a_living_server_is_not_taken(
    serve: Serve, project: Project, tmp_path: Path
) -> None:
    path = tmp_path / "app.sock"
    project.write(application("1"))
    server = serve("--uds", str(path))
    ended = run(project, "app:app", "--uds", str(path))
    assert ended.code == 5
    assert str(path) in ended.stderr
    with Load(str(path), keep_alive=2, closing=1) as load:
        pass
    load.assert_nothing_lost()
    server.stop()


def test_an_inherited_descriptor_is_served_and_stays_open_for_its_owner(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        port = listener.getsockname()[1]
        server = serve(
            "--fd", str(listener.fileno()), "--workers", "2", pass_fds=(listener.fileno(),)
        )
        with Load(port, keep_alive=8, closing=4) as load:
            pass
        load.assert_nothing_lost()
        server.signal("TERM")
        assert server.ended() == 0
        # The queue is still there: its owner may start the next server on it.
        with socket.create_connection(("127.0.0.1", port), 5):
            pass


def test_several_binds_are_served_by_the_same_workers(
    serve: Serve, project: Project, tmp_path: Path
) -> None:
    path = tmp_path / "app.sock"
    project.write(application("1"))
    binds = ("--bind", "127.0.0.1:0", "--bind", "localhost:0", "--bind", f"unix:{path}")
    server = serve(*binds, "--workers", "2", "--min-ready", "0.2")
    ports = server.ports()
    assert len(set(ports)) == 2
    addresses: list[int | str] = [*ports, str(path)]
    loads = [Load(address, keep_alive=8, closing=2) for address in addresses]
    with loads[0], loads[1], loads[2]:
        server.reload()
        for load in loads:
            load.wait_for_answers(50)
    for load in loads:
        load.assert_nothing_lost()
    assert server.ports() == ports
    server.stop()
    assert not path.exists()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6_is_served(serve: Serve, project: Project) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no ::1")
    project.write(application("1"))
    server = serve("--bind", "[::1]:0")
    with socket.create_connection(("::1", server.port), 5) as client:
        client.sendall(b"GET /six HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    server.stop()


def test_connections_wait_in_the_queue_while_no_worker_is_there(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "1")
    (worker,) = server.workers()
    os.kill(worker, signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", server.port), 30) as client:
        client.sendall(b"GET /queued HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        os.kill(worker, signal.SIGKILL)
        assert client.recv(100).startswith(b"HTTP/1.1 200"), "the successor found it in the queue"
    server.stop()
