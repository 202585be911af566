"""A simulated operating system: a clock that is moved by hand and children that follow a script.

``World`` plays the part of ``asgictl.supervisor`` and of the kernel: it carries the core's
actions out, and tells it what happens. Every step goes through a ``Ledger``.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from math import inf

from tests.supervisor.core.ledger import Ledger

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core.policy import Policy
from asgictl.core.state import Phase, State, WorkerState, next_deadline
from asgictl.core.step import initial, step


@dataclass(kw_only=True)
class Behaviour:
    """What a child does, with times in seconds; the default is a good one."""

    fork_error: str = ""
    fork_delay: float = 0.0
    boot: float = 0.5
    """Until it is ready, or has failed; infinity is a boot that hangs."""
    boot_error: str = ""
    boot_exit: bool = False
    """The boot ends with an exit and no word."""
    beat_interval: float = 0.8
    lost_beats: frozenset[int] = frozenset()
    """The numbers of the beats that never arrive."""
    hangs_after: float = inf
    """After it was ready; from then on it neither beats nor listens, till ``wakes_after``."""
    wakes_after: float = inf
    exits_after: float = inf
    """After it was ready."""
    drain: float = 0.2
    """How long its work takes; it never takes longer than it is told."""
    overruns_drain: bool = False
    dies_in_drain: bool = False
    ignores: frozenset[str] = frozenset()
    dies_after_kill: float = 0.01
    verdict: ev.Verdict = ev.Verdict.BLOCKED


class Child:
    """A process, from the core's Spawn to its exit."""

    def __init__(self, world: "World", number: int, behaviour: Behaviour) -> None:
        self.world, self.number, self.behaviour = world, number, behaviour
        self.alive = False
        self.ready = False
        self.hung = False
        self.draining = False
        self.beats = 0
        if behaviour.fork_error:
            world.later(behaviour.fork_delay, lambda: self._not_forked())
        elif behaviour.fork_delay:
            world.later(behaviour.fork_delay, self._forked)
        else:
            self._forked()

    def _not_forked(self) -> None:
        del self.world.children[self.number]
        self.world.learn(ev.SpawnFailed(self.number, self.behaviour.fork_error))

    def _forked(self) -> None:
        self.alive = True
        self.world.learn(ev.Spawned(self.number, 1000 + self.number))
        self._later(0.0, lambda: self.world.learn(ev.StageReached(self.number, "import")))
        self._later(self.behaviour.boot, self._booted)

    def _later(self, delay: float, happen: Callable[[], None]) -> None:
        self.world.later(delay, lambda: happen() if self.alive else None)

    def _booted(self) -> None:
        behaviour = self.behaviour
        if behaviour.boot_error:
            failed = ev.BootFailed(self.number, "import", behaviour.boot_error, "Traceback ...")
            self.world.learn(failed)
            self._later(0.05, lambda: self.exit(code=1))
        elif behaviour.boot_exit:
            self.exit(code=1)
        else:
            self.ready = True
            self.world.learn(ev.BecameReady(self.number))
            self._later(behaviour.beat_interval, self._beat)
            self._later(behaviour.hangs_after, self._hang)
            self._later(behaviour.wakes_after, self.wake)
            self._later(behaviour.exits_after, lambda: self.exit(code=0))

    def _beat(self) -> None:
        self.beats += 1
        if not self.hung and self.beats not in self.behaviour.lost_beats:
            self.world.learn(ev.Beat(self.number, connections=3, in_flight=1))
        self._later(self.behaviour.beat_interval, self._beat)

    def _hang(self) -> None:
        self.hung = True

    def wake(self) -> None:
        """Go on after a hang."""
        self.hung = False
        if self.draining:
            self._later(self.behaviour.drain, self._drained)

    def drain(self, timeout: float) -> None:
        """Finish the work that is in progress."""
        self.draining = True
        if not self.hung:
            self.world.later(0.0, lambda: self.world.learn(ev.DrainStarted(self.number)))
            if not self.behaviour.overruns_drain:
                self._later(min(self.behaviour.drain, timeout), self._drained)

    def _drained(self) -> None:
        if self.hung:
            return
        if self.behaviour.dies_in_drain:
            self.exit(signal="SEGV")
        else:
            self.exit(code=0)

    def signal(self, name: str) -> None:
        """Do what a signal does to this child."""
        if name in self.behaviour.ignores or (name == "TERM" and self.hung):
            return
        if name == "KILL":
            self._later(self.behaviour.dies_after_kill, lambda: self.exit(signal=name))
        else:
            self._later(0.02, lambda: self.exit(signal=name))

    def exit(self, code: int | None = None, signal: str = "") -> None:
        """End the process."""
        if self.alive:
            self.alive = False
            del self.world.children[self.number]
            self.world.learn(ev.Exited(self.number, code, signal))


