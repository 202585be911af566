"""One line for every response, without the cost of the logging module.

A line through ``logging`` takes a tenth of a millisecond of every ten requests; here it is one
formatted string in a list. The list is written in batches, through an ``Outlet``, which never
waits for its reader. Where the operator has configured logging the lines go that way.
"""

import asyncio
import logging
import os
import select
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from asgictl_worker.outlet import Outlet
from asgictl_worker.settings import WorkerSettings

Headers = Sequence[tuple[bytes, bytes]]

FLUSH_INTERVAL = 0.1
"""Seconds that a line waits at most."""

FLUSH_LINES = 400
"""Lines that wait at most: some 40 KiB."""


class Details(NamedTuple):
    """What only some formats want to know of an exchange; never changed after it was made."""

    request_headers: Headers
    response_headers: Headers
    request_id: str


class Exchange(Protocol):
    """A request and its response, whoever has answered it."""

    def details(self) -> Details:
        """Return headers and request id, as they are now."""


class AccessLog:
    """Writes a line per response.

    Such as::

        2026-11-22 21:30:00 INFO  asgictl.access [4711] 10.0.0.7:52100 "GET / HTTP/1.1" 200 12 412us

    The last two are the bytes of the body and the time from the head of the request to the end
    of the response, in microseconds.
    """

    __slots__ = ("_loop", "_outlet", "_prefix", "_responses", "_second", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, outlet: Outlet) -> None:
        self._loop = loop
        self._outlet = outlet
        self._responses: list[tuple[str, str, bytes, str, int, int, float]] = []
        self._prefix = ""
        self._second = 0
        self._timer: asyncio.TimerHandle | None = None

    def request(
        self,
        client: str,
        method: str,
        target: bytes,
        http_version: str,
        status: int,
        size: int,
        seconds: float,
        exchange: Exchange | None = None,
    ) -> None:
        """Note one response.

        Args:
            client: address and port, as text.
            method: of the request, like ``target`` and ``http_version``.
            target: as it was sent; ASCII without control characters.
            http_version: ``1.0`` or ``1.1``.
            status: of the response; 499 if the client left before there was one.
            size: bytes of the body that were written.
            seconds: from the head of the request to the end of the response.
            exchange: knows more, for those formats that ask.
        """
        responses = self._responses
        if not responses:
            self._begin_batch()
        # hot: to format a whole batch in one loop takes half the time
        responses.append((client, method, target, http_version, status, size, seconds))
        if len(responses) >= FLUSH_LINES:
            self.flush()

    def flush(self, timeout: float = 0.0) -> None:
        """Write all lines now, waiting at most ``timeout`` seconds for a slow reader."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        prefix = self._prefix
        lines = [
            f'{prefix}{client} "{method} {target.decode("ascii")} HTTP/{http_version}" '
            f"{status} {size} {int(seconds * 1e6)}us\n"
            for client, method, target, http_version, status, size, seconds in self._responses
        ]
        self._responses.clear()
        data = "".join(lines).encode("ascii", "backslashreplace")
        # Workers share the pipe: what is not longer than PIPE_BUF is not torn (pipe(7)).
        start = 0
        while len(data) - start > select.PIPE_BUF:
            end = data.rfind(b"\n", start, start + select.PIPE_BUF) + 1
            if not end:
                end = data.find(b"\n", start) + 1
            self._outlet.write(data[start:end])
            start = end
        self._outlet.write(data[start:])
        if timeout:
            self._outlet.flush(timeout)

    def _begin_batch(self) -> None:
        self._timer = self._loop.call_later(FLUSH_INTERVAL, self.flush)
        second = int(time.time())
        if second != self._second:
            self._second = second
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._prefix = f"{stamp} INFO  asgictl.access [{os.getpid()}] "


class LoggedAccess(AccessLog):
    """Hands every line to the logger ``asgictl.access``, for those who configured it.

    The arguments of a record are those that uvicorn's formatter expects; ``size`` and
    ``duration`` (seconds) are attributes of the record.
    """

    __slots__ = ("_logger",)

    def __init__(self) -> None:
        self._logger = logging.getLogger("asgictl.access")

    def request(
        self,
        client: str,
        method: str,
        target: bytes,
        http_version: str,
        status: int,
        size: int,
        seconds: float,
        exchange: Exchange | None = None,
    ) -> None:
        """See ``AccessLog``."""
        self._logger.info(
            '%s - "%s %s HTTP/%s" %d',
            client,
            method,
            target.decode("ascii"),
            http_version,
            status,
            extra={"size": size, "duration": seconds},
        )

    def flush(self, timeout: float = 0.0) -> None:
        """Do nothing: handlers keep their own buffers."""


def open_access_log(settings: WorkerSettings, loop: asyncio.AbstractEventLoop) -> AccessLog | None:
    """Return the access log that the settings ask for; lines go to standard output."""
    if not settings.access_log:
        return None
    if settings.log_config is not None:
        return LoggedAccess()
    return AccessLog(loop, Outlet(sys.__stdout__.fileno() if sys.__stdout__ else 1))
