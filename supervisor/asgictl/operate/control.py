"""The control socket's server: bounded clients, requests and answers, and no waiting.

It lives in the supervisor's one loop. So nothing that a client does or leaves undone may hold
the loop up: half a request has a deadline, an answer that nobody reads is dropped with its
client, and in each turn of the loop each client gets a few milliseconds. What requests mean
is the desk's business.
"""

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Generator, Mapping
from math import inf
from typing import Any, Protocol, TypeVar

from asgictl.core.events import Event
from asgictl.operate import places
from asgictl.operate.protocol import Lines, Refused, Request, encode, failure, parse

log = logging.getLogger("asgictl.supervisor")

MAX_CLIENTS = 16

ACCEPTS_PER_TURN = 16

BUDGET = 0.003
"""Seconds that one client may take in one turn; one request is always answered."""

REQUEST_TIMEOUT = 5.0
"""Seconds in which a whole request must have come, from the first moment or the last answer."""

READ_TIMEOUT = 10.0
"""Seconds in which a client must read some of what was written to it."""

READ_SIZE = 64 * 1024
"""Bytes that are taken from a client in one turn."""

MAX_OUTPUT = 4 * 1024 * 1024
"""Bytes that may wait for a client that reads slowly; the status of 1024 workers fits."""

ACCEPT_PAUSE = 1.0
"""Seconds without accepting after descriptors have run out; they do not come back at once."""

Answer = Mapping[str, Any]
Answers = Generator[Answer | None, Event | None, Answer]
"""Yields what is to be sent before the last line, or None to be sent the next event; returns
the result, or raises Refused."""

Listening = TypeVar("Listening")


def listen(
    setting: str, environ: Mapping[str, str], bind: Callable[[str], Listening]
) -> Listening | None:
    """Return a socket at the place that the setting names, or at the best one that works.

    Args:
        setting: a path, ``auto`` or ``none``.
        environ: the supervisor's variables.
        bind: makes a socket at a path; raises OSError or an error for the operator.

    Raises:
        Exception: what ``bind`` has raised for a path that was asked for by name.
    """
    if setting == "none":
        return None
    if setting != "auto":
        return bind(setting)
    reasons = []
    for path in places.for_supervisor(environ, os.geteuid(), os.getpid()):
        try:
            places.prepare(path)
            return bind(path)
        except Exception as error:
            reasons.append(f"{os.path.dirname(path)}: {getattr(error, 'strerror', None) or error}")
    log.info(
        "no control socket, so `asgictl status` and other verbs do not reach this supervisor (%s); "
        "name a place with --control",
        "; ".join(reasons),
    )
    return None


class Watch(Protocol):
    """How the loop is told to look at a descriptor."""

    def __call__(self, fd: int, source: Callable[[], None], events: int = select.POLLIN, /) -> None:
        """Call ``source`` when one of the events, or a hang-up, has come; replaces older words."""


class Spare(Protocol):
    """Descriptors that are held back for a client who comes when there are no others."""

    def lend(self) -> bool:
        """Make room for one descriptor; False if nothing is held back any more."""

    def take_back(self) -> None:
        """Hold back as many as before, as far as there are any."""


class _Client:
    __slots__ = ("answers", "deadline", "due", "ending", "lines", "moved", "output", "socket")

    def __init__(self, connection: socket.socket, now: float) -> None:
        self.socket = connection
        self.lines = Lines()
        self.output = bytearray()
        self.answers: Answers | None = None
        """The request that waits for something to happen."""
        self.deadline = inf
        self.moved = now
        """When it began, was written to, or has read."""
        self.due = False
        """Has had its share of a turn, and more to say."""
        self.ending = False
        """Is hung up on when it has read what was written to it."""

    @property
    def open(self) -> bool:
        return self.socket.fileno() >= 0


