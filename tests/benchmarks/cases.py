"""What is measured: each case takes one sample of one server."""

import http.client
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.benchmarks.load import HttpLoad, WebSocketLoad
from tests.benchmarks.servers import Launch, Server, free_port, start
from tests.kit import Load, Project, application, wait_for

WARM_UP = 1.0
BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-GB,en;q=0.7,de;q=0.3",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "https://www.example.org/some/page?with=query&more=words",
    "Cookie": "session=4e0f9c7b2d9a4c6e8f1b3d5a7c9e0f2b; theme=dark; consent=yes",
    "Upgrade-Insecure-Requests": "1",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Priority": "u=0, i",
}
_HERE = "tests.benchmarks.applications"
_FRAMEWORKS = "tests.benchmarks.frameworks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement; ``value`` is in the unit of its case, less is better."""

    value: float
    rate: float | None = None
    """Answers per second."""
    p99: float | None = None
    """Milliseconds."""
    errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where and for how long the samples are taken."""

    pythons: dict[str, str]
    """The interpreter that runs each server."""
    directory: Path
    seconds: float

    def start(self, name: str, application: str, **how: Any) -> Server:
        """Start a server; ``how`` are fields of ``Launch``."""
        launch = Launch(application=application, port=free_port(), **how)
        return start(name, launch, python=self.pythons[name], log=self.directory / f"{name}.log")

    @contextmanager
    def server(self, name: str, application: str, **how: Any) -> Iterator[Server]:
        """Run a server that answers, and stop it at the end."""
        server = self.start(name, application, **how)
        try:
            server.wait()
            yield server
        finally:
            server.stop()


class Case(Protocol):
    """Something that can be measured of a server."""

    @property
    def name(self) -> str:
        """Return the word that selects it."""

    @property
    def title(self) -> str:
        """Return what stands in the table."""

    @property
    def unit(self) -> str:
        """Return the unit of ``Sample.value``."""

    @property
    def floor(self) -> bool:
        """Return whether the floor can take part."""

    def sample(self, bench: Bench, server: str) -> Sample:
        """Measure once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """The CPU time that a server spends on each answer, in all its processes, under full load."""

    name: str
    title: str
    load: HttpLoad | WebSocketLoad
    application: str = f"{_HERE}:plain"
    access_log: bool = False
    floor: bool = False
    unit: str = "µs"

    def sample(self, bench: Bench, server: str) -> Sample:
        with bench.server(server, self.application, access_log=self.access_log) as running_server:
            self.load.run(running_server.port, WARM_UP)
            before = running_server.cpu()
            answers = self.load.run(running_server.port, bench.seconds)
            used = running_server.cpu() - before
        return Sample(
            value=used / answers.answers * 1e6 if answers.answers else float("inf"),
            rate=answers.answers / answers.seconds,
            p99=answers.p99,
            errors=answers.errors,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleMemory:
    """What one idle keep-alive connection occupies in the server, as growth of PSS."""

    name: str = "idle"
    title: str = "idle keep-alive connection"
    connections: int = 1000
    floor: bool = True
    unit: str = "KiB"

    def sample(self, bench: Bench, server: str) -> Sample:
        with bench.server(server, f"{_HERE}:plain") as running_server, ExitStack() as open_sockets:
            # A few connections first, so that imports and caches of a first request do not count.
            with ExitStack() as warm:
                self._connect(running_server.port, 20, warm)
            before = running_server.memory()
            errors = self._connect(running_server.port, self.connections, open_sockets)
            grown = running_server.memory() - before
        return Sample(value=max(0, grown) / self.connections / 1024, errors=errors)

    def _connect(self, port: int, connections: int, stack: ExitStack) -> int:
        errors = 0
        for _ in range(connections):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while not received.endswith(b"Hello, World!"):
                part = client.recv(4096)
                if not part:
                    errors += 1
                    break
                received += part
        return errors


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUp:
    """The time from starting the process to the first answer."""

    name: str = "start"
    title: str = "start to first answer"
    floor: bool = True
    unit: str = "ms"

    def sample(self, bench: Bench, server: str) -> Sample:
        launched = bench.start(server, f"{_HERE}:plain")
        try:
            return Sample(value=launched.wait() * 1e3)
        finally:
            launched.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseMemory:
    """What the processes occupy together with one worker that has answered some requests."""

    name: str = "memory"
    title: str = "memory, one worker"
    floor: bool = True
    unit: str = "MiB"

    def sample(self, bench: Bench, server: str) -> Sample:
        with bench.server(server, f"{_HERE}:plain") as running_server:
            connection = http.client.HTTPConnection("127.0.0.1", running_server.port, timeout=5)
            for _ in range(100):
                connection.request("GET", "/")
                connection.getresponse().read()
            connection.close()
            return Sample(value=running_server.memory() / 2**20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """The time from SIGHUP to the last request that old code answers, under load."""

    name: str = "reload"
    title: str = "reload of two workers under load"
    floor: bool = False
    unit: str = "ms"

    def sample(self, bench: Bench, server: str) -> Sample:
        project = Project(bench.directory).write(application("old"), "reloaded.py")
        with (
            bench.server(server, "reloaded:app", workers=2) as running_server,
            Load(running_server.port, keep_alive=16, closing=4) as load,
        ):
            tally = load.tally
            project.write(application("new"), "reloaded.py")
            began = time.monotonic()
            running_server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: tally.by_version["new"], "the new code answers")
            old = -1
            while old != tally.by_version["old"]:
                old = tally.by_version["old"]
                load.wait_for_answers(2000)
        took = tally.last_asked["old"] - began
        return Sample(value=took * 1e3, errors=len(tally.failures))


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Throughput(name="plain", title="GET, 13 bytes", load=HttpLoad(), floor=True),
        Throughput(
            name="plain-log", title="GET, 13 bytes, access log", load=HttpLoad(), access_log=True
        ),
        Throughput(
            name="browser",
            title="GET, a browser's headers",
            load=HttpLoad(headers=BROWSER),
            floor=True,
        ),
        Throughput(
            name="browser-log",
            title="GET, a browser's headers, access log",
            load=HttpLoad(headers=BROWSER),
            access_log=True,
        ),
        Throughput(
            name="json",
            title="FastAPI JSON, access log",
            load=HttpLoad(),
            application=f"{_FRAMEWORKS}:json",
            access_log=True,
        ),
        Throughput(
            name="post",
            title="POST 10 KB, echoed",
            load=HttpLoad(body=10_000),
            application=f"{_HERE}:echo",
        ),
        Throughput(
            name="stream",
            title="response in 10 chunks of 1 KiB",
            load=HttpLoad(),
            application=f"{_HERE}:stream",
        ),
        Throughput(
            name="file",
            title="Starlette file, 50 KiB",
            load=HttpLoad(),
            application=f"{_FRAMEWORKS}:file",
        ),
        Throughput(
            name="close",
            title="GET, a connection per request",
            load=HttpLoad(headers={"Connection": "close"}),
            floor=True,
        ),
        Throughput(
            name="pipelining", title="GET, 16 at a time", load=HttpLoad(pipeline=16), floor=True
        ),
        Throughput(
            name="ws100",
            title="WebSocket echo, 100 bytes",
            load=WebSocketLoad(size=100),
            application=f"{_HERE}:websocket",
            floor=True,
        ),
        Throughput(
            name="ws8k",
            title="WebSocket echo, 8 KiB",
            load=WebSocketLoad(size=8192),
            application=f"{_HERE}:websocket",
            floor=True,
        ),
        IdleMemory(),
        BaseMemory(),
        StartUp(),
        Reload(),
    )
}
