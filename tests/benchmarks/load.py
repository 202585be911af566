"""The load: wrk for HTTP, an asyncio client for WebSockets; each reports what it got."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.servers import ROOT, pin_client

_DONE = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{"answers":%d,"seconds":%f,"errors":%d,"p50":%f,"p99":%f}\\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a load generator got: counts, and latencies in milliseconds."""

    answers: int
    seconds: float
    errors: int
    p50: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLoad:
    """Requests over HTTP/1.1 by wrk.

    ``pipeline`` requests go out in one write; ``body`` makes it a POST.
    """

    scheme: str = "http"

    connections: int = 32
    headers: dict[str, str] = field(default_factory=dict)
    body: int = 0
    pipeline: int = 1

    def script(self) -> str:
        """Return the program for wrk."""
        lines = []
        for name, value in self.headers.items():
            lines.append(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}")
        if self.body:
            lines.append(f'wrk.method = "POST"\nwrk.body = string.rep("b", {self.body})')
        if self.pipeline > 1:
            lines.append(
                "init = function(args)\n  local one = wrk.format()\n"
                f"  many = string.rep(one, {self.pipeline})\nend\nrequest = function() return many end"
            )
        return "\n".join([*lines, _DONE])

    def run(self, port: int, seconds: float) -> Answers:
        """Run the load for a while and return what came back."""
        wrk = shutil.which("wrk")
        if wrk is None:
            raise RuntimeError("wrk is not installed; on Debian: apt-get install wrk")
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(self.script())
            script.flush()
            # wrk counts whole seconds only.
            command = [
                wrk,
                "-t1",
                f"-c{self.connections}",
                f"-d{max(1, round(seconds))}s",
                "-s",
                script.name,
            ]
            return _answers([*command, f"{self.scheme}://127.0.0.1:{port}/"], seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketLoad:
    """Messages over WebSockets, one at a time on each connection, echoed by the server."""

    size: int
    connections: int = 32

    def run(self, port: int, seconds: float) -> Answers:
        """Run the load for a while, in a process of its own, and return what came back."""
        return _run_here(port, self.size, self.connections, seconds, "echo")


@dataclass(frozen=True, slots=True, kw_only=True)
class BroadcastLoad:
    """Messages that one WebSocket sends and all receive; the next when each has the last.

    An answer is the arrival of a message at one client.
    """

    size: int
    connections: int = 64

    def run(self, port: int, seconds: float) -> Answers:
        """Run the load for a while, in a process of its own, and return what came back."""
        return _run_here(port, self.size, self.connections, seconds, "broadcast")


def _run_here(port: int, size: int, connections: int, seconds: float, kind: str) -> Answers:
    command = [sys.executable, "-m", "tests.benchmarks.load", str(port), str(size)]
    return _answers([*command, str(connections), str(seconds), kind], seconds)


def _answers(command: list[str], seconds: float) -> Answers:
    """Run a load generator, and return what its last line says."""
    output = subprocess.run(
        command,
        cwd=ROOT,
        preexec_fn=pin_client,
        check=True,
        capture_output=True,
        text=True,
        timeout=seconds + 30,
    ).stdout
    return Answers(**json.loads(output.strip().splitlines()[-1]))


class _EchoClient(asyncio.Protocol):
    """Sends one frame, waits for as many bytes as its echo has, and sends the next.

    The bytes of the first echo are checked; later ones are counted, since a client that
    parses would be slower than the servers that it measures.
    """

    def __init__(self, size: int, tally: "_Tally") -> None:
        payload = os.urandom(size // 2).hex().encode().ljust(size, b"x")
        head = bytes((size,)) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at & 3] for at, byte in enumerate(payload))
        self.frame = b"\x81" + bytes((head[0] | 0x80,)) + head[1:] + mask + masked
        self.echo = b"\x81" + head + payload
        self.tally = tally
        self.received = b""
        self.missing = 0
        self.open = False
        self.checked = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        if self.checked:
            self.missing -= len(data)
            if self.missing > 0:
                return
        else:
            self.received += data
            if not self.open:
                head, end, rest = self.received.partition(b"\r\n\r\n")
                if not end:
                    return
                if not head.startswith(b"HTTP/1.1 101"):
                    self.tally.errors += 1
                    self.transport.abort()
                    return
                self.open, self.received = True, rest
                self.send()
                return
            if len(self.received) < len(self.echo):
                return
            self.checked = True
            if self.received != self.echo:
                self.tally.errors += 1
        self.tally.count(time.perf_counter() - self.sent)
        self.send()

    def send(self) -> None:
        self.missing = len(self.echo)
        self.sent = time.perf_counter()
        self.transport.write(self.frame)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.tally.over:
            self.tally.errors += 1


class _Listener(_EchoClient):
    """One of a group: its message goes out again when all of the group have received it."""

    def __init__(self, size: int, tally: "_Tally", group: list["_Listener"], members: int) -> None:
        super().__init__(size, tally)
        # All are sent the same, so each can check it.
        if group:
            self.frame, self.echo = group[0].frame, group[0].echo
        group.append(self)
        self.group, self.members = group, members

    def send(self) -> None:
        """Be ready; the last one that is begins."""
        self.missing = len(self.echo)
        self.sent = time.perf_counter()
        self.tally.ready += 1
        if self.tally.ready == self.members:
            self.tally.ready = 0
            self.group[0].transport.write(self.group[0].frame)


class _Tally:
    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.errors = 0
        self.over = False
        self.ready = 0
        self.count = self.latencies.append


async def _websockets(port: int, size: int, connections: int, seconds: float, kind: str) -> Answers:
    loop = asyncio.get_running_loop()
    tally = _Tally()
    group: list[_Listener] = []

    def client() -> asyncio.Protocol:
        if kind == "echo":
            return _EchoClient(size, tally)
        return _Listener(size, tally, group, connections)

    began = time.perf_counter()
    clients = [
        (await loop.create_connection(client, "127.0.0.1", port))[0] for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    tally.over = True
    elapsed = time.perf_counter() - began
    for transport in clients:
        transport.abort()
    latencies = sorted(tally.latencies) or [0.0]
    return Answers(
        answers=len(tally.latencies),
        seconds=elapsed,
        errors=tally.errors,
        p50=latencies[len(latencies) // 2] * 1e3,
        p99=latencies[len(latencies) * 99 // 100] * 1e3,
    )


def main() -> None:
    """Run the WebSocket load: PORT SIZE CONNECTIONS SECONDS KIND."""
    run = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        run = uvloop.run
    port, size, connections = map(int, sys.argv[1:4])
    result = run(_websockets(port, size, connections, float(sys.argv[4]), sys.argv[5]))
    sys.stdout.write(json.dumps({name: getattr(result, name) for name in result.__slots__}) + "\n")


if __name__ == "__main__":
    main()