class ControlServer:
    """Reads requests, hands them to ``answer`` and writes what comes of it."""

    def __init__(
        self,
        listening: socket.socket,
        watch: Watch,
        unwatch: Callable[[int], None],
        answer: Callable[[Request], Answers],
        clock: Callable[[], float] = time.monotonic,
        spare: Spare | None = None,
    ) -> None:
        """Begin to accept.

        Args:
            listening: does not block; it stays its owner's.
            watch: tells the loop to look at a descriptor.
            unwatch: tells the loop to look away.
            answer: what to do about a request.
            clock: monotonic seconds.
            spare: what is held back for times without descriptors.
        """
        self._spare = spare
        self._listening, self._answer, self._clock = listening, answer, clock
        self._watch, self._unwatch = watch, unwatch
        self._clients: set[_Client] = set()
        self._accept_again = inf
        watch(listening.fileno(), self._on_listening)

    @property
    def deadline(self) -> float:
        """When ``on_time()`` has something to do at the earliest."""
        return min([self._accept_again, *(client.deadline for client in self._clients)])

    def on_time(self) -> None:
        """Do what is due."""
        now = self._clock()
        if now >= self._accept_again:
            self._accept_again = inf
            self._watch(self._listening.fileno(), self._on_listening)
        for client in list(self._clients):
            if now < client.deadline:
                continue
            if client.due:
                self._serve(client)
            elif client.lines.begun and not client.output:
                self._end(client, Refused(f"no whole request within {REQUEST_TIMEOUT:g} s"))
            else:
                self._drop(client)

    def learned(self, event: Event) -> None:
        """Let requests that wait look at what has happened."""
        for client in list(self._clients):
            if client.answers is not None:
                self._advance(client, client.answers, event)
                # Not now: we may be in the middle of the request of somebody else.
                client.due = client.answers is None
                self._settle(client)

    def close(self) -> None:
        """Hang up on everybody."""
        self._unwatch(self._listening.fileno())
        for client in list(self._clients):
            self._drop(client)

    # -- Connections

    def _on_listening(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connection, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    if self._spare and self._spare.lend():
                        continue
                    # The connection stays in the queue, and would wake us without end.
                    self._unwatch(self._listening.fileno())
                    self._accept_again = self._clock() + ACCEPT_PAUSE
                    return
                continue
            connection.setblocking(False)
            try:
                self._admit(connection)
            except Refused as refused:
                with contextlib.suppress(OSError), connection:
                    connection.send(encode(failure(refused)))
                self._take_back()

    def _admit(self, connection: socket.socket) -> None:
        _, uid = credentials(connection)
        if uid not in (os.geteuid(), 0):
            raise Refused(f"only user {os.geteuid()} and root are served here, and you are {uid}")
        if len(self._clients) >= MAX_CLIENTS:
            raise Refused(f"{MAX_CLIENTS} clients are connected already; try again later")
        client = _Client(connection, self._clock())
        self._clients.add(client)
        self._settle(client)

    def _on_client(self, client: _Client) -> None:
        if client.output:
            self._flush(client)
        elif client.answers is not None or client.due:
            self._drop(client)  # nothing is read from it now, so this can only be the end
        else:
            self._read(client)
        self._serve(client)

    def _read(self, client: _Client) -> None:
        try:
            data = client.socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            client.lines.receive(data)
        else:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        if client.open:
            self._unwatch(client.socket.fileno())
            self._clients.discard(client)
            client.socket.close()
            client.answers = None
            self._take_back()

    def _take_back(self) -> None:
        if self._spare:
            self._spare.take_back()

    # -- Requests

    def _serve(self, client: _Client) -> None:
        """Answer what has arrived, one request after the other, for the client's share of a turn."""
        client.due = False
        until = self._clock() + BUDGET
        try:
            while client.open and not (client.output or client.answers or client.ending):
                line = client.lines.next()
                if line is None:
                    break
                self._answer_to(client, line)
                if self._clock() >= until:
                    client.due = True
                    break
        except Refused as refused:
            self._end(client, refused)
        self._settle(client)

    def _answer_to(self, client: _Client, line: bytes) -> None:
        try:
            answers = self._answer(parse(line))
        except Refused as refused:
            self._send(client, failure(refused))
        else:
            self._advance(client, answers, None)

    def _advance(self, client: _Client, answers: Answers, event: Event | None) -> None:
        # What runs now may make things happen, which would have it advanced again.
        client.answers = None
        try:
            while client.open:
                answer = answers.send(event)
                if answer is None:
                    client.answers = answers
                    return
                self._send(client, answer)
                event = None
        except StopIteration as end:
            self._send(client, {"ok": True, **end.value})
        except Refused as refused:
            self._send(client, failure(refused))
        except Exception as error:
            log.exception("internal error in a request at the control socket; please report it")
            self._send(client, failure(Refused(f"internal error: {error!r}; see the log")))

    # -- Answers

    def _end(self, client: _Client, refused: Refused) -> None:
        client.ending = True
        self._send(client, failure(refused))
        self._settle(client)

    def _send(self, client: _Client, answer: Answer) -> None:
        if not client.output:
            client.moved = self._clock()
        client.output += encode(answer)
        if len(client.output) > MAX_OUTPUT:
            self._drop(client)
        self._flush(client)

    def _flush(self, client: _Client) -> None:
        try:
            while client.open and client.output:
                del client.output[: client.socket.send(client.output)]
                client.moved = self._clock()
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)

    def _settle(self, client: _Client) -> None:
        """Wait for what the client's state waits for."""
        if not client.open:
            return
        if client.ending and not client.output:
            self._drop(client)
            return
        events = 0
        if client.output:
            events = select.POLLOUT
            client.deadline = client.moved + READ_TIMEOUT
        elif client.due:
            client.deadline = self._clock()
        elif client.answers is not None:
            client.deadline = inf
        else:
            events = select.POLLIN
            client.deadline = client.moved + REQUEST_TIMEOUT
        self._watch(client.socket.fileno(), lambda: self._on_client(client), events)


def credentials(connection: socket.socket) -> tuple[int, int]:
    """Return process id (0 if the system does not tell) and user at the other end."""
    pid, uid = 0, 0
    if hasattr(socket, "SO_PEERCRED"):
        size = struct.calcsize("3i")
        pid, uid, _ = struct.unpack(
            "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
    else:
        # LOCAL_PEERCRED of macOS: a version, then the user (struct xucred).
        _, uid = struct.unpack_from("=II", connection.getsockopt(0, 1, 76))
    return pid, uid
