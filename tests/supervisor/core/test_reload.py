"""New generations, from the request to the commit, or back."""

from dataclasses import replace

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
from tests.supervisor.core.simulation import Behaviour, Check, World

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core.policy import Policy
from asgictl.core.state import Phase, ReloadPhase, State, TemplatePhase, WorkerState

HUP = ev.Signal("HUP")
TICK = ev.Tick()


class TestRequest:
    def test_a_hup_starts_a_check_of_a_new_generation_and_touches_nobody(self) -> None:
        state, actions = learn(serving(workers=2), HUP, now=1.0)

        assert only(actions, act.StartPreflight) == [act.StartPreflight(epoch=1, generation=2)]
        assert only(actions, act.Notify)[0].event == "reloading"
        assert only(actions, act.Spawn) == []
        assert state.reload
        assert state.reload.phase is ReloadPhase.PREFLIGHT
        assert state.wanted == 1

    def test_a_hup_during_the_first_start_is_remembered(self) -> None:
        state, actions = learn(booting(workers=1), HUP, now=1.0)
        assert only(actions, act.StartPreflight) == []

        _, actions = learn(state, ev.BecameReady(1), now=5.0)
        assert len(only(actions, act.StartPreflight)) == 1

    def test_a_storm_of_hups_starts_one_reload_per_second(self) -> None:
        state, started = serving(workers=1), []
        for hundredth in range(1000):
            now = 10.0 + hundredth / 100
            state, actions = learn(state, HUP, TICK, now=now)
            started += [now for _ in only(actions, act.StartPreflight)]

        assert started == [float(second) for second in range(10, 20)]

    def test_a_check_that_takes_too_long_is_given_up(self) -> None:
        state, _ = learn(serving(workers=1), HUP, now=1.0)
        state, actions = learn(state, ev.Beat(1), TICK, now=61.0)

        assert state.reload is None
        assert act.CancelPreflight(1) in actions
        assert "the check took longer than 60 s" in texts(actions, "error")[0]

    def test_a_paused_fleet_reloads_without_a_worker(self) -> None:
        state, _ = learn(serving(workers=1), ev.ScaleRequested(0), ev.Exited(1, 0), now=1.0)
        state, actions = reloading(state, now=2.0)

        assert only(actions, act.Commit) == [act.Commit(2)]
        assert state.committed == 2
        assert only(learn(state, ev.ScaleRequested(1), now=3.0)[1], act.Spawn)[0].generation == 2


class TestRefusal:
    def test_a_check_that_fails_leaves_everything_as_it_was(self) -> None:
        before = serving(workers=2)
        state, _ = learn(before, HUP, now=1.0)
        state, actions = learn(state, ev.PreflightFailed(1, "no such file", "Traceback"), now=2.0)

        assert state.workers == before.workers
        assert (state.committed, state.reload) == (1, None)
        assert state.last_reload
        assert (state.last_reload.committed, state.last_reload.reason) == (False, "no such file")
        assert only(actions, act.Abandon) == [act.Abandon(2)]
        (line,) = [item for item in only(actions, act.Log) if item.level == "error"]
        assert line.text == "reload refused, generation 1 serves on: no such file"
        assert line.detail == "Traceback"
        assert only(actions, act.Notify) == [act.Notify("ready", "reload refused: no such file")]

    def test_the_answer_to_a_check_that_nobody_waits_for_is_ignored(self) -> None:
        state, _ = learn(serving(workers=1), HUP, now=1.0)
        state, _ = learn(state, HUP, TICK, now=3.0)
        assert state.epoch == 2

        assert learn(state, ev.PreflightPassed(1, state.policy), now=4.0) == (state, [])
        assert learn(state, ev.PreflightFailed(1, "broken"), now=4.0) == (state, [])

    @pytest.mark.parametrize(
        "event",
        [
            ev.BootFailed(3, "import", "no module named app"),
            ev.SpawnFailed(3, "cannot fork"),
            ev.Exited(3, 1),
        ],
    )
    def test_a_canary_that_does_not_boot_refuses_the_reload(self, event: ev.Event) -> None:
        state, actions = reloading(serving(workers=2), now=1.0)
        state, actions = learn(answered(state, actions, now=1.0), event, now=2.0)

        assert state.reload is None
        assert "reload refused" in texts(actions, "error")[0]
        assert not only(actions, act.Drain)
        assert not only(actions, act.Spawn)
        assert state.failures == {}
        assert state.ready() == 2

    def test_the_other_new_workers_that_boot_go_with_it(self) -> None:
        state, actions = reloading(serving(workers=8, min_ready=0.0), now=1.0)
        state, actions = learn(answered(state, actions, now=1.0), ev.BecameReady(9), now=2.0)
        state = answered(state, actions, now=2.0)
        assert [item.slot for item in only(actions, act.Spawn)] == [1, 2]

        state, actions = learn(state, ev.BootFailed(10, "import", "broken"), now=3.0)

        assert only(actions, act.Kill) == [act.Kill(11, "TERM")]


