"""Signals as events: a real process sends them to itself."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.supervisor.system.children import FORKS, ended, in_child, start, status_field

from asgictl.system import kernel
from asgictl.system.signals import IGNORED, OBEYED, SignalPipe, reset_in_child

pytestmark = FORKS


@pytest.fixture
def pipe() -> Iterator[SignalPipe]:
    pipe = SignalPipe()
    yield pipe
    pipe.close()


def readable(pipe: SignalPipe, milliseconds: int = 10_000) -> bool:
    poller = select.poll()
    poller.register(pipe.fileno(), select.POLLIN)
    return bool(poller.poll(milliseconds))


@pytest.mark.parametrize("name", OBEYED)
def test_a_signal_comes_out_of_the_pipe(pipe: SignalPipe, name: str) -> None:
    os.kill(os.getpid(), signal.Signals["SIG" + name])
    assert readable(pipe)
    assert pipe.read() == {name}
    assert not readable(pipe, 0)


def test_a_signal_ends_a_poll_without_a_time_out(pipe: SignalPipe) -> None:
    me = os.getpid()
    child = start(lambda: os.kill(me, signal.SIGHUP))
    assert readable(pipe)
    ended(child)
    assert "HUP" in pipe.read()


def test_the_death_of_a_child_comes_out_of_the_pipe(pipe: SignalPipe) -> None:
    ended(start(lambda: 0))
    assert pipe.read() == {"CHLD"}


def test_a_storm_of_one_signal_is_one_request_and_hides_no_other(pipe: SignalPipe) -> None:
    for _ in range(100_000):
        signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGTERM)
    assert readable(pipe)
    assert pipe.read() == {"HUP", "TERM"}
    assert not readable(pipe, 0)
    assert pipe.read() == set()


def test_an_empty_pipe_says_nothing(pipe: SignalPipe) -> None:
    assert pipe.read() == set()


def test_signals_of_others_in_the_same_program_are_theirs(pipe: SignalPipe) -> None:
    heard = []
    for number in (signal.SIGVTALRM, signal.SIGRTMIN + 2):
        signal.signal(number, lambda number, _: heard.append(number))
        signal.raise_signal(number)
        signal.signal(number, signal.SIG_DFL)
    assert heard == [signal.SIGVTALRM, signal.SIGRTMIN + 2]
    assert pipe.read() == set()


@pytest.mark.parametrize("name", IGNORED)
def test_a_signal_that_must_not_end_us_does_not(pipe: SignalPipe, name: str) -> None:
    signal.raise_signal(signal.Signals["SIG" + name])
    assert pipe.read() == set()


def test_everything_is_given_back_as_it_was() -> None:
    numbers = [signal.Signals["SIG" + name] for name in (*OBEYED, *IGNORED, "CHLD")]
    before = [signal.getsignal(number) for number in numbers]
    SignalPipe().close()
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    fd = signal.set_wakeup_fd(-1)
    assert fd == -1


def test_the_pipe_is_not_inherited(pipe: SignalPipe) -> None:
    assert not os.get_inheritable(pipe.fileno())


def child_of(pipe: SignalPipe) -> kernel.Child:
    """Fork as the supervisor does; the child waits until it is signalled."""
    read_end, write_end = os.pipe()
    pid = kernel.fork()
    if pid == 0:
        reset_in_child()
        kernel.unblock_signals()
        os.write(write_end, b".")
        while True:
            signal.pause()
    os.read(read_end, 1)
    os.close(read_end)
    os.close(write_end)
    return kernel.Child(pid)


def test_a_signal_for_a_worker_does_not_wake_the_supervisor(pipe: SignalPipe) -> None:
    child = child_of(pipe)
    for name in OBEYED:
        if name != "TERM":
            child.send(name)
    child.send("TERM")
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert pipe.read() == {"CHLD"}
    ended(child)


@pytest.mark.parametrize("name", [name for name in OBEYED if name != "TERM"])
def test_a_worker_leaves_the_supervisors_signals_to_it(pipe: SignalPipe, name: str) -> None:
    """As after Ctrl-C, or ``pkill -HUP asgictl``."""
    child = child_of(pipe)
    child.send(name)
    assert child.reap() is None
    child.send("TERM")
    assert ended(child).signal == "TERM"


def test_a_program_started_by_the_application_ignores_only_what_python_ignores() -> None:
    code = "print(next(line for line in open('/proc/self/status') if 'SigIgn' in line))"

    def plain() -> str:
        return subprocess.check_output([sys.executable, "-c", code], text=True)

    def worker() -> str:
        pipe = SignalPipe()
        reset_in_child()
        pipe.fileno()
        return subprocess.check_output([sys.executable, "-c", code], text=True)

    assert in_child(worker) == in_child(plain)


def test_a_worker_that_writes_to_a_closed_socket_lives_on() -> None:
    def work() -> int:
        SignalPipe()
        reset_in_child()
        return int(status_field("SigIgn"), 16)

    assert in_child(work) & 1 << (signal.SIGPIPE - 1)
