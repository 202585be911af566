import asyncio
import gc
import logging
import os
import sys
import threading
import time
import types
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from tests.worker.waiting import until

from asgictl_worker import hygiene
from asgictl_worker.hygiene import MAX_KNOWN, SPACING, LagWatch, Repetitions, _Place


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was reported before the test."""
    monkeypatch.setattr(hygiene, "_repetitions", Repetitions())


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "asgictl.worker")
    logging.getLogger("asgictl").propagate = True
    return caplog


# -- What repeats itself


def test_the_first_of_a_kind_is_told_and_the_next_ones_are_counted() -> None:
    each = Repetitions()
    assert each.admit("a", 0.0) == 0
    assert each.admit("b", 0.0) == 0
    assert [each.admit("a", 1.0), each.admit("a", SPACING - 0.1)] == [None, None]
    assert each.admit("a", SPACING) == 2
    assert each.admit("a", SPACING + 1) is None
    assert each.admit("a", SPACING * 2) == 1


def test_what_was_not_seen_for_longest_is_forgotten_first() -> None:
    each = Repetitions()
    for number in range(MAX_KNOWN):
        each.admit(number, 0.0)
    assert each.admit(0, 1.0) is None
    each.admit("one more", 1.0)
    assert each.admit(0, 2.0) is None
    assert each.admit(1, 2.0) == 0


# -- Stacks

RUNNER = [_Place("/bin/supervisor.py", 1, "main"), _Place(hygiene._RUNNER, 190, "run")]
EVENTS = _Place(f"{hygiene._ASYNCIO}events.py", 84, "_run")
SELECT = _Place(hygiene._SELECTORS, 468, "select")
CYCLE = _Place(f"{hygiene._OURS}http/cycle.py", 5, "run")
APP = [_Place("/srv/framework.py", 70, "call"), _Place("/srv/app.py", 7, "handler")]


@pytest.mark.parametrize(
    ("places", "names"),
    [
        ([*RUNNER, EVENTS, SELECT], []),
        (RUNNER, []),
        ([*RUNNER, EVENTS, CYCLE, *APP], ["call", "handler"]),
        ([*RUNNER, EVENTS, *APP], ["call", "handler"]),
        # It called us, and that is where it stands.
        ([*RUNNER, EVENTS, CYCLE, *APP, CYCLE], ["call", "handler", "run"]),
        # Nobody but us: then that is the news.
        ([*RUNNER, EVENTS, CYCLE], ["_run", "run"]),
        # Not under our runner.
        (APP, ["call", "handler"]),
    ],
)
def test_a_stack_begins_in_the_application(places: list[_Place], names: list[str]) -> None:
    text = hygiene._from_application(places)
    # Source lines stand four columns in.
    lines = [line for line in text.splitlines() if not line.startswith("    ")]
    assert [line.split(" in ")[-1].strip() for line in lines] == names


# -- A loop that does not turn


@pytest.fixture
async def watch() -> Any:
    each = LagWatch(asyncio.get_running_loop(), 0.2)
    each.start()
    yield each
    each.stop()


def stuck_in_here(seconds: float) -> None:
    time.sleep(seconds)


async def test_what_blocks_the_loop_is_shown_with_its_line(
    watch: LagWatch, heard: pytest.LogCaptureFixture
) -> None:
    asyncio.get_running_loop().call_soon(stuck_in_here, 0.5)
    await until(lambda: heard.records)
    (record,) = heard.records
    text = record.getMessage()
    assert record.levelname == "WARNING"
    assert "the event loop was blocked for 0." in text
    assert "(0.0" in text  # it slept
    assert text.endswith("in stuck_in_here\n    time.sleep(seconds)")
    assert "asyncio" not in text


async def test_processor_time_tells_work_from_waiting(
    watch: LagWatch, heard: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        began = time.thread_time()
        while time.thread_time() - began < 0.4:
            pass

    asyncio.get_running_loop().call_soon(work)
    await until(lambda: heard.records)
    assert "(0.4" in heard.records[0].getMessage()


async def test_code_that_holds_the_interpreter_is_caught_too(
    watch: LagWatch, heard: pytest.LogCaptureFixture
) -> None:
    def count() -> None:
        sum(range(3 * 10**7))  # one call of C code

    asyncio.get_running_loop().call_soon(count)
    await until(lambda: heard.records)
    text = heard.records[0].getMessage()
    assert "sum(range(3 * 10**7))" in text or "C code that kept" in text


async def test_the_same_place_is_told_once_a_minute(
    watch: LagWatch, heard: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0
    turn = LagWatch._report

    def report(self: LagWatch, *facts: Any) -> None:
        nonlocal turns
        turns += 1
        turn(self, *facts)

    monkeypatch.setattr(LagWatch, "_report", report)
    for number in range(3):
        asyncio.get_running_loop().call_soon(stuck_in_here, 0.45)
        await until(lambda number=number: turns > number)
    assert len(heard.records) == 1
    monkeypatch.setattr(hygiene, "SPACING", 0.0)
    asyncio.get_running_loop().call_soon(stuck_in_here, 0.45)
    await until(lambda: len(heard.records) == 2)
    assert "(2 times more in the meantime)" in heard.records[1].getMessage()


async def test_a_loop_that_turns_is_left_alone(
    watch: LagWatch, heard: pytest.LogCaptureFixture
) -> None:
    end = time.monotonic() + 0.6
    await until(lambda: time.monotonic() > end)
    assert not heard.records


async def test_a_machine_that_gives_us_no_time_is_not_the_applications_fault(
    watch: LagWatch, heard: pytest.LogCaptureFixture
) -> None:
    watch._report(2.5, 0.0, "")
    (record,) = heard.records
    assert record.levelname == "INFO"
    assert "did not turn for 2.50 s, though nothing blocked it" in record.getMessage()


async def test_watching_ends_without_a_trace() -> None:
    before = set(os.listdir("/proc/self/fd"))
    threads = set(os.listdir("/proc/self/task"))
    for _ in range(3):
        each = LagWatch(asyncio.get_running_loop(), 0.2)
        each.start()
        each.stop()
        each.stop()
    assert set(os.listdir("/proc/self/fd")) == before
    # Those of earlier tests may end meanwhile.
    await until(lambda: set(os.listdir("/proc/self/task")) <= threads)


# -- Exceptions and warnings that go nowhere


@pytest.fixture
async def handled() -> Any:
    asyncio.get_running_loop().set_exception_handler(hygiene.log_exception)
    yield
    asyncio.get_running_loop().set_exception_handler(None)


async def fail(text: str = "nobody listens") -> None:
    raise LookupError(text)


async def test_an_exception_that_nobody_retrieves_is_told_once(
    handled: None, heard: pytest.LogCaptureFixture
) -> None:
    for number in range(20):
        task = asyncio.create_task(fail(str(number)), name="the task")
        await asyncio.wait([task])
        del task
    gc.collect()
    (record,) = heard.records
    assert "in the event loop: Task exception was never retrieved" in record.getMessage()
    assert "name='the task'" in record.getMessage()
    assert record.exc_info is not None
    assert record.levelname == "ERROR"


async def test_exceptions_of_different_places_are_different(
    handled: None, heard: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(int, "x")
    await until(lambda: heard.records)
    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    del task
    gc.collect()
    assert len(heard.records) == 2


async def test_a_message_without_an_exception_is_told_with_its_facts(
    heard: pytest.LogCaptureFixture,
) -> None:
    hygiene.log_exception(asyncio.get_running_loop(), {"message": "odd", "handle": 5})
    assert heard.records[0].getMessage() == "in the event loop: odd (handle=5)"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = hygiene.log_warning
        yield


def test_a_coroutine_that_was_never_awaited_is_told_once(
    shown: None, heard: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        fail()  # type: ignore[unused-coroutine]
        gc.collect()
    (record,) = heard.records
    assert "RuntimeWarning: coroutine 'fail' was never awaited" in record.getMessage()
    assert __file__ in record.getMessage()


@pytest.fixture
def taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    hygiene.take_over()


class Brittle:
    def __del__(self) -> None:
        raise LookupError("in pieces")


def test_an_exception_that_cannot_be_raised_is_told_once(
    taken_over: None, heard: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        Brittle()
        gc.collect()
    (record,) = heard.records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert record.exc_info[0] is LookupError
    assert "__del__" in record.getMessage()
    assert "in pieces" not in capfd.readouterr().err


class Nameless:
    def __repr__(self) -> str:
        raise AttributeError("gone already")


def test_what_cannot_say_what_it_is_is_told_by_its_type(heard: pytest.LogCaptureFixture) -> None:
    hygiene.log_unraisable(
        types.SimpleNamespace(exc_value=LookupError(), err_msg=None, object=Nameless())
    )
    assert heard.records[0].getMessage() == "Exception ignored in a Nameless"


def test_an_exception_that_ends_a_thread_is_told_once(
    taken_over: None, heard: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(error: type[BaseException]) -> None:
        raise error("no more")

    for error in (OSError, OSError, SystemExit):
        thread = threading.Thread(target=work, args=(error,), name="the worker bee")
        thread.start()
        thread.join()
    (record,) = heard.records
    assert record.getMessage() == "an exception ended the thread 'the worker bee'"
    assert record.exc_info is not None
    assert capfd.readouterr().err == ""


# -- Tasks that are left over


async def stay() -> None:
    await asyncio.sleep(3600)


async def test_tasks_that_are_left_over_are_named_with_the_line_where_they_wait(
    heard: pytest.LogCaptureFixture,
) -> None:
    task = asyncio.create_task(stay(), name="the leftover")
    await asyncio.sleep(0)
    await hygiene.cancel_leftovers()
    assert task.cancelled()
    (record,) = heard.records
    assert "cancelling tasks that were left over: the leftover (" in record.getMessage()
    assert f"{__file__}:{stay.__code__.co_firstlineno + 1}" in record.getMessage()


async def test_of_many_tasks_some_are_named(heard: pytest.LogCaptureFixture) -> None:
    tasks = [asyncio.create_task(stay()) for _ in range(25)]
    await hygiene.cancel_leftovers()
    assert all(task.cancelled() for task in tasks)
    assert heard.records[0].getMessage().endswith(" and 15 more")


async def test_without_leftovers_nothing_is_said(heard: pytest.LogCaptureFixture) -> None:
    await hygiene.cancel_leftovers()
    assert not heard.records


async def test_a_task_that_ignores_its_cancellation_is_named_and_left(
    heard: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hygiene, "CANCEL_GRACE", 0.05)
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(stubborn(), name="the stubborn one")
    await asyncio.sleep(0)
    await hygiene.cancel_leftovers()
    assert (
        "tasks that ignore their cancellation: the stubborn one" in heard.records[-1].getMessage()
    )
    release.set()
    await task
