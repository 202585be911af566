"""What `asgictl top` draws, and how it reads keys."""

import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.supervisor.core.fleet import learn, reloading, serving
from tests.supervisor.operate.test_status import busy, look

from asgictl.core import events as ev
from asgictl.operate.client import Connection, NotRunning
from asgictl.operate.top import Frame, View, bars, fitting, keys_in, latency, run, share
from asgictl.operate.usage import Usage

USAGE = {9: Usage(0.01, 20 << 20, 12 << 20), 1001: Usage(0.5, 60 << 20, 41 << 20)}


def drawn(frame: Frame, width: int = 130, height: int = 40) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(frame.draw(width, height))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


def frame(status: Any = None, **more: Any) -> Frame:
    state, totals = busy()
    return Frame((status or look(state, totals=totals)) | more, USAGE, [0.0, 125.0, 250.0])


class TestPicture:
    def test_a_wide_terminal_shows_everything(self) -> None:
        assert drawn(frame(upgrades=1, busy=0.3)) == [
            "shop:app   healthy   http://x:80  generation 1, up 20 s, pid 9, asgictl 1.2",
            (
                "workers 2 of 2   requests/s 250   p50 0.2 ms   p99 0.5 ms   in progress 2   "
                "connections 3   busy 30%"
            ),
            "since start: requests 1,500   exceptions 2   upgrades 1   supervisor 12.0M, 1%",
            " " * 112 + "▄█  at most 250 /s",
            "",
            (
                "slot   pid  state  gen   age  conns  in prog  req/s     p50     p99  busy     lag  cpu  "
                "memory  restarts"
            ),
            (
                "   0  1001  ready    1  20 s      3        2    250  0.2 ms  0.5 ms   25%  1.5 ms  50%   "
                "41.0M  1 (SIGKILL, 10 s ago)"
            ),
            (
                "   1  1002  ready    1  20 s      0        0      0       -       -     -  0.0 ms    -   "
                "    -  0"
            ),
            "─" * 130,
            "↑ ↓ choose a worker   s its stack   r restart it   + - scale   R reload   q quit",
        ]

    @pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
    def test_in_a_narrow_one_the_most_important_columns_are_left(self, width: int) -> None:
        lines = drawn(frame(), width)
        assert any("slot" in line and "pid" in line for line in lines)
        if width >= 60:
            heading = next(line for line in lines if "slot" in line)
            assert {"state", "req/s", "p99", "lag"} <= set(heading.split())
            row = next(line for line in lines if "1001" in line)
            assert "1.5 ms" in row

    def test_in_a_low_one_the_chosen_worker_is_seen(self) -> None:
        status = look(serving(workers=30))
        lines = drawn(Frame(status, {}, chosen=12), height=20)
        assert len(lines) <= 20
        assert any(" 1012 " in line for line in lines)
        assert lines[-3].strip().endswith("more")

    @pytest.mark.parametrize(
        ("facts", "word"),
        [
            ({}, "healthy"),
            ({"ready": 1}, "degraded"),
            ({"ready": 0}, "down"),
            ({"ready": 0, "desired": 0}, "paused"),
            ({"phase": "stopping"}, "stopping"),
        ],
    )
    def test_the_first_line_says_how_it_is(self, facts: dict[str, Any], word: str) -> None:
        assert f" {word} " in drawn(frame(**facts))[0]

    def test_a_blocked_worker_is_seen(self) -> None:
        found = frame()
        found.status["workers"][0]["loop_lag"] = 4.25
        lines = drawn(found)
        assert " degraded " in lines[0]
        assert "ready, blocked" in lines[6]
        assert "4.2 s" in lines[6]

    def test_a_reload_its_end_and_what_waits_are_told(self) -> None:
        state, _ = reloading(serving(workers=1), now=18.0)
        slots = {"3": {"restarts": 2, "cause": "exit code 3", "ago": 1.0}}
        text = "\n".join(drawn(Frame(look(state) | {"waiting": {"3": 2.5}, "slots": slots}, {})))
        assert "reload: generation 2: first worker in stage 'fork' (for 2.0 s)" in text
        assert "slot 3 is tried again in 2.5 s (exit code 3)" in text
        state, _ = learn(state, ev.ReloadAborted(), now=19.0)
        text = "\n".join(drawn(Frame(look(state), {})))
        assert "last reload: generation 2 refused, 1.0 s ago: somebody has aborted it" in text
        assert "reload: waiting for its turn" in "\n".join(drawn(frame(reload_requested=True)))

    def test_much_news_leaves_room_for_the_workers(self) -> None:
        status = look(serving(workers=30))
        refused = {"generation": 2, "committed": False, "ago": 1.0, "reason": "no " * 500}
        waiting = {str(slot): slot + 1.5 for slot in range(20)}
        slots = {"3": {"restarts": 5, "cause": "SIGSEGV", "ago": 1.0}}
        status |= {"last_reload": refused, "waiting": waiting, "slots": slots}
        lines = drawn(Frame(status, {}), width=80, height=24)
        assert len(lines) <= 24
        assert sum("no no" in line for line in lines) == 3
        assert any("20 slots wait after failures (SIGSEGV), the next is tried" in x for x in lines)
        assert any(" 1001 " in line for line in lines)

    def test_without_workers_there_is_still_a_picture(self) -> None:
        assert "no workers" in drawn(frame(workers=[]))

    def test_what_came_of_a_key_takes_the_place_of_the_keys(self) -> None:
        found = frame()
        found.word = "scaling by +1"
        assert drawn(found)[-1] == "scaling by +1"

    def test_columns_are_left_out_one_by_one(self) -> None:
        columns = [(name, False, [("12345", "")]) for name in ("slot", "gen", "cpu", "lag")]
        names = [[each[0] for each in fitting(columns, width)] for width in (28, 27, 20, 5)]
        assert names == [
            ["slot", "gen", "cpu", "lag"],
            ["slot", "cpu", "lag"],
            ["slot", "lag"],
            ["slot", "lag"],
        ]


