"""Closing the terminal is not a wish for a reload."""

import os
import pty
import signal
import time
from pathlib import Path

import pytest
from tests.kit import ASGICTL, PATIENCE, Project, application, wait_for

from asgictl.system.terminal import Terminal, shell_above


def test_without_a_terminal_none_can_be_gone() -> None:
    read_end, write_end = os.pipe()
    saved = os.dup(0)
    try:
        os.dup2(read_end, 0)
        assert not Terminal().is_gone()
    finally:
        os.dup2(saved, 0)
        for fd in (saved, read_end, write_end):
            os.close(fd)


def test_only_a_shell_that_is_process_1_and_our_parent_counts() -> None:
    name = Path("/proc/1/comm").read_text().strip()
    assert shell_above(parent=os.getpid()) == ""
    assert shell_above(parent=1) == (name if name in {"sh", "bash", "dash"} else "")


def _in_terminal(project: Project, *command: str) -> tuple[int, int]:
    """Start a command in a terminal of its own; return its pid and the terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(project.directory)
        log = os.open(project.directory.parent / "log", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.execv(command[0], command)
    return pid, terminal


def _log(project: Project) -> str:
    path = project.directory.parent / "log"
    return path.read_text() if path.exists() else ""


@pytest.mark.system
def test_the_end_of_its_terminal_stops_the_service(project: Project) -> None:
    project.write(application("1"))
    pid, terminal = _in_terminal(project, str(ASGICTL), "app:app", "--port", "0")
    wait_for(lambda: "worker is ready" in _log(project), "the worker is ready")
    os.close(terminal)
    deadline = time.monotonic() + PATIENCE
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline, _log(project)
        time.sleep(0.01)
    assert "its terminal was closed" in _log(project)
    assert "reloading" not in _log(project)


@pytest.mark.system
def test_with_nohup_it_serves_on(project: Project) -> None:
    project.write(application("1"))
    pid, terminal = _in_terminal(project, "/usr/bin/nohup", str(ASGICTL), "app:app", "--port", "0")
    try:
        wait_for(lambda: "worker is ready" in _log(project), "the worker is ready")
        os.close(terminal)
        os.kill(pid, signal.SIGTTIN)
        wait_for(lambda: "scaling from 1 to 2" in _log(project), "it still listens to us")
        assert "stopping" not in _log(project)
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
