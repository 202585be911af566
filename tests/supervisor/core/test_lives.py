"""Births, deaths, and what workers say of themselves."""

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
from tests.supervisor.core.simulation import Behaviour, World

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core.policy import MIN_UPTIME, TERMINATE_GRACE, Policy
from asgictl.core.state import Phase, State, WorkerState

TICK = ev.Tick()


class TestLongBoot:
    def test_one_worker_speaks_for_all(self) -> None:
        state = booting(workers=2)
        _, actions = learn(state, ev.StageReached(2, "import", "importing torch"), now=3.0)
        assert texts(actions, "info") == []

        _, actions = learn(state, ev.StageReached(1, "import", "importing torch"), now=3.0)
        (said,) = texts(actions, "info")
        assert said.startswith("still importing torch after 3 s: worker=0 ")

    def test_a_worker_that_is_ready_has_nothing_to_say(self) -> None:
        _, actions = learn(serving(workers=1), ev.StageReached(1, "import", "importing x"), now=3.0)
        assert actions == []


class TestFirstStart:
    def test_every_slot_gets_a_worker_at_once(self) -> None:
        state = booting(workers=3)

        assert [(item.slot, item.pid) for item in state.workers.values()] == [
            (0, 1001),
            (1, 1002),
            (2, 1003),
        ]
        assert state.phase is Phase.BOOTING

    def test_a_boot_failure_ends_the_program_with_one_traceback_and_code_3(self) -> None:
        state = booting(workers=4)
        failures = [
            ev.BootFailed(number, "import", "no module named app", "Traceback ...")
            for number in state.workers
        ]

        state, actions = learn(state, *failures, now=1.0)
        state, more = learn(state, *(ev.Exited(number, 1) for number in range(1, 5)), now=2.0)

        tracebacks = [item for item in only(actions + more, act.Log) if item.detail]
        assert [item.text for item in tracebacks] == [
            "boot failed in stage 'import': no module named app"
        ]
        assert only(more, act.Exit) == [act.Exit(3)]
        assert only(actions + more, act.Spawn) == []

    @pytest.mark.parametrize(
        "event",
        [
            ev.SpawnFailed(1, "cannot fork: out of memory"),
            ev.Exited(1, None, "SEGV"),
            ev.Exited(1, 0),
        ],
    )
    def test_a_fork_that_fails_or_a_worker_that_dies_ends_it_too(self, event: ev.Event) -> None:
        state, _ = learn(booting(workers=1), event, now=1.0)

        assert (state.exited, state.exit_code) == (True, 3)

    def test_the_others_are_told_to_go(self) -> None:
        _, actions = learn(booting(workers=3), ev.BootFailed(2, "import", "broken"), now=1.0)

        assert only(actions, act.Kill) == [act.Kill(1, "TERM"), act.Kill(3, "TERM")]

    def test_one_ready_worker_is_enough_to_go_on(self) -> None:
        state, _ = learn(booting(workers=2), ev.BecameReady(1), now=1.0)
        state, actions = learn(state, ev.BootFailed(2, "lifespan", "no database"), now=2.0)

        assert state.phase is Phase.RUNNING
        assert "trying again" in texts(actions, "error")[0]

    def test_the_fleet_is_announced_when_all_are_ready_and_once(self) -> None:
        state, actions = learn(booting(workers=2), ev.BecameReady(1), now=1.0)
        assert only(actions, act.Notify) == []

        state, actions = learn(state, ev.BecameReady(2), now=2.0)
        assert only(actions, act.Notify) == [act.Notify("ready", "all 2 workers are ready")]

        _, actions = learn(state, ev.Signal("TTIN"), ev.Exited(1, 1), now=3.0)
        assert only(actions, act.Notify) == []

    def test_a_service_that_is_paused_before_it_was_ready_has_started(self) -> None:
        _, actions = learn(booting(workers=1), ev.ScaleRequested(0), now=1.0)

        assert only(actions, act.Notify) == [act.Notify("ready", "no workers are wanted for now")]

    def test_who_fails_again_and_again_does_not_keep_the_others_from_being_a_service(self) -> None:
        broken = Behaviour(boot_error="no database")
        world = World(
            Policy(workers=3), behaviour=lambda spawn: broken if spawn.slot == 2 else Behaviour()
        ).start()
        world.advance(10.0)

        text = "2 of 3 workers are ready, the others are tried again"
        assert [item for item in world.log if isinstance(item, act.Notify)] == [
            act.Notify("ready", text)
        ]
        assert act.Log("warning", text) in world.log


