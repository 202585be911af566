"""Files on real sockets: by the kernel alone, through TLS, and to clients that stop reading."""

import asyncio
import os
import socket

import pytest
from tests.worker.http.wire import GET
from tests.worker.waiting import until

SIZE = 8 * 1024 * 1024
"""Bytes that no kernel keeps for a client that does not read."""


@pytest.fixture(scope="module")
def content():
    return os.urandom(1024) * (SIZE // 1024)


@pytest.fixture
def path(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    return tmp_path / "file"


def sending(path, ended=None):
    async def app(scope, receive, send):
        try:
            with path.open("rb") as file:
                await send({"type": "http.response.start", "status": 200})
                await send({"type": "http.response.zerocopysend", "file": file, "count": SIZE})
        except BaseException as error:
            if ended is not None:
                ended.append(type(error))
            raise

    return app


async def fetch(address, request=GET):
    reader, writer = await asyncio.open_connection(*address, limit=2**20)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % SIZE in head
    body = await reader.readexactly(SIZE)
    return reader, writer, body


def count_sendfile(monkeypatch):
    calls = []
    sendfile = os.sendfile

    def counting(*arguments):
        calls.append(arguments)
        return sendfile(*arguments)

    monkeypatch.setattr(os, "sendfile", counting)
    return calls


async def test_a_large_file_never_comes_to_us(serve, path, content, monkeypatch):
    calls = count_sendfile(monkeypatch)
    address, service = await serve(sending(path))
    reader, writer, body = await fetch(address)
    assert body == content
    assert calls
    # The connection goes on as if nothing had happened.
    writer.write(GET)
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(SIZE) == content
    [connection] = service.connections
    assert not connection.write_paused
    writer.close()


async def test_a_file_named_by_its_path_goes_the_same_way(serve, path, content, monkeypatch):
    calls = count_sendfile(monkeypatch)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.pathsend", "path": str(path)})

    address, _ = await serve(app)
    _, writer, body = await fetch(address)
    assert body == content
    assert calls
    writer.close()


async def test_without_sendfile_a_file_is_read_and_written(serve, path, content, monkeypatch):
    monkeypatch.setattr("asgictl_worker.http.files.CAN_SENDFILE", False)
    calls = count_sendfile(monkeypatch)
    address, _ = await serve(sending(path))
    _, writer, body = await fetch(address)
    assert body == content
    assert not calls
    writer.close()


@pytest.mark.parametrize("by_kernel", [True, False])
async def test_a_file_for_a_client_that_does_not_read_waits_and_is_given_up(
    serve, path, by_kernel, monkeypatch
):
    monkeypatch.setattr("asgictl_worker.http.files.CAN_SENDFILE", by_kernel)
    monkeypatch.setattr("asgictl_worker.connection.LOOK", 0.1)
    ended = []
    address, service = await serve(sending(path, ended), timeout_write=0.5)
    with socket.create_connection(address) as client:
        client.sendall(GET)
        await until(lambda: ended)
        await until(lambda: not service.connections)
    assert issubclass(ended[0], OSError)
    assert count_descriptors(path) == 0


async def test_a_client_that_resets_in_the_middle_of_a_file_is_forgotten(serve, path):
    ended = []
    address, service = await serve(sending(path, ended))
    client = socket.create_connection(address)
    client.sendall(GET)
    await until(lambda: any(each.write_paused for each in service.connections))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    await until(lambda: ended)
    assert issubclass(ended[0], OSError)
    await until(lambda: not service.connections)
    assert count_descriptors(path) == 0


async def test_an_application_that_is_cancelled_in_the_middle_leaves_nothing_open(serve, path):
    ended = []
    address, service = await serve(sending(path, ended))
    with socket.create_connection(address) as client:
        client.sendall(GET)
        await until(lambda: any(each.write_paused for each in service.connections))
        for task in list(service.tasks):
            task.cancel()
        await until(lambda: ended)
        await until(lambda: not service.connections)
    await until(lambda: count_descriptors(path) == 0)


def count_descriptors(path):
    """Return how often this process has the file open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}") == str(path)
        except FileNotFoundError:
            continue
    return count
