"""The PROXY protocol: what a load balancer says before the first byte of the client.

A header of version 1 is a line of text, one of version 2 is binary; ``Header`` reads either,
however the network cut it, and never a byte more than is its own. What does not follow the
specification is refused, for then it is not known who is at the other end.

Nothing here does I/O, and whether the peer may say such things is not asked here.

Source: https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt, sections 2.1 (version 1)
and 2.2 (version 2).
"""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

MAX_LINE = 107
"""Bytes of the longest header of version 1, line end included."""

MAX_BLOCK = 4096
"""Bytes behind the first sixteen of a header of version 2, at most. Senders are asked to stay
below 520; the rest is for those that pass on a whole certificate's names."""

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

_FIXED = 16
_CRC32C, _SSL = 0x03, 0x20
_CLIENT_SSL = 0x01
_PATH = 108
_LINE = re.compile(
    rb"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})",
)


class BadHeader(Exception):
    """Bytes that are not a header of the PROXY protocol."""


class Told(NamedTuple):
    """Who is at the two ends of the connection that the proxy has accepted.

    Attributes:
        client: its address and port; None if it came through a UNIX socket of the proxy's.
        server: the address and port that it asked for, or the path of that socket and None.
        tls: the client spoke TLS with the proxy.
    """

    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    tls: bool = False


def ends(peername: Any, sockname: Any) -> Told:
    """Return what the kernel says of the ends of a connection.

    Args:
        peername: of the client, as in the module ``socket``.
        sockname: of our side, likewise.
    """
    client = (peername[0], peername[1]) if isinstance(peername, tuple) else None
    if isinstance(sockname, tuple):
        return Told(client, (sockname[0], sockname[1]))
    return Told(client, (sockname, None) if isinstance(sockname, str) and sockname else None)


class Header:
    """Reads one header.

    Attributes:
        complete: nothing more belongs to it.
        told: what it says; None if the connection is the proxy's own, or of a kind that it
            cannot describe: then the real addresses hold.
    """

    __slots__ = ("_read", "_size", "complete", "told")

    def __init__(self) -> None:
        self._read = bytearray()
        self._size = 0
        self.complete = False
        self.told: Told | None = None

    @property
    def begun(self) -> bool:
        """Whether any byte of it was seen."""
        return bool(self._read)

    def feed(self, data: bytes) -> int:
        """Take the next bytes of the connection; return how many of them are the header's.

        Raises:
            BadHeader: they cannot be the beginning of a header.
        """
        taken = 0
        while not self.complete and taken < len(data):
            taken += self._take(data[taken:])
        return taken

    def _take(self, data: bytes) -> int:
        """Take what is certain to belong to the header, at least one byte."""
        read = self._read
        if self._size:
            part = data[: self._size - len(read)]
        elif not read:
            part = data[:1]
        elif read.startswith(b"P"):
            part = data[: data.find(b"\n") + 1] or data
        else:
            part = data[: _FIXED - len(read)]
        read += part
        if read.startswith(b"P"):
            self._look_at_line()
        else:
            self._look_at_block()
        return len(part)

    # -- Version 1

    def _look_at_line(self) -> None:
        read = self._read
        self._expect(b"PROXY ")
        if not read.endswith(b"\n"):
            if len(read) >= MAX_LINE:
                raise BadHeader("a line without an end")
            return
        if len(read) > MAX_LINE or not read.endswith(b"\r\n"):
            raise BadHeader("a line that is too long, or ends without a CR")
        self._decode_line(bytes(read[:-2]))
        self.complete = True

    def _decode_line(self, line: bytes) -> None:
        if line == b"PROXY UNKNOWN" or line.startswith(b"PROXY UNKNOWN "):
            return
        found = _LINE.fullmatch(line)
        if found is None:
            raise BadHeader("a line without two addresses and two ports")
        kind = IPv4Address if found[1] == b"4" else IPv6Address
        try:
            source, target = (str(kind(found[item].decode())) for item in (2, 3))
        except ValueError:
            raise BadHeader("an address that is none of its family") from None
        ports = int(found[4]), int(found[5])
        if max(ports) > 0xFFFF:
            raise BadHeader("a port above 65535")
        self.told = Told((source, ports[0]), (target, ports[1]))

    # -- Version 2

    def _look_at_block(self) -> None:
        read = self._read
        self._expect(SIGNATURE)
        if len(read) < _FIXED:
            return
        if not self._size:
            version, command = read[12] >> 4, read[12] & 15
            if version != 2 or command > 1:
                raise BadHeader(f"an unknown version or command ({read[12]:#04x})")
            if read[13] >> 4 > 3 or read[13] & 15 > 2:
                raise BadHeader(f"an unknown family or protocol ({read[13]:#04x})")
            length = int.from_bytes(read[14:16])
            if length > MAX_BLOCK:
                raise BadHeader(f"{length} bytes, of at most {MAX_BLOCK}")
            self._size = _FIXED + length
        if len(read) == self._size:
            self._decode_block(bytes(read))
            self.complete = True

    def _decode_block(self, header: bytes) -> None:
        is_proxied = header[12] & 15 == 1
        family, protocol = header[13] >> 4, header[13] & 15
        block = header[_FIXED:]
        # Without a family there may be addresses all the same, of a length that nobody tells;
        # and of a command LOCAL everything is to be skipped.
        if not is_proxied or not family or not protocol:
            return
        size = (0, 12, 36, 2 * _PATH)[family]
        if len(block) < size:
            raise BadHeader("addresses that are cut short")
        tls = False
        for kind, position, value in _vectors(block, size):
            if kind == _CRC32C:
                _check_sum(header, _FIXED + position, value)
            elif kind == _SSL:
                if len(value) < 5:
                    raise BadHeader("a field about TLS that is cut short")
                tls = bool(value[0] & _CLIENT_SSL)
        if protocol == 1:
            self.told = _addresses(family, block[:size])._replace(tls=tls)

    def _expect(self, beginning: bytes) -> None:
        if not self._read.startswith(beginning[: len(self._read)]):
            raise BadHeader("bytes that begin no header")


def _addresses(family: int, block: bytes) -> Told:
    if family == 3:
        path = block[_PATH:].rstrip(b"\0").decode("utf-8", "surrogateescape")
        return Told(None, (path, None) if path else None)
    width = 4 if family == 1 else 16
    source, target = ip_address(block[:width]), ip_address(block[width : 2 * width])
    ports = block[2 * width :]
    return Told((str(source), int.from_bytes(ports[:2])), (str(target), int.from_bytes(ports[2:])))


def _vectors(block: bytes, position: int) -> list[tuple[int, int, bytes]]:
    """Return type, position of the value, and value of what stands behind the addresses."""
    found = []
    while position < len(block):
        begin = position + 3
        end = begin + int.from_bytes(block[position + 1 : begin])
        if begin > len(block) or end > len(block):
            raise BadHeader("a field that is cut short")
        found.append((block[position], begin, block[begin:end]))
        position = end
    return found


def _check_sum(header: bytes, position: int, value: bytes) -> None:
    if len(value) != 4:
        raise BadHeader("a checksum that is none")
    zeroed = header[:position] + bytes(4) + header[position + 4 :]
    if crc32c(zeroed) != int.from_bytes(value):
        raise BadHeader("a wrong checksum")


def crc32c(data: bytes) -> int:
    """Return the checksum of Castagnoli's polynomial (RFC 9260, appendix A)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = tuple(map(_entry, range(256)))
