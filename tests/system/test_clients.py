"""Real clients: curl, httpx, websockets, load generators, and the frameworks' own test clients."""

import asyncio
import importlib
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conformance.http1.servers import APPLICATION
from tests.conftest import Serve
from tests.kit import PATIENCE, Project, Server
from websockets.asyncio.client import connect

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

APPS = Path(__file__).parent / "apps"
BIG = 2_000_000
PATIENT = ("--timeout-keep-alive", "60")
"""A client that the machine holds up must not find its connection closed."""

ECHO = """
async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept", "subprotocol": (scope["subprotocols"] or [None])[0]})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})
"""


@pytest.fixture(scope="module", params=["httptools", "h11"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The application of the conformance cases, with either parser; it serves all tests."""
    project = Project(tmp_path_factory.mktemp("clients") / "project")
    project.write(APPLICATION.read_text())
    server = Server(project, "app:app", "--port", "0", "--http", request.param, *PATIENT)
    try:
        yield server.wait_until_ready()
        server.assert_not_logged("ERROR|Traceback")
        server.stop()
    finally:
        server.destroy()


def command(name: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a client to its end; skip the test where it is not installed."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    ended = subprocess.run(
        [program, *arguments], input=stdin, capture_output=True, check=False, timeout=PATIENCE * 2
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return ended


def curl(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return command("curl", "--silent", "--show-error", "--noproxy", "*", *arguments, stdin=stdin)


# -- curl


def test_curl_speaks_either_version(server: Server) -> None:
    for version in ("1.0", "1.1"):
        told = json.loads(curl(f"--http{version}", f"{server.url}/a%20b?c=d").stdout)
        assert (told["http_version"], told["path"], told["query"]) == (version, "/a b", "c=d")
        stream = curl(f"--http{version}", f"{server.url}/stream").stdout
        assert stream == b"one two three"


def test_curl_keeps_its_connection(server: Server) -> None:
    for version in ("--http1.1", "--http1.0"):
        urls = [f"{server.url}/{path}" for path in ("probe", "404", "hello", "probe")]
        ended = curl(version, "--header", "Connection: keep-alive", "-w", "%{num_connects}", *urls)
        bodies = (b"probe", b"a body", b"hello", b"probe")
        assert ended.stdout == b"".join(
            body + str(int(not number)).encode() for number, body in enumerate(bodies)
        )


def test_curl_uploads_after_100_continue(server: Server) -> None:
    body = b"x" * BIG
    for option in ("Expect: 100-continue", "Transfer-Encoding: chunked"):
        ended = curl(
            *("--verbose", "--header", option, "--header", "Expect: 100-continue"),
            *("--expect100-timeout", str(PATIENCE), "--upload-file", "-", server.url),
            stdin=body,
        )
        assert b"< HTTP/1.1 100 Continue" in ended.stderr
        assert b"< HTTP/1.1 200 OK" in ended.stderr
        told = json.loads(ended.stdout)
        assert (told["method"], told["body"]) == ("PUT", BIG)


def test_curl_gets_an_answer_before_its_upload_is_complete(server: Server) -> None:
    ended = curl(
        "--data-binary", "@-", f"{server.url}/early", "-w", "%{http_code}", stdin=b"x" * BIG
    )
    assert ended.stdout == b"early200"


def test_curl_asks_for_a_head_only(server: Server) -> None:
    head = curl("--head", f"{server.url}/probe").stdout.lower()
    assert head.startswith(b"http/1.1 200 ok\r\n")
    assert b"\r\ncontent-length: 5\r\n" in head
    assert head.endswith(b"\r\n\r\n")


def test_curl_downloads_what_is_long(server: Server) -> None:
    assert len(curl(f"{server.url}/large").stdout) == 64 * 65536
    assert len(curl("--limit-rate", "20M", f"{server.url}/large-at-once").stdout) == 64 * 65536


def test_curl_over_a_unix_socket(serve: Serve, project: Project, tmp_path: Path) -> None:
    project.write(APPLICATION.read_text())
    path = tmp_path / "app.sock"
    server = serve("--uds", str(path))
    told = json.loads(curl("--unix-socket", str(path), "http://example.org/a?b").stdout)
    assert (told["host"], told["path"], told["client"]) == (["example.org"], "/a", False)
    server.stop()


def test_curl_introduces_itself_with_the_proxy_protocol(serve: Serve, project: Project) -> None:
    project.write(APPLICATION.read_text())
    server = serve("--proxy-protocol")
    told = json.loads(curl("--haproxy-protocol", f"{server.url}/a").stdout)
    assert (told["path"], told["client"]) == ("/a", "int")
    server.stop()


# -- Libraries


def test_httpx_with_a_pool_of_connections(server: Server) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"p" * 1000

    async def use() -> None:
        async with httpx.AsyncClient(
            base_url=server.url, timeout=PATIENCE, limits=httpx.Limits(max_connections=8)
        ) as client:
            answers = await asyncio.gather(*(client.get(f"/{number}") for number in range(100)))
            assert [each.json()["path"] for each in answers] == [f"/{n}" for n in range(100)]
            assert (await client.post("/", content=parts())).json()["body"] == "p" * 50_000
            assert (await client.head("/hello")).content == b""
            async with client.stream("GET", "/stream") as stream:
                assert "".join([part async for part in stream.aiter_text()]) == "one two three"
            # An answer that is given up in the middle costs a connection, not the client.
            async with client.stream("GET", "/large"):
                pass
            assert (await client.get("/204")).status_code == 204
            assert (await client.get("/probe")).text == "probe"

    asyncio.run(use())


def test_the_client_of_websockets(serve: Serve, project: Project) -> None:
    async def use(url: str) -> None:
        async with connect(url, proxy=None, subprotocols=["b", "a"]) as socket:  # type: ignore[list-item]
            assert socket.subprotocol == "b"
            assert "permessage-deflate" in socket.response.headers["sec-websocket-extensions"]  # type: ignore[union-attr]
            for message in ("", "ä", "x" * 500_000, bytes(range(256)) * 300):
                await socket.send(message)
                assert await socket.recv() == message
            await socket.send(["in ", "three ", "frames"])
            assert await socket.recv() == "in three frames"
            assert await (await socket.ping()) >= 0
            await socket.close(4000, "enough")
        assert socket.close_code == 4000
        async with connect(url, proxy=None, compression=None) as socket:
            assert "sec-websocket-extensions" not in socket.response.headers  # type: ignore[union-attr]
            await socket.send("plain")
            assert await socket.recv() == "plain"

    project.write(ECHO)
    server = serve()
    asyncio.run(use(f"ws://127.0.0.1:{server.port}/socket"))
    server.stop()


# -- Load generators


def test_h2load_with_pipelines(server: Server) -> None:
    options = ["--h1", "--requests=2000", "--clients=8", "--max-concurrent-streams=16"]
    report = command("h2load", *options, f"{server.url}/hello").stdout.decode()
    assert "2000 succeeded, 0 failed, 0 errored, 0 timeout" in report
    assert "status codes: 2000 2xx" in report


def test_wrk_sees_no_errors(server: Server) -> None:
    options = ["--threads=1", "--connections=16", "--duration=1s", f"--timeout={PATIENCE:.0f}s"]
    report = command("wrk", *options, f"{server.url}/hello").stdout.decode()
    assert "Requests/sec" in report
    assert "Socket errors" not in report
    assert "Non-2xx" not in report


# -- What applications are tested with is what they get

Use = Callable[[Any], Any]

FASTAPI: dict[str, Use] = {
    "a path with a query": lambda client: client.get("/items/7", params={"limit": 3}),
    "a path that does not fit": lambda client: client.get("/items/x"),
    "a model": lambda client: client.post("/items", json={"name": "ä", "price": 1, "tags": ["b"]}),
    "a bad model": lambda client: client.post("/items", json={"name": "a"}),
    "text that is no JSON": lambda client: client.post("/items", content=b"{"),
    "nothing here": lambda client: client.get("/nothing/here"),
    "another method": lambda client: client.delete("/items/7"),
    "a stream": lambda client: client.get("/stream/200"),
    "state": lambda client: client.get("/state"),
    "a task in the background": lambda client: client.post("/notes/1", content="later"),
}
STARLETTE: dict[str, Use] = {
    "a file": lambda client: client.get("/static/style.css"),
    "the head of a file": lambda client: client.head("/static/style.css"),
    "a part of a file": lambda client: client.get(
        "/static/style.css", headers={"range": "bytes=2-5"}
    ),
    "a file that is not there": lambda client: client.get("/static/none"),
    "a way out": lambda client: client.get("/static/..%2f..%2fversion.py"),
    "a redirection": lambda client: client.get("/static"),
    "an upload in parts": lambda client: client.post("/upload", content=iter([b"ab", b"c"])),
    "events": lambda client: client.get("/events", params={"count": 5}),
}
OURS = ("connection", "date", "server", "transfer-encoding")
"""Headers of a real server; a body of unknown length has one of them, or a length."""


@pytest.mark.parametrize(("name", "uses"), [("fastapi_app", FASTAPI), ("starlette_app", STARLETTE)])
def test_the_test_client_of_a_framework_gets_the_same_answers(
    name: str,
    uses: dict[str, Use],
    serve: Serve,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project.copy(APPS)
    project.write('VERSION = "1"\n', "version.py")
    monkeypatch.syspath_prepend(project.directory)
    monkeypatch.chdir(project.directory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would rather have httpx2
        from starlette.testclient import TestClient
    app = importlib.import_module(name).app
    server = serve(*PATIENT, name=f"{name}:app")
    try:
        with (
            TestClient(app, raise_server_exceptions=False) as inside,
            httpx.Client(base_url=server.url, follow_redirects=True, timeout=PATIENCE) as outside,
        ):
            for what, use in uses.items():
                expected, real = use(inside), use(outside)
                assert real.status_code == expected.status_code, what
                assert real.content == expected.content, what
                headers = [
                    {key: value for key, value in each.headers.items() if key not in OURS}
                    for each in (expected, real)
                ]
                if "content-length" not in headers[0]:
                    headers[1].pop("content-length", None)
                assert headers[0] == headers[1], what
    finally:
        for module in (name, "version"):
            sys.modules.pop(module, None)
    server.accept_files()
    server.stop()


def test_the_websocket_of_a_test_client_gets_the_same_messages(
    serve: Serve, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.copy(APPS)
    project.write('VERSION = "1"\n', "version.py")
    monkeypatch.syspath_prepend(project.directory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from starlette.testclient import TestClient
    app = importlib.import_module("fastapi_app").app
    server = serve(name="fastapi_app:app")

    async def outside() -> list[Any]:
        async with connect(
            f"ws://127.0.0.1:{server.port}/socket",
            proxy=None,
            subprotocols=["echo"],  # type: ignore[list-item]
        ) as socket:
            await socket.send("ä")
            return [socket.subprotocol, json.loads(await socket.recv())]

    try:
        with (
            TestClient(app) as client,
            client.websocket_connect("/socket", subprotocols=["echo"]) as socket,
        ):
            socket.send_text("ä")
            inside = [socket.accepted_subprotocol, socket.receive_json()]
        assert asyncio.run(outside()) == inside
    finally:
        for module in ("fastapi_app", "version"):
            sys.modules.pop(module, None)
    server.accept_files()
    server.stop()
