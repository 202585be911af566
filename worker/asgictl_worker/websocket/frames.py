"""WebSocket frames: bytes in, messages out, and back (RFC 6455, RFC 7692).

This is the server's side of an open connection, after the handshake. Nothing here does I/O,
keeps time or knows ASGI; cycle.py does. Why these frames are our own and not a library's is
told in docs/decisions/websocket-engine.md.

A payload is unmasked, inflated, checked as UTF-8 and counted as it arrives, so that a
message is refused at its first wrong byte, and no more is held than the limit allows.
"""

import zlib
from codecs import getincrementaldecoder
from struct import Struct
from typing import NamedTuple

from asgictl_worker.http.response import ResponseError

try:
    from websockets.speedups import apply_mask
except ImportError:  # no C compiler where it was installed
    from websockets.utils import apply_mask


class CloseCode:
    """The codes that asgictl itself sends or reports (RFC 6455, section 7.4.1, and IANA)."""

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_DATA = 1007
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012


class Ping(NamedTuple):
    """A ping; ``pong()`` makes the answer."""

    payload: bytes


class Pong(NamedTuple):
    """A pong, asked for or not."""

    payload: bytes


class Close(NamedTuple):
    """The last event of a connection.

    ``failed`` tells a close frame of the peer, to be echoed, from a rule that the peer
    broke: then code and reason are those to close with.
    """

    code: int
    reason: str
    failed: bool = False


Event = str | bytes | Ping | Pong | Close
"""A text message, a binary message, or a control frame."""


class Deflate(NamedTuple):
    """The agreed parameters of permessage-deflate (RFC 7692, section 7.1)."""

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int = 15
    client_max_window_bits: int = 15


class InvalidClose(ResponseError):
    """The application closes with a code that no close frame can carry."""

    def __init__(self, code: object) -> None:
        self.code = code
        super().__init__(
            f"the application sent 'websocket.close' with code {code!r}; a close frame carries "
            f"1000 to 1003, 1007 to 1014, or 3000 to 4999 (RFC 6455, section 7.4)"
        )


class _Violation(Exception):
    """The peer broke a rule."""

    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason


_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FIN, _RSV1, _RSV = 0x80, 0x40, 0x70
_MASKED = 0x80
_MAX_CONTROL_PAYLOAD = 125
_CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)})

_LENGTH_16, _LENGTH_64, _CODE = Struct("!H"), Struct("!Q"), Struct("!H")
_HEAD_16, _HEAD_64 = Struct("!BBH"), Struct("!BBQ")

_EMPTY_BLOCK = b"\x00\x00\xff\xff"
"""Ends every flush of deflate; it does not travel (RFC 7692, section 7.2.1)."""
_DEFLATE_FROM = 512
"""Shorter messages, in bytes, are sent as they are: deflating one costs as much CPU as all
the rest of sending it, and what it saves is part of a packet that is sent anyway."""
_DEFLATE_LEVEL = 2
"""JSON becomes 21 % of its size in two thirds of the time in which level 6 makes it 18 %."""
_DEFLATE_MEMORY = 5
"""With a window of 12 bits: 32 KiB for a connection instead of 256 KiB."""
_UTF8 = getincrementaldecoder("utf-8")

MAX_PARTS = 1024
"""Parts of a message that are kept apart: each costs 50 bytes, however short it is."""

MAX_INFLATED = 1024 * 1024
"""Bytes of messages that are inflated at once, unless one is longer: what the network delivers
at once may become a thousand times as much."""