class TestRoll:
    def test_one_canary_then_the_others_then_the_commit(self) -> None:
        world = World(Policy(workers=8)).start().settle()
        seen: list[tuple[str, int]] = []

        def look(world: World) -> None:
            reload, young = world.state.reload, world.generations().get(2, 0)
            if reload and (reload.phase, young) not in seen:
                seen.append((reload.phase, young))

        world.observers.append(look)
        world.signal("HUP")
        world.advance(1.0)
        world.settle()

        assert seen[:3] == [("preflight", 0), ("canary", 1), ("rolling", 3)]
        assert world.generations() == {2: 8}
        assert len([item for item in world.log if isinstance(item, act.Commit)]) == 1

    @pytest.mark.parametrize("workers", [1, 2, 3, 8, 16])
    @pytest.mark.parametrize("preload", [False, True])
    def test_capacity_never_falls_while_all_goes_well(self, workers: int, preload: bool) -> None:
        world = World(Policy(workers=workers, preload=preload)).start().settle()
        least = []
        world.observers.append(lambda world: least.append(world.state.ready()))
        world.signal("HUP")
        world.advance(1.0)
        world.settle(within=200.0)

        assert world.state.committed == 2
        assert min(least) == workers

    def test_the_roll_does_not_wait_for_long_drains(self) -> None:
        world = (
            World(Policy(workers=4), behaviour=lambda _: Behaviour(drain=299.0)).start().settle()
        )
        world.signal("HUP")
        world.advance(1.0)
        world.settle(within=20.0)

        assert world.state.count(WorkerState.DRAINING) == 4

    def test_replacements_come_from_the_old_generation_until_the_commit(self) -> None:
        state, actions = reloading(serving(workers=3), now=1.0)
        state, actions = learn(answered(state, actions, now=1.0), ev.Exited(3, 1), now=2.0)

        assert [item.generation for item in only(actions, act.Spawn)] == [1]

    def test_new_code_fills_a_slot_that_the_old_code_cannot(self) -> None:
        state, _ = learn(serving(workers=1), ev.Exited(1, 1), now=1.0)
        state, _ = learn(
            state, ev.Spawned(2, 7), ev.BootFailed(2, "import", "x"), ev.Exited(2, 1), now=1.0
        )
        assert state.backoff

        state, actions = reloading(state, now=1.0)
        assert [item.generation for item in only(actions, act.Spawn)] == [2]

    def test_the_commit_brings_the_new_policy_and_forgets_what_failed(self) -> None:
        state, actions = reloading(
            serving(workers=1), now=1.0, workers=3, timeout=7.0, min_ready=0.0
        )
        state, actions = learn(answered(state, actions, now=1.0), ev.BecameReady(2), now=2.0)

        assert state.committed == 2
        assert state.policy.timeout == 7.0
        assert state.desired == 3
        assert [item.slot for item in only(actions, act.Spawn)] == [1, 2]
        assert only(actions, act.Notify) == [act.Notify("ready", "generation 2 serves")]
        assert "generation 2 serves alone after 1.0 s" in texts(actions, "info")[-1]
        assert state.last_reload
        assert state.last_reload.committed

    def test_a_fleet_that_was_scaled_by_hand_keeps_its_size(self) -> None:
        world = World(Policy(workers=2)).start().settle()
        world.signal("TTIN")
        world.settle()
        world.signal("HUP")
        world.advance(1.0)
        world.settle()

        assert world.generations() == {2: 3}

    def test_unless_the_settings_themselves_were_changed(self) -> None:
        world = World(Policy(workers=2), next_policy=Policy(workers=5)).start().settle()
        world.signal("TTIN")
        world.settle()
        world.signal("HUP")
        world.advance(1.0)
        world.settle()

        assert world.generations() == {2: 5}

    def test_a_new_worker_is_judged_by_its_own_settings(self) -> None:
        state, actions = reloading(
            serving(workers=1, timeout=4.0), now=1.0, workers=1, timeout=100.0
        )
        state, _ = learn(answered(state, actions, now=1.0), ev.BecameReady(2), now=2.0)
        state, _ = learn(state, ev.Beat(1), ev.Beat(2), TICK, now=3.0)

        assert worker(state, 2).deadline == 53.0

    def test_new_workers_that_want_a_successor_already_do_not_hold_up_the_roll(self) -> None:
        world = World(Policy(workers=2)).start().settle()
        world.signal("HUP")

        def greedy(world: World) -> None:
            for child in list(world.children.values()):
                handle = world.state.workers.get(child.number)
                if handle and handle.state is WorkerState.SOAKING and not handle.recycle:
                    world.learn(ev.RecycleRequested(child.number, "10 requests"))

        world.observers.append(greedy)
        world.run_until(lambda: world.state.committed == 2, within=30.0)

        assert world.state.committed == 2


