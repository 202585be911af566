"""Lines of the access log: what they say, when they are written, and that nobody waits."""

import asyncio
import json
import logging
import os
import re
import select

import pytest
from tests.worker.waiting import until

from asgictl_worker import access_log, logs
from asgictl_worker.access_format import DEFAULT, Details, compile_format
from asgictl_worker.access_log import (
    FLUSH_LINES,
    AccessLog,
    ColoredAccess,
    FormattedAccess,
    JSONAccess,
    LoggedAccess,
    open_access_log,
)
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


def test_configured_logging_gets_the_operators_format_with_all_fields(caplog):
    caplog.set_level(logging.INFO, "asgictl.access")
    LoggedAccess(compile_format("%(m)s %(f)s %(request_id)s")).request(*REQUEST, EXCHANGE)
    [record] = caplog.records
    assert record.getMessage() == "GET - r-1"
    assert (record.client, record.method, record.target) == ("10.0.0.7:52100", "GET", "/a?b")
    assert (record.status, record.http_version, record.size) == (200, "1.1", 12)
    assert (record.duration, record.request_id) == (0.000412, "r-1")


def test_configured_logging_that_wants_no_lines_gets_none(caplog):
    caplog.set_level(logging.WARNING, "asgictl.access")
    LoggedAccess().request(*REQUEST)
    assert not caplog.records


async def test_the_settings_choose():
    loop = asyncio.get_running_loop()

    def chosen(**settings):
        return open_access_log(WorkerSettings(**settings), loop)

    assert chosen(access_log=False) is None
    assert type(chosen()) is AccessLog
    assert type(chosen(log_config="x.json")) is LoggedAccess
    assert chosen(log_config="x.json", access_log_format="%(s)s")._format is not None
    assert type(chosen(log_format="json")) is JSONAccess
    assert type(chosen(access_log_format="%(s)s")) is FormattedAccess
    assert not chosen(access_log_format="%(s)s")._with_prefix
    assert chosen(request_id_header="x-id")._with_prefix


async def test_on_a_terminal_what_went_wrong_catches_the_eye(pipe):
    loop = asyncio.get_running_loop()
    assert type(open_access_log(WorkerSettings(use_colors=True), loop)) is ColoredAccess
    assert type(open_access_log(WorkerSettings(use_colors=False), loop)) is AccessLog
    log = ColoredAccess(loop, Outlet(pipe[1]))
    for status in (200, 503, 101):
        log.request(*REQUEST[:4], status, *REQUEST[5:])
    log.request("10.0.0.7:1", "GET", b'/"', "1.1", 404, 0, 0.0)
    log.flush()
    text = read(pipe)
    assert " \x1b[32m200\x1b[0m 12 412us\n" in text
    assert " \x1b[31m503\x1b[0m 12" in text
    assert " 101\x1b[0m 12" in text
    assert '"\x1b[1mGET /\\x22 HTTP/1.1\x1b[0m" \x1b[33m404' in text
    plain = re.sub("\x1b\\[[0-9]*m", "", text).splitlines()
    assert plain[0].endswith('10.0.0.7:52100 "GET /a?b HTTP/1.1" 200 12 412us')


# -- The operator's format, and JSON


class Exchange:
    """Knows what only some formats ask for."""

    asked = 0

    def details(self):
        self.asked += 1
        return Details([(b"user-agent", b'evil"\x1b')], [(b"x-cache", b"hit")], "r-1")


EXCHANGE = Exchange()


def formatted(pipe, text, **how):
    return FormattedAccess(asyncio.get_running_loop(), Outlet(pipe[1]), compile_format(text), **how)


async def test_a_line_is_what_the_format_says_and_nothing_else(pipe):
    log = formatted(pipe, '%(h)s "%(r)s" %(s)s %(b)s "%(a)s" %({x-cache}o)s %(request_id)s')
    log.request(*REQUEST, EXCHANGE)
    log.request(*REQUEST)
    log.flush()
    start = '10.0.0.7 "GET /a?b HTTP/1.1" 200 12 '
    assert read(pipe) == f'{start}"evil\\x22\\x1b" hit r-1\n{start}"-" - -\n'


async def test_details_are_asked_for_only_if_the_format_has_them(pipe):
    exchange = Exchange()
    log = formatted(pipe, "%(h)s")
    log.request(*REQUEST, exchange)
    log.flush()
    assert not exchange.asked


