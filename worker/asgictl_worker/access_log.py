"""One line for every response, without the cost of the logging module.

A line through ``logging`` takes a tenth of a millisecond of every ten requests; here it is one
tuple in a list. The list is formatted and written in batches, through an ``Outlet``, which
never waits for its reader. Where the operator has configured logging the lines go that way.

There is one class for each way to write: our own line, the operator's format, JSON, ``logging``.
"""

import asyncio
import logging
import os
import select
import sys
import time
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, ClassVar, Protocol

from asgictl_worker import logs
from asgictl_worker.access_format import (
    DEFAULT,
    NO_DETAILS,
    Details,
    Format,
    compile_format,
    quote,
)
from asgictl_worker.outlet import Outlet
from asgictl_worker.settings import WorkerSettings

FLUSH_INTERVAL = 0.1
"""Seconds that a line waits at most."""

FLUSH_LINES = 400
"""Lines that wait at most: some 40 KiB."""


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

    __slots__ = ("_loop", "_outlet", "_prefix", "_responses", "_second", "_timer", "_when")

    def __init__(self, loop: asyncio.AbstractEventLoop, outlet: Outlet) -> None:
        self._loop = loop
        self._outlet = outlet
        self._responses: list[Any] = []
        self._prefix = self._when = ""
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
        responses, self._responses = self._responses, []
        data = self._text(responses).encode("ascii", "backslashreplace")
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

    def _text(self, responses: list[Any]) -> str:
        """Return the lines for what was noted."""
        # hot: NUL stands for our own quotes until all is one text. So a quote in it is a
        # client's, which could forge what follows; to look for it costs next to nothing here.
        prefix = self._prefix
        text = "".join(
            [
                f"{prefix}{client} \0{method} {target.decode()} HTTP/{http_version}\0 "
                f"{status} {size} {int(seconds * 1e6)}us\n"
                for client, method, target, http_version, status, size, seconds in responses
            ]
        )
        if '"' in text:
            text = text.replace('"', "\\x22")
        return text.replace("\0", '"')

    def _begin_batch(self) -> None:
        self._timer = self._loop.call_later(FLUSH_INTERVAL, self.flush)
        second = int(time.time())
        if second != self._second:
            self._second = second
            now = time.localtime(second)
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", now)
            self._when = time.strftime("[%d/%b/%Y:%H:%M:%S %z]", now)
            self._prefix = f"{stamp} INFO  asgictl.access [{os.getpid()}] "


class FormattedAccess(AccessLog):
    """Writes what the operator's format makes of a response.

    Args:
        loop: see ``AccessLog``.
        outlet: see ``AccessLog``.
        format: of the lines.
        with_prefix: time, level, logger and process come first, as in our own lines.
    """

    __slots__ = ("_format", "_with_prefix")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outlet: Outlet,
        format: Format,  # noqa: A002  # what it is
        *,
        with_prefix: bool = False,
    ) -> None:
        super().__init__(loop, outlet)
        self._format = format
        self._with_prefix = with_prefix

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
        responses = self._responses
        if not responses:
            self._begin_batch()
        details = NO_DETAILS
        if exchange is not None and self._format.needs_details:
            details = exchange.details()
        responses.append((client, method, target, http_version, status, size, seconds, details))
        if len(responses) >= FLUSH_LINES:
            self.flush()

    def _text(self, responses: list[Any]) -> str:
        prefix = self._prefix if self._with_prefix else ""
        lines = self._format.lines(responses, self._when)
        return "".join([f"{prefix}{line}\n" for line in lines])


class JSONAccess(AccessLog):
    """Writes an object per response, for machines.

    Args:
        loop: see ``AccessLog``.
        outlet: see ``AccessLog``.
        format: of the field ``message``.
    """

    __slots__ = ("_format",)

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outlet: Outlet,
        format: Format,  # noqa: A002  # what it is
    ) -> None:
        super().__init__(loop, outlet)
        self._format = format

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
        responses = self._responses
        if not responses:
            self._begin_batch()
        details = NO_DETAILS if exchange is None else exchange.details()
        entry = (client, method, target, http_version, status, size, seconds, details)
        responses.append((time.time(), entry))
        if len(responses) >= FLUSH_LINES:
            self.flush()

    def _text(self, responses: list[Any]) -> str:
        messages = self._format.lines([entry for _, entry in responses], self._when)
        level = f'"level":"INFO","logger":"asgictl.access","pid":{os.getpid()}'
        return "".join(
            [
                f'{{"time":"{logs.in_utc(now)}",{level},"message":{quoted(message)},'
                f"{_fields(*entry)}}}\n"
                for message, (now, entry) in zip(messages, responses, strict=True)
            ]
        )


