"""The status as JSON, and as people read it."""

import json
import re
from typing import Any

import pytest
from tests.supervisor.core.fleet import booting, learn, reloading, serving

from asgictl.core import events as ev
from asgictl.core.state import State
from asgictl.operate import show
from asgictl.operate.status import progress, status
from asgictl.operate.sums import Sums
from asgictl.operate.totals import SlotHistory, Totals
from asgictl.operate.usage import Usage
from asgictl_worker.contract import Beat
from asgictl_worker.counters import CELLS, Row

IDENTITY = {"application": "shop:app", "version": "1.2", "pid": 9, "addresses": ["http://x:80"]}


def look(state: State, now: float = 20.0, totals: Totals | None = None) -> dict[str, Any]:
    found = IDENTITY | status(state, totals or Totals(started=0.0), now)
    assert json.loads(json.dumps(found, allow_nan=False)) == found, "JSON knows no infinity"
    return found


def busy() -> tuple[State, Totals]:
    """A fleet of two at second 20, one with a past and some work."""
    state, _ = learn(serving(workers=2), ev.Beat(1, 1, 1), now=19.0)
    totals = Totals(started=0.0, exits={"SIGKILL": 1, "reload": 2}, rows=Rows())
    totals.slots[0] = SlotHistory(restarts=1, cause="SIGKILL", at=10.0)
    for second, requests in ((18.0, 1000), (20.0, 1500)):
        totals.rows.row = Row(
            cells=(requests, *[0] * (CELLS - 1)),
            ticked=second,
            lag=0.0015,
            busy=second / 4,
            connections=3,
            in_flight=2,
            websockets=1,
            bytes_sent=5000,
            errors=2,
        )
        totals.beat(1, Beat(), second)
    return state, totals


class Rows:
    """Those of a fleet in which only the first worker counts."""

    row: Row | None = None

    def read(self, worker: int) -> Row | None:
        return self.row if worker == 1 else None


class TestJson:
    def test_it_has_a_row_for_each_worker_and_sums(self) -> None:
        found = look(*[busy()[0]], totals=busy()[1])
        assert found["workers"][0] == {
            "worker": 1,
            "slot": 0,
            "pid": 1001,
            "generation": 1,
            "state": "ready",
            "stage": "",
            "why": "",
            "age": 20.0,
            "beat": 1.0,
            "connections": 3,
            "in_flight": 2,
            "websockets": 1,
            "requests": 1500,
            "requests_per_second": 250.0,
            "p50": 0.00025,
            "p99": 0.000495,
            "errors": 2,
            "busy": 0.25,
            "loop_lag": 0.0015,
            "restarts": 1,
            "last_restart": {"cause": "SIGKILL", "ago": 10.0},
        }
        sums = ("connections", "in_flight", "requests", "requests_per_second", "errors", "ready")
        assert [found[name] for name in sums] == [3, 2, 1500, 250.0, 2, 2]

        assert found["requests_by"] == {"GET": {"other": 1500}}
        assert found["durations"]["counts"][0] == sum(found["durations"]["counts"]) == 1500
        assert (found["p99"], found["busy"], found["bytes_sent"]) == (0.000495, 0.25, 5000)

    def test_a_worker_that_has_not_beaten_yet_has_no_numbers(self) -> None:
        row = look(booting(workers=1))["workers"][0]
        assert (row["state"], row["stage"], row["beat"]) == ("starting", "fork", None)
        assert (row["requests"], row["last_restart"]) == (0, None)

    def test_slots_that_wait_after_failures_say_how_long(self) -> None:
        state = serving(workers=1)
        for number in (1, 2, 3):
            spawned = ev.Spawned(number, 1000 + number)
            state, _ = learn(state, spawned, ev.Exited(number, 1), now=float(number))
        totals = Totals(started=0.0)
        totals.slots[0] = SlotHistory(restarts=3, cause="exit code 1", at=2.5)
        found = look(state, now=3.0, totals=totals)
        assert found["waiting"]["0"] > 0
        assert found["slots"] == {"0": {"restarts": 3, "cause": "exit code 1", "ago": 0.5}}
        assert re.search(r"slot 0 is tried again in \S+ s \(exit code 1\)", show.status(found, {}))

    def test_a_reload_is_there_while_it_lasts_and_its_result_after_it(self) -> None:
        state, _ = reloading(serving(workers=1), now=18.0)
        assert look(state)["reload"] == {
            "epoch": 1,
            "generation": 2,
            "phase": "canary",
            "seconds": 2.0,
            "progress": "generation 2: first worker in stage 'fork'",
        }
        state, _ = learn(state, ev.BootFailed(2, "import", "no", "Traceback"), now=19.0)
        found = look(state)
        assert found["reload"] is None
        assert found["last_reload"] == {
            "epoch": 1,
            "generation": 2,
            "committed": False,
            "reason": "boot failed in stage 'import': no",
            "detail": "Traceback",
            "ago": 1.0,
        }


