"""Long-lived connections spread evenly over the workers, however they arrive."""

import collections
import contextlib
import json
import os
import signal
import socket

import pytest
from tests.conftest import Serve
from tests.kit import PATIENCE, Project, application, wait_for

pytestmark = [pytest.mark.system]

CONNECTIONS = 64


def _open(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE)


def _ask(client: socket.socket) -> int:
    """Return the pid of the worker at the other end."""
    client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    data = b""
    while not data.endswith(b"}"):
        part = client.recv(4096)
        assert part, f"closed after {data!r}"
        data += part
    return int(json.loads(data.partition(b"\r\n\r\n")[2])["pid"])


@pytest.mark.parametrize(("burst", "spread"), [(False, 1.3), (True, 1.5)], ids=["one", "burst"])
def test_64_connections_spread_over_4_workers(
    serve: Serve, project: Project, burst: bool, spread: float
) -> None:
    project.write(application("1"))
    patience = ("--timeout-keep-alive", "60", "--timeout-request-header", "60")
    server = serve("--workers", "4", *patience)
    rounds = []
    # A worker that the machine keeps waiting for its turn cannot take its share; so the best of
    # some rounds counts. What spreads by chance alone never gets there.
    for _ in range(5):
        rounds.append(_spread(server.port, burst))
        if rounds[-1] <= spread:
            break
    assert min(rounds) <= spread, rounds
    server.stop()


def _spread(port: int, burst: bool) -> float:
    """Open all connections, and return the most over the fewest that a worker got."""
    with contextlib.ExitStack() as stack:
        clients, pids = [], []
        for _ in range(CONNECTIONS):
            clients.append(stack.enter_context(_open(port)))
            if not burst:
                pids.append(_ask(clients[-1]))
        pids = pids or [_ask(client) for client in clients]
    counts = sorted(collections.Counter(pids).values())
    return counts[-1] / counts[0] if len(counts) == 4 else float("inf")


def test_a_worker_that_stands_still_gets_no_new_connections(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--workers", "2")
    stuck = min(server.workers())
    os.kill(stuck, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            assert _ask(stack.enter_context(_open(server.port))) != stuck
    os.kill(stuck, signal.SIGCONT)
    server.stop()


def test_no_connection_is_lost_when_the_fleet_shrinks(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--workers", "4", "--timeout-keep-alive", "60", "--drain-idle-window", "2")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(_open(server.port)) for _ in range(16)]
        for client in clients:
            _ask(client)
        server.signal("TTOU")
        server.assert_log("draining")
        assert all(_ask(client) for client in clients)
    wait_for(lambda: len(server.workers()) == 3, "one worker leaves")
    server.stop()
