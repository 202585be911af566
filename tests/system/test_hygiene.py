"""A worker tells what its application does wrong in the event loop."""

import json

import httpx
import pytest
from tests.conftest import Serve
from tests.kit import PATIENCE, Project

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

CARELESS = """
import asyncio, gc, threading, time

class Brittle:
    def __del__(self):
        raise OSError("cannot be raised")

def work():
    raise OSError("ends a thread")

def stuck_in_here():
    time.sleep(1)

async def fail():
    raise LookupError("nobody listens")

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/block":
        stuck_in_here()
    elif scope["path"] == "/task":
        await asyncio.wait([asyncio.create_task(fail())])
        gc.collect()
    elif scope["path"] == "/await":
        asyncio.sleep(1)
        gc.collect()
    elif scope["path"] == "/finalize":
        Brittle()
    elif scope["path"] == "/thread":
        threading.Thread(target=work).start()
    elif scope["path"] == "/leave":
        app.task = asyncio.create_task(asyncio.sleep(3600), name="forgotten")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body"})
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_what_blocks_the_loop_is_logged_from_the_application_on(
    serve: Serve, project: Project, loop: str
) -> None:
    project.write(CARELESS)
    server = serve("--loop", loop, "--loop-lag-warning", "0.3")
    httpx.get(server.url + "/block", timeout=PATIENCE)
    found = server.assert_log(
        r"WARNING .*the event loop was blocked for [\d.]+ s \(0.0\d s of processor time\).*:\n"
        r'  File ".*/app.py", line \d+, in app\n    stuck_in_here\(\)\n'
        r'  File ".*/app.py", line 12, in stuck_in_here\n    time.sleep\(1\)\n'
    )
    assert found
    server.stop()


def test_what_nobody_retrieves_or_awaits_is_logged_once_and_leftovers_are_named(
    serve: Serve, project: Project
) -> None:
    project.write(CARELESS)
    server = serve()
    for path in ("/task", "/await", "/leave"):
        for _ in range(3):
            httpx.get(server.url + path, timeout=PATIENCE)
    server.assert_log("LookupError: nobody listens")
    server.assert_log("WARNING .*RuntimeWarning: coroutine 'sleep' was never awaited")
    server.stop()
    log = server.log()
    assert log.count("LookupError: nobody listens") == 1
    assert log.count("was never awaited") == 1
    assert "cancelling tasks that were left over: forgotten (" in log


def test_what_python_would_print_stands_in_the_log(serve: Serve, project: Project) -> None:
    project.write(CARELESS)
    server = serve("--log-format", "json", "--no-access-log")
    for path in ("/finalize", "/thread"):
        httpx.get(server.url + path, timeout=PATIENCE)
    server.assert_log(r"OSError: cannot be raised")
    server.assert_log(r"OSError: ends a thread")
    server.stop()
    lines = [json.loads(line) for line in server.log().splitlines()]
    found = [line["exception"] for line in lines if line["level"] == "ERROR"]
    assert len(found) == 2
    assert all("app.py" in text for text in found)
