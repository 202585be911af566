"""The difference between the fleet that is wanted and the one that is there."""

from math import inf

from tests.supervisor.core.fleet import answered, booting, learn, only, reloading, serving, texts
from tests.supervisor.core.simulation import Behaviour, World

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core.policy import (
    ABORT_GRACE,
    KILL_GRACE,
    PROMISE_MARGIN,
    TERMINATE_GRACE,
    Policy,
)
from asgictl.core.state import State, WorkerState
from asgictl.core.step import initial

TICK = ev.Tick()


class TestRecycle:
    def test_all_workers_may_ask_at_once_but_are_replaced_one_at_a_time(self) -> None:
        world = World(Policy(workers=8)).start().settle()
        most, least = [], []
        world.observers.append(lambda world: most.append(sum(world.generations().values())))
        world.observers.append(lambda world: least.append(world.state.ready()))
        for number in range(1, 9):
            world.learn(ev.RecycleRequested(number, "1000 requests"))
        world.settle()

        assert (min(least), max(most)) == (8, 9)
        assert set(world.state.workers) >= set(range(9, 17))

    def test_the_next_one_does_not_wait_for_the_drain_of_the_last(self) -> None:
        world = (
            World(Policy(workers=4), behaviour=lambda _: Behaviour(drain=200.0)).start().settle()
        )
        for number in range(1, 5):
            world.learn(ev.RecycleRequested(number, "1000 requests"))
        world.settle(within=10.0)

        assert world.state.count(WorkerState.DRAINING) == 4

    def test_a_successor_that_does_not_boot_is_tried_again_after_a_while(self) -> None:
        state, actions = learn(serving(workers=1), ev.RecycleRequested(1, "old"), now=1.0)
        state = answered(state, actions, now=1.0)
        state, actions = learn(state, ev.BootFailed(2, "import", "x"), now=2.0)
        assert [item.slot for item in only(actions, act.Spawn)] == [0]
        state = answered(state, actions, now=2.0)
        state, actions = learn(state, ev.BootFailed(3, "import", "x"), now=3.0)
        assert only(actions, act.Spawn) == []
        assert state.ready() == 1

        _, actions = learn(state, TICK, now=state.backoff[0])
        assert [item.slot for item in only(actions, act.Spawn)] == [0]

    def test_successors_that_want_successors_do_not_pile_up(self) -> None:
        state = serving(workers=1)
        for number in range(1, 9):
            state, actions = learn(state, ev.RecycleRequested(number, "busy"), now=float(number))
            state = answered(state, actions, now=float(number))
            if number > 1:
                state, actions = learn(state, ev.BecameReady(number), now=float(number))
                state = answered(state, actions, now=float(number))

        assert len([item for item in state.workers.values() if item.active]) <= 2

    def test_nobody_is_recycled_while_a_reload_is_checked(self) -> None:
        state, _ = learn(serving(workers=1), ev.Signal("HUP"), now=1.0)
        _, actions = learn(state, ev.RecycleRequested(1, "old"), now=1.5)

        assert only(actions, act.Spawn) == []


class TestScaleDown:
    def retired(self, actions: list[act.Action]) -> list[int]:
        return [item.worker for item in only(actions, act.Drain)]

    def test_the_last_slots_go(self) -> None:
        _, actions = learn(serving(workers=4), ev.ScaleRequested(2), now=1.0)

        assert sorted(self.retired(actions)) == [3, 4]
        assert [item.reason for item in only(actions, act.Drain)] == ["scale-down"] * 2

    def test_a_worker_serves_on_while_the_one_that_is_to_stay_cannot(self) -> None:
        state, _ = learn(serving(workers=2), ev.Exited(1, 1), now=1.0)
        state, actions = learn(state, ev.Signal("TTOU"), now=1.5)
        assert self.retired(actions) == []

        state, actions = learn(state, ev.Spawned(3, 7), ev.BecameReady(3), now=2.0)
        assert self.retired(actions) == [2]

    def test_also_when_it_is_suspect_itself(self) -> None:
        state, _ = learn(serving(workers=2), ev.Exited(1, 1), ev.Signal("TTOU"), now=1.0)
        state, actions = learn(state, TICK, now=15.0)
        assert state.workers[2].state is WorkerState.SUSPECT
        assert self.retired(actions) == []

        _, actions = learn(state, ev.Spawned(3, 7), ev.BecameReady(3), now=16.0)
        assert self.retired(actions) == [2]

    def test_a_booting_one_goes_at_once(self) -> None:
        state, _ = learn(serving(workers=1), ev.Signal("TTIN"), ev.Spawned(2, 7), now=1.0)
        _, actions = learn(state, ev.Signal("TTOU"), now=1.5)

        assert only(actions, act.Kill) == [act.Kill(2, "TERM")]

    def test_those_with_the_fewest_connections_go_first_when_not_all_can(self) -> None:
        state, _ = learn(
            serving(workers=4), ev.Beat(3, 50), ev.Beat(4, 5), ev.Exited(1, 1), now=1.0
        )
        _, actions = learn(state, ev.ScaleRequested(2), now=1.5)

        assert self.retired(actions) == [4]

    def test_a_slot_that_is_wanted_again_keeps_its_worker(self) -> None:
        state, _ = learn(serving(workers=2), ev.Exited(1, 1), ev.Signal("TTOU"), now=1.0)
        state, actions = learn(state, ev.Signal("TTIN"), now=2.0)

        assert state.workers[2].state is WorkerState.READY
        assert only(actions, act.Spawn) == []