async def test_the_time_is_written_as_apache_does(pipe):
    log = formatted(pipe, "%(t)s")
    log.request(*REQUEST)
    log.flush()
    assert re.fullmatch(r"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]\n", read(pipe))


async def test_a_prefix_makes_it_a_line_like_ours(pipe):
    log = formatted(pipe, f"{DEFAULT} %(request_id)s", with_prefix=True)
    log.request(*REQUEST, EXCHANGE)
    log.flush()
    assert re.fullmatch(
        r"\S+ \S+ INFO  asgictl.access \[\d+\] "
        r'10\.0\.0\.7:52100 "GET /a\?b HTTP/1\.1" 200 12 412us r-1\n',
        read(pipe),
    )


def in_json(pipe, text='"%(r)s" %(s)s'):
    outlet = Outlet(pipe[1], logs.dropped_as_json)
    return JSONAccess(asyncio.get_running_loop(), outlet, compile_format(text))


async def test_an_object_has_the_facts_as_fields(pipe):
    log = in_json(pipe)
    log.request(*REQUEST)
    log.request(*REQUEST, EXCHANGE)
    log.flush()
    first, second = map(json.loads, read(pipe).splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "INFO",
        "logger": "asgictl.access",
        "pid": os.getpid(),
        "message": '"GET /a?b HTTP/1.1" 200',
        "client": "10.0.0.7",
        "client_port": 52100,
        "method": "GET",
        "path": "/a",
        "query": "b",
        "http_version": "1.1",
        "status": 200,
        "size": 12,
        "duration": 0.000412,
    }
    assert second["request_id"] == "r-1"


async def test_the_message_of_an_object_is_the_operators_format(pipe):
    log = in_json(pipe, "%(m)s %(a)s")
    log.request(*REQUEST, EXCHANGE)
    log.flush()
    assert json.loads(read(pipe))["message"] == "GET evil\\x22\\x1b"


@pytest.mark.parametrize(
    ("client", "fields"),
    [("unix", (None, None)), ("::1:80", ("::1", 80)), ("1.2.3.4:0", ("1.2.3.4", 0))],
)
async def test_an_object_says_where_the_client_is(client, fields, pipe):
    log = in_json(pipe)
    log.request(client, *REQUEST[1:])
    log.flush()
    found = json.loads(read(pipe))
    assert (found["client"], found["client_port"]) == fields


@pytest.mark.parametrize("make", ["usual", "formatted", "json"])
async def test_a_target_cannot_forge_fields_or_lines(make, pipe):
    target = b'/" 200 0 1us\\'
    if make == "usual":
        log = AccessLog(asyncio.get_running_loop(), Outlet(pipe[1]))
    else:
        log = formatted(pipe, '"%(r)s" %(s)s') if make == "formatted" else in_json(pipe)
    log.request("10.0.0.7:1", "GET", target, "1.1", 404, 0, 0.0)
    log.request(*REQUEST)
    log.flush()
    lines = read(pipe).splitlines()
    assert len(lines) == 2
    if make == "json":
        assert json.loads(lines[0])["path"] == target.decode()
        assert json.loads(lines[0])["status"] == 404
    else:
        assert lines[0].count('"') == 2
        assert "/\\x22 200 0 1us" in lines[0]


@pytest.mark.parametrize("make", [formatted, in_json])
async def test_a_pipe_that_nobody_reads_costs_no_time_in_other_formats_either(make, pipe):
    log = make(pipe, "%(h)s %({user-agent}i)s %(r)s and so on, until it is rather long")
    while not log._outlet.dropped:
        log.request(*REQUEST, EXCHANGE)
    lost = log._outlet.dropped
    seen = ""
    while not seen.endswith("took them\n") and not seen.endswith('took them"}\n'):
        assert len(seen) < 1_000_000
        seen += read(pipe)
        log.flush()
    assert f"{lost} log lines were dropped" in seen
    if make is in_json:
        assert all(map(json.loads, seen.splitlines()))


@pytest.mark.parametrize("make", [formatted, in_json])
async def test_a_closed_descriptor_swallows_other_formats_too(make):
    end = os.dup(1)
    os.close(end)
    log = make((0, end), "%(h)s")
    log.request(*REQUEST)
    log.flush(0.1)
