"""What fuzzing begins with, and the words that it puts together."""

import struct
from collections.abc import Iterable

from tests.conformance.http1.case import Bytewise, Unread
from tests.conformance.http1.cases import CASES

MAX_SEED = 4096
"""Longer requests only try the limits, and would slow everything down."""

MAX_REPEATED = 120
"""Those that are shorter are also there several times, as a client repeats itself."""

WHOLE = b"\x00"
"""Before the bytes themselves: at how many places they are cut, and where (``targets.cut``)."""


def requests() -> list[bytes]:
    """Return what the conformance cases send."""
    found = set()
    for case in CASES:
        data = b"".join(
            step if isinstance(step, bytes) else step.data
            for step in case.send
            if isinstance(step, (bytes, Bytewise, Unread))
        )
        if len(data) <= MAX_SEED:
            found.add(data)
        if len(data) <= MAX_REPEATED:
            found.add(data * 3)
            found.add(data + data.replace(b" / ", b" /other ") + data)
    return sorted(found)


def bodies() -> list[bytes]:
    """Return the bodies in chunks among them."""
    return sorted({data.partition(b"\r\n\r\n")[2] for data in requests() if b"chunked" in data})


def frame(opcode: int, payload: bytes, *, fin: bool = True, reserved: int = 0) -> bytes:
    """Return a WebSocket frame as clients send it, with a mask that changes nothing."""
    size = len(payload)
    first = fin << 7 | reserved << 4 | opcode
    if size < 126:
        head = struct.pack("!BB", first, 128 | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, 128 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 128 | 127, size)
    return head + bytes(4) + payload


def frames() -> list[bytes]:
    """Return conversations in WebSocket frames."""
    deflated = b"\xf2\x48\xcd\xc9\xc9\x07\x00"  # "Hello", RFC 7692, section 7.2.3.1
    return [
        frame(1, b"hello") + frame(2, bytes(range(200))) + frame(8, b"\x03\xe8bye"),
        frame(1, "häll".encode(), fin=False) + frame(9, b"ping") + frame(0, b"o"),
        frame(1, deflated, reserved=4) + frame(1, deflated, reserved=4),
        frame(1, deflated[:3], reserved=4, fin=False) + frame(0, deflated[3:]),
        frame(2, bytes(70000)),
        frame(10, b"") + frame(8, b""),
        frame(1, b"\xff") + frame(3, b""),
        b"\x81\x05hello",
    ]


def fields() -> list[bytes]:
    """Return lines of headers that tell of proxies and of WebSockets."""
    return [
        b"x-forwarded-for: 203.0.113.7, 10.0.0.1:80, [2001:db8::1]:443\r\nx-forwarded-proto: https",
        b'forwarded: for=192.0.2.60;proto=http;by=203.0.113.43, for="[2001:db8::1]:80";host=a',
        b"x-forwarded-host: a.example:8000\r\nx-forwarded-port: 443\r\nx-forwarded-for: unknown",
        b'sec-websocket-extensions: permessage-deflate; client_max_window_bits, x; y="z"',
        b"sec-websocket-extensions: permessage-deflate; server_max_window_bits=8",
        b"sec-websocket-protocol: a, b\r\nsec-websocket-protocol: c",
    ]


def introductions() -> list[bytes]:
    """Return headers of the PROXY protocol."""
    second = b"\r\n\r\n\x00\r\nQUIT\n"
    addresses = bytes([192, 0, 2, 1, 192, 0, 2, 2, 0x10, 0, 0, 80])
    return [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 80\r\nGET",
        b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 80\r\n",
        b"PROXY UNKNOWN whatever\r\n",
        second + b"\x21\x11\x00\x0c" + addresses + b"GET",
        second + b"\x20\x00\x00\x00",
        second + b"\x21\x21\x00\x24" + bytes(36),
        second + b"\x21\x31\x00\xd8" + b"/run/a".ljust(108, b"\0") * 2,
        second + b"\x21\x11\x00\x16" + addresses + b"\x20\x00\x07\x01" + bytes(6),
    ]


WORDS: Iterable[bytes] = (
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\x00", b" ", b"\t", b":", b";", b",", b"=", b'"', b"0"),
    *(
        b"GET ",
        b"HEAD ",
        b"POST ",
        b" HTTP/1.1\r\n",
        b" HTTP/1.0\r\n",
        b" HTTP/1.2\r\n",
        b"http://",
    ),
    *(
        b"Host: a\r\n",
        b"Content-Length: ",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
    ),
    *(b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n", b"0\r\n\r\n"),
    *(b"keep-alive", b"TE: trailers\r\n", b"FFFFFFFFFFFFFFFF", b"\xff", b"\x80", b"%", b"#", b"*"),
)
"""What ``atheris`` and hypothesis put into other inputs."""
