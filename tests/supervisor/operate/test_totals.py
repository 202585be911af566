"""Sums over workers that come and go."""

import json
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgictl.core import events as ev
from asgictl.core.policy import Policy
from asgictl.core.state import ReloadResult, State, WorkerHandle, WorkerState, changed
from asgictl.operate.totals import MAX_SAMPLES, SlotHistory, Totals, cause_of
from asgictl_worker import board, timers
from asgictl_worker.contract import Beat
from asgictl_worker.counters import TICK, Counters, Rows

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


@pytest.fixture
def memory() -> Iterator[int]:
    fd = board.create()
    yield fd
    os.close(fd)


@pytest.fixture
def totals(memory: int) -> Totals:
    return Totals(started=0.0, rows=Rows(memory))


class Worker:
    """One that counts, in the memory of the totals."""

    def __init__(self, memory: int, number: int = 1) -> None:
        self.number = number
        self.counters = Counters()
        self.counters.share(memory, number)

    def answer(self, count: int, seconds: float = 0.0004) -> None:
        for _ in range(count):
            self.counters.request("GET", 200, seconds)

    def tick(self, at: float, monkeypatch: pytest.MonkeyPatch, lateness: float = 0.0) -> None:
        monkeypatch.setattr("asgictl_worker.counters.monotonic", lambda: at)
        self.counters.tick(lateness, 0)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 50), st.booleans()), max_size=60))
def test_the_total_is_what_all_workers_have_done_whoever_dies(
    steps: list[tuple[int, int, bool]],
) -> None:
    fd = board.create()
    totals, expected = Totals(started=0.0, rows=Rows(fd)), 0
    living = {number: Worker(fd, number) for number in (1, 2, 3)}
    os.close(fd)
    for number, more, dies in steps:
        worker = living.get(number)
        if worker is None:
            continue
        expected += more
        worker.answer(more)
        assert totals.sums(living).requests == expected, "without a beat, or a tick"
        if dies:
            totals.learned(ev.Exited(number, None, "KILL"), STATE, STATE, 1.0)
            del living[number]
            assert totals.sums(living).requests == expected
    assert totals.sums([]).requests <= expected


def test_rates_and_quantiles_are_those_of_the_last_seconds(
    totals: Totals, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(memory)
    worker.tick(100.0, monkeypatch)
    worker.answer(1000, 9.0)
    totals.beat(1, Beat(), 100.0)
    assert totals.now(1, 100.0).rate == 0.0, "one look makes no rate"
    worker.answer(100)
    totals.beat(1, Beat(), 101.0)
    worker.answer(300, 0.02)
    worker.tick(102.0, monkeypatch)
    found = totals.now(1, 102.0)
    assert (found.requests, found.rate) == (1400, 200.0)
    assert sum(found.steps) == 400
    assert totals.now(1, 105.5).rate == pytest.approx(300 / 4.5), "those before are forgotten"
    assert totals.now(1, 120.0).rate == 0.0
    assert totals.now(2, 102.0).rate == 0.0, "there is no such worker"


def test_a_blocked_worker_is_seen_without_its_help(
    totals: Totals, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgictl_worker.counters.thread_time", lambda: 5.0)
    worker = Worker(memory)
    worker.tick(100.0, monkeypatch)
    totals.beat(1, Beat(), 100.0)
    worker.tick(101.0, monkeypatch, lateness=0.002)
    found = totals.now(1, 101.1)
    assert (found.lag, found.busy) == (0.002, pytest.approx(0.002))
    found = totals.now(1, 103.2)
    assert (found.lag, found.busy) == (pytest.approx(2.0), pytest.approx(2.002 / 3.0))
    found = totals.now(1, 200.0)
    assert (found.lag, found.busy) == (pytest.approx(98.8), 1.0)


def test_the_supervisor_knows_how_often_workers_tick() -> None:
    assert timers.INTERVAL == TICK


def test_samples_are_bounded(totals: Totals, memory: int) -> None:
    Worker(memory)
    for tenth in range(200):
        totals.beat(1, Beat(), tenth / 10)
    assert len(totals.vitals[1].samples) <= MAX_SAMPLES
    assert totals.vitals[1].samples[-1].at > 19.0


def test_dropped_beats_are_added_up(totals: Totals) -> None:
    for worker, dropped in ((1, 2), (1, 5), (2, 1)):
        totals.beat(worker, Beat(beats_dropped=dropped), 1.0)
    assert totals.beats_dropped == 6


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
            {"state": WorkerState.DRAINING, "fate": "recycle: max-memory: 300 MiB of memory used"},
            ev.Exited(1, 0),
            "max-memory",
        ),
        (
            # One of an older asgictl does not say which limit it is.
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
    new = handle(state=WorkerState.TERMINATING, fate="boot failed", generation=2)
    totals.learned(ev.Exited(1, 3), changed(STATE, workers={1: new}), STATE, 8.0)
    assert totals.exits == {"reload": 1, "SIGSEGV": 1, "SIGKILL": 1, "boot failed": 1}
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


def test_they_survive_an_upgrade(memory: int) -> None:
    totals = Totals(started=3.0, exits={"SIGKILL": 1}, upgrades=2, rows=Rows(memory))
    totals.slots[0] = SlotHistory(restarts=1, cause="SIGKILL", at=5.0)
    gone, living = Worker(memory, 1), Worker(memory, 2)
    gone.answer(3, 0.1)
    totals.learned(ev.Exited(1, None, "KILL"), STATE, STATE, 6.0)
    living.answer(4)
    totals.beat(2, Beat(beats_dropped=7), 6.0)
    before = totals.sums([2])
    left = json.loads(json.dumps(totals.hand_over(), allow_nan=False))
    heir = Totals.take_over(left, 9.0)
    heir.rows = Rows(memory)
    assert heir.sums([2]) == before
    assert heir.gone.requests == 3
    heir.beat(2, Beat(beats_dropped=8), 9.0)
    assert heir.beats_dropped == 8
    assert (heir.started, heir.exits, heir.upgrades) == (3.0, {"SIGKILL": 1}, 2)
    assert heir.slots == totals.slots


def test_a_program_of_another_age_is_understood() -> None:
    assert Totals.take_over({}, 9.0) == Totals(started=9.0)
    left = {"started": 1.0, "later": 5, "slots": {"1": {"at": None, "later": 1, "restarts": 2}}}
    slots = {1: SlotHistory(restarts=2)}
    assert Totals.take_over(left, 9.0) == Totals(started=1.0, slots=slots)
