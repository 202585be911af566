"""An independent account of what the core does, which finds every act that is not allowed.

The ledger keeps its own books: which processes were asked for, live, got which signals. It
compares them with each step of the core, in the simulation as in the search. Its rules are
DESIGN.md's invariants, spelled as assertions over one step.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from math import inf

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core.reconcile import reconcile
from asgictl.core.state import (
    ACTIVE,
    TRANSITIONS,
    Phase,
    ReloadPhase,
    State,
    TemplatePhase,
    WorkerState,
    next_deadline,
)
from asgictl.core.turn import Turn

REACHABLE: dict[WorkerState, set[WorkerState]] = {}
for _source in WorkerState:
    _found, _todo = {_source}, [_source]
    while _todo:
        for _target in TRANSITIONS[_todo.pop()].values():
            if _target not in _found:
                _found.add(_target)
                _todo.append(_target)
    REACHABLE[_source] = _found


@dataclass(frozen=True, slots=True)
class Process:
    """A worker's process as the operating system would know it."""

    generation: int
    born: bool = False
    signals: frozenset[str] = frozenset()
    drain_ends: float = inf


@dataclass(slots=True)
class Ledger:
    """The books. ``check()`` enters one step of the core into them."""

    processes: dict[int, Process] = field(default_factory=dict)
    newest: int = 0
    preflight: int | None = None
    epochs: int = 0
    generations: set[int] = field(default_factory=lambda: {1})
    dropped: set[int] = field(default_factory=set)
    templates: set[int] = field(default_factory=set)
    stopping: bool = False
    exit_code: int | None = None
    last_hang_kill: float = -inf
    promised: float = -inf

    def copy(self) -> "Ledger":
        """Return books that can be continued on their own."""
        other = copy(self)
        other.processes = dict(self.processes)
        other.generations = set(self.generations)
        other.dropped = set(self.dropped)
        other.templates = set(self.templates)
        return other

    def check(
        self,
        before: State,
        event: ev.Event,
        now: float,
        after: State,
        actions: Sequence[act.Action],
    ) -> None:
        """Enter a step; raise AssertionError if it was not allowed."""
        self._learn(event)
        for action in actions:
            self._do(before, after, action, now)
        self._check_hang_kills(before, event, now, after)
        self._check_workers(before, event, after)
        self._check_capacity(before, event, after)
        self._check_time(event, now, after)

    # -- Events

    def _learn(self, event: ev.Event) -> None:
        match event:
            case ev.Spawned():
                process = self.processes.get(event.worker)
                if process:
                    self.processes[event.worker] = replace(process, born=True)
                else:
                    self.processes[event.worker] = Process(0, born=True)
            case ev.SpawnFailed() | ev.Exited():
                self.processes.pop(event.worker, None)
            case ev.PreflightPassed() | ev.PreflightFailed():
                if event.epoch == self.preflight:
                    self.preflight = None
            case ev.Lag():
                for number, process in self.processes.items():
                    ends = process.drain_ends + event.seconds
                    self.processes[number] = replace(process, drain_ends=ends)
            case ev.TemplateFailed():
                self.templates.discard(event.generation)

    # -- Actions

    def _do(self, before: State, after: State, action: act.Action, now: float) -> None:
        assert self.exit_code is None or isinstance(action, act.Log), f"{action} after Exit"
        match action:
            case act.Spawn():
                self._spawn(before, after, action)
            case act.Drain():
                process = self._alive(action.worker)
                assert now + action.timeout < process.drain_ends, "a drain may only get shorter"
                self.processes[action.worker] = replace(process, drain_ends=now + action.timeout)
            case act.Kill():
                process = self._alive(action.worker)
                assert action.signal not in process.signals, f"a second {action.signal}"
                signals = process.signals | {action.signal}
                self.processes[action.worker] = replace(process, signals=signals)
            case act.Dump() | act.Probe():
                self._alive(action.worker)
            case act.StartPreflight():
                assert not self.stopping
                assert action.epoch > self.epochs, "an epoch is never used again"
                assert action.generation not in self.generations
                assert self.preflight is None, "the last preflight was not cancelled"
                self.preflight, self.epochs = action.epoch, action.epoch
                self.generations.add(action.generation)
            case act.CancelPreflight():
                assert action.epoch == self.epochs
                self.preflight = None
            case act.StartTemplate():
                assert not self.stopping
                assert action.generation not in self.dropped
                # A commit in the same step may end it again.
                if after.committed == before.committed:
                    assert after.templates[action.generation].phase is TemplatePhase.BOOTING
                self.templates.add(action.generation)
            case act.Commit():
                assert action.generation not in self.dropped, "a failed generation"
                assert after.committed == action.generation
                for worker in after.workers.values():
                    if worker.state is WorkerState.READY and worker.slot < before.desired:
                        assert worker.generation == action.generation, "an old worker serves"
                self.dropped |= {old for old in self.generations if old < action.generation}
                self.templates &= {action.generation}
            case act.Abandon():
                assert action.generation != after.committed
                self.dropped.add(action.generation)
                self.templates.discard(action.generation)
            case act.Notify(event="stopping"):
                self.stopping, self.promised = True, -inf
            case act.Notify(event="ready" | "reloading"):
                self.promised = -inf
            case act.AskForTime():
                assert now + action.seconds > self.promised, "nothing new"
                self.promised = now + action.seconds
            case act.Exit():
                assert self.stopping
                for worker in after.workers.values():
                    assert worker.state is WorkerState.UNKILLABLE
                self.exit_code = action.code

    def _alive(self, worker: int) -> Process:
        assert worker in self.processes, f"worker {worker} has exited"
        assert self.processes[worker].born, f"worker {worker} is not forked yet"
        return self.processes[worker]

    def _spawn(self, before: State, after: State, action: act.Spawn) -> None:
        assert not self.stopping, "nothing is spawned after a stop has begun"
        assert action.worker > self.newest, "a worker's number is never used again"
        assert 0 <= action.slot < max(before.desired, after.desired)
        assert action.generation not in self.dropped, "a generation that was given up"
        reload = before.reload or after.reload
        allowed = {before.committed, after.committed}
        if reload:
            allowed.add(reload.generation)
        assert action.generation in allowed
        if after.policy_of(action.generation).preload:
            assert after.templates[action.generation].phase is TemplatePhase.READY
            assert action.generation in self.templates
        alone = all(
            worker.slot != action.slot or worker.id >= action.worker
            for worker in after.workers.values()
            if worker.active
        )
        failed = action.slot in before.backoff or before.failures != after.failures
        template = after.templates.get(after.committed)
        no_template = template is not None and template.phase is not TemplatePhase.READY
        if alone and not failed and not no_template and after.committed == before.committed:
            assert action.generation == after.committed, "an empty slot gets code that is proved"
        self.newest = action.worker
        self.processes[action.worker] = Process(action.generation)
        lost = after.count(WorkerState.UNKILLABLE)
        desired = max(before.desired, after.desired)
        surge = max(before.policy.surge_for(desired), after.policy.surge_for(desired))
        limit = desired + surge + max(4, 2 * desired) + min(lost, desired)
        count = sum(item.born or number in after.workers for number, item in self.processes.items())
        assert count <= limit, "too many processes"

    # -- Whole states

    def _check_workers(self, before: State, event: ev.Event, after: State) -> None:
        living = {number for number, process in self.processes.items() if process.born}
        for number, worker in after.workers.items():
            assert number in self.processes, f"{worker} does not exist"
            assert worker.sent == self.processes[number].signals
            assert worker.deadline < inf, f"{worker.state} without a deadline"
            assert worker.state is not WorkerState.GONE
            assert bool(worker.pid) == self.processes[number].born
            if number in before.workers:
                assert worker.state in REACHABLE[before.workers[number].state]
        assert living <= set(after.workers), "a living worker was forgotten"
        assert (after.phase is Phase.STOPPING) == self.stopping
        assert after.exited == (self.exit_code is not None)
        assert self.newest == after.next_worker - 1
        if after.committed != before.committed:
            assert before.reload is not None
            assert before.reload.generation == after.committed
        for occupants in after.slots():
            ready = [worker for worker in occupants if worker.state is WorkerState.READY]
            assert after.phase is Phase.STOPPING or len(ready) <= 1, "two are ready in one slot"

    def _check_capacity(self, before: State, event: ev.Event, after: State) -> None:
        """READY never falls by our own acts below what is wanted, or was there."""
        if after.phase is Phase.STOPPING:
            return
        by_others = ev.DrainStarted | ev.WorkerDrainRequested | ev.WorkerKillRequested
        cause = event.worker if isinstance(event, by_others) else None
        for number, old in before.workers.items():
            new = after.workers.get(number)
            if old.state is not WorkerState.READY or new is None or new.state in ACTIVE:
                continue
            if number == cause:
                continue
            successors = [
                worker
                for worker in after.workers.values()
                if worker.slot == old.slot and worker.state is WorkerState.READY
            ]
            assert successors or after.ready() >= after.desired, f"{old} retired without successor"

    def _check_hang_kills(self, before: State, event: ev.Event, now: float, after: State) -> None:
        if not isinstance(event, ev.Evidence) or event.worker not in after.workers:
            return
        old, new = before.workers[event.worker], after.workers[event.worker]
        if new.state is not WorkerState.ABORTING or old.state is WorkerState.ABORTING:
            return
        policy = before.policy_of(old.generation)
        assert event.verdict not in (ev.Verdict.STARVED, ev.Verdict.STOPPED)
        if old.state is WorkerState.STARTING:
            assert now >= old.born + policy.boot_timeout, "killed before its time-out"
            return
        timeout = policy.timeout
        assert now - old.last_beat >= timeout, "killed before its time-out"
        late, trusted = before.count(WorkerState.SUSPECT), before.ready()
        if late > trusted:
            assert now >= self.last_hang_kill + timeout, "more than one kill, yet most are late"
        self.last_hang_kill = now

    def _check_time(self, event: ev.Event, now: float, after: State) -> None:
        if after.exited:
            return
        if isinstance(event, ev.Tick):
            assert next_deadline(after) > now, "a tick that leaves something due spins the loop"
        if not isinstance(event, ev.Beat):
            turn = Turn(after, now)
            reconcile(turn)
            assert turn.actions == [], "reconcile is not idempotent"
            assert turn.state == after
        if after.reload and after.reload.phase is ReloadPhase.PREFLIGHT:
            assert after.reload.deadline < inf
        if after.reload or after.phase is Phase.STOPPING or not after.announced:
            assert now <= self.promised, "the service manager was told to wait no longer"
        for template in after.templates.values():
            assert template.phase is TemplatePhase.READY or template.deadline < inf
