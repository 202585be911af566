"""Compares the fleet that is wanted with the fleet that is there, and asks for the difference.

Nothing here remembers what was asked for before: whatever happened in between, the same
rules lead on. Running it twice asks for nothing new.

The rules, per slot. A worker is *good* when it is of the wanted generation and has not
asked to be replaced.

* A good worker is ready: the other occupants of the slot retire.
* A good worker is booting: wait for it.
* The slot is empty: fill it from the committed generation, after its back-off.
* It is occupied, but by no good worker: start a good one beside the old, as many at a time
  as the surge allows. So capacity never falls for the sake of a replacement.
"""

from dataclasses import replace
from math import inf

from asgictl.core import actions as act
from asgictl.core.policy import RELOAD_SPACING
from asgictl.core.state import (
    BOOTING,
    Phase,
    Reload,
    ReloadPhase,
    ReloadResult,
    StopLevel,
    TemplatePhase,
    WorkerHandle,
    WorkerState,
)
from asgictl.core.turn import Turn


def reconcile(turn: Turn) -> None:
    """Ask for whatever brings the fleet closer to what is wanted."""
    if turn.state.phase is not Phase.STOPPING and _dark_for_too_long(turn):
        turn.begin_stop(3)
    if turn.state.phase is Phase.STOPPING:
        _stop(turn)
        return
    _start_requested_reload(turn)
    _scale_down(turn)
    _replace(turn)
    _finish_reload(turn)
    _limit_drains(turn)
    _announce(turn)


def _stop(turn: Turn) -> None:
    state = turn.state
    if turn.now >= state.stop_accepting_at or state.stop in (StopLevel.FAST, StopLevel.KILL):
        turn.set(stop_accepting_at=inf)
        for worker in list(state.workers.values()):
            if worker.active:
                turn.retire(worker, "stop", state.policy.stop_timeout)
            elif worker.state is WorkerState.DRAINING:
                turn.shorten_drain(worker, "stop", state.policy.stop_timeout)
    alive = [
        worker
        for worker in turn.state.workers.values()
        if worker.state is not WorkerState.UNKILLABLE
    ]
    if not alive and not turn.state.exited:
        for worker in turn.state.workers.values():
            turn.error(f"left behind, the kernel does not end it: {worker}")
        turn.set(exited=True)
        turn.do(act.Exit(turn.state.exit_code))


def _dark_for_too_long(turn: Turn) -> bool:
    """Return whether nothing has served for so long that a service manager should act."""
    state = turn.state
    serving = state.ready() + state.count(WorkerState.SUSPECT)
    if serving or not state.desired or state.phase is Phase.BOOTING:
        if state.dark_since != inf:
            turn.set(dark_since=inf)
        return False
    if state.dark_since == inf:
        turn.set(dark_since=turn.now)
    patience = state.policy.give_up_after
    if not patience or turn.now < turn.state.dark_since + patience:
        return False
    turn.error(f"no worker has been ready for {patience:g} s, giving up")
    return True


def _start_requested_reload(turn: Turn) -> None:
    state = turn.state
    if not state.reload_requested or state.phase is not Phase.RUNNING:
        return
    if turn.now < state.last_reload_start + RELOAD_SPACING:
        return
    if state.reload:
        _supersede(turn, state.reload)
    epoch, generation = turn.state.epoch + 1, turn.state.next_generation
    turn.set(
        epoch=epoch,
        next_generation=generation + 1,
        reload_requested=False,
        last_reload_start=turn.now,
        reload=Reload(
            epoch=epoch,
            generation=generation,
            phase=ReloadPhase.PREFLIGHT,
            started=turn.now,
            deadline=turn.now + state.policy.boot_timeout,
        ),
    )
    turn.info(f"reloading: generation {generation} is being checked")
    turn.do(act.Notify("reloading", f"reloading: checking generation {generation}"))
    turn.do(act.StartPreflight(epoch, generation))


def _supersede(turn: Turn, old: Reload) -> None:
    turn.info(f"the reload to generation {old.generation} is superseded by a newer one")
    if old.phase is ReloadPhase.PREFLIGHT:
        turn.do(act.CancelPreflight(old.epoch))
    _forget_generation(turn, old.generation)
    for worker in list(turn.state.workers.values()):
        if worker.generation == old.generation and worker.state is WorkerState.STARTING:
            turn.retire(worker, "superseded", 0)


def abort_reload(turn: Turn, reason: str, detail: str = "") -> None:
    """Return to the committed generation: the new one has shown that it does not work."""
    reload = turn.state.reload
    assert reload is not None, "there is no reload to abort"
    turn.error(f"reload refused, generation {turn.state.committed} serves on: {reason}", detail)
    if reload.phase is ReloadPhase.PREFLIGHT:
        turn.do(act.CancelPreflight(reload.epoch))
    turn.set(
        reload=None,
        last_reload=ReloadResult(
            epoch=reload.epoch, committed=False, reason=reason, finished=turn.now
        ),
    )
    _forget_generation(turn, reload.generation)
    for worker in list(turn.state.workers.values()):
        if worker.generation == reload.generation and worker.state in BOOTING:
            turn.retire(worker, "reload refused", 0)
    turn.do(act.Notify("ready", f"reload refused: {reason}"))


def _forget_generation(turn: Turn, generation: int) -> None:
    state = turn.state
    turn.set(
        templates={key: item for key, item in state.templates.items() if key != generation},
        failures={key: item for key, item in state.failures.items() if key != generation},
    )
    turn.do(act.Abandon(generation))


