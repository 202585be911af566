"""The client of the conformance cases: sends what it is told, and reads strictly.

It works on bare sockets. A transport of asyncio would throw away what is still to be read as
soon as a write fails, and what a server says before it closes is just what matters here.
"""

import asyncio
import contextlib
import json
import re
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.conformance.http1.case import (
    AwaitAnswer,
    AwaitInterim,
    AwaitReport,
    Bytewise,
    Case,
    HalfClose,
    Observed,
    Outcome,
    Pause,
    Reset,
    Response,
    Step,
    Then,
    Unread,
)

PAUSE = 0.02
"""Seconds between packets that are to arrive apart."""

CONCURRENCY = 24
"""Cases at a time."""

UNREACHABLE = "nobody listens any more"
"""The end of a case behind one that brought the server down."""

PROBE = b"GET /probe HTTP/1.1\r\nHost: probe\r\n\r\n"

_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([1-9][0-9]{2}) [\t\x20-\x7e\x80-\xff]*")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(;[\t\x20-\x7e\x80-\xff]*)?")
_LENGTH = re.compile(r"[0-9]{1,15}")
_ABORT = struct.pack("ii", 1, 0)


class Ended(Exception):
    """The connection ended before what was being read did."""


class Malformed(Exception):
    """What the server sent is not HTTP/1.1."""


