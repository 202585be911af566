"""Who the client is when a reverse proxy stands in between.

A proxy reports the client in headers, and anybody can send such headers. They are believed
only if the peer of the connection is on the operator's list, and only as far back as the
chain of listed proxies goes: read from the right, the first address that is not on the list
is the client, for what stands left of it was written by that client. If all are listed, the
left-most is the client.

``X-Forwarded-For`` and ``X-Forwarded-Proto`` are read. Only where both are absent is
``Forwarded`` (RFC 7239) read instead: most proxies set the former and pass the latter on as
the client sent it. ``X-Forwarded-Host`` and ``-Port`` stay what they are, headers: a server
that rewrote ``Host`` would take that decision away from the application.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import NamedTuple

from asgictl_worker.errors import ConfigurationError

Client = tuple[str, int] | None
"""Address and port as the ``client`` of an ASGI scope; None for a peer on a UNIX socket."""

_CACHED_PEERS = 1024
"""Behind a proxy there are few peers; the bound is for servers that face everybody."""

_FORWARDING_HEADERS = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"forwarded"})
_HTTP_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_WEBSOCKET_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}

# RFC 7239, section 4: pairs joined by ";" make an element, elements joined by "," the list.
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PAIR = re.compile(rf'[ \t]*({_TOKEN})=({_TOKEN}|"(?:[^"\\]|\\.)*")[ \t]*([;,]|$)')


class NotAPeer(ConfigurationError):
    """An entry of the list of trusted peers is neither an address nor a network."""

    def __init__(self, entry: str, reason: str) -> None:
        self.entry, self.reason = entry, reason
        super().__init__(
            f"forwarded-allow-ips: {entry!r} {reason}; list addresses (10.0.0.1, ::1), networks "
            f"(10.0.0.0/8, fd00::/8), unix: for peers on UNIX sockets, or * for everybody, "
            f"separated by commas"
        )


class _Hop(NamedTuple):
    """What one proxy says about the hop before it; empty when it says nothing."""

    address: str
    scheme: str


class ProxyTrust:
    """The peers whose forwarding headers are believed.

    Args:
        allow_list: addresses, networks, ``unix:`` and ``*``, separated by commas.

    Raises:
        NotAPeer: an entry is none of these.
    """

    __slots__ = ("_addresses", "_everybody", "_networks", "_trusts_address", "_unix")

    def __init__(self, allow_list: str) -> None:
        self._everybody = self._unix = False
        self._addresses: set[IPv4Address | IPv6Address] = set()
        self._networks: list[IPv4Network | IPv6Network] = []
        for entry in filter(None, (entry.strip() for entry in allow_list.split(","))):
            self._add(entry)
        self._trusts_address = lru_cache(_CACHED_PEERS)(self._look_up)

    def _add(self, entry: str) -> None:
        if entry == "*":
            self._everybody = self._unix = True
        elif entry == "unix:":
            self._unix = True
        elif "/" in entry:
            try:
                self._networks.append(ip_network(entry))
            except ValueError as error:
                raise NotAPeer(entry, f"is not a network ({error})") from None
        else:
            address = _parse_address(entry)
            if address is None:
                raise NotAPeer(entry, "is not an address")
            self._addresses.add(address)

    def _look_up(self, text: str) -> bool:
        address = _parse_address(text)
        if address is None:
            return False
        return (
            self._everybody
            or address in self._addresses
            or any(address in network for network in self._networks)
        )

    def trusts(self, peer_address: str | None) -> bool:
        """Return whether headers from this peer are believed; None is a UNIX socket."""
        return self._unix if peer_address is None else self._trusts_address(peer_address)

    def resolve(
        self, headers: Iterable[tuple[bytes, bytes]], client: Client, scheme: str
    ) -> tuple[Client, str]:
        """Return client and scheme as the outermost trusted proxy saw them.

        Args:
            headers: names in lower case, in the order received.
            client: the peer of the connection.
            scheme: of the connection: ``http``, ``https``, or ``ws``, ``wss`` for a
                WebSocket, which stays one whatever the proxy calls it.
        """
        if not self.trusts(None if client is None else client[0]):
            return client, scheme
        found = [item for item in headers if item[0] in _FORWARDING_HEADERS]
        if not found:
            return client, scheme
        return self._walk(_hops(found), client, scheme)

    def _walk(self, hops: list[_Hop], client: Client, scheme: str) -> tuple[Client, str]:
        """Follow the chain from the nearest proxy outwards, as far as it is trusted."""
        schemes = _WEBSOCKET_SCHEMES if scheme in ("ws", "wss") else _HTTP_SCHEMES
        for hop in reversed(hops):
            scheme = schemes.get(hop.scheme.lower(), scheme)
            if not hop.address:
                continue
            node = _parse_node(hop.address)
            # "unknown", an obfuscated name or junk: the proxy that wrote it is the last
            # one whose address is known.
            if node is None:
                break
            client = node
            if not self._trusts_address(node[0]):
                break
        return client, scheme


def _hops(headers: list[tuple[bytes, bytes]]) -> list[_Hop]:
    """Return what the proxies say, the outermost first."""
    texts: dict[bytes, str] = {}
    for name, value in headers:
        # Several lines of a name are one list (RFC 9110, section 5.3).
        text = value.decode("latin-1")
        texts[name] = f"{texts[name]},{text}" if name in texts else text
    addresses = _elements(texts.get(b"x-forwarded-for", ""))
    schemes = _elements(texts.get(b"x-forwarded-proto", ""))
    if not addresses and not schemes:
        return _parse_forwarded(texts.get(b"forwarded", ""))
    if len(schemes) != len(addresses):
        # Most proxies replace the scheme and append to the addresses: the nearest one's
        # word holds, whoever of the chain is the client.
        addresses = addresses or [""]
        schemes = [""] * (len(addresses) - 1) + (schemes[-1:] or [""])
    return list(map(_Hop, addresses, schemes))


def _elements(text: str) -> list[str]:
    return [item for item in (item.strip() for item in text.split(",")) if item]


def _parse_forwarded(text: str) -> list[_Hop]:
    """Return the hops of a ``Forwarded`` header, none at all if it is malformed."""
    hops = []
    pairs: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _PAIR.match(text, position)
        if match is None:
            return []
        name, value, separator = match.groups()
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        pairs[name.lower()] = value
        if separator != ";":
            hops.append(_Hop(pairs.get("for", ""), pairs.get("proto", "")))
            pairs = {}
        position = match.end()
    return [] if pairs else hops


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address; one that IPv6 only wraps (``::ffff:10.0.0.1``) as IPv4."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(_CACHED_PEERS)
def _parse_node(text: str) -> tuple[str, int] | None:
    """Return address and port of ``1.2.3.4``, ``1.2.3.4:80``, ``::1`` or ``[::1]:80``.

    The port is 0 where it is missing, not a number or out of range. None stands for
    anything that is not an address.
    """
    port = ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        if rest and not rest.startswith(":"):
            return None
        port = rest[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host = text
    if _parse_address(host) is None:
        return None
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    return host, number if number <= 65535 else 0
