"""The order of a response's messages: the table, and the cycle that spells it out."""

import itertools

import pytest
from tests.worker.http.wire import GET, Peer

from asgictl_worker.http.response import (
    TRANSITIONS,
    ClientDisconnected,
    IncompleteResponse,
    Phase,
    Step,
    UnexpectedMessage,
)

MESSAGES = {
    Step.START: {"type": "http.response.start", "status": 200},
    Step.PART: {"type": "http.response.body", "body": b"x", "more_body": True},
    Step.LAST: {"type": "http.response.body", "body": b"y"},
    Step.FILE: {"type": "http.response.pathsend", "path": __file__},
}
PATHS = {
    Phase.WAITING: [],
    Phase.HELD: [Step.START],
    Phase.STREAMING: [Step.START, Step.PART],
    Phase.COMPLETE: [Step.START, Step.LAST],
}


@pytest.mark.parametrize(("phase", "step"), list(itertools.product(Phase, Step)))
async def test_the_cycle_takes_exactly_what_the_table_allows(phase, step):
    outcome = []

    async def app(scope, receive, send):
        for earlier in PATHS[phase]:
            await send(MESSAGES[earlier])
        cycle = send.__self__
        assert cycle._phase is phase
        if step in TRANSITIONS[phase]:
            await send(MESSAGES[step])
        else:
            with pytest.raises(UnexpectedMessage) as caught:
                await send(MESSAGES[step])
            assert caught.value.phase is phase
        outcome.append(cycle._phase)

    peer = Peer(app)
    peer.send(GET)
    await peer.idle()
    assert outcome == [TRANSITIONS[phase].get(step, phase)]


def test_every_phase_is_in_the_table():
    assert set(TRANSITIONS) == set(Phase)


@pytest.mark.parametrize("phase", Phase)
def test_an_unexpected_message_says_what_was_expected(phase):
    text = str(UnexpectedMessage("http.response.nonsense", phase))
    assert "http.response.nonsense" in text
    assert "complete" in text if phase is Phase.COMPLETE else "comes" in text


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.HELD, Phase.STREAMING])
def test_an_incomplete_response_says_what_is_missing(phase):
    assert str(IncompleteResponse(phase)).startswith("the application returned ")


def test_a_disconnect_is_an_os_error():
    assert isinstance(ClientDisconnected(), OSError)
