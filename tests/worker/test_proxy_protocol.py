"""Headers of the PROXY protocol, by its specification, section by section."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgictl_worker.proxy_protocol import (
    MAX_BLOCK,
    MAX_LINE,
    SIGNATURE,
    BadHeader,
    Header,
    Told,
    crc32c,
)

REST = b"GET / HTTP/1.1\r\n\r\n"
V4 = bytes([203, 0, 113, 7, 10, 0, 0, 1]) + b"\x12\x67\x01\xbb"
TOLD_V4 = Told(("203.0.113.7", 4711), ("10.0.0.1", 443))
V6 = (
    ipaddress.ip_address("2001:db8::7").packed
    + ipaddress.ip_address("fd00::1").packed
    + b"\x12\x67\x01\xbb"
)
TOLD_V6 = Told(("2001:db8::7", 4711), ("fd00::1", 443))


def block(command: int, family: int, body: bytes, *, length: int | None = None) -> bytes:
    """Return a header of version 2."""
    size = len(body) if length is None else length
    return SIGNATURE + bytes([command, family]) + size.to_bytes(2) + body


def field(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2) + value


def with_checksum(command: int, family: int, body: bytes, after: bytes = b"") -> bytes:
    """Return a header whose checksum is right."""
    zeroed = block(command, family, body + field(3, bytes(4)) + after)
    begin = 16 + len(body) + 3
    return zeroed[:begin] + crc32c(zeroed).to_bytes(4) + zeroed[begin + 4 :]


def read(data: bytes, *, cut: int = 0) -> Header:
    """Feed a header, in pieces if asked, and assert that it is complete and nothing more."""
    header = Header()
    position = 0
    while not header.complete:
        part = data[position : position + (cut or len(data))]
        assert part, "more is wanted than there is"
        position += header.feed(part)
    assert data[position:] == REST
    return header


def feed_all(header: Header, data: bytes, cut: int) -> None:
    position = 0
    while position < len(data):
        position += header.feed(data[position : position + cut])
        assert not header.complete


GOOD = [
    # Section 2.1: version 1
    (b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\r\n", TOLD_V4),
    (b"PROXY TCP6 2001:db8::7 fd00::1 4711 443\r\n", TOLD_V6),
    (b"PROXY TCP6 2001:DB8:0:0:0:0:0:7 fd00::1 4711 443\r\n", TOLD_V6),
    (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        Told(("255.255.255.255", 65535), ("255.255.255.255", 65535)),
    ),
    (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", Told(("0.0.0.0", 0), ("0.0.0.0", 0))),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN whatever \xff\x00 stands here\r\n", None),
    (b"PROXY UNKNOWN " + b"x" * (MAX_LINE - 16) + b"\r\n", None),
    # Section 2.2: version 2
    (block(0x21, 0x11, V4), TOLD_V4),
    (block(0x21, 0x21, V6), TOLD_V6),
    (block(0x20, 0x00, b""), None),
    (block(0x20, 0x11, V4), None),
    (block(0x20, 0x31, b"junk of any length"), None),
    (block(0x21, 0x00, b""), None),
    (block(0x21, 0x00, b"junk of any length"), None),
    (block(0x21, 0x10, b""), None),
    (block(0x21, 0x01, b""), None),
    # Datagrams do not come through a stream: as if unspecified.
    (block(0x21, 0x12, V4), None),
    (block(0x21, 0x22, V6), None),
    (
        block(0x21, 0x31, b"/a".ljust(108, b"\0") + b"/b".ljust(108, b"\0")),
        Told(None, ("/b", None)),
    ),
    (block(0x21, 0x31, bytes(216)), Told(None, None)),
    # Sections 2.2.1 to 2.2.8: what stands behind the addresses
    (block(0x21, 0x11, V4 + field(1, b"h2") + field(2, b"example.org")), TOLD_V4),
    (block(0x21, 0x11, V4 + field(4, b"")), TOLD_V4),
    (block(0x21, 0x11, V4 + field(0xE0, b"x" * 300)), TOLD_V4),
    (block(0x21, 0x11, V4 + field(0x20, b"\x00\0\0\0\1")), TOLD_V4),
    (block(0x21, 0x11, V4 + field(0x20, b"\x01\0\0\0\0")), TOLD_V4._replace(tls=True)),
    (
        block(0x21, 0x11, V4 + field(0x20, b"\x05\0\0\0\0" + field(0x21, b"TLSv1.3"))),
        TOLD_V4._replace(tls=True),
    ),
    (with_checksum(0x21, 0x11, V4), TOLD_V4),
    (with_checksum(0x21, 0x21, V6, field(2, b"example.org")), TOLD_V6),
    (block(0x21, 0x11, V4 + field(4, bytes(MAX_BLOCK - 15))), TOLD_V4),
]


@pytest.mark.parametrize(("header", "told"), GOOD)
@pytest.mark.parametrize("cut", [0, 1, 5])
def test_a_good_header_is_understood_and_what_follows_is_left(header, told, cut):
    assert read(header + REST, cut=cut).told == told


@pytest.mark.parametrize(
    "data",
    [
        # No header at all: HTTP, TLS, nothing of use.
        REST,
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\r\n\r\nGET",
        b"\x00",
        b"proxy TCP4",
        b"PROXYTCP4",
        b"POST / HTTP/1.1",
        # Section 2.1
        b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\n",
        b"PROXY TCP4  203.0.113.7 10.0.0.1 4711 443\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443 \r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 4711\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 04711 443\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 65536\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 +4711 443\r\n",
        b"PROXY TCP4 203.0.113.007 10.0.0.1 4711 443\r\n",
        b"PROXY TCP4 203.0.113.256 10.0.0.1 4711 443\r\n",
        b"PROXY TCP4 203.0.113 10.0.0.1 4711 443\r\n",
        b"PROXY TCP4 2001:db8::7 fd00::1 4711 443\r\n",
        b"PROXY TCP6 203.0.113.7 10.0.0.1 4711 443\r\n",
        b"PROXY TCP6 2001:db8::7%eth0 fd00::1 4711 443\r\n",
        b"PROXY TCP6 2001:db8::7::1 fd00::1 4711 443\r\n",
        b"PROXY UDP4 203.0.113.7 10.0.0.1 4711 443\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY \r\n",
        b"PROXY UNKNOWN " + b"x" * MAX_LINE + b"\r\n",
        b"PROXY TCP4 203.0.113.7\r10.0.0.1 4711 443\r\n",
        # Section 2.2
        block(0x11, 0x11, V4),
        block(0x22, 0x11, V4),
        block(0x2F, 0x11, V4),
        block(0x21, 0x41, V4),
        block(0x21, 0x13, V4),
        block(0x21, 0x11, V4[:-1]),
        block(0x21, 0x11, b""),
        block(0x21, 0x21, V4),
        block(0x21, 0x31, bytes(215)),
        block(0x21, 0x11, b"", length=MAX_BLOCK + 1),
        block(0x21, 0x11, b"", length=0xFFFF),
        block(0x21, 0x11, V4 + b"\x04"),
        block(0x21, 0x11, V4 + b"\x04\x00"),
        block(0x21, 0x11, V4 + b"\x04\x00\x02\x00"),
        block(0x21, 0x11, V4 + field(0x20, b"\x01\0\0\0")),
        block(0x21, 0x11, V4 + field(3, b"\1\2\3\4")),
        block(0x21, 0x11, V4 + field(3, b"\1\2\3")),
    ],
)
@pytest.mark.parametrize("cut", [0, 1, 5])
def test_what_does_not_follow_the_specification_is_refused(data, cut):
    header = Header()
    with pytest.raises(BadHeader):
        feed_all(header, data, cut or len(data))
    assert not header.complete


def test_a_wrong_bit_anywhere_is_found_by_the_checksum():
    good = with_checksum(0x21, 0x11, V4, field(2, b"example.org"))
    # All but the byte that says that this is a checksum.
    for position in {*range(16, len(good))} - {16 + len(V4)}:
        bad = bytearray(good)
        bad[position] ^= 1
        with pytest.raises(BadHeader):
            Header().feed(bytes(bad))


def test_a_line_that_never_ends_is_not_kept():
    header = Header()
    line = b"PROXY UNKNOWN ".ljust(MAX_LINE, b"x")
    assert header.feed(line[:-1]) == MAX_LINE - 1
    with pytest.raises(BadHeader, match="without an end"):
        header.feed(line[-1:])


@pytest.mark.parametrize(
    ("data", "expected"),
    # RFC 3720, appendix B.4, and the check value of the catalogue of CRCs.
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_the_checksum_is_castagnolis(data, expected):
    assert crc32c(data) == expected


def outcome(data: bytes, cuts: list[int]) -> tuple[int, Told | None] | None:
    """Return how much was taken and what was told, None if it was refused."""
    header = Header()
    taken = 0
    try:
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if not header.complete:
                taken += header.feed(data[begin:end])
    except BadHeader:
        return None
    return taken, header.told if header.complete else None


HEADERS = st.sampled_from([header for header, _ in GOOD])


@st.composite
def damaged(draw):
    """Draw a good header with something changed, or anything."""
    data = bytearray(draw(HEADERS | st.binary(max_size=40)) + draw(st.binary(max_size=10)))
    for _ in range(draw(st.integers(0, 3))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@given(damaged(), st.data())
def test_any_split_of_the_bytes_has_the_same_outcome(data, draw):
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=5)))
    assert outcome(data, cuts) == outcome(data, [])


@given(
    st.ip_addresses(v=4) | st.ip_addresses(v=6),
    st.integers(0, 65535),
    st.integers(0, 65535),
    st.sampled_from([1, 2]),
)
def test_any_address_arrives(address, source, target, version):
    if version == 1:
        line = f"PROXY TCP{address.version} {address} {address} {source} {target}\r\n"
        data = line.encode("ascii")
    else:
        ports = source.to_bytes(2) + target.to_bytes(2)
        family = 0x11 if address.version == 4 else 0x21
        data = block(0x21, family, address.packed * 2 + ports)
    assert read(data + REST).told == Told((str(address), source), (str(address), target))
