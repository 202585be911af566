"""What silence means, beat by beat and moment by moment."""

from math import inf

import pytest
from tests.supervisor.core.fleet import (
    answered,
    booting,
    learn,
    only,
    reloading,
    serving,
    texts,
    worker,
)

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core.policy import (
    ABORT_GRACE,
    DUMP_DELAY,
    KILL_GRACE,
    TERMINATE_GRACE,
    UNKILLABLE_REMINDER,
    Policy,
)
from asgictl.core.state import State, WorkerState, next_deadline
from asgictl.core.step import initial, step

BLOCKED, STARVED = ev.Verdict.BLOCKED, ev.Verdict.STARVED
TICK = ev.Tick()


def suspected() -> State:
    """Return a fleet of two at 15 s whose worker 1 has been silent since 0."""
    state, _ = learn(serving(workers=2), ev.Beat(2), TICK, now=15.0)
    return state


class TestBeats:
    def test_a_beat_moves_the_moment_at_which_its_worker_is_late(self) -> None:
        state, actions = learn(serving(workers=1), ev.Beat(1, 5, 3), now=7.0)

        assert worker(state, 1).deadline == next_deadline(state) == 22.0
        assert worker(state, 1).last_beat == 7.0
        assert (worker(state, 1).connections, worker(state, 1).in_flight) == (5, 3)
        assert actions == []

    def test_a_beat_of_a_worker_that_is_gone_is_ignored(self) -> None:
        state = serving(workers=1)

        assert learn(state, ev.Beat(99), now=7.0) == (state, [])

    def test_a_beat_does_not_extend_a_boot_or_an_ultimatum(self) -> None:
        state = booting(workers=1)
        assert learn(state, ev.Beat(1), now=7.0)[0].workers[1].deadline == 60.0

        state, _ = learn(state, ev.Signal("TERM"), now=8.0)
        assert learn(state, ev.Beat(1), now=8.5)[0].workers[1].deadline == 8.0 + TERMINATE_GRACE


class TestSuspicion:
    def test_half_of_the_time_out_without_a_beat_makes_a_suspect_whose_stacks_are_asked_for(
        self,
    ) -> None:
        state, actions = learn(serving(workers=1), TICK, now=15.0)

        assert worker(state, 1).state is WorkerState.SUSPECT
        assert worker(state, 1).deadline == 30.0
        assert actions[1:] == [act.Probe(1), act.Dump(1)]
        assert "no heartbeat for 15.0 s" in texts(actions, "warning")[0]

    def test_the_stacks_are_collected_a_moment_later_and_once(self) -> None:
        state, actions = learn(suspected(), TICK, now=15.0 + DUMP_DELAY)
        assert [item.worker for item in only(actions, act.CollectDump)] == [1]

        assert only(learn(state, TICK, now=16.0)[1], act.CollectDump) == []

    def test_a_suspect_that_beats_is_trusted_again(self) -> None:
        state, actions = learn(suspected(), ev.Beat(1), now=17.0)

        assert worker(state, 1).state is WorkerState.READY
        assert worker(state, 1).deadline == 32.0
        assert "beats again after 17.0 s" in texts(actions, "info")[0]

    def test_a_suspect_keeps_its_place(self) -> None:
        assert len(suspected().workers) == 2


