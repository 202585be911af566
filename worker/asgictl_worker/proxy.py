"""Who the client is when a reverse proxy stands in between.

A proxy reports the client in headers, and anybody can send such headers. They are believed
only if the peer of the connection is on the operator's list, and only as far back as the
chain of listed proxies goes: read from the right, the first address that is not on the list
is the client, for what stands left of it was written by that client. If all are listed, the
left-most is the client.

``X-Forwarded-For`` and ``X-Forwarded-Proto`` are read. Only where both are absent is
``Forwarded`` (RFC 7239) read instead: most proxies set the former and pass the latter on as
the client sent it.

For the same reason ``X-Forwarded-Host``, ``X-Forwarded-Port`` and ``host=`` count only if the
operator says so: what a proxy passes on unseen would let any client choose the links that the
application writes. Then they replace the ``Host`` header and ``scope["server"]``.
"""

import re
from collections.abc import Sequence
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

Server = tuple[str, int | None] | None
"""Address and port as the ``server`` of an ASGI scope, or the path of a UNIX socket and None."""

_CACHED_PEERS = 1024
"""Behind a proxy there are few peers; the bound is for servers that face everybody."""

_CACHED_BYTES = 512
"""Of the claims in one request, at most, so that nobody can fill the memory with long ones."""

_MAX_NODE = len("[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535")
_MAX_HOST = 255 + len(":65535")
"""Characters of an address and of a host (RFC 1035, section 2.3.4), each with a port; whatever
is longer is neither, and is not remembered either."""

_FORWARDING_HEADERS = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"forwarded"})
_HOST_HEADERS = frozenset({b"x-forwarded-host", b"x-forwarded-port"})
_OLDER_HEADERS = (
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
    b"x-forwarded-port",
)
_HTTP_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_WEBSOCKET_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}

_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")

# RFC 7239, section 4: pairs joined by ";" make an element, elements joined by "," the list. A
# pair may be missing.
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PAIR = re.compile(rf'[ \t]*(?:({_TOKEN})=({_TOKEN}|"(?:[^"\\]|\\.)*"))?[ \t]*(?:;|\Z)')

_MAX_ELEMENT = 512
"""Characters of an element in which a comma is taken for one in quotes."""


class NotAPeer(ConfigurationError):
    """An entry of the list of trusted peers is neither an address nor a network."""

    def __init__(self, setting: str, entry: str, reason: str) -> None:
        self.setting, self.entry, self.reason = setting, entry, reason
        super().__init__(
            f"{setting}: {entry!r} {reason}; list addresses (10.0.0.1, ::1), networks "
            f"(10.0.0.0/8, fd00::/8), unix: for peers on UNIX sockets, or * for everybody, "
            f"separated by commas"
        )


class _Hop(NamedTuple):
    """What one proxy says about the hop before it; empty when it says nothing."""

    address: str
    scheme: str
    host: str = ""
    port: str = ""


class ProxyTrust:
    """The peers whose forwarding headers are believed.

    Args:
        allow_list: addresses, networks, ``unix:`` and ``*``, separated by commas.
        take_host: believe them about host and port, too.
        setting: where the list comes from, for errors.

    Raises:
        NotAPeer: an entry is none of these.
    """

    __slots__ = (
        "_addresses",
        "_everybody",
        "_known_walk",
        "_names",
        "_networks",
        "_setting",
        "_take_host",
        "_trusts_address",
        "_unix",
    )

    def __init__(
        self, allow_list: str, *, take_host: bool = False, setting: str = "forwarded_allow_ips"
    ) -> None:
        self._setting = setting
        self._take_host = take_host
        self._names = _FORWARDING_HEADERS | _HOST_HEADERS if take_host else _FORWARDING_HEADERS
        self._everybody = self._unix = False
        self._addresses: set[IPv4Address | IPv6Address] = set()
        self._networks: list[IPv4Network | IPv6Network] = []
        for entry in filter(None, (entry.strip() for entry in allow_list.split(","))):
            self._add(entry)
        self._trusts_address = lru_cache(_CACHED_PEERS)(self._look_up)
        self._known_walk = lru_cache(_CACHED_PEERS)(self._walk)

    def _add(self, entry: str) -> None:
        if entry == "*":
            self._everybody = self._unix = True
        elif entry == "unix:":
            self._unix = True
        elif "/" in entry:
            try:
                self._networks.append(ip_network(entry))
            except ValueError as error:
                raise NotAPeer(self._setting, entry, f"is not a network ({error})") from None
        else:
            address = _parse_address(entry)
            if address is None:
                raise NotAPeer(self._setting, entry, "is not an address")
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
        self,
        headers: list[tuple[bytes, bytes]],
        client: Client,
        scheme: str,
        server: Server = None,
    ) -> tuple[Client, str, Server]:
        """Return client, scheme and server as the outermost trusted proxy saw them.

        Args:
            headers: names in lower case, in the order received; ``host`` is replaced if
                the proxy is believed about it.
            client: the peer of the connection.
            scheme: of the connection: ``http``, ``https``, or ``ws``, ``wss`` for a
                WebSocket, which stays one whatever the proxy calls it.
            server: what the peer has connected to.
        """
        if not self.trusts(None if client is None else client[0]):
            return client, scheme, server
        found, size = [], 0
        for item in headers:
            if item[0] in self._names:
                found.append(item)
                size += len(item[1])
        if not found:
            return client, scheme, server
        # hot: the requests of a client say the same, one after the other; to remember it takes
        # a third of the time that the walk takes.
        if size <= _CACHED_BYTES:
            node, scheme, host, port = self._known_walk(tuple(found), scheme)
        else:
            node, scheme, host, port = self._walk(found, scheme)
        client = node or client
        if host is not None or port is not None:
            server = _take_host(headers, scheme, server, host, port)
        return client, scheme, server

    def _walk(
        self, claims: Sequence[tuple[bytes, bytes]], scheme: str
    ) -> tuple[Client, str, re.Match[str] | None, int | None]:
        """Follow the chain from the nearest proxy outwards, as far as it is trusted."""
        schemes = _WEBSOCKET_SCHEMES if scheme in ("ws", "wss") else _HTTP_SCHEMES
        client, host, port = None, None, None
        for hop in reversed(_hops(claims)):
            scheme = schemes.get(hop.scheme.lower(), scheme)
            if self._take_host:
                host = (len(hop.host) <= _MAX_HOST and _parse_host(hop.host)) or host
                port = _parse_port(hop.port) or port
            node = _parse_node(hop.address) if len(hop.address) <= _MAX_NODE else None
            # "unknown", an obfuscated name, junk or nothing: the proxy that wrote it is the
            # last one whose address is known.
            if node is None:
                break
            client = node
            if not self._trusts_address(node[0]):
                break
        return client, scheme, host, port


