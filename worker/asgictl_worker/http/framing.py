"""Where requests and their bodies begin and end in a stream of bytes.

The libraries that read heads differ in what they forgive: folded lines, a bare line feed, two
spaces, odd chunk sizes. So that it does not matter which one is installed, or how the network
cut the bytes, a head is looked for, measured and checked here, and a library is only given a
head that is complete and clean (``parse_head()``). Bodies are cut here too.

Nothing is read ahead: after each request the parser stops until ``proceed()``, which keeps
pipelined requests in order, and leaves what follows an upgrade untouched.

Sources: RFC 9112, sections 2.2, 3, 5 (heads), 6 (bodies) and 7 (chunks).
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from asgictl_worker import asgi
from asgictl_worker.http.request import METHODS, BadRequest, Request, familiar_request
from asgictl_worker.settings import WorkerSettings

MAX_KNOWN_HEAD = 4096
"""Bytes of the longest head that a connection remembers."""

MAX_KNOWN_LINES = 1024
"""Request lines that a worker remembers, none of them longer than ``MAX_KNOWN_LINE`` bytes."""

MAX_KNOWN_LINE = 256

MAX_SHARED_HEADS = 128
"""Heads that a worker remembers since connections begin with them, of ``MAX_SHARED_HEAD`` bytes
at most."""

MAX_SHARED_HEAD = 1024

MAX_SEEN = 1024
"""Heads of which it remembers that they were here once."""

MAX_CHUNK_LINE = 1024
"""Bytes of a chunk's size and extensions; nobody is known to use extensions."""

HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILERS, ENDED, FAILED = range(8)
"""What the next byte belongs to; after ENDED it waits, after FAILED it is lost."""

_TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# RFC 9110, section 5.5: what the value of a field is made of. A clean head is this text and
# line ends. Tabs are legal in values, but so rare that heads with tabs take the slower way.
_TEXT = bytes(code for code in range(0x20, 0x100) if code != 0x7F)
_TEXT_AND_TAB = _TEXT + b"\t"
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
_NEWER_VERSION = re.compile(rb"HTTP/1\.[2-9]")
# RFC 9112, section 7.1. 15 digits are more bytes than a connection can ever carry.
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")

_VERSIONS = {b"HTTP/1.1": "1.1", b"HTTP/1.0": "1.0"}
_METHODS = {method.encode("ascii"): method for method in METHODS.split()}


_KNOWN_LINES: dict[bytes, Request] = {}
"""Requests whose line is good. When it is full it is emptied: popular lines return at once."""


_NO_REQUEST = Request("GET", b"/", "1.0", [])


class SharedHeads:
    """Heads that connections begin with, again and again.

    Attributes:
        requests: what was read in them.
    """

    __slots__ = ("_seen", "requests")

    def __init__(self) -> None:
        self.requests: dict[bytes, Request] = {}
        self._seen: set[int] = set()

    def see(self, head: bytes, request: Request) -> None:
        """Keep a head that is here for the second time; most are never seen again."""
        if hash(head) not in self._seen:
            if len(self._seen) >= MAX_SEEN:
                self._seen.clear()
            self._seen.add(hash(head))
        else:
            if len(self.requests) >= MAX_SHARED_HEADS:
                self.requests.clear()
            self.requests[head] = request


class Sink(Protocol):
    """Where a parser puts what it finds, by plain calls."""

    def request_received(self, request: Request, body: bytes = b"") -> None:
        """Take a head; a body follows if ``request.has_body``.

        Args:
            request: the head.
            body: what of the body came with it, and is not announced again; all of it if the
                state of the parser is ENDED.
        """

    def body_received(self, data: bytes) -> None:
        """Take a part of the body, never an empty one."""

    def body_ended(self) -> None:
        """Know that the body is complete; not called where there is none."""

    def bytes_ended(self) -> None:
        """Know that no more of a body is here for now."""

    def request_refused(self, error: BadRequest) -> None:
        """Answer with an error: what follows cannot be understood."""