@dataclass(kw_only=True)
class Check:
    """How a preflight or a template turns out."""

    takes: float = 0.2
    error: str = ""


@dataclass
class World:
    """The core, its children and the time. Rules of the world may be changed while it runs."""

    policy: Policy
    seed: int = 1
    behaviour: Callable[[act.Spawn], Behaviour] = lambda _spawn: Behaviour()
    preflight: Check = field(default_factory=Check)
    next_policy: Policy | None = None
    """What a preflight reads; None stands for no change."""
    template: Check = field(default_factory=Check)
    failing: list[type[act.Action]] = field(default_factory=list)
    """Kinds of actions of which the next one cannot be carried out, whatever the reason."""

    now: float = 100.0
    state: State = field(init=False)
    ledger: Ledger = field(default_factory=Ledger)
    children: dict[int, Child] = field(default_factory=dict)
    log: list[act.Action] = field(default_factory=list)
    observers: list[Callable[["World"], None]] = field(default_factory=list)
    """Called after every step."""

    def __post_init__(self) -> None:
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._pending: deque[ev.Event] = deque()
        self._unheard: list[ev.Event] | None = None
        self.state = initial(self.policy, self.seed)

    # -- Time

    def later(self, delay: float, happen: Callable[[], None]) -> None:
        """Put something on the agenda; infinity is never."""
        if delay < inf:
            heapq.heappush(self._agenda, (self.now + delay, next(self._numbers), happen))

    def advance(self, seconds: float) -> None:
        """Let time pass, with everything that happens in it."""
        self.run_until(lambda: False, within=seconds)

    def run_until(self, condition: Callable[[], bool], within: float) -> bool:
        """Let time pass until a condition holds; return whether it did in time."""
        end = self.now + within
        steps = 0
        while not condition():
            steps += 1
            assert steps < 100_000, "the world spins"
            deadline = max(self.now, next_deadline(self.state))
            due = self._agenda[0][0] if self._agenda else inf
            if self.state.exited:
                deadline = inf
            if min(deadline, due) > end:
                self.now = end
                return condition()
            self.now = max(self.now, min(deadline, due))
            if due <= deadline:
                heapq.heappop(self._agenda)[2]()
            else:
                self.learn(ev.Tick())
        return True

    def freeze(self, seconds: float) -> None:
        """Let time pass for the children only, then wake the supervisor as the edge does."""
        deadline = next_deadline(self.state)
        end = self.now + seconds
        self._unheard = []
        while self._agenda and self._agenda[0][0] <= end:
            self.now, _, happen = heapq.heappop(self._agenda)
            happen()
        unheard, self._unheard = self._unheard, None
        self.now = end
        if end > deadline:
            self.learn(ev.Lag(end - deadline))
        for event in unheard:
            self.learn(event)
        if self.now >= next_deadline(self.state) and not self.state.exited:
            self.learn(ev.Tick())

    # -- The supervisor's part

    def learn(self, event: ev.Event) -> None:
        """Give an event to the core and carry out what it asks for."""
        if self._unheard is not None:
            self._unheard.append(event)
            return
        self._pending.append(event)
        if len(self._pending) > 1:
            return
        if self.state.exited:
            self._pending.clear()
        while self._pending:
            event = self._pending[0]
            before = self.state
            workers = dict(before.workers)
            self.state, actions = step(before, event, self.now)
            assert before.workers == workers, "the state that came in was changed"
            self.ledger.check(before, event, self.now, self.state, actions)
            self.log += actions
            for action in actions:
                self._act(action)
            for observe in self.observers:
                observe(self)
            self._pending.popleft()

    def _act(self, action: act.Action) -> None:
        # None if it is dead, which the core may still have to learn.
        child = self.children.get(getattr(action, "worker", 0))
        if type(action) in self.failing:
            self.failing.remove(type(action))
            if isinstance(action, act.Spawn):
                self.learn(ev.SpawnFailed(action.worker, "EMFILE"))
            return
        match action:
            case act.Spawn():
                self.children[action.worker] = Child(self, action.worker, self.behaviour(action))
            case act.Drain() if child:
                child.drain(action.timeout)
            case act.Kill() if child:
                child.signal(action.signal)
            case act.Probe():
                verdict = child.behaviour.verdict if child else ev.Verdict.UNKNOWN
                self.learn(ev.Evidence(action.worker, verdict))
            case act.StartPreflight():
                self.later(self.preflight.takes, lambda: self._checked(action.epoch))
            case act.Upgrade():
                self.later(0.2, lambda: self.learn(ev.UpgradeRefused("exit code 1")))
            case act.StartTemplate():
                self.later(self.template.takes, lambda: self._template(action.generation))

    def _checked(self, epoch: int) -> None:
        if self.ledger.preflight != epoch:
            return
        if self.preflight.error:
            self.learn(ev.PreflightFailed(epoch, self.preflight.error))
        else:
            self.learn(ev.PreflightPassed(epoch, self.next_policy or self.state.policy))

    def _template(self, generation: int) -> None:
        if generation not in self.ledger.templates:
            return
        if self.template.error:
            self.learn(ev.TemplateFailed(generation, self.template.error))
        else:
            self.learn(ev.TemplateReady(generation))

    # -- What tests ask for

    def start(self) -> "World":
        """Let the program begin."""
        self.learn(ev.Started())
        return self

    def signal(self, name: str) -> None:
        """Send a signal to the supervisor."""
        self.learn(ev.Signal(name))

    @property
    def stopping(self) -> bool:
        """Whether the program is on its way out."""
        return self.state.phase is Phase.STOPPING

    @property
    def settled(self) -> bool:
        """Whether the fleet is as it should be and nothing is going on."""
        state = self.state
        return (
            state.phase is Phase.RUNNING
            and state.reload is None
            and not state.reload_requested
            and state.ready() == state.desired == state.count(*_OCCUPYING)
            and all(
                worker.generation == state.committed and not worker.recycle
                for worker in state.workers.values()
                if worker.active
            )
        )

    def settle(self, within: float = 60.0) -> "World":
        """Let time pass until the fleet is as it should be."""
        assert self.run_until(lambda: self.settled, within), self.state
        return self

    def stopped(self, within: float) -> bool:
        """Let time pass until the program has ended; return whether it did in time."""
        return self.run_until(lambda: self.state.exited, within)

    def said(self, level: str) -> list[act.Log]:
        """Return the log lines of a level."""
        return [item for item in self.log if isinstance(item, act.Log) and item.level == level]

    def generations(self) -> dict[int, int]:
        """Return how many workers of each generation are active."""
        found: dict[int, int] = {}
        for worker in self.state.workers.values():
            if worker.active:
                found[worker.generation] = found.get(worker.generation, 0) + 1
        return found


_OCCUPYING = (
    WorkerState.STARTING,
    WorkerState.SOAKING,
    WorkerState.READY,
    WorkerState.SUSPECT,
)