class TestBoot:
    def test_stages_are_noted(self) -> None:
        state, _ = learn(booting(workers=1), ev.StageReached(1, "lifespan"), now=1.0)

        assert worker(state, 1).stage == "lifespan"
        assert learn(state, ev.StageReached(99, "import"), now=1.0) == (state, [])

    def test_a_worker_of_the_committed_generation_is_trusted_at_once(self) -> None:
        state, actions = learn(booting(workers=1), ev.BecameReady(1), now=1.0)

        assert worker(state, 1).state is WorkerState.READY
        assert worker(state, 1).deadline == 16.0
        assert "ready after 1.00 s: worker=0 pid=1001 generation=1" in texts(actions, "info")[0]

    def test_ready_is_said_once(self) -> None:
        state = serving(workers=1)

        assert learn(state, ev.BecameReady(1), now=5.0) == (state, [])
        assert learn(state, ev.BootFailed(1, "import", "broken"), now=5.0) == (state, [])

    def test_a_worker_that_said_it_cannot_boot_leaves_by_itself(self) -> None:
        state, actions = learn(
            serving(workers=1),
            ev.Signal("TTIN"),
            ev.Spawned(2, 7),
            ev.BootFailed(2, "import", "x"),
            now=1.0,
        )

        assert worker(state, 2).state is WorkerState.TERMINATING
        assert worker(state, 2).failure == "x"
        assert only(actions, act.Kill) == []

    def test_if_it_does_not_it_is_aborted(self) -> None:
        state, _ = learn(
            serving(workers=1),
            ev.Signal("TTIN"),
            ev.Spawned(2, 7),
            ev.BootFailed(2, "import", "x"),
            now=1.0,
        )

        _, actions = learn(state, TICK, now=1.0 + TERMINATE_GRACE)
        assert only(actions, act.Kill) == [act.Kill(2, "ABRT")]

    def test_a_fork_that_fails_later_is_tried_again_and_hurts_nobody(self) -> None:
        state, _ = learn(serving(workers=2), ev.Exited(1, 1), now=1.0)
        state, actions = learn(state, ev.SpawnFailed(3, "cannot fork: EAGAIN"), now=1.0)

        assert worker(state, 2).state is WorkerState.READY
        assert "boot failed in stage 'fork': cannot fork: EAGAIN" in texts(actions, "error")[0]
        assert 0 in state.backoff

    def test_the_same_traceback_is_logged_once(self) -> None:
        state, _ = learn(serving(workers=3), ev.ScaleRequested(5), now=1.0)
        broken = [ev.BootFailed(number, "import", "x", "Traceback ...") for number in (4, 5)]

        _, actions = learn(state, *broken, now=2.0)

        assert [item.detail for item in only(actions, act.Log) if item.level == "error"] == [
            "Traceback ...",
            "",
        ]


class TestForksThatTakeLong:
    """With a template, a fork is answered later, and much may have happened until then."""

    def forking(self) -> State:
        """Return a serving worker 1 and a worker 2 that is not forked yet."""
        return learn(serving(workers=1), ev.Signal("TTIN"), now=1.0)[0]

    def test_a_worker_that_was_given_up_meanwhile_is_killed_when_it_is_there(self) -> None:
        state, actions = learn(self.forking(), ev.Signal("TTOU"), now=2.0)
        assert only(actions, act.Kill) == []

        state, actions = learn(state, ev.Spawned(2, 77), now=2.5)
        assert only(actions, act.Kill) == [act.Kill(2, "KILL")]
        assert worker(state, 2).state is WorkerState.KILLING

    def test_it_is_forgotten_if_it_never_comes(self) -> None:
        state, _ = learn(self.forking(), ev.Signal("TTOU"), now=2.0)

        state, actions = learn(state, TICK, now=2.0 + TERMINATE_GRACE)

        assert list(state.workers) == [1]
        assert "no longer waiting for the fork" in texts(actions, "warning")[0]

    def test_and_killed_if_it_comes_after_all(self) -> None:
        state, _ = learn(self.forking(), ev.Signal("TTOU"), now=2.0)
        state, _ = learn(state, TICK, now=4.0)

        state, actions = learn(state, ev.Spawned(2, 77), now=9.0)

        assert only(actions, act.Kill) == [act.Kill(2, "KILL")]
        assert learn(state, ev.Exited(2, None, "KILL"), now=9.1)[0].workers.keys() == {1}

    def test_a_fork_that_fails_when_nobody_wants_it_is_no_failure(self) -> None:
        state, _ = learn(self.forking(), ev.Signal("TTOU"), now=2.0)
        state, actions = learn(state, ev.SpawnFailed(2, "the template died"), now=2.5)

        assert list(state.workers) == [1]
        assert texts(actions, "error") == []
        assert learn(state, ev.SpawnFailed(2, "again"), now=3.0) == (state, [])


