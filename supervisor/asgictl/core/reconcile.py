"""Compares the fleet that is wanted with the fleet that is there, and asks for the difference.

Nothing here remembers what was asked for before: whatever happened in between, the same
rules lead on. Running it twice asks for nothing new.

The rules, per slot. A worker is *fresh* when it is of the wanted generation; it is *lasting*
when it has not asked to be replaced, either.

* A fresh worker is ready: the others retire, but not a lasting one for one that is not.
* Several others are ready: one of them will do.
* A fresh worker is booting, or a lasting one is there: no other is needed now.
* The slot is empty: fill it from the committed generation, after its back-off.
* Else start a fresh worker beside the old ones, as many at a time as the surge allows. So
  capacity never falls for the sake of a replacement.
"""

from math import inf

from asgictl.core import actions as act
from asgictl.core import reload, stop
from asgictl.core.policy import PROMISE_MARGIN
from asgictl.core.state import (
    BOOTING,
    Phase,
    ReloadPhase,
    TemplatePhase,
    WorkerHandle,
    WorkerState,
    change_ends,
)
from asgictl.core.turn import Turn


def reconcile(turn: Turn) -> None:
    """Ask for whatever brings the fleet closer to what is wanted."""
    if turn.state.phase is not Phase.STOPPING:
        reload.start_requested(turn)
        _fill_slots(turn)
        if reload.progress(turn):
            _fill_slots(turn)
        _scale_down(turn)
        _announce(turn)
        _give_up_in_the_dark(turn)
    if turn.state.phase is Phase.STOPPING:
        stop.go_on(turn)
    _ask_for_time(turn)


def _give_up_in_the_dark(turn: Turn) -> None:
    """Leave when nothing has served for so long that a service manager should act."""
    state = turn.state
    serving = state.ready() or state.count(WorkerState.SUSPECT)
    if serving or not state.desired or state.phase is Phase.BOOTING:
        if state.dark_since != inf:
            turn.set(dark_since=inf)
        return
    if state.dark_since == inf:
        turn.set(dark_since=turn.now)
    patience = state.policy.give_up_after
    if patience and turn.now >= turn.state.dark_since + patience:
        turn.error(f"no worker has been ready for {patience:g} s, giving up")
        stop.begin(turn, 3)


def _fill_slots(turn: Turn) -> None:
    state = turn.state
    wanted, committed = state.wanted, state.committed
    phase = state.reload and state.reload.phase
    # While a new reload is being checked, the fleet of a superseded one is left as it is.
    holding = phase in (ReloadPhase.PREFLIGHT, ReloadPhase.TEMPLATE)
    rolling = wanted != committed
    slots = [
        (slot, occupants, _lasting(occupants, wanted, rolling))
        for slot, occupants in enumerate(state.slots())
        if not _is_as_wanted(occupants, wanted)
    ]
    # A predecessor that is about to retire does not hold up the next replacement.
    replacing = sum(
        (rolling or len(occupants) > 1)
        and bool(lasting)
        and all(worker.state is not WorkerState.READY for worker in lasting)
        for _, occupants, lasting in slots
    )
    waiting = {slot: until for slot, until in state.backoff.items() if turn.now < until}
    if len(waiting) < len(state.backoff):
        turn.set(backoff=waiting)
    without_room = 0
    for slot, occupants, lasting in slots:
        _retire_replaced(turn, occupants, lasting, wanted)
        if lasting:
            continue
        if not occupants and slot not in waiting:
            without_room += not _spawn(turn, slot, committed)
        if holding or (not rolling and (not occupants or slot in waiting)):
            continue
        # Beside old workers, or in a slot that the old code cannot fill.
        recycling = any(worker.generation == wanted for worker in occupants)
        careful = recycling or phase is ReloadPhase.CANARY
        if replacing < (1 if careful else state.policy.surge_for(state.desired)):
            replacing += 1
            without_room += not _spawn(turn, slot, wanted)
    _make_room(turn, without_room)


def _is_as_wanted(occupants: list[WorkerHandle], wanted: int) -> bool:
    """Return whether a slot needs nothing, as most of them do most of the time."""
    if len(occupants) != 1:
        return False
    worker = occupants[0]
    return worker.state is WorkerState.READY and worker.generation == wanted and not worker.recycle


