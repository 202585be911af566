"""How much memory a connection costs that has been served and waits: thousands do."""

import asyncio
import gc
import socket
import tracemalloc

from tests.worker.http.wire import hello
from tests.worker.waiting import until

IDLE_BUDGET = 1400
"""Bytes that asgictl keeps for one idle connection. The event loop adds as much or more, and the
benchmarks measure the whole process."""

CONNECTIONS = 100

REQUEST = (
    b"GET /items HTTP/1.1\r\nhost: example.org\r\nuser-agent: Mozilla/5.0 (X11; Linux x86_64)"
    b"\r\naccept: text/html,application/xhtml+xml\r\naccept-encoding: gzip, deflate, br\r\n"
    b"accept-language: en-US,en;q=0.9\r\ncookie: session=%032d\r\n\r\n"
)


async def test_an_idle_connection_stays_within_its_budget_of_memory(serve):
    address, service = await serve(hello, timeout_keep_alive=600.0)
    service.access_log = None
    clients = []
    loop = asyncio.get_running_loop()

    async def ask(count):
        for number in range(count):
            client = socket.socket()
            client.setblocking(False)
            await loop.sock_connect(client, address)
            await loop.sock_sendall(client, REQUEST % number)
            await loop.sock_recv(client, 4096)
            clients.append(client)

    def rests():
        return all(each._parser.known_head == b"" for each in service.connections)

    await ask(10)
    await until(rests)
    gc.collect()
    tracemalloc.start()
    try:
        await ask(CONNECTIONS)
        await until(rests)
        gc.collect()
        own = [
            tracemalloc.Filter(True, f"*/{name}") for name in ("asgictl_worker/*", "conftest.py")
        ]
        traces = tracemalloc.take_snapshot().filter_traces(own).statistics("filename")
    finally:
        tracemalloc.stop()
        for client in clients:
            client.close()
    assert sum(each.size for each in traces) / CONNECTIONS < IDLE_BUDGET
