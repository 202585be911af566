"""What silence means: beats, lateness, evidence, and what is due at each deadline.

A worker that has not beaten for half of its time-out is SUSPECT: its stacks are asked for,
and /proc is looked at. At the whole time-out /proc is looked at again, and the difference
says whether the worker hangs (then it is aborted) or the machine does not let it run (then
it gets more time). The same is asked before a boot time-out is executed. Beats of a draining worker count too: one that hangs is not left to sit
out a long drain.

Time in which the supervisor itself did not run (``Lag``) is held against nobody.
"""

from collections.abc import Callable
from math import inf

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core import lives, reload
from asgictl.core.policy import DUMP_DELAY, KILL_GRACE, PROBE_PATIENCE, UNKILLABLE_REMINDER
from asgictl.core.state import (
    Happening,
    State,
    WorkerHandle,
    WorkerState,
    changed,
    deadline_after_beat,
)
from asgictl.core.turn import Turn


def with_beat(state: State, worker: WorkerHandle, event: ev.Beat, now: float) -> State:
    """Return the state in which a worker has just beaten."""
    worker = changed(
        worker,
        last_beat=now,
        deadline=deadline_after_beat(state, worker, now),
        connections=event.connections,
        in_flight=event.in_flight,
    )
    return changed(state, workers={**state.workers, worker.id: worker})


def beat_of_suspect(turn: Turn, event: ev.Beat) -> None:
    """Trust a suspect again."""
    worker = turn.workers[event.worker]
    turn.info(f"beats again after {turn.now - worker.last_beat:.1f} s: {worker}")
    worker = turn.move(
        worker,
        Happening.BEAT,
        last_beat=turn.now,
        connections=event.connections,
        in_flight=event.in_flight,
    )
    lives.soak(turn, worker)


def tick(turn: Turn, _event: ev.Tick) -> None:
    """Do whatever is due."""
    for worker in list(turn.workers.values()):
        if turn.now >= worker.dump_due:
            worker = turn.put(worker, dump_due=inf)
            turn.do(act.CollectDump(worker.id, f"stacks of {worker}"))
        if turn.now < worker.deadline:
            continue
        if worker.active or worker.pid:
            _OVERDUE[worker.state](turn, worker)
        else:
            turn.warn(f"no longer waiting for the fork of {worker}")
            del turn.workers[worker.id]
    for template in list(turn.state.templates.values()):
        if turn.now >= template.deadline:
            reload.template_overdue(turn, template)
    under_way = turn.state.reload
    if under_way and turn.now >= under_way.deadline:
        reload.preflight_overdue(turn, under_way)


def _starting_overdue(turn: Turn, worker: WorkerHandle) -> None:
    if worker.pid:
        _probe(turn, worker)
    else:
        _end_boot(turn, worker)


def _judge_boot(turn: Turn, worker: WorkerHandle, verdict: ev.Verdict) -> None:
    if verdict in _NOT_GUILTY:
        waited = turn.now - worker.born
        turn.warn(f"not ready after {waited:.0f} s, but it is {verdict}: {worker}")
        more = turn.state.policy_of(worker.generation).boot_timeout / 2
        turn.put(worker, deadline=turn.now + more)
    else:
        _end_boot(turn, worker)


def _end_boot(turn: Turn, worker: WorkerHandle) -> None:
    waited = turn.now - worker.born
    error = f"not ready after {waited:.0f} s, still in stage {worker.stage!r}"
    worker = turn.move(worker, Happening.HUNG, fate="boot time-out", failure=error)
    turn.abort(worker)
    lives.boot_failed(turn, worker, worker.stage, error)


def _soaking_overdue(turn: Turn, worker: WorkerHandle) -> None:
    if turn.now >= worker.last_beat + turn.state.policy_of(worker.generation).late_after:
        _suspect(turn, worker)
    else:
        lives.soak(turn, worker)


def _suspect(turn: Turn, worker: WorkerHandle) -> None:
    silent = turn.now - worker.last_beat
    turn.warn(f"no heartbeat for {silent:.1f} s, asking for its stacks: {worker}")
    verdict_at = worker.last_beat + turn.state.policy_of(worker.generation).timeout
    dump_due = turn.now + DUMP_DELAY
    turn.move(worker, Happening.LATE, deadline=max(verdict_at, dump_due), dump_due=dump_due)
    turn.do(act.Probe(worker.id))
    turn.do(act.Dump(worker.id))