def _fields(
    client: str,
    method: str,
    target: bytes,
    http_version: str,
    status: int,
    size: int,
    seconds: float,
    details: Details,
) -> str:
    identity = f',"request_id":{quoted(details.request_id)}' if details.request_id else ""
    return (
        f'{_client_fields(client)},"method":"{method}",'
        f"{_known_target(target) if len(target) <= _KNOWN_TARGET else _target_fields(target)},"
        f'"http_version":"{http_version}","status":{status},'
        f'"size":{size},"duration":{seconds:.6f}{identity}'
    )


@lru_cache(1024)
def _client_fields(client: str) -> str:
    address, _, port = client.rpartition(":")
    if not address:
        return '"client":null,"client_port":null'
    return f'"client":{quoted(address)},"client_port":{port}'


def _target_fields(target: bytes) -> str:
    path, _, query = target.decode("latin-1").partition("?")
    return f'"path":{quoted(path)},"query":{quoted(query)}'


_KNOWN_TARGET = 256
"""Bytes of a target that is remembered, at most, so that nobody can fill the memory."""

_known_target = lru_cache(1024)(_target_fields)


class ColoredAccess(AccessLog):
    """Writes the usual line for a terminal: what went wrong catches the eye."""

    __slots__ = ()

    _COLORS: ClassVar = {2: "\x1b[32m", 3: "\x1b[36m", 4: "\x1b[33m", 5: "\x1b[31m"}

    def _text(self, responses: list[Any]) -> str:
        prefix = self._prefix.replace("INFO ", "\x1b[32mINFO \x1b[0m")
        return "".join(
            [
                f'{prefix}{client} "\x1b[1m{method} {quote(target)} HTTP/{http_version}\x1b[0m" '
                f"{self._COLORS.get(status // 100, '')}{status}\x1b[0m "
                f"{size} {int(seconds * 1e6)}us\n"
                for client, method, target, http_version, status, size, seconds in responses
            ]
        )


class LoggedAccess(AccessLog):
    """Hands every line to the logger ``asgictl.access``, for those who configured it.

    Without a format, the arguments of a record are those that uvicorn's formatter expects.
    ``size``, ``duration`` (seconds) and ``request_id``, if there is one, are attributes of the
    record; with a format so are ``client``, ``method``, ``target``, ``http_version`` and
    ``status``.
    """

    __slots__ = ("_format", "_logger")

    def __init__(self, format: Format | None = None) -> None:  # noqa: A002  # what it is
        self._logger = logging.getLogger("asgictl.access")
        self._format = format

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
        if not self._logger.isEnabledFor(logging.INFO):
            return
        details = NO_DETAILS if exchange is None else exchange.details()
        extra: dict[str, Any] = {"size": size, "duration": seconds}
        if details.request_id:
            extra["request_id"] = details.request_id
        text = target.decode("ascii")
        if self._format is None:
            arguments = client, method, text.replace('"', "\\x22"), http_version, status
            self._logger.info('%s - "%s %s HTTP/%s" %d', *arguments, extra=extra)
            return
        entry = (client, method, target, http_version, status, size, seconds, details)
        [line] = self._format.lines([entry], time.strftime("[%d/%b/%Y:%H:%M:%S %z]"))
        extra |= {"client": client, "method": method, "target": text, "status": status}
        self._logger.info("%s", line, extra=extra | {"http_version": http_version})

    def flush(self, timeout: float = 0.0) -> None:
        """Do nothing: handlers keep their own buffers."""


def open_access_log(settings: WorkerSettings, loop: asyncio.AbstractEventLoop) -> AccessLog | None:
    """Return the access log that the settings ask for; lines go to standard output."""
    if not settings.access_log:
        return None
    text = settings.access_log_format

    def compiled(text: str) -> Format:
        return compile_format(text, os.environ, os.getpid())

    if settings.log_config is not None:
        return LoggedAccess(None if text is None else compiled(text))
    fd = sys.__stdout__.fileno() if sys.__stdout__ else 1
    if settings.log_format == "json":
        outlet = Outlet(fd, logs.dropped_as_json)
        return JSONAccess(loop, outlet, compiled(text or '"%(r)s" %(s)s'))
    outlet = Outlet(fd)
    if text is not None:
        return FormattedAccess(loop, outlet, compiled(text))
    if settings.request_id_header is not None:
        line = compiled(f"{DEFAULT} %(request_id)s")
        return FormattedAccess(loop, outlet, line, with_prefix=True)
    if logs.wants_colors(settings, outlet):
        return ColoredAccess(loop, outlet)
    return AccessLog(loop, outlet)
