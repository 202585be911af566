"""What a worker counts, and what its supervisor reads of it."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.worker.http.wire import GET, HELLO, Peer, echo, hello
from tests.worker.waiting import until
from tests.worker.websocket.conversation import Conversation

from asgictl_worker import board
from asgictl_worker import counters as module
from asgictl_worker.counters import (
    BOUNDS,
    BUSY,
    CELLS,
    CLASSES,
    METHOD_CELLS,
    METHODS,
    ROW,
    ROWS,
    START,
    STATUS_CELLS,
    STEPS,
    Counters,
    Row,
    Rows,
)
from asgictl_worker.http import cycle, request


@pytest.fixture
def memory() -> Iterator[int]:
    fd = board.create()
    yield fd
    os.close(fd)


def counted(counters: Counters) -> dict[tuple[str, str], int]:
    """Return how many requests there were of each method and class of status."""
    found = {}
    for row, method in enumerate(METHODS):
        for column, status in enumerate(CLASSES):
            begin = (row * len(CLASSES) + column) * STEPS
            if count := sum(counters.cells[begin : begin + STEPS]):
                found[method, status] = count
    return found


# -- In memory that two processes share


def test_the_supervisor_reads_what_a_worker_has_counted(memory: int) -> None:
    rows, counters = Rows(memory), Counters()
    counters.share(memory, 7)
    counters.request("POST", 201, 0.3)
    counters.connections_total = 5
    counters.websockets, counters.websockets_total = 1, 2
    counters.messages_received, counters.messages_sent = 30, 40
    counters.bytes_received, counters.bytes_sent = 5000, 60_000_000_000
    counters.in_flight = 3
    counters.errors_total = 4
    counters.tick(0.25, 9)
    row = rows.read(7)
    assert row is not None
    assert row == Row(
        cells=tuple(counters.cells),
        seconds=0.3,
        ticked=row.ticked,
        lag=0.25,
        busy=row.busy,
        in_flight=3,
        connections=9,
        websockets=1,
        connections_total=5,
        websockets_total=2,
        messages_received=30,
        messages_sent=40,
        bytes_received=5000,
        bytes_sent=60_000_000_000,
        errors=4,
    )


def test_requests_are_there_before_the_next_tick(memory: int) -> None:
    rows, counters = Rows(memory), Counters()
    counters.share(memory, 7)
    counters.request("GET", 200, 0.001)
    row = rows.read(7)
    assert row is not None
    assert sum(row.cells) == 1


def test_a_row_is_read_as_that_of_its_worker_only(memory: int) -> None:
    rows, counters = Rows(memory), Counters()
    assert rows.read(3) is None, "nobody has begun to count"
    counters.share(memory, 3)
    counters.request("GET", 200, 0.001)
    assert rows.read(3 + ROWS) is None
    heir = Counters()
    heir.share(memory, 3 + ROWS)
    assert rows.read(3) is None
    row = rows.read(3 + ROWS)
    assert row is not None
    assert not any(row.cells)


def test_the_memory_of_a_worker_that_has_ended_is_given_back(memory: int) -> None:
    rows = Rows(memory)
    empty = os.fstat(memory).st_blocks
    counters = Counters()
    counters.share(memory, 3)
    assert os.fstat(memory).st_blocks > empty
    rows.clear(3)
    assert os.fstat(memory).st_blocks == empty
    assert rows.read(3) is None


def test_memory_without_rows_is_left_alone(memory: int) -> None:
    counters = Counters()
    counters.share(memory, 3)
    counters.request("GET", 200, 0.001)
    assert os.fstat(memory).st_size == board.SIZE
    assert counted(counters) == {("GET", "2xx"): 1}


def test_rows_and_board_do_not_overlap() -> None:
    assert board.SIZE <= START
    assert Counters().cells.nbytes + 256 <= ROW


# -- What is counted


@given(
    st.sampled_from([*METHODS, "PURGE", "-"]),
    st.integers(100, 999),
    st.floats(0.0, 100.0) | st.sampled_from(BOUNDS),
)
def test_every_request_has_its_cell(method: str, status: int, seconds: float) -> None:
    counters = Counters()
    counters.request(method, status, seconds)
    kind = f"{status // 100}xx" if status < 600 else "other"
    assert counted(counters) == {(method if method in METHODS else "other", kind): 1}
    (step,) = (index % STEPS for index in range(CELLS) if counters.cells[index])
    assert step == sum(seconds > bound for bound in BOUNDS)
    assert counters.seconds == seconds


def test_the_hot_path_knows_a_cell_for_every_method_that_parsers_let_pass() -> None:
    assert {*request.METHODS.split(), "-"} == set(cycle._METHOD_CELLS)


async def test_http_is_counted_by_method_and_status() -> None:
    peer = Peer(echo)
    counters = peer.service.counters
    for method in (b"GET", b"POST", b"PURGE"):
        peer.send(GET.replace(b"GET", method))
        await peer.idle()
    peer.send(b"nonsense\r\n\r\n")
    await peer.idle()
    expected = {("GET", "2xx"): 1, ("POST", "2xx"): 1, ("other", "2xx"): 1, ("other", "4xx"): 1}
    assert counted(counters) == expected
    assert 0.0 < counters.seconds < 60.0
    assert counters.bytes_sent == len(peer.written)
    assert counters.bytes_received == 3 * len(GET) + 3 + len(b"nonsense\r\n\r\n")
    assert counters.connections_total == 1


async def test_the_answer_to_an_exception_is_counted() -> None:
    async def app(scope, receive, send):
        raise ValueError

    peer = Peer(app)
    peer.send(GET)
    await peer.idle()
    assert counted(peer.service.counters) == {("GET", "5xx"): 1}


async def test_a_client_that_leaves_is_counted_once() -> None:
    async def app(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass

    peer = Peer(app)
    peer.send(GET)
    peer.lose()
    await peer.idle()
    assert counted(peer.service.counters) == {("GET", "4xx"): 1}


async def test_a_response_that_is_cut_is_counted_once() -> None:
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        raise ValueError

    peer = Peer(app)
    peer.send(GET)
    await peer.idle()
    peer.lose()
    assert counted(peer.service.counters) == {("GET", "2xx"): 1}


async def test_requests_are_counted_without_an_access_log() -> None:
    peer = Peer(hello)
    peer.service.access_log = None
    peer.send(GET)
    await peer.written_is(HELLO)
    await peer.idle()
    assert counted(peer.service.counters) == {("GET", "2xx"): 1}
    assert peer.service.counters.seconds > 0.0


async def test_websockets_and_their_messages_are_counted() -> None:
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
            await send({"type": "websocket.send", "bytes": b"x"})

    talk = await Conversation(app).open()
    counters = talk.service.counters
    assert (counters.websockets, counters.websockets_total) == (1, 1)
    assert counted(counters) == {("GET", "1xx"): 1}
    before = counters.bytes_sent
    for _ in range(3):
        talk.cycle.data_received(b"\x81\x82\x00\x00\x00\x00hi")
    await until(lambda: counters.messages_sent == 6)
    talk.cycle.connection_lost(None)
    assert (counters.messages_received, counters.websockets) == (3, 0)
    assert counters.bytes_sent - before == 3 * (4 + 3)


# -- A worker that is too busy to time every request


def busy(times_all: bool = False) -> Counters:
    """Return the counters of a worker that had much to do before the last tick."""
    counters = Counters()
    counters.times_all = times_all
    for _ in range(BUSY + 1):
        counters.request("GET", 200, 0.0)
    counters.tick(0.0, 0)
    return counters


def test_only_a_busy_worker_spares_requests_and_only_if_nobody_wants_their_times() -> None:
    assert not Counters().is_sparing
    assert busy().is_sparing
    assert not busy(times_all=True).is_sparing
    counters = busy()
    counters.spared = 9
    for _ in range(BUSY):
        counters.request("GET", 200, 0.0)
    counters.tick(0.0, 0)
    assert (counters.is_sparing, counters.spared) == (False, 0)


def test_a_request_without_a_time_counts_as_the_last_one_of_its_kind() -> None:
    counters = Counters()
    counters.request("GET", 200, 0.3)
    counters.request("GET", 404, 0.03)
    for status in (201, 206, 404):
        counters.request("GET", status, None)
    assert counters.requests_total == 5
    counters.tick(0.0, 0)
    found = {
        cell - METHOD_CELLS["GET"]: count for cell, count in enumerate(counters.cells) if count
    }
    slow, fast = (sum(seconds > bound for bound in BOUNDS) for seconds in (0.3, 0.03))
    assert found == {STATUS_CELLS[200] + slow: 3, STATUS_CELLS[404] + fast: 2}


@given(st.lists(st.none() | st.integers(0, 1000), max_size=50))
def test_the_time_of_requests_without_one_is_the_mean_of_the_others(
    times: list[int | None],
) -> None:
    counters = Counters()
    known = [number / 64 for number in times if number is not None]
    for number in times:
        counters.request("GET", 200, None if number is None else number / 64)
    counters.tick(0.0, 0)
    assert counters.requests_total == len(times)
    mean = sum(known) / len(known) if known else 0.0
    assert counters.seconds == pytest.approx(mean * len(times))
    # If there was none, the next one stands for them.
    counters.request("GET", 200, 0.5)
    counters.tick(0.0, 0)
    expected = mean * len(times) + 0.5 if known else 0.5 * (len(times) + 1)
    assert counters.seconds == pytest.approx(expected)


@pytest.mark.parametrize("access_log", [False, True])
async def test_all_requests_of_a_busy_worker_are_counted(access_log: bool) -> None:
    peer = Peer(hello)
    counters = peer.service.counters
    if not access_log:
        peer.service.access_log = None
        counters.times_all = False
    timed = 0
    for tick in range(3):
        for _ in range(BUSY + 100):
            peer.send(GET)
        await until(lambda tick=tick: counters.requests_total == (tick + 1) * (BUSY + 100))
        timed = counters.timed
        counters.tick(0.0, 1)
    assert counted(counters) == {("GET", "2xx"): 3 * (BUSY + 100)}
    # One of 8.5 is expected: that it is half of them has no chance.
    assert timed == BUSY + 100 if access_log else 0 < timed < (BUSY + 100) / 2


async def test_a_request_that_is_spared_and_refused_has_no_time_of_its_own() -> None:
    async def app(scope, receive, send):
        await receive()
        await receive()

    peer = Peer(app)
    peer.service.access_log = None
    counters = peer.service.counters
    counters.request("GET", 200, 0.0)
    counters.tick(0.0, 1)
    counters.spared = 1
    peer.send(GET)
    peer.connection._cycle.time_out()
    await peer.idle()
    counters.tick(0.0, 1)
    assert (counters.requests_total, counters.timed) == (2, 0)


# -- How busy it is


def test_the_lag_is_the_worst_of_the_last_second(memory: int) -> None:
    rows, counters = Rows(memory), Counters()
    counters.share(memory, 1)
    seen = []
    for lateness in (0.5, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0):
        counters.tick(lateness, 0)
        row = rows.read(1)
        assert row is not None
        seen.append(row.lag)
    assert seen == [0.5] * 5 + [0.1, 0.1]


@pytest.mark.parametrize(
    ("worked", "lateness", "busy"),
    [(0.25, 0.0, 0.25), (0.25, 0.5, 0.5), (0.75, 0.5, 0.75), (0.0, 0.0, 0.0), (0.0, 7.0, 1.0)],
)
def test_a_loop_is_busy_when_it_works_and_when_it_is_blocked(
    memory: int, worked: float, lateness: float, busy: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"monotonic": 100.0, "thread_time": 5.0}
    for name in clock:
        monkeypatch.setattr(module, name, lambda name=name: clock[name])
    rows, counters = Rows(memory), Counters()
    counters.share(memory, 1)
    clock["monotonic"] += 1.0
    clock["thread_time"] += worked
    counters.tick(lateness, 0)
    row = rows.read(1)
    assert row is not None
    assert (row.ticked, row.busy) == (101.0, busy)
