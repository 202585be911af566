"""Write responses as HTTP/1.1 (RFC 9112): the one place that knows how they look on the wire.

Nothing here does I/O: a ``Writer`` returns what is to be written. There is one per connection,
since its responses follow each other.
"""

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from asgictl_worker.http.request import Request
from asgictl_worker.http.response import BodyLengthMismatch, InvalidResponse
from asgictl_worker.settings import WorkerSettings, parse_header

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

LAST_CHUNK = b"0\r\n"
"""Trailers may follow, and then an empty line (RFC 9112, section 7.1)."""

EVENT_STREAM = b"text/event-stream"

LARGE = 64 * 1024
"""Parts of a body above this many bytes are not copied to stand behind the head."""

STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii")
    for status in HTTPStatus
    if status >= 200
}

_PLAIN, _LENGTH, _CODING, _CONNECTION, _DATE, _SERVER = range(6)

# How the names of response headers are treated: the six that mean something here, those that
# are usual, and what else applications have been seen to send, up to a bound.
_KINDS: dict[bytes, int] = dict.fromkeys(
    b"accept-ranges access-control-allow-credentials access-control-allow-headers "
    b"access-control-allow-methods access-control-allow-origin access-control-expose-headers "
    b"access-control-max-age age allow cache-control content-disposition content-encoding "
    b"content-language content-location content-range content-security-policy content-type etag "
    b"expires last-modified link location referrer-policy retry-after set-cookie "
    b"strict-transport-security vary via www-authenticate x-content-type-options "
    b"x-frame-options x-request-id".split(),
    _PLAIN,
) | {
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"date": _DATE,
    b"server": _SERVER,
}
_MAX_KINDS = 1024

_NOTHING = object()
"""Equal to no headers, not even to those that are None by mistake."""

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_VALUE = re.compile(rb"[\x00\r\n]")

_NO_TRAILERS = frozenset(
    b"age authorization cache-control content-encoding content-range content-type "
    b"expires host location max-forwards pragma proxy-authenticate proxy-authorization range "
    b"retry-after set-cookie te trailer vary warning www-authenticate".split()
)
"""What must be known before the body, and those that frame it, routed or authenticate (RFC 9110,
section 6.5.1): who reads trailers as headers would believe them. See also ``_KINDS``."""


class Clock(Protocol):
    """Where the Date header comes from."""

    date: bytes
    """The whole line, with its end."""


