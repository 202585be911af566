"""The properties: what has to hold for any bytes, however the network cuts them.

The first bytes of an input say where the rest is cut. A target raises if its property is
broken; whatever else escapes from the code under test is a finding, too.
"""

import asyncio
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from tests.conformance.fuzz import corpus
from tests.worker.http import parsing
from tests.worker.http.wire import Peer

from asgictl_worker.http import framing
from asgictl_worker.http.framing import Parser
from asgictl_worker.http.http1 import CONTINUE
from asgictl_worker.http.parser_h11 import H11Parser
from asgictl_worker.http.request import BadRequest, Request
from asgictl_worker.proxy import ProxyTrust
from asgictl_worker.proxy_protocol import MAX_BLOCK, BadHeader, Header
from asgictl_worker.service import Service
from asgictl_worker.settings import WorkerSettings
from asgictl_worker.websocket.frames import Close, CloseCode, Deflate, Frames
from asgictl_worker.websocket.handshake import negotiate

MAX_PLACES = 4
MAX_BYTEWISE = 300
"""Longer inputs are not also cut at every byte."""

CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
LIMITS = {
    "limit_request_line": 300,
    "limit_request_fields": 12,
    "limit_request_field_size": 200,
    "limit_request_body": 2000,
}
"""So low that fuzzing gets there."""

MAX_MESSAGE = 4096


def cut(data: bytes) -> tuple[bytes, list[list[bytes]]]:
    """Return the bytes of an input, and the ways in which they are cut, not at all first."""
    count = data[0] % MAX_PLACES if data else 0
    places = [data[1 + 2 * number : 3 + 2 * number] for number in range(count)]
    rest = data[1 + 2 * count :]
    ways = [[rest], parsing.cut(rest, [int.from_bytes(place) for place in places])]
    if len(rest) <= MAX_BYTEWISE:
        ways.append([rest[place : place + 1] for place in range(len(rest))])
    return rest, [[piece for piece in way if piece] for way in ways]


def same(results: Iterable[Any]) -> Any:
    """Return what all of them are.

    Raises:
        AssertionError: they differ.
    """
    first, *others = results
    for other in others:
        assert other == first, f"{first!r} is not {other!r}"
    return first


# -- HTTP


class ForgetfulParser(H11Parser):
    """Knows nothing from earlier requests: what the others remember must not change anything."""

    __slots__ = ()

    def _remember(self, *_: Any) -> None:
        pass


PARSERS: dict[str, type[Parser]] = {**parsing.PARSERS, "forgetful": ForgetfulParser}


class Sink(parsing.Sink):
    """Also notes the words of a refusal: the client reads them."""

    def request_refused(self, error: BadRequest) -> None:
        self.found.append(("refused", error.status, error.reason, error.is_for_head))


def parse(
    parser: str, pieces: list[bytes], heads: framing.SharedHeads | None = None, **settings: Any
) -> list[Any]:
    """Return what a parser finds; it never keeps more than a head and what came last."""
    sink = Sink()
    limits = WorkerSettings(**settings)
    most = limits.limit_request_line + limits.limit_request_fields * (
        limits.limit_request_field_size + 2
    )
    instance = PARSERS[parser](sink, limits, heads)
    for piece in pieces:
        instance.feed(piece)
        assert len(instance.buffer) <= most + 8 + len(piece)
        while instance.state == parsing.framing.ENDED:
            instance.proceed()
            if not instance.buffer:
                break
    return sink.found


def http1(data: bytes) -> None:
    """Both parsers find the same, in any pieces, whatever they remember, whatever the limits."""
    _, ways = cut(data)
    for settings in ({}, LIMITS):
        same(parse(parser, way, **settings) for parser in PARSERS for way in ways)


def conversations(data: bytes) -> list[list[bytes]]:
    """Return what several connections send that repeat themselves, and each other."""
    rest, (whole, pieces, *_) = cut(data)
    first, behind, others = rest.partition(b"\r\n\r\n")
    head, rest_in_two = [first + behind], [first + behind, others]
    altered = rest.replace(b"/", b"/x", 1)
    return [
        [piece for piece in sent if piece]
        for sent in (
            *(head, head, whole, whole, whole * 3, rest_in_two, pieces, pieces * 2, whole),
            *([rest * 2], head * 2, [altered], [altered, rest, altered], whole * 2, pieces),
        )
    ]


