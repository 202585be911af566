"""The admin addresses: health, metrics and a page about the fleet, over HTTP.

They are served by a process of its own, and by the worker's own server with a small
application: so there is one HTTP server to get right, whatever clients do costs the
supervisor nothing, and what is heavy to import is not in its memory. This process asks the
supervisor by a line that only they have, one question at a time; answers that are fresh
enough are used again. It can only look.
"""

import asyncio
import contextlib
import json
import resource
import signal
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import setproctitle

from asgictl.operate import metrics
from asgictl.operate.metrics import Snapshot
from asgictl.operate.protocol import encode
from asgictl.operate.usage import Meter, Usage
from asgictl_worker import Server, WorkerSettings, logs

FRESH = 0.05
"""Seconds for which an answer of the supervisor is used again."""

PATIENCE = 2.0
"""Seconds in which the supervisor must have answered."""

REMEMBER_EVERY = 2.0
"""Seconds between two points of the history."""
REMEMBERED = 450
"""Points of the history: a quarter of an hour."""

MEASURE_EVERY = 10.0
"""Seconds between two looks at memory and processor time: the kernel walks all pages for it."""

SERVING = WorkerSettings(
    lifespan="off",
    ws="none",
    access_log=False,
    limit_concurrency=64,
    limit_request_body=0,
    timeout_request_header=5.0,
    timeout_keep_alive=75.0,
    timeout_write=10.0,
    timeout_graceful_shutdown=1.0,
    drain_idle_window=0.0,
)
"""How it is served: as strictly as everything else, and for few clients."""

