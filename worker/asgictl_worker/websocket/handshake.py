"""The opening handshake: from an HTTP request to an open WebSocket, or to a refusal.

Sources: RFC 6455, section 4.2 (the server's side); RFC 7692, section 7 (permessage-deflate).
Nothing here does I/O.
"""

import binascii
import re
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha1
from typing import NamedTuple

from asgictl_worker.http.http1 import Writer
from asgictl_worker.http.request import BadRequest, Request
from asgictl_worker.http.response import ResponseError
from asgictl_worker.websocket.frames import Deflate

VERSION = b"13"

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_SIZE = 16

_WINDOW_BITS = 12
"""Windows of 4 KiB. Those of 32 KiB would cost every connection eight times the memory."""
_MIN_WINDOW_BITS, _MAX_WINDOW_BITS = 8, 15
_MIN_OWN_WINDOW_BITS = 9
"""zlib cannot deflate with 8."""

# RFC 6455, section 9.1: names, each with parameters; a quoted value is a token in quotes.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_ITEM = re.compile(rb'[ \t]*(%b)(?:[ \t]*=[ \t]*(?:(%b)|"(%b)"))?[ \t]*([;,]|$)' % ((_TOKEN,) * 3))

_RESERVED = frozenset(
    {
        b"connection",
        b"content-length",
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"transfer-encoding",
        b"upgrade",
    }
)


class BadHandshake(BadRequest):
    """The request asks for a WebSocket in a way that cannot be granted.

    Attributes:
        headers: to send with the refusal.
    """

    def __init__(self, status: int, reason: str, *headers: tuple[bytes, bytes]) -> None:
        self.headers = headers
        super().__init__(status, reason)


class ReservedHeader(ResponseError):
    """The application accepts with a header that belongs to the handshake itself."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        super().__init__(
            f"the application sent 'websocket.accept' with the header {name.decode('latin-1')!r}; "
            f"leave it out, the server adds it"
        )


class Handshake(NamedTuple):
    """What was agreed on."""

    accept: bytes
    """The value of ``Sec-WebSocket-Accept``."""
    deflate: Deflate | None
    extensions: bytes
    """The value of ``Sec-WebSocket-Extensions``, empty if there is nothing to say."""


def negotiate(request: Request, *, per_message_deflate: bool) -> Handshake:
    """Return the server's side of the agreement (RFC 6455, section 4.2.2).

    Args:
        request: one whose ``upgrade`` is ``websocket``.
        per_message_deflate: agree on compression if the client offers it.

    Raises:
        BadHandshake: with 426 if the client speaks another version, otherwise with 400.
    """
    keys, versions, extensions = [], [], []
    for name, value in request.headers:
        if name == b"sec-websocket-key":
            keys.append(value)
        elif name == b"sec-websocket-version":
            versions.append(value)
        elif name == b"sec-websocket-extensions":
            extensions.append(value)
    if request.method != "GET":
        raise BadHandshake(400, "the method of a WebSocket handshake is GET")
    if versions != [VERSION]:
        # Section 4.4: the client may try again with the version that is named.
        raise BadHandshake(
            426,
            "this server speaks version 13 of the WebSocket protocol",
            (b"sec-websocket-version", VERSION),
            (b"upgrade", b"websocket"),
        )
    if len(keys) != 1 or not _is_key(keys[0]):
        raise BadHandshake(400, "the Sec-WebSocket-Key header is not 16 bytes in base64")
    offers = _parse_extensions(b",".join(filter(None, extensions)))
    deflate, parameters = _choose_deflate(offers) if per_message_deflate else (None, b"")
    accept = b64encode(sha1(keys[0] + _GUID, usedforsecurity=False).digest())
    return Handshake(accept, deflate, parameters)


def answer(
    handshake: Handshake, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes]]:
    """Return the headers of the 101 response (RFC 6455, section 4.2.2, item 5).

    Args:
        handshake: what ``negotiate()`` found.
        subprotocol: the one that the application chose.
        headers: those of the application.

    Raises:
        ReservedHeader: one of them belongs to the handshake.
    """
    fields = [
        (b"upgrade", b"websocket"),
        (b"connection", b"Upgrade"),
        (b"sec-websocket-accept", handshake.accept),
    ]
    if subprotocol is not None:
        fields.append((b"sec-websocket-protocol", subprotocol.encode()))
    if handshake.extensions:
        fields.append((b"sec-websocket-extensions", handshake.extensions))
    for field in headers:
        try:
            name = field[0].lower()
        except (TypeError, LookupError, AttributeError):
            name = b""  # the writer says what is wrong with it
        if name in _RESERVED or (name == b"sec-websocket-protocol" and subprotocol is not None):
            raise ReservedHeader(name)
        fields.append(field)
    return fields


def switch(writer: Writer, request: Request, headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the 101 response, after which the connection speaks WebSocket.

    Raises:
        InvalidResponse: a header cannot be put on the wire.
    """
    # For a writer of responses, 101 is none: HTTP goes on after it, or another protocol does.
    # What comes next to it is 204, without a body and without a length.
    writer.start(request, 204, headers, keep_alive=True)
    head = writer.body(b"", more=False)
    assert isinstance(head, bytes)
    return b"HTTP/1.1 101 Switching Protocols" + head[head.index(b"\r\n") :]


