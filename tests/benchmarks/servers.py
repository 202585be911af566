"""The servers that are compared, how each is started, and what its processes cost."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SERVER_CORE, CLIENT_CORE = 0, 1
START_DEADLINE = 20.0
STOP_DEADLINE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a server is asked to do, in words that all of them share."""

    application: str
    port: int
    access_log: bool
    keep_alive: int = 75
    """Seconds; longer than any case lasts."""


def _asgictl(launch: Launch) -> list[str]:
    log = "--access-log" if launch.access_log else "--no-access-log"
    keep_alive = ["--timeout-keep-alive", str(launch.keep_alive)]
    return [
        "-m",
        "asgictl",
        launch.application,
        "--workers",
        "1",
        "--port",
        str(launch.port),
        log,
        *keep_alive,
    ]


def _uvicorn(launch: Launch) -> list[str]:
    log = "--access-log" if launch.access_log else "--no-access-log"
    keep_alive = ["--timeout-keep-alive", str(launch.keep_alive)]
    return ["-m", "uvicorn", launch.application, "--port", str(launch.port), log, *keep_alive]


def _granian(launch: Launch) -> list[str]:
    log = "--access-log" if launch.access_log else "--no-access-log"
    options = [
        "--interface",
        "asgi",
        "--workers",
        "1",
        "--loop",
        "uvloop",
        "--port",
        str(launch.port),
    ]
    return ["-m", "granian", *options, log, launch.application]


def _gunicorn(launch: Launch) -> list[str]:
    log = ["--access-logfile", "-"] if launch.access_log else []
    options = ["-k", "asgi", "-w", "1", "-b", f"127.0.0.1:{launch.port}", "--no-control-socket"]
    return [
        "-m",
        "gunicorn",
        *options,
        "--keep-alive",
        str(launch.keep_alive),
        *log,
        launch.application,
    ]


def _hypercorn(launch: Launch) -> list[str]:
    log = ["--access-logfile", "-"] if launch.access_log else []
    options = ["-k", "uvloop", "-w", "1", "-b", f"127.0.0.1:{launch.port}"]
    return [
        "-m",
        "hypercorn",
        *options,
        "--keep-alive",
        str(launch.keep_alive),
        *log,
        launch.application,
    ]


def _floor(launch: Launch) -> list[str]:
    return ["-m", "tests.benchmarks.floor", str(launch.port)]


COMMANDS: dict[str, Callable[[Launch], list[str]]] = {
    "floor": _floor,
    "asgictl": _asgictl,
    "uvicorn": _uvicorn,
    "granian": _granian,
    "gunicorn": _gunicorn,
    "hypercorn": _hypercorn,
}


class Server:
    """One running server: its processes, their CPU time and memory.

    ``process`` is the one that was started; workers are found as its children.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.name = name
        self.process = process
        self.port = port
        self.log = log
        self.started = time.monotonic()

    def tree(self) -> list[psutil.Process]:
        """Return every living process of this server."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def cpu(self) -> float:
        """Return the seconds of user and system time that all processes have used so far."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory(self) -> int:
        """Return the bytes that the processes occupy, shared pages shared out (PSS)."""
        total = 0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total

    def answers(self) -> bool:
        """Return whether a request is answered now."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/", headers={"connection": "close"})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait(self) -> float:
        """Wait for the first answer and return the seconds since the start of the process.

        Raises:
            RuntimeError: the server ended or did not answer in time; its log is quoted.
        """
        while time.monotonic() < self.started + START_DEADLINE:
            if self.answers():
                return time.monotonic() - self.started
            if self.process.poll() is not None:
                break
            time.sleep(0.002)
        raise RuntimeError(
            f"{self.name} does not answer:\n{self.log.read_text(errors='replace')[-2000:]}"
        )

    def stop(self) -> None:
        """End all processes, by force if a polite signal does not do."""
        tree = self.tree() if self.process.poll() is None else []
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for process in psutil.wait_procs(tree, timeout=2)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def free_port() -> int:
    """Return a port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(name: str, application: str, *, python: str, access_log: bool, log: Path) -> Server:
    """Start a server on the core for servers, with one worker, and return it before it answers."""
    launch = Launch(application=application, port=free_port(), access_log=access_log)
    command = [python, *COMMANDS[name](launch)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BENCHMARK_DIRECTORY": str(log.parent)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=pin_server,
        )
    return Server(name, process, launch.port, log)


@contextlib.contextmanager
def running(
    name: str, application: str, *, python: str, access_log: bool, log: Path
) -> Iterator[Server]:
    """Start a server, wait until it answers, and stop it at the end."""
    server = start(name, application, python=python, access_log=access_log, log=log)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def pin_server() -> None:
    """Keep this process and its children to the core for servers, where the system can."""
    _pin(SERVER_CORE)


def pin_client() -> None:
    """Keep this process and its children to the core for clients, where the system can."""
    _pin(CLIENT_CORE)


def _pin(core: int) -> None:
    if sys.platform == "linux" and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {core})