class Parser(ABC):
    """Cuts a stream of bytes into requests; ``parse_head()`` is the library's part.

    Args:
        sink: gets what is found.
        settings: the limits.
        shared: heads that other connections with these settings have begun with.

    Attributes:
        buffer: bytes that wait for ``proceed()``, or for the rest of a line or a head.
        is_advancing: a call that uses up the buffer is under way.
        known_head: the bytes of ``known_request``; whoever gets the same again as a whole, in
            the state HEAD and with nothing in the buffer, can take that instead of ``feed()``.
        known_request: the last request that asked nothing of the connection.
        state: what the next byte belongs to.
    """

    __slots__ = (
        "_body_size",
        "_known_fields",
        "_known_fields_of",
        "_left",
        "_max_body",
        "_max_field",
        "_max_fields",
        "_max_head",
        "_max_line",
        "_scanned",
        "_shared",
        "_sink",
        "_trailers",
        "buffer",
        "is_advancing",
        "known_head",
        "known_request",
        "state",
    )

    def __init__(
        self,
        sink: Sink,
        settings: WorkerSettings,
        shared: "SharedHeads | None" = None,
    ) -> None:
        self._sink = sink
        self._shared = shared or SharedHeads()
        self._max_line = settings.limit_request_line
        self._max_field = settings.limit_request_field_size
        self._max_fields = settings.limit_request_fields
        self._max_head = min(
            settings.limit_request_head,
            self._max_line + self._max_fields * (self._max_field + 2) + 6,
        )
        self._max_body = settings.limit_request_body
        self.buffer = bytearray()
        self._scanned = 0
        self._left = 0
        self.known_head = self._known_fields = b""
        self.known_request = self._known_fields_of = _NO_REQUEST
        self._body_size = 0
        self._trailers = 0
        self.is_advancing = False
        self.state = HEAD

    @abstractmethod
    def parse_head(self, head: bytes, method: str, target: bytes, http_version: str) -> Request:
        """Return the request in a complete and clean head.

        Raises:
            BadRequest: a rule is broken, or the library does not understand the head.
        """

    def forget(self) -> None:
        """Let go of what would make a repeated request cheaper."""
        self.known_head = self._known_fields = b""
        self.known_request = self._known_fields_of = _NO_REQUEST

    def close(self) -> None:
        """Let go of the sink, which holds this parser.

        Only the garbage collector would end that circle: for connections of one request each
        it took a sixth of the time.
        """
        del self._sink
        self.buffer.clear()

    def feed(self, data: bytes) -> None:
        """Take bytes from the peer and tell the sink what they complete."""
        if not self.buffer:
            # hot: nearly every request comes in one piece; its head is not copied then, and
            # its body once
            if self.state == HEAD:
                known = self.known_head
                if known and data.startswith(known):
                    request = self.known_request
                    self._expect_body(request)
                    if len(data) == len(known):
                        self._sink.request_received(request)
                    else:
                        self._feed_rest(request, data[len(known) :])
                    return
                end = data.find(b"\r\n\r\n") + 4
                if end > 4 and data[0] in _TOKEN_BYTES:
                    try:
                        request = self._read_head(data[:end])
                    except BadRequest as error:
                        self._refuse(error, data)
                    else:
                        if end == len(data):
                            self._sink.request_received(request)
                        else:
                            self._feed_rest(request, data[end:])
                    return
            elif self.state == LENGTH and len(data) <= self._left:
                self._take_body(data)
                return
        if self.state != FAILED:
            self.buffer += data
            self._advance()

    def _feed_rest(self, request: Request, rest: bytes) -> None:
        """Take what came behind a head in one piece with it."""
        if self.state == LENGTH and len(rest) <= self._left:
            self._left -= len(rest)
            if not self._left:
                self.state = ENDED
            self._sink.request_received(request, rest)
        else:
            self.buffer += rest
            self._advance(request)

    def proceed(self) -> None:
        """Go on with the next request."""
        assert self.state == ENDED, "the request has not ended"
        self.state = HEAD
        if self.buffer:
            self._advance()

    def take_rest(self) -> bytes:
        """Return, and forget, what was received behind the request."""
        rest = bytes(self.buffer)
        self.buffer.clear()
        return rest

    def _advance(self, request: Request | None = None) -> None:
        """Use up the buffer, as far as it goes or to the end of a request.

        Args:
            request: its head was read already.
        """
        self.is_advancing = True
        try:
            if request is not None:
                self._sink.request_received(request)
            while self.buffer and _STEPS[self.state](self):
                pass
            self._sink.bytes_ended()
        except BadRequest as error:
            self._refuse(error)
        finally:
            self.is_advancing = False

    def stop(self) -> None:
        """Look at nothing more: a transport that closes may still hand over what it has."""
        self.state = FAILED
        self.buffer.clear()

    def _refuse(self, error: BadRequest, head: bytes = b"") -> None:
        error.is_for_head = head.startswith(b"HEAD ")
        self.stop()
        self._sink.request_refused(error)

    def _wait(self) -> bool:
        return False

    # -- Heads

    def _find_head(self) -> bool:
        buffer = self.buffer
        while buffer.startswith(b"\r\n"):
            # RFC 9112, section 2.2: old clients end a body with one line end too many.
            del buffer[:2]
            self._scanned = 0
        if not buffer or buffer == b"\r":
            return False
        if buffer[0] not in _TOKEN_BYTES:
            # Somebody speaks TLS, say, and would wait for an answer until the time-out.
            raise BadRequest(400, "the request does not begin with a method")
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3))
        if end >= 0:
            head = bytes(buffer[: end + 4])
            del buffer[: end + 4]
            self._scanned = 0
            try:
                request = self._read_head(head)
            except BadRequest as error:
                self._refuse(error, head)
                return False
            self._sink.request_received(request)
            return True
        line_feed = buffer.find(b"\n", 0, self._max_line + 2)
        if line_feed >= 0 and buffer[line_feed - 1 : line_feed] != b"\r":
            # Somebody ends lines like this, and would wait for an answer until the time-out.
            raise _bare_line_feed()
        self._scanned = len(buffer)
        if len(buffer) > self._max_line + 1 and buffer.find(b"\r\n", 0, self._max_line + 2) < 0:
            raise BadRequest(414, "the request line is too long")
        if len(buffer) > self._max_head:
            raise _long_head()
        return False

    def _read_head(self, head: bytes) -> Request:
        """Return the request in one complete head, and expect its body.

        Raises:
            BadRequest: a rule or a limit is broken.
        """
        # hot: popular lines return, and clients repeat their headers on a connection, from
        # probes to browsers. Knowing both saves reading and checking them: half the work.
        line, _, fields = head.partition(b"\r\n")
        if fields == self._known_fields:
            known = _KNOWN_LINES.get(line)
            if known is not None:
                request: Request = familiar_request(known, self._known_fields_of)
                self.known_head = head
                self.known_request = request
                self._expect_body(request)
                return request
        # hot: and some open a connection for each of many equal requests.
        is_first = not self._known_fields and len(head) <= MAX_SHARED_HEAD
        if is_first and head in self._shared.requests:
            request = self._shared.requests[head]
            if request.is_repeatable:
                request = familiar_request(request, request)
                self._remember(head, line, fields, request)
            self._expect_body(request)
            return request
        sent = head
        self._check_head(head, line, fields)
        words = line.split(b" ")
        if len(words) != 3:
            raise BadRequest(400, "the request line is not method, target and version")
        name, target, version = words
        if _NEWER_VERSION.fullmatch(version):
            # RFC 9110, section 2.5: it is served as the newest version that is known.
            version = b"HTTP/1.1"
            head = b"%b %b HTTP/1.1\r\n%b" % (name, target, fields)
        method = _METHODS.get(name)
        http_version = _VERSIONS.get(version)
        if method is None or http_version is None:
            raise _refused_line(name, version)
        if not target.isascii():
            raise BadRequest(400, "the target has a character that is not allowed")
        request = self.parse_head(head, method, target, http_version)
        # With a URL as the target, the headers are not those that were sent.
        if request.is_plain and target.startswith(b"/"):
            request.is_repeatable = True
            self._remember(head, line, fields, request)
        self._expect_body(request)
        if is_first and not request.forwarded:
            # Who believes its proxy changes the Host header of the request.
            self._shared.see(sent, request)
        return request

    def _expect_body(self, request: Request) -> None:
        if not request.has_body:
            self.state = ENDED
        elif request.chunked:
            self.state = CHUNK_SIZE
            self._body_size = 0
        else:
            length = request.content_length
            assert length is not None
            if self._max_body is not None and length > self._max_body:
                raise BadRequest(413, "the body is too long")
            self._left = length
            self.state = LENGTH

    def _remember(self, head: bytes, line: bytes, fields: bytes, request: Request) -> None:
        """Keep what will be known again: lines for all connections, the rest for this one."""
        if len(head) <= MAX_KNOWN_HEAD:
            self._known_fields = fields
            self._known_fields_of = request
            self.known_head = head
            self.known_request = request
        if len(line) <= MAX_KNOWN_LINE and line not in _KNOWN_LINES:
            if len(_KNOWN_LINES) >= MAX_KNOWN_LINES:
                _KNOWN_LINES.clear()
            _KNOWN_LINES[line] = Request(request.method, request.target, "1.1", [(b"host", b"")])

    def _check_head(self, head: bytes, line: bytes, fields: bytes) -> None:
        """Check the limits, and that every byte of a head may be where it is."""
        ends = head.count(b"\r\n")
        if line.find(b"\n", 0, self._max_line + 2) >= 0:
            raise _bare_line_feed()
        if len(line) > self._max_line:
            raise BadRequest(414, "the request line is too long")
        if len(head) > self._max_head:
            raise _long_head()
        if ends - 2 > self._max_fields:
            raise BadRequest(431, "there are too many header fields")
        if len(fields) > self._max_field and _longest(fields) > self._max_field:
            raise BadRequest(431, "a header field is too long")
        # hot: passes in C; a regular expression would be eight times slower. If nothing but
        # as many CR and LF are left as there are CRLF, none of them stands alone.
        if head.translate(None, _TEXT) != b"\r\n" * ends:
            _check_text(head, ends)
        if head.find(b"\n ") >= 0:
            raise BadRequest(400, "a header is folded over several lines")

    # -- Bodies

    def _read_length(self) -> bool:
        self._take_body(self._cut(self._left))
        return True

    def _take_body(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left:
            self._sink.body_received(data)
        else:
            self.state = ENDED
            self._sink.body_received(data)
            self._sink.body_ended()

    def _read_chunk_size(self) -> bool:
        line = self._cut_line(MAX_CHUNK_LINE, BadRequest(400, "the size of a chunk is too long"))
        if line is None:
            return False
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise BadRequest(400, "the size of a chunk is not a number")
        self._left = int(match[1], 16)
        self._body_size += self._left
        if self._max_body is not None and self._body_size > self._max_body:
            raise BadRequest(413, "the body is too long")
        self._trailers = 0
        self.state = CHUNK_DATA if self._left else TRAILERS
        return True

    def _read_chunk_data(self) -> bool:
        data = self._cut(self._left)
        self._left -= len(data)
        if not self._left:
            self.state = CHUNK_END
        self._sink.body_received(data)
        return True

    def _read_chunk_end(self) -> bool:
        if not b"\r\n".startswith(self.buffer[:2]):
            raise BadRequest(400, "a chunk is longer than its size")
        if len(self.buffer) < 2:
            return False
        del self.buffer[:2]
        self.state = CHUNK_SIZE
        return True

    def _read_trailer(self) -> bool:
        """Check one trailer field and drop it: ASGI has no place for it."""
        line = self._cut_line(self._max_field, BadRequest(431, "a trailer field is too long"))
        if line is None:
            return False
        if not line:
            self.state = ENDED
            self._sink.body_ended()
            return True
        self._trailers += 1
        if self._trailers > self._max_fields:
            raise BadRequest(431, "there are too many trailer fields")
        if not _FIELD.fullmatch(line):
            raise BadRequest(400, "a trailer field is malformed")
        return True

    def _cut(self, size: int) -> bytes:
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def _cut_line(self, limit: int, too_long: BadRequest) -> bytes | None:
        """Return a line without its end, or None until it is complete."""
        end = self.buffer.find(b"\n", 0, limit + 2)
        if end < 0:
            if len(self.buffer) > limit + 1:
                raise too_long
            return None
        line = bytes(self.buffer[: end + 1])
        if line[-2:] != b"\r\n":
            raise _bare_line_feed()
        del self.buffer[: end + 1]
        return line[:-2]


_STEPS: tuple[Callable[[Parser], bool], ...] = (
    Parser._find_head,
    Parser._read_length,
    Parser._read_chunk_size,
    Parser._read_chunk_data,
    Parser._read_chunk_end,
    Parser._read_trailer,
    Parser._wait,
    Parser._wait,
)
"""By state; each returns whether there may be more to do."""


def split_fields(head: bytes) -> asgi.Headers:
    """Return the fields of a clean head, names in lower case, values trimmed.

    Raises:
        BadRequest: a line is not a name, a colon and a value (RFC 9112, section 5.1).
    """
    fields = []
    for line in head[:-4].split(b"\r\n")[1:]:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise BadRequest(400, "a header is not a name, a colon and a value")
        name, value = match.groups()
        fields.append((name.lower(), value.strip(b" \t")))
    return fields


def read_by_rules(head: bytes, method: str, target: bytes, http_version: str) -> Request:
    """Return the request in a clean head that a library has refused.

    Every library would give another status or reason, and some refuse what is right, such as
    tabs around a transfer coding. So the rules are asked, and nobody else.

    Raises:
        BadRequest: a rule is broken.
    """
    return Request(method, target, http_version, split_fields(head))


def _longest(fields: bytes) -> int:
    return max(map(len, fields.split(b"\r\n")))


def _check_text(head: bytes, ends: int) -> None:
    """Check the characters of a head which has tabs, or illegal ones."""
    if head.translate(None, _TEXT_AND_TAB) != b"\r\n" * ends:
        raise BadRequest(400, "the head has a character that is not allowed")
    if head.find(b"\t", 0, head.find(b"\r\n")) >= 0:
        raise BadRequest(400, "the request line has a tab")
    if head.find(b"\n\t") >= 0:
        # RFC 9112, section 5.2
        raise BadRequest(400, "a header is folded over several lines")


def _bare_line_feed() -> BadRequest:
    return BadRequest(400, "a line ends without a carriage return")


def _long_head() -> BadRequest:
    return BadRequest(431, "the head of the request is too long")


def _refused_line(name: bytes, version: bytes) -> BadRequest:
    if not name or name.translate(None, _TOKEN_BYTES):
        return BadRequest(400, "the method is not a token")
    if not _VERSION.fullmatch(version):
        return BadRequest(400, "the version is not HTTP/1.1 or HTTP/1.0")
    if version not in _VERSIONS:
        return BadRequest(505, "the version is not HTTP/1.1 or HTTP/1.0")
    return BadRequest(501, "the method is not known")
