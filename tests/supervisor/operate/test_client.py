"""The client against supervisors that answer, refuse, hang up or are not there."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asgictl.operate import client
from asgictl.operate.client import Ambiguous, Connection, Failed, Gone, NotRunning, TimedOut, find
from asgictl_worker.errors import ExitCode

Answer = Callable[[Path, list[bytes]], Path]


@pytest.fixture
def answer(tmp_path: Path) -> Iterator[Answer]:
    """Listen at a path; each request is answered by the next of some lines, the last one stays."""
    with contextlib.ExitStack() as leaving:

        def serve(path: Path, lines: list[bytes]) -> Path:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            listening = leaving.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(str(path))
            listening.listen()

            def talk() -> None:
                # Ends when the socket is shut down at the end of the test.
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = listening.accept()
                        with connection:
                            connection.recv(65536)
                            connection.sendall(lines.pop(0) if len(lines) > 1 else lines[0])

            thread = threading.Thread(target=talk)
            thread.start()
            leaving.callback(thread.join)
            leaving.callback(listening.shutdown, socket.SHUT_RDWR)
            return path

        yield serve


def ping(pid: int) -> bytes:
    identity = {"ok": True, "application": "app:app", "pid": pid, "addresses": ["http://x"]}
    return json.dumps(identity).encode() + b"\n"


def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}


def ask(path: Path, **how: Any) -> dict[str, Any]:
    with Connection(str(path)) as connection:
        return connection.ask("status", **how)


def test_the_last_line_is_the_result(answer: Answer, tmp_path: Path) -> None:
    path = answer(tmp_path / "s", [b'{"progress": "x"}\n{"ok": true, "y": 1}\n'])
    assert ask(path) == {"y": 1}
    with Connection(str(path)) as connection:
        assert list(connection.answers("status")) == [{"progress": "x"}, {"y": 1}]


def test_a_refusal_has_reason_and_detail(answer: Answer, tmp_path: Path) -> None:
    path = answer(tmp_path / "s", [b'{"ok": false, "error": "no", "detail": "why"}\n'])
    with pytest.raises(Failed, match="no") as caught:
        ask(path)
    assert caught.value.detail == "why"
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("said", [b"", b'{"progress": "x"}\n', b'{"ok":'])
def test_who_hangs_up_in_the_middle_is_noticed(answer: Answer, tmp_path: Path, said: bytes) -> None:
    with pytest.raises(Gone, match="hung up"):
        ask(answer(tmp_path / "s", [said]))


def test_what_is_not_there_in_time_is_said_to_go_on(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        with pytest.raises(TimedOut, match=r"not done within 0.05 s; it goes on"):
            ask(tmp_path / "s", timeout=0.05)


def test_a_full_queue_is_waited_for_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as leaving:
        listening = leaving.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(tmp_path / "s"))
        listening.listen(0)
        first = leaving.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(str(tmp_path / "s"))
        with pytest.raises(BlockingIOError):
            Connection(str(tmp_path / "s"), timeout=0.05)

        def make_room(_: float) -> None:
            leaving.enter_context(listening.accept()[0])

        monkeypatch.setattr(client.time, "sleep", make_room)
        with Connection(str(tmp_path / "s"), timeout=5.0) as second:
            assert second.pid == os.getpid()


# -- Find


def test_nobody_runs(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="no supervisor of this user runs") as caught:
        find(environ(tmp_path))
    assert caught.value.exit_code == ExitCode.NOT_RUNNING == 69


def test_the_only_one_is_found_among_the_dead(answer: Answer, tmp_path: Path) -> None:
    path = answer(tmp_path / "asgictl/2.sock", [ping(2)])
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "asgictl/1.sock"))
    with find(environ(tmp_path)) as connection:
        assert connection.path == str(path)


def test_of_several_none_is_chosen_and_all_are_listed(answer: Answer, tmp_path: Path) -> None:
    paths = [answer(tmp_path / f"asgictl/{pid}.sock", [ping(pid)]) for pid in (1, 2)]
    with pytest.raises(Ambiguous) as caught:
        find(environ(tmp_path))
    assert caught.value.exit_code == ExitCode.USAGE
    for pid, path in zip((1, 2), paths, strict=True):
        assert f"--control {path}  pid {pid}: app:app on http://x" in str(caught.value)


def test_a_pid_file_chooses(answer: Answer, tmp_path: Path) -> None:
    pid = os.getpid()
    for number in (1, pid):
        answer(tmp_path / f"asgictl/{number}.sock", [ping(number)])
    (tmp_path / "pid").write_text(f"{pid}\n")
    with find(environ(tmp_path), pid_file=str(tmp_path / "pid")) as connection:
        assert connection.path.endswith(f"/{pid}.sock")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(None, "No such file"), ("", "no process id"), ("x", "no process id"), ("5", "pid 5, does")],
)
def test_a_pid_file_that_leads_nowhere_is_named(
    tmp_path: Path, text: str | None, sentence: str
) -> None:
    path = tmp_path / "pid"
    if text is not None:
        path.write_text(text)
    with pytest.raises(NotRunning, match=sentence) as caught:
        find(environ(tmp_path), pid_file=str(path))
    assert str(path) in str(caught.value)


def test_a_path_is_taken_at_its_word(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match=r"no supervisor answers at .*/x: No such file"):
        find(environ(tmp_path), control=str(tmp_path / "x"))


def test_somebody_else_who_poses_as_the_supervisor_is_not_talked_to(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = answer(tmp_path / "s", [ping(1)])
    monkeypatch.setattr(client.os, "geteuid", lambda: 4711)
    monkeypatch.setattr(client, "credentials", lambda _: (1, 4712))
    with pytest.raises(NotRunning, match="somebody else, user 4712"):
        Connection(str(path))


# -- The end of a process


def test_the_end_of_a_process_is_waited_for() -> None:
    code = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        assert not client.wait_for_end(process.pid, 0.01)
        assert process.stdin is not None
        process.stdin.close()
        assert client.wait_for_end(process.pid, 30.0)
    assert client.wait_for_end(process.pid, None), "it is gone"
    assert client.wait_for_end(0, None), "another container's"