class TestRollback:
    def test_after_half_of_the_roll_the_old_code_takes_over_again_without_a_gap(self) -> None:
        boots = {2: 0}

        def behave(spawn: act.Spawn) -> Behaviour:
            boots[spawn.generation] = boots.get(spawn.generation, 0) + 1
            broken = spawn.generation == 2 and boots[2] > 2
            return Behaviour(boot_error="no such table" if broken else "")

        world = World(Policy(workers=4), behaviour=behave).start().settle()
        least = []
        world.observers.append(lambda world: least.append(world.state.ready()))
        world.signal("HUP")
        world.advance(1.0)
        world.settle()

        assert world.generations() == {1: 4}
        assert min(least) == 4
        assert world.state.last_reload
        assert "no such table" in world.state.last_reload.reason

    def test_a_refused_generation_is_never_committed(self) -> None:
        world = World(
            Policy(workers=2), behaviour=lambda spawn: Behaviour(boot=inf_if(spawn.generation == 2))
        )
        world.start().settle()
        world.signal("HUP")
        world.advance(70.0)
        world.settle()

        assert world.state.committed == 1
        assert world.generations() == {1: 2}
        assert "not ready after 60 s" in world.said("error")[0].text


def inf_if(condition: bool) -> float:
    """Return infinity, or half a second."""
    return float("inf") if condition else 0.5


class TestSupersede:
    def test_a_second_hup_supersedes_the_reload_that_is_under_way(self) -> None:
        state, actions = reloading(serving(workers=2), now=1.0)
        state, actions = learn(answered(state, actions, now=1.0), HUP, TICK, now=3.0)

        assert only(actions, act.Kill) == [act.Kill(3, "TERM")]
        assert only(actions, act.Abandon) == [act.Abandon(2)]
        assert only(actions, act.StartPreflight) == [act.StartPreflight(2, 3)]
        assert state.last_reload
        assert state.last_reload.reason == "superseded by a newer reload"

    def test_a_check_that_is_superseded_is_cancelled(self) -> None:
        state, _ = learn(serving(workers=2), HUP, now=1.0)
        _, actions = learn(state, HUP, TICK, now=3.0)

        assert only(actions, act.CancelPreflight) == [act.CancelPreflight(1)]

    def test_its_ready_workers_serve_until_they_are_replaced(self) -> None:
        world = World(Policy(workers=4)).start().settle()
        world.signal("HUP")
        world.run_until(lambda: world.generations().get(2, 0) == 2, within=10.0)
        world.advance(1.5)
        least = []
        world.observers.append(lambda world: least.append(world.state.ready()))
        world.signal("HUP")
        world.advance(1.0)
        world.settle()

        assert world.generations() == {3: 4}
        assert min(least) == 4

    def test_its_workers_do_not_pile_up_in_a_slot_that_the_old_code_cannot_fill(self) -> None:
        def behave(spawn: act.Spawn) -> Behaviour:
            return Behaviour(
                boot_error="broken" if spawn.worker > 1 and spawn.generation == 1 else ""
            )

        world = World(Policy(workers=1, min_ready=30.0), behaviour=behave).start().settle()
        world.children[1].exit(code=1)
        most = []
        world.observers.append(lambda world: most.append(sum(world.generations().values())))
        for _ in range(8):
            world.signal("HUP")
            world.advance(5.0)

        assert max(most) <= 3
        assert world.settle(within=60.0).generations() == {9: 1}

    def test_if_the_second_one_is_refused_the_old_code_comes_back(self) -> None:
        world = World(Policy(workers=4)).start().settle()
        world.signal("HUP")
        world.run_until(lambda: world.generations().get(2, 0) == 2, within=10.0)
        world.preflight = Check(error="syntax error")
        world.signal("HUP")
        world.advance(1.0)
        world.settle()

        assert world.generations() == {1: 4}


