"""The sockets that clients connect to.

They are bound once, owned by the supervisor and never closed
while it lives. So connections that wait in the kernel outlive workers, crashes and reloads.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asgictl.settings import BindAddress, InheritedDescriptor, TcpAddress, UnixAddress
from asgictl_worker import contract
from asgictl_worker.errors import AsgictlError, ExitCode


class CannotBind(AsgictlError):
    """A listening socket cannot be had."""

    exit_code = ExitCode.CANNOT_BIND

    def __init__(self, address: str, reason: str, advice: str) -> None:
        self.address, self.reason, self.advice = address, reason, advice
        super().__init__(f"cannot listen on {address}: {reason}; {advice}")


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """A listening socket; ``asked`` is the setting that it comes from."""

    asked: str
    socket: socket.socket
    address: str
    """As people read it, such as ``http://127.0.0.1:8000``."""
    lock: "SocketLock | None" = None

    def for_worker(self) -> contract.Listener:
        """Return what a worker needs to know of it."""
        return contract.Listener(
            fd=self.socket.fileno(), family=self.socket.family, address=self.address
        )

    def hand_over(self) -> dict[str, Any]:
        """Return what the next program in this process needs to go on with it."""
        return {
            "asked": self.asked,
            "fd": self.socket.fileno(),
            "address": self.address,
            "lock": self.lock and self.lock.hand_over(),
        }

    @classmethod
    def take_over(cls, left: Mapping[str, Any]) -> "Listener":
        """Go on with a listener of the program before us in this process."""
        os.set_inheritable(left["fd"], False)
        lock = left["lock"] and SocketLock.take_over(left["lock"])
        return cls(left["asked"], socket.socket(fileno=left["fd"]), left["address"], lock)

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that belong to it."""
        return [self.socket.fileno()] + ([self.lock.fd] if self.lock else [])

    def close(self) -> None:
        """Stop listening, and remove the path of a UNIX socket."""
        self.socket.close()
        if self.lock:
            self.lock.remove()


def bind_all(
    addresses: Sequence[BindAddress], backlog: int, keep: Iterable[Listener] = ()
) -> list[Listener]:
    """Return a listener for every address: all of them, or none.

    Args:
        addresses: where to listen.
        backlog: how many connections the kernel holds for each (listen(2)).
        keep: listeners that exist already; those asked for again are returned as they are.

    Raises:
        CannotBind: one of them cannot be had; those made before are closed again.
    """
    existing: dict[str, list[Listener]] = {}
    for listener in keep:
        existing.setdefault(listener.asked, []).append(listener)
    made: list[Listener] = []
    result: list[Listener] = []
    try:
        for address in addresses:
            found = existing.get(str(address))
            if found is None:
                found = _bind(address, backlog)
                made += found
            result += found
    except BaseException:
        for listener in made:
            listener.close()
        raise
    return result


def _bind(address: BindAddress, backlog: int) -> list[Listener]:
    match address:
        case InheritedDescriptor():
            return [_inherited(address)]
        case UnixAddress():
            return [_unix(address, backlog)]
        case TcpAddress():
            return _tcp(address, backlog)


def _tcp(address: TcpAddress, backlog: int) -> list[Listener]:
    made: list[Listener] = []
    port = address.port
    refusal: CannotBind | None = None
    for family, sockaddr in _resolve(address):
        try:
            end = _listen(family, (sockaddr[0], port, *sockaddr[2:]), backlog)
        except OSError as error:
            refusal = _explain(address, error)
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # localhost may have an IPv6 address that this machine does not
            break
        # The first one to take "any free port" decides for the others of the same name.
        host, port = end.getsockname()[:2]
        shown = f"[{host}]" if family == socket.AF_INET6 else host
        made.append(Listener(str(address), end, f"http://{shown}:{port}"))
        refusal = None
    if refusal is not None or not made:
        for listener in made:
            listener.close()
        raise refusal or CannotBind(str(address), "it has no address", "see --host")
    return made


def _resolve(address: TcpAddress) -> list[tuple[int, tuple[str, int, int, int] | tuple[str, int]]]:
    if not address.host:
        # One socket for both families where the machine has IPv6 (ipv6(7), IPV6_V6ONLY).
        if socket.has_dualstack_ipv6():
            return [(socket.AF_INET6, ("::", address.port, 0, 0))]
        return [(socket.AF_INET, ("0.0.0.0", address.port))]
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CannotBind(
            str(address),
            f"{address.host!r} has no address ({reason})",
            "check the spelling of --host or --bind",
        ) from None
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]  # type: ignore[misc]


def _listen(family: int, sockaddr: tuple[object, ...], backlog: int) -> socket.socket:
    end = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Not SO_REUSEPORT: a second server on this port must fail, not share it.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(sockaddr[0] != "::"))
        end.bind(sockaddr)
        end.listen(backlog)
        end.setblocking(False)
    except BaseException:
        end.close()
        raise
    return end


def _explain(address: TcpAddress, error: OSError) -> CannotBind:
    text = str(address)
    if error.errno == errno.EADDRINUSE:
        holder = _holder(address.port)
        by = f" by {holder}" if holder else ""
        return CannotBind(
            text, f"the port is in use{by}", "stop that program, or choose another --port"
        )
    if error.errno == errno.EACCES:
        return CannotBind(
            text,
            "ports below 1024 are reserved",
            "choose a higher --port, start as root with --user, or grant CAP_NET_BIND_SERVICE",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return CannotBind(
            text, "this machine does not have that address", "see `ip address` for those it has"
        )
    return CannotBind(text, error.strerror or str(error), "see --host, --port and --bind")


def _holder(port: int) -> str:
    """Return who listens on a port, as far as this user may read it in /proc (proc(5))."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text("ascii").splitlines()[1:]:
                fields = line.split()
                listening = fields[3] == "0A"
                if listening and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for fd in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(fd) in inodes:
                        name = (process / "comm").read_text("utf-8", "replace").strip()
                        return f"process {process.name} ({name})"
    return ""


