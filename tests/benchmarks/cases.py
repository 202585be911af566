"""What is measured: each case takes one sample of one server."""

import http.client
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import trustme

from tests.benchmarks.load import BroadcastLoad, HttpLoad, WebSocketLoad
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

    def certificate(self) -> Path:
        """Return a chain and its key in one file, made at the first call."""
        path = self.directory / "certificate.pem"
        if not path.exists():
            issued = trustme.CA().issue_cert("127.0.0.1")
            chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
            path.write_bytes(issued.private_key_pem.bytes() + chain)
        return path

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
    load: HttpLoad | WebSocketLoad | BroadcastLoad
    application: str = f"{_HERE}:plain"
    access_log: bool = False
    tls: bool = False
    floor: bool = False
    unit: str = "µs"

    def sample(self, bench: Bench, server: str) -> Sample:
        how: dict[str, Any] = {"access_log": self.access_log}
        if self.tls:
            how["certificate"] = bench.certificate()
        with bench.server(server, self.application, **how) as running_server:
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
    connections: int = 10_000
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
            received = b""
            with suppress(OSError):
                client = socket.create_connection(("127.0.0.1", port), timeout=5)
                stack.enter_context(client)
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                while part := client.recv(4096):
                    received += part
                    if received.endswith(b"Hello, World!"):
                        break
            if not received.endswith(b"Hello, World!"):
                errors += 1
                if errors == 10:  # each may have taken the whole time-out
                    break
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
class FleetMemory:
    """What four workers with an application of 60 MB occupy together with their supervisor.

    Memory that is shared counts once. A collection in each worker writes to the objects that it
    looks at, and what is written is shared no more.
    """

    name: str
    title: str
    collected: bool
    workers: int = 4
    floor: bool = False
    unit: str = "MiB"

    def sample(self, bench: Bench, server: str) -> Sample:
        how = {"workers": self.workers, "preload": True}
        with bench.server(server, "tests.benchmarks.large:app", **how) as running_server:
            path = "/collect" if self.collected else "/pid"
            answered: Counter[str] = Counter()

            def all_have_answered() -> bool:
                answered.update([_ask(running_server.port, path)])
                return len(answered) == self.workers and min(answered.values()) >= 2

            wait_for(all_have_answered, "answers of all workers", within=30)
            return Sample(value=running_server.memory() / 2**20)


def _ask(port: int, path: str) -> str:
    """Return the process that answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return str(connection.getresponse().getheader("x-pid"))
    finally:
        connection.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """How uneven long-lived connections are spread: the most of a worker to the mean of all."""

    name: str = "balance"
    title: str = "64 connections, one after the other, over 4 workers: most to mean"
    connections: int = 64
    workers: int = 4
    floor: bool = False
    unit: str = "×"

    def sample(self, bench: Bench, server: str) -> Sample:
        with bench.server(server, f"{_HERE}:plain", workers=self.workers) as running_server:
            seen: set[str] = set()

            def all_serve() -> bool:
                seen.add(_ask(running_server.port, "/pid"))
                return len(seen) == self.workers

            with suppress(AssertionError):  # some servers leave some workers without any
                wait_for(all_serve, "answers of all workers", within=5)
            counts: Counter[str] = Counter()
            with ExitStack() as clients:
                for _ in range(self.connections):
                    client = http.client.HTTPConnection("127.0.0.1", running_server.port)
                    clients.callback(client.close)
                    client.request("GET", "/pid")
                    answer = client.getresponse()
                    answer.read()
                    counts[str(answer.getheader("x-pid"))] += 1
        return Sample(value=max(counts.values()) * self.workers / self.connections)


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
        Throughput(
            name="broadcast",
            title="WebSocket, 100 bytes to 64 clients, each",
            load=BroadcastLoad(size=100),
            application=f"{_HERE}:broadcast",
        ),
        Throughput(
            name="io",
            title="GET that waits 10 ms, 256 connections",
            load=HttpLoad(connections=256),
            application=f"{_HERE}:waiting",
        ),
        Throughput(
            name="c1k", title="GET, 1,000 connections", load=HttpLoad(connections=1000), floor=True
        ),
        Throughput(
            name="c10k",
            title="GET, 10,000 connections",
            load=HttpLoad(connections=10_000),
            floor=True,
        ),
        Throughput(name="tls", title="GET over TLS", load=HttpLoad(scheme="https"), tls=True),
        IdleMemory(),
        BaseMemory(),
        FleetMemory(
            name="fleet", title="4 workers, application of 60 MB, preloaded", collected=False
        ),
        FleetMemory(
            name="fleet-gc", title="the same after a collection in each worker", collected=True
        ),
        Balance(),
        StartUp(),
        Reload(),
    )
}
