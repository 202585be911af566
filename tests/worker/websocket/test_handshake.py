import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.uri import parse_uri

from asgictl_worker.http.http1 import DefaultFields, Writer
from asgictl_worker.http.request import Request
from asgictl_worker.http.response import InvalidResponse
from asgictl_worker.settings import WorkerSettings
from asgictl_worker.websocket.frames import Deflate
from asgictl_worker.websocket.handshake import (
    BadHandshake,
    ReservedHeader,
    answer,
    negotiate,
    switch,
)


class FixedClock:
    date = b"date: then\r\n"


KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


def request(*headers, key=KEY, version=b"13", method="GET"):
    every = [(b"host", b"example.org"), (b"upgrade", b"websocket"), (b"connection", b"Upgrade")]
    every += [(b"sec-websocket-key", key)] if key is not None else []
    every += [(b"sec-websocket-version", version)] if version is not None else []
    return Request(method, b"/", "1.1", [*every, *headers])


def agree(*extensions):
    headers = [(b"sec-websocket-extensions", value.encode()) for value in extensions]
    handshake = negotiate(request(*headers), per_message_deflate=True)
    return handshake.deflate, handshake.extensions.decode()


def test_the_key_of_rfc_6455_is_accepted_with_its_answer():
    handshake = negotiate(request(), per_message_deflate=True)
    assert handshake == (b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", None, b"")


@pytest.mark.parametrize(
    "key",
    [None, b"", b"dGhlIHNhbXBsZSBub25jZQ", b"dGhlIHNhbXBsZSBub25jZQ===", b"AAAA", b"\xff" * 24]
    + [base64.b64encode(bytes(size)) for size in (15, 17)]
    + [b"dGhlIHNhbXBs ZSBub25jZQ=="],
)
def test_a_key_that_is_not_16_bytes_in_base64_is_refused(key):
    with pytest.raises(BadHandshake, match="Sec-WebSocket-Key") as caught:
        negotiate(request(key=key), per_message_deflate=True)
    assert caught.value.status == 400


def test_two_keys_are_refused():
    with pytest.raises(BadHandshake, match="Sec-WebSocket-Key"):
        negotiate(request((b"sec-websocket-key", KEY)), per_message_deflate=True)


@pytest.mark.parametrize("version", [None, b"8", b"12", b"14", b"013", b"13, 8", b""])
def test_another_version_is_refused_with_the_one_that_is_spoken(version):
    with pytest.raises(BadHandshake, match="version 13") as caught:
        negotiate(request(version=version), per_message_deflate=True)
    assert caught.value.status == 426
    assert (b"sec-websocket-version", b"13") in caught.value.headers


def test_only_get_opens_a_websocket():
    with pytest.raises(BadHandshake, match="GET") as caught:
        negotiate(request(method="POST"), per_message_deflate=True)
    assert caught.value.status == 400


# -- permessage-deflate (RFC 7692)


@pytest.mark.parametrize(
    ("offer", "deflate", "reply"),
    [
        (
            "permessage-deflate",
            Deflate(server_max_window_bits=12),
            "permessage-deflate; server_max_window_bits=12",
        ),
        (
            "permessage-deflate; client_max_window_bits",
            Deflate(server_max_window_bits=12, client_max_window_bits=12),
            "permessage-deflate; client_max_window_bits=12; server_max_window_bits=12",
        ),
        (
            'permessage-deflate;client_max_window_bits = "9" ; server_max_window_bits=10',
            Deflate(server_max_window_bits=10, client_max_window_bits=9),
            "permessage-deflate; client_max_window_bits=9; server_max_window_bits=10",
        ),
        (
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            Deflate(True, True, 12, 15),
            (
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; "
                "server_max_window_bits=12"
            ),
        ),
        (
            "permessage-deflate; client_max_window_bits=15; server_max_window_bits=15",
            Deflate(server_max_window_bits=12, client_max_window_bits=12),
            "permessage-deflate; client_max_window_bits=12; server_max_window_bits=12",
        ),
        # The first offer that suits.
        (
            (
                "x-webkit-deflate-frame, permessage-deflate; server_max_window_bits=8, "
                "permessage-deflate; server_max_window_bits=9"
            ),
            Deflate(server_max_window_bits=9),
            "permessage-deflate; server_max_window_bits=9",
        ),
    ],
)
def test_an_offer_of_compression_is_answered(offer, deflate, reply):
    assert agree(offer) == (deflate, reply)


@pytest.mark.parametrize(
    "parameters",
    [
        "server_max_window_bits",
        "server_max_window_bits=7",
        "server_max_window_bits=16",
        "server_max_window_bits=09",
        "server_max_window_bits=8",
        "server_max_window_bits=x",
        "server_max_window_bits=9; server_max_window_bits=9",
        "client_max_window_bits=16",
        "client_max_window_bits=123456",
        "client_no_context_takeover=1",
        "server_no_context_takeover; server_no_context_takeover",
        "unknown",
        "unknown=1",
    ],
)
def test_an_offer_with_parameters_that_do_not_suit_is_declined(parameters):
    assert agree(f"permessage-deflate; {parameters}") == (None, "")
    assert agree(f"permessage-deflate; {parameters}", "permessage-deflate")[0] is not None


@pytest.mark.parametrize("offer", ["foo", "foo; bar=1", "", " , foo,", "x-permessage-deflate"])
def test_other_extensions_are_declined(offer):
    assert agree(offer) == (None, "")


@pytest.mark.parametrize(
    "offer", ["foo bar", "foo;", "foo; bar=", "foo=1", "; foo", "foo; =1", 'foo; bar="a b"', "@"]
)
def test_extensions_that_cannot_be_read_are_refused(offer):
    with pytest.raises(BadHandshake, match="Extensions") as caught:
        agree(offer)
    assert caught.value.status == 400


@given(st.text(alphabet='permessage-deflate; client_max_window_bits=8915,"', max_size=80))
def test_whatever_is_offered_is_agreed_on_declined_or_refused(offer):
    try:
        deflate, reply = agree(offer)
    except BadHandshake:
        return
    assert (deflate is None) == (reply == "")


def test_compression_can_be_switched_off():
    offer = request((b"sec-websocket-extensions", b"permessage-deflate"))
    assert negotiate(offer, per_message_deflate=False)[1:] == (None, b"")


@pytest.mark.parametrize("server_bits", [None, 9, 12, 15])
@pytest.mark.parametrize("client_bits", [None, True, 9, 15])
@pytest.mark.parametrize("fresh", [False, True])
def test_the_client_of_websockets_takes_the_answer(server_bits, client_bits, fresh):
    client = ClientProtocol(
        parse_uri("ws://example.org/"),
        subprotocols=["chat"],
        extensions=[ClientPerMessageDeflateFactory(fresh, fresh, server_bits, client_bits)],
    )
    asked = client.connect()
    headers = [(name.lower().encode(), value.encode()) for name, value in asked.headers.raw_items()]
    handshake = negotiate(Request("GET", b"/", "1.1", headers), per_message_deflate=True)
    answered = answer(handshake, "chat", [(b"x-own", b"1")])
    client.send_request(asked)
    client.receive_data(
        b"HTTP/1.1 101 Switching Protocols\r\n"
        + b"".join(b"%b: %b\r\n" % header for header in answered)
        + b"\r\n"
    )
    assert client.handshake_exc is None
    assert client.subprotocol == "chat"
    (extension,) = client.extensions
    agreed = handshake.deflate
    assert extension.local_no_context_takeover == agreed.client_no_context_takeover == fresh
    assert extension.remote_no_context_takeover == agreed.server_no_context_takeover == fresh
    assert extension.local_max_window_bits == agreed.client_max_window_bits
    assert extension.remote_max_window_bits == agreed.server_max_window_bits


# -- The answer


def test_headers_of_the_application_follow_those_of_the_handshake():
    handshake = negotiate(request(), per_message_deflate=True)
    assert answer(handshake, None, [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]) == [
        (b"upgrade", b"websocket"),
        (b"connection", b"Upgrade"),
        (b"sec-websocket-accept", handshake.accept),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        b"connection",
        b"upgrade",
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"content-length",
        b"transfer-encoding",
    ],
)
def test_headers_of_the_handshake_belong_to_the_server(name):
    handshake = negotiate(request(), per_message_deflate=True)
    with pytest.raises(ReservedHeader, match=name.decode()):
        answer(handshake, None, [(name, b"x")])


