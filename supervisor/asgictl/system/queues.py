"""How many connections wait in the kernel for a worker to accept them."""

import contextlib
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from asgictl.system import machine

# From linux/sock_diag.h, linux/unix_diag.h and asm-generic/socket.h.
_SO_MEMINFO = 55
_MEMINFO_DROPS = 8
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_UDIAG_SHOW_RQLEN = 0x10
_UNIX_DIAG_RQLEN = 4
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_ANSWER_SIZE = 16
_ATTRIBUTE = struct.Struct("=HH")


@dataclass(frozen=True, slots=True)
class Queue:
    """The queue of one listening socket; None is for what the system does not tell."""

    waiting: int | None = None
    """Connections that are not accepted yet."""
    limit: int | None = None
    """How many may wait; the setting ``backlog``, or less if the system allows less."""
    dropped: int | None = None
    """Connections that found the queue full, since the socket was made."""


def queue_of(listening: socket.socket) -> Queue:
    """Return how full the queue of a listening socket is, as far as the system tells."""
    with contextlib.suppress(OSError, struct.error, AttributeError):
        if listening.family == socket.AF_UNIX:
            return _unix(os.fstat(listening.fileno()).st_ino)
        return _tcp(listening)
    return Queue()


def _tcp(listening: socket.socket) -> Queue:
    # Of a listening socket, these two fields of struct tcp_info are the queue (tcp_get_info()).
    info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    waiting, limit = struct.unpack_from("=II", info, 24)
    memory = struct.unpack("=9I", listening.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))
    return Queue(waiting, limit, memory[_MEMINFO_DROPS])


def _unix(inode: int) -> Queue:
    """Ask for one UNIX socket by its inode (sock_diag(7)); such a queue refuses, it drops nothing."""
    body = _REQUEST.pack(
        socket.AF_UNIX, 0, 0, 0xFFFFFFFF, inode, _UDIAG_SHOW_RQLEN, 0xFFFFFFFF, 0xFFFFFFFF
    )
    head = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.setblocking(False)
        kernel.send(head + body)
        # The kernel answers within the call of send().
        answer = kernel.recv(4096)
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return Queue()
    offset = _HEADER.size + _ANSWER_SIZE
    while offset < len(answer):
        size, kind = _ATTRIBUTE.unpack_from(answer, offset)
        if kind == _UNIX_DIAG_RQLEN:
            return Queue(*struct.unpack_from("=II", answer, offset + _ATTRIBUTE.size))
        offset += (size + 3) & ~3 or len(answer)
    return Queue()


def overflows(root: Path = machine.ROOT) -> int | None:
    """Return how often any queue of this network namespace was full (proc(5), ListenOverflows)."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/net/netstat").read_text("ascii").splitlines()
        names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
        return int(values[names.index("ListenOverflows")])
    return None
