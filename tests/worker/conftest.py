"""Every async test of the worker runs on both event loops, and logging is left as it was."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest
import uvloop
from tests.worker.http.wire import Peer
from tests.worker.waiting import until

from asgictl_worker.connection import Connection
from asgictl_worker.service import Service


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Name the loops."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    """Give every logger back what it had."""
    loggers = [logging.getLogger(name) for name in ("", "asgictl", "asgictl.worker", "other")]
    before = [(each.handlers[:], each.level, each.propagate, each.disabled) for each in loggers]
    yield
    for each, (handlers, level, propagate, disabled) in zip(loggers, before, strict=True):
        for handler in set(each.handlers) - set(handlers):
            handler.close()
        each.handlers[:] = handlers
        each.setLevel(level)
        each.propagate, each.disabled = propagate, disabled


@pytest.fixture
async def serve() -> AsyncIterator[Any]:
    """Serve an application on a real socket; return its address and the service."""
    servers: list[tuple[asyncio.Server, Service]] = []

    async def serve(app: Any, *, ssl: Any = None, **settings: Any) -> tuple[Any, Service]:
        peer = Peer(app, **settings)
        service = peer.service
        peer.lose()
        service.ticker.start(service)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(service), "127.0.0.1", 0, ssl=ssl)
        servers.append((server, service))
        return server.sockets[0].getsockname(), service

    yield serve
    for server, service in servers:
        server.close()
        for connection in list(service.connections):
            connection.abort()
        for task in list(service.tasks):
            task.cancel()
        await until(lambda service=service: not service.connections and not service.tasks)
        service.ticker.stop()
