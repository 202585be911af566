"""The words that a conformance case is made of.

A case says what is sent and what may come back. Where a standard leaves a choice, every choice
is listed, so that the cases are fair to servers that decided otherwise; ``own`` is what asgictl
promises beyond that, mostly that nothing is taken which two implementations could read in two
ways.
"""

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Level(Enum):
    """How strongly the source asks for it (RFC 2119)."""

    MUST = "MUST"
    SHOULD = "SHOULD"


class Then(Enum):
    """What becomes of the connection after the last answer."""

    CLOSED = "closed"
    KEPT = "kept"
    EITHER = "either"


# -- What is sent, besides plain bytes


@dataclass(frozen=True, slots=True)
class Bytewise:
    """These bytes, each in a packet of its own."""

    data: bytes


@dataclass(frozen=True, slots=True)
class AwaitAnswer:
    """Read on until so many final responses are here."""

    count: int = 1


@dataclass(frozen=True, slots=True)
class AwaitInterim:
    """Read on until a 1xx is here; a final response ends the wait, too."""


@dataclass(frozen=True, slots=True)
class AwaitReport:
    """Wait, on another connection, until the application has noted something under this key."""

    key: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Give the server time to look at what was sent; nothing depends on how much."""


@dataclass(frozen=True, slots=True)
class HalfClose:
    """Close the sending half of the connection."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Break the connection, and open another one for what follows."""


@dataclass(frozen=True, slots=True)
class Unread:
    """Send these bytes, however long it takes, without reading meanwhile."""

    data: bytes


Step = (
    bytes | Bytewise | AwaitAnswer | AwaitInterim | AwaitReport | Pause | HalfClose | Reset | Unread
)


# -- What may come back


@dataclass(frozen=True, slots=True)
class Response:
    """One final response as the client read it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    interim: tuple[int, ...] = ()
    """The 1xx responses before it."""
    version: str = "1.1"
    flaw: str = ""
    """What is wrong with it, such as an end that never came."""

    def values(self, name: str) -> list[str]:
        """Return the values of all fields of a name, in order."""
        return [value for other, value in self.headers if other.lower() == name]


@dataclass(frozen=True, slots=True)
class Observed:
    """What came back in a case."""

    answers: tuple[Response, ...]
    end: str
    """``closed`` or ``kept``, or in other words what happened instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a response has to be.

    Attributes:
        status: which statuses it may have.
        body: its body, unless it does not matter.
        headers: a pattern for the value of a field that there has to be once, or None for a
            field that there must not be.
        saw: what the application was told, as far as it matters (``application.echo``).
        cut: whether the client has to notice that the end is missing.
        interim: which 1xx responses come before it, unless it does not matter.
        version: of HTTP, in its first line, unless it does not matter.
    """

    status: Container[int]
    body: bytes | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    saw: Mapping[str, Any] = field(default_factory=dict)
    cut: bool = False
    interim: tuple[int, ...] | None = None
    version: str | None = None

    def objection(self, response: Response, told: Mapping[str, Any]) -> str:
        """Return what is wrong with a response, or nothing."""
        if bool(response.flaw) != self.cut:
            return response.flaw or "it is complete"
        if response.status not in self.status:
            return f"status {response.status}"
        if self.body is not None and response.body != self.body:
            return f"body {response.body[:200]!r}"
        for name, pattern in self.headers.items():
            values = response.values(name)
            if pattern is None:
                if values:
                    return f"there is {name}: {values}"
            elif len(values) != 1 or not re.fullmatch(pattern, values[0]):
                return f"{name}: {values}"
        for key, wanted in self.saw.items():
            if told.get(key) != wanted:
                return f"the application saw {key} {told.get(key)!r}"
        if self.interim is not None and response.interim != self.interim:
            return f"interim responses {response.interim}"
        if self.version is not None and response.version != self.version:
            return f"version {response.version}"
        return ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One of the things that may come back."""

    answers: tuple[Answer, ...]
    then: Then = Then.EITHER


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing that is tried.

    Attributes:
        name: an identifier, whose first word is the area.
        source: the section that says so.
        send: what is sent, in steps.
        expect: what may come back.
        own: what asgictl answers, if that is narrower.
        level: how strongly the source asks for it.
        heads: which of the requests are HEAD, counted from 0.
    """

    name: str
    source: str
    send: tuple[Step, ...]
    expect: tuple[Outcome, ...]
    own: tuple[Outcome, ...] = ()
    level: Level = Level.MUST
    heads: frozenset[int] = frozenset()

    @property
    def area(self) -> str:
        """The first word of the name."""
        return self.name.partition(".")[0]

    @property
    def answers(self) -> int:
        """How many responses are waited for."""
        return max(len(outcome.answers) for outcome in self.expect)


def must(
    name: str,
    source: str,
    send: bytes | Iterable[Step],
    *expect: Outcome,
    own: Outcome | None = None,
    level: Level = Level.MUST,
    heads: Iterable[int] | None = None,
) -> Case:
    """Declare a case; a single request that begins with HEAD is one."""
    steps = (send,) if isinstance(send, bytes) else tuple(send)
    if heads is None:
        heads = (0,) if isinstance(steps[0], bytes) and steps[0].startswith(b"HEAD ") else ()
    return Case(
        name=name,
        source=source,
        send=steps,
        expect=expect,
        own=(own,) if own else (),
        level=level,
        heads=frozenset(heads),
    )


def should(
    name: str, source: str, send: bytes | Iterable[Step], *expect: Outcome, **how: Any
) -> Case:
    """Declare a case of what is only recommended."""
    return must(name, source, send, *expect, level=Level.SHOULD, **how)


# -- Usual outcomes

REFUSALS = frozenset({400, 405, 408, 411, 413, 414, 417, 421, 426, 431, 501, 505})
"""What a server itself says to a request that it does not take."""


def answered(
    *,
    status: Container[int] = (200,),
    then: Then = Then.KEPT,
    **how: Any,
) -> Outcome:
    """Return the outcome of one answer, 200 and a connection that is kept unless told."""
    return Outcome((Answer(status=status, **how),), then)


def refused(*statuses: int, then: Then = Then.CLOSED, **how: Any) -> Outcome:
    """Return the outcome of one refusal; without statuses, any that a server may use."""
    return Outcome((Answer(status=statuses or REFUSALS, **how),), then)


def several(*answers: Answer, then: Then = Then.KEPT) -> Outcome:
    """Return the outcome of several answers, in this order."""
    return Outcome(answers, then)


DROPPED = Outcome((), Then.CLOSED)
"""The connection ends without an answer."""
