"""The one door of the core: an event and the time go in, a new state and actions come out."""

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core.backoff import delay, next_seed
from asgictl.core.policy import DUMP_DELAY, KILL_GRACE, UNKILLABLE_REMINDER, Policy
from asgictl.core.reconcile import abort_reload, reconcile
from asgictl.core.state import (
    Happening,
    Phase,
    ReloadPhase,
    State,
    StopLevel,
    Template,
    TemplatePhase,
    WorkerHandle,
    WorkerState,
)
from asgictl.core.turn import Turn


def initial(policy: Policy, seed: int) -> State:
    """Return the state before anything has happened.

    Args:
        policy: the numbers to decide by.
        seed: any 64 bits; all randomness comes from it.
    """
    return State(policy=policy, desired=policy.workers, seed=seed)


def step(state: State, event: ev.Event, now: float) -> tuple[State, list[act.Action]]:
    """Return what follows from an event.

    Args:
        state: what was known; it is not changed.
        event: what has been learned.
        now: monotonic seconds; never less than at the step before.
    """
    if type(event) is ev.Beat:
        # Nearly all events are these, and most of them change nothing to decide about.
        worker = state.workers.get(event.worker)
        if worker is None:
            return state, []
        if worker.state is not WorkerState.SUSPECT:
            return _with_beat(state, worker, event, now), []
    turn = Turn(state, now)
    _HANDLERS[type(event)](turn, event)
    reconcile(turn)
    return turn.state, turn.actions


# -- Beats, and their absence


def _with_beat(state: State, worker: WorkerHandle, event: ev.Beat, now: float) -> State:
    deadline = worker.deadline
    if worker.state is WorkerState.READY:
        deadline = now + state.policy.late_after
    worker = replace(
        worker,
        last_beat=now,
        deadline=deadline,
        connections=event.connections,
        in_flight=event.in_flight,
    )
    return replace(state, workers={**state.workers, worker.id: worker})


def _beat(turn: Turn, event: ev.Beat) -> None:
    worker = turn.state.workers[event.worker]
    turn.info(f"beats again after {turn.now - worker.last_beat:.1f} s: {worker}")
    worker = turn.move(worker, Happening.BEAT)
    turn.state = _with_beat(turn.state, worker, event, turn.now)


def _tick(turn: Turn, _event: ev.Tick) -> None:
    for worker in list(turn.state.workers.values()):
        if turn.now >= worker.dump_due:
            worker = turn.put(worker, dump_due=inf)
            turn.do(act.CollectDump(worker.id, f"stacks of {worker}"))
        if turn.now >= worker.deadline:
            _OVERDUE[worker.state](turn, worker)
    for template in list(turn.state.templates.values()):
        if turn.now >= template.deadline:
            _template_overdue(turn, template)
    reload = turn.state.reload
    if reload and reload.phase is ReloadPhase.PREFLIGHT and turn.now >= reload.deadline:
        abort_reload(turn, f"the check took longer than {turn.now - reload.started:.0f} s")


def _starting_overdue(turn: Turn, worker: WorkerHandle) -> None:
    waited = turn.now - worker.born
    error = f"not ready after {waited:.0f} s, still in stage {worker.stage!r}"
    worker = turn.put(worker, failure=error)
    turn.abort(turn.move(worker, Happening.HUNG, fate="boot time-out"))
    _boot_failed(turn, worker, worker.stage, error, "")


def _soaking_overdue(turn: Turn, worker: WorkerHandle) -> None:
    policy = turn.state.policy
    if worker.last_beat > worker.ready_at:
        turn.move(worker, Happening.SOAKED, deadline=worker.last_beat + policy.late_after)
    elif turn.now < worker.ready_at + policy.late_after:
        # Ready is a word, a beat is a proof: wait for the first one.
        turn.put(worker, deadline=turn.now + DUMP_DELAY)
    else:
        _suspect(turn, worker)


