"""The supervisor's end of the line to one worker. What is said there: ``contract``."""

import contextlib
import socket
import sys

from asgictl_worker import contract

_KIND = socket.SOCK_SEQPACKET if sys.platform.startswith("linux") else socket.SOCK_DGRAM

MESSAGES_PER_TURN = 64
"""So that one worker which never stops talking cannot keep the loop from the others."""

ALL_MESSAGES = 4096
"""More than a socket holds: what to take of a worker that is dead."""


class Channel:
    """A socket pair that keeps the borders of messages and never blocks."""

    __slots__ = ("_socket", "malformed", "unknown")

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self.unknown = 0
        self.malformed = 0

    @classmethod
    def pair(cls) -> "tuple[Channel, socket.socket]":
        """Return the supervisor's end and the socket for the worker, both close-on-exec."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, _KIND)
        return cls(ours), theirs

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._socket.fileno()

    def send(self, message: contract.Message) -> bool:
        """Send without waiting; False if the worker is gone or reads nothing any more."""
        try:
            self._socket.send(contract.encode(message))
        except OSError:
            return False
        return True

    def send_descriptors(self, data: bytes, descriptors: list[int]) -> None:
        """Send raw bytes along with open descriptors (unix(7), SCM_RIGHTS).

        Raises:
            OSError: the other end is gone, or its queue is full.
        """
        socket.send_fds(self._socket, [data], descriptors)

    def receive(self, limit: int = MESSAGES_PER_TURN) -> tuple[list[contract.Message], bool]:
        """Return the messages that have arrived, and whether the other end is open.

        Args:
            limit: how many to take; the rest stays for the next call.
        """
        messages: list[contract.Message] = []
        for _ in range(limit):
            try:
                datagram = self._socket.recv(contract.MAX_MESSAGE)
            except BlockingIOError:
                return messages, True
            except OSError:
                return messages, False
            if not datagram:
                return messages, False
            with contextlib.suppress(contract.MalformedMessage):
                message = contract.decode(datagram)
                if message is None:
                    self.unknown += 1
                else:
                    messages.append(message)
                continue
            self.malformed += 1
        return messages, True

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
