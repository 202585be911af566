"""Ids by which a request is found again, from the proxy to the log of the application.

The id comes from a header that the operator names, if a trusted peer sent it and it is one
word of harmless characters; otherwise it is made. ``current()`` returns it anywhere in the
code that a request runs, and ``RequestIdFilter`` gives it to the records of any handler.

The supervisor's log imports this too: no event loop here.
"""

import itertools
import logging
import os
import re
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from asgictl_worker.asgi import Application
from asgictl_worker.proxy import ProxyTrust

_CURRENT: ContextVar[str] = ContextVar("asgictl_request_id", default="")

# What identifies requests elsewhere (UUIDs, trace ids with "Root=1-67;Self=2", base64), but
# nothing that means something in a log, a shell or HTML.
_GOOD = re.compile(rb"[A-Za-z0-9._~+/=:;@-]{1,200}")


def current() -> str:
    """Return the id of the request that runs now; empty where there is none."""
    return _CURRENT.get()


def enter(identity: str) -> None:
    """Let ``current()`` return this id, in the context of the request."""
    _CURRENT.set(identity)


def entered(app: Application) -> Application:
    """Return an application for whose requests ``current()`` returns their ids."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        enter(scope["state"]["request_id"])
        await app(scope, receive, send)

    return call


class RequestIdFilter(logging.Filter):
    """Gives records the attribute ``request_id``, ``-`` where there is no request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Set the attribute, unless the record brings it; keep every record."""
        if not hasattr(record, "request_id"):
            record.request_id = current() or "-"
        return True


class RequestIds:
    """Takes or makes the ids of one worker's requests.

    Args:
        header: the name of the header.
        trust: the peers whose ids are taken.

    Attributes:
        name: of the header, in lower case.
    """

    __slots__ = ("_numbers", "_prefix", "_trust", "name")

    def __init__(self, header: str, trust: ProxyTrust) -> None:
        self.name = header.lower().encode("ascii")
        self._trust = trust
        # Random once per worker, then counted: as unique as a random id for each request, for
        # a tenth of the time.
        self._prefix = os.urandom(10).hex()
        self._numbers = itertools.count(1)

    def make(self) -> str:
        """Return a new id."""
        return f"{self._prefix}-{next(self._numbers):x}"

    def take(self, headers: Iterable[tuple[bytes, bytes]], peer: str | None) -> str:
        """Return the id that came with a request, or a new one.

        Args:
            headers: names in lower case.
            peer: the address of who sent them; None is a UNIX socket.
        """
        wanted = self.name
        found = [value for name, value in headers if name == wanted]
        if len(found) == 1 and _GOOD.fullmatch(found[0]) and self._trust.trusts(peer):
            return found[0].decode("ascii")
        return self.make()
