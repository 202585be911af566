"""The types of the ASGI 3.0 interface, as the rest of the worker names them.

Source: https://asgi.readthedocs.io/en/latest/specs/. Messages that an application sends are
only promised to be dictionaries: what is in them is checked where they are used.
"""

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from typing import Any, Literal, NotRequired, TypedDict, cast

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
Runnable = Callable[[Any, Any, Any], Coroutine[Any, Any, None]]
"""An application whose call only makes a coroutine, and runs nothing yet."""


def as_coroutine_function(app: Application) -> Runnable:
    """Return an application that can be the coroutine of a task, whatever ``app`` returns."""
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(
        getattr(app, "__call__", None)  # noqa: B004 - not whether, but what it is
    ):
        return cast("Runnable", app)

    async def call(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    return call


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