class TestDeath:
    @pytest.mark.parametrize(
        ("event", "cause"),
        [
            (ev.Exited(1, 0), "exited with code 0"),
            (ev.Exited(1, 3), "exited with code 3"),
            (ev.Exited(1, None, "SEGV"), "was killed by SIGSEGV"),
            (ev.Exited(1, None, "KILL"), "was killed by SIGKILL"),
            (
                ev.Exited(1, None, "KILL", out_of_memory=True),
                "was killed by the kernel because memory ran out",
            ),
        ],
    )
    def test_a_worker_that_leaves_unasked_has_failed_whatever_its_code(
        self, event: ev.Event, cause: str
    ) -> None:
        state, _ = learn(serving(workers=2), ev.Beat(1, in_flight=4), now=4.0)
        state, actions = learn(state, event, now=5.0)

        (text,) = texts(actions, "error")
        assert text.startswith(f"{cause} after 5.0 s with 4 requests in progress, starting another")
        assert text.endswith(": worker=0 pid=1001 generation=1")
        assert [item.slot for item in only(actions, act.Spawn)] == [0]
        assert state.failures == {1: 1}

    def test_its_last_stacks_are_collected(self) -> None:
        _, actions = learn(serving(workers=1), ev.Exited(1, None, "SEGV"), now=5.0)

        assert [item.worker for item in only(actions, act.CollectDump)] == [1]

    def test_a_worker_that_was_told_to_leave_has_not_failed(self) -> None:
        state, _ = learn(serving(workers=2), ev.Signal("TTOU"), now=1.0)
        leaving = next(item for item in state.workers.values() if not item.active)
        state, actions = learn(state, ev.Exited(leaving.id, 0), now=2.0)

        assert state.failures == {}
        assert "exited with code 0 after 2.0 s (scale-down)" in texts(actions, "info")[0]

    def test_a_stranger_is_ignored(self) -> None:
        state = serving(workers=1)

        assert learn(state, ev.Exited(99, 0), now=5.0) == (state, [])

    def test_a_worker_that_dies_during_the_stop_delay_is_not_replaced(self) -> None:
        state, _ = learn(serving(workers=2, stop_delay=10.0), ev.Signal("TERM"), now=1.0)
        state, actions = learn(state, ev.Exited(1, 1), now=2.0)

        assert only(actions, act.Spawn) == []
        assert "starting another" not in texts(actions, "error")[0]


class TestCrashLoop:
    def crash(self, state: State, *, now: float) -> State:
        """Let the newest worker become ready and die at once."""
        number = max(state.workers)
        return learn(
            state, ev.Spawned(number, 1), ev.BecameReady(number), ev.Exited(number, 1), now=now
        )[0]

    def test_the_first_crash_costs_nothing_then_the_slot_waits_longer_and_longer(self) -> None:
        state, now, waits = serving(workers=1), 1.0, []
        state, _ = learn(state, ev.Exited(1, 1), now=now)
        for _ in range(6):
            state = self.crash(state, now=now)
            waits.append(state.backoff[0] - now)
            now = state.backoff[0]
            state, _ = learn(state, TICK, now=now)

        for wait, nominal in zip(waits, (0.5, 1.0, 2.0, 4.0, 8.0, 16.0), strict=True):
            assert 0.5 * nominal <= wait <= 1.5 * nominal

    def test_a_healthy_life_starts_the_count_anew(self) -> None:
        state, _ = learn(serving(workers=2), ev.Exited(1, 1), now=1.0)
        state = self.crash(state, now=1.0)
        assert state.failures == {1: 2}

        state, actions = learn(state, ev.Exited(2, 1), now=MIN_UPTIME)
        assert state.failures == {1: 1}
        assert [item.slot for item in only(actions, act.Spawn)] == [
            0,
            1,
        ] or state.backoff.keys() == {0}

    def test_so_does_the_healthy_life_of_another_that_began_after_the_last_failure(self) -> None:
        state, _ = learn(serving(workers=2), ev.Exited(1, 1), now=1.0)
        state = self.crash(state, now=1.0)
        state, _ = learn(state, TICK, now=state.backoff[0])
        number = max(state.workers)
        state, _ = learn(state, ev.Spawned(number, 1), ev.BecameReady(number), now=3.0)
        state, _ = learn(state, ev.RecycleRequested(2, "old"), now=3.0)
        young = max(state.workers)
        state, _ = learn(state, ev.Spawned(young, 1), ev.BecameReady(young), now=12.9)
        assert state.failures == {1: 2}

        state, _ = learn(state, ev.Exited(young, 1), now=3.0 + MIN_UPTIME)
        assert state.failures == {1: 1}

    def test_an_old_worker_that_lives_on_does_not_excuse_the_ones_that_crash(self) -> None:
        state, now = serving(workers=2), 100.0
        state, _ = learn(state, ev.Beat(2), ev.Exited(1, 1), now=now)
        for _ in range(4):
            state = self.crash(state, now=now)
            now = state.backoff.get(0, now)
            state, _ = learn(state, ev.Beat(2), TICK, now=now)

        assert state.failures == {1: 5}

    def test_workers_that_fail_together_have_failed_once(self) -> None:
        state = serving(workers=64)
        state, _ = learn(state, *(ev.Exited(number, 1) for number in range(1, 65)), now=1.0)

        assert state.failures == {1: 2}
        assert max(state.backoff.values()) <= 1.0 + 0.75

    def test_slots_that_keep_failing_in_turns_wait_longer_and_longer_too(self) -> None:
        state, now = serving(workers=2), 1.0
        while now < 60.0:
            for item in list(state.workers.values()):
                state, _ = learn(
                    state,
                    ev.Spawned(item.id, 1),
                    ev.BecameReady(item.id),
                    ev.Exited(item.id, 1),
                    now=now,
                )
            now = min(state.backoff.values(), default=now)
            state, _ = learn(state, TICK, now=now)

        assert state.failures[1] >= 6

    def test_a_hang_counts_as_a_failure_once(self) -> None:
        state, _ = learn(serving(workers=1), TICK, now=15.0)
        state, _ = learn(state, ev.Evidence(1, ev.Verdict.BLOCKED), now=30.0)
        state, _ = learn(state, ev.Exited(1, None, "ABRT"), now=30.1)

        assert state.failures == {1: 1}