def _suspect(turn: Turn, worker: WorkerHandle) -> None:
    turn.warn(
        f"no heartbeat for {turn.now - worker.last_beat:.1f} s, asking for its stacks: {worker}"
    )
    turn.move(
        worker,
        Happening.LATE,
        deadline=max(worker.last_beat + turn.state.policy.timeout, turn.now + DUMP_DELAY),
        dump_due=turn.now + DUMP_DELAY,
    )
    turn.do(act.Probe(worker.id))
    turn.do(act.Dump(worker.id))


def _suspect_overdue(turn: Turn, worker: WorkerHandle) -> None:
    # Evidence answers at once. Should it not come, the next tick asks again.
    turn.put(worker, deadline=turn.now + 1.0)
    turn.do(act.Probe(worker.id))


def _evidence(turn: Turn, event: ev.Evidence) -> None:
    worker = turn.state.workers.get(event.worker)
    policy = turn.state.policy
    if worker is None or worker.state is not WorkerState.SUSPECT:
        return
    silent = turn.now - worker.last_beat
    if silent < policy.timeout:
        return
    if event.verdict in (ev.Verdict.STARVED, ev.Verdict.STOPPED):
        turn.warn(
            f"no heartbeat for {silent:.1f} s, but it is {event.verdict}, waiting on: {worker}"
        )
        turn.put(worker, deadline=turn.now + policy.timeout)
        return
    active = [item for item in turn.state.workers.values() if item.active]
    suspects = sum(item.state is WorkerState.SUSPECT for item in active)
    if (
        len(active) > 1
        and 2 * suspects > len(active)
        and turn.now < turn.state.last_abort + policy.timeout
    ):
        # More likely the machine than the workers; killing them all would make it certain.
        turn.put(worker, deadline=turn.state.last_abort + policy.timeout)
        return
    turn.error(f"no heartbeat for {silent:.1f} s ({event.verdict}), killing {worker}")
    turn.set(last_abort=turn.now)
    turn.failed(worker)
    turn.abort(turn.move(worker, Happening.HUNG, fate="hang"))
    _blame_reload(turn, worker, f"a worker hung: {worker}")


def _draining_overdue(turn: Turn, worker: WorkerHandle) -> None:
    turn.warn(f"still busy at the end of its drain, terminating {worker}")
    turn.terminate(turn.move(worker, Happening.OVERRUN))


def _terminating_overdue(turn: Turn, worker: WorkerHandle) -> None:
    turn.warn(f"does not leave on SIGTERM, aborting {worker}")
    turn.abort(turn.move(worker, Happening.OVERRUN))


def _aborting_overdue(turn: Turn, worker: WorkerHandle) -> None:
    turn.warn(f"does not leave on SIGABRT, killing {worker}")
    turn.kill(worker)


def _killing_overdue(turn: Turn, worker: WorkerHandle) -> None:
    turn.error(f"SIGKILL has not ended it after {KILL_GRACE:g} s, going on without: {worker}")
    turn.move(worker, Happening.OVERRUN, deadline=turn.now + UNKILLABLE_REMINDER)


def _unkillable_overdue(turn: Turn, worker: WorkerHandle) -> None:
    turn.error(f"still not ended by SIGKILL: {worker}")
    turn.put(worker, deadline=turn.now + UNKILLABLE_REMINDER)


_OVERDUE: dict[WorkerState, Callable[[Turn, WorkerHandle], None]] = {
    WorkerState.STARTING: _starting_overdue,
    WorkerState.SOAKING: _soaking_overdue,
    WorkerState.READY: _suspect,
    WorkerState.SUSPECT: _suspect_overdue,
    WorkerState.DRAINING: _draining_overdue,
    WorkerState.TERMINATING: _terminating_overdue,
    WorkerState.ABORTING: _aborting_overdue,
    WorkerState.KILLING: _killing_overdue,
    WorkerState.UNKILLABLE: _unkillable_overdue,
}


