"""Heads read by h11 (pure Python), where httptools cannot be imported or is not wanted."""

import h11

from asgictl_worker.http.framing import Parser, read_by_rules, split_fields
from asgictl_worker.http.request import Request

_REWRITTEN = (b"content-length", b"transfer-encoding")
"""Of these h11 tells what it understands: one length for several that agree, and small letters.
The rules, and the application, want what was sent."""


class H11Parser(Parser):
    """h11 for the heads of requests only; it never learns of bodies and responses."""

    __slots__ = ()

    def parse_head(self, head: bytes, method: str, target: bytes, http_version: str) -> Request:
        """See ``Parser``."""
        library = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head))
        library.receive_data(head)
        try:
            event = library.next_event()
        except h11.RemoteProtocolError:
            return read_by_rules(head, method, target, http_version)
        assert isinstance(event, h11.Request), event
        headers = list(event.headers)
        if any(name in _REWRITTEN for name, _ in headers):
            headers = split_fields(head)
        return Request(method, target, http_version, headers)
