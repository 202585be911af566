"""The admin addresses without a network: what is answered, and what the supervisor is asked."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.supervisor.operate.test_metrics import LISTENERS, snapshot
from tests.worker.waiting import until

from asgictl.operate import admin
from asgictl.operate.admin import Application, Fleet, Line, Silent, unready
from asgictl.operate.usage import Usage


class House:
    """A supervisor that answers as the test says."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.silent: Exception | None = None
        self.status = dict(snapshot().status)

    async def ask(self, verb: str) -> dict[str, Any]:
        self.asked.append(verb)
        if self.silent is not None:
            raise self.silent
        await asyncio.sleep(0)
        return self.status if verb == "status" else LISTENERS


class FakeMeter:
    def look(self, pids: Any) -> dict[int, Usage]:
        return {pid: Usage(0.5, 2000, 1000) for pid in pids}


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def fleet(house: House) -> Fleet:
    return Fleet(house.ask, FakeMeter())  # type: ignore[arg-type]


async def get(
    fleet: Fleet, path: str, method: str = "GET", accept: bytes = b"", ready_workers: int = 1
) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"accept", accept)] if accept else []
    scope = {"type": "http", "path": path, "method": method, "headers": headers}
    await Application(fleet, ready_workers)(scope, None, send)
    start, body = sent
    assert int(dict(start["headers"])[b"content-length"]) == len(body["body"])
    return start["status"], dict(start["headers"]), body["body"]


async def test_a_supervisor_that_answers_is_alive(fleet: Fleet) -> None:
    assert await get(fleet, "/livez") == (200, *(await get(fleet, "/livez"))[1:2], b"alive\n")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/fleet.json"])
@pytest.mark.parametrize("error", [TimeoutError(), EOFError(), ConnectionResetError()])
async def test_one_that_does_not_is_not(
    fleet: Fleet, house: House, path: str, error: Exception
) -> None:
    house.silent = error
    status, _, body = await get(fleet, path)
    assert status == 503
    assert b"no answer of the supervisor" in body


@pytest.mark.parametrize(
    ("facts", "ready_workers", "problem"),
    [
        ({}, 1, ""),
        ({}, 2, ""),
        ({}, 0, ""),
        ({}, 3, "not ready: 2 workers are, 3 must be"),
        ({"ready": 0}, 1, "not ready: 0 workers are, 1 must be"),
        ({"phase": "booting", "ready": 1}, 1, ""),
        ({"phase": "stopping"}, 1, "not ready: stopping"),
        ({"phase": "stopping"}, 0, "not ready: stopping"),
    ],
)
async def test_ready_is_who_does_not_stop_and_has_enough_workers(
    fleet: Fleet, house: House, facts: dict[str, Any], ready_workers: int, problem: str
) -> None:
    house.status |= facts
    assert unready(house.status, ready_workers) == problem
    status, _, body = await get(fleet, "/readyz", ready_workers=ready_workers)
    assert (status, body.decode().strip()) == ((503, problem) if problem else (200, "ready"))


