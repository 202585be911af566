"""The flight recorder: the last events and actions of the core, with their times."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from asgictl.core.actions import Action
from asgictl.core.events import Beat, Event

CAPACITY = 1000

MAX_TEXT = 4000
"""Characters of one event or action that are shown to clients; tracebacks are long."""


@dataclass(frozen=True, slots=True)
class Record:
    """One step of the core."""

    number: int
    """Counts from 0."""
    at: float
    """Monotonic seconds."""
    event: Event
    actions: tuple[Action, ...]

    def in_words(self, now: float) -> dict[str, Any]:
        """Return what a client is shown."""
        return {
            "number": self.number,
            "ago": round(now - self.at, 3),
            "event": _text(self.event),
            "actions": [_text(action) for action in self.actions],
        }


class FlightRecorder:
    """A ring of what was learned and what was done about it.

    Beats that changed nothing are left out; they would push out everything else.
    """

    def __init__(self) -> None:
        self._records: deque[Record] = deque(maxlen=CAPACITY)
        self.count = 0
        """How many there have been, those that are forgotten too."""

    def add(self, now: float, event: Event, actions: list[Action]) -> None:
        """Record one step."""
        if actions or type(event) is not Beat:
            self._records.append(Record(self.count, now, event, tuple(actions)))
            self.count += 1

    def since(self, number: int) -> list[Record]:
        """Return the records from a number on, as far as they are kept, oldest first."""
        wanted = min(self.count - number, len(self._records))
        return [self._records[index] for index in range(-wanted, 0)]

    def lines(self, now: float) -> Iterator[str]:
        """Yield a line per event and per action, oldest first, with seconds before ``now``."""
        for record in self._records:
            yield f"{record.at - now:10.3f} {record.event}"
            for action in record.actions:
                yield f"{'':10}   -> {action}"


def _text(item: object) -> str:
    text = str(item)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."
