"""The state as JSON and back."""

import json
from dataclasses import fields
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.supervisor.core.fleet import learn, serving
from tests.supervisor.core.simulation import Behaviour, World

from asgictl.core import events as ev
from asgictl.core.policy import Policy
from asgictl.core.snapshot import VERSION, UnreadableSnapshot, restore, snapshot
from asgictl.core.state import State, WorkerHandle, WorkerState, next_deadline
from asgictl.core.step import step


def busy() -> World:
    """Return a world in which much goes on."""
    world = World(Policy(workers=3, preload=True)).start().settle()
    world.behaviour = lambda spawn: Behaviour(boot_exit=spawn.slot == 1)
    world.children[2].exit(signal="SEGV")
    world.advance(1.2)
    world.learn(ev.RecycleRequested(1, "old"))
    world.signal("HUP")
    world.advance(0.5)
    return world


def written(state: State, now: float) -> dict[str, Any]:
    """Return a snapshot as another program would read it."""
    found: dict[str, Any] = json.loads(json.dumps(snapshot(state, now), allow_nan=False))
    return found


def test_a_state_is_the_same_after_it_was_written_and_read() -> None:
    world = busy()

    assert restore(written(world.state, world.now), world.now) == world.state


@given(st.lists(st.sampled_from(["HUP", "TTIN", "TTOU", "tick", "crash"]), max_size=12))
def test_it_has_the_same_future(script: list[str]) -> None:
    world = busy()
    one, other = world.state, restore(written(world.state, world.now), world.now)
    now = world.now
    for item in script:
        now = max(now, min(now + 5.0, next_deadline(one)))
        event: ev.Event = ev.Signal(item)
        if item == "tick":
            event = ev.Tick()
        elif item == "crash":
            event = ev.Exited(next(iter(one.workers), 0), 1)
        one, actions = step(one, event, now)
        other, same_actions = step(other, event, now)
        assert (other, same_actions) == (one, actions)


def test_time_that_passed_in_between_is_held_against_nobody() -> None:
    state, _ = learn(serving(workers=1), ev.Beat(1), now=7.0)
    later = restore(snapshot(state, 10.0), 1010.0)

    assert later.workers[1].deadline == 1022.0
    assert later.workers[1].last_beat == 1007.0
    assert later.dark_since == inf
    assert later.policy == state.policy


def test_a_reader_ignores_what_it_does_not_know() -> None:
    state = serving(workers=1)
    found = written(state, 10.0)
    found["state"]["mood"] = "good"
    found["state"]["workers"]["1"]["shoe_size"] = 44
    found["author"] = "somebody"

    assert restore(found, 10.0) == state


def test_what_an_older_program_did_not_write_takes_its_default() -> None:
    state = serving(workers=1)
    found = written(state, 10.0)
    del found["state"]["last_failure_at"], found["state"]["workers"]["1"]["failure"]

    assert restore(found, 10.0) == state


@pytest.mark.parametrize("version", [None, 0, VERSION + 1])
def test_another_version_is_refused_with_a_way_out(version: int | None) -> None:
    found = written(serving(workers=1), 10.0) | {"version": version}

    with pytest.raises(UnreadableSnapshot, match="stop and start the service"):
        restore(found, 10.0)


@pytest.mark.parametrize(
    "broken",
    [
        {"version": VERSION},
        {"version": VERSION, "now": 1.0, "state": {}},
        {"version": VERSION, "now": 1.0, "state": None},
        {"version": VERSION, "now": "soon", "state": {}},
    ],
)
def test_nonsense_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(UnreadableSnapshot, match="cannot be read"):
        restore(broken, 10.0)


def test_a_state_of_a_worker_that_is_not_known_is_refused() -> None:
    found = written(serving(workers=1), 10.0)
    found["state"]["workers"]["1"]["state"] = "meditating"

    with pytest.raises(UnreadableSnapshot, match="meditating"):
        restore(found, 10.0)


def test_every_moment_moves_and_no_duration_does() -> None:
    """A field that is a point in time but not declared as one would stay behind."""
    handle = WorkerHandle(
        id=1, slot=0, generation=1, born=1.0, deadline=1.0, state=WorkerState.DRAINING,
        since=1.0, ready_at=1.0, last_beat=1.0, dump_due=1.0, draining_until=1.0,
    )  # fmt: skip
    state = State(policy=Policy(workers=1), desired=1, seed=1, workers={1: handle})
    moved = restore(snapshot(state, 0.0), 10.0).workers[1]

    floats = [
        item.name for item in fields(WorkerHandle) if isinstance(getattr(handle, item.name), float)
    ]
    assert {name: getattr(moved, name) for name in floats} == dict.fromkeys(floats, 11.0)