class Conversation:
    """One case under way with one server.

    Args:
        port: where it listens on this machine.
        patience: seconds to wait for whatever ought to come.
    """

    def __init__(self, port: int, case: Case, patience: float) -> None:
        self._port = port
        self._case = case
        self._patience = patience
        self._socket = socket.socket()
        self._buffer = bytearray()
        self._eof = self._reset = False
        self._news = asyncio.Event()
        self._interim: list[int] = []
        self._answers: list[Response] = []

    async def run(self) -> Observed:
        """Send all, read the answers, and find out what became of the connection."""
        try:
            await self._connect()
            for step in self._case.send:
                await self._take(step)
            while len(self._answers) < self._case.answers and not self._is_over:
                await self._read_answer()
            return Observed(tuple(self._answers), await self._end())
        except TimeoutError:
            return Observed(tuple(self._answers), f"silent, with {bytes(self._buffer[:200])!r}")
        except ConnectionRefusedError:
            return Observed(tuple(self._answers), UNREACHABLE)
        except Malformed as error:
            return Observed(tuple(self._answers), f"malformed: {error}")
        finally:
            self._close()

    # -- Sending

    async def _connect(self) -> None:
        self._socket.close()
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await self._within(self._loop.sock_connect(self._socket, ("127.0.0.1", self._port)))
        self._buffer.clear()
        self._eof = self._reset = False
        self._loop.add_reader(self._socket, self._receive)

    def _close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    async def _take(self, step: Step) -> None:
        if isinstance(step, bytes):
            await self._send(step)
        elif isinstance(step, Bytewise):
            for code in step.data:
                await self._send(bytes([code]))
                await asyncio.sleep(0)
        elif isinstance(step, AwaitAnswer):
            while len(self._answers) < step.count and not self._is_over:
                await self._read_answer()
        elif isinstance(step, AwaitInterim):
            await self._read_interim()
        elif isinstance(step, AwaitReport):
            await self._await_report(step.key)
        elif isinstance(step, Pause):
            await asyncio.sleep(PAUSE)
        elif isinstance(step, HalfClose):
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
        elif isinstance(step, Reset):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            self._close()
            await self._connect()
        elif isinstance(step, Unread):
            self._loop.remove_reader(self._socket)
            await self._send(step.data)
            self._loop.add_reader(self._socket, self._receive)

    async def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            await self._within(self._loop.sock_sendall(self._socket, data))

    async def _await_report(self, key: str) -> None:
        reader, writer = await self._within(asyncio.open_connection("127.0.0.1", self._port))
        writer.write(f"GET /report?{key} HTTP/1.0\r\nHost: report\r\n\r\n".encode())
        await self._within(reader.read())
        writer.close()

    # -- Reading

    async def _read_interim(self) -> None:
        if await self._until(b"\r\n\r\n") is not None and self._buffer[9:10] == b"1":
            status, _, _ = await self._read_head()
            self._interim.append(status)

    async def _read_answer(self) -> None:
        """Read one final response; what is wrong with it is kept as its flaw."""
        try:
            while True:
                status, version, headers = await self._read_head()
                if status >= 200 or status == 101:
                    break
                self._interim.append(status)
        except Ended:
            if self._buffer:
                raise Malformed(f"the head {bytes(self._buffer[:200])!r} has no end") from None
            return
        body = bytearray()
        flaw = ""
        try:
            await self._read_body(status, headers, body)
        except Ended:
            flaw = "the body has no end"
        interim, self._interim = tuple(self._interim), []
        self._answers.append(Response(status, headers, bytes(body), interim, version, flaw))

    async def _read_head(self) -> tuple[int, str, tuple[tuple[str, str], ...]]:
        end = await self._until(b"\r\n\r\n")
        if end is None:
            raise Ended
        first, *lines = self._cut(end).split(b"\r\n")
        self._cut(4)
        match = _STATUS_LINE.fullmatch(first)
        if match is None:
            raise Malformed(f"status line {first[:200]!r}")
        headers = []
        for line in lines:
            field = _FIELD.fullmatch(line)
            if field is None:
                raise Malformed(f"header {line[:200]!r}")
            headers.append((field[1].decode(), field[2].strip(b" \t").decode("latin-1")))
        return int(match[2]), match[1].decode(), tuple(headers)

    async def _read_body(
        self, status: int, headers: Iterable[tuple[str, str]], body: bytearray
    ) -> None:
        named = [(name.lower(), value) for name, value in headers]
        lengths = [value for name, value in named if name == "content-length"]
        codings = [value.lower() for name, value in named if name == "transfer-encoding"]
        if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
            raise Malformed(f"content-length: {lengths}")
        if len(codings) > 1 or (codings and codings != ["chunked"]):
            raise Malformed(f"transfer-encoding: {codings}")
        if lengths and codings:
            raise Malformed("both content-length and transfer-encoding")
        if len(self._answers) in self._case.heads or status in (101, 204, 304):
            return
        if codings:
            await self._read_chunks(body)
        elif lengths:
            await self._read_exactly(int(lengths[0]), body)
        else:
            while not self._eof:
                await self._fill()
            body += self._cut(len(self._buffer))
            if self._reset:
                raise Ended

    async def _read_chunks(self, body: bytearray) -> None:
        while True:
            line = await self._read_line()
            match = _CHUNK.fullmatch(line)
            if match is None:
                raise Malformed(f"size of a chunk {line[:200]!r}")
            size = int(match[1], 16)
            if not size:
                break
            await self._read_exactly(size, body)
            if await self._read_line():
                raise Malformed("a chunk is longer than its size")
        while line := await self._read_line():
            if not _FIELD.fullmatch(line):
                raise Malformed(f"trailer {line[:200]!r}")

    async def _read_line(self) -> bytes:
        end = await self._until(b"\r\n")
        if end is None:
            raise Ended
        line = self._cut(end)
        self._cut(2)
        return line

    async def _read_exactly(self, size: int, body: bytearray) -> None:
        while size:
            if not self._buffer:
                if self._eof:
                    raise Ended
                await self._fill()
            part = self._cut(size)
            size -= len(part)
            body += part

    async def _until(self, mark: bytes) -> int | None:
        """Return where ``mark`` is, or None if the connection ended before it came."""
        while (end := self._buffer.find(mark)) < 0:
            if self._eof:
                return None
            await self._fill()
        return end

    def _cut(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _receive(self) -> None:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
            self._reset = True
        if not data:
            self._eof = True
            self._loop.remove_reader(self._socket)
        self._buffer += data
        self._news.set()

    async def _fill(self) -> None:
        """Wait until more is here, or the end."""
        self._news.clear()
        await self._within(self._news.wait())

    async def _end(self) -> str:
        """Return what became of the connection; one more request brings it to light."""
        if self._answers and self._answers[-1].status == 101:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            while not self._eof:
                await self._fill()
            return "closed"
        if any(isinstance(step, HalfClose) for step in self._case.send):
            while not self._eof:
                await self._fill()
        if not self._eof:
            await self._send(PROBE)
        said = self._answers and "close" in ",".join(self._answers[-1].values("connection")).lower()
        before = len(self._answers)
        while len(self._answers) == before and not self._is_over:
            await self._read_answer()
        if len(self._answers) == before:
            return "closed"
        answer = self._answers.pop()
        if (answer.status, answer.body) != (200, b"probe"):
            return f"one more answer: {answer.status} {answer.body[:200]!r}"
        return "kept, though it was said to be closed" if said else "kept"

    @property
    def _is_over(self) -> bool:
        """Whether nothing more can be read."""
        return self._eof and not self._buffer

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def _within(self, awaitable: Any) -> Any:
        return await asyncio.wait_for(awaitable, self._patience)


async def run(
    port: int, cases: Sequence[Case], *, patience: float, concurrency: int = CONCURRENCY
) -> dict[str, Observed]:
    """Return what came back in each case, from a server on this machine."""
    slots = asyncio.Semaphore(concurrency)

    async def one(case: Case) -> Observed:
        async with slots:
            return await Conversation(port, case, patience).run()

    observed = await asyncio.gather(*map(one, cases))
    return {case.name: each for case, each in zip(cases, observed, strict=True)}


def objections(case: Case, observed: Observed, *, own: bool = False) -> list[str]:
    """Return why what came back is not what may come back; nothing if it is.

    Args:
        own: hold it to what asgictl promises.
    """
    found = []
    for outcome in (case.own if own else ()) or case.expect:
        objection = _objection(outcome, observed)
        if not objection:
            return []
        found.append(objection)
    return found


def _objection(outcome: Outcome, observed: Observed) -> str:
    if len(outcome.answers) != len(observed.answers):
        statuses = [answer.status for answer in observed.answers]
        return f"{len(statuses)} answers {statuses}, {observed.end}"
    for number, (answer, response) in enumerate(
        zip(outcome.answers, observed.answers, strict=True), 1
    ):
        objection = answer.objection(response, _told(response))
        if objection:
            return f"answer {number}: {objection}"
    wanted = ("closed", "kept") if outcome.then is Then.EITHER else (outcome.then.value,)
    return "" if observed.end in wanted else observed.end


def _told(response: Response) -> Mapping[str, Any]:
    try:
        told = json.loads(response.body)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
