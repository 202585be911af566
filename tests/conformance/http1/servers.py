"""The servers that the cases are tried on, each as its own users start it."""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.http1.client import PROBE
from tests.kit import clean_environment, wait_for

APPLICATION = Path(__file__).with_name("application.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """How a server is started.

    Attributes:
        name: in the table.
        program: what is run.
        arguments: with ``{port}`` in the place of the port.
    """

    name: str
    program: str
    arguments: Sequence[str]


OWN = (
    Peer(
        name="asgictl (httptools)",
        program="asgictl",
        arguments=("app:app", "--port", "{port}", "--http", "httptools", "--no-access-log"),
    ),
    Peer(
        name="asgictl (h11)",
        program="asgictl",
        arguments=("app:app", "--port", "{port}", "--http", "h11", "--no-access-log"),
    ),
)
PEERS = (
    Peer(
        name="uvicorn (httptools)",
        program="uvicorn",
        arguments=("app:app", "--port", "{port}", "--http", "httptools"),
    ),
    Peer(
        name="uvicorn (h11)",
        program="uvicorn",
        arguments=("app:app", "--port", "{port}", "--http", "h11"),
    ),
    Peer(
        name="gunicorn (asgi)",
        program="gunicorn",
        arguments=("app:app", "-k", "asgi", "-b", "127.0.0.1:{port}", "--no-control-socket"),
    ),
    Peer(
        name="granian",
        program="granian",
        arguments=("--interface", "asgi", "--port", "{port}", "app:app"),
    ),
    Peer(name="hypercorn", program="hypercorn", arguments=("app:app", "-b", "127.0.0.1:{port}")),
)


class NotInstalled(Exception):
    """A server cannot be run here."""


def find(program: str, directory: Path | None) -> str:
    """Return the path of a server's command.

    Args:
        program: its name.
        directory: look here first, then beside this Python, then on the path.

    Raises:
        NotInstalled: it is nowhere.
    """
    for where in (directory, Path(sys.executable).parent, None):
        found = shutil.which(program, path=where and str(where))
        if found:
            return found
    raise NotInstalled(program)


def version(program: str) -> str:
    """Return the version of the distribution that a command comes from."""
    name = Path(program).name
    python = Path(program).with_name("python")
    code = f"import importlib.metadata; print(importlib.metadata.version({name!r}))"
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


@contextlib.contextmanager
def serving(peer: Peer, program: str, *more: str) -> Iterator[int]:
    """Serve the application of the cases in one process; give the port.

    Args:
        peer: how it is started.
        program: the path of its command.
        more: arguments beside those of the peer.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        shutil.copy(APPLICATION, directory / "app.py")
        port = _free_port()
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, *(each.format(port=port) for each in peer.arguments), *more],
                cwd=directory,
                env=clean_environment(directory),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_for(lambda: _answers(port) or process.poll(), f"{peer.name} answers")
            if process.poll() is not None:
                raise RuntimeError(f"{peer.name} ended:\n{(directory / 'log').read_text()}")
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(PROBE)
        return client.recv(1024).startswith(b"HTTP/1.1 200")
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
