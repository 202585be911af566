"""Development: workers follow the files, and broken code is shown and not given up.

A save is no reload. Nobody waits for old code, so there is no trial and no overlap: all workers
leave at once, and each makes room for one that imports the files as they are now. A browser that
asks meanwhile waits in the kernel's queue. Should the new code not boot, its worker serves the
traceback, and the next save replaces that worker like any other.
"""

from asgictl.core import events as ev
from asgictl.core import stop
from asgictl.core.state import Phase, WorkerHandle, WorkerState
from asgictl.core.turn import Turn

PATIENCE = 1.5
"""Seconds until a slot is filled though its old worker has not left: it blocks, or shuts down."""

CHANGED = "files have changed"
"""The fate of workers whose code is of yesterday."""


def files_changed(turn: Turn, event: ev.FilesChanged) -> None:
    """Replace all workers, those that are still booting too."""
    state = turn.state
    if state.phase is Phase.STOPPING:
        return
    turn.info(f"{event.what} changed, {'restarting' if event.code else 'reading the settings'}")
    if event.settings:
        turn.set(reload_requested=True)
    if not event.code:
        return
    held_back = {}
    for worker in list(turn.workers.values()):
        if worker.active:
            held_back[worker.slot] = turn.now + PATIENCE
            turn.retire(worker, CHANGED, state.policy.reload_drain_timeout)
        elif _is_leaving(worker):
            held_back[worker.slot] = turn.now + PATIENCE
    turn.set(backoff=held_back, failures={}, last_failure="")


def left(turn: Turn, worker: WorkerHandle) -> None:
    """Fill the slot of a worker that has left, if that was what it waited for."""
    others = any(_is_leaving(each) and each.slot == worker.slot for each in turn.workers.values())
    if worker.fate == CHANGED and not others:
        backoff = turn.state.backoff
        turn.set(backoff={slot: until for slot, until in backoff.items() if slot != worker.slot})


def shown(turn: Turn, worker: WorkerHandle, event: ev.BootFailed) -> None:
    """Tell of code that does not boot, once for all workers; browsers see it, too."""
    state = turn.state
    what = f"boot failed in stage {event.stage!r}: {event.error}"
    if state.phase is Phase.BOOTING and event.stage == "import" and not event.traceback:
        # It is not the code that is wrong but what was asked for.
        turn.error(what)
        stop.begin(turn, 3)
    elif state.last_failure != what + event.traceback:
        turn.set(last_failure=what + event.traceback)
        turn.error(f"{what}; save a file to try again: {worker}", event.traceback)


def _is_leaving(worker: WorkerHandle) -> bool:
    return worker.fate == CHANGED and worker.state in (
        WorkerState.DRAINING,
        WorkerState.TERMINATING,
    )
