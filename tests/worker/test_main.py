"""Workers as the supervisor forks them: real processes, channels, lifelines, listeners."""

import contextlib
import os
import re
import signal
import socket
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from tests.worker.waiting import PATIENCE, wait_until

from asgictl_worker import contract, main
from asgictl_worker.errors import ConfigurationError, ExitCode
from asgictl_worker.settings import WorkerSettings

GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"
APP = """
import asyncio, contextlib, os, signal, sys, threading, time

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                print("shut down", flush=True)
                return
    path = scope["path"]
    if path == "/wait":
        await asyncio.sleep(60)
    elif path == "/soon":
        await asyncio.sleep(0.2)
    elif path == "/block":
        time.sleep(0.4)
    elif path == "/exit":
        asyncio.get_running_loop().call_soon(sys.exit, 9)
    elif path == "/quit":
        await asyncio.sleep(0)
        sys.exit(9)
    elif path == "/callback":
        asyncio.get_running_loop().call_soon(int, "in a callback")
    elif path == "/thread":
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
    elif path == "/leftover":
        async def stay():
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
        app.task = asyncio.create_task(stay(), name="the leftover")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""

M = TypeVar("M", bound=contract.Message)


class Worker:
    """A forked worker, and the supervisor's ends of its lines."""

    def __init__(
        self,
        directory: Path,
        listeners: list[socket.socket],
        settings: WorkerSettings,
        *,
        application: str = "app:app",
        beat_interval: float = 0.02,
        max_requests: int = 0,
        preloaded: bool = False,
        **assigned: Any,
    ) -> None:
        self.heard: list[contract.Message] = []
        self.code: int | None = None
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        read_end, self.lifeline = os.pipe()
        self.dump_fd = os.memfd_create("dump")
        assignment = contract.Assignment(
            worker=7,
            slot=2,
            generation=1,
            application=application,
            listeners=tuple(
                contract.Listener(fd=each.fileno(), family=each.family, address="http://test")
                for each in listeners
            ),
            channel_fd=theirs.fileno(),
            lifeline_fd=read_end,
            dump_fd=self.dump_fd,
            beat_interval=beat_interval,
            max_requests=max_requests,
            **assigned,
        )
        with warnings.catch_warnings():
            # pytest-timeout has a thread, which is no danger to a child that does not touch it.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                self.channel.close()
                os.close(self.lifeline)
                os.chdir(directory)
                if preloaded:
                    loaded = main.preload(application, settings, print)
                    assert not isinstance(loaded, contract.Failed)
                    (directory / "app.py").unlink()
                    code = main.work(assignment, settings, loaded)
                else:
                    code = main.work(assignment, settings)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        theirs.close()
        os.close(read_end)
        self.channel.settimeout(PATIENCE)

    def hear(self, kind: type[M], condition: Callable[[M], object] = lambda _: True) -> M:
        """Return the next message of a kind, for which the condition is true."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            datagram = self.channel.recv(contract.MAX_MESSAGE)
            assert datagram, f"the worker left without {kind.__name__}, it said {self.heard}"
            message = contract.decode(datagram)
            assert message is not None
            self.heard.append(message)
            if isinstance(message, kind) and condition(message):
                return message
        raise AssertionError(f"no {kind.__name__} in time, but {self.heard}")

    def say(self, message: contract.Message) -> None:
        self.channel.send(contract.encode(message))

    def ready(self) -> "Worker":
        self.hear(contract.Ready)
        return self

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def exit_code(self) -> int:
        """Return the code, or the negative number of the signal, that ended the process."""

        def gone() -> bool:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            return bool(pid)

        if self.code is None:
            wait_until(gone)
        assert self.code is not None
        return self.code

    def dump(self) -> str:
        return os.pread(self.dump_fd, 100_000, 0).decode()

    def close(self) -> None:
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self.exit_code()
        self.channel.close()
        os.close(self.dump_fd)
        with contextlib.suppress(OSError):
            os.close(self.lifeline)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as each:
        yield each


@pytest.fixture
def url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def fork(tmp_path: Path, listener: socket.socket) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def fork(text: str = APP, settings: dict[str, Any] | None = None, **how: Any) -> Worker:
        (tmp_path / "app.py").write_text(textwrap.dedent(text))
        worker = Worker(
            tmp_path, [listener], WorkerSettings(**{"access_log": False} | (settings or {})), **how
        )
        workers.append(worker)
        return worker

    yield fork
    for worker in workers:
        worker.close()


Fork = Callable[..., Worker]


def connected(listener: socket.socket, path: str = "/") -> socket.socket:
    """Return a connection on which a request was sent."""
    client = socket.create_connection(listener.getsockname(), timeout=PATIENCE)
    client.sendall(GET.replace(b"/ ", path.encode() + b" ", 1))
    return client


# -- Boot


@pytest.mark.parametrize("loop", ["auto", "asyncio", "uvloop"])
def test_a_worker_reports_its_stages_serves_and_leaves(
    loop: str, fork: Fork, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = fork(settings={"loop": loop}).ready()
    stages = [message.stage for message in worker.heard if isinstance(message, contract.Stage)]
    assert stages == ["fork", "import", "lifespan", "listen"]
    assert httpx.get(url).text == str(worker.pid)
    worker.say(contract.Drain(timeout=5, reason="reload"))
    worker.hear(contract.Draining)
    assert worker.hear(contract.Bye).reason == "reload"
    assert worker.exit_code() == 0
    assert "shut down" in capfd.readouterr().out


def test_a_worker_says_in_the_process_list_who_it_is(fork: Fork) -> None:
    worker = fork().ready()
    line = Path(f"/proc/{worker.pid}/cmdline").read_text()
    assert line.rstrip("\0") == "asgictl: worker 2 [app:app]"


def test_an_application_that_was_loaded_before_the_fork_is_not_imported_again(
    fork: Fork, url: str
) -> None:
    worker = fork(preloaded=True).ready()
    assert httpx.get(url).text == str(worker.pid)


def test_preloading_tells_why_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "broken_preload.py").write_text("1 / 0\n")
    failed = main.preload("broken_preload:app", WorkerSettings(log_level="error"), print)
    assert isinstance(failed, contract.Failed)
    assert failed.stage == "import"
    assert failed.error == "the application raised ZeroDivisionError: division by zero"


FAILED_STARTUP = """
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "Traceback\\nValueError: no database"})
"""
EXITING_STARTUP = """
async def app(scope, receive, send):
    raise SystemExit("not today")
