"""One turn of the core: a state that is being changed, and the actions that come of it.

A turn owns a copy of the table of workers and the newest state, so that the rules elsewhere
read as a list of small moves. The state that came in is not touched, the one that goes out
is not changed any more. The moves that change one worker are all here.
"""

from math import inf
from typing import Any, Literal

from asgictl.core import actions as act
from asgictl.core.backoff import delay, next_seed, shortest_delay
from asgictl.core.policy import ABORT_GRACE, DUMP_DELAY, KILL_GRACE, MIN_UPTIME, TERMINATE_GRACE
from asgictl.core.state import (
    TRANSITIONS,
    Happening,
    State,
    WorkerHandle,
    WorkerState,
    changed,
    deadline_after_beat,
)


class Turn:
    """Collects what one event changes and causes, at one moment ``now``."""

    __slots__ = ("actions", "now", "state", "workers")

    def __init__(self, state: State, now: float) -> None:
        self.now = now
        self.actions: list[act.Action] = []
        self.workers: dict[int, WorkerHandle] = dict(state.workers)
        self.state = changed(state, workers=self.workers)

    # -- The whole

    def set(self, **changes: Any) -> None:
        """Change fields of the state."""
        self.state = changed(self.state, **changes)

    def do(self, action: act.Action) -> None:
        """Ask for an action; they are carried out in this order."""
        self.actions.append(action)

    def announce(self, event: Literal["ready", "reloading", "stopping"], status: str) -> None:
        """Tell the service manager of a change, for which it has a time-out of its own."""
        self.set(promised=-inf)
        self.do(act.Notify(event, status))

    def debug(self, text: str) -> None:
        """Log for somebody who is looking into asgictl itself."""
        self.do(act.Log("debug", text))

    def info(self, text: str) -> None:
        """Log an event in the life of a process."""
        self.do(act.Log("info", text))

    def warn(self, text: str, detail: str = "") -> None:
        """Log that something was wrong and was dealt with."""
        self.do(act.Log("warning", text, detail))

    def error(self, text: str, detail: str = "") -> None:
        """Log that somebody has to act."""
        self.do(act.Log("error", text, detail))

    # -- One worker

    def put(self, worker: WorkerHandle, **changes: Any) -> WorkerHandle:
        """Store a worker with changed fields and return it."""
        worker = changed(worker, **changes)
        self.workers[worker.id] = worker
        return worker

    def move(self, worker: WorkerHandle, happening: Happening, **changes: Any) -> WorkerHandle:
        """Move a worker along the table; nothing changes if the table has no such arrow."""
        target = TRANSITIONS[worker.state].get(happening)
        if target is None:
            return worker
        return self.put(worker, state=target, since=self.now, **changes)

    def spawn(self, slot: int, generation: int) -> None:
        """Ask for a worker in a slot."""
        state = self.state
        worker = WorkerHandle(
            id=state.next_worker,
            slot=slot,
            generation=generation,
            born=self.now,
            since=self.now,
            deadline=self.now + state.policy_of(generation).boot_timeout,
        )
        self.workers[worker.id] = worker
        self.set(
            next_worker=worker.id + 1,
            backoff={other: until for other, until in state.backoff.items() if other != slot},
        )
        self.do(act.Spawn(worker.id, slot, generation))

    def retire(self, worker: WorkerHandle, fate: str, timeout: float) -> None:
        """Let a worker finish its work within ``timeout`` seconds and leave.

        One that is still booting has no work and is terminated.
        """
        if worker.state is WorkerState.STARTING:
            self.terminate(self.move(worker, Happening.RETIRE, fate=fate))
        elif worker.active:
            self.drains(self.move(worker, Happening.RETIRE, fate=fate, dump_due=inf), timeout)
            self.do(act.Drain(worker.id, timeout, fate))

    def shorten_drain(self, worker: WorkerHandle, fate: str, timeout: float) -> None:
        """Give a draining worker less time than it was told before; never more."""
        if self.now + timeout < worker.draining_until:
            self.drains(self.put(worker, fate=fate), timeout)
            self.do(act.Drain(worker.id, timeout, fate))

    def drains(self, worker: WorkerHandle, timeout: float) -> None:
        """Note how long a worker, which has to be in DRAINING, may take."""
        worker = changed(worker, draining_until=self.now + timeout)
        # A worker that hangs never reads the word; then its silence ends it, not the drain.
        deadline = max(
            deadline_after_beat(self.state, worker, worker.last_beat), self.now + DUMP_DELAY
        )
        self.put(worker, deadline=deadline)

    def terminate(self, worker: WorkerHandle) -> None:
        """Send SIGTERM; the worker has to be in TERMINATING."""
        worker = self.put(worker, deadline=self.now + TERMINATE_GRACE, dump_due=inf)
        self._signal(worker, "TERM")

    def abort(self, worker: WorkerHandle) -> None:
        """Send SIGABRT, which makes the interpreter write its stacks; then SIGKILL."""
        worker = self.put(worker, deadline=self.now + ABORT_GRACE, dump_due=self.now + DUMP_DELAY)
        self._signal(worker, "ABRT")

    def kill(self, worker: WorkerHandle) -> None:
        """Send SIGKILL, whatever the worker is doing."""
        worker = self.move(worker, Happening.KILL, deadline=self.now + KILL_GRACE, dump_due=inf)
        self._signal(worker, "KILL")

    def _signal(self, worker: WorkerHandle, name: Literal["TERM", "ABRT", "KILL"]) -> None:
        # Python turns a second SIGTERM into a death in the middle of the interpreter's exit.
        if worker.pid and name not in worker.sent:
            self.put(worker, sent=worker.sent | {name})
            self.do(act.Kill(worker.id, name))

    # -- Failures

    def failed(self, worker: WorkerHandle) -> float:
        """Count a failure against the worker's generation and hold its slot back.

        Returns:
            The seconds until the slot may be filled again.
        """
        state, generation = self.state, worker.generation
        proved = self.now - MIN_UPTIME
        healthy = worker.ready_at <= proved or any(
            state.last_failure_at < other.ready_at <= proved
            for other in self.workers.values()
            if other.generation == generation and other.active
        )
        count = state.failures.get(generation, 0)
        # Workers that fail before the first of them can have been tried again failed together.
        together = self.now < state.last_failure_at + shortest_delay(count)
        count = 1 if healthy else count if together else count + 1
        seed = next_seed(state.seed)
        wait = delay(count, seed)
        self.set(
            seed=seed,
            failures={**state.failures, generation: count},
            last_failure_at=state.last_failure_at if together and not healthy else self.now,
            backoff={**state.backoff, worker.slot: self.now + wait} if wait else state.backoff,
        )
        return wait