def shared(data: bytes) -> None:
    """Connections that know the heads of each other find what those find that know nothing."""
    talks = conversations(data)
    for settings in ({}, LIMITS):
        known = [parse("forgetful", sent, **settings) for sent in talks]
        for parser in PARSERS:
            heads = framing.SharedHeads()
            found = [parse(parser, sent, heads, **settings) for sent in talks]
            assert found == known, f"{found!r} is not {known!r}"


def chunks(data: bytes) -> None:
    """Both parsers find the same in what follows a head that announces chunks."""
    _, ways = cut(data)
    for settings in ({}, LIMITS):
        same(parse(parser, [CHUNKED, *way], **settings) for parser in PARSERS for way in ways)


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of all connections."""
    return asyncio.new_event_loop()


def connection(data: bytes) -> None:
    """Any pieces lead to the same output; only 100 Continue depends on what is here in time."""
    _, ways = cut(data)
    ways = ways[:2]
    outputs = [loop().run_until_complete(output(parser, way)) for parser in PARSERS for way in ways]
    same(output.replace(CONTINUE, b"") for output in outputs)


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Send back what was asked, with what there is of the body."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    end = message["type"].encode()
    await send({"type": "http.response.start", "status": 200})
    facts = [scope[name] for name in ("client", "server", "path", "headers", "extensions")]
    # What it does to the scope is its own affair.
    scope["headers"].append((b"x-own", b""))
    scope["extensions"].clear()
    await send({"type": "http.response.body", "body": b"%a %b %b" % (facts, body, end)})


def repeated(data: bytes) -> None:
    """Connections of one worker that repeat each other's requests get the usual answers."""
    talks = conversations(data)
    service: Service | None = None
    for number, sent in enumerate(talks):
        # Every other one is no proxy that is believed.
        address = ("10.0.0.7", 52100) if number % 2 else ("192.0.2.9", 52100)
        outputs = []
        for fellows in (None, service):
            answer, other = loop().run_until_complete(_answer_one(sent, address, fellows))
            outputs.append(answer.replace(CONTINUE, b""))
        service = other
        same(outputs)


async def _answer_one(
    pieces: list[bytes], address: tuple[str, int], service: Service | None
) -> tuple[bytes, Service]:
    """Return what one client of a worker is answered, of a new worker if there is none."""
    peer = Peer(application, client=address, service=service, ws="none", **LIMITS)
    peer.service.proxy_trust = ProxyTrust("10.0.0.7", take_host=True)
    return await _output(peer, pieces), peer.service


async def output(parser: str, pieces: list[bytes]) -> bytes:
    """Return what a connection answers to a client that sends this, and then its end."""
    peer = Peer(application, ws="none", **LIMITS)
    peer.connection._parser = PARSERS[parser](peer.connection, peer.service.settings)
    return await _output(peer, pieces)


async def _output(peer: Peer, pieces: list[bytes]) -> bytes:
    for piece in pieces:
        peer.send(piece)
        for _ in range(3):
            await asyncio.sleep(0)
    await settle(peer)
    if not peer.transport.closed:
        peer.send_eof()
        await settle(peer)
    if not peer.transport.closed:
        # The rest of a body that was not wanted, or never came.
        peer.wait(60.0)
        await settle(peer)
    written = peer.written
    assert peer.transport.closed
    if peer.connection in peer.service.connections:
        peer.lose()
    await settle(peer)
    assert not peer.service.tasks
    return written


async def settle(peer: Peer) -> None:
    """Let the event loop turn until nothing more happens."""
    before = None
    for turn in itertools.count():
        now = (
            len(peer.transport.writes),
            len(peer.service.tasks),
            len(peer.connection._parser.buffer),
        )
        if turn > 8 and now == before:
            break
        before = now
        await asyncio.sleep(0)


