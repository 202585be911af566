"""Workers follow the files: no trial, no overlap, and broken code is shown."""

from tests.supervisor.core.fleet import booting, learn, only, serving, texts, worker

from asgictl.core import actions as act
from asgictl.core import development
from asgictl.core import events as ev
from asgictl.core.state import Phase, State, WorkerState

SAVED = ev.FilesChanged("app.py")
TICK = ev.Tick()


class TestSave:
    def test_all_workers_leave_at_once_and_none_is_started_beside_them(self) -> None:
        _, actions = learn(serving(workers=3), SAVED, now=10.0)

        assert [drain.worker for drain in only(actions, act.Drain)] == [1, 2, 3]
        assert only(actions, act.Spawn) == []
        assert only(actions, act.StartPreflight) == []
        assert texts(actions, "info")[0] == "app.py changed, restarting"

    def test_each_that_has_left_makes_room_for_its_successor(self) -> None:
        state, _ = learn(serving(workers=2), SAVED, now=10.0)
        state, actions = learn(state, ev.Exited(2, 0), now=10.1)

        assert only(actions, act.Spawn) == [act.Spawn(3, slot=1, generation=1)]
        assert texts(actions, "info")[0].endswith(
            "(files have changed): worker=1 pid=1002 generation=1"
        )

        _, actions = learn(state, ev.Exited(1, 0), now=10.2)
        assert only(actions, act.Spawn) == [act.Spawn(4, slot=0, generation=1)]

    def test_nobody_waits_long_for_one_that_blocks(self) -> None:
        state, actions = learn(serving(workers=1), SAVED, TICK, now=10.0)
        assert only(actions, act.Spawn) == []

        _, actions = learn(state, TICK, now=10.0 + development.PATIENCE)
        assert len(only(actions, act.Spawn)) == 1

    def test_requests_in_progress_get_the_time_of_a_reload_drain(self) -> None:
        _, actions = learn(serving(workers=1, reload_drain_timeout=0.5), SAVED, now=10.0)

        assert only(actions, act.Drain)[0].timeout == 0.5

    def test_a_save_while_workers_boot_ends_them_for_newer_ones(self) -> None:
        state, _ = learn(serving(workers=1), SAVED, ev.Exited(1, 0), now=10.0)
        state, _ = learn(state, ev.Spawned(2, 1002), now=10.0)
        state, actions = learn(state, SAVED, now=10.2)
        assert only(actions, act.Kill) == [act.Kill(2, "TERM")]

        _, actions = learn(state, ev.Exited(2, None, "TERM"), now=10.3)
        assert len(only(actions, act.Spawn)) == 1

    def test_a_slot_waits_for_all_that_leave_it(self) -> None:
        state, _ = learn(serving(workers=1), SAVED, now=10.0)
        state, _ = learn(state, TICK, now=10.0 + development.PATIENCE)
        state, _ = learn(state, ev.Spawned(2, 1002), SAVED, now=12.0)
        state, actions = learn(state, ev.Exited(2, None, "TERM"), now=12.1)
        assert only(actions, act.Spawn) == []

        _, actions = learn(state, ev.Exited(1, 0), now=12.2)
        assert len(only(actions, act.Spawn)) == 1

    def test_a_save_ends_the_back_off_of_code_that_crashed(self) -> None:
        state = serving(workers=1)
        number, now = 1, 20.0
        while not state.backoff:
            state, _ = learn(state, ev.Exited(number, 1), now=now)
            number, now = number + 1, now + 20.0

        state, actions = learn(state, SAVED, now=now - 20.0)
        assert len(only(actions, act.Spawn)) == 1
        assert not state.backoff

    def test_nothing_is_started_once_a_stop_has_begun(self) -> None:
        state, _ = learn(serving(workers=1), ev.Signal("TERM"), now=10.0)
        _, actions = learn(state, SAVED, now=10.1)

        assert actions == []

    def test_a_changed_settings_file_asks_for_a_reload_and_leaves_the_workers(self) -> None:
        changed = ev.FilesChanged("asgictl.toml", code=False, settings=True)
        _, actions = learn(serving(workers=1), changed, now=10.0)

        assert len(only(actions, act.StartPreflight)) == 1
        assert only(actions, act.Drain) == []

    def test_code_and_settings_that_change_together_do_both(self) -> None:
        changed = ev.FilesChanged("app.py, asgictl.toml", settings=True)
        _, actions = learn(serving(workers=1), changed, now=10.0)

        assert len(only(actions, act.StartPreflight)) == 1
        assert len(only(actions, act.Drain)) == 1


class TestBrokenCode:
    BROKEN = ev.BootFailed(1, "import", "SyntaxError: invalid", "app.py, line 1", shown=True)

    def test_at_the_first_start_it_is_told_and_the_worker_serves_it(self) -> None:
        state, actions = learn(booting(workers=1), self.BROKEN, now=1.0)
        (told,) = [each for each in only(actions, act.Log) if each.level == "error"]
        assert "save a file to try again" in told.text
        assert told.detail == "app.py, line 1"

        state, _ = learn(state, ev.BecameReady(1), now=1.1)
        assert state.phase is Phase.RUNNING
        assert worker(state, 1).state is WorkerState.READY

    def test_it_is_told_once_for_all_workers_and_again_after_a_save(self) -> None:
        state, _ = learn(booting(workers=2), self.BROKEN, now=1.0)
        state, actions = learn(state, ev.BootFailed(2, *_texts(self.BROKEN), shown=True), now=1.0)
        assert texts(actions, "error") == []

        state, _ = learn(state, ev.BecameReady(1), ev.BecameReady(2), SAVED, now=2.0)
        state, _ = learn(state, ev.Exited(1, 0), now=2.1)
        _, actions = learn(state, ev.BootFailed(3, *_texts(self.BROKEN), shown=True), now=2.2)
        assert len(texts(actions, "error")) == 1

    def test_a_name_that_leads_nowhere_ends_the_first_start(self) -> None:
        wrong = ev.BootFailed(1, "import", "there is no module 'man'", shown=True)
        state, actions = learn(booting(workers=1), wrong, now=1.0)

        assert state.phase is Phase.STOPPING
        assert state.exit_code == 3
        assert texts(actions, "error") == [
            "boot failed in stage 'import': there is no module 'man'"
        ]

    def test_a_name_that_leads_nowhere_later_is_mended_by_a_save_too(self) -> None:
        state, _ = learn(serving(workers=1), SAVED, ev.Exited(1, 0), now=10.0)
        wrong = ev.BootFailed(2, "import", "there is no module 'man'", shown=True)
        state, _ = learn(state, wrong, ev.BecameReady(2), now=10.1)

        assert state.phase is Phase.RUNNING
        assert worker(state, 2).state is WorkerState.READY


def _texts(event: ev.BootFailed) -> tuple[str, str, str]:
    return event.stage, event.error, event.traceback


def test_a_save_in_any_order_of_events_ends_with_a_full_fleet_of_new_code() -> None:
    state: State = serving(workers=2)
    state, _ = learn(state, SAVED, SAVED, ev.Exited(1, 0), ev.Exited(2, 0), now=10.0)
    for number in (3, 4):
        state, _ = learn(state, ev.Spawned(number, 1000 + number), ev.BecameReady(number), now=10.5)

    assert state.ready() == 2
    assert not state.backoff