def _lag(turn: Turn, event: ev.Lag) -> None:
    """Move every deadline by the time in which nobody could be judged fairly."""
    lag, state = event.seconds, turn.state
    turn.warn(f"the supervisor itself was held up for {lag:.1f} s; all deadlines move by that")
    workers = {}
    for worker in state.workers.values():
        beat = (
            worker.last_beat if worker.last_beat == inf else min(turn.now, worker.last_beat + lag)
        )
        workers[worker.id] = replace(
            worker,
            deadline=worker.deadline + lag,
            dump_due=worker.dump_due + lag,
            last_beat=beat,
        )
    templates = {
        key: replace(item, deadline=item.deadline + lag) for key, item in state.templates.items()
    }
    reload = state.reload and replace(state.reload, deadline=state.reload.deadline + lag)
    turn.set(workers=workers, templates=templates, reload=reload, dark_since=state.dark_since + lag)


# -- Births and deaths


def _started(turn: Turn, _event: ev.Started) -> None:
    if turn.state.policy.preload:
        turn.start_template(turn.state.committed)


def _spawned(turn: Turn, event: ev.Spawned) -> None:
    worker = turn.state.workers.get(event.worker)
    if worker is None:
        return
    worker = turn.put(worker, pid=event.pid)
    turn.debug(f"forked {worker}")
    if worker.state is WorkerState.TERMINATING:
        # It was retired between the request and the fork.
        turn.terminate(worker)


def _spawn_failed(turn: Turn, event: ev.SpawnFailed) -> None:
    worker = turn.state.workers.get(event.worker)
    if worker is None:
        return
    turn.drop_worker(worker.id)
    if worker.active:
        _boot_failed(turn, worker, "fork", event.error, "")


def _stage(turn: Turn, event: ev.StageReached) -> None:
    worker = turn.state.workers.get(event.worker)
    if worker and worker.state is WorkerState.STARTING:
        turn.put(worker, stage=event.stage)


def _became_ready(turn: Turn, event: ev.BecameReady) -> None:
    worker, now = turn.state.workers.get(event.worker), turn.now
    if worker is None or worker.state is not WorkerState.STARTING:
        return
    state = turn.state
    if state.phase is Phase.BOOTING:
        turn.set(phase=Phase.RUNNING)
    trial = worker.generation != state.committed and state.policy.min_ready > 0
    worker = turn.move(
        worker, Happening.READY, ready_at=now, last_beat=now, deadline=now + state.policy.min_ready
    )
    turn.info(f"ready after {now - worker.born:.2f} s: {worker}")
    if not trial:
        turn.move(worker, Happening.SOAKED, deadline=now + state.policy.late_after)


def _boot_failure(turn: Turn, event: ev.BootFailed) -> None:
    worker = turn.state.workers.get(event.worker)
    if worker is None or worker.state is not WorkerState.STARTING:
        return
    worker = turn.put(worker, failure=event.error)
    # It exits by itself; should it not, the deadline of TERMINATING ends it.
    turn.move(worker, Happening.FAILED, fate="boot failed", deadline=turn.now + 1.0)
    _boot_failed(turn, worker, event.stage, event.error, event.traceback)


def _boot_failed(turn: Turn, worker: WorkerHandle, stage: str, error: str, traceback: str) -> None:
    """Draw the consequences of a failed boot, of which there are four kinds."""
    state = turn.state
    what = f"boot failed in stage {stage!r}: {error}"
    if state.phase is Phase.STOPPING:
        return
    if state.phase is Phase.BOOTING:
        turn.error(what, traceback)
        turn.begin_stop(3)
    elif state.reload and worker.generation == state.reload.generation:
        abort_reload(turn, what, traceback)
    elif worker.generation == state.committed:
        wait = turn.failed(worker)
        # The same traceback from every slot and at every try would bury all other lines.
        detail = "" if traceback == state.last_failure else traceback
        turn.set(last_failure=traceback)
        retry = f"trying again in {wait:.1f} s" if wait else "trying again"
        turn.error(f"{what}; {retry}: {worker}", detail)


