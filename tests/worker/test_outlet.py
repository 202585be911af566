import contextlib
import fcntl
import os
import pty
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from asgictl_worker import outlet as outlet_module
from asgictl_worker.outlet import BACKLOG, Outlet


def read_all(fd: int) -> bytes:
    os.set_blocking(fd, False)
    data = b""
    try:
        while part := os.read(fd, 65536):
            data += part
    except BlockingIOError:
        pass
    return data


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    for fd in (read_end, write_end):
        with contextlib.suppress(OSError):
            os.close(fd)


@pytest.fixture(params=["pipe", "socket", "terminal", "not to be opened again"])
def stuck(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[int, int]]:
    """Return a reader's end, and a writer's end that blocks when the reader does not read."""
    if request.param == "socket":
        ours, theirs = socket.socketpair()
        ends = ours.detach(), theirs.detach()
    elif request.param == "terminal":
        ends = pty.openpty()
    else:
        ends = os.pipe()
    if request.param == "not to be opened again":

        def refuse(*_: object) -> int:
            raise PermissionError

        monkeypatch.setattr(outlet_module.os, "open", refuse)
    yield ends
    monkeypatch.undo()
    for fd in ends:
        os.close(fd)


def test_lines_arrive_in_order(stuck: tuple[int, int]) -> None:
    reader, writer = stuck
    outlet = Outlet(writer)
    for number in range(3):
        outlet.write(b"line %d\n" % number)
    assert read_all(reader).replace(b"\r", b"") == b"line 0\nline 1\nline 2\n"
    outlet.close()


def test_a_reader_that_does_not_read_never_blocks_the_writer(stuck: tuple[int, int]) -> None:
    reader, writer = stuck
    outlet = Outlet(writer)
    line = b"x" * 1023 + b"\n"
    written = 2000
    for _ in range(written):
        outlet.write(line)
    assert outlet.dropped > 0
    assert os.get_blocking(writer), "the descriptor that others share was changed"
    text = b""
    while not outlet.flush(0.01):
        text += read_all(reader)
    text += read_all(reader)
    lines = text.replace(b"\r", b"").splitlines(keepends=True)
    whole = lines.count(line)
    assert set(lines) <= {line, lines[-1]}, "a line was torn"
    assert lines[-1] == b"asgictl: %d log lines were dropped, nobody took them\n" % (
        written - whole
    )
    assert outlet.dropped == 0
    outlet.close()


def test_the_backlog_is_bounded(pipe: tuple[int, int]) -> None:
    outlet = Outlet(pipe[1])
    for _ in range(100):
        outlet.write(b"x" * 65535 + b"\n")
    assert len(outlet._kept) <= BACKLOG + 65536
    outlet.close()


def test_a_long_line_that_was_begun_is_finished_first(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    outlet = Outlet(writer)
    long = b"y" * (BACKLOG + 5000) + b"\n"
    outlet.write(long)
    outlet.write(b"next\n")
    text = b""
    while not outlet.flush():
        text += read_all(reader)
    text += read_all(reader)
    assert text.startswith(long)
    outlet.close()


def test_flush_waits_no_longer_than_it_may(pipe: tuple[int, int]) -> None:
    outlet = Outlet(pipe[1])
    outlet.write(b"x" * 100_000 + b"\n")
    assert not outlet.flush(0.01)
    outlet.close()


def test_a_reader_that_left_loses_lines_and_nothing_else(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    outlet = Outlet(writer)
    os.close(reader)
    outlet.write(b"one\n")
    outlet.write(b"two\nthree\n")
    assert outlet.dropped == 3
    outlet.close()


def test_a_closed_descriptor_swallows_lines_even_when_its_number_is_used_again(
    tmp_path: Path,
) -> None:
    fd = os.open(tmp_path / "gone", os.O_CREAT | os.O_WRONLY)
    os.close(fd)
    outlet = Outlet(fd)
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_WRONLY)
    assert other == fd
    outlet.write(b"line\n")
    os.close(other)
    assert (tmp_path / "other").read_bytes() == b""


def test_a_file_is_shared_with_whoever_has_it_open(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb", buffering=0) as file:
        outlet = Outlet(file.fileno())
        outlet.write(b"one\n")
        file.write(b"two\n")
        outlet.write(b"three\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_a_full_disk_is_told_when_there_is_room_again() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    fd = os.open("/dev/full", os.O_WRONLY)
    outlet = Outlet(fd)
    outlet.write(b"one\n")
    outlet.write(b"two\n")
    assert outlet.dropped == 2
    reader, writer = os.pipe()
    os.dup2(writer, fd)
    outlet.write(b"three\n")
    assert read_all(reader) == b"asgictl: 2 log lines were dropped, nobody took them\nthree\n"
    for each in (fd, reader, writer):
        os.close(each)


def test_a_child_does_not_close_a_number_that_is_not_its_own_any_more(
    pipe: tuple[int, int],
) -> None:
    outlet = Outlet(pipe[1])
    own = outlet._own
    assert own is not None
    outlet._pid = -1
    outlet.close()
    os.fstat(own)
    os.close(own)
