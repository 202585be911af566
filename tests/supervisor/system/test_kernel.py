"""kernel.py against the real kernel."""

import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest
from tests.kit import wait_for
from tests.supervisor.system.children import (
    FORKS,
    ended,
    in_child,
    refuse_forks,
    start,
    status_field,
    use_up_descriptors,
)

from asgictl.system import kernel

pytestmark = FORKS

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")


def test_an_exit_code_is_told() -> None:
    assert ended(start(lambda: 7)) == kernel.ExitStatus(code=7)


@pytest.mark.parametrize("name", ["KILL", "TERM", "ABRT"])
def test_a_deadly_signal_is_told_by_its_name(name: str) -> None:
    child = start(signal.pause)
    child.send(name)
    assert ended(child) == kernel.ExitStatus(code=None, signal=name)


def test_a_living_child_is_not_reaped() -> None:
    child = start(signal.pause)
    assert child.reap() is None
    child.send("KILL")
    ended(child)


@linux
def test_the_pidfd_becomes_readable_when_the_child_ends() -> None:
    child = start(lambda: time.sleep(0.05))
    poller = select.poll()
    poller.register(child.pidfd, select.POLLIN)
    assert poller.poll(10_000)
    assert ended(child) == kernel.ExitStatus(code=0)


def test_a_signal_for_a_dead_child_goes_nowhere() -> None:
    child = start(lambda: 0)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    child.send("TERM")
    child.reap()
    child.send("TERM")
    child.close()
    child.send("TERM")


def test_after_its_death_no_signal_goes_to_whoever_got_the_pid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    child = start(lambda: 0)
    ended(child)
    stranger = start(signal.pause)
    child.pid = stranger.pid
    child.send("KILL")
    assert stranger.reap() is None
    stranger.send("KILL")
    assert ended(stranger).signal == "KILL"


def test_without_pidfds_the_pid_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    child = start(signal.pause)
    assert child.pidfd == -1
    child.send("TERM")
    assert ended(child).signal == "TERM"


def test_a_child_that_somebody_else_has_reaped_is_gone() -> None:
    child = start(lambda: 0)
    os.waitpid(child.pid, 0)
    assert child.reap() == kernel.ExitStatus(code=None, signal="unknown")
    child.close()


def test_signals_without_a_name_are_told_by_number() -> None:
    assert kernel.signal_name(signal.SIGTERM) == "TERM"
    assert kernel.signal_name(signal.SIGRTMIN + 1) == str(signal.SIGRTMIN + 1)


def test_a_child_begins_with_all_signals_blocked_and_the_parent_goes_on_as_before() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    read_end, write_end = os.pipe()
    pid = kernel.fork()
    if pid == 0:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        os.write(write_end, b"all" if blocked >= kernel.BLOCKABLE else b"some")
        os._exit(0)
    os.close(write_end)
    os.waitpid(pid, 0)
    assert os.read(read_end, 10) == b"all"
    os.close(read_end)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_signal_in_the_fork_window_ends_the_child_as_soon_as_it_is_let_through() -> None:
    read_end, write_end = os.pipe()
    pid = kernel.fork()
    if pid == 0:
        os.close(write_end)
        os.read(read_end, 1)  # until the parent has sent the signal
        kernel.unblock_signals()
        os._exit(0)
    child = kernel.Child(pid)
    child.send("TERM")
    os.close(write_end)
    os.close(read_end)
    assert ended(child).signal == "TERM"


@linux
def test_a_fork_that_fails_says_so_and_leaves_signals_as_they_were() -> None:
    def work() -> tuple[str, bool]:
        refuse_forks()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            pid = kernel.fork()
        except OSError as error:
            return type(error).__name__, before == signal.pthread_sigmask(signal.SIG_BLOCK, ())
        if pid == 0:
            os._exit(0)
        return "forked", False

    assert in_child(work) == ("BlockingIOError", True)


def test_a_child_is_heard_through_a_pipe_that_ends_with_it() -> None:
    go, wait = os.pipe()

    def work(write_end: int) -> NoReturn:
        os.read(go, 1)
        os.write(write_end, b"here")
        os._exit(3)

    child, read_end = kernel.fork_to_hear(work)
    with pytest.raises(BlockingIOError):
        os.read(read_end, 10)
    os.write(wait, b"x")
    assert ended(child) == kernel.ExitStatus(code=3)
    assert (os.read(read_end, 10), os.read(read_end, 10)) == (b"here", b"")
    for fd in (read_end, go, wait):
        os.close(fd)


