import json
import re
import struct
from dataclasses import MISSING, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgictl_worker import contract
from asgictl_worker.contract import MalformedMessage

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
UINT32 = st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 2**64 - 1)

BEATS = st.builds(
    contract.Beat,
    connections=UINT32,
    in_flight=UINT32,
    loop_lag_us=UINT32,
    requests_total=UINT64,
    errors_total=UINT64,
    beats_dropped=UINT32,
)
RARE = st.one_of(
    st.builds(contract.Stage, stage=TEXT),
    st.builds(contract.Ready),
    st.builds(contract.Failed, stage=TEXT, error=TEXT, traceback=TEXT),
    st.builds(contract.Recycle, reason=TEXT),
    st.builds(contract.Draining, left=st.integers(0, 10**6)),
    st.builds(contract.Bye, reason=TEXT),
    st.builds(contract.Drain, timeout=st.floats(0, 1e6, allow_nan=False), reason=TEXT),
    st.builds(contract.ReopenLogs),
    st.builds(contract.ReloadTLS),
    st.builds(contract.LogLevel, level=TEXT),
)
KINDS: list[Any] = [*contract._TYPES.values()]


def head(number: int, magic: int = contract.MAGIC) -> bytes:
    return contract.HEADER.pack(magic, contract.VERSION, number)


@given(BEATS | RARE)
def test_what_is_encoded_is_decoded(message: contract.Message) -> None:
    assert contract.decode(contract.encode(message)) == message


def test_no_two_messages_have_the_same_type() -> None:
    assert sorted(contract._TYPES) == sorted(kind.TYPE for kind in KINDS)
    assert set(KINDS) == set(contract.Message.__args__)


def test_a_loop_that_lagged_for_hours_is_reported_as_the_longest_that_fits() -> None:
    beat = contract.decode(contract.encode(contract.Beat(loop_lag_us=2**40)))
    assert isinstance(beat, contract.Beat)
    assert beat.loop_lag_us == 2**32 - 1


@given(st.integers(0, 255).filter(lambda number: number not in contract._TYPES), st.binary())
def test_types_that_are_not_known_are_ignored(number: int, body: bytes) -> None:
    assert contract.decode(head(number) + body) is None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not contract.Beat])
def test_fields_that_are_not_known_are_ignored(kind: Any) -> None:
    needed = {item.name: "1" for item in fields(kind) if item.default is MISSING}
    body = json.dumps({**needed, "from_the_future": [1]}).encode()
    assert contract.decode(head(kind.TYPE) + body) == kind(**needed)


def test_a_beat_from_the_future_may_be_longer() -> None:
    beat = contract.Beat(connections=3)
    assert contract.decode(contract.encode(beat) + b"more") == beat


@given(st.binary(max_size=100))
def test_bytes_from_elsewhere_are_malformed_and_nothing_worse(datagram: bytes) -> None:
    if datagram[:2] == struct.pack("!H", contract.MAGIC):
        datagram = b"\0" + datagram
    with pytest.raises(MalformedMessage):
        contract.decode(datagram)


@given(st.sampled_from(KINDS), st.binary(max_size=100))
def test_a_broken_body_is_malformed_and_nothing_worse(kind: Any, body: bytes) -> None:
    try:
        message = contract.decode(head(kind.TYPE) + body)
    except MalformedMessage:
        return
    assert isinstance(message, kind)


@pytest.mark.parametrize("body", [b"", b"[]", b"3", b"{", b"\xff", b'{"reason": 1'])
def test_a_body_that_is_no_object_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedMessage, match="cannot be read"):
        contract.decode(head(contract.Bye.TYPE) + body)


def test_a_missing_field_without_default_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="reason"):
        contract.decode(head(contract.Bye.TYPE) + b"{}")


@given(st.text(max_size=3000), st.integers(200, 2000))
def test_a_shortened_text_fits_its_limit(text: str, limit: int) -> None:
    short = contract.shorten(text, limit)
    encoded = json.dumps(short, ensure_ascii=False).encode("utf-8", "replace")
    assert len(encoded) <= limit + 50  # the words in the middle


def test_a_shortened_text_keeps_both_ends_and_says_what_is_missing() -> None:
    short = contract.shorten("begin" + "x" * 100_000 + "end")
    assert short.startswith("begin")
    assert short.endswith("end")
    missing = re.search(r"\.\.\. (\d+) characters left out", short)
    assert missing is not None
    assert int(missing[1]) > 50_000


def test_the_longest_failure_fits_one_datagram() -> None:
    failed = contract.Failed(
        stage="lifespan",
        error=contract.shorten("\x1b" * 100_000, 4096),
        traceback=contract.shorten("\x1b" * 100_000),
    )
    assert len(contract.encode(failed)) <= contract.MAX_MESSAGE