"""


@pytest.mark.parametrize(
    ("text", "settings", "stage", "error", "trace"),
    [
        ("", {"log_config": "missing.toml"}, "fork", "missing.toml.*No such file", ""),
        ("one / 0", {}, "import", "raised NameError: name 'one' is not defined", "app.py.*one / 0"),
        ("import missing_thing", {}, "import", "raised ModuleNotFoundError", "app.py"),
        ("def app(:", {}, "import", "raised SyntaxError", "app.py"),
        ("raise SystemExit(3)", {}, "import", "raised SystemExit: 3", "app.py"),
        ("raise KeyboardInterrupt", {}, "import", "raised KeyboardInterrupt", "app.py"),
        ("application = 3", {}, "import", "'app:app': module 'app' has no attribute 'app'", ""),
        (FAILED_STARTUP, {}, "lifespan", "did not start: ValueError: no database", "Traceback"),
        (EXITING_STARTUP, {}, "lifespan", "raised SystemExit: not today", "app.py"),
        ("async def app(*_): 1 / 0", {"lifespan": "on"}, "lifespan", "ZeroDivisionError", "app.py"),
    ],
)
def test_a_boot_that_fails_is_reported_with_stage_reason_and_traceback(
    text: str,
    settings: dict[str, Any],
    stage: str,
    error: str,
    trace: str,
    fork: Fork,
    capfd: pytest.CaptureFixture[str],
) -> None:
    worker = fork(text, settings)
    failed = worker.hear(contract.Failed)
    assert failed.stage == stage
    assert re.search(error, failed.error)
    assert re.search(trace, failed.traceback, re.DOTALL)
    assert bool(failed.traceback) is bool(trace)
    assert "asgictl_worker" not in failed.traceback
    assert worker.exit_code() == ExitCode.NO_WORKER_BOOTED
    # The supervisor prints it, once for all workers.
    assert capfd.readouterr().err == ""


def test_a_traceback_without_end_is_shortened(fork: Fork) -> None:
    failed = fork(f"raise ValueError('x' * {10**6})").hear(contract.Failed)
    assert "characters left out" in failed.traceback


def test_uvloop_that_cannot_be_imported_is_an_error_only_if_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert main.loop_factory("auto") is main.loop_factory("asyncio")
    with pytest.raises(ConfigurationError, match="install uvloop, or set loop to auto"):
        main.loop_factory("uvloop")


def test_a_worker_that_is_told_to_leave_while_it_boots_leaves(fork: Fork) -> None:
    worker = fork("import asyncio\nasync def app(*_): await asyncio.Event().wait()\n")
    worker.hear(contract.Stage, lambda message: message.stage == "lifespan")
    worker.say(contract.Drain(timeout=5, reason="stop"))
    assert worker.hear(contract.Bye).reason == "stop"
    assert worker.exit_code() == 0
    assert not any(isinstance(message, contract.Ready) for message in worker.heard)


def test_sigterm_ends_a_worker_that_still_imports(fork: Fork) -> None:
    worker = fork("import time\ntime.sleep(60)\n")
    worker.hear(contract.Stage, lambda message: message.stage == "import")
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == -signal.SIGTERM


# -- Beats


def test_beats_count_requests_and_connections(
    fork: Fork, url: str, listener: socket.socket
) -> None:
    worker = fork().ready()
    httpx.get(url)
    with connected(listener, "/soon"):
        beat = worker.hear(contract.Beat, lambda beat: beat.in_flight and beat.requests_total == 1)
        assert beat.in_flight == 1
        assert beat.connections >= 1
        assert beat.errors_total == 0
    worker.hear(contract.Beat, lambda beat: beat.connections == 0)


def test_beats_tell_for_how_long_the_loop_did_not_turn(fork: Fork, url: str) -> None:
    worker = fork().ready()
    httpx.get(url + "/block")
    worker.hear(contract.Beat, lambda beat: beat.loop_lag_us > 200_000)
    worker.hear(contract.Beat, lambda beat: beat.loop_lag_us < 200_000)


def test_beats_that_do_not_fit_are_dropped_and_counted(fork: Fork, url: str) -> None:
    worker = fork(beat_interval=0.0001).ready()
    with httpx.Client() as client:
        # Some hundred beats fit (socket(7), SO_SNDBUF); meanwhile thousands are due.
        for _ in range(300):
            assert client.get(url).status_code == 200
    worker.hear(contract.Beat, lambda beat: beat.beats_dropped > 0)


def test_a_worker_goes_on_beating_while_it_drains(fork: Fork, listener: socket.socket) -> None:
    worker = fork().ready()
    with connected(listener, "/wait"):
        worker.hear(contract.Beat, lambda beat: beat.in_flight == 1)
        worker.say(contract.Drain(timeout=60, reason="reload"))
        assert worker.hear(contract.Draining).left == 1
        worker.hear(contract.Beat)
        worker.hear(contract.Beat)


def test_the_last_beat_counts_what_was_done_until_the_end(fork: Fork, url: str) -> None:
    # So seldom that no other beat comes between.
    worker = fork(beat_interval=3600.0).ready()
    worker.hear(contract.Beat)
    assert httpx.get(url).status_code == 200
    worker.say(contract.Drain(timeout=5, reason="stop"))
    worker.hear(contract.Draining)
    assert worker.hear(contract.Beat).requests_total == 1
    worker.hear(contract.Bye)


def test_after_max_requests_a_worker_asks_once_to_be_replaced_and_serves_on(
    fork: Fork, url: str
) -> None:
    worker = fork(max_requests=3).ready()
    with httpx.Client() as client:
        for _ in range(3):
            client.get(url)
        assert worker.hear(contract.Recycle).reason == "max-requests: 3 requests served"
        assert client.get(url).text == str(worker.pid)
    worker.hear(contract.Beat, lambda beat: beat.requests_total == 4)
    worker.hear(contract.Beat)
    assert sum(isinstance(message, contract.Recycle) for message in worker.heard) == 1


# -- Leaving


def test_a_drain_answers_what_is_in_progress_and_leaves_the_listener_to_others(
    fork: Fork, listener: socket.socket
) -> None:
    worker = fork().ready()
    with connected(listener, "/soon") as client:
        worker.hear(contract.Beat, lambda beat: beat.in_flight == 1)
        worker.say(contract.Drain(timeout=5, reason="reload"))
        worker.hear(contract.Draining)
        with connected(listener) as later:
            answer = client.recv(4096)
            assert b"200 OK" in answer
            assert b"connection: close" in answer
            assert worker.exit_code() == 0
            successor = fork().ready()
            assert str(successor.pid).encode() in later.recv(4096)


def test_at_the_end_of_a_drain_requests_are_cancelled(
    fork: Fork, listener: socket.socket, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = fork().ready()
    with connected(listener, "/wait"):
        worker.hear(contract.Beat, lambda beat: beat.in_flight == 1)
        worker.say(contract.Drain(timeout=0.05, reason="stop"))
        worker.hear(contract.Bye)
        assert worker.exit_code() == 0
    assert "closing 1 connections, cancelling 1 requests" in capfd.readouterr().err


def test_sigterm_drains(fork: Fork, listener: socket.socket) -> None:
    worker = fork().ready()
    with connected(listener, "/soon") as client:
        worker.hear(contract.Beat, lambda beat: beat.in_flight == 1)
        worker.signal(signal.SIGTERM)
        assert b"200 OK" in client.recv(4096)
        assert worker.hear(contract.Bye).reason == "SIGTERM"
        assert worker.exit_code() == 0


def test_sigterm_shortens_a_long_drain_and_a_second_one_ends_it(
    fork: Fork, listener: socket.socket
) -> None:
    worker = fork(settings={"timeout_graceful_shutdown": 60}).ready()
    with connected(listener, "/wait"):
        worker.hear(contract.Beat, lambda beat: beat.in_flight == 1)
        worker.say(contract.Drain(timeout=3600, reason="reload"))
        worker.hear(contract.Draining)
        worker.signal(signal.SIGTERM)
        worker.hear(contract.Beat)
        worker.hear(contract.Beat)
        worker.signal(signal.SIGTERM)
        assert worker.hear(contract.Bye).reason == "reload"
        assert worker.exit_code() == 0


@pytest.mark.parametrize("number", main.LEFT_TO_THE_SUPERVISOR)
def test_signals_for_the_supervisor_do_not_hurt(
    number: signal.Signals, fork: Fork, url: str
) -> None:
    worker = fork().ready()
    worker.signal(number)
    assert httpx.get(url).text == str(worker.pid)


def test_programs_that_the_application_starts_obey_signals(fork: Fork, url: str) -> None:
    worker = fork(
        """
        import subprocess
        async def app(scope, receive, send):
            with open("/proc/self/status") as file:
                pass
            text = subprocess.run(["cat", "/proc/self/status"], capture_output=True).stdout
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": text})
        """
    )
    worker.ready()
    status = httpx.get(url).text
    ignored = int(re.search(r"SigIgn:\s*(\w+)", status)[1], 16)  # type: ignore[index]
    for number in main.LEFT_TO_THE_SUPERVISOR:
        assert not ignored & 1 << (number - 1), number


@pytest.mark.parametrize("line", ["channel", "lifeline"])
def test_a_worker_whose_supervisor_is_gone_leaves(
    line: str, fork: Fork, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "ORPHAN_DRAIN", 0.3)
    worker = fork(settings={"timeout_graceful_shutdown": 3600}).ready()
    with connected(listener, "/soon") as client, connected(listener, "/wait"):
        worker.hear(contract.Beat, lambda beat: beat.in_flight == 2)
        if line == "channel":
            worker.channel.close()
        else:
            os.close(worker.lifeline)
        assert b"200 OK" in client.recv(4096)
        assert worker.exit_code() == 0


def test_messages_from_the_future_or_from_nowhere_are_ignored(
    fork: Fork, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = fork().ready()
    worker.channel.send(contract.HEADER.pack(contract.MAGIC, 9, 200) + b"?")
    worker.channel.send(b"nonsense")
    worker.say(contract.Drain(timeout=5, reason="stop"))
    assert worker.hear(contract.Bye).reason == "stop"
    assert "ignoring a message of the supervisor" in capfd.readouterr().err


def test_what_the_application_leaves_behind_does_not_keep_the_worker(
    fork: Fork, url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgictl_worker.hygiene.CANCEL_GRACE", 0.05)
    worker = fork().ready()
    httpx.get(url + "/leftover")
    httpx.get(url + "/thread")
    worker.say(contract.Drain(timeout=5, reason="stop"))
    assert worker.exit_code() == 0
    assert "tasks that ignore their cancellation: the leftover" in capfd.readouterr().err


def test_a_lifespan_shutdown_that_hangs_does_not_keep_the_worker(
    fork: Fork, capfd: pytest.CaptureFixture[str]
) -> None:
    text = APP.replace('print("shut down", flush=True)', "await asyncio.sleep(60)").replace(
        'await send({"type": message["type"] + ".complete"})',
        'if message["type"] == "lifespan.startup": await send({"type": "lifespan.startup.complete"})',
    )
    worker = fork(text, {"timeout_lifespan_shutdown": 0.05}).ready()
    worker.say(contract.Drain(timeout=5, reason="stop"))
    assert worker.exit_code() == 0
    assert "took longer than 0.05 s" in capfd.readouterr().err


def test_an_application_that_ends_the_process_is_named_as_the_reason(
    fork: Fork, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = fork().ready()
    with contextlib.suppress(httpx.HTTPError):
        httpx.get(url + "/exit")
    assert worker.exit_code() == ExitCode.INTERNAL
    error = capfd.readouterr().err
    assert "an exception ended this worker: worker=7 slot=2 generation=1" in error
    assert "SystemExit: 9" in error


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_request_that_ends_the_process_is_answered_and_named(
    loop: str, fork: Fork, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = fork(settings={"loop": loop}).ready()
    assert httpx.get(url + "/quit").status_code == 500
    assert worker.exit_code() == ExitCode.INTERNAL
    assert 'exception in the application: "GET /quit HTTP/1.1" from' in capfd.readouterr().err


# -- Logs and dumps


def test_the_last_lines_of_the_access_log_are_written(
    fork: Fork, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = fork(settings={"access_log": True}).ready()
    httpx.get(url + "/last")
    worker.say(contract.Drain(timeout=5, reason="stop"))
    assert worker.exit_code() == 0
    assert '"GET /last HTTP/1.1" 200' in capfd.readouterr().out


def test_an_exception_in_a_callback_is_logged_with_its_traceback(
    fork: Fork, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = fork().ready()
    httpx.get(url + "/callback")
    worker.say(contract.Drain(timeout=5, reason="stop"))
    assert worker.exit_code() == 0
    error = capfd.readouterr().err
    assert error.count("ValueError: invalid literal") == 1
    assert re.search(
        r"ERROR asgictl\.worker \[\d+\] in the event loop: Exception in callback", error
    )


def test_log_files_are_opened_again_on_demand(fork: Fork, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "log.toml").write_text(
        f"""
        version = 1
        [handlers.file]
        class = "logging.FileHandler"
        filename = "{out}"
        [loggers.asgictl]
        level = "INFO"
        handlers = ["file"]
        """
    )
    worker = fork(settings={"log_config": str(tmp_path / "log.toml")}).ready()
    wait_until(lambda: "ready" in out.read_text())
    out.rename(tmp_path / "rotated")
    worker.say(contract.ReopenLogs())
    wait_until(out.exists)
    worker.say(contract.Drain(timeout=5, reason="stop"))
    assert worker.exit_code() == 0
    assert "draining" in out.read_text()


def test_the_log_level_is_changed_on_request(fork: Fork, capfd: pytest.CaptureFixture[str]) -> None:
    worker = fork().ready()
    worker.say(contract.LogLevel(level="a word of a newer supervisor"))
    worker.say(contract.LogLevel(level="error"))
    worker.say(contract.Drain(timeout=5, reason="stop"))
    assert worker.exit_code() == 0
    said = capfd.readouterr().err
    assert "ready" in said
    assert "draining" not in said


def test_sigusr2_dumps_all_stacks_and_hurts_nobody(fork: Fork, url: str) -> None:
    worker = fork().ready()
    worker.signal(signal.SIGUSR2)
    wait_until(lambda: "most recent call first" in worker.dump())
    assert httpx.get(url).text == str(worker.pid)


def test_sigabrt_dumps_the_stack_of_a_blocked_loop_and_ends_the_worker(fork: Fork) -> None:
    worker = fork("import time\ndef stuck():\n    time.sleep(60)\nstuck()\n")
    worker.hear(contract.Stage, lambda message: message.stage == "import")
    worker.signal(signal.SIGABRT)
    assert worker.exit_code() == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in worker.dump()