@pytest.mark.parametrize(
    ("values", "width", "text"),
    [
        ([], 3, "   "),
        ([0.0, 0.0], 3, "   "),
        ([0.0, 4.0, 8.0], 4, "  ▄█"),
        ([1.0, 2.0, 3.0], 2, "▅█"),
        ([0.001, 100.0], 2, "▁█"),
        ([5.0], 0, "█"),
    ],
)
def test_a_chart_of_one_line(values: list[float], width: int, text: str) -> None:
    assert bars(values, width) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.0, "0.0 ms"), (0.01234, "12.3 ms"), (0.25, "250 ms"), (2.04, "2.0 s")],
)
def test_latencies_have_the_unit_that_people_use(seconds: float | None, text: str) -> None:
    assert latency(seconds) == text


def test_shares_are_per_cent() -> None:
    assert [share(value) for value in (None, 0.0, 0.256, 1.0)] == ["-", "0%", "26%", "100%"]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("q", ["q"]),
        ("\x1b[A\x1b[Bs", ["\x1b[A", "\x1b[B", "s"]),
        ("\x1bOA", ["\x1b[A"]),
        ("+-\n", ["+", "-", "\n"]),
        ("\x1b[5~r", ["\x1b[5~", "r"]),
        ("\x1b", ["\x1b"]),
        ("", []),
    ],
)
def test_keys_are_told_apart(text: str, keys: list[str]) -> None:
    assert keys_in(text) == keys


# -- Keys


