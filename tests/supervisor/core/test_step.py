"""The door: what goes in is not changed, and what comes often costs little."""

import sys
from dataclasses import fields
from typing import Any, get_args

import pytest
from tests.supervisor.core.fleet import learn, serving
from tests.supervisor.core.ledger import Ledger

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core.policy import Policy
from asgictl.core.state import State, next_deadline
from asgictl.core.step import _HANDLERS, initial, step


def calls(function: Any, *arguments: Any) -> int:
    """Return how many Python functions a call runs."""
    count = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return count


def test_every_event_has_a_handler() -> None:
    assert set(_HANDLERS) == set(get_args(ev.Event))


def test_every_event_and_action_is_immutable_and_light() -> None:
    for kind in get_args(ev.Event) + get_args(act.Action):
        assert kind.__dataclass_params__.frozen, kind
        assert "__slots__" in vars(kind), kind


def test_the_same_events_lead_to_the_same_state() -> None:
    def life() -> tuple[State, list[act.Action]]:
        return learn(
            serving(workers=3), ev.Exited(1, 1), ev.Exited(2, 1), ev.Signal("HUP"), now=3.0
        )

    assert life() == life()


def test_the_state_that_goes_in_is_not_changed() -> None:
    state = serving(workers=3)
    before = {item.name: getattr(state, item.name) for item in fields(state)}
    workers = dict(state.workers)
    step(state, ev.Exited(1, 1), 5.0)
    step(state, ev.Beat(1), 5.0)
    step(state, ev.Signal("TERM"), 5.0)

    assert {item.name: getattr(state, item.name) for item in fields(state)} == before
    assert state.workers == workers


def test_events_before_the_start_are_survived() -> None:
    state = initial(Policy(workers=1), 1)

    assert learn(state, ev.Signal("TERM"), now=0.0)[1][-1] == act.Exit(0)


def test_a_beat_costs_the_same_few_calls_in_every_fleet() -> None:
    small, big = serving(workers=1), serving(workers=64)
    beat = ev.Beat(1, 3, 1)

    assert calls(step, small, beat, 5.0) == calls(step, big, beat, 5.0) <= 7


def test_nothing_costs_calls_in_the_square_of_the_fleet() -> None:
    small, big = serving(workers=16), serving(workers=64)
    for event in (ev.Tick(), ev.Exited(1, 1), ev.RecycleRequested(1, "old"), ev.Lag(1.0)):
        assert calls(step, big, event, 5.0) <= 4.5 * calls(step, small, event, 5.0), event
    assert calls(next_deadline, big) <= 5


def test_the_ledger_sees_what_is_not_allowed() -> None:
    """The tests of whole lives rest on it, so it is tried itself."""
    before = serving(workers=1)
    after, actions = step(before, ev.Signal("TERM"), 5.0)

    with pytest.raises(AssertionError, match="worker 1 has exited"):
        Ledger().check(before, ev.Signal("TERM"), 5.0, after, actions)