class Writer:
    """Writes one response after the other.

    Args:
        clock: knows the date.
        defaults: the headers that every response has.

    Attributes:
        bodiless: the current response has no body, whatever the application sends.
        headers: those of the application in the current response.
        keep_alive: whether the connection can be used again after this response.
        size: bytes of the body written so far, for the access log.
        status: of the current response.
    """

    __slots__ = (
        "_chunked",
        "_clock",
        "_defaults",
        "_head",
        "_is_old",
        "_is_usual",
        "_known_date",
        "_known_head",
        "_known_headers",
        "_known_length",
        "_left",
        "bodiless",
        "headers",
        "keep_alive",
        "size",
        "status",
    )

    def __init__(self, clock: Clock, defaults: "DefaultFields") -> None:
        self._clock = clock
        self._defaults = defaults
        self._head = b""
        self._known_date = self._known_head = b""
        self._known_headers: object = _NOTHING
        self._known_length: int | None = None
        self.headers: Sequence[tuple[bytes, bytes]] = ()
        self.status = 0

    def start(
        self,
        request: Request,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        keep_alive: bool,
    ) -> None:
        """Take status and headers, and keep them until the first part of the body.

        Raises:
            InvalidResponse: they cannot be put on the wire; nothing is changed then.
        """
        date = self._clock.date
        # hot: applications repeat themselves. To compare takes a tenth of the time that it
        # takes to check the headers and to join them.
        if headers == self._known_headers and status == self.status and date is self._known_date:
            self._head = self._known_head
            self._left = self._known_length
        else:
            line = STATUS_LINES.get(status) or _status_line(status)
            fields = self._defaults.last
            # hot: the first response of a connection is often that of another one
            if headers != fields.headers or status == 204:
                fields = self._defaults.fields(headers, status)
            self._head = line + (date if fields.date else b"") + fields.lines
            self._left = fields.length
            self.headers = fields.headers
            self._known_headers = _NOTHING
            if fields.close:
                keep_alive = False
            if fields.are_plain:
                self._known_date = date
                self._known_head = self._head
                self._known_headers = fields.headers
                self._known_length = fields.length
            self.status = status
        self.keep_alive = keep_alive
        self.size = 0
        self._chunked = False
        if request.is_usual and status != 304 and status != 204:
            self._is_old = self.bodiless = False
            self._is_usual = keep_alive
        else:
            self._is_old = request.http_version == "1.0"
            self.bodiless = request.method == "HEAD" or status == 304 or status == 204
            self._is_usual = False

    def forget(self) -> None:
        """Let go of what would make a repeated response cheaper."""
        self._known_head = b""
        self._known_headers = _NOTHING
        self.headers = ()

    def declare(self, length: int) -> None:
        """Set the length of the body, unless the application did so itself."""
        if self._left is None and self.status != 204:
            self._left = length
            self._head += b"content-length: %d\r\n" % length

    def body(self, data: bytes, more: bool) -> bytes | tuple[bytes, ...]:
        """Return what is to be written for a part of the body: bytes, or several of them.

        Args:
            data: the part; may be empty.
            more: further parts follow.

        Raises:
            BodyLengthMismatch: more or less than promised; nothing is to be written then.
        """
        head = self._head
        size = len(data)
        if more:
            # hot: one chunk after the other
            if self._chunked and size and size < LARGE:
                self.size += size
                return b"%x\r\n%b\r\n" % (size, data)
        elif self._is_usual and head and size < LARGE:
            # hot: as frame(), for a whole response with nothing to be said about the connection
            left = self._left
            if left is None:
                self._head = b""
                self.size = size
                return b"%bcontent-length: %d\r\n\r\n%b" % (head, size, data)
            if size == left:
                self._head = b""
                self.size = size
                return b"\r\n".join((head, data))
        head, end = self.frame(size, more)
        if self.bodiless:
            return head
        return head + data + end if size < LARGE else (head, data, end)

    def frame(self, size: int, more: bool) -> tuple[bytes, bytes]:
        """Return what is to be written before, and behind, a part of the body.

        Args:
            size: bytes of the part; they are not to be written if ``bodiless``.
            more: further parts follow.

        Raises:
            BodyLengthMismatch: more or less than promised; nothing is to be written then.
        """
        head = self._head
        left = self._left
        if self.bodiless:
            size = 0
        elif left is not None:
            if size != left and (size > left or not more):
                raise BodyLengthMismatch(self.size + left, self.size + size)
            self._left = left - size
        elif head:
            if not more:
                head += b"content-length: %d\r\n" % size
                self._left = 0
            elif self._is_old:
                # RFC 9112, section 6.3: the end of the connection is the end of the body.
                self.keep_alive = False
            else:
                head += b"transfer-encoding: chunked\r\n"
                self._chunked = True
        if head:
            self._head = b""
            if not self.keep_alive:
                head += b"connection: close\r\n\r\n"
            elif self._is_old:
                head += b"connection: keep-alive\r\n\r\n"
            else:
                head += b"\r\n"
        self.size += size
        if not self._chunked:
            return head, b""
        end = b"" if more else LAST_CHUNK + b"\r\n"
        if size:
            head += b"%x\r\n" % size
            end = b"\r\n" + end
        return head, end

    def end(self, trailers: bytes) -> bytes:
        """Return what is to be written behind a body of which more was announced.

        Args:
            trailers: lines as ``trailer_lines()`` returns them; where the framing of the
                response has no place for them they are dropped (RFC 9110, section 6.5.2).

        Raises:
            BodyLengthMismatch: less than promised was sent; nothing is to be written then.
        """
        if self._left and not self.bodiless:
            raise BodyLengthMismatch(self.size + self._left, self.size)
        return b"%b%b\r\n" % (LAST_CHUNK, trailers) if self._chunked else b""

    @property
    def is_event_stream(self) -> bool:
        """Whether the current response is one of server-sent events."""
        return any(
            name.lower() == b"content-type" and value.lower().startswith(EVENT_STREAM)
            for name, value in self.headers
        )

    @property
    def begun(self) -> bool:
        """Whether the head was handed out: from then on the status cannot be changed."""
        return not self._head

    @property
    def is_whole(self) -> bool:
        """Whether the client has the whole response, though more of the body was announced."""
        return not self._head and not self._chunked and (self.bodiless or self._left == 0)

    @property
    def ends_visibly(self) -> bool:
        """Whether the client can tell a response that was cut from one that is complete."""
        return self._chunked or self._left is not None