def test_the_subprotocol_may_come_as_a_header_but_not_twice():
    handshake = negotiate(request(key=base64.b64encode(os.urandom(16))), per_message_deflate=True)
    header = (b"sec-websocket-protocol", b"chat")
    assert header in answer(handshake, None, [header])
    assert header in answer(handshake, "chat", [])
    with pytest.raises(ReservedHeader, match="sec-websocket-protocol"):
        answer(handshake, "chat", [header])


@pytest.mark.parametrize("field", [(), ("x-a", "1"), (None, b"1"), 5])
def test_what_is_no_header_is_left_to_the_writer_to_refuse(field):
    handshake = negotiate(request(), per_message_deflate=True)
    headers = answer(handshake, None, [field])
    writer = Writer(FixedClock(), DefaultFields(WorkerSettings()))
    with pytest.raises(InvalidResponse):
        switch(writer, request(), headers)


def test_the_whole_answer_is_a_101_without_a_length():
    handshake = negotiate(request(), per_message_deflate=True)
    writer = Writer(FixedClock(), DefaultFields(WorkerSettings()))
    assert switch(writer, request(), answer(handshake, "chat", [(b"x-a", b"1")])) == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"date: then\r\n"
        b"server: asgictl\r\n"
        b"upgrade: websocket\r\n"
        b"connection: Upgrade\r\n"
        b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"sec-websocket-protocol: chat\r\n"
        b"x-a: 1\r\n"
        b"\r\n"
    )
