"""What servers do when things go wrong: the same accidents, side by side, seen by clients.

``python -m tests.benchmarks.staying_up --peers DIR --write docs/explanation`` stages each
accident for each server and writes ``staying-up.md``. Every figure is counted by clients
from outside; nothing is taken from a server's own word.
"""

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil

from tests.benchmarks import endurance, same_story
from tests.kit import Load, Project, application

WORKERS = 2
IMPORT_SECONDS = 1.0
HANG_TIMEOUT = 5
"""Seconds without a sign of life, for servers that have such a setting."""

COMMANDS: dict[str, Callable[[int], list[str]]] = {
    "asgictl": lambda port: [
        *("-m", "asgictl", "app:app", "--workers", str(WORKERS), "--port", str(port)),
        *("--no-access-log", "--timeout", str(HANG_TIMEOUT)),
    ],
    "uvicorn": lambda port: [
        *("-m", "uvicorn", "app:app", "--workers", str(WORKERS), "--port", str(port)),
        *("--no-access-log", "--timeout-worker-healthcheck", str(HANG_TIMEOUT)),
    ],
    "gunicorn": lambda port: [
        *("-m", "gunicorn", "app:app", "-k", "asgi", "-w", str(WORKERS)),
        *("-b", f"127.0.0.1:{port}", "--timeout", str(HANG_TIMEOUT), "--no-control-socket"),
    ],
    "granian": lambda port: [
        *("-m", "granian", "app:app", "--interface", "asgi", "--workers", str(WORKERS)),
        *("--port", str(port), "--no-access-log", "--respawn-failed-workers"),
    ],
    "hypercorn": lambda port: [
        *("-m", "hypercorn", "app:app", "-w", str(WORKERS), "-b", f"127.0.0.1:{port}"),
    ],
}

SLOW_IMPORT = f"import time; time.sleep({IMPORT_SECONDS})\n"
BROKEN = "raise RuntimeError('broken on purpose')\n"
FAILING_LIFESPAN = """
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database today"})
"""
BLOCKING = application("1").replace(
    "    answer =",
    '    if scope["path"] == "/block":\n        import time; time.sleep(600)\n    answer =',
)
CRASHING = """
import os, threading
with open("births", "a") as file:
    print(os.getpid(), file=file)

async def app(scope, receive, send):
    await receive()
    threading.Timer(0.2, os._exit, [1]).start()
    await send({"type": "lifespan.startup.complete"})
    await receive()
"""


