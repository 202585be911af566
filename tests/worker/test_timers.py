"""The worker's clock: what it knows, and whom it calls."""

import asyncio
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from tests.worker.waiting import until

from asgictl_worker import timers
from asgictl_worker.timers import INTERVAL, NEVER, Ticker


class FakeLoop:
    """A loop whose time is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[tuple[float, Any]] = []
        self.cancelled = False

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Any) -> "FakeLoop":
        self.due.append((when, callback))
        return self

    def cancel(self) -> None:
        self.cancelled = True

    def advance(self, seconds: float) -> None:
        """Move the time, then run what is due once."""
        self.now += seconds
        due = [callback for when, callback in self.due if when <= self.now]
        self.due = [item for item in self.due if item[0] > self.now]
        for callback in due:
            callback()


class Waiting:
    """Something with a deadline."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.ticks: list[float] = []

    def on_tick(self, now: float) -> None:
        self.ticks.append(now)
        self.deadline = NEVER


class Service:
    def __init__(self, *connections: Waiting) -> None:
        self.connections: set[Any] = set(connections)


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


def started(loop: FakeLoop, *connections: Waiting) -> Ticker:
    ticker = Ticker(loop)  # type: ignore[arg-type]
    ticker.start(Service(*connections))
    return ticker


def test_the_time_is_that_of_the_last_tick(loop):
    ticker = started(loop)
    loop.now += INTERVAL / 2
    assert ticker.now == 100.0
    loop.advance(INTERVAL)
    assert ticker.now == loop.now


def test_a_deadline_is_acted_on_once_and_not_early(loop):
    waiting, patient = Waiting(100.0 + 3 * INTERVAL), Waiting(NEVER)
    started(loop, waiting, patient)
    for _ in range(2):
        loop.advance(INTERVAL)
    assert waiting.ticks == []
    for _ in range(3):
        loop.advance(INTERVAL)
    assert len(waiting.ticks) == 1
    assert patient.ticks == []


def test_connections_may_come_and_go_during_a_tick(loop):
    service = Service()

    class Leaving(Waiting):
        def on_tick(self, now: float) -> None:
            super().on_tick(now)
            service.connections.discard(self)
            service.connections.add(Waiting(NEVER))

    leaving = [Leaving(0.0) for _ in range(3)]
    service.connections.update(leaving)
    Ticker(loop).start(service)
    loop.advance(INTERVAL)
    assert [len(each.ticks) for each in leaving] == [1, 1, 1]


def test_after_a_stall_what_has_arrived_is_read_before_anybody_is_judged(loop):
    waiting = Waiting(101.0)
    started(loop, waiting)
    loop.advance(8.0)
    assert waiting.ticks == []
    loop.advance(INTERVAL)
    assert len(waiting.ticks) == 1


def test_a_worker_that_is_always_late_judges_all_the_same(loop):
    waiting = Waiting(101.0)
    started(loop, waiting)
    loop.advance(8.0)
    loop.advance(8.0)
    assert len(waiting.ticks) == 1


def test_a_stopped_ticker_ticks_no_more(loop):
    ticker = started(loop)
    ticker.stop()
    assert loop.cancelled
    ticker.stop()


def test_the_date_is_a_line_that_changes_with_the_second(loop, monkeypatch):
    wall = 1_795_383_000.2
    monkeypatch.setattr(timers.time, "time", lambda: wall)
    ticker = started(loop)
    assert ticker.date.startswith(b"date: ")
    assert ticker.date.endswith(b" GMT\r\n")
    first = ticker.date
    wall += 0.5
    loop.advance(INTERVAL)
    assert ticker.date is first
    wall += 0.5
    loop.advance(INTERVAL)
    assert ticker.date != first
    assert parsedate_to_datetime(ticker.date[6:].decode().strip())


async def test_on_a_real_loop_it_ticks_by_itself():
    ticker = Ticker(asyncio.get_running_loop())
    waiting = Waiting(0.0)
    ticker.start(Service(waiting))
    await until(lambda: waiting.ticks)
    ticker.stop()


def test_it_says_at_each_tick_how_late_it_is(loop: FakeLoop) -> None:
    ticker, seen = Ticker(loop), []  # type: ignore[arg-type,var-annotated]
    ticker.on_turn = seen.append
    ticker.start(Service())
    loop.advance(INTERVAL)
    loop.advance(INTERVAL + 3.0)
    assert seen == [pytest.approx(0.0, abs=1e-9), pytest.approx(3.0)]