class SocketLock:
    """A lock file beside a UNIX socket: of two servers that start at once, one wins.

    A connection attempt tells a live socket from a dead one, but not from one that is just
    being made.
    """

    def __init__(self, path: str, fd: int | None = None) -> None:
        """Lock the path, or go on with a lock that this process holds as ``fd``.

        Raises:
            BlockingIOError: another process holds it.
        """
        self.path = path
        self._lock_path = path + ".lock"
        self._made: tuple[int, int] | None = None
        self.fd = self._lock() if fd is None else fd
        os.set_inheritable(self.fd, False)

    def _lock(self) -> int:
        while True:
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.stat(self._lock_path)):
                    return fd
            except FileNotFoundError:
                pass  # its last owner removed it meanwhile
            except BlockingIOError:
                os.close(fd)
                raise
            os.close(fd)

    def hand_over(self) -> dict[str, Any]:
        """Return what the next program in this process needs to go on with it."""
        return {"path": self.path, "fd": self.fd, "made": self._made}

    @classmethod
    def take_over(cls, left: Mapping[str, Any]) -> "SocketLock":
        """Go on with a lock of the program before us in this process."""
        lock = cls(left["path"], left["fd"])
        lock._made = left["made"] and tuple(left["made"])
        return lock

    def made(self) -> None:
        """Remember the socket, so that only this very one is removed later."""
        self._made = _identity(self.path)

    def remove(self) -> None:
        """Remove the socket and the lock."""
        with contextlib.suppress(OSError):
            if self._made and self._made == _identity(self.path):
                os.unlink(self.path)
        with contextlib.suppress(OSError):
            os.unlink(self._lock_path)
        os.close(self.fd)


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _unix(address: UnixAddress, backlog: int) -> Listener:
    path = os.path.abspath(address.path)
    shown = f"unix:{path}"
    in_use = CannotBind(shown, "another process serves there", "stop it, or choose another path")
    try:
        lock = SocketLock(path)
    except BlockingIOError:
        raise in_use from None
    except OSError as error:
        raise _explain_path(shown, path, error) from None
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Bound under another name and moved: at no moment is there a path without a listener.
    temporary = f"{path}.{os.getpid()}"
    try:
        _check_place(path, shown, in_use)
        end.bind(temporary)
        # As uvicorn does: who may connect is decided by the rights of the directory.
        os.chmod(temporary, 0o666)
        end.listen(backlog)
        end.setblocking(False)
        os.rename(temporary, path)
        lock.made()
    except BaseException as error:
        end.close()
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        lock.remove()
        if isinstance(error, OSError):
            raise _explain_path(shown, path, error) from None
        raise
    return Listener(str(address), end, shown, lock)


def _check_place(path: str, shown: str, in_use: CannotBind) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise CannotBind(shown, "there is a file that is not a socket", "move it out of the way")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # left over: nobody listens any more
        except BlockingIOError:
            pass  # somebody listens, with a full queue
        raise in_use


def _explain_path(shown: str, path: str, error: OSError) -> CannotBind:
    folder = os.path.dirname(path)
    reason = error.strerror or str(error)
    if isinstance(error, FileNotFoundError):
        return CannotBind(shown, f"the directory {folder} does not exist", "make it first")
    if isinstance(error, PermissionError):
        return CannotBind(
            shown, f"this user may not write in {folder}", "change its rights, or the path"
        )
    return CannotBind(shown, reason, "see --uds and --bind")


def _inherited(address: InheritedDescriptor) -> Listener:
    shown, advice = (
        str(address),
        "have the program that starts asgictl hand a listening socket over",
    )
    try:
        if not stat.S_ISSOCK(os.fstat(address.fd).st_mode):
            raise CannotBind(shown, "the descriptor is not a socket", advice)
    except OSError:
        raise CannotBind(shown, "there is no such descriptor", advice) from None
    end = socket.socket(fileno=address.fd)
    listening = end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if end.type != socket.SOCK_STREAM or not listening:
        end.detach()
        raise CannotBind(shown, "the descriptor is not a listening stream socket", advice)
    end.setblocking(False)
    os.set_inheritable(address.fd, False)
    name = end.getsockname()
    if end.family == socket.AF_UNIX:
        text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
        return Listener(shown, end, f"unix:{text}")
    host = f"[{name[0]}]" if end.family == socket.AF_INET6 else name[0]
    return Listener(shown, end, f"http://{host}:{name[1]}")
