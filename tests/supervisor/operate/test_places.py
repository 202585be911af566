"""Where supervisors and their clients meet."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from asgictl.operate import places


@pytest.fixture
def bound() -> Iterator[list[socket.socket]]:
    """Sockets that are closed at the end."""
    sockets: list[socket.socket] = []
    yield sockets
    for each in sockets:
        each.close()


def bind(path: Path, bound: list[socket.socket], *, alive: bool = True) -> Path:
    path.parent.mkdir(exist_ok=True, mode=0o700)
    end = socket.socket(socket.AF_UNIX)
    end.bind(str(path))
    if alive:
        end.listen()
        bound.append(end)
    else:
        end.close()
    return path


def test_a_supervisor_tries_the_most_private_place_first() -> None:
    environ = {"RUNTIME_DIRECTORY": "/run/shop:/run/other", "XDG_RUNTIME_DIR": "/run/user/7"}
    assert places.for_supervisor(environ, 7, 42) == [
        "/run/shop/asgictl.sock",
        "/run/user/7/asgictl/42.sock",
        "/tmp/asgictl-7/42.sock",
    ]
    assert places.for_supervisor({}, 7, 42) == ["/tmp/asgictl-7/42.sock"]
    assert places.for_supervisor({"TMPDIR": "/t"}, 7, 42) == ["/t/asgictl-7/42.sock"]
    assert places.for_supervisor({"XDG_RUNTIME_DIR": "x", "RUNTIME_DIRECTORY": "y"}, 7, 42) == [
        "/tmp/asgictl-7/42.sock"
    ], "a relative path means something else to everybody"


def test_a_client_finds_all_sockets_of_its_user(tmp_path: Path, bound: list[socket.socket]) -> None:
    service = bind(tmp_path / "service/asgictl.sock", bound)
    first = bind(tmp_path / "asgictl/1.sock", bound)
    second = bind(tmp_path / "asgictl/2.sock", bound)
    (tmp_path / "asgictl/3.sock").touch()
    environ = {
        "RUNTIME_DIRECTORY": str(tmp_path / "service"),
        "XDG_RUNTIME_DIR": str(tmp_path),
    }
    assert places.of_user(environ, 4_000_000_000) == [str(service), str(first), str(second)]
    assert places.of_process(environ, 4_000_000_000, 2) == [str(second), str(service)]
    assert places.of_process(environ, 4_000_000_000, 3) == [str(service)]


def test_the_shared_directory_is_made_for_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "asgictl/1.sock"
    places.prepare(str(path))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    places.prepare(str(path))
    places.clean_up(str(path))
    assert not path.parent.exists()


def test_it_is_left_while_others_use_it(tmp_path: Path) -> None:
    (tmp_path / "asgictl").mkdir(mode=0o700)
    (tmp_path / "asgictl/2.sock").touch()
    places.clean_up(str(tmp_path / "asgictl/1.sock"))
    assert (tmp_path / "asgictl").exists()


def test_that_of_a_service_is_left_as_it_is(tmp_path: Path) -> None:
    places.prepare(str(tmp_path / "service/asgictl.sock"))
    places.clean_up(str(tmp_path / "service/asgictl.sock"))
    assert not (tmp_path / "service").exists()
    (tmp_path / "service").mkdir()
    places.clean_up(str(tmp_path / "service/asgictl.sock"))
    assert (tmp_path / "service").exists()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_that_others_may_enter_is_not_used(tmp_path: Path, mode: int) -> None:
    (tmp_path / "asgictl").mkdir()
    (tmp_path / "asgictl").chmod(mode)
    with pytest.raises(PermissionError, match="others than its owner"):
        places.prepare(str(tmp_path / "asgictl/1.sock"))


def test_a_link_to_somewhere_else_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "asgictl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        places.prepare(str(tmp_path / "asgictl/1.sock"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "asgictl").mkdir(mode=0o700)
    os.chown(tmp_path / "asgictl", 65534, -1)
    with pytest.raises(PermissionError):
        places.prepare(str(tmp_path / "asgictl/1.sock"))


def test_what_killed_supervisors_have_left_is_tidied_up(
    tmp_path: Path, bound: list[socket.socket]
) -> None:
    dead = bind(tmp_path / "asgictl/1.sock", bound, alive=False)
    lock = tmp_path / "asgictl/1.sock.lock"
    lock.touch()
    alive = bind(tmp_path / "asgictl/2.sock", bound)
    places.prepare(str(tmp_path / "asgictl/3.sock"))
    assert not dead.exists()
    assert not lock.exists()
    assert alive.exists()