class TestRoom:
    """Drains of many reloads must not pile processes up without end."""

    def reload_often(self, workers: int, times: int) -> World:
        world = World(
            Policy(workers=workers, min_ready=0.0), behaviour=lambda _: Behaviour(drain=290.0)
        )
        world.start().settle()
        for _ in range(times):
            world.signal("HUP")
            world.advance(2.0)
            world.settle(within=30.0)
        return world

    def test_a_few_reloads_leave_all_drains_alone(self) -> None:
        world = self.reload_often(workers=2, times=2)

        assert world.state.count(WorkerState.DRAINING) == 4
        assert {item.timeout for item in world.log if isinstance(item, act.Drain)} == {300.0}

    def test_then_the_oldest_drains_are_ended_early_and_the_reload_goes_on(self) -> None:
        world = self.reload_often(workers=2, times=6)

        assert world.generations() == {7: 2}
        assert len(world.state.workers) <= Policy(workers=2).process_limit(2)
        hurried = [
            item.worker for item in world.log if isinstance(item, act.Drain) if not item.timeout
        ]
        assert hurried
        assert hurried == sorted(hurried)

    def test_no_more_are_ended_than_room_is_needed(self) -> None:
        state = serving(workers=1, min_ready=0.0)
        for second in range(10, 15):
            now = float(second)
            state, actions = learn(state, ev.WorkerRestartRequested(max(state.workers)), now=now)
            state = answered(state, actions, now=now)
            state, _ = learn(state, ev.BecameReady(max(state.workers)), now=now)
        assert state.count(WorkerState.DRAINING) == 5
        assert len(state.workers) == Policy(workers=1).process_limit(1)

        state, actions = learn(state, ev.WorkerRestartRequested(6), now=20.0)
        assert only(actions, act.Drain) == [act.Drain(1, 0.0, state.workers[1].fate)]
        assert only(actions, act.Spawn) == []
        assert learn(state, TICK, now=20.0)[1] == learn(state, TICK, now=20.1)[1] == []

        _, actions = learn(state, ev.Exited(1, 0), now=21.0)
        assert len(only(actions, act.Spawn)) == 1

    def test_processes_that_cannot_be_killed_take_no_room_up_to_the_size_of_the_fleet(self) -> None:
        stuck = Behaviour(
            hangs_after=0.1, ignores=frozenset({"ABRT"}), dies_after_kill=inf, drain=290.0
        )
        world = World(
            Policy(workers=1, timeout=2.0, give_up_after=0.0), behaviour=lambda _: stuck
        ).start()
        world.advance(1000.0)

        assert world.state.count(WorkerState.UNKILLABLE) == len(world.state.workers)
        assert len(world.state.workers) == Policy(workers=1).process_limit(1) + 1


