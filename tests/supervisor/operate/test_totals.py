"""Sums over workers that come and go."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgictl.core import events as ev
from asgictl.core.policy import Policy
from asgictl.core.state import ReloadResult, State, WorkerHandle, WorkerState, changed
from asgictl.operate.totals import SlotHistory, Totals, Vitals, cause_of
from asgictl_worker.contract import Beat

STATE = State(policy=Policy(workers=2), desired=2, seed=1)


def handle(**facts: object) -> WorkerHandle:
    return WorkerHandle(
        **{  # type: ignore[arg-type]
            "id": 1,
            "slot": 0,
            "generation": 1,
            "born": 0.0,
            "deadline": 1.0,
            "state": WorkerState.READY,
            **facts,
        }
    )


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 50), st.booleans()), max_size=60))
def test_the_total_is_what_all_workers_have_said_whoever_dies(
    steps: list[tuple[int, int, bool]],
) -> None:
    totals, now, expected = Totals(started=0.0), 0.0, 0
    done: dict[int, int] = {}
    for worker, more, dies in steps:
        now += 1.0
        done[worker] = done.get(worker, 0) + more
        expected += more
        totals.beat(worker, Beat(requests_total=done[worker], errors_total=done[worker]), now)
        if dies:
            # A number is never used again; here it stands for the next incarnation.
            totals.learned(ev.Exited(worker, 0), STATE, STATE, now)
            del done[worker]
    assert totals.requests == totals.errors == expected


def test_the_rate_is_that_between_the_last_two_beats_and_is_not_believed_for_long() -> None:
    totals = Totals(started=0.0)
    totals.beat(1, Beat(requests_total=100), 10.0)
    assert totals.rate(1, 10.0) == 0.0, "one beat makes no rate"
    totals.beat(1, Beat(requests_total=150, loop_lag_us=2500), 10.5)
    assert totals.rate(1, 11.0) == 100.0
    assert totals.vitals[1].loop_lag == 0.0025
    assert totals.rate(1, 14.0) == 0.0
    assert totals.rate(2, 10.0) == 0.0


@pytest.mark.parametrize(
    ("facts", "exited", "cause"),
    [
        ({}, ev.Exited(1, None, "KILL"), "SIGKILL"),
        ({}, ev.Exited(1, None, "KILL", out_of_memory=True), "out of memory"),
        ({}, ev.Exited(1, 3), "exit code 3"),
        ({}, ev.Exited(1, 0), "exit code 0"),
        ({"state": WorkerState.STARTING}, ev.Exited(1, 1), "boot failed"),
        ({"state": WorkerState.ABORTING, "fate": "hang"}, ev.Exited(1, None, "ABRT"), "hang"),
        (
            {"state": WorkerState.ABORTING, "fate": "boot time-out"},
            ev.Exited(1, 1),
            "boot time-out",
        ),
        ({"state": WorkerState.TERMINATING, "fate": "boot failed"}, ev.Exited(1, 3), "boot failed"),
        ({"state": WorkerState.DRAINING, "fate": "reload"}, ev.Exited(1, 0), "reload"),
        ({"state": WorkerState.DRAINING, "fate": "stop"}, ev.Exited(1, 0), "stop"),
        ({"state": WorkerState.DRAINING, "fate": "scale-down"}, ev.Exited(1, 0), "scale-down"),
        (
            {"state": WorkerState.DRAINING, "fate": "recycle: 100 requests served"},
            ev.Exited(1, 0),
            "recycle",
        ),
        (
            {"state": WorkerState.DRAINING, "fate": "recycle: somebody has asked for it"},
            ev.Exited(1, 0),
            "asked for",
        ),
        (
            {"state": WorkerState.KILLING, "fate": "somebody has asked for it"},
            ev.Exited(1, None, "KILL"),
            "asked for",
        ),
        (
            {"state": WorkerState.DRAINING, "fate": "told by somebody else"},
            ev.Exited(1, 0),
            "asked for",
        ),
        (
            {"state": WorkerState.TERMINATING, "fate": "a worker hung: worker=1 pid=5"},
            ev.Exited(1, None, "TERM"),
            "reload refused",
        ),
    ],
)
def test_ends_are_counted_by_a_few_causes(
    facts: dict[str, object], exited: ev.Exited, cause: str
) -> None:
    assert cause_of(handle(**facts), exited) == cause


def test_only_ends_that_nobody_wanted_are_restarts_of_their_slot() -> None:
    totals = Totals(started=0.0)
    wanted = changed(STATE, workers={1: handle(state=WorkerState.DRAINING, fate="reload")})
    crashed = changed(STATE, workers={1: handle(slot=3)})
    totals.learned(ev.Exited(1, 0), wanted, STATE, 5.0)
    totals.learned(ev.Exited(1, None, "SEGV"), crashed, STATE, 6.0)
    totals.learned(ev.Exited(1, None, "KILL"), crashed, STATE, 7.0)
    assert totals.exits == {"reload": 1, "SIGSEGV": 1, "SIGKILL": 1}
    assert totals.slots == {3: SlotHistory(restarts=2, cause="SIGKILL", at=7.0)}


def test_reloads_are_counted_once_by_how_they_ended() -> None:
    totals = Totals(started=0.0)
    good, bad = (
        changed(STATE, last_reload=ReloadResult(epoch=1, committed=ok, reason="", finished=1.0))
        for ok in (True, False)
    )
    totals.learned(ev.Tick(), STATE, good, 1.0)
    totals.learned(ev.Tick(), good, good, 2.0)
    totals.learned(ev.Tick(), good, bad, 3.0)
    assert (totals.reloads_committed, totals.reloads_refused) == (1, 1)


def test_they_survive_an_upgrade() -> None:
    totals = Totals(started=3.0, requests=7, exits={"SIGKILL": 1}, upgrades=2)
    totals.slots[0] = SlotHistory(restarts=1, cause="SIGKILL", at=5.0)
    totals.vitals[1] = Vitals(at=6.0, requests=7, rate=3.5)
    totals.vitals[2] = Vitals()
    left = json.loads(json.dumps(totals.hand_over(), allow_nan=False))
    assert Totals.take_over(left, 9.0) == totals


def test_a_program_of_another_age_is_understood() -> None:
    assert Totals.take_over({}, 9.0) == Totals(started=9.0)
    left = {"started": 1.0, "later": 5, "vitals": {"1": {"at": None, "later": 1, "requests": 2}}}
    assert Totals.take_over(left, 9.0) == Totals(started=1.0, vitals={1: Vitals(requests=2)})