class TestVerdict:
    def test_the_first_look_is_not_a_verdict(self) -> None:
        state = suspected()

        assert learn(state, ev.Evidence(1, BLOCKED), now=15.0) == (state, [])

    def test_at_the_time_out_proc_is_asked_again(self) -> None:
        assert learn(suspected(), ev.Beat(2), TICK, now=30.0)[1][-1] == act.Probe(1)

    def test_should_the_answer_not_come_it_is_asked_for_once_more(self) -> None:
        state, _ = learn(suspected(), ev.Beat(2), TICK, now=30.0)

        assert learn(state, TICK, now=31.0)[1] == [act.Probe(1)]

    @pytest.mark.parametrize(
        "verdict",
        [BLOCKED, ev.Verdict.BUSY, ev.Verdict.WAITING_FOR_DISK, ev.Verdict.UNKNOWN],
    )
    def test_a_worker_that_could_have_run_is_aborted_and_replaced(
        self, verdict: ev.Verdict
    ) -> None:
        state, actions = learn(suspected(), ev.Evidence(1, verdict), now=30.0)

        assert worker(state, 1).state is WorkerState.ABORTING
        assert only(actions, act.Kill) == [act.Kill(1, "ABRT")]
        assert [item.slot for item in only(actions, act.Spawn)] == [0]
        assert f"no heartbeat for 30.0 s ({verdict})" in texts(actions, "error")[0]

    @pytest.mark.parametrize("verdict", [STARVED, ev.Verdict.STOPPED])
    def test_a_worker_that_the_machine_does_not_let_run_gets_more_time(
        self, verdict: ev.Verdict
    ) -> None:
        state, actions = learn(suspected(), ev.Evidence(1, verdict), now=30.0)

        assert worker(state, 1).state is WorkerState.SUSPECT
        assert worker(state, 1).deadline == 60.0
        assert only(actions, act.Kill) == []
        assert str(verdict) in texts(actions, "warning")[0]

    def test_evidence_about_a_worker_that_is_trusted_again_changes_nothing(self) -> None:
        state, _ = learn(suspected(), ev.Beat(1), now=29.0)

        assert learn(state, ev.Evidence(1, BLOCKED), now=30.0) == (state, [])
        assert learn(state, ev.Evidence(99, BLOCKED), now=30.0) == (state, [])

    def test_at_most_one_is_killed_per_time_out_while_most_are_late(self) -> None:
        state, _ = learn(serving(workers=4), TICK, now=15.0)
        everybody = [ev.Evidence(number, BLOCKED) for number in range(1, 5)]

        state, actions = learn(state, *everybody, now=30.0)
        assert [item.worker for item in only(actions, act.Kill)] == [1]
        assert {worker(state, number).deadline for number in (2, 3, 4)} == {60.0}

        state, actions = learn(state, *everybody[1:], now=60.0)
        assert [item.worker for item in only(actions, act.Kill)] == [2]

    def test_two_of_two_are_most(self) -> None:
        state, _ = learn(serving(workers=2), TICK, now=15.0)

        _, actions = learn(state, ev.Evidence(1, BLOCKED), ev.Evidence(2, BLOCKED), now=30.0)

        assert [item.worker for item in only(actions, act.Kill)] == [1]

    def test_all_that_hang_are_killed_while_most_are_well(self) -> None:
        state = serving(workers=5)
        state, _ = learn(state, *map(ev.Beat, (3, 4, 5)), now=14.0)
        state, _ = learn(state, TICK, *map(ev.Beat, (3, 4, 5)), now=28.0)

        _, actions = learn(state, ev.Evidence(1, BLOCKED), ev.Evidence(2, BLOCKED), now=30.0)

        assert [item.worker for item in only(actions, act.Kill)] == [1, 2]

    def test_a_hang_of_a_new_worker_refuses_the_reload(self) -> None:
        state, actions = reloading(serving(workers=1), now=1.0)
        state, _ = learn(answered(state, actions, now=1.0), ev.BecameReady(2), now=2.0)
        state, _ = learn(state, ev.Beat(1), TICK, now=17.0)
        assert worker(state, 2).state is WorkerState.SUSPECT

        state, actions = learn(state, ev.Evidence(2, BLOCKED), now=32.0)

        assert state.reload is None
        assert "a worker hung" in texts(actions, "error")[-1]


class TestSoaking:
    def soaking(self, min_ready: float = 1.0) -> State:
        """Return a reload whose canary, worker 2, was ready at 10 s."""
        state, actions = reloading(serving(workers=1, min_ready=min_ready), now=9.0)
        return learn(answered(state, actions, now=9.0), ev.BecameReady(2), ev.Beat(1), now=10.0)[0]

    def test_a_new_worker_is_ready_when_it_was_healthy_for_long_enough(self) -> None:
        state, _ = learn(self.soaking(), ev.Beat(2), now=10.5)
        assert worker(state, 2).state is WorkerState.SOAKING
        assert worker(state, 2).deadline == 11.0

        state, _ = learn(state, TICK, now=11.0)
        assert worker(state, 2).state is WorkerState.READY

    def test_without_a_beat_the_trial_goes_on(self) -> None:
        state, _ = learn(self.soaking(), TICK, now=11.0)
        assert worker(state, 2).state is WorkerState.SOAKING
        assert worker(state, 2).deadline == 25.0

        state, _ = learn(state, ev.Beat(2), now=12.0)
        assert next_deadline(state) == 12.0

    def test_a_worker_may_turn_suspect_in_a_long_trial(self) -> None:
        state, _ = learn(self.soaking(min_ready=100.0), ev.Beat(2), now=12.0)
        state, _ = learn(state, ev.Beat(1), TICK, now=27.0)
        assert worker(state, 2).state is WorkerState.SUSPECT

        state, _ = learn(state, ev.Beat(2), now=30.0)
        assert worker(state, 2).state is WorkerState.SOAKING

    def test_a_trial_that_has_not_begun_at_its_end_ends_in_suspicion(self) -> None:
        state, _ = learn(self.soaking(), TICK, now=11.0)

        assert worker(learn(state, ev.Beat(1), TICK, now=25.0)[0], 2).state is WorkerState.SUSPECT


