"""The kernel's queues of connections that nobody has accepted yet."""

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from asgictl.system.queues import Queue, overflows, queue_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells this")


@pytest.fixture
def leaving() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connect(leaving: ExitStack, listening: socket.socket, count: int) -> None:
    for _ in range(count):
        client = leaving.enter_context(socket.socket(listening.family))
        client.setblocking(False)
        client.connect_ex(listening.getsockname())


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_the_queue_of_a_port_is_counted(
    leaving: ExitStack, family: socket.AddressFamily, host: str
) -> None:
    listening = leaving.enter_context(socket.socket(family))
    listening.bind((host, 0))
    listening.listen(5)
    assert queue_of(listening) == Queue(waiting=0, limit=5, dropped=0)
    connect(leaving, listening, 3)
    assert queue_of(listening) == Queue(waiting=3, limit=5, dropped=0)
    leaving.enter_context(listening.accept()[0])
    assert queue_of(listening).waiting == 2


def test_connections_that_found_it_full_are_counted(leaving: ExitStack) -> None:
    listening = leaving.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
    before = overflows()
    connect(leaving, listening, 10)
    full = queue_of(listening)
    assert full.waiting == 2, "the kernel takes one more than the limit (listen(2))"
    assert full.dropped
    assert before is not None
    assert (overflows() or 0) > before


def test_the_queue_of_a_unix_socket_is_counted(leaving: ExitStack, tmp_path: Path) -> None:
    listening = leaving.enter_context(socket.socket(socket.AF_UNIX))
    listening.bind(str(tmp_path / "s"))
    listening.listen(5)
    connect(leaving, listening, 3)
    assert queue_of(listening) == Queue(waiting=3, limit=5, dropped=None)


def test_of_what_does_not_listen_nothing_is_known() -> None:
    closed = socket.socket()
    closed.close()
    assert queue_of(closed) == Queue()


def test_overflows_are_unknown_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert overflows(tmp_path) is None
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/netstat").write_text("TcpExt: A ListenOverflows B\nTcpExt: 1 23 4\n")
    assert overflows(tmp_path) == 23
    (tmp_path / "proc/net/netstat").write_text("TcpExt: A\nTcpExt: 1\n")
    assert overflows(tmp_path) is None
