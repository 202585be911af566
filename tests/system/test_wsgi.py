"""WSGI applications behind a real server."""

import re
import socket
import struct

import httpx
import pytest
from tests.conftest import Serve
from tests.kit import PATIENCE, Project, wait_for

from asgictl_worker.application import WSGI_THREADS

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

APP = """
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/upload":
        size = len(environ["wsgi.input"].read())
        print("read", size, flush=True)
        start_response("200 OK", [])
        return [str(size).encode()]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return endless() if path == "/endless" else [b"here"]

def endless():
    try:
        while True:
            yield b"x" * 65536
    finally:
        print("closed", flush=True)
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_clients_that_leave_give_their_threads_back(
    serve: Serve, project: Project, loop: str
) -> None:
    project.write(APP)
    server = serve("--interface", "wsgi", "--loop", loop)
    for _ in range(WSGI_THREADS + 5):
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
            client.sendall(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
    assert httpx.get(server.url + "/", timeout=PATIENCE).text == "here"
    wait_for(lambda: server.log().count("closed") == WSGI_THREADS + 5 or None, "closed iterables")
    server.stop()
    server.assert_not_logged("ERROR")


def test_half_a_body_is_not_taken_for_all_of_it(serve: Serve, project: Project) -> None:
    project.write(APP)
    server = serve("--interface", "wsgi")
    whole = httpx.post(server.url + "/upload", content=b"x" * 300_000, timeout=PATIENCE)
    assert (whole.text, whole.headers["content-length"]) == ("300000", "6")
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.assert_log('"POST /upload HTTP/1.1" 499')
    server.stop()
    assert re.findall(r"^read \d+$", server.log(), re.MULTILINE) == ["read 300000"]
    server.assert_not_logged("ERROR")
