"""What people ask for: by signals, and by the control socket."""

from collections.abc import Callable, Mapping

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core import reload, stop
from asgictl.core.policy import DUMP_DELAY
from asgictl.core.state import Phase, WorkerState
from asgictl.core.turn import Turn

ASKED = "somebody has asked for it"
"""The fate of workers that go because an operator wants it."""


def signal(turn: Turn, event: ev.Signal) -> None:
    """Do what a signal stands for."""
    command = SIGNALS.get(event.name)
    if command is None:
        turn.debug(f"ignored SIG{event.name}")
    else:
        command(turn)


def request_reload(turn: Turn, _event: ev.ReloadRequested | None = None) -> None:
    """Remember the wish; ``reload.py`` fulfils it when the fleet is up and the time has come."""
    if turn.state.phase is not Phase.STOPPING:
        turn.set(reload_requested=True)


def abort_reload(turn: Turn, _event: ev.ReloadAborted) -> None:
    """Give up a reload that is requested or under way."""
    turn.set(reload_requested=False)
    if turn.state.reload:
        reload.abort(turn, "somebody has aborted it")


def _scale_by(turn: Turn, change: int) -> None:
    # One TTOU too many must not take the service down, so signals do not pause a fleet.
    if turn.state.desired + change > 0:
        _scale_to(turn, turn.state.desired + change)
    else:
        turn.warn(f"stays at {turn.state.desired} workers: that is the limit for signals")


def scale(turn: Turn, event: ev.ScaleRequested) -> None:
    """Change the size of the fleet; 0 pauses it, and the kernel holds the connections."""
    _scale_to(turn, max(0, event.count))


def _scale_to(turn: Turn, count: int) -> None:
    state = turn.state
    desired = min(count, state.policy.max_workers)
    if state.phase is Phase.STOPPING:
        return
    if desired < count:
        turn.warn(f"{count} workers are too many: the limit is {desired}")
    if desired != state.desired:
        turn.info(f"scaling from {state.desired} to {desired} workers")
        turn.set(desired=desired)


def restart_worker(turn: Turn, event: ev.WorkerRestartRequested) -> None:
    """Replace a worker; it serves on until its successor is ready."""
    worker = turn.workers.get(event.worker)
    if worker is None or not worker.active:
        turn.warn(f"there is no worker with the number {event.worker} to restart")
    elif not worker.recycle:
        turn.put(worker, recycle=ASKED)
        turn.info(f"is to be replaced because {ASKED}: {worker}")


def drain_worker(turn: Turn, event: ev.WorkerDrainRequested) -> None:
    """Let a worker go; its slot is filled at once, but capacity falls until that one is ready."""
    worker = turn.workers.get(event.worker)
    if worker is None or not worker.active:
        turn.warn(f"there is no worker with the number {event.worker} to drain")
    else:
        turn.info(f"is to leave because {ASKED}: {worker}")
        turn.retire(worker, ASKED, turn.state.policy.reload_drain_timeout)


def kill_worker(turn: Turn, event: ev.WorkerKillRequested) -> None:
    """Kill a worker; its slot is filled at once, and nobody is blamed."""
    worker = turn.workers.get(event.worker)
    if worker is None or worker.state in (WorkerState.KILLING, WorkerState.UNKILLABLE):
        turn.warn(f"there is no worker with the number {event.worker} to kill")
    else:
        turn.warn(f"killing because {ASKED}: {worker}")
        turn.kill(turn.put(worker, fate=ASKED))


def show_stacks(turn: Turn, event: ev.StacksRequested) -> None:
    """Ask a worker for its stacks, and log them."""
    worker = turn.workers.get(event.worker)
    if worker is None or worker.dump_due <= turn.now + DUMP_DELAY:
        return
    turn.put(worker, dump_due=turn.now + DUMP_DELAY)
    # The signal that asks for them ends a process which is not prepared for it yet.
    if worker.pid and worker.stage != "fork":
        turn.do(act.Dump(worker.id))


def _upgrade(turn: Turn) -> None:
    if turn.state.phase is Phase.RUNNING and turn.state.reload is None:
        turn.do(act.Upgrade())
    else:
        turn.warn("not upgrading now: wait until the fleet is up and no reload is under way")


def upgrade_refused(turn: Turn, event: ev.UpgradeRefused) -> None:
    """Say so."""
    turn.error(f"upgrade refused, everything is as it was: {event.error}")


SIGNALS: Mapping[str, Callable[[Turn], None]] = {
    "TERM": stop.terminate,
    "INT": stop.interrupt,
    "QUIT": stop.hurry,
    "HUP": request_reload,
    "TTIN": lambda turn: _scale_by(turn, +1),
    "TTOU": lambda turn: _scale_by(turn, -1),
    "USR1": lambda turn: turn.do(act.ReopenLogs()),
    "USR2": _upgrade,
}