class Frames:
    """The frames of one connection.

    Args:
        max_size: the longest message to take, in bytes, counted after inflation.
        deflate: the parameters of permessage-deflate if it was agreed on.

    Attributes:
        is_behind: bytes are kept which may hold further messages; ``receive(b"")`` looks.
    """

    __slots__ = (
        "_buffer",
        "_compressed",
        "_decoder",
        "_deflate",
        "_deflator",
        "_ended",
        "_final",
        "_inflated",
        "_inflator",
        "_mask",
        "_max_size",
        "_message",
        "_parts",
        "_remaining",
        "_size",
        "_small_parts",
        "is_behind",
    )

    def __init__(self, max_size: int, deflate: Deflate | None = None) -> None:
        self._max_size = max_size
        self._deflate = deflate
        # Made when they are first needed: most connections are quiet for long.
        self._inflator: _Inflator | None = None
        self._deflator: _Deflator | None = None

        # The beginning of a head or of a control frame, which is short, or all that is left
        # when so much was inflated that somebody has to take it first.
        self._buffer = b""
        self.is_behind = False
        self._inflated = 0
        self._ended = False
        # The message in progress: its opcode (0 if there is none) and what came of it.
        self._message = 0
        self._compressed = False
        self._parts: list[bytes | str] = []
        self._small_parts = 0
        self._size = 0
        self._decoder = _UTF8()
        # The data frame in progress: bytes still to come, -1 between frames.
        self._remaining = -1
        self._final = False
        self._mask = b""

    # -- Receiving

    def receive(self, data: bytes) -> list[Event]:
        """Return the messages and control frames that these bytes complete.

        After a ``Close``, which is always the last event, all further bytes are ignored
        (RFC 6455, sections 1.4 and 7.1.7).
        """
        events: list[Event] = []
        if self._ended:
            return events
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        self.is_behind = False
        self._inflated = 0
        try:
            self._parse(data, events)
        except _Violation as violation:
            self._end(events, Close(violation.code, violation.reason, failed=True))
        except UnicodeDecodeError as error:
            reason = f"text is not UTF-8: {error.reason}"
            self._end(events, Close(CloseCode.INVALID_DATA, reason, failed=True))
        return events

    def _end(self, events: list[Event], close: Close) -> None:
        self._ended = True
        self.forget()
        events.append(close)

    def forget(self) -> None:
        """Let go of a message in progress: its rest will never come."""
        self._buffer = b""
        self.is_behind = False
        self._parts = []
        self._inflator = None

    def _parse(self, data: bytes, events: list[Event]) -> None:
        size = len(data)
        position = 0
        while True:
            if self._remaining >= 0:
                end = min(size, position + self._remaining)
                self._take_payload(data[position:end], events)
                if self._remaining >= 0:
                    return
                position = end

            start = position
            if self._inflated >= MAX_INFLATED and start < size:
                self.is_behind = True
                break
            if size - start < 2:
                break
            first, second = data[start], data[start + 1]
            # A head that is wrong is refused before the rest of it has arrived.
            if first != 0x81 or self._message:  # hot: a whole text message passes every check
                self._check(first, second)
            length = second - _MASKED
            if length < 0:
                raise _Violation(CloseCode.PROTOCOL_ERROR, "a frame is not masked")
            position += 2
            if length == 126:
                if size < position + 2:
                    break
                (length,) = _LENGTH_16.unpack_from(data, position)
                position += 2
            elif length == 127:
                if size < position + 8:
                    break
                (length,) = _LENGTH_64.unpack_from(data, position)
                if length >> 63:
                    raise _Violation(CloseCode.PROTOCOL_ERROR, "the length of a frame is negative")
                position += 8
            if size < position + 4:
                break
            mask = data[position : position + 4]
            position += 4
            end = position + length

            if first & 0x8:
                if size < end:
                    break
                self._take_control(first & 0xF, apply_mask(data[position:end], mask), events)
                if self._ended:
                    return
                position = end
            elif first == 0x81 and end <= size and length <= self._max_size and not self._message:
                # hot: whole text messages skip the states of those that come in pieces.
                events.append(apply_mask(data[position:end], mask).decode())
                position = end
            else:
                self._begin(first, length, mask)
            start = position
        self._buffer = data[start:]

    def _check(self, first: int, second: int) -> None:
        """Refuse a first byte that RFC 6455, sections 5.2, 5.4 and 5.5, forbids here."""
        opcode = first & 0xF
        reserved = first & _RSV
        if reserved and not (
            reserved == _RSV1 and self._deflate is not None and opcode in (_TEXT, _BINARY)
        ):
            raise _Violation(CloseCode.PROTOCOL_ERROR, "a reserved bit is set")
        if opcode in (_CLOSE, _PING, _PONG):
            if not first & _FIN:
                raise _Violation(CloseCode.PROTOCOL_ERROR, "a control frame is fragmented")
            if second & 0x7F > _MAX_CONTROL_PAYLOAD:
                raise _Violation(CloseCode.PROTOCOL_ERROR, "a control frame is too long")
        elif opcode == _CONTINUATION:
            if not self._message:
                raise _Violation(CloseCode.PROTOCOL_ERROR, "there is no message to continue")
        elif opcode not in (_TEXT, _BINARY):
            raise _Violation(CloseCode.PROTOCOL_ERROR, f"opcode {opcode} is not known")
        elif self._message:
            raise _Violation(CloseCode.PROTOCOL_ERROR, "a message begins inside another")

    def _begin(self, first: int, length: int, mask: bytes) -> None:
        """Begin a data frame."""
        opcode = first & 0xF
        if opcode:
            self._message = opcode
            self._compressed = bool(first & _RSV1)
            self._size = 0
        if not self._compressed and self._size + length > self._max_size:
            raise self._too_big()
        self._remaining = length
        self._final = bool(first & _FIN)
        self._mask = mask

    def _take_payload(self, masked: bytes, events: list[Event]) -> None:
        """Take the next bytes of the data frame in progress."""
        self._remaining -= len(masked)
        chunk = apply_mask(masked, self._mask)
        complete = False
        if self._remaining:
            turn = len(masked) & 3
            self._mask = self._mask[turn:] + self._mask[:turn]
        else:
            self._remaining = -1
            complete = self._final
        if self._compressed:
            chunk = self._inflate(chunk, complete)
        self._size += len(chunk)

        part = chunk if self._message == _BINARY else self._decoder.decode(chunk, complete)
        parts = self._parts
        if complete:
            parts.append(part)
            message = parts[0] if len(parts) == 1 else self._join(parts)
            self._parts = []
            self._small_parts = 0
            self._message = 0
            if self._compressed:
                self._inflated += self._size
            events.append(message)
        elif part:
            parts.append(part)
            self._small_parts += 1
            if self._small_parts == MAX_PARTS:
                parts[-MAX_PARTS:] = [self._join(parts[-MAX_PARTS:])]
                self._small_parts = 0

    def _join(self, parts: list[bytes | str]) -> str | bytes:
        empty = b"" if self._message == _BINARY else ""
        return empty.join(parts)  # type: ignore[arg-type]  # all are of one type

    def _inflate(self, chunk: bytes, last: bool) -> bytes:
        if self._inflator is None:
            assert self._deflate is not None
            self._inflator = _Inflator(self._deflate.client_max_window_bits)
        inflated = self._inflator.inflate(chunk, self._max_size - self._size, last)
        if inflated is None:
            raise self._too_big()
        if last and self._deflate is not None and self._deflate.client_no_context_takeover:
            self._inflator = None
        return inflated

    def _too_big(self) -> _Violation:
        return _Violation(CloseCode.TOO_BIG, f"the message is longer than {self._max_size} bytes")

    def _take_control(self, opcode: int, payload: bytes, events: list[Event]) -> None:
        if opcode == _PING:
            events.append(Ping(payload))
        elif opcode == _PONG:
            events.append(Pong(payload))
        elif not payload:
            self._end(events, Close(CloseCode.NO_STATUS, ""))
        elif len(payload) == 1:
            raise _Violation(CloseCode.PROTOCOL_ERROR, "a close frame has half a code")
        else:
            (code,) = _CODE.unpack_from(payload)
            if code not in _CLOSE_CODES:
                raise _Violation(CloseCode.PROTOCOL_ERROR, f"close code {code} is not allowed")
            self._end(events, Close(code, payload[2:].decode()))

    # -- Sending

    def text(self, text: str) -> bytes:
        """Return the frame of a text message.

        Raises:
            UnicodeEncodeError: it has half a surrogate pair, which UTF-8 cannot carry.
        """
        payload = text.encode()
        length = len(payload)
        if length < 126:  # hot: the head from a table saves a call to pack
            return _SHORT_TEXT_HEADS[length] + payload
        return self._data(_TEXT, payload)

    def binary(self, payload: bytes) -> bytes:
        """Return the frame of a binary message."""
        return self._data(_BINARY, payload)

    def _data(self, opcode: int, payload: bytes) -> bytes:
        first = _FIN | opcode
        if self._deflate is not None and len(payload) >= _DEFLATE_FROM:
            if self._deflator is None:
                self._deflator = _Deflator(self._deflate)
            payload = self._deflator.deflate(payload)
            first |= _RSV1
        return _frame(first, payload)

    def ping(self, payload: bytes) -> bytes:
        """Return a ping with at most 125 bytes."""
        return _frame(_FIN | _PING, payload)

    def pong(self, payload: bytes) -> bytes:
        """Return the answer to a ping."""
        return _frame(_FIN | _PONG, payload)

    def close(self, code: int, reason: str = "") -> bytes:
        """Return a close frame; 1005 makes one without a code.

        A reason that is too long for the frame is cut at 123 bytes: the code says what
        matters, and an application that closes with the text of an exception should not
        fail over its length.

        Raises:
            InvalidClose: no close frame may carry this code.
        """
        if code == CloseCode.NO_STATUS:
            return _frame(_FIN | _CLOSE, b"")
        if code not in _CLOSE_CODES:
            raise InvalidClose(code)
        text = reason.encode("utf-8", "replace")[: _MAX_CONTROL_PAYLOAD - 2]
        text = text.decode("utf-8", "ignore").encode()  # no half characters
        return _frame(_FIN | _CLOSE, _CODE.pack(code) + text)