_LEFT_TO_THE_SUPERVISOR = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""Signals for all processes of the service: health is told until the supervisor ends."""

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", _POLICY.encode()),
]

Answer = tuple[int, str, bytes]
"""Status, kind and body."""


class Silent(Exception):
    """The supervisor does not answer."""


class Line(asyncio.Protocol):
    """The way to the supervisor.

    Attributes:
        gone: set when the supervisor has hung up.
    """

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self._transport: asyncio.WriteTransport
        self._received = bytearray()
        self._asked: deque[asyncio.Future[bytes]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be able to ask from now on."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Take answers; they come in the order of the questions."""
        self._received += data
        while (end := self._received.find(b"\n", -len(data) - 1)) >= 0 and self._asked:
            answer = bytes(self._received[:end])
            del self._received[: end + 1]
            asked = self._asked.popleft()
            if not asked.done():  # whoever has asked may have lost patience
                asked.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Know that there are no more answers."""
        self.gone.set()
        for asked in self._asked:
            if not asked.done():
                asked.set_exception(EOFError())

    async def ask(self, verb: str) -> dict[str, Any]:
        """Return what the supervisor says to a verb.

        Raises:
            TimeoutError: it says nothing in time.
            EOFError: it is gone.
        """
        if self.gone.is_set():
            raise EOFError
        asked: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self._transport.write(encode({"verb": verb}))
        async with asyncio.timeout(PATIENCE):
            answer: dict[str, Any] = json.loads(await asked)
        return answer


class Fleet:
    """What is known of the service, and was."""

    def __init__(
        self, ask: Callable[[str], Awaitable[dict[str, Any]]], meter: Meter | None = None
    ) -> None:
        """Begin to know nothing.

        Args:
            ask: asks the supervisor; raises TimeoutError, EOFError or OSError.
            meter: measures processes.
        """
        self._ask = ask
        self._meter = meter or Meter()
        self._usage: Mapping[int, Usage] = {}
        self._looked = float("-inf")
        self._snapshot: Snapshot
        self._turn = asyncio.Lock()
        self.history: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)

    async def look(self) -> Snapshot:
        """Return what is known now, or was a moment ago.

        Raises:
            Silent: the supervisor does not say it.
        """
        async with self._turn:
            if time.monotonic() - self._looked >= FRESH:
                try:
                    status, listeners = await self._ask("status"), await self._ask("listeners")
                except (TimeoutError, EOFError, OSError) as error:
                    raise Silent(f"no answer of the supervisor: {error!r}") from None
                self._snapshot = Snapshot(status, listeners, self._usage, time.time())
                self._looked = time.monotonic()
            return self._snapshot

    async def remember(self) -> None:
        """Write down how the service does, again and again."""
        while True:
            with contextlib.suppress(Silent):
                self.history.append(point(await self.look()))
            await asyncio.sleep(REMEMBER_EVERY)

    async def measure(self) -> None:
        """Look at memory and processor time of all processes, again and again."""
        pause = 1.0  # processor time is known at the second look
        while True:
            with contextlib.suppress(Silent):
                status = (await self.look()).status
                pids = [status["pid"], *(row["pid"] for row in status["workers"] if row["pid"])]
                self._usage = await asyncio.to_thread(self._meter.look, pids)
            await asyncio.sleep(pause)
            pause = MEASURE_EVERY


def point(snapshot: Snapshot) -> dict[str, Any]:
    """Return what is remembered of a moment."""
    kept = ("requests_per_second", "p50", "p99", "in_flight", "connections", "busy", "ready")
    status = snapshot.status
    lag = max((row["loop_lag"] for row in status["workers"]), default=0.0)
    return {
        "at": round(snapshot.at, 1),
        "errors": status["errors"],
        "lag": lag,
        **{name: status[name] for name in kept},
    }


class Application:
    """Answers GET and HEAD, as an ASGI application."""

    def __init__(self, fleet: Fleet, ready_workers: int) -> None:
        """Prepare to answer.

        Args:
            fleet: knows everything.
            ready_workers: with fewer than this the service is not ready.
        """
        self._fleet = fleet
        self._ready_workers = ready_workers
        self._page = Path(__file__).with_name("page.html").read_bytes()
        self._paths = {
            "/": self._show_page,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/fleet.json": self._fleet_json,
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        headers = list(_HEADERS)
        accept = b", ".join(value for name, value in scope["headers"] if name == b"accept")
        handler = self._paths.get(scope["path"])
        try:
            if handler is None:
                paths = ", ".join(self._paths)
                status, kind, body = _text(HTTPStatus.NOT_FOUND, f"there are: {paths}")
            elif scope["method"] not in ("GET", "HEAD"):
                headers.append((b"allow", b"GET, HEAD"))
                status, kind, body = _text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD")
            else:
                status, kind, body = await handler(accept.decode("latin-1"))
        except Silent as silent:
            status, kind, body = _text(HTTPStatus.SERVICE_UNAVAILABLE, str(silent))
        headers += [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _show_page(self, _accept: str) -> Answer:
        return HTTPStatus.OK, "text/html; charset=utf-8", self._page

    async def _livez(self, _accept: str) -> Answer:
        await self._fleet.look()
        return _text(HTTPStatus.OK, "alive")

    async def _readyz(self, _accept: str) -> Answer:
        problem = unready((await self._fleet.look()).status, self._ready_workers)
        if problem:
            return _text(HTTPStatus.SERVICE_UNAVAILABLE, problem)
        return _text(HTTPStatus.OK, "ready")

    async def _metrics(self, accept: str) -> Answer:
        body, kind = metrics.write(await self._fleet.look(), accept)
        return HTTPStatus.OK, kind, body

    async def _fleet_json(self, _accept: str) -> Answer:
        snapshot = await self._fleet.look()
        found = {
            "at": snapshot.at,
            "status": snapshot.status,
            "listeners": snapshot.listeners,
            "usage": {pid: asdict(usage) for pid, usage in snapshot.usage.items()},
            "history": list(self._fleet.history),
        }
        body = json.dumps(found, separators=(",", ":")).encode()
        return HTTPStatus.OK, "application/json", body


def unready(status: Mapping[str, Any], ready_workers: int) -> str:
    """Return why no requests should be sent, or nothing if they should."""
    if status["phase"] == "stopping":
        return "not ready: stopping"
    if status["ready"] < ready_workers:
        return f"not ready: {status['ready']} workers are, {ready_workers} must be"
    return ""


def _text(status: HTTPStatus, text: str) -> Answer:
    return status, "text/plain; charset=utf-8", text.encode() + b"\n"


def run(
    settings: WorkerSettings, ready_workers: int, listening: socket.socket, line: socket.socket
) -> int:
    """Be the process that serves the admin addresses, until the supervisor hangs up.

    Args:
        settings: how to log.
        ready_workers: with fewer than this ``/readyz`` says 503.
        listening: where to serve.
        line: the way to the supervisor.
    """
    for number in _LEFT_TO_THE_SUPERVISOR:
        signal.signal(number, signal.SIG_IGN)
    setproctitle.setproctitle("asgictl: admin")
    logs.configure(settings)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_serve(ready_workers, listening, line))
    return 0


async def _serve(ready_workers: int, listening: socket.socket, end: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    _, line = await loop.create_connection(Line, sock=end)
    fleet = Fleet(line.ask)
    server = Server(Application(fleet, ready_workers), SERVING)
    working = [fleet.remember(), fleet.measure(), server.serve([listening])]
    tasks = [asyncio.create_task(work) for work in working]
    gone = asyncio.create_task(line.gone.wait())
    # If one of the tasks ends by itself it has failed, and the supervisor starts us anew.
    done, _ = await asyncio.wait([gone, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    server.stop()
    for task in tasks[:2]:
        task.cancel()
    await asyncio.wait(tasks)
