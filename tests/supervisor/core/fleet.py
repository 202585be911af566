"""Plain states for tests of single rules: a fleet is grown by the events that make one."""

from typing import Any, TypeVar

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core.policy import Policy
from asgictl.core.state import State, WorkerHandle
from asgictl.core.step import initial, step

A = TypeVar("A", bound=act.Action)


def learn(state: State, *events: ev.Event, now: float) -> tuple[State, list[act.Action]]:
    """Give some events, all at one moment; return what comes of them together."""
    actions: list[act.Action] = []
    for event in events:
        state, more = step(state, event, now)
        actions += more
    return state, actions


def booting(now: float = 0.0, **policy: Any) -> State:
    """Return a fleet whose workers are forked and boot; their numbers are 1, 2, ..."""
    state, actions = learn(initial(Policy(**policy), 1), ev.Started(), now=now)
    return answered(state, actions, now=now)


def serving(now: float = 0.0, **policy: Any) -> State:
    """Return a fleet of ready workers; their numbers are 1, 2, ..."""
    state = booting(now, **policy)
    return learn(state, *(ev.BecameReady(number) for number in state.workers), now=now)[0]


def answered(state: State, actions: list[act.Action], *, now: float) -> State:
    """Answer every Spawn by a process whose id is 1000 and the worker's number."""
    spawned = [ev.Spawned(item.worker, 1000 + item.worker) for item in only(actions, act.Spawn)]
    return learn(state, *spawned, now=now)[0]


def reloading(state: State, *, now: float, **policy: Any) -> tuple[State, list[act.Action]]:
    """Return a fleet whose reload has passed its preflight."""
    changed = Policy(**policy) if policy else state.policy
    state, _ = learn(state, ev.Signal("HUP"), now=now)
    return learn(state, ev.PreflightPassed(state.epoch, changed), now=now)


def only(actions: list[act.Action], kind: type[A]) -> list[A]:
    """Return the actions of one kind."""
    return [action for action in actions if isinstance(action, kind)]


def texts(actions: list[act.Action], level: str) -> list[str]:
    """Return the log lines of a level."""
    return [item.text for item in only(actions, act.Log) if item.level == level]


def worker(state: State, number: int) -> WorkerHandle:
    """Return one worker."""
    return state.workers[number]