def _exited(turn: Turn, event: ev.Exited) -> None:
    worker = turn.state.workers.get(event.worker)
    if worker is None:
        return
    turn.drop_worker(worker.id)
    cause = _cause(event)
    turn.do(act.CollectDump(worker.id, f"last stacks of {worker}"))
    lived = turn.now - worker.born
    if worker.state is WorkerState.STARTING:
        _boot_failed(turn, worker, worker.stage, f"the worker {cause}", "")
    elif worker.active:
        wait = turn.failed(worker)
        retry = f", starting another in {wait:.1f} s" if wait else ", starting another"
        busy = f" with {worker.in_flight} requests in progress" if worker.in_flight else ""
        stopping = turn.state.phase is Phase.STOPPING
        turn.error(f"{cause} after {lived:.1f} s{busy}{'' if stopping else retry}: {worker}")
        _blame_reload(turn, worker, f"a worker {cause}: {worker}")
    else:
        turn.info(f"{cause} after {lived:.1f} s ({worker.fate or 'asked to leave'}): {worker}")


def _cause(event: ev.Exited) -> str:
    if event.signal == "KILL" and event.out_of_memory:
        return "was killed by the kernel because memory ran out"
    if event.signal:
        return f"was killed by SIG{event.signal}"
    return f"exited with code {event.code}"


def _blame_reload(turn: Turn, worker: WorkerHandle, reason: str) -> None:
    reload = turn.state.reload
    if reload and worker.generation == reload.generation:
        abort_reload(turn, reason)


# -- Words from workers


def _recycle(turn: Turn, event: ev.RecycleRequested) -> None:
    worker = turn.state.workers.get(event.worker)
    if worker and worker.active and not worker.recycle:
        turn.put(worker, recycle=event.reason)
        turn.info(f"wants a successor ({event.reason}): {worker}")


def _drain_started(turn: Turn, event: ev.DrainStarted) -> None:
    worker, policy = turn.state.workers.get(event.worker), turn.state.policy
    if worker is None or not worker.active:
        return
    # Nobody here has asked for it: somebody has sent SIGTERM to the worker itself.
    turn.info(f"is leaving because somebody else told it to: {worker}")
    turn.move(
        worker,
        Happening.RETIRE,
        fate="told by somebody else",
        draining_until=turn.now + policy.stop_timeout,
        deadline=turn.now + policy.drain_deadline(policy.stop_timeout),
    )


# -- Reload


def _preflight_passed(turn: Turn, event: ev.PreflightPassed) -> None:
    reload = turn.state.reload
    if reload is None or reload.epoch != event.epoch or reload.phase is not ReloadPhase.PREFLIGHT:
        return
    if event.policy.preload:
        reload = replace(reload, policy=event.policy, phase=ReloadPhase.TEMPLATE, deadline=inf)
        turn.set(reload=reload)
        turn.start_template(reload.generation)
    else:
        turn.set(
            reload=replace(reload, policy=event.policy, phase=ReloadPhase.CANARY, deadline=inf)
        )


def _preflight_failed(turn: Turn, event: ev.PreflightFailed) -> None:
    reload = turn.state.reload
    if reload and reload.epoch == event.epoch:
        abort_reload(turn, event.error, event.traceback)


def _template_ready(turn: Turn, event: ev.TemplateReady) -> None:
    template = turn.state.templates.get(event.generation)
    if template is None:
        return
    turn.put_template(replace(template, phase=TemplatePhase.READY, deadline=inf, failures=0))
    reload = turn.state.reload
    if reload and reload.generation == event.generation and reload.phase is ReloadPhase.TEMPLATE:
        turn.set(reload=replace(reload, phase=ReloadPhase.CANARY))


def _template_failed(turn: Turn, event: ev.TemplateFailed) -> None:
    template = turn.state.templates.get(event.generation)
    if template is not None and turn.state.phase is not Phase.STOPPING:
        _template_lost(turn, template, event.error, event.traceback)


def _template_overdue(turn: Turn, template: Template) -> None:
    if template.phase is TemplatePhase.LOST:
        turn.start_template(template.generation, template.failures)
    else:
        _template_lost(turn, template, "it was not ready in time", "")


