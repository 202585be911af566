"""What the supervisor knows: the fleet, as one immutable value.

A *slot* is a place in the fleet, from 0 to desired - 1. It is empty (perhaps waiting for its
back-off), has one worker, or two while one replaces the other. A *generation* is one reading
of settings and application. ``TRANSITIONS`` is the life of a worker; ``diagram.py`` draws it.

Only the first worker of a reload really soaks; the others pass through SOAKING at once. Every
state of a living process has a deadline: what happens then is in ``health.py``. Times are
*moments*, the supervisor's monotonic seconds, unless a field says that it is a duration.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Annotated, Any, TypeVar

from asgictl.core.policy import (
    ABORT_GRACE,
    KILL_GRACE,
    RELOAD_SPACING,
    TERMINATE_GRACE,
    Policy,
)

Moment = Annotated[float, "monotonic seconds"]
"""A point in time, as opposed to a duration: ``snapshot.py`` has to tell them apart."""

T = TypeVar("T")


def changed(item: T, **changes: Any) -> T:
    """Return a copy of one of the dataclasses below with some fields changed.

    Does what ``dataclasses.replace()`` does, in half the time: every beat makes two copies.
    """
    copy = object.__new__(type(item))
    for name in item.__slots__:  # type: ignore[attr-defined]
        object.__setattr__(copy, name, getattr(item, name))
    for name, value in changes.items():
        object.__setattr__(copy, name, value)
    return copy


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    SOAKING = "soaking"
    READY = "ready"
    SUSPECT = "suspect"
    DRAINING = "draining"
    TERMINATING = "terminating"
    ABORTING = "aborting"
    KILLING = "killing"
    UNKILLABLE = "unkillable"
    GONE = "gone"


class Happening(StrEnum):
    """What moves a worker from one state to the next."""

    READY = "ready"
    SOAKED = "soaked"
    LATE = "late"
    BEAT = "beat"
    FAILED = "failed"
    RETIRE = "retire"
    HUNG = "hung"
    OVERRUN = "overrun"
    KILL = "kill"
    EXIT = "exit"


_W = WorkerState
_H = Happening

TRANSITIONS: Mapping[WorkerState, Mapping[Happening, WorkerState]] = {
    _W.STARTING: {
        _H.READY: _W.SOAKING,
        _H.FAILED: _W.TERMINATING,
        _H.RETIRE: _W.TERMINATING,
        _H.HUNG: _W.ABORTING,
        _H.KILL: _W.KILLING,
        _H.EXIT: _W.GONE,
    },
    _W.SOAKING: {
        _H.SOAKED: _W.READY,
        _H.LATE: _W.SUSPECT,
        _H.RETIRE: _W.DRAINING,
        _H.KILL: _W.KILLING,
        _H.EXIT: _W.GONE,
    },
    _W.READY: {_H.LATE: _W.SUSPECT, _H.RETIRE: _W.DRAINING, _H.KILL: _W.KILLING, _H.EXIT: _W.GONE},
    _W.SUSPECT: {
        _H.BEAT: _W.SOAKING,
        _H.HUNG: _W.ABORTING,
        _H.RETIRE: _W.DRAINING,
        _H.KILL: _W.KILLING,
        _H.EXIT: _W.GONE,
    },
    _W.DRAINING: {
        _H.HUNG: _W.ABORTING,
        _H.OVERRUN: _W.TERMINATING,
        _H.KILL: _W.KILLING,
        _H.EXIT: _W.GONE,
    },
    _W.TERMINATING: {_H.OVERRUN: _W.ABORTING, _H.KILL: _W.KILLING, _H.EXIT: _W.GONE},
    _W.ABORTING: {_H.OVERRUN: _W.KILLING, _H.KILL: _W.KILLING, _H.EXIT: _W.GONE},
    _W.KILLING: {_H.OVERRUN: _W.UNKILLABLE, _H.EXIT: _W.GONE},
    _W.UNKILLABLE: {_H.EXIT: _W.GONE},
    _W.GONE: {},
}
"""Happenings that are not listed are ignored: they come late, from a state already left."""

BOOTING = frozenset({_W.STARTING, _W.SOAKING})
ACTIVE = frozenset({_W.STARTING, _W.SOAKING, _W.READY, _W.SUSPECT})
"""States in which a worker occupies its slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHandle:
    """A worker as the supervisor sees it."""

    id: int
    """Counts incarnations: never used again."""
    slot: int
    generation: int
    born: Moment
    deadline: Moment
    """When the state must have ended, or when a beat must have come."""
    state: WorkerState = WorkerState.STARTING
    since: Moment = 0.0
    """When the state was entered."""
    pid: int = 0
    stage: str = "fork"
    ready_at: Moment = inf
    last_beat: Moment = inf
    connections: int = 0
    in_flight: int = 0
    dump_due: Moment = inf
    """When the stacks that were asked for should be there."""
    sent: frozenset[str] = frozenset()
    """Signals that it got from us: each at most once."""
    recycle: str = ""
    """Why it asked for a successor, or empty."""
    fate: str = ""
    """Why it has to go: reload, scale-down, recycle, stop, hang, ... or empty."""
    draining_until: Moment = inf
    """When its drain has to end, by what it was told last."""
    failure: str = ""
    """Why its boot failed, or empty."""

    @property
    def active(self) -> bool:
        """Return whether it occupies its slot."""
        return self.state in ACTIVE

    def __str__(self) -> str:
        return f"worker={self.slot} pid={self.pid} generation={self.generation}"


