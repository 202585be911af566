"""A loop for the control server, turned by hand, and clients that talk to it."""

import json
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from asgictl.operate.control import Answers, ControlServer
from asgictl.operate.protocol import Request

TURNS = 1000
"""More turns of the loop than anything here takes."""


class Loop:
    """Polls as the supervisor does, but only when it is told to, and by a clock moved by hand."""

    def __init__(self, path: Path, answer: Callable[[Request], Answers]) -> None:
        self.now = 0.0
        self.peers: list[Peer] = []
        self._sources: dict[int, Callable[[], None]] = {}
        self._poll = select.poll()
        self.path = path
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.bind(str(path))
        self.listening.listen(2000)
        self.listening.setblocking(False)
        self.server = ControlServer(
            self.listening, self.watch, self.unwatch, answer, lambda: self.now
        )

    def watch(self, fd: int, source: Callable[[], None], events: int = select.POLLIN, /) -> None:
        self._sources[fd] = source
        self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        if self._sources.pop(fd, None):
            self._poll.unregister(fd)

    @property
    def watched(self) -> int:
        """How many descriptors are polled."""
        return len(self._sources)

    def turn(self) -> bool:
        """Do one turn without waiting; return whether there was anything to do."""
        ready, now = self._poll.poll(0), self.now
        for fd, _ in ready:
            if source := self._sources.get(fd):
                source()
        due = now >= self.server.deadline
        if due:
            self.server.on_time()
        return bool(ready) or due

    def settle(self) -> None:
        """Turn until there is nothing to do."""
        for _ in range(TURNS):
            if not self.turn():
                return
        raise AssertionError("the loop spins")

    def close(self) -> None:
        self.server.close()
        self.listening.close()
        for peer in self.peers:
            peer.close()


class Peer:
    """A client that says and hears lines."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        loop.peers.append(self)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(0)
        self.socket.connect(str(loop.path))
        self._heard = b""

    def say(self, data: bytes) -> "Peer":
        self.socket.send(data)
        return self

    def ask(self, verb: str, **arguments: Any) -> "Peer":
        return self.say(json.dumps({"verb": verb, **arguments}).encode() + b"\n")

    def hear(self) -> list[Any]:
        """Let the loop settle, and return the whole lines that have arrived."""
        self.loop.settle()
        while data := self._receive():
            self._heard += data
            self.loop.settle()
        *lines, self._heard = self._heard.split(b"\n")
        return [json.loads(line) for line in lines]

    def is_hung_up(self) -> bool:
        self.loop.settle()
        try:
            while self.socket.recv(65536):
                pass
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True
        return True

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(65536)
        except (BlockingIOError, ConnectionResetError):
            return b""

    def close(self) -> None:
        self.socket.close()


def peers(loop: Loop, count: int) -> Iterator[Peer]:
    """Yield connected clients."""
    for _ in range(count):
        yield Peer(loop)
