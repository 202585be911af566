"""The control server against clients of every kind, over real sockets."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.supervisor.operate.loop import Loop, Peer, peers

from asgictl.core import events as ev
from asgictl.operate import control
from asgictl.operate.control import Answer, Answers
from asgictl.operate.protocol import MAX_REQUEST, Refused, Request

TICK = ev.Tick()


class Desk:
    """Answers ``echo`` at once, ``wait`` at the second event after it, and big things."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.closed = 0
        self.during: Callable[[], None] = lambda: None

    def answer(self, request: Request) -> Answers:
        self.heard.append(request.verb)
        if request.verb == "unknown":
            raise Refused("there is no verb 'unknown'")
        return getattr(self, f"_{request.verb}")(**request.arguments)  # type: ignore[no-any-return]

    def _echo(self, **arguments: Any) -> Answers:
        self.during()
        return arguments
        yield

    def _wait(self) -> Answers:
        try:
            yield {"progress": "begun"}
            first = yield None
            yield {"progress": str(first)}
            yield None
            return {"done": True}
        finally:
            self.closed += 1

    def _refuse(self) -> Answers:
        yield {"progress": "begun"}
        raise Refused("it does not work", "Traceback")

    def _crash(self) -> Answers:
        raise ValueError("a bug")
        yield

    def _big(self, size: int) -> Answers:
        return {"big": "x" * size}
        yield

    def _stream(self) -> Answers:
        while True:
            yield {"record": "x" * 100_000}
            yield None


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def loop(tmp_path: Path, desk: Desk) -> Iterator[Loop]:
    with contextlib.closing(Loop(tmp_path / "s", desk.answer)) as loop:
        yield loop


# -- Conversations


def test_a_request_is_answered_and_then_the_next_one(loop: Loop) -> None:
    peer = Peer(loop)
    assert peer.ask("echo", x=1).hear() == [{"ok": True, "x": 1}]
    assert peer.ask("echo", x=2).hear() == [{"ok": True, "x": 2}]


def test_requests_that_come_together_are_answered_in_order(loop: Loop) -> None:
    peer = Peer(loop)
    for number in range(50):
        peer.ask("echo", x=number)
    assert [answer["x"] for answer in peer.hear()] == list(range(50))


def test_a_request_may_come_byte_by_byte(loop: Loop) -> None:
    peer = Peer(loop)
    for byte in b'{"verb": "echo"}\n':
        peer.say(bytes([byte]))
        loop.turn()
    assert peer.hear() == [{"ok": True}]


def test_a_client_may_stop_talking_and_still_hear_its_answer(loop: Loop) -> None:
    peer = Peer(loop).ask("wait")
    peer.socket.shutdown(socket.SHUT_WR)
    peer.hear()
    loop.server.learned(TICK)
    loop.server.learned(TICK)
    assert peer.hear()[-1] == {"ok": True, "done": True}
    assert peer.is_hung_up()


def test_what_is_refused_is_said_and_the_conversation_goes_on(loop: Loop) -> None:
    peer = Peer(loop)
    assert peer.ask("unknown").hear() == [{"ok": False, "error": "there is no verb 'unknown'"}]
    assert peer.ask("refuse").hear() == [
        {"progress": "begun"},
        {"ok": False, "error": "it does not work", "detail": "Traceback"},
    ]
    assert peer.say(b"junk\n").hear()[0]["ok"] is False
    assert peer.ask("echo").hear() == [{"ok": True}]


