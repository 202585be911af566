"""Lines, requests and answers of the control socket."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgictl.operate.protocol import (
    MAX_REQUEST,
    Lines,
    Refused,
    Request,
    encode,
    failure,
    parse,
)


def drain(lines: Lines) -> list[bytes]:
    found = []
    while (line := lines.next()) is not None:
        found.append(line)
    return found


class TestLines:
    @given(st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"\n", b""))), st.data())
    def test_they_are_the_same_however_they_arrive(
        self, sent: list[bytes], data: st.DataObject
    ) -> None:
        stream = b"".join(line + b"\n" for line in sent)
        lines, found = Lines(), []
        while stream:
            size = data.draw(st.integers(1, len(stream)))
            lines.receive(stream[:size])
            stream = stream[size:]
            found += drain(lines)
        assert found == sent
        assert not lines.begun

    def test_a_part_of_one_is_known_to_have_begun(self) -> None:
        lines = Lines()
        lines.receive(b"a\nb")
        assert drain(lines) == [b"a"]
        assert lines.begun

    def test_the_longest_request_is_taken(self) -> None:
        lines = Lines()
        lines.receive(b"x" * (MAX_REQUEST - 1) + b"\n")
        assert drain(lines) == [b"x" * (MAX_REQUEST - 1)]

    @pytest.mark.parametrize("end", [b"\n", b""], ids=["whole", "unfinished"])
    def test_a_longer_one_is_refused(self, end: bytes) -> None:
        lines = Lines()
        lines.receive(b"x" * MAX_REQUEST + end)
        with pytest.raises(Refused, match="at most 65536 bytes"):
            lines.next()


class TestParsing:
    def test_a_request_is_a_verb_and_its_arguments(self) -> None:
        assert parse(b'{"verb": "scale", "to": "+1"}') == Request("scale", {"to": "+1"})

    @pytest.mark.parametrize(
        "line",
        [
            b"",
            b"status",
            b"\xff\xfe",
            b'"status"',
            b"[]",
            b"{}",
            b'{"verb": 1}',
            b'{"verb": "status"',
            b"[" * 50_000,
            b'{"verb": ' + b"9" * 10_000 + b"}",
        ],
        ids=[
            "empty",
            "word",
            "not UTF-8",
            "text",
            "list",
            "no verb",
            "number as verb",
            "half",
            "too deep",
            "too many digits",
        ],
    )
    def test_junk_is_refused_with_a_sentence(self, line: bytes) -> None:
        with pytest.raises(Refused, match="a request is"):
            parse(line)

    @given(st.binary(max_size=300))
    def test_whatever_arrives_is_a_request_or_refused(self, line: bytes) -> None:
        with contextlib.suppress(Refused):
            assert isinstance(parse(line), Request)


class TestAnswers:
    def test_they_are_one_line_whatever_they_hold(self) -> None:
        line = encode({"detail": "a\nb\u2028\ud800 ü"})
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")
        assert line.isascii()
        assert json.loads(line) == {"detail": "a\nb\u2028\ud800 ü"}

    def test_a_refusal_has_a_detail_only_if_there_is_one(self) -> None:
        assert failure(Refused("no")) == {"ok": False, "error": "no"}
        assert failure(Refused("no", "why")) == {"ok": False, "error": "no", "detail": "why"}
