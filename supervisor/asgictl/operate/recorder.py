"""The flight recorder: the last events and actions of the core, with their times."""

from collections import deque
from collections.abc import Iterator

from asgictl.core.actions import Action
from asgictl.core.events import Beat, Event

CAPACITY = 1000


class FlightRecorder:
    """A ring of what was learned and what was done about it.

    Beats that changed nothing are left out; they would push out everything else.
    """

    def __init__(self) -> None:
        self._records: deque[tuple[float, Event, tuple[Action, ...]]] = deque(maxlen=CAPACITY)

    def add(self, now: float, event: Event, actions: list[Action]) -> None:
        """Record one step."""
        if actions or type(event) is not Beat:
            self._records.append((now, event, tuple(actions)))

    def lines(self, now: float) -> Iterator[str]:
        """Yield a line per event and per action, oldest first, with seconds before ``now``."""
        for then, event, actions in self._records:
            yield f"{then - now:10.3f} {event}"
            for action in actions:
                yield f"{'':10}   -> {action}"