class TestOverdue:
    def test_a_boot_that_does_not_end_is_aborted_with_its_stacks(self) -> None:
        state, _ = learn(
            booting(workers=2), ev.BecameReady(1), ev.StageReached(2, "lifespan"), now=1.0
        )
        state, actions = learn(state, ev.Beat(1), TICK, now=60.0)
        assert only(actions, act.Probe) == [act.Probe(2)]
        assert only(actions, act.Kill) == []

        state, actions = learn(state, ev.Evidence(2, BLOCKED), now=60.0)
        assert only(actions, act.Kill) == [act.Kill(2, "ABRT")]
        assert "not ready after 60 s, still in stage 'lifespan'" in texts(actions, "error")[0]
        assert worker(state, 2).dump_due == 60.0 + DUMP_DELAY
        assert [item.slot for item in only(actions, act.Spawn)] == [1]

    @pytest.mark.parametrize("verdict", [STARVED, ev.Verdict.STOPPED])
    def test_a_boot_that_the_machine_holds_up_gets_more_time(self, verdict: ev.Verdict) -> None:
        state, _ = learn(booting(workers=1), TICK, now=60.0)
        state, actions = learn(state, ev.Evidence(1, verdict), now=60.0)
        assert only(actions, act.Kill) == []
        assert f"not ready after 60 s, but it is {verdict}" in texts(actions, "warning")[0]
        assert next_deadline(state) == 90.0

        state, _ = learn(state, TICK, now=90.0)
        state, actions = learn(state, ev.Evidence(1, BLOCKED), now=90.0)
        assert only(actions, act.Kill) == [act.Kill(1, "ABRT")]

    def test_a_boot_of_which_nothing_is_known_is_not_asked_for(self) -> None:
        state, actions = learn(initial(Policy(workers=1), 1), ev.Started(), TICK, now=0.0)
        _, actions = learn(state, TICK, now=60.0)

        assert only(actions, act.Probe) == []
        assert "not ready after 60 s, still in stage 'fork'" in texts(actions, "error")[0]

    def test_a_drain_that_is_overrun_goes_by_term_abrt_and_kill_each_sent_once(self) -> None:
        state, _ = learn(serving(workers=1, stop_timeout=5.0), ev.Signal("TERM"), now=1.0)
        assert worker(state, 1).deadline == 1.0 + 5.0 + 11.0

        now, sent = 17.0, []
        for grace in (TERMINATE_GRACE, ABORT_GRACE, KILL_GRACE):
            state, actions = learn(state, TICK, now=now)
            sent += only(actions, act.Kill)
            assert learn(state, TICK, now=now)[1] == []
            now += grace

        assert sent == [act.Kill(1, "TERM"), act.Kill(1, "ABRT"), act.Kill(1, "KILL")]

    def test_a_process_that_nothing_ends_is_reported_now_and_then_and_its_place_is_filled(
        self,
    ) -> None:
        state, _ = learn(suspected(), ev.Evidence(1, BLOCKED), now=30.0)
        state, _ = learn(state, *map(ev.Beat, (2, 3)), TICK, now=32.0)
        state, actions = learn(state, TICK, now=37.0)
        assert worker(state, 1).state is WorkerState.UNKILLABLE
        assert "SIGKILL has not ended it" in texts(actions, "error")[0]

        later = 37.0 + UNKILLABLE_REMINDER
        _, actions = learn(state, *map(ev.Beat, (2, 3)), ev.BecameReady(3), TICK, now=later)
        assert "still not ended by SIGKILL" in texts(actions, "error")[0]

    def test_a_worker_that_hangs_while_it_drains_is_not_left_to_sit_the_drain_out(self) -> None:
        state, actions = learn(serving(workers=2), ev.ScaleRequested(1), now=1.0)
        leaving = only(actions, act.Drain)[0].worker
        assert worker(state, leaving).deadline == 30.0

        state, actions = learn(state, ev.Beat(3 - leaving), TICK, now=30.0)
        assert only(actions, act.Probe) == [act.Probe(leaving)]
        _, actions = learn(state, ev.Evidence(leaving, BLOCKED), now=30.0)
        assert only(actions, act.Kill) == [act.Kill(leaving, "ABRT")]
        assert only(actions, act.Spawn) == []

    def test_a_draining_worker_that_beats_has_its_whole_drain(self) -> None:
        state, actions = learn(serving(workers=2), ev.ScaleRequested(1), now=1.0)
        leaving = only(actions, act.Drain)[0].worker

        for now in range(10, 300, 10):
            state, actions = learn(state, *map(ev.Beat, (1, 2)), TICK, now=float(now))
            assert actions == []

        assert worker(state, leaving).deadline == 1.0 + 300.0 + 11.0

    def test_a_starved_drain_does_not_become_longer_by_that(self) -> None:
        state, _ = learn(serving(workers=1, stop_timeout=25.0), ev.Signal("TERM"), now=1.0)
        state, _ = learn(state, TICK, ev.Evidence(1, STARVED), now=30.0)

        assert worker(state, 1).deadline == 1.0 + 25.0 + 11.0