def _template_lost(turn: Turn, template: Template, error: str, traceback: str) -> None:
    state = turn.state
    what = f"the template of generation {template.generation} failed: {error}"
    if state.phase is Phase.BOOTING:
        turn.error(what, traceback)
        turn.begin_stop(3)
    elif state.reload and template.generation == state.reload.generation:
        abort_reload(turn, what, traceback)
    else:
        seed = next_seed(state.seed)
        failures = template.failures + 1
        wait = delay(failures, seed)
        turn.set(seed=seed)
        turn.put_template(
            replace(template, phase=TemplatePhase.LOST, deadline=turn.now + wait, failures=failures)
        )
        turn.error(f"{what}; its workers serve on, trying again in {wait:.1f} s", traceback)


# -- Signals


def _signal(turn: Turn, event: ev.Signal) -> None:
    handler = _SIGNALS.get(event.name)
    if handler is None:
        turn.debug(f"ignored SIG{event.name}")
    else:
        handler(turn)


def _stop_gracefully(turn: Turn) -> None:
    level = turn.state.stop
    if level is StopLevel.NONE:
        turn.info("stopping: requests in progress are finished first")
        turn.begin_stop(0, turn.state.policy.stop_delay)
        turn.set(stop=StopLevel.GRACEFUL)
    elif level is StopLevel.GRACEFUL:
        _stop_fast(turn)
    else:
        turn.warn("killing what is left")
        turn.set(stop=StopLevel.KILL)
        for worker in list(turn.state.workers.values()):
            turn.kill(worker)


def _stop_fast(turn: Turn) -> None:
    turn.info("stopping at once: requests in progress are cut off")
    turn.begin_stop(0)
    turn.set(stop=StopLevel.FAST)
    for worker in list(turn.state.workers.values()):
        if worker.active:
            turn.retire(worker, "stop", 0.0)
        elif worker.state is WorkerState.DRAINING:
            turn.shorten_drain(worker, "stop", 0.0)


def _hup(turn: Turn) -> None:
    if turn.state.phase is not Phase.STOPPING:
        turn.set(reload_requested=True)


def _scale(turn: Turn, change: int) -> None:
    state = turn.state
    desired = min(max(1, state.desired + change), state.policy.max_workers)
    if state.phase is Phase.STOPPING:
        return
    if desired == state.desired:
        turn.warn(f"stays at {desired} workers: that is the limit")
    else:
        turn.info(f"scaling from {state.desired} to {desired} workers")
        turn.set(desired=desired)


def _upgrade(turn: Turn) -> None:
    if turn.state.phase is Phase.RUNNING and turn.state.reload is None:
        turn.do(act.Upgrade())
    else:
        turn.warn("not upgrading now: wait until the fleet is up and no reload is under way")


def _upgrade_refused(turn: Turn, event: ev.UpgradeRefused) -> None:
    turn.error(f"upgrade refused, everything is as it was: {event.error}")


_SIGNALS: dict[str, Callable[[Turn], None]] = {
    "TERM": _stop_gracefully,
    "INT": _stop_gracefully,
    "QUIT": _stop_fast,
    "HUP": _hup,
    "TTIN": lambda turn: _scale(turn, +1),
    "TTOU": lambda turn: _scale(turn, -1),
    "USR1": lambda turn: turn.do(act.ReopenLogs()),
    "USR2": _upgrade,
}

_HANDLERS: dict[type, Callable[[Turn, Any], None]] = {
    ev.Started: _started,
    ev.Signal: _signal,
    ev.Tick: _tick,
    ev.Lag: _lag,
    ev.Spawned: _spawned,
    ev.SpawnFailed: _spawn_failed,
    ev.Exited: _exited,
    ev.StageReached: _stage,
    ev.BecameReady: _became_ready,
    ev.BootFailed: _boot_failure,
    ev.Beat: _beat,
    ev.RecycleRequested: _recycle,
    ev.DrainStarted: _drain_started,
    ev.Evidence: _evidence,
    ev.PreflightPassed: _preflight_passed,
    ev.PreflightFailed: _preflight_failed,
    ev.TemplateReady: _template_ready,
    ev.TemplateFailed: _template_failed,
    ev.UpgradeRefused: _upgrade_refused,
}
