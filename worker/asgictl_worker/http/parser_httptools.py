"""Heads read by httptools (llhttp, in C)."""

import contextlib

import httptools

from asgictl_worker import asgi
from asgictl_worker.http.framing import Parser, Sink, read_by_rules
from asgictl_worker.http.request import Request
from asgictl_worker.settings import WorkerSettings


class HttptoolsParser(Parser):
    """The parser of choice where httptools imports."""

    __slots__ = ("_fields", "_library", "_reusable")

    def __init__(self, sink: Sink, settings: WorkerSettings) -> None:
        super().__init__(sink, settings)
        self._fields = asgi.Headers()
        self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field; called by httptools, which leaves white space behind the value."""
        self._fields.append((name.lower(), value.strip()))

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

    def close(self) -> None:
        """See ``Parser``; the library holds this parser, too."""
        super().close()
        with contextlib.suppress(AttributeError):  # there was no request
            del self._library