class Phase(StrEnum):
    """Where the supervisor is in its life."""

    BOOTING = "booting"
    """No worker has ever been ready: a failed boot ends the program."""
    RUNNING = "running"
    STOPPING = "stopping"


class ReloadPhase(StrEnum):
    """How far a reload has come. The two ends, commit and abort, are not phases."""

    PREFLIGHT = "preflight"
    TEMPLATE = "template"
    CANARY = "canary"
    ROLLING = "rolling"


class StopLevel(StrEnum):
    """How patient a stop is."""

    NONE = "none"
    GRACEFUL = "graceful"
    FAST = "fast"
    KILL = "kill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """A reload that has neither been committed nor aborted."""

    epoch: int
    generation: int
    phase: ReloadPhase
    started: Moment
    deadline: Moment
    """When the preflight or the template must have answered; the workers have their own."""
    policy: Policy | None = None
    """What the preflight read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadResult:
    """How the last reload ended."""

    epoch: int
    committed: bool
    reason: str
    finished: Moment
    generation: int = 0
    detail: str = ""
    """A traceback, or empty."""


class TemplatePhase(StrEnum):
    """Whether workers can be forked from a template."""

    BOOTING = "booting"
    READY = "ready"
    LOST = "lost"
    """It died or did not boot; another is tried at the deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """The process that holds a generation's application in memory."""

    generation: int
    phase: TemplatePhase = TemplatePhase.BOOTING
    deadline: Moment = inf
    """When it must be ready, or when a lost one may be tried again."""
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that ``step()`` decides by. Mappings are never changed in place."""

    policy: Policy
    desired: int
    seed: int
    phase: Phase = Phase.BOOTING
    workers: Mapping[int, WorkerHandle] = field(default_factory=dict)
    """By id; a worker leaves when its process is reaped."""
    next_worker: int = 1
    committed: int = 1
    """The generation that replacements come from."""
    next_generation: int = 2
    epoch: int = 0
    reload: Reload | None = None
    reload_requested: bool = False
    last_reload_start: Moment = -inf
    last_reload: ReloadResult | None = None
    failures: Mapping[int, int] = field(default_factory=dict)
    """Failures in a row, by generation."""
    last_failure_at: Moment = -inf
    backoff: Mapping[int, Moment] = field(default_factory=dict)
    """When an empty slot may be filled again, by slot."""
    last_failure: str = ""
    """The last boot failure that was logged in full, so that it is not repeated."""
    templates: Mapping[int, Template] = field(default_factory=dict)
    dark_since: Moment = inf
    """Since when no worker is ready."""
    last_abort: Moment = -inf
    announced: bool = False
    """The service manager and the log know that the fleet is ready."""
    promised: Moment = -inf
    """When the service manager expects to hear of us, as far as we have asked for time."""
    stop: StopLevel = StopLevel.NONE
    terminated_at: Moment = -inf
    """When TERM was last heard."""
    stop_accepting_at: Moment = inf
    """When the workers are told to drain, after TERM and the stop delay."""
    exit_code: int = 0
    exited: bool = False

    @property
    def wanted(self) -> int:
        """Return the generation that the fleet is moving to."""
        reload = self.reload
        if reload and reload.phase in (ReloadPhase.CANARY, ReloadPhase.ROLLING):
            return reload.generation
        return self.committed

    def policy_of(self, generation: int) -> Policy:
        """Return the policy that a generation lives by."""
        reload = self.reload
        if reload and reload.generation == generation and reload.policy:
            return reload.policy
        return self.policy

    def slots(self) -> list[list[WorkerHandle]]:
        """Return the active workers of every slot, oldest first."""
        slots: list[list[WorkerHandle]] = [[] for _ in range(self.desired)]
        for worker in self.workers.values():
            if worker.slot < self.desired and worker.state in ACTIVE:
                slots[worker.slot].append(worker)
        return slots

    def count(self, *states: WorkerState) -> int:
        """Return how many workers are in one of the states."""
        return sum(worker.state in states for worker in self.workers.values())

    def ready(self) -> int:
        """Return how many workers are ready and trusted."""
        return sum(worker.state is WorkerState.READY for worker in self.workers.values())


def deadline_after_beat(state: State, worker: WorkerHandle, beat: float) -> float:
    """Return when something is due of a worker that does not beat again after ``beat``."""
    policy = state.policy_of(worker.generation)
    if worker.state is WorkerState.SOAKING and worker.ready_at < beat:
        return min(max(beat, worker.ready_at + policy.min_ready), beat + policy.late_after)
    if worker.state in (WorkerState.READY, WorkerState.SOAKING):
        return beat + policy.late_after
    if worker.state is WorkerState.DRAINING:
        return min(worker.draining_until + policy.drain_overtime, beat + policy.timeout)
    return worker.deadline


_AFTER_DRAIN = TERMINATE_GRACE + ABORT_GRACE + KILL_GRACE
_STILL_TO_COME = {
    WorkerState.TERMINATING: ABORT_GRACE + KILL_GRACE,
    WorkerState.ABORTING: KILL_GRACE,
    WorkerState.KILLING: 0.0,
}


def change_ends(state: State) -> float:
    """Return by when a start, reload or stop has got further, by our own deadlines.

    Minus infinity means that nothing of that kind is under way.
    """
    workers, moments = state.workers.values(), [-inf]
    if state.phase is Phase.STOPPING:
        moments += [_gone_by(state, worker) for worker in workers]
    elif state.reload or not state.announced:
        moments += [_settled_by(state, worker) for worker in workers if worker.active]
        moments += [template.deadline for template in state.templates.values()]
        moments += state.backoff.values()
        if state.reload:
            moments.append(state.reload.deadline)
    return max(moment for moment in moments if moment < inf)


def _settled_by(state: State, worker: WorkerHandle) -> float:
    """Return when a worker is ready, or is known to be no good."""
    if worker.state is WorkerState.READY:
        return -inf
    if worker.state is WorkerState.SOAKING:
        soaked = worker.ready_at + state.policy_of(worker.generation).min_ready
        return max(soaked, worker.deadline)
    return worker.deadline


def _gone_by(state: State, worker: WorkerHandle) -> float:
    """Return when a worker of a fleet that stops is gone at the latest."""
    overtime = state.policy_of(worker.generation).drain_overtime + _AFTER_DRAIN
    if worker.state in ACTIVE:
        return state.stop_accepting_at + state.policy.stop_timeout + overtime
    if worker.state is WorkerState.DRAINING:
        return worker.draining_until + overtime
    if worker.state is WorkerState.UNKILLABLE:
        return -inf
    return worker.deadline + _STILL_TO_COME[worker.state]


def next_deadline(state: State) -> float:
    """Return when ``step(state, Tick(), ...)`` has something to do at the earliest.

    Infinity means that only an event can change anything.
    """
    workers = state.workers.values()
    moments = [worker.deadline for worker in workers]
    moments += [worker.dump_due for worker in workers]
    if state.phase is Phase.STOPPING:
        return min([*moments, state.stop_accepting_at])
    moments += state.backoff.values()
    moments += [template.deadline for template in state.templates.values()]
    if state.reload:
        moments.append(state.reload.deadline)
    if state.reload_requested and state.phase is Phase.RUNNING:
        moments.append(state.last_reload_start + RELOAD_SPACING)
    if state.policy.give_up_after and state.desired:
        moments.append(state.dark_since + state.policy.give_up_after)
    return min(moments, default=inf)