def _probe(turn: Turn, worker: WorkerHandle) -> None:
    turn.put(worker, deadline=turn.now + PROBE_PATIENCE)
    turn.do(act.Probe(worker.id))


_NOT_GUILTY = (ev.Verdict.STARVED, ev.Verdict.STOPPED)


def evidence(turn: Turn, event: ev.Evidence) -> None:
    """Judge a worker that has been silent, or has booted, for its whole time-out."""
    worker = turn.workers.get(event.worker)
    if worker is None:
        return
    if worker.state is WorkerState.STARTING:
        _judge_boot(turn, worker, event.verdict)
    elif worker.state in (WorkerState.SUSPECT, WorkerState.DRAINING):
        _judge_silence(turn, worker, event.verdict)


def _judge_silence(turn: Turn, worker: WorkerHandle, verdict: ev.Verdict) -> None:
    state = turn.state
    timeout = state.policy_of(worker.generation).timeout
    silent = turn.now - worker.last_beat
    if silent < timeout:
        return
    if verdict in _NOT_GUILTY:
        turn.warn(f"no heartbeat for {silent:.1f} s, but it is {verdict}: {worker}")
        _wait(turn, worker, turn.now + timeout)
    elif state.count(WorkerState.SUSPECT) > state.ready() and turn.now < state.last_abort + timeout:
        # More likely the machine than the workers; killing them all would make it certain.
        _wait(turn, worker, state.last_abort + timeout)
    else:
        turn.error(f"no heartbeat for {silent:.1f} s ({verdict}), killing {worker}")
        turn.set(last_abort=turn.now)
        if worker.active:
            turn.failed(worker)
        turn.abort(turn.move(worker, Happening.HUNG, fate="hang"))
        reload.blame(turn, worker, f"a worker hung: {worker}")


def _wait(turn: Turn, worker: WorkerHandle, until: float) -> None:
    """Judge a silent worker later, but let no drain become longer by that."""
    turn.put(worker, deadline=min(until, _drain_end(turn, worker)))


def _drain_end(turn: Turn, worker: WorkerHandle) -> float:
    return worker.draining_until + turn.state.policy_of(worker.generation).drain_overtime


def _draining_overdue(turn: Turn, worker: WorkerHandle) -> None:
    if turn.now < _drain_end(turn, worker):
        _probe(turn, worker)
        return
    turn.warn(f"still busy at the end of its drain, terminating {worker}")
    turn.terminate(turn.move(worker, Happening.OVERRUN))


def _terminating_overdue(turn: Turn, worker: WorkerHandle) -> None:
    turn.warn(f"does not leave, aborting {worker}")
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
    WorkerState.SUSPECT: _probe,
    WorkerState.DRAINING: _draining_overdue,
    WorkerState.TERMINATING: _terminating_overdue,
    WorkerState.ABORTING: _aborting_overdue,
    WorkerState.KILLING: _killing_overdue,
    WorkerState.UNKILLABLE: _unkillable_overdue,
}


def lag(turn: Turn, event: ev.Lag) -> None:
    """Move everything that anybody is judged by."""
    late, state, now = event.seconds, turn.state, turn.now
    turn.warn(f"the supervisor itself was held up for {late:.1f} s; all deadlines move by that")
    for worker in list(turn.workers.values()):
        turn.put(
            worker,
            deadline=worker.deadline + late,
            dump_due=worker.dump_due + late,
            draining_until=worker.draining_until + late,
            ready_at=_later(worker.ready_at, late, now),
            last_beat=_later(worker.last_beat, late, now),
        )
    turn.set(
        templates={
            generation: changed(template, deadline=template.deadline + late)
            for generation, template in state.templates.items()
        },
        reload=state.reload and changed(state.reload, deadline=state.reload.deadline + late),
        dark_since=_later(state.dark_since, late, now),
        last_abort=_later(state.last_abort, late, now),
    )


def _later(moment: float, late: float, now: float) -> float:
    """Move a moment of the past, but not into the future; infinity stands for never."""
    return moment if moment == inf else min(moment + late, now)
