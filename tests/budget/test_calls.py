"""How many calls one request costs: a slow-down is a failing test and not a feeling.

Counted are calls of asgictl's own functions, from the bytes of a request to those of its
response, on a connection that has served one before.
"""

import os
import sys

import pytest
from tests.worker.http.wire import GET, HELLO, Peer, hello
from tests.worker.waiting import until

import asgictl_worker
from asgictl_worker.http import framing

BUDGET = {
    "the same again": (GET, 11),
    "a new line": (GET.replace(b" / ", b" /%d "), 24),
    "new headers": (GET[:-2] + b"x-id: %d\r\n\r\n", 23),
    "the same head with a body": (
        b"POST" + GET[3:-2] + b"content-length: 5\r\n\r\nhello",
        16,
    ),
    "behind a proxy": (
        GET[:-2] + b"x-forwarded-for: 203.0.113.7\r\nx-forwarded-proto: https\r\n\r\n",
        28,
    ),
}
"""Calls by kind of request, exactly. Raise one in the commit that needs more, with the reason."""

LAZY = sys.version_info < (3, 12)
"""Tasks begin in the loop's next turn, and two more calls see how they have ended."""

OWN = os.path.dirname(asgictl_worker.__file__)
REQUESTS = 50


@pytest.mark.parametrize("kind", BUDGET)
async def test_a_request_stays_within_its_budget_of_calls(kind, monkeypatch):
    # A worker remembers request lines, and so do other tests.
    monkeypatch.setattr(framing, "_KNOWN_LINES", {})
    template, budget = BUDGET[kind]
    peer = Peer(hello, access_log=False)
    peer.service.access_log = None
    known = template % 0 if b"%d" in template else template
    for number, data in enumerate([GET, known], 1):
        peer.send(data)
        await until(lambda number=number: len(peer.transport.writes) == number)
    calls = []

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(OWN):
            calls.append(frame.f_code.co_qualname)

    for number in range(1, REQUESTS + 1):
        data = template % number if b"%d" in template else template
        count = len(peer.transport.writes)
        sys.setprofile(note)
        try:
            peer.send(data)
            await until(lambda count=count: len(peer.transport.writes) > count)
        finally:
            sys.setprofile(None)
        assert peer.transport.writes[-1] == HELLO
    assert len(calls) == (budget + 2 * LAZY) * REQUESTS, calls[: budget + 5]
