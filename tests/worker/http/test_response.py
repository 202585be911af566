"""The order of a response's messages: the table, and the cycle that spells it out."""

import asyncio
import itertools

import pytest
from tests.worker.http.wire import GET, Peer
from tests.worker.waiting import until

from asgictl_worker.http.response import (
    TRANSITIONS,
    ClientDisconnected,
    IncompleteResponse,
    Phase,
    Step,
    UnexpectedMessage,
)

START = {"type": "http.response.start", "status": 200}
LARGE_FILE = 100_000
"""Bytes that are more than what is written together with the head."""


@pytest.fixture
def messages(tmp_path):
    """A message for each step."""
    path = tmp_path / "file"
    path.write_bytes(bytes(LARGE_FILE))
    with path.open("rb") as file:
        part = {"type": "http.response.zerocopysend", "file": file, "offset": 0}
        trailers = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]}
        yield {
            Step.START: START,
            Step.PART: {"type": "http.response.body", "body": b"x", "more_body": True},
            Step.LAST: {"type": "http.response.body", "body": b"y"},
            Step.FILE: {"type": "http.response.pathsend", "path": str(path)},
            Step.FILE_PART: {**part, "more_body": True},
            Step.LAST_FILE_PART: part,
            Step.HINT: {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]},
            Step.SOME_TRAILERS: {**trailers, "more_trailers": True},
            Step.TRAILERS: trailers,
        }


PATHS = {
    Phase.WAITING: [],
    Phase.HELD: [Step.START],
    Phase.STREAMING: [Step.START, Step.PART],
    Phase.COPYING: [Step.START],
    Phase.TRAILING: [Step.START, Step.LAST],
    Phase.COMPLETE: [Step.START, Step.LAST],
}


@pytest.mark.parametrize(("phase", "step"), list(itertools.product(Phase, Step)))
async def test_the_cycle_takes_exactly_what_the_table_allows(phase, step, messages):
    outcome = []

    async def app(scope, receive, send):
        start = {**START, "trailers": phase is Phase.TRAILING}
        for earlier in PATHS[phase]:
            await send(start if earlier is Step.START else messages[earlier])
        cycle = send.__self__
        connection = cycle._connection
        copying = None
        if phase is Phase.COPYING:
            connection.pause_writing()
            copying = asyncio.create_task(send(messages[Step.FILE_PART]))
            await until(lambda: cycle._phase is not Phase.HELD)
        assert cycle._phase is phase
        if step in TRANSITIONS[phase]:
            await send(messages[step])
        else:
            with pytest.raises(UnexpectedMessage) as caught:
                await send(messages[step])
            assert caught.value.phase is phase
        outcome.append(cycle._phase)
        if copying is not None:
            connection.resume_writing()
            await copying
            assert cycle._phase is Phase.STREAMING

    peer = Peer(app)
    peer.send(GET)
    await peer.idle()
    assert outcome == [TRANSITIONS[phase].get(step, phase)]


@pytest.mark.parametrize("last", [Step.LAST, Step.FILE, Step.LAST_FILE_PART])
async def test_promised_trailers_come_before_the_end(last, messages):
    phases = []

    async def app(scope, receive, send):
        for message in ({**START, "trailers": True}, messages[last], messages[Step.TRAILERS]):
            await send(message)
            phases.append(send.__self__._phase)

    peer = Peer(app)
    peer.send(GET)
    await peer.idle()
    assert phases == [Phase.HELD, Phase.TRAILING, Phase.COMPLETE]


def test_every_phase_is_in_the_table():
    assert set(TRANSITIONS) == set(Phase)


@pytest.mark.parametrize("phase", Phase)
def test_an_unexpected_message_says_what_was_expected(phase):
    text = str(UnexpectedMessage("http.response.nonsense", phase))
    assert "http.response.nonsense" in text
    expected = {Phase.COMPLETE: "complete", Phase.COPYING: "being sent"}.get(phase, "comes")
    assert expected in text


@pytest.mark.parametrize("phase", [each for each in Phase if each is not Phase.COMPLETE])
def test_an_incomplete_response_says_what_is_missing(phase):
    assert str(IncompleteResponse(phase)).startswith("the application returned ")


def test_a_disconnect_is_an_os_error():
    assert isinstance(ClientDisconnected(), OSError)
