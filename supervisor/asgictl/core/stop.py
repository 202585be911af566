"""How the supervisor leaves: workers first, within the stop time-outs, then itself.

Nothing is spawned once a stop has begun. A stop that is asked for again hurries, and kills at
the third word. Only TERM within a second is the same word twice: timeout(1) and others send it
to a process and to its group.
"""

from math import inf

from asgictl.core import actions as act
from asgictl.core.policy import SAME_WORD
from asgictl.core.state import Phase, ReloadPhase, StopLevel, WorkerState
from asgictl.core.turn import Turn


def begin(turn: Turn, code: int, delay: float = 0.0) -> None:
    """Leave as soon as the workers have; the first reason to stop decides the code."""
    state = turn.state
    if state.phase is Phase.STOPPING:
        return
    if state.reload and state.reload.phase is ReloadPhase.PREFLIGHT:
        turn.do(act.CancelPreflight(state.reload.epoch))
    turn.set(
        phase=Phase.STOPPING,
        exit_code=code,
        stop_accepting_at=turn.now + delay,
        reload=None,
        reload_requested=False,
        backoff={},
        templates={},
    )
    turn.announce("stopping", "stopping")


def terminate(turn: Turn) -> None:
    """Finish what is in progress; at the second word end the stop delay, or else cut it off."""
    state = turn.state
    if turn.now < state.terminated_at + SAME_WORD:
        return
    turn.set(terminated_at=turn.now)
    if state.stop is StopLevel.NONE:
        _finish(turn)
    elif state.stop_accepting_at != inf:
        turn.set(stop_accepting_at=turn.now)
    else:
        hurry(turn)


def _finish(turn: Turn) -> None:
    turn.info("stopping: requests in progress are finished first")
    begin(turn, 0, turn.state.policy.stop_delay)
    turn.set(stop=StopLevel.GRACEFUL)


def interrupt(turn: Turn) -> None:
    """Finish what is in progress; at the second word cut it off."""
    if turn.state.stop is StopLevel.NONE:
        _finish(turn)
    else:
        hurry(turn)


def hurry(turn: Turn) -> None:
    """Cut off what is in progress; at the second word kill."""
    if turn.state.stop in (StopLevel.FAST, StopLevel.KILL):
        turn.warn("killing what is left")
        turn.set(stop=StopLevel.KILL)
        for worker in list(turn.workers.values()):
            turn.kill(worker)
        return
    turn.info("stopping at once: requests in progress are cut off")
    begin(turn, 0)
    turn.set(stop=StopLevel.FAST, stop_accepting_at=turn.now)


def go_on(turn: Turn) -> None:
    """Drain the workers when it is time, and leave when the last of them has."""
    state = turn.state
    if turn.now >= state.stop_accepting_at:
        turn.set(stop_accepting_at=inf)
        timeout = 0.0 if state.stop is StopLevel.FAST else state.policy.stop_timeout
        for worker in list(turn.workers.values()):
            if worker.active:
                turn.retire(worker, "stop", timeout)
            elif worker.state is WorkerState.DRAINING:
                turn.shorten_drain(worker, "stop", timeout)
    if state.exited or len(turn.workers) > state.count(WorkerState.UNKILLABLE):
        return
    for worker in turn.workers.values():
        turn.error(f"left behind, the kernel does not end it: {worker}")
    turn.set(exited=True)
    turn.do(act.Exit(state.exit_code))