class TestWords:
    def test_a_worker_that_has_served_enough_serves_until_its_successor_is_ready(self) -> None:
        state, actions = learn(serving(workers=2), ev.RecycleRequested(1, "1000 requests"), now=1.0)
        assert [item.slot for item in only(actions, act.Spawn)] == [0]
        assert only(actions, act.Drain) == []

        state = answered(state, actions, now=1.0)
        _, actions = learn(state, ev.BecameReady(3), now=2.0)
        assert only(actions, act.Drain) == [act.Drain(1, 300.0, "recycle: 1000 requests")]

    def test_it_may_say_so_again(self) -> None:
        state, _ = learn(serving(workers=1), ev.RecycleRequested(1, "old"), now=1.0)

        assert learn(state, ev.RecycleRequested(1, "very old"), now=2.0) == (state, [])

    def test_a_leaving_worker_needs_no_successor(self) -> None:
        state, _ = learn(serving(workers=1), ev.Signal("TERM"), now=1.0)

        assert learn(state, ev.RecycleRequested(1, "old"), now=2.0) == (state, [])

    def test_a_worker_that_somebody_else_has_terminated_is_replaced_at_once(self) -> None:
        state, actions = learn(serving(workers=2), ev.DrainStarted(1), now=1.0)

        assert worker(state, 1).state is WorkerState.DRAINING
        assert [item.slot for item in only(actions, act.Spawn)] == [0]
        assert not only(actions, act.Drain)
        assert not only(actions, act.Kill)
        assert "somebody else" in texts(actions, "info")[0]
        assert state.failures == {}

    def test_also_one_that_was_still_booting(self) -> None:
        state, _ = learn(serving(workers=1), ev.Signal("TTIN"), ev.Spawned(2, 7), now=1.0)
        state, actions = learn(state, ev.DrainStarted(2), now=2.0)

        assert worker(state, 2).state is WorkerState.TERMINATING
        assert worker(state, 2).deadline == 2.0 + TERMINATE_GRACE
        assert [item.slot for item in only(actions, act.Spawn)] == [1]

    def test_the_answer_to_our_own_drain_is_no_news(self) -> None:
        state, _ = learn(serving(workers=1), ev.Signal("TERM"), now=1.0)

        assert learn(state, ev.DrainStarted(1), now=2.0) == (state, [])


def test_the_death_of_a_new_worker_refuses_the_reload() -> None:
    state, actions = reloading(serving(workers=2), now=1.0)
    state = answered(state, actions, now=1.0)
    state, actions = learn(state, ev.BecameReady(3), ev.Exited(3, None, "SEGV"), now=2.0)

    assert state.reload is None
    assert state.last_reload
    assert "was killed by SIGSEGV" in state.last_reload.reason
    assert only(actions, act.Abandon) == [act.Abandon(2)]
