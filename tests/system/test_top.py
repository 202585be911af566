"""`asgictl top` in a terminal that is none, and what all that watch a service tell of one accident."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import Serve
from tests.kit import ASGICTL, Project, Server, application, clean_environment, run, wait_for
from tests.system.test_admin import BIND, admin_port, metrics
from tests.system.test_control import ask, socket_of
from tests.witnesses import ACCIDENTS, witnesses

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


class Terminal:
    """`asgictl top` with a keyboard and a screen."""

    def __init__(self, server: Server, *arguments: str) -> None:
        self.screen = b""
        self._master, slave = pty.openpty()
        environment = clean_environment(server.scratch) | {
            "TERM": "xterm-256color",
            "COLUMNS": "140",
            "LINES": "40",
        }
        command = [sys.executable, str(ASGICTL), "top", "--control", str(socket_of(server))]
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            cwd=server.project.directory,
            start_new_session=True,
        )
        os.close(slave)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def read(self) -> str:
        """Return what was written to the screen since the last call, without colours."""
        while select.select([self._master], [], [], 0)[0]:
            try:
                self.screen += os.read(self._master, 65536)
            except OSError:
                break  # nobody writes any more
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.screen.decode("utf-8", "replace"))
        self.screen = b""
        return text

    def shows(self, pattern: str) -> str:
        """Wait until something is shown, and return what was since then."""
        seen = ""

        def found() -> bool:
            nonlocal seen
            seen += self.read()
            return re.search(pattern, seen) is not None

        wait_for(found, f"{pattern!r} on the screen")
        return seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@contextlib.contextmanager
def terminal(server: Server, *arguments: str) -> Iterator[Terminal]:
    terminal = Terminal(server, *arguments)
    try:
        yield terminal
    finally:
        terminal.close()


def test_it_shows_the_service_and_keys_move_it(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--workers", "1", "--min-ready", "0")
    with terminal(server, "-i", "0.3") as top:
        top.shows(r"app:app +healthy")
        (worker,) = server.workers()
        top.shows(rf"{worker} +ready")
        top.press("+")
        server.wait_for_workers(2)
        top.shows("workers 2 of 2")
        top.press("\x1b[Bs")
        top.shows("most recent call first")
        top.press("x")
        top.shows("choose a worker")
        top.press("r")
        server.wait_for_workers(2, other_than={worker})
        top.press("R")
        top.shows(r"reload: generation 2")
        top.shows(r"generation 2 committed")
        server.signal("USR2")
        top.shows("upgrades 1")
        top.press("q")
        assert top.process.wait(30) == 0
    server.stop()


def test_without_a_terminal_it_is_text_and_without_rich_it_says_what_to_install(
    serve: Serve, project: Project, tmp_path: Path
) -> None:
    project.write(application("1"))
    server = serve()
    (tmp_path / "rich.py").write_text("raise ImportError('no such thing')")
    without = {"PYTHONPATH": str(tmp_path)}
    control = ("--control", str(socket_of(server)))
    done = run(project, "top", "-n", "2", "-i", "0.1", *control, environment=without)
    assert (done.code, done.stdout.count("1 of 1 ready")) == (0, 2), done.stderr
    done = run(project, "top", "--svg", "x.svg", *control, environment=without)
    assert done.code == 1
    assert "pip install 'asgictl[top]'" in done.stderr
    done = run(project, "top", "-n", "1", "--json", *control)
    assert json.loads(done.stdout)["ready"] == 1
    done = run(project, "top", "--svg", "/nowhere/x.svg", *control)
    assert (done.code, "cannot write the picture /nowhere/x.svg" in done.stderr) == (1, True)
    server.stop()


# -- One story

SOON = 10.0
"""Seconds in which everybody must tell. On a machine with nothing else to do it takes less than
two (``python -m tests.benchmarks.same_story`` measures that)."""


def get(server: Server, path: str) -> None:
    """Ask for something that may never be answered."""

    def ask() -> None:
        with contextlib.suppress(OSError), urllib.request.urlopen(server.url + path, timeout=60):
            pass

    threading.Thread(target=ask, daemon=True).start()


def test_all_who_watch_tell_the_same_of_every_accident(serve: Serve, project: Project) -> None:
    project.write(ACCIDENTS)
    server = serve(*BIND, "--workers", "2", "--timeout", "12", "--max-memory", "150M")
    tell = witnesses(server, admin_port(server))
    expected: dict[str, int] = {}

    def all_tell_of(cause: str) -> None:
        expected[cause] = 1
        for name, look in tell.items():
            wait_for(lambda look=look: look().exits == expected, f"{name} tells {expected}", SOON)
        server.wait_for_workers(2)

    def all_say(word: str, pid: int, *, but: str = "") -> None:
        for name, look in tell.items():
            if name != but:
                what = f"{name} says that it is {word}"
                wait_for(lambda look=look: look().says(word, pid), what, SOON)

    get(server, "/exit")
    all_tell_of("exit code 7")
    get(server, "/abort")
    all_tell_of("SIGABRT")
    os.kill(min(server.workers()), signal.SIGKILL)
    all_tell_of("SIGKILL")
    # A leak: the worker is replaced, and nobody is to blame.
    get(server, "/leak")
    all_tell_of("max-memory")
    # Exceptions are no accident of a worker.
    get(server, "/raise")
    wait_for(lambda: ask(server, "status")["errors"] == 1, "the exception is counted", SOON)
    assert metrics(server)["asgictl_exceptions_total"] == 1
    # One that is blocked is seen long before it is judged; then its cause is what it was
    # ended for, and not the signal that others have crashed by.
    stuck = get_stuck(server)
    all_say("blocked", stuck, but="log")
    all_say("suspect", stuck)
    all_tell_of("hang")
    stories = {name: look().exits for name, look in tell.items()}
    assert all(exits == expected for exits in stories.values()), stories
    rows = ask(server, "status")["workers"]
    assert sum(row["restarts"] for row in rows) == 4, "all but the leak"
    server.accept_files()
    server.stop()


def get_stuck(server: Server) -> int:
    """Block the event loop of a worker, and return its process id."""
    happened = server.project.directory / "when"
    happened.unlink()
    get(server, "/block")
    return int(wait_for(lambda: happened.exists() and happened.read_text(), "it blocks").split()[1])
