"""The metrics as monitoring reads them."""

import math
import re
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain
from tests.supervisor.core.fleet import learn, serving

from asgictl.core import events as ev
from asgictl.core.state import State
from asgictl.operate import metrics
from asgictl.operate.metrics import METRICS, Snapshot
from asgictl.operate.status import status
from asgictl.operate.totals import SlotHistory, Totals
from asgictl.operate.usage import Usage
from asgictl_worker.counters import Counters, Row

LISTENERS = {
    "listeners": [
        {"address": "http://x:80", "waiting": 3, "limit": 2048, "dropped": 1},
        {"address": "unix:/s", "waiting": 0, "limit": 5, "dropped": None},
    ],
    "overflows": 7,
}


class Rows:
    """Those of a fleet in which only the first worker counts."""

    def __init__(self) -> None:
        counters = Counters()
        for method, code, seconds in (("GET", 200, 0.002), ("GET", 200, 0.3), ("POST", 500, 99.0)):
            counters.request(method, code, seconds)
        self.row = Row(tuple(counters.cells), ticked=20.0, lag=0.25, seconds=99.302, errors=1)

    def read(self, worker: int) -> Row | None:
        return self.row if worker == 1 else None


def snapshot(state: State | None = None, **more: Any) -> Snapshot:
    state = state or learn(serving(workers=2), ev.Beat(1, 3, 2), now=19.0)[0]
    totals = Totals(started=0.0, exits={"SIGKILL": 1, "reload": 2}, rows=Rows())  # type: ignore[arg-type]
    totals.slots[0] = SlotHistory(restarts=4, cause="SIGKILL", at=10.0)
    totals.slots[7] = SlotHistory(restarts=3, cause="boot failed", at=19.0)  # it waits
    identity = {"application": 'shop:"app"\n', "version": "1.2", "pid": 9, "addresses": []}
    usage = {9: Usage(0.1, 2000, 1000), 1001: Usage(None, 4000, None)}
    found = identity | status(state, totals, 20.0) | more
    return Snapshot(found, LISTENERS, usage, at=1000.0)


def samples(text: bytes) -> dict[str, float]:
    return {
        sample.name
        + "".join(f",{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in plain(text.decode())
        for sample in family.samples
    }


def test_the_numbers_are_those_of_the_status() -> None:
    text, kind = metrics.write(snapshot())
    assert kind.startswith("text/plain; version=0.0.4")
    found = samples(text)
    expected = {
        'asgictl_info,application=shop:"app"\n,version=1.2': 1,
        "asgictl_start_time_seconds": 980,
        "asgictl_http_requests_total,method=GET,status=2xx": 2,
        "asgictl_http_requests_total,method=POST,status=5xx": 1,
        "asgictl_http_request_duration_seconds_bucket,le=0.001": 0,
        "asgictl_http_request_duration_seconds_bucket,le=0.0025": 1,
        "asgictl_http_request_duration_seconds_bucket,le=0.5": 2,
        "asgictl_http_request_duration_seconds_bucket,le=30.0": 2,
        "asgictl_http_request_duration_seconds_bucket,le=+Inf": 3,
        "asgictl_http_request_duration_seconds_count": 3,
        "asgictl_http_request_duration_seconds_sum": 99.302,
        "asgictl_exceptions_total": 1,
        "asgictl_workers,state=ready": 2,
        "asgictl_workers,state=suspect": 0,
        "asgictl_workers_ready": 2,
        "asgictl_worker_exits_total,cause=SIGKILL": 1,
        "asgictl_restarts_total,slot=0": 4,
        "asgictl_restarts_total,slot=7": 3,
        "asgictl_reloads_total,result=refused": 0,
        "asgictl_listen_queue_connections,address=http://x:80": 3,
        "asgictl_listen_queue_dropped_total,address=http://x:80": 1,
        "asgictl_listen_overflows_total": 7,
        "asgictl_worker_loop_lag_seconds,pid=1001,slot=0": 0.25,
        "asgictl_worker_heartbeat_age_seconds,pid=1001,slot=0": 1,
        "asgictl_worker_memory_rss_bytes,pid=1001,slot=0": 4000,
        "asgictl_supervisor_memory_pss_bytes": 1000,
    }
    assert {name: found[name] for name in expected} == expected


def test_what_is_not_known_is_left_out() -> None:
    found = samples(metrics.write(snapshot())[0])
    missing = (
        "asgictl_listen_queue_dropped_total,address=unix:/s",
        "asgictl_worker_memory_pss_bytes,pid=1001,slot=0",
        "asgictl_worker_memory_rss_bytes,pid=1002,slot=1",
        "asgictl_last_reload_success",
        "asgictl_busy_ratio",
    )
    assert not [name for name in missing if name in found]
    assert not [name for name, value in found.items() if math.isnan(value)]


def test_a_reload_shows_while_it_lasts_and_when_it_has_ended() -> None:
    reload = {"committed": False, "ago": 5.0}
    found = samples(metrics.write(snapshot(reload={}, last_reload=reload))[0])
    assert found["asgictl_reload_in_progress"] == 1
    assert found["asgictl_last_reload_success"] == 0
    assert found["asgictl_last_reload_timestamp_seconds"] == 995


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text", "application/openmetrics-text;version=1.0.0,*/*"]
)
def test_who_asks_for_openmetrics_gets_it(accept: str) -> None:
    text, kind = metrics.write(snapshot(), accept)
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    # Its parser is strict: names, kinds and order have to be right.
    names = [family.name for family in openmetrics(text.decode())]
    assert sorted(names) == sorted(metrics.PREFIX + metric.name for metric in METRICS)


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/html",
        "application/openmetrics-text;version=x.y",
        "text/plain;version=a",
        ";;,",
    ],
)
def test_whatever_is_asked_for_something_is_answered(accept: str) -> None:
    assert b"asgictl_workers_ready 2.0" in metrics.write(snapshot(), accept)[0]


def test_names_follow_the_conventions_of_prometheus() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", metric.name), metric.name
        assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket")), metric.name
        assert metric.sentence.endswith("."), metric.name


def test_a_fleet_without_workers_has_metrics() -> None:
    state, _ = learn(serving(workers=1), ev.ScaleRequested(0), ev.Exited(1, 0), now=5.0)
    assert samples(metrics.write(snapshot(state))[0])["asgictl_workers_ready"] == 0
