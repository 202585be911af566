"""Every verb on the supervisor's side: what it asks of the core, and what it says."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.supervisor.core.fleet import booting, learn, serving, worker

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core.policy import DUMP_DELAY
from asgictl.core.state import Phase, State, WorkerState
from asgictl.operate.desk import VERBS, Desk
from asgictl.operate.protocol import Refused, Request, encode
from asgictl.operate.recorder import FlightRecorder
from asgictl.operate.totals import Totals


class House:
    """A supervisor whose processes do what the test says; the core in it is the real one."""

    def __init__(self, state: State) -> None:
        self.state, self.now = state, 100.0
        self.totals, self.recorder = Totals(started=0.0), FlightRecorder()
        self.desk = Desk(self)
        self.level = ""
        self.has_certificates = True
        self.actions: list[act.Action] = []
        self.waiting: list[Any] = []

    def learn(self, *events: ev.Event) -> None:
        for event in events:
            before = self.state
            self.state, actions = learn(before, event, now=self.now)
            self.actions += actions
            self.recorder.add(self.now, event, actions)
            self.totals.learned(event, before, self.state, self.now)

    def identity(self) -> dict[str, Any]:
        return {"application": "app:app", "version": "1", "pid": 1, "addresses": []}

    def listening(self) -> dict[str, Any]:
        return {"listeners": [{"address": "http://x"}], "overflows": 0}

    def settings(self) -> dict[str, Any]:
        return {"settings": {"workers": 2}, "origins": {"workers": "--workers"}, "file": None}

    def set_log_level(self, level: str) -> None:
        self.level = level

    def renew_certificates(self, answer: Callable[[str], None]) -> bool:
        self.renewal = answer
        return self.has_certificates


class Talk:
    """One request, whose answers are pulled when the test says so."""

    def __init__(self, house: House, verb: str, **arguments: Any) -> None:
        self.house = house
        self.said: list[Any] = []
        self.result: Any = None
        self.refused: Refused | None = None
        self.over = False
        try:
            self._answers = house.desk.answer(Request(verb, arguments))
        except Refused as refused:
            self.refused, self.over = refused, True
        else:
            self.go_on(None)

    def go_on(self, event: ev.Event | None) -> "Talk":
        try:
            while not self.over and (answer := self._answers.send(event)) is not None:
                encode(answer)
                self.said.append(answer)
                event = None
        except StopIteration as end:
            self.result, self.over = end.value, True
            encode(self.result)
        except Refused as refused:
            self.refused, self.over = refused, True
        return self

    def after(self, *events: ev.Event, seconds: float = 0.0) -> "Talk":
        """Let things happen, and the talk look at each."""
        for event in events:
            self.house.now += seconds
            self.house.learn(event)
            self.go_on(event)
        return self

    @property
    def progress(self) -> list[str]:
        return [answer["progress"] for answer in self.said]

    @property
    def reason(self) -> str:
        assert self.refused is not None, f"not refused: {self.said} {self.result}"
        return self.refused.reason


@pytest.fixture
def house() -> House:
    return House(serving(workers=2, now=0.0))


# -- Requests


@pytest.mark.parametrize(
    ("verb", "arguments", "sentence"),
    [
        ("dance", {}, "there is no verb 'dance'; there are: ping, status"),
        ("status", {"x": 1}, "status does not take 'x'; what it takes: none"),
        ("scale", {"size": "1"}, "scale does not take 'size'; what it takes: to, wait"),
        ("scale", {}, "scale needs to"),
        ("worker", {}, "worker needs worker and do"),
        ("scale", {"to": 4}, "to cannot be 4: it must be a JSON string"),
        ("reload", {"wait": "yes"}, "wait cannot be 'yes': it must be a JSON true or false"),
        ("events", {"last": True}, "last cannot be True: it must be a JSON integer"),
    ],
)
def test_what_no_verb_takes_is_refused_with_what_it_does_take(
    house: House, verb: str, arguments: dict[str, Any], sentence: str
) -> None:
    assert Talk(house, verb, **arguments).reason.startswith(sentence)


def test_every_verb_can_be_asked_and_says_something(house: House) -> None:
    arguments: dict[str, dict[str, Any]] = {
        "scale": {"to": "2"},
        "worker": {"worker": "0", "do": "kill"},
        "log-level": {"level": "debug"},
    }
    for verb in VERBS:
        talk = Talk(house, verb, **arguments.get(verb, {}))
        assert talk.refused or talk.said or talk.result is not None, verb


def test_looking_changes_nothing(house: House) -> None:
    before = house.state
    for verb in ("ping", "status", "listeners", "config", "events"):
        assert Talk(house, verb).over
    assert house.state is before


def test_the_status_has_identity_and_workers(house: House) -> None:
    found = Talk(house, "status").result
    assert found["application"] == "app:app"
    assert [row["pid"] for row in found["workers"]] == [1001, 1002]


# -- Certificates


def test_certificates_that_are_good_are_read_again(house: House) -> None:
    talk = Talk(house, "reload-tls")
    assert talk.progress == ["checking the certificates"]
    assert not talk.over
    house.renewal("")
    assert talk.after(ev.Tick()).result == {}


def test_certificates_that_cannot_be_used_are_refused_with_the_reason(house: House) -> None:
    talk = Talk(house, "reload-tls")
    house.renewal("it has expired")
    assert talk.after(ev.Tick()).reason == "the old certificates stay: it has expired"


def test_there_may_be_no_certificates(house: House) -> None:
    house.has_certificates = False
    assert "TLS is not spoken here" in Talk(house, "reload-tls").reason


def test_a_reload_renews_certificates_itself(house: House) -> None:
    talk = Talk(house, "reload-tls")
    house.learn(ev.ReloadRequested())
    assert "has begun meanwhile" in talk.after(ev.Tick()).reason
    assert "is under way" in Talk(house, "reload-tls").reason


# -- Reload


def pass_preflight(house: House) -> ev.Event:
    return ev.PreflightPassed(house.state.epoch, house.state.policy)


def test_a_reload_is_told_step_by_step_and_ends_with_its_generation(house: House) -> None:
    talk = Talk(house, "reload")
    assert talk.progress == ["generation 2: checking the settings"]
    talk.after(pass_preflight(house))
    for number in (3, 4):
        talk.after(ev.Spawned(number, 1000 + number), ev.StageReached(number, "import"))
        talk.after(ev.BecameReady(number), ev.Beat(number), ev.Tick(), seconds=1.0)
    assert talk.result == {"epoch": 1, "generation": 2}
    assert talk.progress == [
        "generation 2: checking the settings",
        "generation 2: first worker in stage 'fork'",
        "generation 2: first worker in stage 'import'",
        "generation 2: first worker proving itself",
        "generation 2: 1 of 2 workers replaced",
    ]


def test_a_refused_reload_tells_reason_and_traceback(house: House) -> None:
    talk = Talk(house, "reload").after(pass_preflight(house), ev.Spawned(3, 1003))
    talk.after(ev.BootFailed(3, "import", "the application raised E", "Traceback ..."))
    assert talk.reason == (
        "reload refused: boot failed in stage 'import': the application raised E"
    )
    assert talk.refused is not None
    assert talk.refused.detail == "Traceback ..."


def test_without_waiting_it_has_only_begun(house: House) -> None:
    assert Talk(house, "reload", wait=False).result == {"epoch": 1}
    assert house.state.reload is not None


def test_a_reload_that_a_newer_one_supersedes_says_so(house: House) -> None:
    first = Talk(house, "reload")
    house.now += 5.0
    second = Talk(house, "reload")
    first.go_on(None)
    assert first.reason == "reload refused: superseded by a newer reload"
    assert not second.over
    second.after(ev.PreflightFailed(house.state.epoch, "bad file"))
    assert second.reason == "reload refused: bad file"


def test_two_wishes_before_the_reload_begins_are_one(house: House) -> None:
    house.learn(ev.ReloadRequested(), ev.PreflightFailed(1, "first"))
    talks = [Talk(house, "reload"), Talk(house, "reload")]
    assert [talk.progress for talk in talks] == [["waiting for its turn"]] * 2
    house.now += 2.0
    house.learn(ev.Tick())
    house.learn(ev.PreflightFailed(house.state.epoch, "second"))
    assert [talk.go_on(None).reason for talk in talks] == ["reload refused: second"] * 2


def test_a_wish_that_is_aborted_before_its_turn_is_refused(house: House) -> None:
    house.learn(ev.ReloadRequested(), ev.PreflightFailed(1, "first"))
    talk = Talk(house, "reload")
    Talk(house, "abort-reload")
    assert talk.go_on(None).reason == "reload refused: somebody has aborted it before it began"


def test_a_reload_at_the_start_waits_for_the_first_worker() -> None:
    house = House(booting(workers=1))
    assert Talk(house, "reload").progress == ["waiting for the first worker"]


def test_a_reload_ends_with_the_supervisor_and_does_not_begin_after_it(house: House) -> None:
    talk = Talk(house, "reload").after(ev.Signal("TERM"))
    assert talk.reason == "the supervisor is stopping"
    assert Talk(house, "reload").reason == "the supervisor is stopping"


def test_a_reload_can_be_aborted_and_only_if_there_is_one(house: House) -> None:
    assert Talk(house, "abort-reload").reason == "there is no reload to abort"
    talk = Talk(house, "reload")
    assert Talk(house, "abort-reload").result == {"generation": 1}
    assert talk.go_on(None).reason == "reload refused: somebody has aborted it"


# -- Upgrade and stop


def test_an_upgrade_is_asked_for_and_its_refusal_passed_on(house: House) -> None:
    talk = Talk(house, "upgrade")
    assert talk.said == [{"progress": "checking the program on disk", "upgrades": 0}]
    assert house.actions[-1] == act.Upgrade()
    talk.after(ev.Tick())
    assert not talk.over
    assert talk.after(ev.UpgradeRefused("it crashes")).reason == (
        "upgrade refused, everything is as it was: it crashes"
    )


@pytest.mark.parametrize("event", [ev.ReloadRequested(), ev.Signal("TERM")])
def test_an_upgrade_is_refused_while_something_else_goes_on(house: House, event: ev.Event) -> None:
    house.learn(event)
    assert Talk(house, "upgrade").reason.startswith("not now")


@pytest.mark.parametrize(("now", "timeout"), [(False, 30.0), (True, 0.0)])
def test_a_stop_is_patient_or_not_and_is_told_until_the_end(
    house: House, now: bool, timeout: float
) -> None:
    talk = Talk(house, "stop", now=now)
    assert [item.timeout for item in house.actions if isinstance(item, act.Drain)] == [timeout] * 2
    talk.after(ev.Exited(1, 0))
    assert not talk.over, "the end of the connection is the answer"
    assert talk.progress == [
        "2 workers left, 0 requests in progress",
        "1 worker left, 0 requests in progress",
    ]
    assert Talk(house, "stop", wait=False).result == {}


# -- The fleet


@pytest.mark.parametrize(("to", "desired"), [("4", 4), ("+1", 3), ("-1", 1), ("-2", 0), ("0", 0)])
def test_the_fleet_is_scaled(house: House, to: str, desired: int) -> None:
    talk = Talk(house, "scale", to=to, wait=False)
    assert talk.result == {"before": 2, "desired": desired}
    assert house.state.desired == desired


def test_who_waits_for_a_bigger_fleet_is_told_when_it_is_there(house: House) -> None:
    talk = Talk(house, "scale", to="3").after(ev.Spawned(3, 1003))
    assert talk.progress == ["2 of 3 workers ready"]
    assert talk.after(ev.BecameReady(3)).result == {"before": 2, "desired": 3}


def test_who_waits_for_a_smaller_fleet_is_told_when_nobody_is_too_many(house: House) -> None:
    assert Talk(house, "scale", to="1").result == {"before": 2, "desired": 1}
    assert Talk(house, "scale", to="1").result == {"before": 1, "desired": 1}


@pytest.mark.parametrize("to", ["", "x", "1.5", "++1", "1 ", "9999999", "\u0664"])
def test_what_is_no_number_of_workers_is_refused(house: House, to: str) -> None:
    assert Talk(house, "scale", to=to).reason.startswith(f"cannot scale to {to!r}")


@pytest.mark.parametrize("to", ["-3", "1025", "+1023"])
def test_numbers_beyond_the_limits_are_refused(house: House, to: str) -> None:
    assert "it must be from 0 to 1024" in Talk(house, "scale", to=to).reason
    assert house.state.desired == 2


def test_who_waits_is_told_when_new_workers_fail(house: House) -> None:
    talk = Talk(house, "scale", to="3")
    for number in (3, 4):
        talk.after(ev.Spawned(number, 1000 + number))
        talk.after(ev.BootFailed(number, "import", "no", "Traceback"), ev.Exited(number, 3))
    assert talk.reason == "3 workers are wanted, but new ones fail; trying on"
    assert talk.refused is not None
    assert talk.refused.detail == "Traceback"
    assert house.state.desired == 3


def test_who_waits_is_told_when_somebody_else_scales(house: House) -> None:
    talk = Talk(house, "scale", to="3").after(ev.ScaleRequested(5))
    assert talk.reason == "somebody else has scaled to 5 workers meanwhile"


# -- One worker


def test_a_worker_is_restarted_and_that_is_done_when_its_successor_has_taken_over(
    house: House,
) -> None:
    talk = Talk(house, "worker", worker="1", do="restart").after(ev.Spawned(3, 1003))
    assert not talk.over
    talk.after(ev.BecameReady(3))
    assert talk.result == {"worker": 2, "slot": 1, "pid": 1002}
    assert worker(house.state, 2).state is WorkerState.DRAINING
    assert talk.progress == ["its successor is starting"]


@pytest.mark.parametrize("do", ["drain", "kill"])
def test_a_worker_is_drained_or_killed_and_that_is_done_when_it_is_gone(
    house: House, do: str
) -> None:
    talk = Talk(house, "worker", worker="pid=1001", do=do)
    assert not worker(house.state, 1).active
    assert not talk.over
    assert talk.after(ev.Exited(1, 0)).result == {"worker": 1, "slot": 0, "pid": 1001}


def test_its_stacks_are_fetched_a_moment_later_and_logged_too() -> None:
    house = House(booting(workers=1))
    house.learn(ev.StageReached(1, "listen"), ev.BecameReady(1))
    talk = Talk(house, "worker", worker="0", do="stack")
    assert house.actions[-1] == act.Dump(1)
    busy = Talk(house, "worker", worker="0", do="stack")
    assert busy.reason.startswith("somebody else asks")
    talk.after(ev.Tick(), seconds=DUMP_DELAY)
    assert act.CollectDump in map(type, house.actions)
    house.desk.collected(1, "Thread 0x1: ...")
    house.desk.collected(2, "of no interest")
    assert talk.go_on(None).result == {
        "worker": 1,
        "slot": 0,
        "pid": 1001,
        "stacks": "Thread 0x1: ...",
    }
    assert not Talk(house, "worker", worker="0", do="stack").over, "it can be asked again"


def test_stacks_that_do_not_come_are_said_to_be_missing(house: House) -> None:
    talk = Talk(house, "worker", worker="0", do="stack")
    house.desk.collected(1, "")
    assert "it has written nothing" in talk.go_on(None).reason
    talk = Talk(house, "worker", worker="1", do="stack").after(ev.Exited(2, None, "KILL"))
    assert talk.reason.startswith("it has ended meanwhile")


@pytest.mark.parametrize(
    ("name", "do", "sentence"),
    [
        ("x", "kill", "no worker has the name 'x': give its slot, or pid=N"),
        ("pid=", "kill", "no worker has the name"),
        ("2", "kill", "there is no worker 2"),
        ("pid=5", "kill", "there is no worker pid=5"),
        ("0", "dance", "cannot 'dance' a worker; there are: drain, restart, kill, stack"),
    ],
)
def test_what_is_no_worker_is_refused(house: House, name: str, do: str, sentence: str) -> None:
    assert Talk(house, "worker", worker=name, do=do).reason.startswith(sentence)


def test_a_slot_with_two_workers_asks_which_one(house: House) -> None:
    Talk(house, "worker", worker="0", do="restart").after(ev.Spawned(3, 1003))
    talk = Talk(house, "worker", worker="0", do="kill")
    assert talk.reason == (
        "there are several in slot 0, choose one: pid=1001 (ready), pid=1003 (starting)"
    )
    assert not Talk(house, "worker", worker="pid=1003", do="kill").refused


def test_what_cannot_be_done_any_more_is_refused(house: House) -> None:
    Talk(house, "worker", worker="pid=1001", do="kill")
    for do in ("kill", "drain", "restart", "stack"):
        reason = Talk(house, "worker", worker="pid=1001", do=do).reason
        assert reason == "pid=1001 (killing): not in a state in which that can be done"


# -- Logs and events


def test_the_log_level_is_passed_on_if_it_is_one(house: House) -> None:
    assert Talk(house, "log-level", level="debug").result == {"level": "debug"}
    assert house.level == "debug"
    assert "there are: critical" in Talk(house, "log-level", level="trace").reason


def test_logs_are_reopened_as_by_the_signal(house: House) -> None:
    Talk(house, "reopen-logs")
    assert house.actions == [act.ReopenLogs()]


def test_the_last_events_are_told_and_those_that_follow(house: House) -> None:
    house.learn(ev.Tick(), ev.Signal("TTIN"), ev.Signal("TTOU"))
    talk = Talk(house, "events", last=2)
    assert [answer["record"]["event"] for answer in talk.said] == [
        "Signal(name='TTIN')",
        "Signal(name='TTOU')",
    ]
    assert "Spawn(worker=3" in " ".join(talk.said[0]["record"]["actions"])
    following = Talk(house, "events", last=0, follow=True)
    assert not following.over
    following.after(ev.Lag(1.0), ev.Tick())
    numbers = [answer["record"]["number"] for answer in following.said]
    assert numbers == [3, 4]


def test_more_events_than_are_kept_are_all_that_are_kept(house: House) -> None:
    for _ in range(1500):
        house.learn(ev.Tick())
    said = Talk(house, "events", last=5000).said
    assert len(said) == 1000
    assert said[-1]["record"]["number"] == 1499


def test_long_texts_in_events_are_cut(house: House) -> None:
    house.learn(ev.UpgradeRefused("x" * 100_000))
    (answer,) = Talk(house, "events", last=1).said
    assert len(json.dumps(answer)) < 10_000


def test_phases_are_words(house: House) -> None:
    assert Talk(house, "status").result["phase"] == str(Phase.RUNNING)