class House(threading.Thread):
    """A supervisor that answers what the test says, and keeps what it was asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(path))
        self.listening.listen()
        self.asked: list[dict[str, Any]] = []
        self.answers: dict[str, Any] = {}
        self.hang_up = False

    def run(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines:
                for line in lines:
                    request = json.loads(line)
                    self.asked.append(request)
                    if self.hang_up:
                        self.hang_up = False
                        break
                    status = look(serving(workers=3)) | {"pid": 0}
                    answer = self.answers.get(request["verb"], status)
                    client.sendall(json.dumps({"ok": True, **answer}).encode() + b"\n")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "control.sock")
    house.start()
    yield house
    house.listening.shutdown(socket.SHUT_RDWR)
    house.listening.close()


@pytest.fixture
def view(house: House, tmp_path: Path) -> Iterator[View]:
    with Connection(str(tmp_path / "control.sock")) as connection:
        view = View(connection, ours=False)
        view.look()
        house.asked.clear()
        yield view
        view._connection.__exit__()


UP, DOWN = "\x1b[A", "\x1b[B"


def test_arrows_choose_a_worker(view: View) -> None:
    chosen = []
    for key in (DOWN, DOWN, DOWN, DOWN, UP, "k", "k", "j"):
        assert view.press(key)
        chosen.append(view.frame.chosen)
    assert chosen == [1, 2, 3, 3, 2, 1, 1, 2]
    assert view.look().chosen == 2


@pytest.mark.parametrize(
    ("key", "request_", "word"),
    [
        ("+", {"verb": "scale", "to": "+1", "wait": False}, "scaling by +1"),
        ("-", {"verb": "scale", "to": "-1", "wait": False}, "scaling by -1"),
        ("R", {"verb": "reload", "wait": False}, "reload requested"),
    ],
)
def test_keys_move_the_service(
    view: View, house: House, key: str, request_: dict[str, Any], word: str
) -> None:
    assert view.press(key)
    assert house.asked == [request_]
    assert view.frame.word == word


def test_a_worker_is_restarted_when_one_is_chosen(view: View, house: House) -> None:
    view.press("r")
    assert view.frame.word == "choose a worker first, with the arrows"
    assert not house.asked
    view.press(DOWN)
    view.press("r")
    wanted = {"verb": "worker", "worker": "pid=1001", "do": "restart", "wait": False}
    assert house.asked == [wanted]
    assert view.frame.word == "slot 0, pid=1001 is to be replaced"


def test_a_stack_is_shown_until_a_key_is_pressed(view: View, house: House) -> None:
    house.answers["worker"] = {"stacks": "File app.py, line 7"}
    view.press(DOWN)
    view.press("s")
    assert view.stacks == "File app.py, line 7"
    assert view.press("q"), "this only goes back"
    assert not view.stacks


def test_what_is_refused_is_told_and_forgotten_after_a_while(view: View, house: House) -> None:
    house.answers["scale"] = {"ok": False, "error": "cannot scale to -1 workers"}
    view.press("-")
    assert view.frame.word == "cannot scale to -1 workers"
    assert [view.look().word for _ in range(6)][-1] == ""


def test_it_connects_again_when_it_was_hung_up_on(view: View, house: House) -> None:
    house.hang_up = True
    assert view.look().status["ready"] == 3


def test_when_the_supervisor_has_ended_so_does_the_view(
    view: View, house: House, tmp_path: Path
) -> None:
    house.hang_up = True
    (tmp_path / "control.sock").unlink()
    with pytest.raises(NotRunning, match="the supervisor has ended"):
        view.look()


@pytest.mark.parametrize("key", ["q", "Q", "\x03"])
def test_quitting_needs_no_question(view: View, house: House, key: str) -> None:
    assert not view.press(key)
    assert not house.asked


def test_keys_that_mean_nothing_do_nothing(view: View, house: House) -> None:
    for key in ("x", "\x1b", "\x1b[5~", " "):
        assert view.press(key)
    assert not house.asked


def test_a_picture_is_written(house: House, tmp_path: Path) -> None:
    path = tmp_path / "top.svg"
    emit: Callable[[str], None] = pytest.fail
    with Connection(str(tmp_path / "control.sock")) as connection:
        run(connection, interval=0.0, count=2, svg=str(path), emit=emit)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<svg")
    assert "healthy" in text
    assert "font-face" not in text, "it needs nothing from elsewhere"
