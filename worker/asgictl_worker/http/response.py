"""The order of a response's messages, and the errors of an application that breaks it.

``TRANSITIONS`` is the truth. ``cycle.py`` spells it as comparisons, because a look-up with two
enumeration keys takes ten times as long; a test walks the table and compares.
"""

from enum import Enum
from typing import Any


class Phase(Enum):
    """How far a response is."""

    WAITING = 0
    """The application has not sent anything."""
    HELD = 1
    """The start waits for the first part of the body; nothing is written."""
    STREAMING = 2
    """The head is written, the end is not."""
    COPYING = 3
    """A file is on its way; until it is sent, no message has a place."""
    TRAILING = 4
    """The body is written, the trailers that were promised are not."""
    COMPLETE = 5
    """All is written. The application may go on, but has nothing more to say."""


class Step(Enum):
    """What the messages of an application mean to the response."""

    START = "http.response.start"
    PART = "http.response.body with more_body"
    LAST = "http.response.body"
    FILE = "http.response.pathsend"
    FILE_PART = "http.response.zerocopysend with more_body"
    LAST_FILE_PART = "http.response.zerocopysend"
    HINT = "http.response.early_hint"
    SOME_TRAILERS = "http.response.trailers with more_trailers"
    TRAILERS = "http.response.trailers"


TRANSITIONS: dict[Phase, dict[Step, Phase]] = {
    Phase.WAITING: {Step.START: Phase.HELD, Step.HINT: Phase.WAITING},
    Phase.HELD: {
        Step.PART: Phase.STREAMING,
        Step.LAST: Phase.COMPLETE,
        Step.FILE: Phase.COMPLETE,
        Step.FILE_PART: Phase.STREAMING,
        Step.LAST_FILE_PART: Phase.COMPLETE,
        Step.HINT: Phase.HELD,
    },
    Phase.STREAMING: {
        Step.PART: Phase.STREAMING,
        Step.LAST: Phase.COMPLETE,
        Step.FILE_PART: Phase.STREAMING,
        Step.LAST_FILE_PART: Phase.COMPLETE,
        Step.HINT: Phase.STREAMING,
    },
    Phase.COPYING: {},
    Phase.TRAILING: {Step.SOME_TRAILERS: Phase.TRAILING, Step.TRAILERS: Phase.COMPLETE},
    Phase.COMPLETE: {},
}
"""Where the start promised trailers, the last part of the body leads to TRAILING instead. While
a file is sent the phase is COPYING."""


class ResponseError(Exception):
    """The application broke the rules of a response; raised from its ``send()``."""


class UnexpectedMessage(ResponseError):
    """A message of an unknown type, or one that has no place here."""

    def __init__(self, kind: object, phase: Phase) -> None:
        self.kind, self.phase = kind, phase
        expected = {
            Phase.WAITING: "http.response.start comes first",
            Phase.HELD: "http.response.body or a file comes next",
            Phase.STREAMING: "http.response.body comes next",
            Phase.COPYING: "a file is still being sent",
            Phase.TRAILING: "http.response.trailers comes next",
            Phase.COMPLETE: "the response is already complete",
        }[phase]
        super().__init__(f"the application sent {kind!r}, but {expected}")


class InvalidResponse(ResponseError):
    """A status, header or body that cannot be put on the wire."""

    def __init__(self, what: str, value: Any, advice: str) -> None:
        self.what, self.value = what, value
        super().__init__(f"the application sent the {what} {value!r}; {advice}")


class BodyLengthMismatch(ResponseError):
    """The application promised one length and sent another (RFC 9110, section 8.6)."""

    def __init__(self, promised: int, sent: int) -> None:
        self.promised, self.sent = promised, sent
        more = "at least " if sent > promised else ""
        super().__init__(
            f"the application promised Content-Length: {promised} but sent {more}{sent} bytes; "
            f"leave the header out, and the server adds it"
        )


class IncompleteResponse(ResponseError):
    """The application returned before its response was complete."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase
        missing = {
            Phase.WAITING: "without sending a response",
            Phase.HELD: "after http.response.start, without any http.response.body",
            Phase.STREAMING: "before the last http.response.body (more_body was true)",
            Phase.COPYING: "while a file was still being sent",
            Phase.TRAILING: "without the http.response.trailers that it promised",
        }[phase]
        super().__init__(f"the application returned {missing}")


class ClientDisconnected(OSError):
    """Raised by ``send()`` when nobody is there any more (ASGI 2.4: a kind of OSError)."""

    def __init__(self) -> None:
        super().__init__("the client has disconnected")
