"""The process that serves the admin addresses, as the supervisor sees it.

It has the listening socket from us and one line to ask by, and may be asked nothing. If it
dies another one is forked; who connects meanwhile waits in the kernel's queue.
"""

import contextlib
import logging
import os
import select
import socket
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from asgictl.operate.control import Watch
from asgictl.operate.protocol import Lines, Refused, encode, failure, parse
from asgictl.settings import Settings, TcpAddress, UnixAddress, parse_bind
from asgictl.system import kernel, listeners, spawn
from asgictl.system.kernel import Child
from asgictl.system.listeners import Listener

log = logging.getLogger("asgictl.supervisor")

PAUSES = (0.1, 1.0, 5.0, 30.0)
"""Seconds until another one is forked, after the first, second, ... quick end."""

HEALTHY_AFTER = 60.0
"""Seconds of life after which an end does not count as quick."""

EXIT_TIMEOUT = 1.0
"""Seconds to wait, at most, for its end once it was killed."""

BACKLOG = 128

MAX_OUTPUT = 16 * 1024 * 1024
"""Bytes that may wait for it to read; then it is stuck."""

READ_SIZE = 4096


def wanted(settings: Settings) -> TcpAddress | UnixAddress | None:
    """Return where the setting ``admin_bind`` asks to serve."""
    if settings.admin_bind is None:
        return None
    address = parse_bind(settings.admin_bind)
    assert isinstance(address, TcpAddress | UnixAddress)
    return address


def access(settings: Settings) -> listeners.Access:
    """Return who may connect to it, if it is a UNIX socket; it stays the supervisor's own."""
    return listeners.Access.of(settings.uds_permissions, None)


def listen(settings: Settings) -> Listener | None:
    """Return the socket that the setting ``admin_bind`` asks for.

    Raises:
        CannotBind: it cannot be had.
    """
    address = wanted(settings)
    if address is None:
        return None
    (listener, *others) = listeners.bind_all([address], backlog=BACKLOG, access=access(settings))
    for other in others:
        # A name may stand for several addresses; one is enough to look at a service.
        other.close()
    return listener


class Admin:
    """Forks the process, answers it, and replaces it."""

    def __init__(
        self,
        listener: Listener,
        surroundings: spawn.Surroundings,
        answers: Mapping[str, Callable[[], Mapping[str, Any]]],
        watch: Watch,
        unwatch: Callable[[int], None],
        bury: Callable[[Child], None],
        clock: Callable[[], float] = kernel.monotonic,
    ) -> None:
        """Begin without a process; the first one is due at once.

        Args:
            listener: where it is to serve.
            surroundings: what it finds: variables, rights, settings.
            answers: what it may ask.
            watch: tells the loop to look at a descriptor.
            unwatch: tells the loop to look away.
            bury: takes a child that has ended, or is about to.
            clock: monotonic seconds.
        """
        self.listener = listener
        self._surroundings = surroundings
        self._answers = answers
        self._watch, self._unwatch, self._bury = watch, unwatch, bury
        self._clock = clock
        self._child: Child | None = None
        self._line: socket.socket
        self._lines = Lines()
        self._output = bytearray()
        self._born = 0.0
        self._quick_ends = 0
        self.deadline = clock()
        """When ``on_time()`` has something to do."""

    def on_time(self) -> None:
        """Fork the process, if it is due."""
        if self._clock() < self.deadline:
            return
        self.deadline = inf
        self._born = self._clock()
        try:
            self._fork()
        except OSError as error:
            self._plan(f"cannot fork: {error.strerror}")

    def close(self) -> None:
        """End the process and stop listening."""
        self.deadline = inf
        child = self._hang_up()
        if child is not None:
            child.wait(EXIT_TIMEOUT)
        self.listener.close()

    def _fork(self) -> None:
        line, far_end = socket.socketpair()
        parent = os.getpid()
        with contextlib.closing(far_end):
            try:
                pid = kernel.fork()
            except OSError:
                line.close()
                raise
            if pid == 0:
                listening = self.listener.socket
                settings = self._surroundings.settings

                def work(_: object) -> int:
                    # Here and not above: it loads an event loop and an HTTP server.
                    from asgictl.operate import admin

                    return admin.run(settings, settings.admin_ready_workers, listening, far_end)

                keep = [listening.fileno(), far_end.fileno()]
                spawn.live(parent, keep, self._surroundings, work)
        line.setblocking(False)
        self._child, self._line = Child(pid), line
        self._lines, self._output = Lines(), bytearray()
        self._watch(line.fileno(), self._on_line)

    def _hang_up(self) -> Child | None:
        child, self._child = self._child, None
        if child is not None:
            self._unwatch(self._line.fileno())
            self._line.close()
            child.send("KILL")
            self._bury(child)
        return child

    def _plan(self, why: str) -> None:
        """Fork another one in a while."""
        now = self._clock()
        if now - self._born > HEALTHY_AFTER:
            self._quick_ends = 0
        pause = PAUSES[min(self._quick_ends, len(PAUSES) - 1)]
        self._quick_ends += 1
        self.deadline = now + pause
        log.error("%s: %s; trying again in %g s", self.listener.address, why, pause)

    def _on_line(self) -> None:
        try:
            if self._output:
                self._send()
            self._receive()
        except OSError:
            pid = self._child.pid if self._child else 0
            self._hang_up()
            self._plan(f"the process that serves it, pid={pid}, has ended")

    def _receive(self) -> None:
        try:
            data = self._line.recv(READ_SIZE)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError
        self._lines.receive(data)
        try:
            while line := self._lines.next():
                self._output += encode(self._answer(line))
        except Refused:
            raise ConnectionAbortedError from None
        if self._output:
            self._send()

    def _answer(self, line: bytes) -> Mapping[str, Any]:
        try:
            verb = parse(line).verb
            if verb not in self._answers:
                raise Refused(f"{verb!r} is not for you")
        except Refused as refused:
            return failure(refused)
        return self._answers[verb]()

    def _send(self) -> None:
        if len(self._output) > MAX_OUTPUT:
            raise ConnectionAbortedError
        with contextlib.suppress(BlockingIOError):
            del self._output[: self._line.send(self._output)]
        events = select.POLLIN | (select.POLLOUT if self._output else 0)
        self._watch(self._line.fileno(), self._on_line, events)
