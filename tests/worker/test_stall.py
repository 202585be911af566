"""How a client that does not read is told from one that reads slowly, with real sockets."""

import asyncio
import contextlib
import socket

import pytest
from tests.worker.waiting import until

from asgictl_worker.stall import Stall, unsent


@pytest.fixture(params=["tcp", "unix"])
def ends(request):
    """Two connected sockets."""
    if request.param == "unix":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def test_every_byte_that_the_client_takes_ends_the_stall(ends):
    ours, theirs = ends
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
    transport.write(bytes(16 * 1024 * 1024))
    before = -1
    while before != unsent(transport):  # until the kernel's buffers are full on both sides
        before = unsent(transport)
        await asyncio.sleep(0.05)
    stall = Stall(transport, 100.0)
    assert stall.lasts(105.0) == 5.0
    taken = 0

    def moved():
        nonlocal taken
        with contextlib.suppress(BlockingIOError):
            taken += len(theirs.recv(4096))
        return unsent(transport) != before

    await until(moved)
    # We were never told that we could write, but something has moved.
    assert 0 < taken < 8 * 1024 * 1024
    assert stall.lasts(106.0) == 0.0
    transport.abort()


async def test_nothing_is_unsent_when_the_client_has_read_all(ends):
    ours, theirs = ends
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
    transport.write(b"hello")
    received = b""
    while len(received) < 5:
        received += await asyncio.get_running_loop().sock_recv(theirs, 5)
    await until(lambda: unsent(transport) == 0)
    transport.abort()


async def test_a_closed_transport_can_be_asked(ends):
    ours, _ = ends
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
    transport.abort()
    await asyncio.sleep(0)
    assert unsent(transport) >= 0
