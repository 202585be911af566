"""The supervisor's end of a real socket pair."""

import os
import signal
import socket
import struct
from collections.abc import Iterator

import pytest
from tests.supervisor.system.children import FORKS, ended, start

from asgictl.system.channel import ALL_MESSAGES, MESSAGES_PER_TURN, Channel
from asgictl_worker import contract

pytestmark = FORKS


Pair = tuple[Channel, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = Channel.pair()
    theirs.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def fill(end: socket.socket, message: contract.Message) -> int:
    """Send until the other end takes no more; return how many went."""
    sent = 0
    while True:
        try:
            end.send(contract.encode(message))
        except BlockingIOError:
            return sent
        sent += 1


def test_messages_keep_their_borders_and_their_order(pair: Pair) -> None:
    ours, theirs = pair
    sent = [contract.Stage(stage="import"), contract.Ready(), contract.Beat(connections=3)]
    for message in sent:
        theirs.send(contract.encode(message))
    assert ours.receive() == (sent, True)
    assert ours.receive() == ([], True)


def test_what_is_said_arrives(pair: Pair) -> None:
    ours, theirs = pair
    assert ours.send(contract.Drain(timeout=2.0, reason="stop"))
    message = contract.decode(theirs.recv(contract.MAX_MESSAGE))
    assert message == contract.Drain(timeout=2.0, reason="stop")


def test_the_longest_message_arrives_whole(pair: Pair) -> None:
    ours, theirs = pair
    long = contract.Failed(stage="import", error="x" * (contract.MAX_MESSAGE - 100), traceback="")
    theirs.send(contract.encode(long))
    assert ours.receive() == ([long], True)


def test_a_worker_that_talks_without_end_is_heard_in_turns(pair: Pair) -> None:
    ours, theirs = pair
    waiting = fill(theirs, contract.Beat())
    assert waiting > MESSAGES_PER_TURN
    messages, _ = ours.receive()
    assert len(messages) == MESSAGES_PER_TURN
    messages, _ = ours.receive(ALL_MESSAGES)
    assert len(messages) == waiting - MESSAGES_PER_TURN


def test_the_last_words_of_a_dead_worker_are_heard_behind_all_its_beats(pair: Pair) -> None:
    ours, theirs = pair
    last = contract.Bye(reason="drained")
    child = start(lambda: (fill(theirs, contract.Beat()), None)[1])
    ended(child)
    ours.receive(1)  # room for one more
    theirs.send(contract.encode(last))
    theirs.close()
    messages, is_open = ours.receive(ALL_MESSAGES)
    assert messages[-1] == last
    assert not is_open


def test_nothing_that_a_socket_holds_is_more_than_all(pair: Pair) -> None:
    _, theirs = pair
    assert fill(theirs, contract.Beat()) < ALL_MESSAGES


def test_a_dead_worker_ends_the_line(pair: Pair) -> None:
    ours, theirs = pair

    def work() -> None:
        theirs.send(contract.encode(contract.Ready()))
        signal.raise_signal(signal.SIGKILL)

    child = start(work)
    theirs.close()
    ended(child)
    assert ours.receive() == ([contract.Ready()], False)
    assert ours.receive() == ([], False)
    assert not ours.send(contract.ReopenLogs())


def test_a_worker_that_does_not_read_is_not_waited_for(pair: Pair) -> None:
    ours, _theirs = pair
    while ours.send(contract.ReopenLogs()):
        pass
    assert not ours.send(contract.Drain(timeout=1.0, reason="stop"))


def test_a_message_of_a_newer_program_is_counted_and_skipped(pair: Pair) -> None:
    ours, theirs = pair
    theirs.send(contract.HEADER.pack(contract.MAGIC, 9, 250) + b"{}")
    theirs.send(contract.encode(contract.Ready()))
    assert ours.receive() == ([contract.Ready()], True)
    assert (ours.unknown, ours.malformed) == (1, 0)


@pytest.mark.parametrize(
    "datagram",
    [
        b"x",
        b"\0" * 4,
        struct.pack("!HBB", 0xBAD, 1, 3) + b"{}",
        contract.HEADER.pack(contract.MAGIC, 1, 4) + b"no JSON",
        contract.HEADER.pack(contract.MAGIC, 1, 1) + b"short",
    ],
)
def test_junk_is_counted_and_skipped(pair: Pair, datagram: bytes) -> None:
    ours, theirs = pair
    theirs.send(datagram)
    theirs.send(contract.encode(contract.Ready()))
    assert ours.receive() == ([contract.Ready()], True)
    assert ours.malformed == 1


def test_no_program_that_a_worker_starts_inherits_the_line(pair: Pair) -> None:
    ours, theirs = pair
    assert not os.get_inheritable(ours.fileno())
    assert not theirs.get_inheritable()


def test_descriptors_travel_along(pair: Pair) -> None:
    ours, theirs = pair
    read_end, write_end = os.pipe()
    ours.send_descriptors(b"take it", [write_end])
    data, (received,), _, _ = socket.recv_fds(theirs, 100, 1)
    os.write(received, b"by another number")
    assert (data, os.read(read_end, 100)) == (b"take it", b"by another number")
    for fd in (read_end, write_end, received):
        os.close(fd)