def _take_host(
    headers: list[tuple[bytes, bytes]],
    scheme: str,
    server: Server,
    host: re.Match[str] | None,
    port: int | None,
) -> Server:
    """Replace the ``host`` header by what the proxy was asked for; return the server."""
    usual = _DEFAULT_PORTS[scheme]
    if host is None:
        # The Host header stays: proxies are known to tell the port of an inner listener.
        return server if server is None or server[1] is None else (server[0], port)
    text = host[0]
    if host[2] is not None:
        port = int(host[2])
    elif port is not None and port != usual:
        text = f"{text}:{port}"
    headers[:] = [item for item in headers if item[0] != b"host"]
    headers.insert(0, (b"host", text.encode("ascii")))
    return host[1].strip("[]"), port or usual


def _hops(headers: Sequence[tuple[bytes, bytes]]) -> list[_Hop]:
    """Return what the proxies say, the outermost first."""
    texts: dict[bytes, str] = {}
    for name, value in headers:
        # Several lines of a name are one list (RFC 9110, section 5.3).
        text = value.decode("latin-1")
        texts[name] = f"{texts[name]},{text}" if name in texts else text
    addresses, schemes, hosts, ports = (
        _elements(texts[name]) if name in texts else [] for name in _OLDER_HEADERS
    )
    if not (addresses or schemes or hosts or ports):
        return _parse_forwarded(texts.get(b"forwarded", ""))
    count = len(addresses) or 1
    return list(
        map(
            _Hop,
            addresses or [""],
            _one_for_each(schemes, count),
            _one_for_each(hosts, count),
            _one_for_each(ports, count),
        )
    )


def _one_for_each(values: list[str], count: int) -> list[str]:
    """Return ``count`` values, one for each hop.

    Most proxies append to the addresses and replace the rest. Where there is not one for each
    the nearest proxy's word holds, whoever of the chain is the client.
    """
    if len(values) == count:
        return values
    return [""] * (count - 1) + (values[-1:] or [""])


def _elements(text: str) -> list[str]:
    if "," not in text:
        text = text.strip()
        return [text] if text else []
    return [item for item in (item.strip() for item in text.split(",")) if item]


def _parse_forwarded(text: str) -> list[_Hop]:
    """Return the hops of a ``Forwarded`` header, as far back from its end as it is well formed.

    It is read from the right as the walk goes, or a client could spoil what the proxies have
    written behind its own header, by a quote that never ends.
    """
    hops: list[_Hop] = []
    begin = end = len(text)
    while end >= 0:
        begin = text.rfind(",", 0, begin)
        element = text[begin + 1 : end]
        hop = _parse_element(element)
        if hop is not None:
            if element.strip():  # a list may have empty elements
                hops.append(hop)
            end = begin
        elif begin < 0 or '"' not in element or len(element) > _MAX_ELEMENT:
            break  # otherwise the comma may be one in quotes
    return hops[::-1]


def _parse_element(text: str) -> _Hop | None:
    """Return what one proxy says in a ``Forwarded`` header, None if it is malformed."""
    pairs: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _PAIR.match(text, position)
        if match is None:
            return None
        name, value = match.groups()
        if name is not None:
            if value.startswith('"'):
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            if name.lower() in pairs:
                return None  # RFC 7239, section 4
            pairs[name.lower()] = value
        position = match.end()
    return _Hop(*(pairs.get(key, "") for key in ("for", "proto", "host")))


@lru_cache(_CACHED_PEERS)
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
    # A zone means something on its own host only, and may be any text.
    if "%" in host or _parse_address(host) is None:
        return None
    return host, _parse_port(port) or 0


def _parse_port(text: str) -> int | None:
    """Return a number from 1 to 65535, None for anything else."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
    return number if 0 < number <= 65535 else None


@lru_cache(_CACHED_PEERS)
def _parse_host(text: str) -> re.Match[str] | None:
    """Return name and port of a ``Host`` (RFC 9110, section 7.2), None for anything else."""
    found = _HOST.fullmatch(text)
    return found if found and (found[2] is None or _parse_port(found[2])) else None