class TestTemplates:
    def preloaded(self, workers: int = 2) -> State:
        """Return a fleet that was forked from a template."""
        state, _ = learn(booting(workers=workers, preload=True), ev.TemplateReady(1), now=0.0)
        for number in state.workers:
            state, _ = learn(
                state, ev.Spawned(number, 1000 + number), ev.BecameReady(number), now=0.0
            )
        return state

    def test_nothing_is_forked_before_the_template_is_ready(self) -> None:
        state = booting(workers=2, preload=True)
        assert state.workers == {}
        assert state.templates[1].phase is TemplatePhase.BOOTING

        _, actions = learn(state, ev.TemplateReady(1), now=3.0)
        assert [item.slot for item in only(actions, act.Spawn)] == [0, 1]

    def test_a_template_that_does_not_boot_ends_the_first_start(self) -> None:
        _, actions = learn(
            booting(workers=2, preload=True), ev.TemplateFailed(1, "broken", "Traceback"), now=1.0
        )

        assert only(actions, act.Exit) == [act.Exit(3)]
        assert [item.detail for item in only(actions, act.Log) if item.detail] == ["Traceback"]

    def test_so_does_one_that_takes_too_long(self) -> None:
        _, actions = learn(booting(workers=2, preload=True), TICK, now=60.0)

        assert only(actions, act.Exit) == [act.Exit(3)]
        assert "it was not ready in time" in texts(actions, "error")[0]

    def test_a_lost_template_is_tried_again_while_its_workers_serve_on(self) -> None:
        state, actions = learn(self.preloaded(), ev.TemplateFailed(1, "killed"), now=5.0)
        assert state.templates[1].phase is TemplatePhase.LOST
        assert state.ready() == 2
        retry = state.templates[1].deadline
        assert 5.0 < retry < 6.0

        state, actions = learn(state, TICK, now=retry)
        assert only(actions, act.StartTemplate) == [act.StartTemplate(1)]

    def test_its_back_off_grows_until_it_is_ready_once(self) -> None:
        state, now, seeds = self.preloaded(), 5.0, set()
        for _ in range(6):
            state, _ = learn(state, ev.TemplateFailed(1, "broken"), now=now)
            seeds.add(state.seed)
            wait, now = state.templates[1].deadline - now, state.templates[1].deadline
            state, _ = learn(state, *map(ev.Beat, (1, 2)), TICK, now=now)
        assert 4.0 <= wait <= 12.0
        assert len(seeds) == 6

        state, _ = learn(state, ev.TemplateReady(1), now=now)
        assert state.templates[1].failures == 0

    def test_a_loss_that_is_reported_twice_is_one(self) -> None:
        state, _ = learn(self.preloaded(), ev.TemplateFailed(1, "killed"), now=5.0)

        assert learn(state, ev.TemplateFailed(1, "exit code 1"), now=5.0) == (state, [])

    def test_an_empty_slot_waits_for_it(self) -> None:
        state, _ = learn(self.preloaded(), ev.TemplateFailed(1, "killed"), now=5.0)
        state, actions = learn(state, ev.Exited(1, 1), now=5.0)
        assert only(actions, act.Spawn) == []

        state, _ = learn(state, TICK, now=state.templates[1].deadline)
        _, actions = learn(state, ev.TemplateReady(1), now=6.0)
        assert [item.slot for item in only(actions, act.Spawn)] == [0]

    def test_a_reload_makes_a_new_one_and_drops_the_old_at_the_commit(self) -> None:
        state, actions = reloading(self.preloaded(workers=1), now=1.0)
        assert only(actions, act.StartTemplate) == [act.StartTemplate(2)]
        assert only(actions, act.Spawn) == []

        state, actions = learn(state, ev.TemplateReady(2), now=2.0)
        assert [item.generation for item in only(actions, act.Spawn)] == [2]

        state, _ = learn(answered(state, actions, now=2.0), ev.BecameReady(2), ev.Beat(1), now=3.0)
        state, actions = learn(state, ev.Beat(2), TICK, now=4.0)
        assert only(actions, act.Commit) == [act.Commit(2)]
        assert list(state.templates) == [2]

    def test_a_broken_new_one_leaves_the_old_one_untouched(self) -> None:
        before = self.preloaded()
        state, _ = reloading(before, now=1.0)
        state, actions = learn(state, ev.TemplateFailed(2, "broken"), now=2.0)

        assert state.reload is None
        assert state.templates == before.templates
        assert only(actions, act.Abandon) == [act.Abandon(2)]
        assert learn(state, ev.TemplateReady(2), now=3.0) == (state, [])

    def test_a_new_one_that_takes_too_long_refuses_the_reload(self) -> None:
        state, _ = reloading(self.preloaded(), now=1.0)
        state, actions = learn(state, *map(ev.Beat, (1, 2)), TICK, now=61.0)

        assert state.reload is None
        assert "the template of generation 2 failed" in texts(actions, "error")[0]

    def test_preload_can_be_switched_off_by_a_reload(self) -> None:
        state, actions = reloading(self.preloaded(workers=1), now=1.0, workers=1, min_ready=0.0)
        assert [item.generation for item in only(actions, act.Spawn)] == [2]

        state, _ = learn(answered(state, actions, now=1.0), ev.BecameReady(2), now=2.0)
        assert state.templates == {}

    def test_and_on(self) -> None:
        state, actions = reloading(
            serving(workers=1), now=1.0, workers=1, preload=True, min_ready=0.0
        )
        state, actions = learn(state, ev.TemplateReady(2), now=2.0)
        state, _ = learn(answered(state, actions, now=2.0), ev.BecameReady(2), now=3.0)

        assert state.committed == 2
        assert list(state.templates) == [2]

    def test_new_code_takes_a_slot_for_which_the_old_template_is_lost(self) -> None:
        state, _ = learn(self.preloaded(workers=1), ev.TemplateFailed(1, "killed"), now=5.0)
        state, _ = learn(state, ev.Exited(1, 1), now=5.0)
        state, _ = reloading(state, now=5.0)
        state, actions = learn(state, ev.TemplateReady(2), now=5.05)

        assert [item.generation for item in only(actions, act.Spawn)] == [2]


