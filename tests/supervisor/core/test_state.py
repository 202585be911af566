"""The life of a worker as a table, and the moments at which something is due."""

import itertools
from dataclasses import replace
from math import inf

import pytest
from tests.supervisor.core.fleet import learn, serving

from asgictl.core import events as ev
from asgictl.core.policy import Policy
from asgictl.core.state import (
    ACTIVE,
    TRANSITIONS,
    Happening,
    Reload,
    ReloadPhase,
    State,
    Template,
    WorkerHandle,
    WorkerState,
    changed,
    next_deadline,
)
from asgictl.core.turn import Turn

W, H = WorkerState, Happening

LIFE = {
    #                 ready      soaked   late       beat       failed         retire
    W.STARTING:    (W.SOAKING, None,    None,      None,      W.TERMINATING, W.TERMINATING),
    W.SOAKING:     (None,      W.READY, W.SUSPECT, None,      None,          W.DRAINING),
    W.READY:       (None,      None,    W.SUSPECT, None,      None,          W.DRAINING),
    W.SUSPECT:     (None,      None,    None,      W.SOAKING, None,          W.DRAINING),
    W.DRAINING:    (None,      None,    None,      None,      None,          None),
    W.TERMINATING: (None,      None,    None,      None,      None,          None),
    W.ABORTING:    (None,      None,    None,      None,      None,          None),
    W.KILLING:     (None,      None,    None,      None,      None,          None),
    W.UNKILLABLE:  (None,      None,    None,      None,      None,          None),
    W.GONE:        (None,      None,    None,      None,      None,          None),
}  # fmt: skip
DEATH = {
    #                hung        overrun        kill       exit
    W.STARTING:    (W.ABORTING, None,          W.KILLING, W.GONE),
    W.SOAKING:     (None,       None,          W.KILLING, W.GONE),
    W.READY:       (None,       None,          W.KILLING, W.GONE),
    W.SUSPECT:     (W.ABORTING, None,          W.KILLING, W.GONE),
    W.DRAINING:    (W.ABORTING, W.TERMINATING, W.KILLING, W.GONE),
    W.TERMINATING: (None,       W.ABORTING,    W.KILLING, W.GONE),
    W.ABORTING:    (None,       W.KILLING,     W.KILLING, W.GONE),
    W.KILLING:     (None,       W.UNKILLABLE,  None,      W.GONE),
    W.UNKILLABLE:  (None,       None,          None,      W.GONE),
    W.GONE:        (None,       None,          None,      None),
}  # fmt: skip


@pytest.mark.parametrize(("state", "happening"), list(itertools.product(W, H)))
def test_every_happening_in_every_state(state: WorkerState, happening: Happening) -> None:
    expected = dict(zip(H, LIFE[state] + DEATH[state], strict=True))[happening]
    handle = WorkerHandle(
        id=1, slot=0, generation=1, born=0.0, deadline=9.0, state=state, since=1.0
    )
    turn = Turn(State(policy=Policy(workers=1), desired=1, seed=1, workers={1: handle}), now=5.0)

    moved = turn.move(handle, happening, fate="reload")

    if expected is None:
        assert moved is handle
        assert turn.workers == {1: handle}
    else:
        assert moved == replace(handle, state=expected, since=5.0, fate="reload")
        assert turn.workers == {1: moved}


def test_every_state_but_the_last_leads_to_death_and_is_reached_from_birth() -> None:
    reached, todo = {W.STARTING}, [W.STARTING]
    while todo:
        for target in TRANSITIONS[todo.pop()].values():
            if target not in reached:
                reached.add(target)
                todo.append(target)

    assert reached == set(W)
    assert all(
        arrows.get(H.EXIT) is W.GONE for state, arrows in TRANSITIONS.items() if state != W.GONE
    )


def test_no_way_leads_back_from_leaving_to_serving() -> None:
    for state in set(W) - ACTIVE:
        assert not set(TRANSITIONS[state].values()) & ACTIVE


def test_a_changed_copy_is_what_dataclasses_replace_makes() -> None:
    state = serving(workers=3)

    assert changed(state, desired=7) == replace(state, desired=7)
    assert changed(state.workers[1], pid=7) == replace(state.workers[1], pid=7)
    with pytest.raises(AttributeError):
        changed(state, desried=7)


def test_slots_hold_their_active_workers_oldest_first() -> None:
    state = serving(workers=2)
    state, _ = learn(state, ev.RecycleRequested(1, "old"), ev.Exited(2, 1), now=1.0)

    assert [[item.id for item in occupants] for occupants in state.slots()] == [[1, 3], [4]]


def test_a_generation_lives_by_the_policy_that_its_own_preflight_read() -> None:
    old, new = Policy(workers=1), Policy(workers=2)
    state = State(policy=old, desired=1, seed=1)
    reload = Reload(epoch=1, generation=2, phase=ReloadPhase.PREFLIGHT, started=0.0, deadline=60.0)

    assert state.policy_of(1) is old
    assert changed(state, reload=reload).policy_of(2) is old
    assert changed(state, reload=changed(reload, policy=new)).policy_of(2) is new
    assert changed(state, reload=changed(reload, policy=new)).policy_of(1) is old


class TestNextDeadline:
    idle = State(policy=Policy(workers=1), desired=1, seed=1)

    def test_nothing_is_due_of_an_empty_fleet(self) -> None:
        assert next_deadline(self.idle) == inf

    def test_the_earliest_of_a_workers_moments_counts(self) -> None:
        handle = WorkerHandle(id=1, slot=0, generation=1, born=0.0, deadline=9.0)

        assert next_deadline(changed(self.idle, workers={1: handle})) == 9.0
        assert next_deadline(changed(self.idle, workers={1: changed(handle, dump_due=4.0)})) == 4.0

    def test_back_off_templates_and_preflights_are_due(self) -> None:
        template = Template(generation=1, deadline=6.0)
        reload = Reload(
            epoch=1, generation=2, phase=ReloadPhase.PREFLIGHT, started=0.0, deadline=7.0
        )

        assert next_deadline(changed(self.idle, backoff={0: 5.0})) == 5.0
        assert next_deadline(changed(self.idle, templates={1: template})) == 6.0
        assert next_deadline(changed(self.idle, reload=reload)) == 7.0

    def test_a_requested_reload_is_due_when_the_last_one_is_long_enough_ago(self) -> None:
        state, _ = learn(serving(workers=1, now=8.0), ev.Signal("HUP"), ev.Signal("HUP"), now=10.0)

        assert next_deadline(state) == 11.0

    def test_giving_up_is_due_unless_it_is_off_or_nobody_is_wanted(self) -> None:
        dark = changed(self.idle, dark_since=10.0)

        assert next_deadline(dark) == 310.0
        assert next_deadline(changed(dark, desired=0)) == inf
        assert next_deadline(changed(dark, policy=Policy(workers=1, give_up_after=0.0))) == inf

    def test_while_stopping_only_the_workers_and_the_delay_count(self) -> None:
        state, _ = learn(serving(workers=1, stop_delay=5.0), ev.Signal("TERM"), now=1.0)

        assert next_deadline(state) == 6.0
        assert next_deadline(changed(state, backoff={0: 2.0}, dark_since=0.0)) == 6.0
