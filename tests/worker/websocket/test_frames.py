import os
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Opcode
from websockets.protocol import OPEN

from asgictl_worker.websocket.frames import (
    MAX_INFLATED,
    MAX_PARTS,
    Close,
    Deflate,
    Frames,
    InvalidClose,
    Ping,
    Pong,
)

MAX_SIZE = 1000
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
TAIL = b"\x00\x00\xff\xff"


def frame(opcode, payload=b"", *, fin=True, reserved=0, mask=b"\x01\x02\x03\x04", length=None):
    """Return a client's frame; nothing about it needs to be right."""
    head = bytes([fin << 7 | reserved << 4 | opcode])
    length = len(payload) if length is None else length
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 65536:
        head += struct.pack("!BH", 0x80 | 126, length)
    else:
        head += struct.pack("!BQ", 0x80 | 127, length)
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def deflated(payload, *, mode=zlib.Z_SYNC_FLUSH):
    stream = zlib.compressobj(wbits=-15)
    data = stream.compress(payload) + stream.flush(mode)
    return data[:-4] if mode == zlib.Z_SYNC_FLUSH else data


def receive(*frames, max_size=MAX_SIZE, deflate=None):
    return Frames(max_size, deflate).receive(b"".join(frames))


def failure(*frames, **options):
    """Return the code of the failure that ends these frames, which is their only event."""
    (event,) = receive(*frames, **options)
    assert isinstance(event, Close)
    assert event.failed
    assert event.reason
    return event.code


# -- Messages


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_messages_of_every_length_format_arrive(size):
    text, binary = "x" * size, os.urandom(size)
    assert receive(frame(TEXT, text.encode()), frame(BINARY, binary), max_size=size or 1) == [
        text,
        binary,
    ]


@pytest.mark.parametrize("size", [5, 200, 70000])
def test_a_head_may_come_byte_by_byte(size):
    whole = frame(BINARY, bytes(size), mask=bytes(4))
    frames = Frames(size)
    events = [event for byte in whole[:16] for event in frames.receive(bytes([byte]))]
    assert [*events, *frames.receive(whole[16:])] == [bytes(size)]


def test_fragments_become_one_message_and_control_frames_come_between():
    assert receive(
        frame(TEXT, b"Hel", fin=False),
        frame(PING, b"?"),
        frame(CONTINUATION, b"", fin=False),
        frame(PONG, b"!"),
        frame(CONTINUATION, b"lo"),
        frame(BINARY, b"\x00", fin=False),
        frame(CONTINUATION, b"\xff"),
    ) == [Ping(b"?"), Pong(b"!"), "Hello", b"\x00\xff"]


def test_a_character_may_be_cut_by_a_fragment():
    euro = "€".encode()
    assert receive(frame(TEXT, euro[:1], fin=False), frame(CONTINUATION, euro[1:])) == ["€"]


@pytest.mark.parametrize("deflate", [None, Deflate()])
@given(data=st.data())
def test_however_the_bytes_are_cut_the_events_are_the_same(deflate, data):
    reserved = 4 if deflate else 0
    encode = deflated if deflate else bytes
    messages = data.draw(
        st.lists(
            st.one_of(
                st.text(max_size=200).map(
                    lambda text: frame(TEXT, encode(text.encode()), reserved=reserved)
                ),
                st.binary(max_size=300).map(
                    lambda binary: frame(BINARY, encode(binary), reserved=reserved)
                ),
                st.binary(max_size=125).map(lambda payload: frame(PING, payload)),
                st.tuples(st.binary(max_size=20), st.binary(max_size=20)).map(
                    lambda parts: frame(BINARY, parts[0], fin=False) + frame(CONTINUATION, parts[1])
                ),
                st.binary(max_size=6),  # most likely an error
            ),
            max_size=6,
        )
    )
    stream = b"".join(messages)
    whole = Frames(MAX_SIZE, deflate).receive(stream)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=30)))
    frames = Frames(MAX_SIZE, deflate)
    events = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events += frames.receive(stream[start:end])
    assert events == whole


# -- Rules of RFC 6455


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_an_unknown_opcode_is_a_protocol_error(opcode):
    assert failure(frame(opcode)) == 1002


@pytest.mark.parametrize("opcode", [CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG])
@pytest.mark.parametrize("reserved", range(1, 8))
def test_a_reserved_bit_is_a_protocol_error_unless_it_was_agreed_on(opcode, reserved):
    assert failure(frame(opcode, reserved=reserved)) == 1002
    if reserved != 4 or opcode not in (TEXT, BINARY):
        assert failure(frame(opcode, reserved=reserved), deflate=Deflate()) == 1002