class TestProgress:
    def test_without_a_reload_there_is_none(self) -> None:
        assert progress(serving(workers=1)) == ""

    def test_each_phase_has_its_words(self) -> None:
        state, _ = learn(serving(workers=2), ev.ReloadRequested(), now=5.0)
        assert progress(state) == "generation 2: checking the settings"
        state, _ = reloading(serving(workers=2), now=5.0, workers=2, preload=True)
        assert progress(state) == "generation 2: importing the application"


class TestText:
    def test_the_status_is_aligned_and_says_it_all(self) -> None:
        state, totals = busy()
        usage = {9: Usage(0.01, 20 << 20, 12 << 20), 1001: Usage(0.5, 60 << 20, 41 << 20)}
        assert show.status(look(state, totals=totals), usage) == (
            "application  shop:app, running for 20 s (generation 1, pid 9, asgictl 1.2)\n"
            "listening    http://x:80\n"
            "workers      2 of 2 ready\n"
            "load         3 connections, 2 requests in progress, 250 requests/s\n"
            "since start  1,500 requests, 2 errors, 0 reloads; workers ended: 1 SIGKILL, 2 reload\n"
            "supervisor   1% of a processor, 12.0M of memory\n"
            "\n"
            "SLOT   PID  STATE  GEN   AGE  CONNS  BUSY  REQ/S  REQUESTS     LAG  CPU  MEMORY  RESTARTS\n"
            "   0  1001  ready    1  20 s      3     2    250     1,500  1.5 ms  50%   41.0M  1 (SIGKILL, 10 s ago)\n"
            "   1  1002  ready    1  20 s      0     0      0         0  0.0 ms    -       -  0\n"
        )

    def test_a_reload_its_end_upgrades_and_what_waits_are_told(self) -> None:
        state, _ = reloading(serving(workers=1), now=18.0)
        totals = Totals(started=0.0, reloads_refused=1, upgrades=2)
        text = show.status(look(state, totals=totals), {})
        assert "reload       generation 2: first worker in stage 'fork' (for 2.0 s)\n" in text
        assert "0 reloads (1 refused), 2 upgrades" in text
        assert "starting (fork)" in text
        state, _ = learn(state, ev.ReloadAborted(), now=19.0)
        text = show.status(look(state), {})
        assert "last reload  generation 2 refused, 1.0 s ago: somebody has aborted it\n" in text
        found = look(state) | {"waiting": {"3": 2.5}, "reload_requested": True}
        text = show.status(found, {})
        assert "slot 3 is tried again in 2.5 s" in text
        assert "reload       waiting for its turn\n" in text
        found["last_reload"] |= {"committed": True}
        assert "generation 2 committed, 1.0 s ago" in show.status(found, {})

    def test_a_paused_fleet_says_so(self) -> None:
        state, _ = learn(serving(workers=1), ev.ScaleRequested(0), ev.Exited(1, 0), now=5.0)
        text = show.status(look(state), {})
        assert "0 of 0 ready; paused" in text
        assert text.endswith("no workers\n")

    def test_listeners_show_their_queues(self) -> None:
        rows = [
            {"address": "http://x:80", "waiting": 3, "limit": 2048, "dropped": 0},
            {"address": "unix:/s", "waiting": 0, "limit": 5, "dropped": None},
        ]
        assert show.listeners(rows, 7) == (
            "ADDRESS      WAITING  LIMIT  DROPPED\n"
            "http://x:80        3  2,048        0\n"
            "unix:/s            0      5        -\n"
            "\nqueue overflows of all sockets of this machine or container: 7\n"
        )
        assert "overflows" not in show.listeners(rows, None)

    def test_a_record_shows_what_was_done_about_it(self) -> None:
        found = {"event": "Tick()", "actions": ["Exit(code=0)"]}
        assert show.record(found, "12:00:00.000") == "12:00:00.000  Tick()\n    -> Exit(code=0)"

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0, "0.0 s"),
            (9.94, "9.9 s"),
            (59, "59 s"),
            (60, "1 min"),
            (61, "1 min 1 s"),
            (3600, "1 h"),
            (7380, "2 h 3 min"),
            (90000, "1 d 1 h"),
            (86400, "1 d"),
        ],
    )
    def test_durations_are_shown_in_their_two_largest_units(
        self, seconds: float, text: str
    ) -> None:
        assert show.duration(seconds) == text

    def test_one_is_not_many(self) -> None:
        state, _ = learn(serving(workers=1), ev.Beat(1, 1, 1), now=19.0)
        totals = Totals(started=0.0, reloads_committed=1, upgrades=1)
        totals.gone = Sums(cells=[1, *[0] * (CELLS - 1)], errors=1)
        text = show.status(look(state, totals=totals), {})
        assert "1 connection, 1 request in progress, 0 requests/s" in text
        assert "1 request, 1 error, 1 reload, 1 upgrade\n" in text

    def test_sizes_are_in_mebibytes(self) -> None:
        assert (show.size(1 << 20), show.size(None)) == ("1.0M", "-")
