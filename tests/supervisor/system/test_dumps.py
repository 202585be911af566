"""Stacks by way of memory: a real faulthandler writes them, in every state a worker can be in."""

import ctypes
import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from tests.kit import wait_for
from tests.supervisor.system.children import FORKS, ended, start

from asgictl.settings import Settings
from asgictl.system import dumps, kernel, spawn
from asgictl.system.dumps import MAX_DUMP, DumpFile, without_our_frames

pytestmark = FORKS


@pytest.fixture
def dump() -> Iterator[DumpFile]:
    dump = DumpFile()
    yield dump
    dump.close()


def worker(dump: DumpFile, work: Callable[[], object]) -> kernel.Child:
    """Start a child that writes its stacks as a worker does, and wait until it could."""
    read_end, write_end = os.pipe()

    def prepared() -> None:
        faulthandler.enable(file=dump.fd)
        faulthandler.register(signal.SIGUSR2, file=dump.fd, all_threads=True, chain=False)
        os.write(write_end, b".")
        work()

    child = start(prepared)
    os.read(read_end, 1)
    os.close(read_end)
    os.close(write_end)
    return child


def sleeping_in_a_system_call() -> None:
    time.sleep(60)


def computing() -> None:
    while True:
        pass


def holding_the_interpreters_lock() -> None:
    # PyDLL keeps the lock during the call, as an extension does that computes.
    sleep = ctypes.PyDLL(None).sleep
    while True:
        sleep(60)  # until the next signal


STUCK = [sleeping_in_a_system_call, computing, holding_the_interpreters_lock]


@pytest.mark.parametrize("work", STUCK)
def test_a_stuck_worker_shows_where_and_lives_on(
    dump: DumpFile, work: Callable[[], object]
) -> None:
    child = worker(dump, work)
    written = ""

    def shows_where() -> bool:
        # It may just be on its way into the function, and a dump is written in pieces.
        nonlocal written
        child.send("USR2")
        written += dump.read_new()
        return f" in {work.__name__}" in written

    wait_for(shows_where, "its stacks")
    assert "most recent call first" in written
    assert child.reap() is None
    child.send("KILL")
    ended(child)


@pytest.mark.parametrize("work", STUCK)
def test_an_aborted_worker_leaves_its_stacks_behind(
    dump: DumpFile, work: Callable[[], object]
) -> None:
    child = worker(dump, work)
    child.send("ABRT")
    assert ended(child).signal == "ABRT"
    stacks = dump.read_new()
    assert "Fatal Python error: Aborted" in stacks
    assert " in prepared" in stacks  # and above it the function, if it has come so far


def test_a_crash_leaves_stacks_behind(dump: DumpFile) -> None:
    child = worker(dump, lambda: ctypes.string_at(0))
    assert ended(child).signal == "SEGV"
    assert "Fatal Python error: Segmentation fault" in dump.read_new()


def test_nothing_new_is_nothing(dump: DumpFile) -> None:
    assert dump.read_new() == ""
    os.write(dump.fd, b"once\n")
    assert dump.read_new() == "once"
    assert dump.read_new() == ""


def test_a_dump_that_is_too_long_is_cut_and_the_next_one_is_whole(dump: DumpFile) -> None:
    os.write(dump.fd, b"a" * (MAX_DUMP + 7))
    text = dump.read_new()
    assert text.endswith("a\n... 7 bytes left out ...")
    os.write(dump.fd, b"the next")
    assert dump.read_new() == "the next"