def test_a_bug_of_ours_is_logged_and_hurts_only_its_request(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer(loop)
    (answer,) = peer.ask("crash").hear()
    assert answer["error"] == "internal error: ValueError('a bug'); see the log"
    assert "please report it" in caplog.text
    assert peer.ask("echo").hear() == [{"ok": True}]


# -- Waiting


def test_an_answer_may_wait_for_events_while_others_are_served(loop: Loop) -> None:
    waiting, other = Peer(loop).ask("wait"), Peer(loop)
    assert waiting.hear() == [{"progress": "begun"}]
    assert other.ask("echo").hear() == [{"ok": True}]
    loop.server.learned(ev.Lag(1.0))
    assert waiting.hear() == [{"progress": "Lag(seconds=1.0)"}]
    loop.server.learned(TICK)
    assert waiting.hear() == [{"ok": True, "done": True}]


def test_a_request_behind_one_that_waits_has_its_turn_after_it(loop: Loop, desk: Desk) -> None:
    peer = Peer(loop).ask("wait").ask("echo")
    peer.hear()
    assert desk.heard == ["wait"]
    loop.server.learned(TICK)
    loop.server.learned(TICK)
    assert desk.heard == ["wait"], "not within somebody else's event"
    assert [answer for answer in peer.hear() if "ok" in answer] == [
        {"ok": True, "done": True},
        {"ok": True},
    ]


def test_an_event_that_a_request_causes_does_not_reach_itself(loop: Loop, desk: Desk) -> None:
    waiting = Peer(loop).ask("wait")
    waiting.hear()
    desk.during = lambda: loop.server.learned(TICK)
    assert Peer(loop).ask("echo").hear() == [{"ok": True}]
    assert waiting.hear() == [{"progress": "Tick()"}]


def test_who_waits_may_do_so_for_ever(loop: Loop) -> None:
    peer = Peer(loop).ask("wait")
    peer.hear()
    loop.now += 1e6
    assert not peer.is_hung_up()


def test_who_hangs_up_while_waiting_is_forgotten(loop: Loop, desk: Desk) -> None:
    peer = Peer(loop).ask("wait")
    peer.hear()
    peer.close()
    loop.settle()
    assert desk.closed == 1
    loop.server.learned(TICK)
    assert loop.watched == 1


# -- Clients that do harm


def test_half_a_request_is_refused_after_five_seconds(loop: Loop) -> None:
    peer = Peer(loop).say(b'{"verb":')
    loop.settle()
    for _ in range(4):
        loop.now += 1.2
        peer.say(b" ")  # a byte now and then does not help
        loop.turn()
    loop.now += 0.3
    assert peer.hear() == [{"ok": False, "error": "no whole request within 5 s"}]
    assert peer.is_hung_up()


def test_who_says_nothing_is_hung_up_on(loop: Loop) -> None:
    silent, served = Peer(loop), Peer(loop)
    loop.settle()
    loop.now += 4.0
    served.ask("echo").hear()
    loop.now += 1.1
    assert silent.is_hung_up()
    assert not served.is_hung_up(), "its time begins with its last answer"
    loop.now += 4.0
    assert served.is_hung_up()


def test_a_line_without_an_end_is_refused(loop: Loop) -> None:
    peer = Peer(loop)
    for _ in range(MAX_REQUEST // 8192 + 1):
        peer.say(b"x" * 8192)
        loop.settle()
        if peer.is_hung_up():
            break
    else:
        raise AssertionError("still read from")


def test_the_seventeenth_client_is_told_so(loop: Loop) -> None:
    first = list(peers(loop, control.MAX_CLIENTS))
    loop.settle()
    late = Peer(loop).ask("echo")
    assert late.hear() == [
        {"ok": False, "error": "16 clients are connected already; try again later"}
    ]
    assert late.is_hung_up()
    assert all(peer.ask("echo").hear() == [{"ok": True}] for peer in first)
    first[0].close()
    loop.settle()
    assert Peer(loop).ask("echo").hear() == [{"ok": True}]


def test_a_thousand_connections_are_survived_and_a_few_taken_per_turn(loop: Loop) -> None:
    crowd = list(peers(loop, 1000))
    loop.turn()
    assert loop.watched == 1 + control.MAX_CLIENTS
    loop.settle()
    assert loop.watched == 1 + control.MAX_CLIENTS
    for peer in crowd:
        peer.close()
    loop.settle()
    assert loop.watched == 1
    assert Peer(loop).ask("echo").hear() == [{"ok": True}]


def test_an_answer_that_is_not_read_waits_and_its_reader_gets_all_of_it(loop: Loop) -> None:
    peer = Peer(loop).ask("big", size=3_000_000)
    (answer,) = peer.hear()
    assert len(answer["big"]) == 3_000_000


def test_who_does_not_read_is_hung_up_on_after_a_while(loop: Loop) -> None:
    peer = Peer(loop).ask("big", size=3_000_000)
    loop.settle()
    loop.now += control.READ_TIMEOUT - 0.1
    loop.settle()
    assert loop.watched == 2
    loop.now += 0.2
    loop.settle()
    assert loop.watched == 1
    peer.close()


def test_more_than_the_limit_is_not_kept_for_anybody(loop: Loop) -> None:
    peer = Peer(loop).ask("big", size=control.MAX_OUTPUT + 1)
    assert peer.is_hung_up()


def test_a_stream_that_is_not_read_ends(loop: Loop) -> None:
    Peer(loop).ask("stream")
    loop.settle()
    for _ in range(100):
        loop.server.learned(TICK)
    assert loop.watched == 1


def test_requests_of_who_does_not_read_are_not_looked_at(loop: Loop, desk: Desk) -> None:
    peer = Peer(loop).ask("big", size=1_000_000).ask("echo")
    loop.settle()
    assert desk.heard == ["big"]
    assert peer.hear()[-1] == {"ok": True}


def test_a_flood_of_requests_gets_its_share_of_a_turn_and_no_more(loop: Loop, desk: Desk) -> None:
    desk.during = lambda: setattr(loop, "now", loop.now + control.BUDGET / 2)
    flood, other = Peer(loop), Peer(loop)
    loop.settle()
    for number in range(20):
        flood.ask("echo", x=number)
    other.ask("echo", x="other")
    loop.turn()
    assert len(desk.heard) <= 4
    assert [answer["x"] for answer in other.hear()] == ["other"]
    assert [answer["x"] for answer in flood.hear()] == list(range(20))


def test_who_hangs_up_at_any_moment_is_forgotten(loop: Loop, desk: Desk) -> None:
    for words in (b"", b"{", b'{"verb": "echo"}\n', b'{"verb": "big", "size": 1000000}\n'):
        peer = Peer(loop).say(words) if words else Peer(loop)
        peer.close()
        loop.settle()
        assert loop.watched == 1
    desk.during = lambda: peer.close()
    peer = Peer(loop).ask("echo").ask("echo")
    loop.settle()
    assert loop.watched == 1


def test_junk_of_any_kind_is_answered(loop: Loop) -> None:
    peer = Peer(loop)
    for junk in (b"\x00\xff\n", b"GET / HTTP/1.1\r\n\r\n", b"\n\n", b"[[[[\n", b'{"verb":[]}\n'):
        assert all(answer["ok"] is False for answer in peer.say(junk).hear())
    assert peer.ask("echo").hear()[-1] == {"ok": True}


def test_without_descriptors_it_pauses_and_takes_the_waiting_later(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = Peer(loop).ask("echo")

    class Exhausted:
        """A socket of a process that has no descriptor left."""

        fileno = loop.listening.fileno

        def accept(self) -> Any:
            raise OSError(24, "Too many open files")

    monkeypatch.setattr(loop.server, "_listening", Exhausted())
    loop.settle()
    assert loop.watched == 0
    assert loop.server.deadline == control.ACCEPT_PAUSE
    monkeypatch.setattr(loop.server, "_listening", loop.listening)
    loop.now += control.ACCEPT_PAUSE
    assert peer.hear() == [{"ok": True}]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_foreign_user_is_refused(loop: Loop) -> None:
    os.chmod(loop.path, 0o666)
    for folder in loop.path.parents[:3]:
        os.chmod(folder, os.stat(folder).st_mode | 0o055)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(loop.path))
                os.write(write, client.recv(1000))
        finally:
            os._exit(0)
    os.close(write)
    deadline = time.monotonic() + 20
    while not os.waitpid(pid, os.WNOHANG)[0]:
        loop.turn()
        assert time.monotonic() < deadline
    with open(read, "rb") as answer:
        said = answer.read()
    assert said == (
        b'{"ok":false,"error":"only user 0 and root are served here, and you are 65534"}\n'
    )
    assert loop.watched == 1


def test_closing_hangs_up_on_everybody(loop: Loop, desk: Desk) -> None:
    idle, waiting = Peer(loop), Peer(loop).ask("wait")
    loop.settle()
    loop.server.close()
    assert loop.watched == 0
    assert desk.closed == 1
    assert idle.is_hung_up()
    assert waiting.is_hung_up()


# -- Where to listen


def refuse(_: str) -> Answer:
    raise PermissionError(30, "Read-only file system")


def test_none_listens_nowhere_and_a_path_is_taken_as_it_is() -> None:
    assert control.listen("none", {}, refuse) is None
    assert control.listen("/x/y", {}, lambda path: path) == "/x/y"
    with pytest.raises(PermissionError):
        control.listen("/x/y", {}, refuse)


def test_auto_takes_the_best_place_that_works(tmp_path: Path) -> None:
    environ = {"RUNTIME_DIRECTORY": f"{tmp_path}/service:/other", "XDG_RUNTIME_DIR": str(tmp_path)}
    assert control.listen("auto", environ, lambda path: path) == f"{tmp_path}/service/asgictl.sock"

    def bind(path: str) -> str:
        return path if "service" not in path else refuse(path)  # type: ignore[return-value]

    assert control.listen("auto", environ, bind) == f"{tmp_path}/asgictl/{os.getpid()}.sock"


def test_auto_goes_without_where_nothing_works_and_says_so_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert control.listen("auto", {"XDG_RUNTIME_DIR": str(tmp_path)}, refuse) is None
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "Read-only file system" in record.message
    assert "--control" in record.message
