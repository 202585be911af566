"""deploy/systemd, with systemd's own tools; a manager cannot run here, so its part is played."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.deploy.units import SERVICE, SOCKET, shop
from tests.docs.console import free_port
from tests.kit import ASGICTL, PATIENCE, Project, application, clean_environment, wait_for


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (part of systemd)")
    return path


def setting(unit: str, name: str) -> str:
    found = re.search(rf"^{name}=(.*)$", unit, re.MULTILINE)
    assert found, name
    return found[1]


def test_the_service_is_what_init_writes() -> None:
    written = SERVICE.read_text(encoding="utf-8")
    assert written == shop(), "run `python -m tests.deploy.units`"


def test_systemd_understands_service_and_socket(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    (tmp_path / SERVICE.name).write_text(shop(str(shutil.which("true")), "/"))
    shutil.copy(SOCKET, tmp_path)
    units = [str(tmp_path / unit.name) for unit in (SERVICE, SOCKET)]
    done = subprocess.run(
        [analyze, "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


class Manager:
    """What systemd is for a service: it opens the socket, listens to its words and runs commands."""

    def __init__(self, project: Project, scratch: Path) -> None:
        self.project = project
        self.port = free_port()
        runtime = scratch / "run"
        runtime.mkdir()
        self._words = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._words.bind(str(scratch / "notify"))
        self._words.settimeout(PATIENCE)
        self.unit = shop(str(ASGICTL))
        passed = {
            "NOTIFY_SOCKET": str(scratch / "notify"),
            "WATCHDOG_USEC": "3000000",
            "RUNTIME_DIRECTORY": str(runtime),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.environment = clean_environment(scratch) | passed
        opener = [tool("systemd-socket-activate"), f"--listen=127.0.0.1:{self.port}"]
        opener += [f"--setenv={name}={value}" for name, value in passed.items()]
        self.log = scratch / "server.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*opener, "--fdname=shop.socket", *self.command("ExecStart")],
                cwd=project.directory,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def command(self, name: str) -> list[str]:
        """Return a command of the unit; our interpreter runs it whatever its first line says."""
        return [sys.executable, *shlex.split(setting(self.unit, name))]

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(name),
            cwd=self.project.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE * 2,
            check=False,
        )

    def hears(self, word: str) -> str:
        """Return the first message from now on that has this word."""
        while True:
            message = self._words.recv(4096).decode()
            if re.search(rf"^{word}", message, re.MULTILINE):
                return message

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._words.close()


@pytest.fixture
def manager(project: Project, tmp_path: Path) -> Iterator[Manager]:
    project.write(application("1"))
    manager = Manager(project, tmp_path)
    yield manager
    manager.close()


@pytest.mark.system
@pytest.mark.timeout(180)
def test_the_service_is_activated_by_its_socket_and_tells_how_it_goes(manager: Manager) -> None:
    def version() -> str:
        assert manager.process.poll() is None, manager.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"http://127.0.0.1:{manager.port}/", timeout=PATIENCE)
            return str(answer.json()["version"])
        return ""

    # systemd-socket-activate listens some time after it was started; its first connection starts us.
    assert wait_for(version, f"the service answers; see {manager.log}") == "1"
    assert "STATUS=" in manager.hears("READY=1")
    manager.hears("WATCHDOG=1")

    manager.project.write(application("2"))
    reloaded = manager.run("ExecReload")
    assert (reloaded.returncode, version()) == (0, "2"), reloaded.stderr
    assert re.search(r"^MONOTONIC_USEC=\d+$", manager.hears("RELOADING=1"), re.MULTILINE)
    manager.hears("READY=1")

    manager.project.write("nonsense")
    refused = manager.run("ExecReload")
    assert (refused.returncode, version()) == (1, "2")
    assert "NameError" in refused.stderr

    manager.process.terminate()
    manager.hears("STOPPING=1")
    assert manager.process.wait(PATIENCE) == 0


def test_our_words_are_those_of_systemd_notify(tmp_path: Path) -> None:
    notify = tool("systemd-notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as words:
        words.bind(str(tmp_path / "notify"))
        words.settimeout(PATIENCE)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        subprocess.run(
            [notify, "--no-block", "--ready", "--status=up"], env=environment, check=True
        )
        theirs = words.recv(4096)
        code = "import os; from asgictl.system.notify import ServiceManager as M; M(os.environ).ready('up')"
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        assert set(words.recv(4096).split(b"\n")) <= set(theirs.split(b"\n"))


def test_the_proxies_know_the_socket() -> None:
    path = setting(SOCKET.read_text(encoding="utf-8"), "ListenStream")
    for name in ("nginx/shop.conf", "haproxy/haproxy.cfg", "caddy/Caddyfile"):
        assert path in (SERVICE.parent.parent / name).read_text(encoding="utf-8")