_SHORT_TEXT_HEADS = [bytes((_FIN | _TEXT, length)) for length in range(126)]


def _frame(first: int, payload: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        head = bytes((first, length))
    elif length < 65536:
        head = _HEAD_16.pack(first, 126, length)
    else:
        head = _HEAD_64.pack(first, 127, length)
    return head + payload


class _Inflator:
    """Inflates one message after the other (RFC 7692, section 7.2.2)."""

    __slots__ = ("_ended", "_stream", "_window_bits")

    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits
        self._stream = zlib.decompressobj(wbits=-window_bits)
        self._ended = False  # a stream has ended inside the message in progress

    def inflate(self, chunk: bytes, limit: int, last: bool) -> bytes | None:
        """Return the inflated chunk, None if it is longer than ``limit`` bytes.

        Args:
            chunk: the next bytes of a message.
            limit: in bytes; inflation stops there, whatever the message claims to hold.
            last: it ends a message.
        """
        if last:
            chunk += _EMPTY_BLOCK
        try:
            inflated = self._stream.decompress(chunk, limit + 1)
            if self._stream.eof and len(inflated) <= limit:
                # A block marked final (section 7.2.3.4): what follows is a new stream. One
                # a message will do, for each costs memory and time, however short it is.
                rest = self._stream.unused_data
                if not self._ended:
                    self._stream = zlib.decompressobj(wbits=-self._window_bits)
                    inflated += self._stream.decompress(rest, limit + 1 - len(inflated))
                if self._ended or self._stream.eof:
                    raise _Violation(CloseCode.INVALID_DATA, "deflate ends twice in a message")
                self._ended = True
        except zlib.error:
            raise _Violation(CloseCode.INVALID_DATA, "the message cannot be inflated") from None
        if last:
            self._ended = False
        return None if len(inflated) > limit else inflated


class _Deflator:
    """Deflates one message after the other (RFC 7692, section 7.2.1)."""

    __slots__ = ("_fresh", "_stream", "_window_bits")

    def __init__(self, deflate: Deflate) -> None:
        self._window_bits = deflate.server_max_window_bits
        self._fresh = deflate.server_no_context_takeover
        self._stream = self._new_stream()

    def _new_stream(self) -> "zlib._Compress":
        return zlib.compressobj(
            level=_DEFLATE_LEVEL, wbits=-self._window_bits, memLevel=_DEFLATE_MEMORY
        )

    def deflate(self, payload: bytes) -> bytes:
        """Return the deflated payload of a message."""
        if self._fresh:
            self._stream = self._new_stream()
        deflated = self._stream.compress(payload) + self._stream.flush(zlib.Z_SYNC_FLUSH)
        return deflated[: -len(_EMPTY_BLOCK)]
