"""The servers that are compared, how each is started, and what its processes cost."""

import contextlib
import dataclasses
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
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
    access_log: bool = False
    workers: int = 1
    keep_alive: int = 75
    """Seconds; longer than any case lasts."""
    preload: bool = False
    """Load the application before the workers are forked, where that is offered."""
    certificate: Path | None = None
    """Speak TLS with this chain and its key, both in one file."""


def _asgictl(launch: Launch) -> list[str]:
    log = "--access-log" if launch.access_log else "--no-access-log"
    options = ["--workers", str(launch.workers), "--port", str(launch.port)]
    keep_alive = ["--timeout-keep-alive", str(launch.keep_alive)]
    preload = ["--preload"] * launch.preload
    return [
        *["-m", "asgictl", launch.application, *options, log, *keep_alive, *preload],
        *_tls(launch, "--ssl-certfile", "--ssl-keyfile"),
    ]


def _tls(launch: Launch, certificate: str, key: str) -> list[str]:
    if launch.certificate is None:
        return []
    return [certificate, str(launch.certificate), key, str(launch.certificate)]


def _uvicorn(launch: Launch) -> list[str]:
    return ["-m", "uvicorn", *_asgictl(dataclasses.replace(launch, preload=False))[2:]]


def _granian(launch: Launch) -> list[str]:
    log = "--access-log" if launch.access_log else "--no-access-log"
    options = ["--workers", str(launch.workers), "--port", str(launch.port)]
    return [
        "-m",
        "granian",
        "--interface",
        "asgi",
        "--loop",
        "uvloop",
        *options,
        *_tls(launch, "--ssl-certificate", "--ssl-keyfile"),
        log,
        launch.application,
    ]


def _gunicorn(launch: Launch) -> list[str]:
    log = ["--access-logfile", "-"] if launch.access_log else []
    options = ["-w", str(launch.workers), "-b", f"127.0.0.1:{launch.port}", "--no-control-socket"]
    keep_alive = ["--keep-alive", str(launch.keep_alive)]
    preload = ["--preload"] * launch.preload
    tls = _tls(launch, "--certfile", "--keyfile")
    more = [*options, *keep_alive, *log, *preload, *tls]
    return ["-m", "gunicorn", "-k", "asgi", *more, launch.application]


def _hypercorn(launch: Launch) -> list[str]:
    log = ["--access-logfile", "-"] if launch.access_log else []
    options = ["-w", str(launch.workers), "-b", f"127.0.0.1:{launch.port}"]
    keep_alive = ["--keep-alive", str(launch.keep_alive)]
    more = [*options, *keep_alive, *log, *_tls(launch, "--certfile", "--keyfile")]
    return ["-m", "hypercorn", "-k", "uvloop", *more, launch.application]


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

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], launch: Launch, log: Path
    ) -> None:
        self.name = name
        self.process = process
        self.port = launch.port
        self.tls = launch.certificate is not None
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
        if self.tls:
            # It is the certificate of this benchmark, and nobody else is there.
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=5, context=context
            )
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


def start(name: str, launch: Launch, *, python: str, log: Path) -> Server:
    """Start a server on the core for servers and return it before it answers."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{log.parent}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "BENCHMARK_DIRECTORY": str(log.parent),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, *COMMANDS[name](launch)],
            cwd=log.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=pin_server,
        )
    return Server(name, process, launch, log)


def pin_server() -> None:
    """Keep this process and its children to the core for servers, where the system can."""
    _pin(SERVER_CORE)


def pin_client() -> None:
    """Keep this process and its children to the core for clients, where the system can."""
    _pin(CLIENT_CORE)


def _pin(core: int) -> None:
    if sys.platform == "linux" and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {core})