def test_the_compressed_bit_on_a_continuation_is_a_protocol_error():
    assert (
        failure(
            frame(TEXT, deflated(b"x")[:1], fin=False, reserved=4),
            frame(CONTINUATION, deflated(b"x")[1:], reserved=4),
            deflate=Deflate(),
        )
        == 1002
    )


@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, CLOSE])
def test_a_frame_without_mask_is_a_protocol_error(opcode):
    assert failure(bytes([0x80 | opcode, 0])) == 1002


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_a_control_frame_is_short_and_whole(opcode):
    assert failure(frame(opcode, b"x" * 126)) == 1002
    assert failure(frame(opcode, fin=False)) == 1002


def test_a_control_frame_that_is_too_long_is_refused_by_its_first_two_bytes():
    assert failure(frame(PING, b"x" * 126)[:2]) == 1002


def test_a_continuation_needs_a_message_to_continue():
    assert failure(frame(CONTINUATION, b"x")) == 1002
    assert receive(frame(TEXT, b"x"), frame(CONTINUATION, b"x"))[1].code == 1002


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_inside_another_is_a_protocol_error(opcode):
    assert failure(frame(TEXT, b"x", fin=False), frame(opcode, b"y")) == 1002


def test_a_negative_length_is_a_protocol_error():
    assert failure(frame(BINARY, length=1 << 63)) == 1002


def test_messages_before_an_error_are_delivered_and_bytes_after_it_are_not():
    frames = Frames(MAX_SIZE)
    events = frames.receive(frame(TEXT, b"a") + frame(3) + frame(TEXT, b"b"))
    assert events == ["a", Close(1002, "opcode 3 is not known", failed=True)]
    assert frames.receive(frame(TEXT, b"c")) == []


# -- Text


INVALID_TEXT = [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"abc\xe2\x82"]


@pytest.mark.parametrize("text", INVALID_TEXT)
def test_text_that_is_not_utf8_is_refused(text):
    assert failure(frame(TEXT, text)) == 1007
    assert failure(frame(TEXT, text, fin=False), frame(CONTINUATION)) == 1007
    assert failure(frame(TEXT, deflated(text), reserved=4), deflate=Deflate()) == 1007


def test_a_wrong_byte_is_refused_before_the_message_is_complete():
    whole = frame(TEXT, b"abc\xff" + b"x" * 500)
    assert failure(whole[: len(whole) - 500]) == 1007
    assert failure(frame(TEXT, b"abc\xff", fin=False)) == 1007


def test_half_a_character_may_wait_for_the_rest_of_its_frame():
    whole = frame(TEXT, "€uro".encode())
    frames = Frames(MAX_SIZE)
    assert frames.receive(whole[:-6]) == []
    assert frames.receive(whole[-6:]) == ["€uro"]


# -- Sizes


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_may_be_as_long_as_the_limit_and_not_longer(opcode):
    assert len(receive(frame(opcode, b"x" * MAX_SIZE))[0]) == MAX_SIZE
    assert failure(frame(opcode, b"x" * (MAX_SIZE + 1))) == 1009


def test_a_message_that_is_too_long_is_refused_by_its_head():
    assert failure(frame(BINARY, length=MAX_SIZE + 1)) == 1009
    assert failure(frame(BINARY, length=(1 << 63) - 1)) == 1009


def test_the_limit_counts_all_fragments():
    half = b"x" * 500
    assert len(receive(frame(TEXT, half, fin=False), frame(CONTINUATION, half))[0]) == MAX_SIZE
    assert (
        failure(frame(TEXT, half, fin=False), frame(CONTINUATION, half + b"x", fin=False)) == 1009
    )


def parts(payloads, *, opcode=TEXT):
    """Return one message in fragments."""
    last = len(payloads) - 1
    return b"".join(
        frame(CONTINUATION if number else opcode, payload, fin=number == last)
        for number, payload in enumerate(payloads)
    )


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_of_very_many_fragments_is_put_together(opcode):
    payloads = [b"%02d" % (number % 100) for number in range(3 * MAX_PARTS + 7)]
    (message,) = receive(parts(payloads, opcode=opcode), max_size=100_000)
    whole = b"".join(payloads)
    assert message == (whole if opcode == BINARY else whole.decode())


def test_fragments_take_no_more_memory_than_what_is_in_them():
    frames = Frames(10_000_000)
    frames.receive(frame(TEXT, b"", fin=False))
    tracemalloc.start()
    try:
        for _ in range(50):
            frames.receive(frame(CONTINUATION, b"", fin=False) * 1000)
        empty = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            frames.receive(frame(CONTINUATION, b"ab", fin=False) * 1000)
        short = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert empty < 10_000
    assert short < 2 * 200_000 + 100 * MAX_PARTS
    assert frames.receive(frame(CONTINUATION, b"c")) == ["ab" * 100_000 + "c"]


