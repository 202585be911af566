"""Whose a certificate is, and how long it is valid.

``ssl`` uses certificates but does not tell what stands in the one that a server was given,
so this reads the few fields that are needed. Nothing is verified here; OpenSSL does that.

Sources: RFC 5280, section 4.1 (the certificate); ITU-T X.690 (DER, its encoding); RFC 4514
(names as text).
"""

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple


class MalformedCertificate(ValueError):
    """Bytes that are not a certificate."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is told about a certificate."""

    subject: str
    """The distinguished name of its owner, as RFC 4514 writes it."""
    not_before: datetime
    not_after: datetime


_BLOCK = re.compile(
    r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----", re.ASCII
)


def first_of(text: str) -> bytes | None:
    """Return the first certificate of a PEM file, which is the server's own, as DER."""
    found = _BLOCK.search(text)
    try:
        return ssl.PEM_cert_to_DER_cert(found[0]) if found else None
    except ValueError:
        return None


def parse(der: bytes) -> Certificate:
    """Return what stands in a certificate.

    Raises:
        MalformedCertificate: the bytes are not one.
    """
    try:
        certificate = _items(_read(der, 0, len(der)))
        fields = list(_items(next(certificate)))
        # Versions after the first say so in an optional field, before serial number,
        # algorithm, issuer, validity and subject.
        if fields[0].tag == _VERSION:
            del fields[0]
        begin, end = (_time(item) for item in _items(fields[3]))
        return Certificate(subject=_name(fields[4]), not_before=begin, not_after=end)
    except (IndexError, StopIteration, ValueError) as error:
        raise MalformedCertificate(f"{len(der)} bytes are not a certificate: {error}") from None


# -- DER

_VERSION: Final = 0xA0
_OBJECT_IDENTIFIER: Final = 0x06
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18
_TEXTS: Final = {
    0x0C: "utf-8",  # UTF8String
    0x12: "ascii",  # NumericString
    0x13: "ascii",  # PrintableString
    0x14: "latin-1",  # TeletexString, as everybody reads it
    0x16: "ascii",  # IA5String
    0x1C: "utf-32-be",  # UniversalString
    0x1E: "utf-16-be",  # BMPString
}


class _Item(NamedTuple):
    """One value in DER: its tag, and where it stands."""

    data: bytes
    tag: int
    begin: int
    content: int
    end: int

    @property
    def value(self) -> bytes:
        return self.data[self.content : self.end]


def _read(data: bytes, begin: int, limit: int) -> _Item:
    tag, length, content = data[begin], data[begin + 1], begin + 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(data[content : content + size], "big")
        content += size
    if content + length > limit:
        raise ValueError(f"a value at byte {begin} ends too late")
    return _Item(data, tag, begin, content, content + length)


def _items(parent: _Item) -> Iterator[_Item]:
    """Yield what a SEQUENCE or a SET consists of."""
    at = parent.content
    while at < parent.end:
        item = _read(parent.data, at, parent.end)
        yield item
        at = item.end


def _time(item: _Item) -> datetime:
    text = item.value.decode("ascii")
    if item.tag == _UTC_TIME:
        # RFC 5280, section 4.1.2.5.1: 50 is 1950, 49 is 2049.
        text = ("19" if text[:2] >= "50" else "20") + text
    elif item.tag != _GENERALIZED_TIME:
        raise ValueError(f"a time of the type {item.tag:#04x}")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


# -- Names

_SHORT_NAMES: Final = {
    "2.5.4.3": "CN",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.6": "C",
    "2.5.4.9": "STREET",
    "0.9.2342.19200300.100.1.25": "DC",
    "0.9.2342.19200300.100.1.1": "UID",
}
"""RFC 4514, section 3."""

_SPECIAL: Final = frozenset('"+,;<>\\')


def _name(item: _Item) -> str:
    """Return a distinguished name as text; the last part comes first (RFC 4514, section 2.1)."""
    parts = ["+".join(map(_attribute, _items(part))) for part in _items(item)]
    return ",".join(reversed(parts))


def _attribute(item: _Item) -> str:
    kind, value = _items(item)
    if kind.tag != _OBJECT_IDENTIFIER:
        raise ValueError("a part of a name has no type")
    dotted = _dotted(kind.value)
    short, encoding = _SHORT_NAMES.get(dotted), _TEXTS.get(value.tag)
    if short is None or encoding is None:
        # Section 2.4: what has no short name is shown in its encoding.
        return f"{short or dotted}=#{value.data[value.begin : value.end].hex()}"
    return f"{short}={_escape(value.value.decode(encoding))}"


def _dotted(data: bytes) -> str:
    numbers, number = [], 0
    for byte in data:
        number = number << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(number)
            number = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))


def _escape(text: str) -> str:
    """Escape what means something in a name, and what would spoil a log line."""
    escaped = []
    for at, character in enumerate(text):
        is_edge = (character == " " and at in (0, len(text) - 1)) or (character == "#" and not at)
        if is_edge or character in _SPECIAL:
            escaped.append("\\" + character)
        elif character < " " or character == "\x7f":
            escaped.append(f"\\{ord(character):02X}")
        else:
            escaped.append(character)
    return "".join(escaped)
