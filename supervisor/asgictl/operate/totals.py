"""What has happened since the start: sums that outlive the workers, and upgrades in place.

Workers count in memory that is read here (``asgictl_worker.counters``). When one ends, what it
has counted is added to what others have left, however it ended.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf
from typing import Any, NamedTuple

from asgictl.core import events as ev
from asgictl.core.state import State, WorkerHandle, WorkerState
from asgictl.operate.sums import Sums, steps_of
from asgictl_worker import contract
from asgictl_worker.counters import TICK, Row, Rows

WINDOW = 5.0
"""Seconds over which rates, quantiles and shares are taken."""

SAMPLE_EVERY = 0.4
"""Seconds between two samples of a worker, at least; it beats up to four times a second."""
MAX_SAMPLES = 16

STALLED = 0.3
"""Seconds without a tick, when one was due, from which on an event loop counts as blocked."""

LIMITS = ("max-requests", "max-lifetime", "max-memory")
"""Settings for which workers ask to be replaced; their reasons begin with these words."""

PLANNED = frozenset(
    {"reload", "reload refused", "recycle", "scale-down", "stop", "asked for", *LIMITS}
)
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
    **{limit: limit for limit in LIMITS},
}


class Sample(NamedTuple):
    """What a worker had done at some moment."""

    at: float
    steps: tuple[int, ...]
    """Requests by how long they took."""
    ticked: float
    busy: float


@dataclass(slots=True, kw_only=True)
class Vitals:
    """What is known of a living worker."""

    beats_dropped: int = 0
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    """Of the last seconds, oldest first."""


@dataclass(frozen=True, slots=True)
class Now:
    """How a worker does, as far as it can be told."""

    row: Row
    requests: int = 0
    rate: float = 0.0
    """Requests per second."""
    steps: tuple[int, ...] = ()
    """Requests of the last seconds, by how long they took."""
    lag: float = 0.0
    """Seconds by which its event loop is late, or was at worst within the last second."""
    busy: float | None = None
    """The share of the last seconds in which its event loop has worked or was blocked."""


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
    beats_dropped: int = 0
    reloads_committed: int = 0
    reloads_refused: int = 0
    upgrades: int = 0
    exits: dict[str, int] = field(default_factory=dict)
    """Ended workers, by cause."""
    slots: dict[int, SlotHistory] = field(default_factory=dict)
    gone: Sums = field(default_factory=Sums)
    """What workers have counted that are no more."""
    vitals: dict[int, Vitals] = field(default_factory=dict)
    """By worker."""
    rows: Rows | None = None
    """What the living count."""

    def beat(self, worker: int, beat: contract.Beat, now: float) -> None:
        """Note how far a worker is."""
        vitals = self.vitals.setdefault(worker, Vitals())
        self.beats_dropped += beat.beats_dropped - vitals.beats_dropped
        vitals.beats_dropped = beat.beats_dropped
        if vitals.samples and now - vitals.samples[-1].at < SAMPLE_EVERY:
            return
        if row := self._read(worker):
            sample = Sample(now, tuple(steps_of(row.cells)), row.ticked, row.busy)
            vitals.samples.append(sample)

    def now(self, worker: int, now: float) -> Now:
        """Return how a worker does."""
        row = self._read(worker)
        if row is None:
            return Now(Row(()))
        steps = steps_of(row.cells)
        vitals = self.vitals.get(worker)
        recent = [each for each in vitals.samples if each.at >= now - WINDOW] if vitals else []
        stalled = max(0.0, now - row.ticked - TICK)
        if stalled < STALLED:
            stalled = 0.0
        lag = max(row.lag, stalled)
        if not recent or recent[0].at >= now:
            busy = 1.0 if stalled > WINDOW else None
            return Now(row, sum(steps), lag=lag, busy=busy)
        first = recent[0]
        done = tuple(after - before for after, before in zip(steps, first.steps, strict=True))
        elapsed = row.ticked - first.ticked + stalled
        busy = min(1.0, (row.busy - first.busy + stalled) / elapsed) if elapsed > 0 else None
        return Now(row, sum(steps), sum(done) / (now - first.at), done, lag, busy)

    def sums(self, workers: Iterable[int]) -> Sums:
        """Return what has been counted since the start, by the living and by those before."""
        sums = Sums()
        sums.add(self.gone)
        for worker in workers:
            if row := self._read(worker):
                sums.add(row)
        return sums

    def _read(self, worker: int) -> Row | None:
        return self.rows.read(worker) if self.rows else None

    def learned(self, event: ev.Event, before: State, after: State, now: float) -> None:
        """Count what an event, which is no beat, has meant."""
        if type(event) is ev.Exited:
            self.vitals.pop(event.worker, None)
            if self.rows and (row := self.rows.read(event.worker)):
                self.gone.add(row)
                self.rows.clear(event.worker)
            worker = before.workers.get(event.worker)
            if worker is not None:
                on_trial = worker.generation > before.committed
                self._exited(worker, cause_of(worker, event), now, on_trial=on_trial)
        if after.last_reload is not None and after.last_reload is not before.last_reload:
            if after.last_reload.committed:
                self.reloads_committed += 1
            else:
                self.reloads_refused += 1

    def _exited(self, worker: WorkerHandle, cause: str, now: float, *, on_trial: bool) -> None:
        self.exits[cause] = self.exits.get(cause, 0) + 1
        # New code that fails on trial is a reload that is refused: whoever serves there goes on.
        if cause not in PLANNED and not on_trial:
            slot = self.slots.setdefault(worker.slot, SlotHistory())
            slot.restarts += 1
            slot.cause, slot.at = cause, now

    def hand_over(self) -> dict[str, Any]:
        """Return everything as JSON knows it, for the next program in this process.

        What the living count stays where it is, in their memory.
        """
        left = {name: getattr(self, name) for name in _HANDED_OVER}
        left["slots"] = {
            slot: {**asdict(item), "at": None if item.at == -inf else item.at}
            for slot, item in self.slots.items()
        }
        left["dropped"] = {worker: item.beats_dropped for worker, item in self.vitals.items()}
        left["gone"] = self.gone.hand_over()
        return left

    @classmethod
    def take_over(cls, left: Mapping[str, Any], now: float) -> "Totals":
        """Go on counting where the program before us has stopped; what it does not know is 0."""
        totals = cls(started=now)
        for name in set(_HANDED_OVER) & set(left):
            setattr(totals, name, left[name])
        for slot, item in left.get("slots", {}).items():
            known = {name: item[name] for name in _names(SlotHistory) & set(item)}
            known["at"] = -inf if known.get("at") is None else known["at"]
            totals.slots[int(slot)] = SlotHistory(**known)
        for worker, dropped in left.get("dropped", {}).items():
            totals.vitals[int(worker)] = Vitals(beats_dropped=dropped)
        totals.gone = Sums.take_over(left.get("gone", {}))
        return totals


_HANDED_OVER = (
    "started",
    "beats_dropped",
    "reloads_committed",
    "reloads_refused",
    "upgrades",
    "exits",
)


def cause_of(worker: WorkerHandle, event: ev.Exited) -> str:
    """Return why a worker has ended, in one of a few words that can be counted by.

    Args:
        worker: as it was before.
        event: how it ended.
    """
    if not worker.active:
        # recycle: max-memory: 300 MiB of memory used
        words = worker.fate.split(": ", 2)[: 2 if worker.fate.startswith("recycle: ") else 1]
        known = [_CAUSES.get(word) for word in reversed(words)]
        # An aborted reload ends its workers with its own reason, which may be anything.
        return next((cause for cause in known if cause), "reload refused")
    if event.out_of_memory:
        return "out of memory"
    if event.signal:
        return f"SIG{event.signal}"
    if worker.state is WorkerState.STARTING:
        return "boot failed"
    return f"exit code {event.code}"


def _names(kind: type[Any]) -> set[str]:
    return {item.name for item in fields(kind)}
