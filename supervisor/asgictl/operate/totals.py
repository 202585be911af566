"""What has happened since the start: sums that outlive the workers, and upgrades in place.

A worker's beats count from its own start; here only the differences are added up. What a
killed worker has done since its last beat is not known to anybody.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf
from typing import Any

from asgictl.core import events as ev
from asgictl.core.state import State, WorkerHandle, WorkerState
from asgictl_worker import contract

STALE = 3.0
"""Seconds after a beat in which what it says of the speed still counts."""

PLANNED = frozenset({"reload", "reload refused", "recycle", "scale-down", "stop", "asked for"})
"""Causes of exits that nobody has to look into."""

_CAUSES = {
    "hang": "hang",
    "boot time-out": "boot time-out",
    "boot failed": "boot failed",
    "reload": "reload",
    "recycle": "recycle",
    "scale-down": "scale-down",
    "stop": "stop",
    "files have changed": "reload",
    "somebody has asked for it": "asked for",
    "told by somebody else": "asked for",
}


@dataclass(slots=True, kw_only=True)
class Vitals:
    """What a worker has said of itself with its last beat."""

    at: float = -inf
    requests: int = 0
    errors: int = 0
    beats_dropped: int = 0
    loop_lag: float = 0.0
    """Seconds by which its event loop was late."""
    rate: float = 0.0
    """Requests per second between its last two beats."""


@dataclass(slots=True, kw_only=True)
class SlotHistory:
    """The unplanned ends of the workers of one slot."""

    restarts: int = 0
    cause: str = ""
    at: float = -inf


@dataclass(slots=True, kw_only=True)
class Totals:
    """Sums since the supervisor was started; times are monotonic seconds."""

    started: float
    requests: int = 0
    errors: int = 0
    beats_dropped: int = 0
    reloads_committed: int = 0
    reloads_refused: int = 0
    upgrades: int = 0
    exits: dict[str, int] = field(default_factory=dict)
    """Ended workers, by cause."""
    slots: dict[int, SlotHistory] = field(default_factory=dict)
    vitals: dict[int, Vitals] = field(default_factory=dict)
    """By worker."""

    def beat(self, worker: int, beat: contract.Beat, now: float) -> None:
        """Add what a worker has done since its last beat."""
        last = self.vitals.get(worker)
        if last is None:
            last = self.vitals[worker] = Vitals()
        done = beat.requests_total - last.requests
        self.requests += done
        self.errors += beat.errors_total - last.errors
        self.beats_dropped += beat.beats_dropped - last.beats_dropped
        last.rate = done / (now - last.at) if now > last.at else 0.0
        last.at, last.loop_lag = now, beat.loop_lag_us / 1e6
        last.requests, last.errors = beat.requests_total, beat.errors_total
        last.beats_dropped = beat.beats_dropped

    def learned(self, event: ev.Event, before: State, after: State, now: float) -> None:
        """Count what an event, which is no beat, has meant."""
        if type(event) is ev.Exited:
            self.vitals.pop(event.worker, None)
            worker = before.workers.get(event.worker)
            if worker is not None:
                self._exited(worker, cause_of(worker, event), now)
        if after.last_reload is not None and after.last_reload is not before.last_reload:
            if after.last_reload.committed:
                self.reloads_committed += 1
            else:
                self.reloads_refused += 1

    def _exited(self, worker: WorkerHandle, cause: str, now: float) -> None:
        self.exits[cause] = self.exits.get(cause, 0) + 1
        if cause not in PLANNED:
            slot = self.slots.setdefault(worker.slot, SlotHistory())
            slot.restarts += 1
            slot.cause, slot.at = cause, now

    def rate(self, worker: int, now: float) -> float:
        """Return how many requests a second a worker answers now."""
        vitals = self.vitals.get(worker)
        return vitals.rate if vitals and now - vitals.at < STALE else 0.0

    def hand_over(self) -> dict[str, Any]:
        """Return everything as JSON knows it, for the next program in this process."""
        left = asdict(self)
        for table in left["slots"], left["vitals"]:
            for item in table.values():
                item["at"] = None if item["at"] == -inf else item["at"]
        return left

    @classmethod
    def take_over(cls, left: Mapping[str, Any], now: float) -> "Totals":
        """Go on counting where the program before us has stopped; what it does not know is 0."""
        known = {name: left[name] for name in _names(cls) & set(left)}
        known["started"] = left.get("started", now)
        known["slots"] = _table(SlotHistory, left.get("slots", {}))
        known["vitals"] = _table(Vitals, left.get("vitals", {}))
        return cls(**known)


def cause_of(worker: WorkerHandle, event: ev.Exited) -> str:
    """Return why a worker has ended, in one of a few words that can be counted by.

    Args:
        worker: as it was before.
        event: how it ended.
    """
    if not worker.active:
        known = [_CAUSES.get(word) for word in reversed(worker.fate.split(": ", 1))]
        # An aborted reload ends its workers with its own reason, which may be anything.
        return next((cause for cause in known if cause), "reload refused")
    if event.out_of_memory:
        return "out of memory"
    if event.signal:
        return f"SIG{event.signal}"
    if worker.state is WorkerState.STARTING:
        return "boot failed"
    return f"exit code {event.code}"


def _table(kind: type[Any], left: Mapping[str, Mapping[str, Any]]) -> dict[int, Any]:
    return {
        int(key): kind(
            **{
                name: -inf if value is None else value
                for name, value in item.items()
                if name in _names(kind)
            }
        )
        for key, item in left.items()
    }


def _names(kind: type[Any]) -> set[str]:
    return {item.name for item in fields(kind)}