def _scale_down(turn: Turn) -> None:
    state = turn.state
    for worker in list(state.workers.values()):
        if worker.slot >= state.desired and worker.active:
            turn.retire(worker, "scale-down", state.policy.reload_drain_timeout)
    passed = {slot: until for slot, until in state.backoff.items() if turn.now < until}
    if len(passed) != len(state.backoff):
        turn.set(backoff=passed)


def _good(worker: WorkerHandle, wanted: int) -> bool:
    return worker.generation == wanted and not worker.recycle


def _replace(turn: Turn) -> None:
    state = turn.state
    wanted = state.wanted
    reload = state.reload
    # While a new reload is being checked, the fleet of a superseded one is left as it is.
    holding = reload is not None and reload.phase in (ReloadPhase.PREFLIGHT, ReloadPhase.TEMPLATE)
    slots = [(slot, state.in_slot(slot)) for slot in range(state.desired)]
    replacing = sum(
        len(occupants) > 1
        and any(_good(worker, wanted) for worker in occupants)
        # A predecessor that is about to retire does not hold up the next replacement.
        and not any(
            _good(worker, wanted) and worker.state is WorkerState.READY for worker in occupants
        )
        for _, occupants in slots
    )
    canary = reload is not None and reload.phase is ReloadPhase.CANARY
    for slot, occupants in slots:
        good = [worker for worker in occupants if _good(worker, wanted)]
        ready = [worker for worker in good if worker.state is WorkerState.READY]
        if ready:
            _retire_others(turn, occupants, ready[0])
            continue
        if good or (holding and occupants):
            continue
        if not occupants and slot not in turn.state.backoff:
            if _can_spawn(turn, state.committed):
                turn.spawn(slot, state.committed)
            continue
        # A replacement beside an old worker, or in a slot that the old code cannot fill.
        recycling = any(worker.generation == wanted for worker in occupants)
        budget = 1 if canary or recycling else state.policy.surge_for(state.desired)
        waits = slot in turn.state.backoff and wanted == state.committed
        if replacing < budget and not waits and not holding and _can_spawn(turn, wanted):
            turn.spawn(slot, wanted)
            replacing += 1


def _retire_others(turn: Turn, occupants: list[WorkerHandle], keep: WorkerHandle) -> None:
    for worker in occupants:
        if worker.id == keep.id:
            continue
        why = f"recycle: {worker.recycle}" if worker.recycle else "reload"
        turn.retire(worker, why, turn.state.policy.reload_drain_timeout)


def _can_spawn(turn: Turn, generation: int) -> bool:
    if not turn.policy_of(generation).preload:
        return True
    template = turn.state.templates.get(generation)
    return template is not None and template.phase is TemplatePhase.READY


def _finish_reload(turn: Turn) -> None:
    state = turn.state
    reload = state.reload
    if reload is None or reload.phase not in (ReloadPhase.CANARY, ReloadPhase.ROLLING):
        return
    wanted = reload.generation
    renewed = 0
    for slot in range(state.desired):
        occupants = state.in_slot(slot)
        good = [worker for worker in occupants if worker.generation == wanted]
        renewed += any(worker.state is WorkerState.READY for worker in good) and len(good) == len(
            occupants
        )
    if renewed == state.desired:
        _commit(turn, reload)
    elif renewed and reload.phase is ReloadPhase.CANARY:
        turn.info(f"generation {wanted} works in its first worker, replacing the others")
        turn.do(act.Notify("status", f"reloading: generation {wanted} is rolling out"))
        turn.set(reload=replace(reload, phase=ReloadPhase.ROLLING))
        _replace(turn)


def _commit(turn: Turn, reload: Reload) -> None:
    old, policy = turn.state.policy, reload.policy
    assert policy is not None, "a reload rolls with the policy that its preflight read"
    took = turn.now - reload.started
    # A fleet scaled by hand keeps its size, unless the settings themselves were changed.
    desired = policy.workers if policy.workers != old.workers else turn.state.desired
    templates = turn.state.templates
    turn.set(
        committed=reload.generation,
        policy=policy,
        desired=desired,
        reload=None,
        failures={},
        templates={key: item for key, item in templates.items() if key == reload.generation},
        last_reload=ReloadResult(epoch=reload.epoch, committed=True, reason="", finished=turn.now),
    )
    turn.do(act.Commit(reload.generation))
    turn.info(f"reloaded: generation {reload.generation} serves alone after {took:.1f} s")
    turn.do(act.Notify("ready", f"generation {reload.generation} serves"))
    _scale_down(turn)
    _replace(turn)


def _limit_drains(turn: Turn) -> None:
    """Hurry the oldest drains when reloads come faster than drains end."""
    state = turn.state
    draining = [worker for worker in state.workers.values() if worker.state is WorkerState.DRAINING]
    excess = len(draining) - state.policy.drain_cap(state.desired)
    for worker in sorted(draining, key=lambda worker: worker.since)[: max(0, excess)]:
        turn.shorten_drain(worker, worker.fate, 0.0)


def _announce(turn: Turn) -> None:
    state = turn.state
    if state.announced or state.phase is not Phase.RUNNING or state.ready() < state.desired:
        return
    turn.set(announced=True)
    turn.info(
        f"all {state.desired} workers are ready" if state.desired != 1 else "the worker is ready"
    )
    turn.do(act.Notify("ready", f"{state.desired} workers serve"))
