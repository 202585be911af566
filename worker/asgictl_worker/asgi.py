"""The types of the ASGI 3.0 interface, as the rest of the worker names them.

Source: https://asgi.readthedocs.io/en/latest/specs/. Messages that an application sends are
only promised to be dictionaries: what is in them is checked where they are used.
"""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Literal, NotRequired, TypedDict

VERSION = "3.0"
SPEC_VERSION = "2.5"
"""Of the HTTP and WebSocket messages; 2.4 made ``send()`` raise OSError after a disconnect."""

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, in the order received."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]
"""``async def app(scope, receive, send)``; the arguments are ``Any`` so that both the types
above and those of the frameworks fit."""


class RequestEvent(TypedDict):
    """A part of the request's body."""

    type: Literal["http.request"]
    body: bytes
    more_body: bool


class DisconnectEvent(TypedDict):
    """The client is gone, or the response is complete."""

    type: Literal["http.disconnect"]


class ResponseStartEvent(TypedDict):
    """Status and headers; goes out together with the first part of the body."""

    type: Literal["http.response.start"]
    status: int
    headers: NotRequired[Iterable[tuple[bytes, bytes]]]
    trailers: NotRequired[bool]


class ResponseBodyEvent(TypedDict):
    """A part of the response's body; the last one unless ``more_body``."""

    type: Literal["http.response.body"]
    body: NotRequired[bytes]
    more_body: NotRequired[bool]


class ResponsePathsendEvent(TypedDict):
    """The whole body is the file at an absolute path (extension ``http.response.pathsend``)."""

    type: Literal["http.response.pathsend"]
    path: str


HTTPReceiveEvent = RequestEvent | DisconnectEvent
HTTPSendEvent = ResponseStartEvent | ResponseBodyEvent | ResponsePathsendEvent
