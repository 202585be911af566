"""Requests that have an id (``--request-id-header``): what a connection does more for them.

The id stands in the headers and in ``state`` of the scope, in the headers of the response, and
in the context of the application's code. These are classes of their own so that a server
without ids does not even ask whether it has them.
"""

from collections.abc import Iterable
from typing import Any, cast

from asgictl_worker.connection import Connection
from asgictl_worker.http.cycle import HTTPCycle
from asgictl_worker.http.http1 import Writer
from asgictl_worker.http.request import BadRequest, Request
from asgictl_worker.proxy_protocol import Told
from asgictl_worker.request_ids import RequestIds
from asgictl_worker.service import Service
from asgictl_worker.websocket.cycle import WebSocketCycle


class IdentifiedWriter(Writer):
    """Adds the id to every response, unless the application did.

    Attributes:
        field: the header, as (name in lower case, value).
    """

    __slots__ = ("field",)

    field: tuple[bytes, bytes]

    def start(
        self,
        request: Request,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        keep_alive: bool,
    ) -> None:
        """See ``Writer``."""
        super().start(request, status, headers, keep_alive)
        wanted = self.field[0]
        if all(name.lower() != wanted for name, _ in self.headers):
            self._head += b"%b: %b\r\n" % self.field


def _identify(scope: dict[str, Any], field: tuple[bytes, bytes]) -> None:
    """Show the id to the application."""
    headers = scope["headers"]
    if field not in headers:
        # One that was not believed must not stand beside the one that counts.
        headers[:] = [item for item in headers if item[0] != field[0]]
        headers.append(field)
    scope.setdefault("state", {})["request_id"] = field[1].decode("ascii")


class IdentifiedCycle(HTTPCycle):
    """One request that has an id."""

    __slots__ = ()

    def __init__(
        self, connection: "IdentifiedConnection", request: Request, scope: dict[str, Any]
    ) -> None:
        super().__init__(connection, request, scope)
        self.request_id = connection.request_id
        if scope:
            _identify(scope, connection.field)

    def __str__(self) -> str:
        return f"{super().__str__()} request_id={self.request_id}"


class IdentifiedWebSocket(WebSocketCycle):
    """A WebSocket that has an id."""

    __slots__ = ()

    def __str__(self) -> str:
        """See ``WebSocketCycle``."""
        return f"{super().__str__()} request_id={self.request_id}"


class IdentifiedConnection(Connection):
    """A connection whose requests get ids.

    Attributes:
        request_id: of the current request.
        field: the header that holds it.
    """

    __slots__ = ("_ids", "field", "request_id")

    cycle_class = IdentifiedCycle
    writer_class = IdentifiedWriter

    def __init__(self, ids: RequestIds, service: Service, told: Told | None = None) -> None:
        self._ids = ids
        super().__init__(service, told)

    def request_received(self, request: Request, body: bytes = b"") -> None:
        """See ``Connection``."""
        peer = None if self.client is None else self.client[0]
        self._begin(self._ids.take(request.headers, peer))
        super().request_received(request, body)

    def _settle(self, request: Request) -> None:
        """See ``Connection``; an id has to be made, or believed, each time."""

    def _refuse(self, error: BadRequest) -> None:
        if self._cycle is None:
            self._begin(self._ids.make())
        super()._refuse(error)

    def _begin(self, identity: str) -> None:
        self.request_id = identity
        self.field = (self._ids.name, identity.encode("ascii"))
        cast("IdentifiedWriter", self.writer).field = self.field

    def _websocket(self, request: Request, scope: dict[str, Any]) -> WebSocketCycle:
        _identify(scope, self.field)
        cycle = IdentifiedWebSocket(self.service, self.transport, request, scope)
        cycle.request_id = self.request_id
        writer = IdentifiedWriter(self.service.ticker, self.service.defaults)
        writer.field = self.field
        cycle._writer = writer
        return cycle
