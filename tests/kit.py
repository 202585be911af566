"""Verbs for system tests: serve an application, signal, load, look, stop; all with deadlines.

Nothing here sleeps for a fixed time and hopes. ``Server`` is a real ``asgictl`` in a session
of its own, so that whatever it leaves behind is found; ``Load`` is many clients that go on
through every failure and count it by kind.
"""

import asyncio
import collections
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import psutil

PATIENCE = 30.0
"""Seconds for whatever has to happen soon; generous, since test machines are slow."""
ASGICTL = Path(sysconfig.get_path("scripts")) / "asgictl"

T = TypeVar("T")


def wait_for(condition: Callable[[], T | None], what: str, within: float = PATIENCE) -> T:
    """Return the first true value of ``condition()``.

    Raises:
        AssertionError: it stayed false for ``within`` seconds.
    """
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(0.01)


class Project:
    """A directory with the code of an application, as a deployment has one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, text: str, name: str = "app.py") -> "Project":
        """Write a file in one step, as a deployment should: nobody reads half of it."""
        fresh = self.directory / f".{name}.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(self.directory / name)
        return self

    def copy(self, source: Path) -> "Project":
        """Copy an application's files from the tests."""
        shutil.copytree(source, self.directory, dirs_exist_ok=True)
        return self


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command that ended by itself left: code, output and how long it took."""

    code: int
    stdout: str
    stderr: str
    seconds: float


class Server:
    """A running asgictl and the directory that it runs in."""

    COMMAND: ClassVar[tuple[str, ...]] = (str(ASGICTL),)

    def __init__(
        self,
        project: Project,
        *arguments: str,
        environment: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        """Start it, in a session of its own; wait with ``wait_until_ready()``."""
        self.project = project
        self.scratch = project.directory.parent / "scratch"
        self.scratch.mkdir(exist_ok=True)
        number = len(list(project.directory.parent.glob("server-*.log"))) + 1
        self.log_file = project.directory.parent / f"server-{number}.log"
        self.files_before = self._files()
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.COMMAND, *arguments],
                cwd=project.directory,
                env=clean_environment(self.scratch) | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        self.pid = self.process.pid

    # -- Look

    def log(self) -> str:
        """Return everything that it has logged so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def assert_log(
        self, pattern: str, *, within: float = PATIENCE, count: int = 1
    ) -> re.Match[str]:
        """Wait until ``pattern`` stands in the log (at least ``count`` times), return the last match."""

        def found() -> list[re.Match[str]] | None:
            matches = list(re.finditer(pattern, self.log(), re.MULTILINE))
            return matches if len(matches) >= count else None

        return wait_for(found, f"{pattern!r} in the log, {count} times", within)[-1]

    def assert_not_logged(self, pattern: str) -> None:
        """Assert that ``pattern`` does not stand in the log now."""
        match = re.search(pattern, self.log(), re.MULTILINE)
        assert match is None, f"{match and match.group()!r} stands in the log"

    def workers(self) -> set[int]:
        """Return the pids of all workers that have become ready and are alive."""
        ready = {int(pid) for pid in re.findall(r"ready after .* pid=(\d+)", self.log())}
        return ready & self.children()

    def children(self) -> set[int]:
        """Return the pids of the supervisor's living children, whatever they are."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return {child.pid for child in psutil.Process(self.pid).children() if alive(child)}
        return set()

    def session(self) -> set[int]:
        """Return the pids of all living processes that it has started, orphans too."""
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(process.pid) == self.pid and alive(process):
                    found.add(process.pid)
        return found

    def ports(self) -> list[int]:
        """Return the TCP ports that the supervisor listens on, lowest descriptor first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.pid).net_connections("tcp")
            listening = [item for item in found if item.status == psutil.CONN_LISTEN]
            return [item.laddr.port for item in sorted(listening, key=lambda item: item.fd)]
        return []

    @property
    def port(self) -> int:
        """Return its first TCP port."""
        return self.ports()[0]

    @property
    def url(self) -> str:
        """Return where it serves over HTTP."""
        return f"http://127.0.0.1:{self.port}"

    # -- Act

    def signal(self, name: str) -> None:
        """Send a signal, named without SIG, to the supervisor."""
        os.kill(self.pid, getattr(signal, f"SIG{name}"))

    def wait_until_ready(self, within: float = PATIENCE) -> "Server":
        """Wait until the whole fleet is ready.

        Raises:
            AssertionError: it ended, or is not ready in time.
        """
        pattern = re.compile(r"(all \d+ workers are|the worker is) ready")

        def ready() -> bool:
            assert self.process.poll() is None, f"ended with code {self.process.returncode}"
            return bool(pattern.search(self.log()))

        wait_for(ready, "the fleet is ready", within)
        return self

    def wait_for_workers(
        self, count: int, *, other_than: AbstractSet[int] = frozenset()
    ) -> set[int]:
        """Wait until exactly ``count`` workers live, none of them in ``other_than``."""

        def workers() -> set[int]:
            now = self.workers()
            return now if len(now) == count and not now & other_than else set()

        return wait_for(workers, f"{count} workers other than {sorted(other_than)}")

    def reload(self, within: float = PATIENCE) -> None:
        """Reload by SIGHUP and wait until only new workers are left."""
        done = len(re.findall("reloaded: generation", self.log()))
        before = self.workers()
        self.signal("HUP")
        self.assert_log("reloaded: generation", count=done + 1, within=within)
        wait_for(lambda: not before & self.workers(), "old workers leave", within)

    def ended(self, within: float = PATIENCE) -> int:
        """Wait until the supervisor has ended, and return its exit code."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {within:g} s") from None

    def stop(self, name: str = "TERM", *, code: int = 0, within: float = PATIENCE) -> None:
        """Stop it by a signal; assert the exit code and that nothing is left behind."""
        self.signal(name)
        self.assert_ended(code, within=within)

    def assert_ended(self, code: int, *, within: float = PATIENCE) -> None:
        """Assert that it ends with this code, and leaves no process, socket or file behind."""
        ports = self.ports()
        assert self.ended(within) == code
        wait_for(lambda: not self.session(), f"no process is left: {self._describe()}", 5.0)
        for port in ports:
            assert not is_listening(port), f"port {port} is still open"
        left = self._files() - self.files_before
        assert not left, f"files are left behind: {sorted(map(str, left))}"

    def accept_files(self) -> None:
        """Take the files that are there now for the application's own."""
        self.files_before = self._files()

    def destroy(self) -> None:
        """Kill whatever still runs; for the end of a test, however it went."""
        for pid in self.session() | {self.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def _describe(self) -> str:
        lines = []
        for pid in self.session():
            with contextlib.suppress(psutil.NoSuchProcess):
                lines.append(f"{pid} {psutil.Process(pid).cmdline()}")
        return "; ".join(lines)

    def _files(self) -> set[Path]:
        places = (self.project.directory, self.scratch)
        return {path for place in places for path in place.rglob("*")}


def clean_environment(scratch: Path) -> dict[str, str]:
    """Return the environment of a server under test: nothing of the developer's shell counts."""
    foreign = ("ASGICTL_", "LISTEN_", "NOTIFY_", "WATCHDOG_", "COV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    for name in ("PORT", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "PYTHONPATH"):
        kept.pop(name, None)
    return kept | {
        # A changed file of the same length within the same second would be taken for the old one.
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(scratch),
        "XDG_RUNTIME_DIR": str(scratch),
        "NO_COLOR": "1",
    }


def run(
    project: Project,
    *arguments: str,
    environment: dict[str, str] | None = None,
    within: float = PATIENCE,
) -> Ended:
    """Run asgictl until it ends by itself and return what it left; nothing may survive it."""
    scratch = project.directory.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(ASGICTL), *arguments],
        cwd=project.directory,
        env=clean_environment(scratch) | (environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        raise AssertionError(f"still runs after {within:g} s; it said:\n{stderr}") from None
    seconds = time.monotonic() - began
    left = [item.pid for item in psutil.process_iter() if _session_of(item.pid) == process.pid]
    assert not left, f"processes are left behind: {left}"
    return Ended(process.returncode, stdout, stderr, seconds)


def alive(process: psutil.Process) -> bool:
    """Return whether a process still runs; a zombie does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _session_of(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid)
    return 0


def is_listening(port: int) -> bool:
    """Return whether somebody accepts connections on a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(5)
        code: int = probe.connect_ex(("127.0.0.1", port))
        return code == 0


def read_until_closed(client: socket.socket) -> bytes:
    """Return everything up to the end of file."""
    received = b""
    while part := client.recv(65536):
        received += part
    return received


# -- Load

APPLICATION = '''
"""Answers with its version, its pid and what it was asked, so that a client can check all three."""
import asyncio, json, os
VERSION = "{version}"

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({{"type": message["type"] + ".complete"}})
            if message["type"] == "lifespan.shutdown":
                return
    answer = {{"version": VERSION, "pid": os.getpid(), "path": scope["path"]}}
    body = json.dumps(answer).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    # In two parts with a turn of the loop between, so that a careless stop would cut it.
    await send({{"type": "http.response.body", "body": body[:10], "more_body": True}})
    await asyncio.sleep(0)
    await send({{"type": "http.response.body", "body": body[10:]}})
'''


def application(version: str) -> str:
    """Return the code of an application that says which version it is, as ``Load`` expects."""
    return APPLICATION.format(version=version)


@dataclass(slots=True)
class Failure:
    """A request that was not answered as it should have been."""

    kind: str
    at: float
    pid: int | None
    """Which worker had answered on this connection before, if it had been used."""
    detail: str


@dataclass(slots=True)
class Tally:
    """What all clients got."""

    answered: int = 0
    told_to_close: int = 0
    by_version: collections.Counter[str] = field(default_factory=collections.Counter)
    by_pid: collections.Counter[int] = field(default_factory=collections.Counter)
    last_asked: dict[str, float] = field(default_factory=dict)
    """When the newest request was sent that each version answered, in monotonic seconds."""
    failures: list[Failure] = field(default_factory=list)

    def kinds(self) -> dict[str, int]:
        """Return how many failures there are of each kind: refused, reset, truncated, ..."""
        return dict(collections.Counter(failure.kind for failure in self.failures))


class Load:
    """Clients that ask without a pause: some keep their connection, some open one per request.

    The clients run in a thread with an event loop of its own. Every request has a path of
    its own that the answer must repeat, so that a swapped answer is found too.
    """

    def __init__(
        self,
        address: int | str,
        *,
        keep_alive: int = 64,
        closing: int = 8,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare the clients.

        Args:
            address: a port of this machine, or the path of a UNIX socket.
            keep_alive: clients that send request after request over one connection.
            closing: clients that open a connection for each request.
            tls: whom the clients trust, if they speak TLS.
        """
        self.address = address
        self.tls = tls
        self.tally = Tally()
        self._clients = [True] * keep_alive + [False] * closing
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")
        self._numbers = iter(range(1 << 60))

    def __enter__(self) -> "Load":
        self._thread.start()
        self.wait_for_answers(200)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> Tally:
        """Let each client finish its request, and return what they got."""
        self._stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "clients still wait for an answer"
        return self.tally

    def wait_for_answers(self, more: int) -> None:
        """Wait until ``more`` requests have been answered from now on."""
        target = self.tally.answered + more
        wait_for(
            lambda: self.tally.answered >= target, f"{more} more answers; {self.tally.kinds()}"
        )

    def assert_nothing_lost(self) -> None:
        """Stop, and assert that every single request was answered as it should."""
        tally = self.stop()
        assert not tally.failures, f"{tally.kinds()} of {tally.answered}: {tally.failures[:5]}"

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for keep_alive in self._clients:
                group.create_task(self._client(keep_alive))

    async def _client(self, keep_alive: bool) -> None:
        connection: _Connection | None = None
        while not self._stop.is_set():
            if connection is None:
                connection = _Connection(self.tls)
            try:
                async with asyncio.timeout(PATIENCE):
                    await connection.ask(
                        self.address, f"/{next(self._numbers)}", keep_alive, self.tally
                    )
            except Lost as lost:
                failure = Failure(lost.kind, time.monotonic(), connection.pid, str(lost))
                self.tally.failures.append(failure)
                connection.close()
                await asyncio.sleep(0.01)  # a refused client must not spin
            except TimeoutError:
                self.tally.failures.append(
                    Failure("unanswered", time.monotonic(), connection.pid, "")
                )
                connection.close()
            if not connection.usable:
                connection.close()
                connection = None
        if connection:
            connection.close()


class Lost(Exception):
    """A request was not answered; ``kind`` says how it was lost."""

    def __init__(self, kind: str, detail: object = "") -> None:
        super().__init__(str(detail))
        self.kind = kind


class _Connection:
    """One connection of a client, which reads answers strictly."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.tls = tls
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.pid: int | None = None
        self.usable = False

    def close(self) -> None:
        self.usable = False
        if self.writer:
            self.writer.transport.abort()

    async def ask(self, address: int | str, path: str, keep_alive: bool, tally: Tally) -> None:
        """Send one request and check its answer.

        Raises:
            Lost: it was not answered, or not rightly.
        """
        self.usable = self.usable and keep_alive
        if self.reader is None:
            await self._open(address)
        assert self.reader is not None
        assert self.writer is not None
        asked = time.monotonic()
        word = "keep-alive" if keep_alive else "close"
        head, body = await self._exchange(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {word}\r\n\r\n".encode()
        )
        status = int(head[9:12])
        if not 200 <= status < 300:
            raise Lost(f"status {status}", body[:200])
        try:
            answer = json.loads(body)
            right = answer["path"] == path
        except (ValueError, KeyError, TypeError):
            right = False
        if not right:
            raise Lost("wrong", body[:200])
        closes = b"\r\nconnection: close" in head.lower()
        tally.answered += 1
        tally.by_version[answer["version"]] += 1
        tally.by_pid[answer["pid"]] += 1
        tally.last_asked[answer["version"]] = max(
            asked, tally.last_asked.get(answer["version"], 0.0)
        )
        tally.told_to_close += closes and keep_alive
        self.pid = answer["pid"]
        self.usable = keep_alive and not closes

    async def _open(self, address: int | str) -> None:
        try:
            if isinstance(address, str):
                self.reader, self.writer = await asyncio.open_unix_connection(address)
            else:
                self.reader, self.writer = await asyncio.open_connection(
                    "127.0.0.1", address, ssl=self.tls
                )
        except OSError as error:
            kind = "refused" if isinstance(error, ConnectionRefusedError) else "unreachable"
            raise Lost(kind, error) from None

    async def _exchange(self, request: bytes) -> tuple[bytes, bytes]:
        assert self.reader is not None
        assert self.writer is not None
        head = b""
        try:
            self.writer.write(request)
            head = await self.reader.readuntil(b"\r\n\r\n")
            match = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            if not match:
                raise Lost("wrong", head)
            return head, await self.reader.readexactly(int(match[1]))
        except asyncio.IncompleteReadError as error:
            raise Lost("truncated" if head or error.partial else "reset", "end of file") from None
        except OSError as error:
            raise Lost("truncated" if head else "reset", error) from None


@contextlib.contextmanager
def busy_processors(count: int = 2) -> Iterator[None]:
    """Keep processors busy meanwhile, as on a machine that has other work."""
    code = "import os, time\nwhile os.getppid() != 1: sum(range(100000))"
    burners: list[subprocess.Popen[Any]] = [
        subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)
    ]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
