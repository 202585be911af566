"""Ids of requests: taken or made, and everywhere where somebody looks for them."""

import asyncio
import logging
import re
from typing import Any

import pytest
from tests.worker.http.wire import GET, Peer
from tests.worker.waiting import until
from websockets.asyncio.client import connect

from asgictl_worker import logs, request_ids
from asgictl_worker.access_format import compile_format
from asgictl_worker.access_log import FormattedAccess, open_access_log
from asgictl_worker.errors import BadSetting
from asgictl_worker.identified import IdentifiedConnection
from asgictl_worker.proxy import ProxyTrust
from asgictl_worker.request_ids import RequestIdFilter, RequestIds
from asgictl_worker.server import Server
from asgictl_worker.settings import WorkerSettings

MADE = re.compile(r"[0-9a-f]{20}-[0-9a-f]+")
NAME = b"x-request-id"


def ids(trusted: str = "10.0.0.7") -> RequestIds:
    return RequestIds("X-Request-ID", ProxyTrust(trusted))


class Identified(Peer):
    """A peer whose requests get ids, and an access log that keeps them."""

    def __init__(self, app: Any, *, trusted: str = "10.0.0.7", **how: Any) -> None:
        super().__init__(request_ids.entered(app), **how)
        self.ids: list[str] = []
        self.service.access_log = self  # type: ignore[assignment]
        self.service.connections.clear()
        self.connection = IdentifiedConnection(ids(trusted), self.service)
        self.connection.connection_made(self.transport)

    def request(self, *entry: Any) -> None:
        self.ids.append(entry[-1].details().request_id)

    def answered(self) -> list[str]:
        """Return the ids in the responses."""
        return re.findall(r"x-request-id: (.*?)\r\n", self.written.decode(), re.IGNORECASE)

    async def ask(self, *headers: bytes, count: int = 1) -> str:
        """Send one request and return the id in its response."""
        self.send(GET[:-2] + b"".join(b"%b\r\n" % header for header in headers) + b"\r\n")
        await until(lambda: len(self.ids) == count)
        return self.answered()[-1]


class App:
    """Notes what it sees."""

    def __init__(self, *headers: tuple[bytes, bytes]) -> None:
        self.headers = list(headers)
        self.scopes: list[Any] = []
        self.seen: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        self.seen.append(request_ids.current())
        await asyncio.sleep(0)
        self.seen.append(request_ids.current())
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await send({"type": "http.response.body", "body": b"hello"})


# -- Taking and making


def test_made_ids_differ_in_a_worker_and_between_workers() -> None:
    one, other = ids(), ids()
    made = [each.make() for each in (one, other) for _ in range(1000)]
    assert len(set(made)) == 2000
    assert all(map(MADE.fullmatch, made))


@pytest.mark.parametrize(
    "value",
    [
        b"a",
        b"123e4567-e89b-12d3-a456-426614174000",
        b"Root=1-67891233-abcdef012345678912345678;Self=1-67",
        b"dGVzdA==",
        b"x" * 200,
    ],
)
def test_a_sane_id_of_a_trusted_peer_is_taken(value: bytes) -> None:
    headers = [(b"host", b"x"), (NAME, value)]
    assert ids().take(headers, "10.0.0.7") == value.decode()
    assert ids("unix:").take(headers, None) == value.decode()


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b""],
        [b"a b"],
        [b'a"b'],
        [b"a,b"],
        [b"<b>"],
        [b"$(id)"],
        [b"a\\b"],
        [b"a\tb"],
        [b"\xe4"],
        [b"x" * 201],
        [b"a", b"b"],
        [b"a", b"a"],
    ],
)
def test_anything_else_is_replaced(values: list[bytes]) -> None:
    headers = [(NAME, value) for value in values]
    assert MADE.fullmatch(ids().take(headers, "10.0.0.7"))


def test_an_id_of_anybody_else_is_not_taken() -> None:
    assert MADE.fullmatch(ids().take([(NAME, b"a")], "203.0.113.7"))
    assert MADE.fullmatch(ids().take([(NAME, b"a")], None))


@pytest.mark.parametrize("name", ["\r", "x y", "x:", "x:y", "connection", "ä"])
def test_a_name_that_no_header_can_have_is_refused(name: str) -> None:
    with pytest.raises(BadSetting, match=r"request_id_header cannot be .* the name of a header"):
        WorkerSettings(request_id_header=name)


# -- Where it is seen


async def test_the_id_is_in_the_request_the_response_the_context_and_the_log() -> None:
    app = App()
    peer = Identified(app)
    identity = await peer.ask(b"X-Request-ID: from-outside")
    assert identity == "from-outside"
    [scope] = app.scopes
    assert [value for name, value in scope["headers"] if name == NAME] == [b"from-outside"]
    assert scope["state"]["request_id"] == "from-outside"
    assert app.seen == ["from-outside", "from-outside"]
    assert peer.ids == ["from-outside"]
    assert request_ids.current() == ""