class DefaultFields:
    """The headers that every response has, made once from the settings.

    Attributes:
        has_date: whether responses have a Date header.
        last: the last plain headers of any response.
    """

    __slots__ = ("_others", "_server", "has_date", "last")

    def __init__(self, settings: WorkerSettings) -> None:
        fields = [parse_header(text) for text in settings.header]
        names = {name for name, _ in fields}
        self.has_date = settings.date_header and b"date" not in names
        self._server = b""
        if settings.server_header and b"server" not in names:
            self._server = b"server: asgictl\r\n"
        self._others = b"".join(b"%b: %b\r\n" % field for field in fields)
        self.last = self.fields([], 200)

    def fields(self, headers: Iterable[tuple[bytes, bytes]], status: int) -> "Fields":
        """Return the checked headers of a response.

        Raises:
            InvalidResponse: one of them cannot be put on the wire.
        """
        server = self._server
        has_date = self.has_date
        are_plain = has_date
        close = False
        length: int | None = None
        kept: list[tuple[bytes, bytes]] = []
        parts: list[bytes] = []
        try:
            for name, value in headers:
                kind = _KINDS.get(name)  # hot: validates and classifies in one look-up
                if kind is None:
                    kind = _learn(name)
                if kind != _PLAIN:
                    if kind == _LENGTH:
                        length = _length(value, length)
                        if status == 204:
                            are_plain = False
                            continue  # RFC 9110, section 8.6
                    else:
                        are_plain = False
                        if kind == _CODING:
                            continue  # ours to choose
                        if kind == _CONNECTION:
                            option = value.lower()
                            if option == b"close":
                                close = True
                            if option in (b"close", b"keep-alive"):
                                continue  # said later, according to what happens
                        elif kind == _DATE:
                            has_date = False
                        else:
                            server = b""
                if not isinstance(value, bytes):
                    raise TypeError(value)
                kept.append((name, value))
                parts += name, b": ", value, b"\r\n"
            lines = b"".join(parts)
        except (TypeError, ValueError, AttributeError):
            raise _invalid_headers(headers) from None
        # hot: three scans over all lines together, instead of three for each
        count = len(kept)
        if lines.count(b"\n") != count or lines.count(b"\r") != count or lines.find(0) >= 0:
            raise _invalid_headers(headers)
        fields = Fields(kept, server + self._others + lines, length, has_date, close, are_plain)
        if are_plain:
            self.last = fields
        return fields


class Fields(NamedTuple):
    """The headers of a response, checked.

    Attributes:
        headers: those of the application that go out.
        lines: all of them as they go out, but the date and what the framing adds.
        length: the declared length of the body, or None.
        date: the date is to be added.
        close: the application wants the connection closed.
        are_plain: the lines are the same whenever the headers are.
    """

    headers: list[tuple[bytes, bytes]]
    lines: bytes
    length: int | None
    date: bool
    close: bool
    are_plain: bool


def trailer_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the checked lines of trailers (RFC 9110, section 6.5).

    Raises:
        InvalidResponse: one of them cannot be put on the wire, or must not stand there.
    """
    pairs = _pairs(headers)
    for pair in pairs:
        name = pair[0].lower()
        if _KINDS.get(name, _PLAIN) != _PLAIN or name in _NO_TRAILERS:
            raise InvalidResponse("trailer", pair, "it may only stand in the headers")
    return b"".join(b"%b: %b\r\n" % (name, value) for name, value in pairs)


def early_hint(links: Iterable[bytes]) -> bytes:
    """Return a response 103 with these ``Link`` headers (RFC 8297).

    Raises:
        InvalidResponse: one of them cannot be put on the wire.
    """
    lines = [b"link: %b\r\n" % link for _, link in _pairs((b"link", link) for link in links)]
    return b"HTTP/1.1 103 Early Hints\r\n%b\r\n" % b"".join(lines)


def _pairs(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return headers as a list of pairs which can be put on the wire.

    Raises:
        InvalidResponse: one of them cannot.
    """
    try:
        pairs = list(headers)
    except TypeError:
        raise _invalid_headers(headers) from None
    try:
        for name, value in pairs:
            _learn(name)
            if _BAD_VALUE.search(value):
                raise ValueError(value)
    except (TypeError, ValueError):
        raise _invalid_headers(pairs) from None
    return pairs


def _status_line(status: object) -> bytes:
    """Return the line for a status without a name; the phrase may be empty (section 4)."""
    if not isinstance(status, int) or not 200 <= status <= 999:
        raise InvalidResponse("status", status, "it must be an integer from 200 to 999")
    return b"HTTP/1.1 %d \r\n" % status


def _learn(name: object) -> int:
    """Classify a name that is not known yet, and remember it.

    Raises:
        ValueError: it is not the name of a header.
    """
    if not isinstance(name, bytes) or not _NAME.fullmatch(name):
        raise ValueError(name)
    kind = _KINDS.get(name.lower(), _PLAIN)
    if len(_KINDS) < _MAX_KINDS:
        _KINDS[name] = kind
    return kind


def _length(value: bytes, known: int | None) -> int:
    if not value.isdigit() or known is not None:
        raise ValueError(value)
    return int(value)


def _invalid_headers(headers: Iterable[Any]) -> InvalidResponse:
    """Return the error for the first header that is wrong."""
    lengths = 0
    try:
        items = list(headers)
    except TypeError:
        return InvalidResponse("headers", headers, "they must be a list of (name, value)")
    for item in items:
        try:
            name, value = item
        except (TypeError, ValueError):
            return InvalidResponse("header", item, "it must be (name, value)")
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            return InvalidResponse("header", item, "name and value must be bytes")
        if not _NAME.fullmatch(name):
            return InvalidResponse("header", item, "the name has a character that is not allowed")
        if _BAD_VALUE.search(value):
            return InvalidResponse("header", item, "the value has a line end or a NUL")
        if name.lower() == b"content-length":
            lengths += 1
            if lengths > 1:
                return InvalidResponse("header", item, "there is one of that name already")
            if not value.isdigit():
                return InvalidResponse("header", item, "the value is not a length")
    return InvalidResponse("headers", headers, "they can be iterated only once, or change")
