"""What is said on the control socket: one JSON object a line, in both directions.

A request names a ``verb`` and its arguments. The answer is any number of lines that say how
it goes (``progress``, ``record``), and one that has ``ok``: true with the result, or false
with the ``error`` as a sentence and perhaps its ``detail``, such as a traceback. The next
request is looked at when the one before has been answered. docs/reference/control-protocol.md
is for those who write clients of their own.

Nothing here does I/O.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_REQUEST = 64 * 1024
"""The longest request, in bytes, with its line break."""


class Refused(Exception):
    """A request that is not fulfilled; the reason is a sentence, the detail many lines."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody wants, with the arguments that it came with."""

    verb: str
    arguments: Mapping[str, Any]


class Lines:
    """Cuts what arrives into lines, however it was split on the way."""

    __slots__ = ("_buffer", "_searched")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    def receive(self, data: bytes) -> None:
        """Take what has arrived."""
        self._buffer += data

    def next(self) -> bytes | None:
        """Return the next complete line without its end, or None.

        Raises:
            Refused: it is longer than a request may be; what follows cannot be understood.
        """
        end = self._buffer.find(b"\n", self._searched)
        if end >= MAX_REQUEST or (end < 0 and len(self._buffer) >= MAX_REQUEST):
            raise Refused(f"a request is at most {MAX_REQUEST} bytes long")
        if end < 0:
            # Or a line that comes byte by byte would be searched from its beginning each time.
            self._searched = len(self._buffer)
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line

    @property
    def begun(self) -> bool:
        """Whether there is a part of a request."""
        return bool(self._buffer)


def parse(line: bytes) -> Request:
    """Return the request in a line.

    Raises:
        Refused: it is none.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Refused(f"a request is a line of JSON, and this is none: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("verb"), str):
        raise Refused('a request is an object with a verb, such as {"verb": "status"}')
    return Request(found.pop("verb"), found)


def encode(answer: Mapping[str, Any]) -> bytes:
    """Return the line for an answer, or for a request."""
    return json.dumps(answer, separators=(",", ":")).encode() + b"\n"


def failure(refused: Refused) -> dict[str, Any]:
    """Return the last line of an answer to what is refused."""
    answer: dict[str, Any] = {"ok": False, "error": refused.reason}
    return answer | {"detail": refused.detail} if refused.detail else answer