@dataclass
class Running:
    """A server under test."""

    process: subprocess.Popen[bytes]
    port: int
    project: Project
    log: Path

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def alive(self) -> bool:
        return self.process.poll() is None

    def session(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                zombie = process.status() == psutil.STATUS_ZOMBIE
                if os.getsid(process.pid) == self.process.pid and not zombie:
                    found.append(process)
        return found


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as client:
        client.settimeout(2)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return client.recv(100).startswith(b"HTTP/1.1 200")
    return False


def _wait(condition: Callable[[], bool], within: float) -> float | None:
    """Return the seconds until the condition held, or None if it did not."""
    began = time.monotonic()
    while time.monotonic() < began + within:
        if condition():
            return time.monotonic() - began
        time.sleep(0.02)
    return None


@contextlib.contextmanager
def _running(name: str, python: str, code: str) -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        project = Project(Path(folder) / "project").write(code)
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [python, *COMMANDS[name](port)],
                cwd=project.directory,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        running = Running(process, port, project, log)
        try:
            yield running
        finally:
            for item in running.session():
                with contextlib.suppress(psutil.NoSuchProcess):
                    item.kill()
            process.kill()
            process.wait()


@dataclass
class Gap:
    """Watches for how long no client gets an answer."""

    load: Load
    longest: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Gap":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        answered, since = self.load.tally.answered, time.monotonic()
        while not self._stop.wait(0.005):
            now = time.monotonic()
            if self.load.tally.answered != answered:
                answered, since = self.load.tally.answered, now
            self.longest = max(self.longest, now - since)


def _losses(load: Load) -> str:
    kinds = load.tally.kinds()
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"


# -- The accidents. Each returns what the clients saw.


def reload_under_load(name: str, python: str, *, keep_alive: bool) -> str:
    """SIGHUP with new code that takes a second to import, under load."""
    with _running(name, python, application("old")) as server:
        if _wait(lambda: _answers(server.port), 20) is None:
            return "did not start"
        clients = (
            {"keep_alive": 16, "closing": 0} if keep_alive else {"keep_alive": 0, "closing": 8}
        )
        with Load(server.port, **clients) as load, Gap(load) as gap:
            server.project.write(SLOW_IMPORT + application("new"))
            began = time.monotonic()
            server.signal(signal.SIGHUP)
            _wait(lambda: load.tally.by_version["new"] > 0, 20)
            _wait(lambda: time.monotonic() > load.tally.last_asked.get("old", 0) + 1.5, 20)
        all_new = load.tally.last_asked.get("old", began) - began
        if not load.tally.by_version["new"]:
            return f"never served the new code; lost: {_losses(load)}"
        return (
            f"lost: {_losses(load)}; longest gap {gap.longest * 1000:.0f} ms; "
            f"all new after {all_new:.1f} s"
        )


def refused_reload(name: str, python: str, code: str) -> str:
    """SIGHUP with code that cannot serve; a worker is killed afterwards."""
    with _running(name, python, application("old")) as server:
        if _wait(lambda: _answers(server.port), 20) is None:
            return "did not start"
        with Load(server.port, keep_alive=8, closing=2) as load:
            server.project.write(code)
            server.signal(signal.SIGHUP)
            _wait(lambda: not server.alive(), 8)
        after = "old code serves on" if _answers(server.port) else "service is down"
        code_left = "" if server.alive() else f", exit code {server.process.returncode}"
        return f"{after}{code_left}; lost: {_losses(load)}"


def term_during_reload(name: str, python: str) -> str:
    """SIGTERM one second into a reload whose import takes five."""
    with _running(name, python, application("old")) as server:
        if _wait(lambda: _answers(server.port), 20) is None:
            return "did not start"
        server.project.write("import time; time.sleep(5)\n" + application("new"))
        server.signal(signal.SIGHUP)
        time.sleep(1.0)
        server.signal(signal.SIGTERM)
        took = _wait(lambda: not server.alive(), 30)
        left = len(server.session())
        if took is None:
            return "still runs after 30 s"
        return f"left after {took:.1f} s" + (f", {left} processes left behind" if left else "")


def blocked_loop(name: str, python: str) -> str:
    """One worker blocks its event loop for ten minutes."""
    with _running(name, python, BLOCKING) as server:
        if _wait(lambda: _answers(server.port), 20) is None:
            return "did not start"
        before = {process.pid for process in server.session()}
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"GET /block HTTP/1.1\r\nHost: x\r\n\r\n")
            took = _wait(
                lambda: bool({process.pid for process in server.session()} - before),
                HANG_TIMEOUT + 10,
            )
        log = server.log.read_text("utf-8", "replace")
        stack = (
            "its stack is in the log"
            if "time.sleep(600)" in log or " in app" in log
            else "no stack"
        )
        if took is None:
            return "not noticed"
        return f"replaced after {took:.1f} s, {stack}"


def killed_supervisor(name: str, python: str) -> str:
    """SIGKILL of the main process."""
    with _running(name, python, application("old")) as server:
        if _wait(lambda: _answers(server.port), 20) is None:
            return "did not start"
        server.signal(signal.SIGKILL)
        server.process.wait()
        took = _wait(lambda: not server.session(), 8)
        if took is None:
            return f"{len(server.session())} orphans hold the port"
        return f"all left after {took:.1f} s"


def crash_loop(name: str, python: str) -> str:
    """Every worker dies 0.2 s after its start-up, for ten seconds."""
    with _running(name, python, CRASHING) as server:
        ended = _wait(lambda: not server.alive(), 10)
        births = server.project.directory / "births"
        count = len(births.read_text().split()) if births.exists() else 0
        if ended is not None:
            return f"gave up after {ended:.1f} s, exit code {server.process.returncode}"
        return f"{count} starts in 10 s"


