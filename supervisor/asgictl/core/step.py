"""The one door of the core: an event and the time go in, a new state and actions come out."""

from collections.abc import Callable
from typing import Any

from asgictl.core import actions as act
from asgictl.core import commands, development, health, lives, reload
from asgictl.core import events as ev
from asgictl.core.policy import Policy
from asgictl.core.reconcile import reconcile
from asgictl.core.state import State, WorkerState
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
        # hot: nearly all events are these, and change nothing that is decided by but a deadline.
        worker = state.workers.get(event.worker)
        if worker is None:
            return state, []
        if worker.state is not WorkerState.SUSPECT:
            return health.with_beat(state, worker, event, now), []
    turn = Turn(state, now)
    _HANDLERS[type(event)](turn, event)
    reconcile(turn)
    return turn.state, turn.actions


_HANDLERS: dict[type, Callable[[Turn, Any], None]] = {
    ev.Started: lives.started,
    ev.Signal: commands.signal,
    ev.Tick: health.tick,
    ev.Lag: health.lag,
    ev.Spawned: lives.spawned,
    ev.SpawnFailed: lives.spawn_failed,
    ev.Exited: lives.exited,
    ev.StageReached: lives.stage_reached,
    ev.BecameReady: lives.became_ready,
    ev.BootFailed: lives.said_boot_failed,
    ev.Beat: health.beat_of_suspect,
    ev.RecycleRequested: lives.recycle,
    ev.DrainStarted: lives.drain_started,
    ev.Evidence: health.evidence,
    ev.PreflightPassed: reload.preflight_passed,
    ev.PreflightFailed: reload.preflight_failed,
    ev.TemplateReady: reload.template_ready,
    ev.TemplateFailed: reload.template_failed,
    ev.UpgradeRefused: commands.upgrade_refused,
    ev.ReloadRequested: commands.request_reload,
    ev.FilesChanged: development.files_changed,
    ev.ReloadAborted: commands.abort_reload,
    ev.ScaleRequested: commands.scale,
    ev.WorkerRestartRequested: commands.restart_worker,
    ev.WorkerDrainRequested: commands.drain_worker,
    ev.WorkerKillRequested: commands.kill_worker,
    ev.StacksRequested: commands.show_stacks,
}
