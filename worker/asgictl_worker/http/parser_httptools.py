"""Heads read by httptools (llhttp, in C)."""

from typing import Any

import httptools

from asgictl_worker import asgi
from asgictl_worker.http.framing import Parser, SharedHeads, Sink, read_by_rules
from asgictl_worker.http.request import Request
from asgictl_worker.settings import WorkerSettings

_NAMES = {
    spelling: name
    for name in (
        b"accept accept-encoding accept-language authorization cache-control connection "
        b"content-length content-type cookie dnt host if-modified-since if-none-match origin "
        b"pragma priority range referer sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform "
        b"sec-fetch-dest sec-fetch-mode sec-fetch-site sec-fetch-user traceparent tracestate "
        b"transfer-encoding upgrade-insecure-requests user-agent via x-forwarded-for "
        b"x-forwarded-host x-forwarded-port x-forwarded-proto x-real-ip x-request-id".split()
    )
    for spelling in (name, name.title())
}
"""Usual names, as they are sent and in lower case: connections that remember them share them."""


class HttptoolsParser(Parser):
    """The parser of choice where httptools imports."""

    __slots__ = ("_fields", "_library", "_reusable")

    def __init__(
        self,
        sink: Sink,
        settings: WorkerSettings,
        shared: SharedHeads | None = None,
    ) -> None:
        super().__init__(sink, settings, shared)
        self._fields = asgi.Headers()
        self._library: Any = None
        self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field; called by httptools, which leaves white space behind the value."""
        self._fields.append((_NAMES.get(name) or name.lower(), value.strip()))

    def parse_head(self, head: bytes, method: str, target: bytes, http_version: str) -> Request:
        """See ``Parser``."""
        self._fields = []
        if not self._reusable:
            self._library = httptools.HttpRequestParser(self)
        try:
            self._library.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._reusable = False
        except httptools.HttpParserError:
            self._reusable = False
            return read_by_rules(head, method, target, http_version)
        request = Request(method, target, http_version, self._fields)
        # llhttp now waits for a body, which it is not going to get, or for the end.
        self._reusable = not request.has_body and request.keep_alive
        return request

    def forget(self) -> None:
        """See ``Parser``."""
        super().forget()
        self._fields = []
        self._let_go()

    def close(self) -> None:
        """See ``Parser``; the library holds this parser, too."""
        super().close()
        self._let_go()

    def _let_go(self) -> None:
        self._reusable = False
        self._library = None