async def test_metrics_are_written_as_is_asked_for(fleet: Fleet) -> None:
    status, headers, body = await get(fleet, "/metrics")
    assert (status, b"asgictl_workers_ready 2.0\n" in body) == (200, True)
    assert headers[b"content-type"].startswith(b"text/plain; version=0.0.4")
    _, headers, body = await get(fleet, "/metrics", accept=b"application/openmetrics-text")
    assert headers[b"content-type"].startswith(b"application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


async def test_the_page_needs_nothing_from_elsewhere(fleet: Fleet, house: House) -> None:
    status, headers, body = await get(fleet, "/")
    assert (status, headers[b"content-type"]) == (200, b"text/html; charset=utf-8")
    assert b"default-src 'none'" in headers[b"content-security-policy"]
    page = body.decode().replace("http://www.w3.org/2000/svg", "")
    assert "//" not in page.replace("// ", ""), "no address of anybody else"
    assert "innerHTML" not in page, "what comes from applications is text"
    assert not house.asked


async def test_the_page_is_told_everything(fleet: Fleet) -> None:
    task = asyncio.create_task(fleet.measure())
    remembering = asyncio.create_task(fleet.remember())
    await until(lambda: fleet.history and fleet._usage)
    for each in (task, remembering):
        each.cancel()
    fleet._looked = float("-inf")
    status, headers, body = await get(fleet, "/fleet.json")
    assert (status, headers[b"content-type"]) == (200, b"application/json")
    found = json.loads(body)
    assert found["status"]["ready"] == 2
    assert found["listeners"] == LISTENERS
    assert found["usage"]["1001"] == {"cpu": 0.5, "rss": 2000, "pss": 1000}
    assert found["history"][0]["ready"] == 2


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/x", "GET", 404), ("/livez/", "GET", 404), ("/", "POST", 405), ("/metrics", "DELETE", 405)],
)
async def test_other_requests_are_turned_down(
    fleet: Fleet, house: House, path: str, method: str, status: int
) -> None:
    found, headers, body = await get(fleet, path, method)
    assert found == status
    assert (b"allow" in headers) == (status == 405)
    assert b"/readyz" in body or status == 405
    assert not house.asked


async def test_many_who_ask_at_once_are_one_question(
    fleet: Fleet, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "FRESH", 60.0)
    await asyncio.gather(*(get(fleet, "/metrics") for _ in range(20)))
    assert house.asked == ["status", "listeners"]


async def test_nobody_gets_old_news(
    fleet: Fleet, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "FRESH", 0.0)
    await get(fleet, "/livez")
    house.status |= {"phase": "stopping"}
    assert (await get(fleet, "/readyz"))[0] == 503


async def test_the_memory_of_the_past_is_bounded(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "REMEMBER_EVERY", 0.0)
    task = asyncio.create_task(fleet.remember())
    await until(lambda: len(fleet.history) == admin.REMEMBERED)
    first = fleet.history[0]
    await until(lambda: fleet.history[0] is not first)
    assert len(fleet.history) == admin.REMEMBERED
    task.cancel()


# -- The line


@pytest.fixture
async def line() -> AsyncIterator[tuple[Line, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    transport, protocol = await asyncio.get_running_loop().create_connection(Line, sock=ours)
    yield protocol, theirs
    transport.close()
    theirs.close()


async def heard(end: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(end, 4096)


async def test_answers_come_in_order_however_they_are_cut(
    line: tuple[Line, socket.socket],
) -> None:
    protocol, end = line
    asked = [asyncio.create_task(protocol.ask(verb)) for verb in ("status", "listeners")]
    await until(lambda: len(protocol._asked) == 2)
    assert await heard(end) == b'{"verb":"status"}\n{"verb":"listeners"}\n'
    for byte in b'{"a":1}\n{"b":2}\n':
        end.send(bytes([byte]))
        await asyncio.sleep(0)
    assert await asyncio.gather(*asked) == [{"a": 1}, {"b": 2}]


async def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one(
    line: tuple[Line, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, end = line
    monkeypatch.setattr(admin, "PATIENCE", 0.01)
    with pytest.raises(TimeoutError):
        await protocol.ask("status")
    monkeypatch.setattr(admin, "PATIENCE", 20.0)
    asked = asyncio.create_task(protocol.ask("listeners"))
    await until(lambda: len(protocol._asked) == 2)
    end.send(b'{"late":1}\n{"right":2}\n')
    assert await asked == {"right": 2}


async def test_when_the_supervisor_is_gone_nobody_waits(line: tuple[Line, socket.socket]) -> None:
    protocol, end = line
    asked = asyncio.create_task(protocol.ask("status"))
    await until(lambda: protocol._asked)
    end.close()
    with pytest.raises(EOFError):
        await asked
    assert protocol.gone.is_set()
    with pytest.raises(EOFError):
        await protocol.ask("status")


async def test_a_silent_supervisor_is_told_as_such(fleet: Fleet, house: House) -> None:
    house.silent = TimeoutError()
    with pytest.raises(Silent):
        await fleet.look()
