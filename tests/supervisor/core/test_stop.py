"""How the supervisor leaves."""

import pytest
from tests.supervisor.core.fleet import booting, learn, only, serving, texts, worker
from tests.supervisor.core.simulation import Behaviour, World

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core.policy import ABORT_GRACE, KILL_GRACE, TERMINATE_GRACE, Policy
from asgictl.core.state import Phase, StopLevel, WorkerState

TERM, INT, QUIT = map(ev.Signal, ("TERM", "INT", "QUIT"))
TICK = ev.Tick()


@pytest.mark.parametrize("signal", [TERM, INT])
def test_a_stop_lets_requests_finish(signal: ev.Signal) -> None:
    state, actions = learn(serving(workers=2), signal, now=1.0)

    assert only(actions, act.Drain) == [act.Drain(1, 30.0, "stop"), act.Drain(2, 30.0, "stop")]
    assert only(actions, act.Notify) == [act.Notify("stopping", "stopping")]
    assert state.phase is Phase.STOPPING


def test_the_program_ends_with_the_last_worker() -> None:
    state, _ = learn(serving(workers=2), TERM, now=1.0)
    state, actions = learn(state, ev.Exited(1, 0), now=2.0)
    assert only(actions, act.Exit) == []

    state, actions = learn(state, ev.Exited(2, 0), now=3.0)
    assert only(actions, act.Exit) == [act.Exit(0)]
    assert only(learn(state, TICK, now=4.0)[1], act.Exit) == []


def test_nothing_is_started_any_more() -> None:
    state, _ = learn(serving(workers=2), TERM, now=1.0)

    later = learn(
        state,
        ev.Signal("HUP"),
        ev.Signal("TTIN"),
        ev.ScaleRequested(9),
        ev.ReloadRequested(),
        now=2.0,
    )
    assert later == (state, [])


def test_a_booting_worker_has_nothing_to_finish() -> None:
    state, actions = learn(booting(workers=1), TERM, now=1.0)

    assert only(actions, act.Kill) == [act.Kill(1, "TERM")]
    assert only(learn(state, ev.Exited(1, None, "TERM"), now=1.1)[1], act.Exit) == [act.Exit(0)]


def test_a_long_drain_of_a_reload_becomes_a_short_one() -> None:
    state, actions = learn(serving(workers=2), ev.ScaleRequested(1), now=1.0)
    leaving = only(actions, act.Drain)[0].worker
    assert worker(state, leaving).draining_until == 301.0

    state, actions = learn(state, TERM, now=2.0)
    assert act.Drain(leaving, 30.0, "stop") in actions
    assert worker(state, leaving).draining_until == 32.0


def test_but_a_short_one_not_longer() -> None:
    state, actions = learn(
        serving(workers=2, reload_drain_timeout=5.0), ev.ScaleRequested(1), now=1.0
    )
    leaving = only(actions, act.Drain)[0].worker

    _, actions = learn(state, TERM, now=2.0)
    assert leaving not in {item.worker for item in only(actions, act.Drain)}


def test_and_one_of_the_same_length_is_not_told_twice() -> None:
    state, actions = learn(
        serving(workers=2, reload_drain_timeout=30.0), ev.ScaleRequested(1), now=1.0
    )
    leaving = only(actions, act.Drain)[0].worker

    _, actions = learn(state, TERM, now=1.0)
    assert leaving not in {item.worker for item in only(actions, act.Drain)}


class TestDelay:
    def test_workers_go_on_accepting_until_it_is_over(self) -> None:
        state, actions = learn(serving(workers=1, stop_delay=5.0), TERM, now=1.0)
        assert only(actions, act.Drain) == []
        assert worker(state, 1).state is WorkerState.READY

        _, actions = learn(state, TICK, now=6.0)
        assert only(actions, act.Drain) == [act.Drain(1, 30.0, "stop")]

    def test_a_second_term_ends_it(self) -> None:
        state, _ = learn(serving(workers=1, stop_delay=5.0), TERM, now=1.0)
        _, actions = learn(state, TERM, now=2.0)

        assert only(actions, act.Drain) == [act.Drain(1, 30.0, "stop")]


class TestImpatience:
    def test_a_second_term_at_once_is_the_same_word(self) -> None:
        state, _ = learn(serving(workers=1), TERM, now=1.0)

        assert learn(state, TERM, TERM, now=1.01) == (state, [])

    @pytest.mark.parametrize("second", [TERM, INT, QUIT])
    def test_a_second_word_cuts_off_what_is_in_progress(self, second: ev.Signal) -> None:
        state, _ = learn(serving(workers=1), TERM, now=1.0)
        state, actions = learn(state, second, now=2.5)

        assert only(actions, act.Drain) == [act.Drain(1, 0.0, "stop")]
        assert state.stop is StopLevel.FAST

    def test_quit_does_so_at_once(self) -> None:
        _, actions = learn(serving(workers=1, stop_delay=5.0), QUIT, now=1.0)

        assert only(actions, act.Drain) == [act.Drain(1, 0.0, "stop")]

    @pytest.mark.parametrize("third", [TERM, INT, QUIT])
    def test_the_third_word_kills(self, third: ev.Signal) -> None:
        state, _ = learn(serving(workers=2), INT, INT, now=1.0)
        state, actions = learn(state, third, now=2.0)
        assert only(actions, act.Kill) == [act.Kill(1, "KILL"), act.Kill(2, "KILL")]

        assert only(learn(state, third, now=3.0)[1], act.Kill) == []

    def test_a_booting_worker_that_was_terminated_is_killed_too(self) -> None:
        state, _ = learn(booting(workers=1), INT, INT, now=1.0)

        assert only(learn(state, INT, now=1.1)[1], act.Kill) == [act.Kill(1, "KILL")]


@pytest.mark.parametrize("silent", [False, True])
def test_a_stop_ends_in_time_though_no_worker_helps(silent: bool) -> None:
    stubborn = Behaviour(overruns_drain=True, ignores=frozenset({"TERM", "ABRT"}))
    policy = Policy(workers=3, stop_timeout=10.0)
    world = World(policy, behaviour=lambda _: stubborn).start().settle()
    for child in world.children.values():
        child.hung = silent
    world.signal("TERM")

    limit = 10.0 + policy.drain_overtime + TERMINATE_GRACE + ABORT_GRACE + KILL_GRACE
    assert world.stopped(within=limit)


def test_what_the_kernel_does_not_end_is_left_behind_and_named() -> None:
    stuck = Behaviour(
        overruns_drain=True, ignores=frozenset({"TERM", "ABRT"}), dies_after_kill=float("inf")
    )
    world = World(Policy(workers=1), behaviour=lambda _: stuck).start().settle()
    world.signal("QUIT")

    assert world.stopped(within=11.0 + TERMINATE_GRACE + ABORT_GRACE + KILL_GRACE)
    assert "left behind, the kernel does not end it" in world.said("error")[-1].text


def test_the_first_reason_to_stop_decides_the_code() -> None:
    state, _ = learn(booting(workers=1), ev.BootFailed(1, "import", "broken"), now=1.0)
    state, _ = learn(state, TERM, now=1.1)
    state, actions = learn(state, ev.Exited(1, 1), now=1.2)

    assert only(actions, act.Exit) == [act.Exit(3)]


def test_an_unknown_signal_is_worth_no_more_than_a_debug_line() -> None:
    state = serving(workers=1)
    later, actions = learn(state, ev.Signal("WINCH"), now=1.0)

    assert later == state
    assert texts(actions, "debug") == ["ignored SIGWINCH"]