def proxy(data: bytes) -> None:
    """Whatever a proxy says becomes addresses and a scheme of the right kind."""
    headers = _fields(data)
    if headers is None:
        return
    for everybody, take_host, scheme in itertools.product(
        (True, False), (True, False), ("http", "ws")
    ):
        trust = ProxyTrust("*" if everybody else "10.0.0.0/8", take_host=take_host)
        client, told, server = trust.resolve(
            headers.copy(), ("10.0.0.7", 1), scheme, ("10.0.0.1", 80)
        )
        assert client is not None
        assert type(client[0]) is str
        assert type(client[1]) is int
        assert told in {"http": ("http", "https"), "ws": ("ws", "wss")}[scheme]
        assert server is not None
        assert type(server[1]) is int


def handshake(data: bytes) -> None:
    """A handshake is agreed on or refused."""
    headers = _fields(data)
    if headers is None:
        return
    headers += [
        (b"host", b"a"),
        (b"connection", b"upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    try:
        request = Request("GET", b"/", "1.1", headers)
        agreed = negotiate(request, per_message_deflate=True)
    except BadRequest:
        return
    assert agreed.accept == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    scope = request.scope("websocket", None, None, "ws")
    assert all(type(item) is str for item in scope["subprotocols"])


def _fields(data: bytes) -> list[tuple[bytes, bytes]] | None:
    """Return lines as the headers of a request that was understood, or None."""
    sink = Sink()
    parser = H11Parser(sink, WorkerSettings())
    lines = b"\r\n".join(line for line in data.split(b"\r\n") if line)
    parser.feed(b"GET / HTTP/1.0\r\n" + lines + b"\r\n\r\n")
    if not sink.found or sink.found[0][0] != "request":
        return None
    return list(sink.found[0][1][3])


def introduction(data: bytes) -> None:
    """A header of the PROXY protocol is the same in any pieces, and short."""

    def read(pieces: list[bytes]) -> Any:
        header = Header()
        taken = 0
        try:
            for piece in pieces:
                size = header.feed(piece)
                taken += size
                assert len(header._read) <= MAX_BLOCK + 16
                if header.complete:
                    break
                assert size == len(piece)
        except BadHeader:
            return "refused"
        return header.complete, header.told, taken

    same(map(read, cut(data)[1]))


# -- WebSocket


def frames(data: bytes) -> None:
    """Frames are the same events in any pieces, and hold no more than they may."""
    _, ways = cut(data)
    for deflate in (None, Deflate()):
        same(_events(way, deflate) for way in ways)


def _events(pieces: list[bytes], deflate: Deflate | None) -> list[Any]:
    reader = Frames(MAX_MESSAGE, deflate)
    events: list[Any] = []
    for piece in pieces:
        events += reader.receive(piece)
        assert len(reader._buffer) <= 125 + 14
        if events and isinstance(events[-1], Close):
            break
    for event in events:
        if isinstance(event, (str, bytes)):
            assert len(event.encode() if isinstance(event, str) else event) <= MAX_MESSAGE
    assert not any(isinstance(event, Close) for event in events[:-1])
    if events and isinstance(events[-1], Close) and events[-1].failed:
        code = events[-1].code
        if deflate and code == CloseCode.TOO_BIG:
            # What comes first in one message, that it is too long or what is wrong with it,
            # is known only as far as it is here.
            code = CloseCode.INVALID_DATA
        events[-1] = events[-1]._replace(code=code, reason="")
    return events


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "http1": (http1, corpus.requests),
    "shared": (shared, corpus.requests),
    "chunks": (chunks, corpus.bodies),
    "connection": (connection, corpus.requests),
    "repeated": (repeated, corpus.requests),
    "frames": (frames, corpus.frames),
    "handshake": (handshake, corpus.fields),
    "proxy": (proxy, corpus.fields),
    "introduction": (introduction, corpus.introductions),
}
"""Each with what it begins with; all but two of them cut their input."""

UNCUT = frozenset({"handshake", "proxy"})


def seeds(name: str) -> list[bytes]:
    """Return the inputs that a target begins with."""
    prefix = b"" if name in UNCUT else corpus.WHOLE
    return [prefix + data for data in TARGETS[name][1]()]