async def test_an_id_that_was_not_believed_is_not_shown_to_anybody() -> None:
    app = App()
    peer = Identified(app, trusted="")
    identity = await peer.ask(b"X-Request-ID: forged")
    assert MADE.fullmatch(identity)
    [scope] = app.scopes
    assert [value for name, value in scope["headers"] if name == NAME] == [identity.encode()]
    assert b"forged" not in repr(scope).encode()


async def test_every_request_of_a_connection_has_its_own() -> None:
    app = App()
    peer = Identified(app)
    for number in range(4):
        # The same bytes again: they are known before they are parsed.
        await peer.ask(count=number + 1)
    found = peer.answered()
    assert len(set(found)) == 4
    assert found == peer.ids
    assert found == [scope["state"]["request_id"] for scope in app.scopes]
    assert all(sum(name == NAME for name, _ in scope["headers"]) == 1 for scope in app.scopes)


async def test_pipelined_requests_keep_theirs() -> None:
    peer = Identified(App())
    peer.send(b"".join(GET[:-2] + b"x-request-id: n%d\r\n\r\n" % number for number in range(5)))
    await until(lambda: len(peer.ids) == 5)
    assert peer.answered() == peer.ids == [f"n{number}" for number in range(5)]


async def test_the_applications_own_header_stays() -> None:
    peer = Identified(App((b"X-Request-Id", b"its-own")))
    await peer.ask(b"x-request-id: ours")
    assert peer.answered() == ["its-own"]
    assert peer.ids == ["ours"]


async def test_the_state_of_the_lifespan_is_kept_beside_it() -> None:
    app = App()
    peer = Identified(app, state={"pool": 1})
    identity = await peer.ask()
    assert app.scopes[0]["state"] == {"pool": 1, "request_id": identity}
    assert peer.service.state == {"pool": 1}


async def test_a_request_that_is_refused_has_one_too() -> None:
    peer = Identified(App())
    await peer.ask()
    peer.send(b"nonsense\r\n\r\n")
    await until(lambda: len(peer.ids) == 2)
    assert b"HTTP/1.1 400" in peer.written
    assert peer.answered() == peer.ids
    assert len(set(peer.ids)) == 2


async def test_an_error_of_the_application_is_logged_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("oops")

    peer = Identified(broken)
    wanted = RequestIdFilter()
    caplog.handler.addFilter(wanted)
    identity = await peer.ask(b"x-request-id: a1")
    caplog.handler.removeFilter(wanted)
    assert identity == "a1"
    [record] = caplog.records
    assert record.getMessage().endswith(" request_id=a1")
    assert record.request_id == "a1"


async def test_a_websocket_has_one(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["state"]["request_id"], request_ids.current()))
        await receive()
        if scope["path"] == "/broken":
            raise RuntimeError("oops")
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "hello"})
        await receive()

    settings = WorkerSettings(access_log=False, lifespan="off", request_id_header="X-Request-ID")
    server = Server(app, settings)
    task = asyncio.create_task(server.serve(port=0))
    await server.started.wait()
    port = server.sockets[0].getsockname()[1]
    headers = {"X-Request-ID": "w1"}
    async with connect(f"ws://127.0.0.1:{port}/", additional_headers=headers) as client:
        assert await client.recv() == "hello"
        assert client.response is not None
        assert client.response.headers["x-request-id"] == "w1"
    with pytest.raises(Exception, match="500"):
        await connect(f"ws://127.0.0.1:{port}/broken", additional_headers=headers)
    server.stop()
    await task
    assert seen == [("w1", "w1")] * 2
    assert any(record.getMessage().endswith("request_id=w1") for record in caplog.records)


# -- In logs of others


def test_the_filter_gives_every_record_the_attribute() -> None:
    record = logging.makeLogRecord({"msg": "x"})
    assert RequestIdFilter().filter(record)
    assert record.request_id == "-"
    brought = logging.makeLogRecord({"msg": "x", "request_id": "b1"})
    assert RequestIdFilter().filter(brought)
    assert brought.request_id == "b1"


async def test_the_usual_line_ends_with_the_id() -> None:
    loop = asyncio.get_running_loop()
    found = open_access_log(WorkerSettings(request_id_header="x-request-id"), loop)
    assert isinstance(found, FormattedAccess)
    assert found._with_prefix
    assert found._format.needs_details
    assert compile_format("%(request_id)s").needs_details


async def test_a_record_in_json_has_it() -> None:
    text = ""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal text
        text = logs.JSONFormatter().format(logging.makeLogRecord({"msg": "x"}))
        await App()(scope, receive, send)

    await Identified(app).ask(b"x-request-id: j1")
    assert '"request_id":"j1"' in text
    assert "request_id" not in logs.JSONFormatter().format(logging.makeLogRecord({"msg": "x"}))
