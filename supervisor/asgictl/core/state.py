"""What the supervisor knows: the fleet, as one immutable value.

A worker lives like this (``TRANSITIONS``, the table that the documents and tests use):

    STARTING --ready--> SOAKING --soaked--> READY <--beat-- SUSPECT
        |                  |                  |  --late-->     |
        |                  +------retire------+----retire------+
        | failed, retire                      v                | hung
        v                                  DRAINING            |
    TERMINATING <----------overrun-----------+                 v
        +-----------------overrun----------------------->  ABORTING --overrun--> KILLING

and from everywhere, by SIGKILL, to KILLING, and by its exit to GONE. Only the replacement of a generation that is not
committed yet makes a worker soak; else SOAKING is passed through at once.

A *slot* is a place in the fleet, from 0 to desired - 1. While a worker is being replaced,
its slot has two occupants. A *generation* is one reading of settings and application.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

from asgictl.core.policy import RELOAD_SPACING, Policy


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
        _H.BEAT: _W.READY,
        _H.HUNG: _W.ABORTING,
        _H.RETIRE: _W.DRAINING,
        _H.KILL: _W.KILLING,
        _H.EXIT: _W.GONE,
    },
    _W.DRAINING: {_H.OVERRUN: _W.TERMINATING, _H.KILL: _W.KILLING, _H.EXIT: _W.GONE},
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
    """A worker as the supervisor sees it. Times are the supervisor's monotonic seconds."""

    id: int
    """Counts incarnations: never used again."""
    slot: int
    generation: int
    born: float
    deadline: float
    """When the state must have ended, or when a beat must have come."""
    state: WorkerState = WorkerState.STARTING
    since: float = 0.0
    """When the state was entered."""
    pid: int = 0
    stage: str = "fork"
    ready_at: float = inf
    last_beat: float = inf
    connections: int = 0
    in_flight: int = 0
    dump_due: float = inf
    """When the stacks that were asked for should be there."""
    sent: frozenset[str] = frozenset()
    """Signals that it got from us: each at most once."""
    recycle: str = ""
    """Why it asked for a successor, or empty."""
    fate: str = ""
    """Why it has to go: reload, scale-down, recycle, stop, hang, ... or empty."""
    draining_until: float = inf
    """When its drain has to end, by what it was told last."""
    failure: str = ""
    """What it said of its failed boot, or empty."""

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
    started: float
    deadline: float
    """When the preflight or the template must have answered; the workers have their own."""
    policy: Policy | None = None
    """What the preflight read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadResult:
    """How the last reload ended."""

    epoch: int
    committed: bool
    reason: str
    finished: float


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
    deadline: float = inf
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
    last_reload_start: float = -inf
    last_reload: ReloadResult | None = None
    failures: Mapping[int, int] = field(default_factory=dict)
    """Failures in a row, by generation."""
    backoff: Mapping[int, float] = field(default_factory=dict)
    """When an empty slot may be filled again, by slot."""
    last_failure: str = ""
    """The last boot failure that was logged in full, so that it is not repeated."""
    templates: Mapping[int, Template] = field(default_factory=dict)
    dark_since: float = inf
    """Since when no worker is ready."""
    last_abort: float = -inf
    announced: bool = False
    """The service manager and the log know that the whole fleet is ready."""
    stop: StopLevel = StopLevel.NONE
    stop_accepting_at: float = inf
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

    def in_slot(self, slot: int) -> list[WorkerHandle]:
        """Return the active workers of a slot, oldest first."""
        return [worker for worker in self.workers.values() if worker.slot == slot and worker.active]

    def count(self, *states: WorkerState) -> int:
        """Return how many workers are in one of the states."""
        return sum(worker.state in states for worker in self.workers.values())

    def ready(self) -> int:
        """Return how many workers are ready and trusted."""
        return self.count(WorkerState.READY)


def next_deadline(state: State) -> float:
    """Return when ``step(state, Tick(), ...)`` has something to do at the earliest.

    Infinity means that only an event can change anything.
    """
    return min(_deadlines(state), default=inf)


def _deadlines(state: State) -> Iterable[float]:
    for worker in state.workers.values():
        yield worker.deadline
        yield worker.dump_due
    if state.phase is Phase.STOPPING:
        yield state.stop_accepting_at
        return
    yield from state.backoff.values()
    for template in state.templates.values():
        yield template.deadline
    if state.reload and state.reload.phase in (ReloadPhase.PREFLIGHT, ReloadPhase.TEMPLATE):
        yield state.reload.deadline
    if state.reload_requested and state.phase is Phase.RUNNING:
        yield state.last_reload_start + RELOAD_SPACING
    if state.policy.give_up_after and state.desired:
        yield state.dark_since + state.policy.give_up_after
