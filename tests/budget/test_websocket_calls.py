"""How many calls one echoed message costs: a slow-down is a failing test and not a feeling."""

import os
import sys

import pytest
from tests.worker.waiting import until
from tests.worker.websocket.conversation import Conversation

import asgictl_worker

BUDGET = 10
"""Calls of asgictl's own functions. Raise it in the commit that needs more, with the reason."""

OWN = os.path.dirname(asgictl_worker.__file__)
MESSAGES = 100
FRAME = b"\x81\xe4\x00\x00\x00\x00" + b"x" * 100


async def echo(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def echo_once(talk: Conversation) -> None:
    talk.transport.written.clear()
    talk.cycle.data_received(FRAME)
    await until(lambda: talk.transport.written)


@pytest.mark.parametrize("deflate", [False, True])
async def test_an_echoed_message_stays_within_its_budget_of_calls(deflate):
    talk = await Conversation(echo, offer="deflate" if deflate else ()).open()
    await echo_once(talk)
    calls = []

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(OWN):
            calls.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        for _ in range(MESSAGES):
            await echo_once(talk)
    finally:
        sys.setprofile(None)
    assert len(calls) <= BUDGET * MESSAGES, sorted(set(calls))