class TestAskingForTime:
    """What the service manager is told, so that it does not take a slow start for a dead one."""

    def test_a_start_may_take_as_long_as_a_boot(self) -> None:
        _, actions = learn(initial(Policy(workers=2), 1), ev.Started(), now=10.0)

        assert only(actions, act.AskForTime) == [act.AskForTime(60.0 + PROMISE_MARGIN)]

    def test_and_longer_when_a_boot_is_tried_again(self) -> None:
        state, _ = learn(booting(workers=2), ev.BecameReady(1), now=1.0)
        _, actions = learn(state, ev.Exited(2, 1), now=31.0)

        assert only(actions, act.AskForTime) == [act.AskForTime(60.0 + PROMISE_MARGIN)]

    def test_the_time_that_a_template_takes_comes_before(self) -> None:
        state, actions = learn(initial(Policy(workers=1, preload=True), 1), ev.Started(), now=0.0)
        assert only(actions, act.AskForTime) == [act.AskForTime(60.0 + PROMISE_MARGIN)]

        _, actions = learn(state, ev.TemplateReady(1), now=50.0)
        assert only(actions, act.AskForTime) == [act.AskForTime(60.0 + PROMISE_MARGIN)]

    def test_nothing_is_asked_while_the_service_runs(self) -> None:
        state, actions = learn(serving(workers=2), ev.Exited(1, 1), ev.Signal("TTIN"), now=5.0)
        state = answered(state, actions, now=5.0)
        state, more = learn(state, ev.BootFailed(3, "import", "broken"), TICK, now=50.0)

        assert only(actions + more, act.AskForTime) == []

    def test_a_reload_asks_at_each_step_that_may_take_long(self) -> None:
        state, actions = learn(serving(workers=2), ev.Signal("HUP"), now=100.0)
        assert only(actions, act.AskForTime) == [act.AskForTime(60.0 + PROMISE_MARGIN)]

        state, actions = learn(state, ev.PreflightPassed(1, state.policy), now=120.0)
        assert only(actions, act.AskForTime) == [act.AskForTime(60.0 + PROMISE_MARGIN)]

    def test_soaking_is_a_part_of_it(self) -> None:
        state, actions = reloading(serving(workers=1), now=100.0, workers=1, min_ready=200.0)
        state = answered(state, actions, now=100.0)
        _, actions = learn(state, ev.BecameReady(2), now=110.0)

        assert only(actions, act.AskForTime) == [act.AskForTime(200.0 + PROMISE_MARGIN)]

    def test_a_stop_asks_for_all_that_it_may_take(self) -> None:
        policy = Policy(workers=1, stop_delay=7.0)
        state, actions = learn(serving(workers=1, stop_delay=7.0), ev.Signal("TERM"), now=100.0)

        longest = 7.0 + policy.stop_timeout + policy.drain_overtime
        longest += TERMINATE_GRACE + ABORT_GRACE + KILL_GRACE
        assert only(actions, act.AskForTime) == [act.AskForTime(longest + PROMISE_MARGIN)]
        # What then goes as it was told needs no more words.
        _, actions = learn(state, TICK, ev.DrainStarted(1), now=107.0)
        assert only(actions, act.AskForTime) == []

    def test_time_that_we_were_held_up_is_asked_for(self) -> None:
        _, actions = learn(booting(workers=1), ev.Lag(20.0), now=80.0)

        assert only(actions, act.AskForTime) == [act.AskForTime(PROMISE_MARGIN)]

    def test_boots_without_a_limit_are_not_promised(self) -> None:
        _, actions = learn(initial(Policy(workers=1, boot_timeout=inf), 1), ev.Started(), now=0.0)

        assert only(actions, act.AskForTime) == []


class TestDark:
    def crashed(self, **policy: float) -> State:
        return learn(serving(workers=1, **policy), ev.Exited(1, 1), now=10.0)[0]

    def test_the_program_gives_up_when_nothing_has_served_for_long(self) -> None:
        state = self.crashed()
        state, actions = learn(state, ev.Spawned(2, 7), TICK, now=309.9)
        assert only(actions, act.Notify) == []

        state, actions = learn(state, TICK, now=310.0)
        assert "no worker has been ready for 300 s, giving up" in texts(actions, "error")[-1]
        assert (state.exit_code, state.phase.value) == (3, "stopping")

    def test_not_if_it_must_not(self) -> None:
        state, _ = learn(self.crashed(give_up_after=0.0), ev.Spawned(2, 7), TICK, now=100_000.0)

        assert state.phase.value == "running"

    def test_one_ready_worker_ends_the_dark(self) -> None:
        state, _ = learn(self.crashed(), ev.Spawned(2, 7), ev.BecameReady(2), now=50.0)

        assert state.dark_since == inf

    def test_never_while_a_worker_serves(self) -> None:
        def behave(spawn: act.Spawn) -> Behaviour:
            return Behaviour(boot_error="" if spawn.worker <= 2 else "broken")

        world = World(Policy(workers=2), behaviour=behave).start().settle()
        world.children[1].exit(code=1)
        world.advance(3600.0)

        assert world.state.ready() == 1
        assert not world.stopping

    def test_the_first_start_has_limits_of_its_own(self) -> None:
        state, _ = learn(booting(workers=1, boot_timeout=1000.0), TICK, now=400.0)

        assert state.phase.value == "booting"


def test_broken_code_on_the_disk_does_not_take_down_those_that_serve() -> None:
    broken = False

    def behave(_: act.Spawn) -> Behaviour:
        return Behaviour(boot_error="SyntaxError" if broken else "")

    world = World(Policy(workers=3), behaviour=behave).start().settle()
    broken = True
    world.children[1].exit(signal="SEGV")
    world.advance(600.0)
    spawned = [item for item in world.log if isinstance(item, act.Spawn)]
    assert world.state.ready() == 2
    assert 15 < len(spawned) < 60

    broken = False
    world.settle()
    assert world.state.ready() == 3
