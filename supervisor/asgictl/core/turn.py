"""One turn of the core: a state that is being changed, and the actions that come of it.

The state stays immutable; a turn only holds the newest one, so that the rules in
``step.py`` and ``reconcile.py`` read as a list of small moves. The moves that change one
worker are all here.
"""

from dataclasses import replace
from math import inf
from typing import Any

from asgictl.core import actions as act
from asgictl.core.backoff import delay, next_seed
from asgictl.core.policy import ABORT_GRACE, DUMP_DELAY, KILL_GRACE, MIN_UPTIME, TERMINATE_GRACE
from asgictl.core.state import (
    TRANSITIONS,
    Happening,
    Phase,
    State,
    Template,
    WorkerHandle,
    WorkerState,
)


class Turn:
    """Collects what one event changes and causes, at one moment ``now``."""

    __slots__ = ("actions", "now", "state")

    def __init__(self, state: State, now: float) -> None:
        self.state = state
        self.now = now
        self.actions: list[act.Action] = []

    # -- The whole

    def set(self, **changes: Any) -> None:
        """Change fields of the state."""
        self.state = replace(self.state, **changes)

    def do(self, action: act.Action) -> None:
        """Ask for an action; they are carried out in this order."""
        self.actions.append(action)

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
        changed = replace(worker, **changes) if changes else worker
        self.set(workers={**self.state.workers, changed.id: changed})
        return changed

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
            deadline=self.now + self.policy_of(generation).boot_timeout,
        )
        backoff = {key: until for key, until in state.backoff.items() if key != slot}
        self.set(next_worker=worker.id + 1, backoff=backoff)
        self.put(worker)
        self.do(act.Spawn(worker.id, slot, generation))

    def policy_of(self, generation: int) -> Any:
        """Return the policy that a generation is started by."""
        reload = self.state.reload
        if reload and reload.generation == generation and reload.policy:
            return reload.policy
        return self.state.policy

    def retire(self, worker: WorkerHandle, fate: str, timeout: float) -> None:
        """Let a worker finish its work within ``timeout`` seconds and leave.

        One that is still booting has no work and is terminated.
        """
        if worker.state is WorkerState.STARTING:
            self.terminate(self.move(worker, Happening.RETIRE, fate=fate))
        elif worker.active:
            policy = self.state.policy
            deadline = self.now + policy.drain_deadline(timeout)
            if worker.state is WorkerState.SUSPECT:
                # It may never read the word; then the hang decides, not the drain.
                deadline = min(deadline, max(self.now, worker.last_beat + policy.timeout))
            self.move(
                worker,
                Happening.RETIRE,
                fate=fate,
                deadline=deadline,
                draining_until=self.now + timeout,
                dump_due=inf,
            )
            self.do(act.Drain(worker.id, timeout, fate))

    def shorten_drain(self, worker: WorkerHandle, fate: str, timeout: float) -> None:
        """Give a draining worker less time than it was told before; never more."""
        until = self.now + timeout
        if until < worker.draining_until:
            deadline = self.now + self.state.policy.drain_deadline(timeout)
            self.put(worker, fate=fate, draining_until=until, deadline=deadline)
            self.do(act.Drain(worker.id, timeout, fate))

    def terminate(self, worker: WorkerHandle) -> None:
        """Send SIGTERM; the worker has to be in TERMINATING."""
        self.put(worker, deadline=self.now + TERMINATE_GRACE, dump_due=inf)
        self._signal(worker.id, "TERM")

    def abort(self, worker: WorkerHandle) -> None:
        """Send SIGABRT, which makes the interpreter write its stacks; then SIGKILL."""
        self.put(worker, deadline=self.now + ABORT_GRACE, dump_due=self.now + DUMP_DELAY)
        self._signal(worker.id, "ABRT")

    def kill(self, worker: WorkerHandle) -> None:
        """Send SIGKILL, whatever the worker is doing."""
        self.move(worker, Happening.KILL, deadline=self.now + KILL_GRACE, dump_due=inf)
        self._signal(worker.id, "KILL")

    def _signal(self, worker_id: int, name: str) -> None:
        worker = self.state.workers[worker_id]
        # Python turns a second SIGTERM into a death in the middle of the interpreter's exit.
        if worker.pid and name not in worker.sent:
            self.put(worker, sent=worker.sent | {name})
            self.do(act.Kill(worker_id, name))  # type: ignore[arg-type]

    # -- Failures

    def failed(self, worker: WorkerHandle) -> float:
        """Count a failure against the worker's generation and hold its slot back.

        Returns:
            The seconds until the slot may be filled again.
        """
        state = self.state
        healthy = worker.ready_at < inf and self.now - worker.ready_at >= MIN_UPTIME
        failures = 1 if healthy else state.failures.get(worker.generation, 0) + 1
        seed = next_seed(state.seed)
        wait = delay(failures, seed)
        backoff = dict(state.backoff)
        if wait:
            backoff[worker.slot] = self.now + wait
        self.set(
            seed=seed, failures={**state.failures, worker.generation: failures}, backoff=backoff
        )
        return wait

    def drop_worker(self, worker_id: int) -> None:
        """Forget a worker whose process is gone."""
        self.set(
            workers={key: item for key, item in self.state.workers.items() if key != worker_id}
        )

    # -- Templates

    def put_template(self, template: Template) -> None:
        """Store a template."""
        self.set(templates={**self.state.templates, template.generation: template})

    def start_template(self, generation: int, failures: int = 0) -> None:
        """Ask for the process that holds a generation's application in memory."""
        deadline = self.now + self.policy_of(generation).boot_timeout
        self.put_template(Template(generation=generation, deadline=deadline, failures=failures))
        self.do(act.StartTemplate(generation))

    # -- Stopping

    def begin_stop(self, code: int, stop_delay: float = 0.0) -> None:
        """Leave as soon as the workers have; the first reason to stop decides the code."""
        if self.state.phase is Phase.STOPPING:
            return
        self.do(act.Notify("stopping", "stopping"))
        self.set(
            phase=Phase.STOPPING,
            exit_code=code,
            stop_accepting_at=self.now + stop_delay,
            reload=None,
            reload_requested=False,
            backoff={},
        )