def test_a_stop_ends_a_reload_in_every_phase() -> None:
    start = serving(workers=2, preload=True)
    start, _ = learn(booting(workers=2, preload=True), ev.TemplateReady(1), now=0.0)
    for number in start.workers:
        start, _ = learn(start, ev.Spawned(number, 7), ev.BecameReady(number), now=0.0)
    preflight, _ = learn(start, HUP, now=1.0)
    template, _ = learn(preflight, ev.PreflightPassed(1, start.policy), now=2.0)
    canary, actions = learn(template, ev.TemplateReady(2), now=3.0)
    canary = answered(canary, actions, now=3.0)
    policy = replace(start.policy, min_ready=0.0)
    fast, _ = learn(preflight, ev.PreflightPassed(1, policy), now=2.0)
    rolling, actions = learn(fast, ev.TemplateReady(2), now=3.0)
    rolling, _ = learn(answered(rolling, actions, now=3.0), ev.BecameReady(3), now=4.0)

    for state, phase in zip((preflight, template, canary, rolling), ReloadPhase, strict=True):
        assert state.reload
        assert state.reload.phase is phase
        stopped, actions = learn(state, ev.Signal("TERM"), now=5.0)
        assert stopped.phase is Phase.STOPPING
        assert stopped.reload is None
        assert stopped.templates == {}
        assert {item.worker for item in only(actions, act.Drain)} >= {2}
        assert bool(only(actions, act.CancelPreflight)) == (phase is ReloadPhase.PREFLIGHT)
        later, actions = learn(
            stopped,
            ev.PreflightPassed(1, start.policy),
            ev.TemplateReady(2),
            ev.TemplateFailed(1, "killed"),
            HUP,
            TICK,
            now=5.0,
        )
        assert (later, actions) == (stopped, [])