def test_what_is_written_while_it_is_read_comes_next(
    dump: DumpFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pread(fd: int, size: int, offset: int) -> bytes:
        monkeypatch.undo()
        data = os.pread(fd, size, offset)
        os.write(fd, b"second")
        return data

    os.write(dump.fd, b"first")
    monkeypatch.setattr(os, "pread", pread)
    assert dump.read_new() == "first"
    assert dump.read_new() == "second"
    assert dump.read_new() == ""


def test_many_dumps_do_not_fill_the_memory(dump: DumpFile) -> None:
    big = b"x" * 50_000
    for _ in range(100):
        os.write(dump.fd, big)
        assert dump.read_new() == big.decode()
    assert os.fstat(dump.fd).st_size <= MAX_DUMP + len(big)


def test_the_next_program_goes_on_where_the_last_one_stopped(dump: DumpFile) -> None:
    os.write(dump.fd, b"old ")
    dump.read_new()
    os.write(dump.fd, b"new")
    os.set_inheritable(dump.fd, True)
    taken = DumpFile(os.dup(dump.fd), dump.offset)
    assert not os.get_inheritable(taken.fd)
    assert taken.read_new() == "new"
    taken.close()


def test_without_memfds_an_unlinked_file_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    dump = DumpFile()
    os.write(dump.fd, b"stacks")
    assert dump.read_new() == "stacks"
    assert os.fstat(dump.fd).st_nlink == 0
    dump.close()


def test_no_program_that_a_worker_starts_inherits_it(dump: DumpFile) -> None:
    assert not os.get_inheritable(dump.fd)


OURS = os.path.dirname(os.path.dirname(dumps.__file__))


def test_the_frames_below_a_fork_are_left_out() -> None:
    text = f"""Thread 0x01 (most recent call first):
  File "/usr/lib/python3/threading.py", line 1 in wait

Current thread 0x02 (most recent call first):
  File "/srv/app.py", line 7 in view
  File "/lib/asgictl_worker/main.py", line 99 in work
  File "{OURS}/system/spawn.py", line 120 in live
  File "{OURS}/supervisor.py", line 200 in run
  File "/usr/lib/python3/site-packages/click/core.py", line 2 in main
  File "<string>", line 1 in <module>

Extension modules: uvloop.loop (total: 1)"""
    assert (
        without_our_frames(text)
        == """Thread 0x01 (most recent call first):
  File "/usr/lib/python3/threading.py", line 1 in wait

Current thread 0x02 (most recent call first):
  File "/srv/app.py", line 7 in view
  File "/lib/asgictl_worker/main.py", line 99 in work

Extension modules: uvloop.loop (total: 1)"""
    )


def test_the_thread_that_watches_the_loop_is_left_out() -> None:
    ours = (
        "Thread 0x00007f29d205b6c0 (most recent call first):\n"
        '  File "/lib/threading.py", line 363 in wait\n'
        '  File "/x/asgictl_worker/hygiene.py", line 133 in _watch\n'
        '  File "/lib/threading.py", line 1012 in _bootstrap\n'
    )
    others = (
        "Thread 0x00007f29d205b6c1 (most recent call first):\n"
        '  File "/app/hygiene.py", line 3 in _watch\n'
        "\n"
        "Current thread 0x00007f29d205b6c2 (most recent call first):\n"
        '  File "/app/app.py", line 9 in work'
    )
    assert without_our_frames(f"{ours}\n{others}") == others
    assert without_our_frames(f"Fatal Python error: Aborted\n\n{ours}\n{others}\n") == (
        f"Fatal Python error: Aborted\n\n{others}"
    )


def test_what_is_no_stack_is_left_alone() -> None:
    text = 'Fatal Python error: Aborted\n\n<no Python frame>\n  File "/srv/x.py", line 1 in f'
    assert without_our_frames(text) == text


def test_a_real_stack_below_a_fork_ends_with_the_worker(dump: DumpFile) -> None:
    surroundings = spawn.Surroundings(settings=Settings(), environ={}, identity=None)

    def work(_tls: object) -> int:
        faulthandler.dump_traceback(file=dump.fd)
        return 0

    parent = os.getpid()
    pid = kernel.fork()
    if pid == 0:
        spawn.live(parent, [dump.fd], surroundings, work)
    ended(kernel.Child(pid))
    lines = dump.read_new().splitlines()
    assert lines[-1].endswith(" in work")
