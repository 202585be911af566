"""Births and deaths, and what workers say of themselves."""

from math import inf

from asgictl.core import actions as act
from asgictl.core import development, reload, stop
from asgictl.core import events as ev
from asgictl.core.policy import TERMINATE_GRACE
from asgictl.core.state import (
    Happening,
    Phase,
    ReloadPhase,
    WorkerHandle,
    WorkerState,
    deadline_after_beat,
)
from asgictl.core.turn import Turn


def started(turn: Turn, _event: ev.Started) -> None:
    """Build the fleet; without a template that needs no more than to be reconciled."""
    if turn.state.policy.preload:
        reload.start_template(turn, turn.state.committed)


def spawned(turn: Turn, event: ev.Spawned) -> None:
    """Note the process id."""
    now = turn.now
    worker = turn.workers.get(event.worker) or WorkerHandle(
        # The fork took so long that the worker was forgotten, but it must not live unknown.
        id=event.worker,
        slot=-1,
        generation=0,
        born=now,
        deadline=now,
        state=WorkerState.TERMINATING,
        fate="forked too late",
    )
    worker = turn.put(worker, pid=event.pid)
    turn.debug(f"forked {worker}")
    if not worker.active:
        # It was given up between the request and the fork, and no signal could reach it.
        turn.kill(worker)


def spawn_failed(turn: Turn, event: ev.SpawnFailed) -> None:
    """Forget the worker; there is no process."""
    worker = turn.workers.pop(event.worker, None)
    if worker and worker.active:
        boot_failed(turn, worker, "fork", event.error)


def stage_reached(turn: Turn, event: ev.StageReached) -> None:
    """Note how far a boot has come, and tell if it takes long: of one worker, for all do the same."""
    worker = turn.workers.get(event.worker)
    if worker is None or worker.state is not WorkerState.STARTING:
        return
    turn.put(worker, stage=event.stage)
    others = (each.id for each in turn.workers.values() if each.state is WorkerState.STARTING)
    if event.busy and worker.id == min(others):
        turn.info(f"still {event.busy} after {turn.now - worker.born:.0f} s: {worker}")


def became_ready(turn: Turn, event: ev.BecameReady) -> None:
    """Trust a worker of the committed generation at once, and let one of a new one soak."""
    worker, now = turn.workers.get(event.worker), turn.now
    if worker is None or worker.state is not WorkerState.STARTING:
        return
    if turn.state.phase is Phase.BOOTING:
        turn.set(phase=Phase.RUNNING)
    worker = turn.move(worker, Happening.READY, ready_at=now, last_beat=now)
    turn.info(f"ready after {now - worker.born:.2f} s: {worker}")
    soak(turn, worker)


def soak(turn: Turn, worker: WorkerHandle) -> None:
    """Let a worker, which has to be in SOAKING, go on to READY when it may.

    The first worker of a generation must have been healthy for ``min_ready`` seconds and have
    sent a beat in that time. It proves the code for all others.
    """
    state = turn.state
    canary = state.reload is not None and state.reload.phase is ReloadPhase.CANARY
    min_ready = state.policy_of(worker.generation).min_ready if canary else 0.0
    soaked = worker.ready_at + min_ready <= turn.now and worker.ready_at < worker.last_beat
    if soaked or not min_ready or worker.generation == state.committed:
        worker = turn.move(worker, Happening.SOAKED)
    turn.put(worker, deadline=deadline_after_beat(state, worker, worker.last_beat))


def said_boot_failed(turn: Turn, event: ev.BootFailed) -> None:
    """Take a worker's word for it."""
    worker = turn.workers.get(event.worker)
    if worker is None or worker.state is not WorkerState.STARTING:
        return
    if event.shown:
        development.shown(turn, worker, event)
        return
    # It exits by itself; should it not, the deadline of TERMINATING ends it.
    worker = turn.move(
        worker,
        Happening.FAILED,
        fate="boot failed",
        failure=event.error,
        deadline=turn.now + TERMINATE_GRACE,
    )
    boot_failed(turn, worker, event.stage, event.error, event.traceback)


def boot_failed(
    turn: Turn, worker: WorkerHandle, stage: str, error: str, traceback: str = ""
) -> None:
    """Draw the consequences of a failed boot, which depend on who needs the worker."""
    state = turn.state
    what = f"boot failed in stage {stage!r}: {error}"
    if state.phase is Phase.STOPPING:
        return
    if state.phase is Phase.BOOTING:
        turn.error(what, traceback)
        stop.begin(turn, 3)
    elif state.reload and worker.generation == state.reload.generation:
        reload.abort(turn, what, traceback)
    else:
        wait = turn.failed(worker)
        # The same traceback from every slot and at every try would bury all other lines.
        detail = "" if traceback == state.last_failure else traceback
        turn.set(last_failure=traceback)
        retry = f"trying again in {wait:.1f} s" if wait else "trying again"
        turn.error(f"{what}; {retry}: {worker}", detail)


def exited(turn: Turn, event: ev.Exited) -> None:
    """Forget a worker; if nobody had told it to leave, that is a failure whatever the code."""
    worker = turn.workers.pop(event.worker, None)
    if worker is None:
        return
    cause, lived = _cause(event), turn.now - worker.born
    turn.do(act.CollectDump(worker.id, f"last stacks of {worker}"))
    if worker.state is WorkerState.STARTING:
        boot_failed(turn, worker, worker.stage, f"the worker {cause}")
    elif worker.active:
        busy = f" with {worker.in_flight} requests in progress" if worker.in_flight else ""
        what = f"{cause} after {lived:.1f} s{busy}"
        if turn.state.phase is Phase.STOPPING:
            turn.error(f"{what}: {worker}")
            return
        wait = turn.failed(worker)
        retry = f"starting another in {wait:.1f} s" if wait else "starting another"
        turn.error(f"{what}, {retry}: {worker}")
        reload.blame(turn, worker, f"a worker {cause}: {worker}")
    else:
        turn.info(f"{cause} after {lived:.1f} s ({worker.fate}): {worker}")
        development.left(turn, worker)


def _cause(event: ev.Exited) -> str:
    if event.signal == "KILL" and event.out_of_memory:
        return "was killed by the kernel because memory ran out"
    if event.signal:
        return f"was killed by SIG{event.signal}"
    return f"exited with code {event.code}"


def recycle(turn: Turn, event: ev.RecycleRequested) -> None:
    """Let a worker serve on until it has a successor."""
    worker = turn.workers.get(event.worker)
    if worker and worker.active and not worker.recycle:
        turn.put(worker, recycle=event.reason)
        turn.info(f"wants a successor ({event.reason}): {worker}")


def drain_started(turn: Turn, event: ev.DrainStarted) -> None:
    """Notice that somebody else has sent SIGTERM to a worker."""
    worker = turn.workers.get(event.worker)
    if worker is None or not worker.active:
        return
    turn.info(f"is leaving because somebody else told it to: {worker}")
    if worker.state is WorkerState.STARTING:
        deadline = turn.now + TERMINATE_GRACE
        turn.move(worker, Happening.RETIRE, fate="told by somebody else", deadline=deadline)
    else:
        worker = turn.move(worker, Happening.RETIRE, fate="told by somebody else", dump_due=inf)
        turn.drains(worker, turn.state.policy.stop_timeout)