class TestLag:
    def test_time_in_which_the_supervisor_did_not_run_is_held_against_nobody(self) -> None:
        state, actions = learn(serving(workers=2), ev.Lag(100.0), TICK, now=110.0)

        assert state.count(WorkerState.READY) == 2
        assert {item.deadline for item in state.workers.values()} == {115.0}
        assert "held up for 100.0 s" in texts(actions, "warning")[0]

    @pytest.mark.parametrize("lag", [0.5, 40.0])
    def test_every_verdict_moves_by_the_lag(self, lag: float) -> None:
        suspect = suspected()
        late, _ = learn(suspect, ev.Lag(lag), now=20.0)
        assert worker(late, 1).deadline == worker(suspect, 1).deadline + lag
        assert worker(late, 1).dump_due == worker(suspect, 1).dump_due + lag
        assert worker(late, 1).last_beat == min(lag, 20.0)
        assert learn(late, ev.Evidence(1, BLOCKED), now=29.0 + min(lag, 20.0))[1] == []

    def test_drains_trials_templates_checks_and_the_dark_move_too(self) -> None:
        state, _ = learn(serving(workers=1), ev.Signal("HUP"), now=1.0)
        late, _ = learn(state, ev.Lag(7.0), now=5.0)
        assert state.reload
        assert late.reload
        assert late.reload.deadline == state.reload.deadline + 7.0

        preload = Policy(workers=1, preload=True)
        state, _ = learn(state, ev.PreflightPassed(1, preload), now=5.0)
        late, _ = learn(state, ev.Lag(7.0), now=6.0)
        assert late.templates[2].deadline == state.templates[2].deadline + 7.0

        state, _ = learn(serving(workers=1), ev.Signal("TERM"), now=1.0)
        late, _ = learn(state, ev.Lag(7.0), now=5.0)
        assert worker(late, 1).draining_until == worker(state, 1).draining_until + 7.0
        assert worker(late, 1).deadline == worker(state, 1).deadline + 7.0

    def test_the_dark_began_later_but_not_in_the_future(self) -> None:
        state, _ = learn(serving(workers=1), ev.Exited(1, 1), now=10.0)
        assert state.dark_since == 10.0

        assert learn(state, ev.Lag(3.0), now=15.0)[0].dark_since == 13.0
        assert learn(state, ev.Lag(30.0), now=15.0)[0].dark_since == 15.0

    def test_what_is_not_due_at_all_stays_so(self) -> None:
        state, _ = learn(booting(workers=1), ev.Lag(3.0), now=5.0)

        assert worker(state, 1).ready_at == worker(state, 1).last_beat == inf
        assert worker(state, 1).deadline == 63.0


def test_a_tick_at_which_nothing_is_due_changes_nothing() -> None:
    state = serving(workers=3)

    assert step(state, TICK, 14.0) == (state, [])
