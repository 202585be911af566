"""The admin process as the supervisor sees it: one that may say anything, and end any time."""

import json
import os
import select
import socket
from collections.abc import Callable, Iterator

import pytest

from asgictl.admin import HEALTHY_AFTER, PAUSES, Admin, listen
from asgictl.settings import Settings
from asgictl.system import kernel, spawn
from asgictl.system.listeners import CannotBind
from asgictl_worker.errors import BadSetting


class House:
    """A loop turned by hand, and an admin process that is the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.sources: dict[int, tuple[Callable[[], None], int]] = {}
        self.ends: list[socket.socket] = []
        self.buried: list[kernel.Child] = []
        settings = Settings(admin_bind="127.0.0.1:0")
        listener = listen(settings)
        assert listener is not None
        # What a fork would be: a process that leaves the line to the test.
        monkeypatch.setattr(socket, "socketpair", self.pair)
        monkeypatch.setattr(kernel, "fork", self.fork)
        self.fork_error: OSError | None = None
        self.admin = Admin(
            listener,
            spawn.Surroundings(settings=settings, environ={}, identity=None),
            {"status": lambda: {"ready": 2}, "listeners": lambda: {"long": "x" * 1_000_000}},
            self.watch,
            lambda fd: self.sources.pop(fd, None) and None,
            self.buried.append,
            lambda: self.now,
        )

    def pair(self, _pair: Callable[..., tuple[socket.socket, ...]] = socket.socketpair) -> object:
        ours, theirs = _pair()
        self.ends.append(theirs.dup())
        self.ends[-1].settimeout(0)
        return ours, theirs

    def fork(self) -> int:
        if self.fork_error:
            raise self.fork_error
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        # Or it would hold the other end of the line for a while.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return pid

    def watch(self, fd: int, source: Callable[[], None], events: int = select.POLLIN, /) -> None:
        self.sources[fd] = source, events

    def turn(self) -> None:
        self.admin.on_time()
        poll = select.poll()
        for fd, (_, events) in self.sources.items():
            poll.register(fd, events)
        for fd, _ in poll.poll(0):
            self.sources[fd][0]()

    def say(self, data: bytes) -> None:
        self.ends[-1].send(data)
        self.turn()

    def hear(self) -> bytes:
        heard = b""
        while not heard.endswith(b"\n"):
            heard += self.ends[-1].recv(100_000)
            self.turn()
        return heard

    def close(self) -> None:
        self.admin.close()
        for end in self.ends:
            end.close()
        for child in self.buried:
            child.wait(10.0)
            child.close()


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    house = House(monkeypatch)
    yield house
    house.close()


def test_it_is_forked_at_once_and_may_ask(house: House) -> None:
    house.turn()
    house.say(b'{"verb":"status"}\n')
    assert json.loads(house.hear()) == {"ready": 2}


@pytest.mark.parametrize("line", [b'{"verb":"stop"}', b'{"verb":"scale","to":"0"}', b"junk", b"[]"])
def test_it_can_only_look(house: House, line: bytes) -> None:
    house.turn()
    house.say(line + b'\n{"verb":"status"}\n')
    refused, answer = map(json.loads, house.hear().splitlines())
    assert refused["ok"] is False
    assert answer == {"ready": 2}


def test_a_long_answer_waits_until_it_reads(house: House) -> None:
    house.turn()
    house.say(b'{"verb":"listeners"}\n')
    assert len(house.hear()) > 1_000_000


def test_one_that_asks_and_does_not_read_is_replaced(house: House) -> None:
    house.turn()
    for _ in range(40):
        if len(house.buried) == 0:
            house.say(b'{"verb":"listeners"}\n')
    assert len(house.buried) == 1
    house.now += PAUSES[0]
    house.turn()
    house.say(b'{"verb":"status"}\n')
    assert json.loads(house.hear()) == {"ready": 2}


def test_a_line_without_end_is_not_kept(house: House) -> None:
    house.turn()
    for _ in range(20):
        if len(house.buried) == 0:
            house.say(b"x" * 4096)
    assert len(house.buried) == 1


def test_when_it_dies_another_one_is_forked_soon_and_then_less_often(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    for number, pause in enumerate((*PAUSES, PAUSES[-1])):
        house.turn()
        assert len(house.ends) == number + 1
        house.ends[-1].close()
        house.ends[-1] = socket.socket()
        house.turn()
        assert house.admin.deadline == pytest.approx(house.now + pause)
        house.now += pause
    assert "has ended; trying again in 0.1 s" in caplog.text
    house.turn()
    house.now += HEALTHY_AFTER + 1.0
    house.ends[-1].close()
    house.ends[-1] = socket.socket()
    house.turn()
    assert house.admin.deadline == pytest.approx(house.now + PAUSES[0]), "it was healthy"


def test_where_no_process_can_be_had_it_is_tried_again(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.fork_error = OSError(11, "Resource temporarily unavailable")
    house.turn()
    assert "cannot fork: Resource temporarily unavailable" in caplog.text
    house.fork_error = None
    house.now += PAUSES[0]
    house.turn()
    house.say(b'{"verb":"status"}\n')
    assert json.loads(house.hear()) == {"ready": 2}


# -- Where it serves


def test_without_the_setting_there_is_nothing() -> None:
    assert listen(Settings()) is None


def test_a_port_in_use_is_an_error_like_any_other() -> None:
    first = listen(Settings(admin_bind="127.0.0.1:0"))
    assert first is not None
    port = first.socket.getsockname()[1]
    with pytest.raises(CannotBind, match=str(port)):
        listen(Settings(admin_bind=f"127.0.0.1:{port}"))
    first.close()


def test_a_unix_socket_is_removed_at_the_end(tmp_path: object) -> None:
    path = f"{tmp_path}/admin.sock"
    listener = listen(Settings(admin_bind=f"unix:{path}"))
    assert listener is not None
    assert os.path.exists(path)
    listener.close()
    assert not os.path.exists(path)


@pytest.mark.parametrize("text", ["fd://3", "systemd:web", "80", "localhost", "h:99999"])
def test_other_places_are_turned_down(text: str) -> None:
    with pytest.raises(BadSetting, match="admin_bind") as caught:
        Settings(admin_bind=text)
    assert "systemd:NAME" not in str(caught.value), "what it does not take is not offered"


@pytest.mark.parametrize(
    ("serving", "admin"),
    [
        ("127.0.0.1:9000", "127.0.0.1:9000"),
        (":9000", "127.0.0.1:9000"),
        ("0.0.0.0:9000", "127.0.0.1:9000"),
        ("[::1]:9000", "[::]:9000"),
        ("unix:x", "unix:x"),
    ],
)
def test_it_has_an_address_of_its_own(serving: str, admin: str) -> None:
    with pytest.raises(BadSetting, match="an address of its own"):
        Settings(bind=(serving,), admin_bind=admin)


@pytest.mark.parametrize(
    ("serving", "admin"),
    [
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("127.0.0.1:9000", "127.0.0.2:9000"),
        ("0.0.0.0:9000", "[::1]:9000"),
        ("unix:x", "unix:y"),
        ("unix:x", ":9000"),
    ],
)
def test_addresses_that_do_not_meet_are_both_had(serving: str, admin: str) -> None:
    assert Settings(bind=(serving,), admin_bind=admin).admin_bind == admin