def _is_key(value: bytes) -> bool:
    try:
        return len(binascii.a2b_base64(value, strict_mode=True)) == _KEY_SIZE
    except binascii.Error:
        return False


_Parameters = list[tuple[bytes, bytes | None]]


def _parse_extensions(value: bytes) -> list[tuple[bytes, _Parameters]]:
    """Return names and parameters of the extensions offered, the preferred one first."""
    offers: list[tuple[bytes, _Parameters]] = []
    position = 0
    separator = b","
    # Empty elements of a list are allowed (RFC 9110, section 5.6.1).
    value = value.strip(b", \t")
    while position < len(value):
        match = _ITEM.match(value, position)
        if match is None:
            break
        name, token, quoted, next_separator = match.groups()
        if separator == b";":
            offers[-1][1].append((name, token or quoted))
        elif token or quoted:
            break
        else:
            offers.append((name, []))
        separator = next_separator
        position = match.end()
    if position < len(value) or separator == b";":
        # RFC 6455, section 9.1: what does not conform fails the handshake.
        raise BadHandshake(400, "the Sec-WebSocket-Extensions header cannot be read")
    return offers


def _choose_deflate(offers: list[tuple[bytes, _Parameters]]) -> tuple[Deflate | None, bytes]:
    """Return the first offer that suits us, and our answer to it (RFC 7692, section 5.1)."""
    for name, parameters in offers:
        if name == b"permessage-deflate":
            chosen = _accept_deflate(dict(parameters), len(parameters))
            if chosen is not None:
                return chosen
    return None, b""


def _accept_deflate(
    parameters: dict[bytes, bytes | None], count: int
) -> tuple[Deflate, bytes] | None:
    """Return the agreement on one offer and our answer; None declines (section 7.1)."""
    if len(parameters) != count:  # the same one twice
        return None
    answer = [b"permessage-deflate"]
    server_fresh = client_fresh = False
    server_bits = _WINDOW_BITS
    client_bits = _MAX_WINDOW_BITS
    for name, value in parameters.items():
        if name == b"server_no_context_takeover" and value is None:
            server_fresh = True
            answer.append(name)
        elif name == b"client_no_context_takeover" and value is None:
            client_fresh = True
            answer.append(name)
        elif name == b"server_max_window_bits" and (bits := _window_bits(value)):
            server_bits = min(bits, server_bits)
        elif name == b"client_max_window_bits" and (
            bits := _MAX_WINDOW_BITS if value is None else _window_bits(value)
        ):
            client_bits = min(bits, _WINDOW_BITS)
            answer.append(b"client_max_window_bits=%d" % client_bits)
        else:
            return None
    if server_bits < _MIN_OWN_WINDOW_BITS:
        return None
    answer.append(b"server_max_window_bits=%d" % server_bits)
    return Deflate(server_fresh, client_fresh, server_bits, client_bits), b"; ".join(answer)


def _window_bits(value: bytes | None) -> int | None:
    """Return 8 to 15, None for anything else; leading zeros are not allowed."""
    if value is None or not value.isdigit() or len(value) > 2 or value[:1] == b"0":
        return None
    bits = int(value)
    return bits if _MIN_WINDOW_BITS <= bits <= _MAX_WINDOW_BITS else None