def test_of_what_inflates_a_lot_only_a_part_is_inflated_at_once():
    size = 300_000
    message = frame(BINARY, deflated(bytes(size)), reserved=4)
    frames = Frames(size, Deflate())
    # No context takeover in deflated(): each message is a stream of its own.
    rest = message * 20
    count = 0
    events = frames.receive(rest)
    while events:
        assert len(events) * size < MAX_INFLATED + size
        count += len(events)
        assert frames.is_behind == (count < 20)
        events = frames.receive(b"")
    assert count == 20
    assert frames.receive(frame(TEXT, b"next")) == ["next"]


def test_the_beginning_of_a_frame_can_be_left_for_later():
    size = 1_100_000
    message = frame(BINARY, deflated(bytes(size)), reserved=4)
    follows = frame(TEXT, b"next")
    frames = Frames(size, Deflate())
    assert len(frames.receive(message + follows[:3])) == 1
    assert frames.is_behind
    assert frames.receive(b"") == []
    assert not frames.is_behind
    assert frames.receive(follows[3:]) == ["next"]


def test_the_limit_counts_inflated_bytes():
    deflate = Deflate()
    whole = frame(BINARY, deflated(bytes(MAX_SIZE)), reserved=4)
    assert receive(whole, deflate=deflate) == [bytes(MAX_SIZE)]
    longer = frame(BINARY, deflated(bytes(MAX_SIZE + 1)), reserved=4)
    assert failure(longer, deflate=deflate) == 1009


def test_a_bomb_is_not_inflated_beyond_the_limit():
    bomb = deflated(bytes(50_000_000))
    assert failure(frame(BINARY, bomb, reserved=4), deflate=Deflate()) == 1009
    final = deflated(bytes(50_000_000), mode=zlib.Z_FINISH)
    assert failure(frame(BINARY, final + b"\x00", reserved=4), deflate=Deflate()) == 1009
    exact = deflated(bytes(MAX_SIZE + 1), mode=zlib.Z_FINISH)
    assert failure(frame(BINARY, exact + bomb, reserved=4), deflate=Deflate()) == 1009


def test_what_waits_for_more_bytes_is_never_longer_than_a_control_frame():
    frames = Frames(1 << 24)
    for data in (frame(PING, b"x" * 125)[:-1], frame(BINARY, b"x" * 70000)[:13]):
        assert frames.receive(data) == []
        assert len(frames._buffer) <= 131
        frames = Frames(1 << 24)


# -- Closing


def test_a_close_frame_is_the_last_event():
    frames = Frames(MAX_SIZE)
    data = struct.pack("!H", 4000) + "bye €".encode()
    assert frames.receive(frame(CLOSE, data) + frame(TEXT, b"x")) == [Close(4000, "bye €")]
    assert frames.receive(frame(TEXT, b"x")) == []


def test_a_close_frame_without_code_reports_1005():
    assert receive(frame(CLOSE)) == [Close(1005, "")]


def test_a_close_frame_may_come_inside_a_message():
    assert receive(frame(TEXT, b"x", fin=False), frame(CLOSE, b"\x03\xe8")) == [Close(1000, "")]


VALID_CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999]
INVALID_CODES = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]


@pytest.mark.parametrize("code", VALID_CODES)
def test_codes_that_may_travel_do(code):
    assert receive(frame(CLOSE, struct.pack("!H", code))) == [Close(code, "")]
    assert Frames(MAX_SIZE).close(code) == b"\x88\x02" + struct.pack("!H", code)


@pytest.mark.parametrize("code", INVALID_CODES)
def test_codes_that_may_not_travel_are_refused(code):
    assert failure(frame(CLOSE, struct.pack("!H", code))) == 1002
    if code != 1005:
        with pytest.raises(InvalidClose, match=f"code {code};"):
            Frames(MAX_SIZE).close(code)


def test_half_a_code_is_a_protocol_error():
    assert failure(frame(CLOSE, b"\x03")) == 1002


@pytest.mark.parametrize("reason", INVALID_TEXT)
def test_a_reason_that_is_not_utf8_is_refused(reason):
    assert failure(frame(CLOSE, b"\x03\xe8" + reason)) == 1007


def test_a_long_reason_is_cut_between_characters():
    close = Frames(MAX_SIZE).close(1011, "x" + "€" * 100)
    assert len(close) <= 127
    assert close[4:].decode() == "x" + "€" * 40


def test_1005_sends_a_close_frame_without_code():
    assert Frames(MAX_SIZE).close(1005) == b"\x88\x00"


# -- permessage-deflate


