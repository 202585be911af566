"""Logs of real processes: machines can read every line, and a reader that fails stops nobody."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.conftest import Serve
from tests.kit import ASGICTL, PATIENCE, Project, clean_environment, run, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

APPLICATION = """
import logging
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    if scope["path"] == "/broken":
        raise RuntimeError("oops")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})
"""


def test_every_line_of_every_process_is_an_object(serve: Serve, project: Project) -> None:
    project.write(APPLICATION)
    server = serve(
        *("--workers", "2", "--log-format", "json", "--request-id-header", "X-Request-ID")
    )
    headers = {"x-request-id": "abc-1"}
    assert httpx.get(f"{server.url}/a?b", headers=headers).headers["x-request-id"] == "abc-1"
    assert httpx.get(f"{server.url}/broken", headers=headers).status_code == 500
    server.reload()
    server.stop()
    lines = [json.loads(line) for line in server.log().splitlines()]
    assert {"asgictl.supervisor", "asgictl.worker", "asgictl.access"} <= {
        line["logger"] for line in lines
    }
    for line in lines:
        assert {"time", "level", "logger", "pid", "message"} <= line.keys()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    answered, failed = (line for line in lines if line["logger"] == "asgictl.access")
    assert (answered["status"], answered["path"], answered["query"]) == (200, "/a", "b")
    assert (failed["status"], failed["request_id"]) == (500, "abc-1")
    [error] = (line for line in lines if line["level"] == "ERROR")
    assert error["request_id"] == "abc-1"
    assert error["exception"].endswith("RuntimeError: oops")
    assert error["pid"] == failed["pid"]


@contextlib.contextmanager
def unread(project: Project, how: str, *options: str) -> Iterator[Path]:
    """Run a server with a log that nobody reads (``full``) or can (``closed``)."""
    scratch = project.directory.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    path = scratch / "s"
    redirection = "" if how == "full" else ">&- 2>&-"
    command = [sys.executable, str(ASGICTL), "app:app", "--uds", str(path), *options]
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *command],
            cwd=project.directory,
            env=clean_environment(scratch),
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
            start_new_session=True,
        )
    finally:
        os.close(writer)
    try:
        wait_for(lambda: answers(path, 1), "the first answer")
        yield path
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(reader)


def answers(path: Path, count: int) -> bool:
    """Return whether so many requests are answered on one connection."""
    request = b"GET /with/a/path/of/some/length HTTP/1.1\r\nhost: example.org\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        client.sendall(request * count)
        # Bodies may be cut by the edge of what is received; nothing else ends in "hello".
        missing, rest = count, b""
        while missing:
            part = client.recv(65536)
            assert part, f"{missing} answers are missing"
            *bodies, rest = (rest + part).split(b"hello")
            missing -= len(bodies)
    return True


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("full", ("--log-format", "json")),
        ("full", ("--access-log-format", '%(h)s %(t)s "%(r)s" %(s)s "%(a)s" %({host}i)s')),
        ("full", ("--request-id-header", "x-request-id")),
        ("closed", ("--log-format", "json")),
    ],
)
def test_a_log_that_nobody_takes_stops_nobody(
    how: str, options: tuple[str, ...], project: Project
) -> None:
    project.write(APPLICATION)
    with unread(project, how, *options) as path:
        # Several times what a pipe and the backlog behind it hold.
        for _ in range(20):
            assert answers(path, 400 if how == "full" else 10)


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--access-log-format", "%(S)s", r"access_log_format .* did you mean %\(s\)s\?"),
        ("--access-logformat", "100%", r"access_log_format .*write %%"),
        ("--request-id-header", "a b", "request_id_header .* the name of a header"),
        ("--log-format", "xml", "log.format.* text.*json"),
    ],
)
def test_a_setting_that_cannot_work_ends_the_start_with_advice(
    option: str, value: str, problem: str, project: Project
) -> None:
    project.write(APPLICATION)
    ended = run(project, "app:app", "--port", "0", option, value)
    assert ended.code != 0
    assert re.search(problem, ended.stderr, re.DOTALL), ended.stderr
    assert "Traceback" not in ended.stderr