@linux
def test_a_child_to_hear_that_cannot_be_forked_leaves_no_descriptor() -> None:
    def work() -> bool:
        refuse_forks()
        before = os.listdir("/proc/self/fd")
        with pytest.raises(BlockingIOError):
            kernel.fork_to_hear(lambda _: os._exit(0))
        return before == os.listdir("/proc/self/fd")

    assert in_child(work)


def test_a_fork_works_without_standard_output() -> None:
    def work() -> int:
        sys.stdout = sys.stderr = None
        return ended(start(lambda: 5)).code or 0

    assert in_child(work) == 5


@linux
def test_a_fork_works_when_standard_output_is_on_a_full_disk() -> None:
    def work() -> int:
        sys.stdout = open("/dev/full", "w")  # noqa: SIM115
        sys.stdout.write("lost")
        return ended(start(lambda: 5)).code or 0

    assert in_child(work) == 5


@linux
def test_all_descriptors_are_closed_but_those_to_keep() -> None:
    def work() -> set[int]:
        keep = os.open(os.devnull, os.O_RDONLY)
        lose = os.open(os.devnull, os.O_RDONLY)
        kernel.close_all_but([keep, 900])
        left = {fd for fd in range(1000) if _is_open(fd)}
        assert lose not in left
        return left - {0, 1, 2} - {keep}

    assert in_child(work) == {900}


@linux
def test_descriptors_are_closed_even_when_none_is_left_to_list_them_with() -> None:
    def work() -> set[int]:
        use_up_descriptors()
        kernel.close_all_but([900])
        return {fd for fd in range(1000) if _is_open(fd)} - {0, 1, 2}

    assert in_child(work) == {900}


def test_closed_standard_descriptors_are_filled() -> None:
    def work() -> list[str]:
        for fd in (0, 2):
            os.close(fd)
        kernel.fill_standard_descriptors()
        kernel.fill_standard_descriptors()
        assert all(map(os.get_inheritable, (0, 2)))
        free = os.open(os.devnull, os.O_RDONLY)
        assert free > 2
        return [os.path.realpath(f"/dev/fd/{fd}") for fd in (0, 2)]

    assert in_child(work) == [os.devnull, os.devnull]


@linux
def test_orphans_come_to_the_nearest_ancestor_that_adopts() -> None:
    def work() -> bool:
        assert kernel.adopt_orphans()
        read_end, write_end = os.pipe()

        def parent() -> None:
            child = start(signal.pause, outlives_us=True)
            os.write(write_end, b"%d" % child.pid)

        ended(start(parent))
        orphan = kernel.Child(int(os.read(read_end, 20)))
        orphan.send("KILL")
        return ended(orphan) == kernel.ExitStatus(code=None, signal="KILL")

    assert in_child(work)


@linux
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    ready = tmp_path / "pid"

    def parent() -> None:
        me = os.getpid()

        def child() -> None:
            assert kernel.die_with_parent(me, signal.SIGKILL)
            ready.with_suffix(".new").write_text(str(os.getpid()))
            ready.with_suffix(".new").replace(ready)
            signal.pause()

        start(child, outlives_us=True)
        signal.pause()

    process = start(parent)
    wait_for(ready.exists, "the grandchild runs")
    pidfd = os.pidfd_open(int(ready.read_text()))
    process.send("KILL")
    ended(process)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    assert poller.poll(10_000), "the grandchild lives on"
    os.close(pidfd)


def test_a_child_whose_parent_is_gone_already_is_told() -> None:
    assert in_child(lambda: kernel.die_with_parent(os.getpid(), signal.SIGKILL)) is False


@linux
def test_set_user_id_programs_lose_their_power() -> None:
    def work() -> str:
        assert kernel.forbid_new_privileges()
        return status_field("NoNewPrivs")

    assert in_child(work) == "1"


@linux
def test_a_worker_is_a_better_victim_than_its_supervisor() -> None:
    def work() -> tuple[int, int]:
        before = int(Path("/proc/self/oom_score_adj").read_text())
        kernel.prefer_as_victim(100)
        return before, int(Path("/proc/self/oom_score_adj").read_text())

    before, after = in_child(work)
    assert after == min(1000, before + 100)


@linux
def test_there_is_a_most_preferred_victim() -> None:
    def work() -> str:
        kernel.prefer_as_victim(5000)
        return Path("/proc/self/oom_score_adj").read_text().strip()

    assert in_child(work) == "1000"


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