ACCIDENTS: dict[str, Callable[[str, str], str]] = {
    "Reload under load, keep-alive": lambda name, python: reload_under_load(
        name, python, keep_alive=True
    ),
    "Reload under load, a connection per request": lambda name, python: reload_under_load(
        name, python, keep_alive=False
    ),
    "Reload with code that does not import": lambda name, python: refused_reload(
        name, python, BROKEN
    ),
    "Reload with a start-up that fails": lambda name, python: refused_reload(
        name, python, FAILING_LIFESPAN
    ),
    "TERM during a reload (import takes 5 s)": term_during_reload,
    "A worker's event loop is blocked": blocked_loop,
    "SIGKILL of the main process": killed_supervisor,
    "Every worker crashes 0.2 s after start-up": crash_loop,
}


def main() -> None:
    """Stage the accidents and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="the virtual environment of the other servers")
    parser.add_argument("--servers", default=",".join(COMMANDS))
    parser.add_argument("--only", default="", help="a pattern for the names of the accidents")
    parser.add_argument("--write", type=Path, help="write staying-up.md into this folder")
    options = parser.parse_args()
    names, load = options.servers.split(","), os.getloadavg()[0]
    table: dict[str, dict[str, str]] = {}
    for accident, stage in ACCIDENTS.items():
        if not re.search(options.only, accident):
            continue
        for name in names:
            python = sys.executable
            if name != "asgictl" and options.peers:
                python = str(options.peers / "bin" / "python")
            seen = table.setdefault(accident, {})[name] = stage(name, python)
            sys.stdout.write(f"{accident:45} {name:10} {seen}\n")
            sys.stdout.flush()
    if options.write:
        alone = []
        for measure, found in endurance.measured():
            alone.append((measure, found))
            sys.stdout.write(f"{measure:45} {found}\n")
            sys.stdout.flush()
        told = []
        for what, found_by in same_story.measured():
            told.append((what, found_by))
            sys.stdout.write(f"{what:58} {found_by}\n")
            sys.stdout.flush()
        page = _page(table, names, options.peers, load, alone) + same_story.section(told)
        options.write.joinpath("staying-up.md").write_text(page)


def _page(
    table: dict[str, dict[str, str]],
    names: list[str],
    peers: Path | None,
    load: float,
    alone: list[tuple[str, str]],
) -> str:
    versions = ", ".join(f"{name} {_version(name, peers)}" for name in names)
    lines = [
        "# Staying up, beside other servers",
        "",
        f"""Each accident was staged for each server, and what is written here was counted by clients.
Two workers each; {versions}; CPython {sys.version.split()[0]} on a machine with {os.cpu_count()}
processors, which other programs used as well (load average {load:.0f} at the beginning). Where a
server has a time-out for stuck workers, it was set to {HANG_TIMEOUT} s; granian ran with
`--respawn-failed-workers`. A reload is a SIGHUP.""",
        "",
        "Regenerate with `python -m tests.benchmarks.staying_up --peers DIR --write docs/explanation`.",
    ]
    for accident, seen in table.items():
        lines += ["", f"## {accident}", "", "| server | what happened |", "|---|---|"]
        lines += [f"| {name} | {seen[name]} |" for name in names]
    lines += [
        "",
        "## asgictl alone",
        "",
        """What it promises of itself, by `python -m tests.benchmarks.endurance`: reloads under load from
64 clients that keep their connections and 8 that open one for each request, TERM at different
moments, and a big fleet.""",
        "",
        "| | what happened |",
        "|---|---|",
        *(f"| {measure} | {found} |" for measure, found in alone),
    ]
    return "\n".join(lines) + "\n"


def _version(name: str, peers: Path | None) -> str:
    if name == "asgictl" or peers is None:
        return version(name)
    code = f"from importlib.metadata import version; print(version({name!r}))"
    python = str(peers / "bin" / "python")
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
