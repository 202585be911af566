"""The pid file: real locks, real leftovers, a real full disk."""

import os
import resource
import signal
import stat
from pathlib import Path

import pytest
from tests.supervisor.system.children import FORKS, ended, in_child, start
from tests.supervisor.system.test_listeners import winners

from asgictl.system import kernel
from asgictl.system.pidfile import CannotWritePidFile, PidFile, PidFileHeld
from asgictl_worker.errors import ExitCode

pytestmark = FORKS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.pid"


def test_it_holds_our_number_until_it_is_removed(path: Path) -> None:
    pidfile = PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    assert not os.get_inheritable(pidfile.fileno())
    pidfile.remove()
    assert not path.exists()


def test_everybody_may_read_it_and_only_we_may_write(path: Path) -> None:
    before = os.umask(0o002)
    pidfile = PidFile(str(path))
    os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    pidfile.remove()


def test_a_relative_path_counts_from_where_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pidfile = PidFile("app.pid")
    monkeypatch.chdir("/")
    pidfile.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_second_supervisor_is_refused_and_told_who_lives(path: Path) -> None:
    pidfile = PidFile(str(path))
    with pytest.raises(PidFileHeld) as caught:
        PidFile(str(path))
    assert caught.value.exit_code == ExitCode.CANNOT_BIND
    assert str(caught.value) == (
        f"the pid file {path} is locked by the running process {os.getpid()}; "
        f"stop that one first, or give this one another --pid"
    )
    assert path.read_text() == f"{os.getpid()}\n"
    pidfile.remove()


def test_of_many_that_start_at_once_one_wins(path: Path) -> None:
    assert winners(lambda: PidFile(str(path))) == 1


@pytest.mark.parametrize("text", ["", "1\n", "4194304\n", "no number", "9" * 5000])
def test_a_file_that_a_killed_server_left_is_taken(path: Path, text: str) -> None:
    """Also if its number is that of another process by now."""
    path.write_text(text)
    pidfile = PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    pidfile.remove()


def test_the_lock_ends_with_the_process(path: Path) -> None:
    def work() -> None:
        PidFile(str(path))
        signal.raise_signal(signal.SIGKILL)

    assert ended(start(work)).signal == "KILL"
    assert path.exists()
    PidFile(str(path)).remove()


def test_a_worker_that_outlives_its_supervisor_does_not_hold_the_lock(path: Path) -> None:
    """It has closed its copy, as every worker does."""
    may_leave, tell = os.pipe()

    def work() -> None:
        PidFile(str(path))
        read_end, write_end = os.pipe()

        def worker() -> None:
            kernel.close_all_but([write_end, may_leave])
            os.write(write_end, b".")
            os.read(may_leave, 1)  # until this test has ended

        start(worker, outlives_us=True)
        os.read(read_end, 1)
        signal.raise_signal(signal.SIGKILL)

    child = start(work)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    PidFile(str(path)).remove()
    os.close(tell)
    os.close(may_leave)


def test_the_file_of_another_is_not_removed(path: Path) -> None:
    pidfile = PidFile(str(path))
    path.unlink()
    path.write_text("somebody else's")
    pidfile.remove()
    assert path.read_text() == "somebody else's"


def test_a_path_that_is_gone_hinders_no_stop(path: Path) -> None:
    pidfile = PidFile(str(path))
    path.unlink()
    pidfile.remove()


def test_a_link_is_not_followed(path: Path) -> None:
    precious = path.with_name("precious")
    precious.write_text("kept")
    path.symlink_to(precious)
    with pytest.raises(CannotWritePidFile):
        PidFile(str(path))
    assert precious.read_text() == "kept"


def test_a_pipe_in_its_place_does_not_block(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(CannotWritePidFile):
        PidFile(str(path))


@pytest.mark.parametrize("place", ["no/such/app.pid", "."])
def test_a_place_where_it_cannot_be_is_named(tmp_path: Path, place: str) -> None:
    with pytest.raises(
        CannotWritePidFile, match=r"cannot write the pid file .*; make its directory"
    ) as caught:
        PidFile(str(tmp_path / place))
    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION


def test_a_full_disk_is_told_and_leaves_nothing(path: Path) -> None:
    def work() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        before = os.listdir("/proc/self/fd")
        with pytest.raises(CannotWritePidFile) as caught:
            PidFile(str(path))
        assert os.listdir("/proc/self/fd") == before
        return str(caught.value)

    assert "File too large" in in_child(work)
    assert not path.exists()


def test_the_next_program_in_this_process_keeps_the_lock(path: Path) -> None:
    first = PidFile(str(path))
    os.set_inheritable(first.fileno(), True)
    second = PidFile(str(path), first.fileno())
    assert not os.get_inheritable(second.fileno())
    with pytest.raises(PidFileHeld):
        PidFile(str(path))
    second.remove()
    assert not path.exists()
