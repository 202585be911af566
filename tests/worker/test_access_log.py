"""Lines of the access log: what they say, when they are written, and that nobody waits."""

import asyncio
import logging
import os
import re
import select

import pytest
from tests.worker.waiting import until

from asgictl_worker import access_log
from asgictl_worker.access_log import FLUSH_LINES, AccessLog, LoggedAccess, open_access_log
from asgictl_worker.outlet import Outlet
from asgictl_worker.settings import WorkerSettings

REQUEST = ("10.0.0.7:52100", "GET", b"/a?b", "1.1", 200, 12, 0.000412)


@pytest.fixture
def pipe():
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    yield ends
    for end in ends:
        os.close(end)


def read(pipe) -> str:
    """Return what is in a pipe."""
    text = b""
    while True:
        try:
            part = os.read(pipe[0], 1_000_000)
        except BlockingIOError:
            return text.decode()
        if not part:
            return text.decode()
        text += part


@pytest.fixture
async def log(pipe):
    outlet = Outlet(pipe[1])
    log = AccessLog(asyncio.get_running_loop(), outlet)
    yield log
    log.flush()
    outlet.close()


async def test_a_line_says_who_asked_for_what_and_what_became_of_it(log, pipe):
    log.request(*REQUEST)
    log.flush()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO  asgictl.access "
        rf"\[{os.getpid()}\] "
        r'10\.0\.0\.7:52100 "GET /a\?b HTTP/1\.1" 200 12 412us\n',
        read(pipe),
    )


async def test_lines_are_written_soon_without_being_asked(log, pipe):
    log.request(*REQUEST)
    assert read(pipe) == ""
    text = ""

    def arrived() -> bool:
        nonlocal text
        text += read(pipe)
        return bool(text)

    await until(arrived)
    assert text.count("\n") == 1


async def test_many_lines_are_written_at_once_and_do_not_wait_for_the_timer(log, pipe):
    for _ in range(FLUSH_LINES):
        log.request(*REQUEST)
    assert read(pipe).count("\n") == FLUSH_LINES


async def test_the_second_is_noticed(log, pipe, monkeypatch):
    now = 1_795_383_000.0
    monkeypatch.setattr(access_log.time, "time", lambda: now)
    log.request(*REQUEST)
    log.flush()
    now += 1
    log.request(*REQUEST)
    log.flush()
    first, second = read(pipe).splitlines()
    assert first[:19] != second[:19]


async def test_writes_are_whole_lines_that_a_pipe_takes_in_one_piece(pipe):
    written = []

    class Keeping:
        def write(self, lines: bytes) -> None:
            written.append(lines)

    log = AccessLog(asyncio.get_running_loop(), Keeping())
    for number in range(FLUSH_LINES):
        log.request("10.0.0.7:52100", "GET", b"/%d" % number, "1.1", 200, 0, 0.0)
    assert len(written) > 1
    assert all(lines.endswith(b"\n") and len(lines) <= select.PIPE_BUF for lines in written)
    assert b"".join(written).count(b"\n") == FLUSH_LINES


async def test_a_line_longer_than_a_pipe_takes_at_once_is_written_all_the_same(log, pipe):
    log.request("10.0.0.7:52100", "GET", b"/" + b"x" * (2 * select.PIPE_BUF), "1.1", 200, 0, 0.0)
    log.request(*REQUEST)
    log.flush()
    lines = read(pipe).splitlines()
    assert len(lines) == 2
    assert len(lines[0]) > 2 * select.PIPE_BUF


async def test_a_pipe_that_nobody_reads_costs_lines_and_no_time(pipe):
    outlet = Outlet(pipe[1])
    log = AccessLog(asyncio.get_running_loop(), outlet)
    for _ in range(20 * FLUSH_LINES):
        log.request(*REQUEST)
    assert outlet.dropped
    outlet.close()


async def test_a_closed_descriptor_swallows_lines():
    end = os.dup(1)
    os.close(end)
    log = AccessLog(asyncio.get_running_loop(), Outlet(end))
    log.request(*REQUEST)
    log.flush(0.1)


async def test_a_reader_that_has_left_is_no_error():
    reading, writing = os.pipe()
    outlet = Outlet(writing)
    os.close(reading)
    log = AccessLog(asyncio.get_running_loop(), outlet)
    log.request(*REQUEST)
    log.flush()
    outlet.close()
    os.close(writing)


def test_configured_logging_gets_records_as_uvicorns_formatter_reads_them(caplog):
    caplog.set_level(logging.INFO, "asgictl.access")
    LoggedAccess().request(*REQUEST)
    [record] = caplog.records
    assert record.args == ("10.0.0.7:52100", "GET", "/a?b", "1.1", 200)
    assert record.getMessage() == '10.0.0.7:52100 - "GET /a?b HTTP/1.1" 200'
    assert (record.size, record.duration) == (12, 0.000412)


async def test_the_settings_choose():
    loop = asyncio.get_running_loop()
    assert open_access_log(WorkerSettings(access_log=False), loop) is None
    assert type(open_access_log(WorkerSettings(), loop)) is AccessLog
    assert type(open_access_log(WorkerSettings(log_config="x.json"), loop)) is LoggedAccess
