"""What the parsers find in bytes, written down so that it can be compared."""

from itertools import pairwise
from typing import Any

from asgictl_worker.http import framing
from asgictl_worker.http.parser_h11 import H11Parser
from asgictl_worker.http.parser_httptools import HttptoolsParser
from asgictl_worker.http.request import BadRequest, Request
from asgictl_worker.settings import WorkerSettings

PARSERS = {"httptools": HttptoolsParser, "h11": H11Parser}


class Sink:
    """Writes down what a parser found, bodies joined, and goes on after each request."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def request_received(self, request: Request, body: bytes = b"") -> None:
        facts = (
            request.method,
            request.target,
            request.http_version,
            tuple(request.headers),
            request.content_length,
            request.chunked,
            request.has_body,
            request.keep_alive,
            request.expect_continue,
            request.forwarded,
            request.accepts_trailers,
            request.upgrade,
        )
        self.found.append(("request", facts))
        if body:
            self.body_received(body)
            if len(body) == request.content_length:
                self.body_ended()

    def body_received(self, data: bytes) -> None:
        assert data
        assert type(data) is bytes
        if self.found[-1][0] == "body":
            data = self.found.pop()[1] + data
        self.found.append(("body", data))

    def body_ended(self) -> None:
        self.found.append(("end", None))

    def bytes_ended(self) -> None:
        pass

    def request_refused(self, error: BadRequest) -> None:
        self.found.append(("refused", error.status))


def parse(
    parser: str, pieces: list[bytes], shared: framing.SharedHeads | None = None, **settings: Any
) -> list[Any]:
    """Return what a parser finds in bytes that come in pieces."""
    sink = Sink()
    instance = PARSERS[parser](sink, WorkerSettings(**settings), shared)
    for piece in pieces:
        instance.feed(piece)
        while instance.state == framing.ENDED:
            instance.proceed()
            if not instance.buffer:
                break
    return sink.found


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(borders) if start < end]
