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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Serve
from tests.kit import ASGICTL, Project, Server, application, clean_environment, run, wait_for
from tests.system.test_admin import BIND, fleet, metrics
from tests.system.test_control import ask, socket_of

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

ACCIDENTS = """
import os, time
held = []
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    match scope["path"]:
        case "/block": time.sleep(3600)
        case "/crash": os._exit(7)
        case "/leak": held.append(bytearray(os.urandom(1 << 20)) * 150)
        case "/raise": raise RuntimeError("boom")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""


class Witnesses:
    """All who tell of a service."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = ask(self.server, "status")
        return found

    def top(self) -> dict[str, Any]:
        control = ("--control", str(socket_of(self.server)))
        text = run(self.server.project, "top", "-n", "1", *control).stdout
        exits = re.search(r"workers ended: (.*)", text)
        lags = [float(lag) / 1000 for lag in re.findall(r"([\d.]+) ms ", text)]
        return {
            "exits": {
                cause: int(count)
                for count, cause in re.findall(r"(\d+) ([^,\n]+)", exits[1] if exits else "")
            },
            "lag": max(lags, default=0.0),
        }

    def page(self) -> dict[str, Any]:
        found: dict[str, Any] = fleet(self.server)["status"]
        return found


def exits(found: dict[str, float]) -> dict[str, int]:
    prefix = "asgictl_worker_exits_total,"
    return {
        name.removeprefix(prefix): int(value)
        for name, value in found.items()
        if name.startswith(prefix)
    }


def get(server: Server, path: str) -> None:
    """Ask for something that may never be answered."""

    def ask() -> None:
        with contextlib.suppress(OSError), urllib.request.urlopen(server.url + path, timeout=60):
            pass

    threading.Thread(target=ask, daemon=True).start()


def all_tell(expected: dict[str, int], witnesses: Witnesses) -> None:
    """Wait until all have the same causes."""
    tellers: dict[str, Callable[[], dict[str, int]]] = {
        "status": lambda: witnesses.status()["exits"],
        "top": lambda: witnesses.top()["exits"],
        "metrics": lambda: exits(metrics(witnesses.server)),
        "page": lambda: witnesses.page()["exits"],
    }
    for name, tell in tellers.items():
        wait_for(lambda tell=tell: tell() == expected, f"{name} tells {expected}, not {tell()}")


def test_all_who_watch_tell_the_same_of_every_accident(serve: Serve, project: Project) -> None:
    project.write(ACCIDENTS)
    server = serve(*BIND, "--workers", "2", "--timeout", "12", "--max-memory", "150M")
    witnesses = Witnesses(server)
    # A crash, and a kill.
    get(server, "/crash")
    server.assert_log(r"exited with code 7")
    all_tell({"exit code 7": 1}, witnesses)
    server.wait_for_workers(2)
    os.kill(min(server.workers()), signal.SIGKILL)
    server.assert_log(r"killed by SIGKILL")
    all_tell({"exit code 7": 1, "SIGKILL": 1}, witnesses)
    server.wait_for_workers(2)
    # A leak: the worker is replaced, and nobody is to blame.
    get(server, "/leak")
    server.assert_log(r"recycle")
    all_tell({"exit code 7": 1, "SIGKILL": 1, "recycle": 1}, witnesses)
    server.wait_for_workers(2)
    # Exceptions are no accident of a worker.
    get(server, "/raise")
    wait_for(lambda: witnesses.status()["errors"] == 1, "the exception is counted")
    assert metrics(server)["asgictl_exceptions_total"] == 1
    # A worker that is blocked is seen while it is, and long before it is judged.
    get(server, "/block")
    lags: dict[str, Callable[[], float]] = {
        "page": lambda: max(row["loop_lag"] for row in witnesses.page()["workers"]),
        "metrics": lambda: max(
            value
            for name, value in metrics(server).items()
            if name.startswith("asgictl_worker_loop_lag_seconds")
        ),
        "status": lambda: max(row["loop_lag"] for row in witnesses.status()["workers"]),
        "top": lambda: witnesses.top()["lag"],
    }
    for name, lag in lags.items():
        wait_for(lambda lag=lag: lag() > 0.5, f"{name} sees that it is blocked")
    server.assert_log(r"\(hang\)")
    all_tell({"exit code 7": 1, "SIGKILL": 1, "recycle": 1, "hang": 1}, witnesses)
    rows = witnesses.status()["workers"]
    assert sum(row["restarts"] for row in rows) == 3
    server.wait_for_workers(2)
    server.stop()