def _lasting(occupants: list[WorkerHandle], wanted: int, rolling: bool) -> list[WorkerHandle]:
    """Return the fresh workers that make another one unnecessary for now."""
    return [
        worker
        for worker in occupants
        if worker.generation == wanted
        # Who wants a successor during a roll has to wait: old workers are replaced first.
        and (rolling or not worker.recycle or worker.state in BOOTING)
    ]


def _retire_replaced(
    turn: Turn, occupants: list[WorkerHandle], lasting: list[WorkerHandle], wanted: int
) -> None:
    ready = [worker for worker in occupants if worker.state is WorkerState.READY]
    if not ready or len(occupants) == 1:
        return
    keep = max(ready, key=lambda item: (item.generation == wanted, not item.recycle, item.id))
    # Without a fresh one, several may be left of reloads that were superseded; one will do.
    for worker in occupants if keep.generation == wanted else ready:
        to_come = keep.recycle and worker in lasting and worker not in ready
        if worker.id != keep.id and not to_come:
            why = f"recycle: {worker.recycle}" if worker.recycle else "reload"
            turn.retire(worker, why, turn.state.policy.reload_drain_timeout)


def _spawn(turn: Turn, slot: int, generation: int) -> bool:
    """Start a worker if that is possible; return False if there are too many processes."""
    state = turn.state
    if state.policy_of(generation).preload:
        template = state.templates.get(generation)
        if template is None or template.phase is not TemplatePhase.READY:
            return True
    # A process in the kernel's hands is not counted, but not every worker can be one.
    lost = min(state.count(WorkerState.UNKILLABLE), state.desired)
    if len(turn.workers) - lost >= state.policy.process_limit(state.desired):
        return False
    turn.spawn(slot, generation)
    return True


def _make_room(turn: Turn, wanted: int) -> None:
    """End the oldest drains early, so that there are as many leaving soon as room is wanted."""
    drains = []
    for worker in turn.workers.values():
        if worker.state is WorkerState.DRAINING and worker.draining_until > turn.now:
            drains.append(worker)
        elif not worker.active and worker.state is not WorkerState.UNKILLABLE:
            wanted -= 1
    drains.sort(key=lambda worker: worker.since)
    for worker in drains[: max(0, wanted)]:
        turn.shorten_drain(worker, worker.fate, 0.0)


def _scale_down(turn: Turn) -> None:
    """Retire the workers of slots that are no more; those that serve, when enough others do."""
    state = turn.state
    surplus = [
        worker
        for worker in state.workers.values()
        if worker.slot >= state.desired and worker.active
    ]
    spare = state.ready() - state.desired
    for worker in sorted(surplus, key=lambda worker: (worker.generation, worker.connections)):
        ready = worker.state is WorkerState.READY
        if (ready or worker.state is WorkerState.SUSPECT) and spare < ready:
            continue
        spare -= ready
        turn.retire(worker, "scale-down", state.policy.reload_drain_timeout)


def _announce(turn: Turn) -> None:
    state = turn.state
    if state.announced or state.reload:
        return
    ready = state.ready()
    if ready < state.desired:
        # Who fails again and again does not keep the others from being a service.
        failing = sum(slot < state.desired for slot in state.backoff)
        if not ready or ready + failing < state.desired:
            return
        text = f"{ready} of {state.desired} workers are ready, the others are tried again"
        turn.warn(text)
    else:
        count = "the worker is" if state.desired == 1 else f"all {state.desired} workers are"
        # Somebody may pause the service before it was ever ready.
        text = f"{count} ready" if state.desired else "no workers are wanted for now"
        turn.info(text)
    turn.set(announced=True)
    turn.announce("ready", text)


def _ask_for_time(turn: Turn) -> None:
    """Tell the service manager how long to wait, whenever that is longer than it knows."""
    until = change_ends(turn.state)
    if until > turn.state.promised:
        turn.set(promised=until)
        turn.do(act.AskForTime(until - turn.now + PROMISE_MARGIN))
