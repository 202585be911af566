"""What people ask for, by signals and by the control socket."""

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
from tests.supervisor.core.simulation import World

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core.policy import DUMP_DELAY, Policy
from asgictl.core.state import Phase, ReloadPhase, WorkerState

HUP, TTIN, TTOU, USR2 = map(ev.Signal, ("HUP", "TTIN", "TTOU", "USR2"))


class TestScale:
    def test_ttin_adds_a_worker_and_ttou_takes_one(self) -> None:
        state, actions = learn(serving(workers=2), TTIN, now=1.0)
        assert [item.slot for item in only(actions, act.Spawn)] == [2]

        state, actions = learn(state, TTOU, TTOU, now=2.0)
        assert state.desired == 1
        assert len(only(actions, act.Drain)) == 1

    def test_ttou_does_not_take_the_last_worker(self) -> None:
        state, actions = learn(serving(workers=1), TTOU, now=1.0)

        assert state.desired == 1
        assert "stays at 1 workers" in texts(actions, "warning")[0]

    def test_a_flood_of_ttin_ends_at_the_limit(self) -> None:
        state, actions = learn(serving(workers=1, max_workers=3), *[TTIN] * 9, now=1.0)

        assert state.desired == 3
        assert "the limit is 3" in texts(actions, "warning")[0]

    def test_a_number_can_be_asked_for(self) -> None:
        state, actions = learn(serving(workers=2), ev.ScaleRequested(5), now=1.0)

        assert state.desired == 5
        assert [item.slot for item in only(actions, act.Spawn)] == [2, 3, 4]
        assert texts(actions, "info")[0] == "scaling from 2 to 5 workers"

    def test_the_number_there_is_already_changes_nothing(self) -> None:
        state = serving(workers=2)

        assert learn(state, ev.ScaleRequested(2), now=1.0) == (state, [])

    def test_zero_pauses_the_service_and_ttin_resumes_it(self) -> None:
        state, actions = learn(serving(workers=2), ev.ScaleRequested(0), now=1.0)
        assert len(only(actions, act.Drain)) == 2
        assert state.dark_since == float("inf")

        state, actions = learn(state, TTOU, now=2.0)
        assert (state.desired, only(actions, act.Spawn)) == (0, [])

        _, actions = learn(state, TTIN, now=3.0)
        assert [item.slot for item in only(actions, act.Spawn)] == [0]

    def test_a_pause_may_last(self) -> None:
        state, _ = learn(serving(workers=1), ev.ScaleRequested(0), ev.Exited(1, 0), now=1.0)

        assert learn(state, ev.Tick(), now=10_000.0) == (state, [])

    @pytest.mark.parametrize("phase", list(ReloadPhase))
    @pytest.mark.parametrize("signal", [TTIN, TTOU])
    def test_the_size_may_change_in_every_phase_of_a_reload(
        self, phase: ReloadPhase, signal: ev.Signal
    ) -> None:
        world = World(Policy(workers=3, preload=True)).start().settle()
        world.signal("HUP")

        def there() -> bool:
            return world.state.reload is not None and world.state.reload.phase is phase

        assert world.run_until(there, within=10.0)
        world.learn(signal)
        world.settle()

        assert world.generations() == {2: 4 if signal is TTIN else 2}

    def test_the_size_may_change_before_anybody_is_ready(self) -> None:
        _, actions = learn(booting(workers=1), TTIN, now=1.0)

        assert [item.slot for item in only(actions, act.Spawn)] == [1]


class TestReload:
    def test_a_request_is_as_good_as_a_signal(self) -> None:
        assert learn(serving(workers=1), ev.ReloadRequested(), now=1.0) == learn(
            serving(workers=1), HUP, now=1.0
        )

    def test_somebody_may_abort_it(self) -> None:
        state, actions = reloading(serving(workers=1), now=1.0)
        state, actions = learn(answered(state, actions, now=1.0), ev.ReloadAborted(), now=2.0)

        assert state.reload is None
        assert state.committed == 1
        assert only(actions, act.Kill) == [act.Kill(2, "TERM")]
        assert only(actions, act.Abandon) == [act.Abandon(2)]

    def test_also_before_it_has_begun(self) -> None:
        state, _ = learn(booting(workers=1), HUP, ev.ReloadAborted(), now=1.0)
        _, actions = learn(state, ev.BecameReady(1), now=2.0)

        assert only(actions, act.StartPreflight) == []

    def test_without_one_there_is_nothing_to_abort(self) -> None:
        state = serving(workers=1)

        assert learn(state, ev.ReloadAborted(), now=1.0) == (state, [])