@pytest.mark.parametrize("fresh", [False, True])
def test_messages_are_inflated_with_and_without_the_context_of_earlier_ones(fresh):
    stream = zlib.compressobj(wbits=-15)
    frames = Frames(MAX_SIZE, Deflate(client_no_context_takeover=fresh))
    for _ in range(3):
        if fresh:
            stream = zlib.compressobj(wbits=-15)
        data = (stream.compress(b"Hello" * 9) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
        assert frames.receive(frame(TEXT, data, reserved=4)) == ["Hello" * 9]


def test_the_examples_of_rfc_7692_inflate():
    frames = Frames(MAX_SIZE, Deflate())
    for payload in (
        "f248cdc9c90700",  # section 7.2.3.1: one deflate block
        "f200110000",  # section 7.2.3.2: with the window of the message before
        "000500faff48656c6c6f00",  # section 7.2.3.3: a block that is not compressed
        "f348cdc9c9070000",  # section 7.2.3.4: a block marked final
        "f248050000 00ffffcac9c90700",  # section 7.2.3.5: two blocks
    ):
        data = bytes.fromhex(payload)
        assert frames.receive(frame(TEXT, data, reserved=4)) == ["Hello"], payload


def test_a_message_of_endless_final_blocks_is_refused():
    empty = deflated(b"", mode=zlib.Z_FINISH)
    assert failure(frame(BINARY, empty * 100, reserved=4), deflate=Deflate()) == 1007
    fragments = [frame(BINARY, empty, fin=False, reserved=4)]
    fragments += [frame(CONTINUATION, empty, fin=False)] * 2
    assert failure(*fragments, deflate=Deflate()) == 1007


def test_every_message_may_have_a_final_block():
    data = frame(BINARY, deflated(b"x", mode=zlib.Z_FINISH) + b"\x00", reserved=4)
    assert receive(data, data, data, deflate=Deflate()) == [b"x"] * 3


def test_rubbish_is_not_inflated():
    assert failure(frame(BINARY, b"\xff" * 9, reserved=4), deflate=Deflate()) == 1007


def test_a_message_that_is_not_compressed_is_taken_as_it_is():
    assert receive(frame(TEXT, b"plain"), deflate=Deflate()) == ["plain"]


def test_a_compressed_message_may_come_in_fragments():
    data = deflated(b"Hello" * 30)
    fragments = [frame(TEXT, data[:3], fin=False, reserved=4), frame(PING), frame(CONTINUATION)]
    fragments[2:] = [frame(CONTINUATION, data[3:5], fin=False), frame(CONTINUATION, data[5:])]
    assert receive(*fragments, deflate=Deflate()) == [Ping(b""), "Hello" * 30]


# -- Sending, as another implementation reads it


def sent(data, deflate=None):
    """Return opcode and payload of each frame as the client of websockets reads it."""
    client = ClientProtocol(None, state=OPEN, max_size=None)
    if deflate is not None:
        client.extensions = [
            PerMessageDeflate(
                deflate.server_no_context_takeover,
                deflate.client_no_context_takeover,
                deflate.server_max_window_bits,
                deflate.client_max_window_bits,
            )
        ]
    client.receive_data(data)
    assert client.parser_exc is None
    return [(event.opcode, bytes(event.data)) for event in client.events_received()]


@pytest.mark.parametrize(
    "deflate",
    [
        None,
        Deflate(),
        Deflate(server_no_context_takeover=True),
        Deflate(server_max_window_bits=9),
    ],
)
@pytest.mark.parametrize("size", [0, 1, 125, 126, 511, 512, 65535, 65536, 100_000])
def test_a_client_reads_what_was_sent(deflate, size):
    frames = Frames(MAX_SIZE, deflate)
    text = ("Grüße, " * size)[:size]
    binary = text.encode("latin-1")
    data = b"".join(
        [
            frames.text(text),
            frames.binary(binary),
            frames.ping(b"?"),
            frames.pong(b"!"),
            frames.close(1000, "bye"),
        ]
    )
    assert sent(data, deflate) == [
        (Opcode.TEXT, text.encode()),
        (Opcode.BINARY, binary),
        (Opcode.PING, b"?"),
        (Opcode.PONG, b"!"),
        (Opcode.CLOSE, b"\x03\xe8bye"),
    ]


def test_long_messages_are_deflated_and_short_ones_are_not():
    frames = Frames(MAX_SIZE, Deflate())
    assert frames.text("x" * 100)[0] == 0x81
    long = frames.text("x" * 1000)
    assert long[0] == 0xC1
    assert len(long) < 100


def test_half_a_surrogate_pair_cannot_be_sent():
    with pytest.raises(UnicodeEncodeError):
        Frames(MAX_SIZE).text("\ud800")
