"""What all connections of one worker share.

One object, made once per worker by ``server.py`` and handed to every connection and cycle.
"""

import asyncio
import contextvars
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from asgictl_worker.access_log import AccessLog
from asgictl_worker.asgi import Runnable
from asgictl_worker.counters import Counters
from asgictl_worker.http.framing import SharedHeads
from asgictl_worker.http.http1 import DefaultFields
from asgictl_worker.proxy import ProxyTrust
from asgictl_worker.settings import WorkerSettings
from asgictl_worker.timers import INTERVAL, Ticker

REST = 1.0
"""Seconds after which an idle connection keeps nothing that would make its next request cheaper;
it then takes a third of the memory."""


@dataclass(slots=True, kw_only=True, eq=False)
class Service:
    """The application and everything the connections of one worker have in common."""

    app: Runnable
    settings: WorkerSettings
    loop: asyncio.AbstractEventLoop
    ticker: Ticker
    access_log: AccessLog | None
    proxy_trust: ProxyTrust | None
    state: dict[str, Any] | None
    """What the lifespan startup left in ``scope["state"]``; copied for each request."""
    counters: Counters = field(default_factory=Counters)
    connections: set[Any] = field(default_factory=set)
    """Every open ``Connection``."""
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    """Every running cycle: the loop itself keeps only weak references to tasks."""
    shared_heads: SharedHeads = field(default_factory=SharedHeads)
    """Heads with which connections begin."""
    draining: bool = False
    has_deadlines: bool = False
    """Whether requests without a body have to be looked at, too, until they are answered."""
    has_limits: bool = False
    """Whether requests may have to be turned away."""
    idle_times: tuple[float, float] = field(init=False)
    """Seconds after which an idle connection rests, and after which a resting one is closed."""
    defaults: DefaultFields = field(init=False)
    context: contextvars.Context = field(init=False)
    """What every request gets a copy of: nothing that a request sets is seen by another."""

    def __post_init__(self) -> None:
        self.counters.times_all = self.access_log is not None
        self.defaults = DefaultFields(self.settings)
        idle = self.settings.timeout_keep_alive + INTERVAL
        self.idle_times = (min(idle, REST), max(0.0, idle - REST))
        self.has_deadlines = bool(self.settings.timeout_request)
        limits = (self.settings.limit_concurrency, self.settings.limit_connections)
        self.has_limits = any(limits)
        reset = self.settings.reset_contextvars
        self.context = contextvars.Context() if reset else contextvars.copy_context()

    on_fewer: Callable[[int], None] | None = None
    """Called with the number of connections that are left when one has gone."""

    def forget(self, connection: Any) -> None:
        """Know that a connection is gone."""
        self.connections.discard(connection)
        if self.on_fewer is not None:
            self.on_fewer(len(self.connections))