class TestRestart:
    def test_a_worker_is_replaced_without_a_gap(self) -> None:
        state, actions = learn(serving(workers=2), ev.WorkerRestartRequested(1), now=1.0)
        assert [item.slot for item in only(actions, act.Spawn)] == [0]
        assert only(actions, act.Drain) == []

        state = answered(state, actions, now=1.0)
        _, actions = learn(state, ev.BecameReady(3), now=2.0)
        assert [item.worker for item in only(actions, act.Drain)] == [1]

    def test_asking_twice_is_asking_once(self) -> None:
        state, _ = learn(serving(workers=1), ev.WorkerRestartRequested(1), now=1.0)

        assert learn(state, ev.WorkerRestartRequested(1), now=2.0) == (state, [])

    def test_a_worker_that_is_leaving_or_gone_cannot_be_restarted(self) -> None:
        state, _ = learn(serving(workers=1), ev.Signal("TERM"), now=1.0)

        for number in (1, 99):
            later, actions = learn(state, ev.WorkerRestartRequested(number), now=2.0)
            assert later == state
            assert f"no worker with the number {number}" in texts(actions, "warning")[0]


class TestOneWorker:
    def test_it_may_be_told_to_leave_and_its_place_is_filled_at_once(self) -> None:
        state, actions = learn(serving(workers=2), ev.WorkerDrainRequested(1), now=1.0)

        assert [(item.worker, item.timeout) for item in only(actions, act.Drain)] == [(1, 300.0)]
        assert [item.slot for item in only(actions, act.Spawn)] == [0]
        assert learn(state, ev.Exited(1, 0), now=2.0)[0].failures == {}

    def test_it_may_be_killed_and_nobody_is_blamed(self) -> None:
        state, actions = learn(serving(workers=2), ev.WorkerKillRequested(1), now=1.0)

        assert only(actions, act.Kill) == [act.Kill(1, "KILL")]
        assert [item.slot for item in only(actions, act.Spawn)] == [0]
        assert learn(state, ev.Exited(1, None, "KILL"), now=2.0)[0].failures == {}

    def test_killing_a_canary_does_not_refuse_the_reload(self) -> None:
        state, actions = reloading(serving(workers=1), now=1.0)
        state, _ = learn(answered(state, actions, now=1.0), ev.WorkerKillRequested(2), now=2.0)
        state, _ = learn(state, ev.Exited(2, None, "KILL"), now=2.1)

        assert state.reload
        assert sorted(item.generation for item in state.workers.values()) == [1, 2]

    def test_what_is_leaving_cannot_be_told_to_and_what_is_killed_not_be_killed(self) -> None:
        state, _ = learn(serving(workers=1), ev.WorkerKillRequested(1), now=1.0)

        for event in (ev.WorkerDrainRequested, ev.WorkerKillRequested):
            for number in (1, 99):
                later, actions = learn(state, event(number), now=2.0)
                assert later == state
                assert f"no worker with the number {number}" in texts(actions, "warning")[0]

    def test_its_stacks_are_asked_for_and_collected_a_moment_later(self) -> None:
        state, _ = learn(booting(workers=1), ev.StageReached(1, "import"), now=1.0)
        state, actions = learn(state, ev.StacksRequested(1), now=2.0)
        assert actions == [act.Dump(1)]
        assert learn(state, ev.StacksRequested(1), now=2.0) == (state, [])

        _, actions = learn(state, ev.Tick(), now=2.0 + DUMP_DELAY)
        assert [item.worker for item in only(actions, act.CollectDump)] == [1]

    def test_but_not_of_a_worker_that_the_signal_would_end(self) -> None:
        state, actions = learn(booting(workers=1), ev.StacksRequested(1), now=2.0)

        assert actions == []
        assert worker(state, 1).dump_due == 2.0 + DUMP_DELAY
        assert learn(state, ev.StacksRequested(99), now=2.0) == (state, [])


class TestUpgrade:
    def test_it_is_asked_for_when_nothing_else_goes_on(self) -> None:
        assert learn(serving(workers=1), USR2, now=1.0)[1] == [act.Upgrade()]

    def test_not_while_the_fleet_boots_reloads_or_leaves(self) -> None:
        for state in (
            booting(workers=1),
            reloading(serving(workers=1), now=1.0)[0],
            learn(serving(workers=1), ev.Signal("TERM"), now=1.0)[0],
        ):
            _, actions = learn(state, USR2, now=2.0)
            assert only(actions, act.Upgrade) == []
            assert "not upgrading now" in texts(actions, "warning")[0]

    def test_a_refusal_is_told(self) -> None:
        _, actions = learn(serving(workers=1), ev.UpgradeRefused("no such program"), now=1.0)

        assert "everything is as it was: no such program" in texts(actions, "error")[0]


def test_usr1_opens_the_logs_again() -> None:
    assert learn(serving(workers=1), ev.Signal("USR1"), now=1.0)[1] == [act.ReopenLogs()]


def test_orders_before_the_first_worker_is_ready_are_obeyed() -> None:
    state, _ = learn(booting(workers=1), ev.ScaleRequested(0), now=1.0)

    assert worker(state, 1).state is WorkerState.TERMINATING
    assert state.phase is Phase.BOOTING
