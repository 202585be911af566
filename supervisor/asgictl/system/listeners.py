"""The sockets that clients connect to.

They are bound once, owned by the supervisor and never closed while it lives. So connections
that wait in the kernel outlive workers, crashes and reloads.

A listener that a reload leaves out is accepted from until the last worker of the old
generation drains: each of them takes what the kernel's queue holds and closes its copy, and
the supervisor closes its own when the reload is committed. Clients that come later are
refused, which tells them more than a connection that nobody answers. The same happens to all
listeners when the server stops.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from asgictl.settings import (
    BindAddress,
    InheritedDescriptor,
    SystemdSockets,
    TcpAddress,
    UnixAddress,
)
from asgictl.system.privileges import Identity
from asgictl_worker import contract
from asgictl_worker.errors import AsgictlError, ConfigurationError, ExitCode

FIRST_PASSED = 3
"""The number of the first descriptor that systemd passes (SD_LISTEN_FDS_START)."""

Place = tuple[int, Any]
"""A family of addresses, and an address in it as socket.bind() takes it."""

_SAME_PORT_TRIES = 10
"""How often to look for a port that is free on every address of a name."""


class CannotBind(AsgictlError):
    """A listening socket cannot be had."""

    exit_code = ExitCode.CANNOT_BIND

    def __init__(self, address: str, reason: str, advice: str) -> None:
        self.address, self.reason, self.advice = address, reason, advice
        super().__init__(f"cannot listen on {address}: {reason}; {advice}")


class UnusedSockets(ConfigurationError):
    """The service manager has passed sockets that no address asks for."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        add = " ".join(f"--bind systemd:{name}" for name in dict.fromkeys(self.names))
        super().__init__(
            f"nothing serves the sockets that were passed to this process: "
            f"{', '.join(self.names)}; add {add} (or --bind 'systemd:*'), or take them out of "
            f"the socket unit"
        )


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect to a UNIX socket: its permissions and owner (-1: whoever binds it)."""

    mode: int = 0o666
    uid: int = -1
    gid: int = -1

    @classmethod
    def of(cls, permissions: str, owner: Identity | None) -> "Access":
        """Return what the settings ask for; workers that change their user own the socket."""
        mode = int(permissions, 8)
        return cls(mode, owner.uid, owner.gid) if owner else cls(mode)


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """A listening socket; ``asked`` is the setting that it comes from."""

    asked: str
    socket: socket.socket
    address: str
    """As people read it, such as ``http://127.0.0.1:8000``."""
    lock: "SocketLock | None" = None
    borrowed: bool = False
    """Somebody else has made it, and hands it over only once."""

    def with_tls(self) -> "Listener":
        """Return it with an address that says how it is spoken to."""
        return replace(self, address=self.address.replace("http:", "https:", 1))

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
            "borrowed": self.borrowed,
        }

    @classmethod
    def take_over(cls, left: Mapping[str, Any]) -> "Listener":
        """Go on with a listener of the program before us in this process."""
        os.set_inheritable(left["fd"], False)
        lock = left["lock"] and SocketLock.take_over(left["lock"])
        end = socket.socket(fileno=left["fd"])
        return cls(left["asked"], end, left["address"], lock, left["borrowed"])

    @property
    def reachable(self) -> bool:
        """Whether the path of a UNIX socket that was made here still leads to it."""
        return self.lock is None or self.lock.leads_here()

    def give_access(self, access: Access) -> None:
        """Let others connect than before, if this is a UNIX socket that was made here.

        Raises:
            OSError: it cannot be changed.
        """
        if self.lock:
            self.lock.give_access(access)

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that belong to it."""
        return [self.socket.fileno()] + ([self.lock.fd] if self.lock else [])

    def close(self) -> None:
        """Stop listening, and remove the path of a UNIX socket."""
        self.socket.close()
        if self.lock:
            self.lock.remove()

    def undo(self) -> None:
        """Leave everything as it was before it was bound."""
        if self.borrowed:
            os.set_inheritable(self.socket.detach(), True)
        else:
            self.close()


def bind_all(
    addresses: Sequence[BindAddress],
    *,
    backlog: int,
    access: Access = Access(),
    passed: Mapping[int, str] | None = None,
    places: Mapping[str, list[Place]] | None = None,
    keep: Sequence[Listener] = (),
) -> list[Listener]:
    """Return a listener for every address: all of them, or none.

    Args:
        addresses: where to listen.
        backlog: how many connections the kernel holds for each (listen(2)).
        access: for UNIX sockets that are made here.
        passed: sockets of the service manager, as ``passed_sockets()`` returns them.
        places: what ``resolve()`` has found; names that are not in it are looked up here.
        keep: listeners that exist already; those asked for again are returned as they are, but
            for a UNIX socket whose path somebody has removed: it is made anew.

    Raises:
        CannotBind: one of them cannot be had; those made before are closed again.
        UnusedSockets: a socket was passed, and none of the addresses asks for it.
    """
    passed = passed or {}
    existing: dict[str, list[Listener]] = {}
    for listener in keep:
        if listener.reachable:
            existing.setdefault(listener.asked, []).append(listener)
    ipv4_ports = {
        address.port
        for address in addresses
        if isinstance(address, TcpAddress) and address.host == "0.0.0.0"
    }
    made: list[Listener] = []
    result: list[Listener] = []
    try:
        for address in addresses:
            found = existing.get(str(address))
            if found is None:
                match address:
                    case InheritedDescriptor():
                        found = [_borrow(address.fd, address, result, keep)]
                    case SystemdSockets():
                        fds = _named(address, passed)
                        found = [_borrow(fd, address, result, keep) for fd in fds]
                    case UnixAddress():
                        for listener in keep:
                            if listener.lock and listener.asked == str(address):
                                listener.lock.release()
                        found = [_unix(address, backlog, access)]
                    case TcpAddress():
                        where = (places or {}).get(str(address)) or _look_up(address)
                        ipv4_too = address.port not in ipv4_ports
                        found = _tcp(address, where, backlog, ipv4_too=ipv4_too)
                made += (listener for listener in found if listener not in keep)
            result += found
        used = {listener.socket.fileno() for listener in result}
        if unused := [name for fd, name in passed.items() if fd not in used]:
            raise UnusedSockets(unused)
    except BaseException:
        for listener in made:
            listener.undo()
        raise
    for listener in result:
        if listener not in made and not listener.borrowed:
            listener.socket.listen(backlog)  # it may have been changed
    return result


# -- Sockets of the service manager


def passed_sockets(environ: Mapping[str, str], pid: int) -> dict[int, str]:
    """Return the descriptors that systemd has passed to this process, and their names.

    They are told by variables, which are meant for the process with the number $LISTEN_PID
    alone (sd_listen_fds(3)).
    """
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(pid) or not count.isdecimal():
        return {}
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    return {
        FIRST_PASSED + number: (names[number : number + 1] or [""])[0] or "unknown"
        for number in range(int(count))
    }


def _named(address: SystemdSockets, passed: Mapping[int, str]) -> list[int]:
    """Return the descriptors that were passed under a name."""
    shown = str(address)
    if fds := [fd for fd, name in passed.items() if address.name in (name, "*")]:
        return fds
    if passed:
        names = ", ".join(dict.fromkeys(passed.values()))
        advice = f"these were passed: {names} (see FileDescriptorName= in systemd.socket(5))"
        raise CannotBind(shown, "no socket of that name was passed", advice)
    if pid := os.environ.get("LISTEN_PID"):
        reason = f"no sockets were passed to this process, but to process {pid}"
        raise CannotBind(shown, reason, "let that one start asgictl with exec")
    reason = "no sockets were passed to this process"
    raise CannotBind(shown, reason, "start it by a socket unit (systemd.socket(5))")


def _borrow(
    fd: int, address: BindAddress, others: Iterable[Listener], keep: Iterable[Listener]
) -> Listener:
    """Return the listener for a socket that somebody else has bound and will remove.

    Raises:
        CannotBind: it is not there, or not what is needed.
    """
    asked = str(address)
    shown = asked if isinstance(address, InheritedDescriptor) else f"{asked} (descriptor {fd})"
    advice = "have the program that starts asgictl hand over a listening stream socket"
    if any(other.socket.fileno() == fd for other in others):
        raise CannotBind(shown, "another --bind means the same socket", "name it once")
    for listener in keep:
        if listener.borrowed and listener.socket.fileno() == fd:
            return listener  # under another name
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        raise CannotBind(shown, "there is no such descriptor", advice) from None
    if keep and not os.get_inheritable(fd):
        # Everything that we have opened ourselves is close-on-exec.
        raise CannotBind(shown, "no such descriptor was handed over at the start", advice)
    if not is_socket:
        raise CannotBind(shown, "the descriptor is not a socket", advice)
    end = socket.socket(fileno=fd)
    listening = end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    if not listening or end.type != socket.SOCK_STREAM or end.family not in families:
        end.detach()  # not ours to close
        raise CannotBind(shown, "the socket does not listen for connections", advice)
    end.setblocking(False)
    os.set_inheritable(fd, False)
    return Listener(asked, end, _describe(end), borrowed=True)


def _describe(end: socket.socket) -> str:
    name = end.getsockname()
    if end.family == socket.AF_UNIX:
        # Bytes, and beginning with NUL, for an abstract address (unix(7)).
        text = os.fsdecode(name)
        return "unix:" + (f"@{text[1:]}" if text.startswith("\0") else text)
    host = f"[{name[0]}]" if end.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"


# -- TCP


def resolve(addresses: Iterable[BindAddress], keep: Iterable[Listener] = ()) -> dict[str, Any]:
    """Return the places behind the names of new addresses, for ``bind_all()``.

    This may wait for a name server.

    Args:
        addresses: where to listen.
        keep: listeners that exist already; their names are not looked up again.

    Raises:
        CannotBind: a name has no address.
    """
    known = {listener.asked for listener in keep}
    new = [address for address in addresses if str(address) not in known]
    return {str(address): _look_up(address) for address in new if isinstance(address, TcpAddress)}


def _tcp(
    address: TcpAddress, places: list[Place], backlog: int, *, ipv4_too: bool
) -> list[Listener]:
    for tries in range(_SAME_PORT_TRIES):
        try:
            ends = _listen_on_each(places, backlog, ipv4_too=ipv4_too)
        except OSError as error:
            # The port that was free on the first address is taken on another one.
            if address.port or error.errno != errno.EADDRINUSE or tries == _SAME_PORT_TRIES - 1:
                raise _explain(address, error) from None
        else:
            break
    return [Listener(str(address), end, _describe(end)) for end in ends]


def _listen_on_each(
    places: Iterable[Place], backlog: int, *, ipv4_too: bool
) -> list[socket.socket]:
    """Return sockets that listen on all places that this machine has, on one port.

    Raises:
        OSError: on one of them somebody else listens, or there is none.
    """
    ends: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, (host, port, *rest) in places:
            if ends:
                # The first one that takes "any free port" decides for the others.
                port = ends[0].getsockname()[1]
            try:
                ends.append(_listen(family, (host, port, *rest), backlog, ipv4_too=ipv4_too))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error  # a name may have an IPv6 address on a machine without IPv6
        if missing and not ends:
            raise missing
    except BaseException:
        for end in ends:
            end.close()
        raise
    return ends


def _look_up(address: TcpAddress) -> list[Place]:
    if not address.host:
        # One socket for both families where the machine has IPv6 (ipv6(7), IPV6_V6ONLY).
        if socket.has_dualstack_ipv6():
            return [(socket.AF_INET6, ("::", address.port, 0, 0))]
        return [(socket.AF_INET, ("0.0.0.0", address.port))]
    # As text it would be encoded with the tables of Unicode, which take memory.
    host = address.host.encode("ascii") if address.host.isascii() else address.host
    try:
        found = socket.getaddrinfo(
            host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CannotBind(
            str(address),
            f"{address.host!r} has no address ({reason})",
            "check the spelling of --host or --bind",
        ) from None
    # /etc/hosts may name an address twice.
    return list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))


def _listen(
    family: int, sockaddr: tuple[Any, ...], backlog: int, *, ipv4_too: bool
) -> socket.socket:
    end = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Not SO_REUSEPORT: a second server on this port must fail, not share it.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            only = sockaddr[0] != "::" or not ipv4_too
            end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        end.bind(sockaddr)
        # Of two servers that have come to bind() at once, one fails here (EADDRINUSE).
        end.listen(backlog)
        end.setblocking(False)
    except BaseException:
        end.close()
        raise
    return end


def _explain(address: TcpAddress, error: OSError) -> CannotBind:
    text = str(address)
    reason, advice = error.strerror or str(error), "see --host, --port and --bind"
    if error.errno == errno.EADDRINUSE:
        pid, holder = _holder(_listening_on(address.port))
        if pid == os.getpid():
            reason = "this server itself has the port, on an address that overlaps"
            advice = "choose another port for one of the two; a reload cannot exchange them, a restart can"
        else:
            reason = f"the port is in use{f' by {holder}' if holder else ''}"
            advice = "stop that program, or choose another --port"
    elif error.errno == errno.EACCES and 0 < address.port < 1024:
        reason = "this user may not take a port below 1024"
        advice = "choose a higher --port, start as root with --user, or grant CAP_NET_BIND_SERVICE"
    elif error.errno == errno.EADDRNOTAVAIL:
        reason = "this machine does not have that address"
        advice = "see `ip address` for those it has"
    return CannotBind(text, reason, advice)


def _listening_on(port: int) -> dict[str, int]:
    """Return the sockets that listen on a port, by inode, and the users they belong to."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text("utf-8").splitlines()[1:]:
                fields = line.split()
                listening = fields[3] == "0A"
                if listening and int(fields[1].rpartition(":")[2], 16) == port:
                    found[fields[9]] = int(fields[7])
    return found


def _bound_to(path: str) -> dict[str, int]:
    """Return the UNIX sockets that are bound to a path, by inode; the user is not known."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/net/unix").read_text("utf-8", "surrogateescape").splitlines()
        fields = [line.split(maxsplit=7) for line in lines[1:]]
        return {item[6]: -1 for item in fields if item[7:] == [path]}
    return {}


def _holder(inodes: Mapping[str, int]) -> tuple[int, str]:
    """Return the pid of who has one of the sockets open, and words for it.

    Both are empty if this user may not know it. Of a server and its children, the one with
    the lowest pid is named (proc(5)).
    """
    wanted = {f"socket:[{inode}]" for inode in inodes}
    with contextlib.suppress(OSError):
        for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
            with contextlib.suppress(OSError):
                folder = f"/proc/{pid}"
                if any(_link(f"{folder}/fd/{fd}") in wanted for fd in os.listdir(f"{folder}/fd")):
                    name = Path(folder, "comm").read_text("utf-8", "replace").strip()
                    return pid, f"process {pid} ({name})"
    if users := {uid for uid in inodes.values() if uid >= 0}:
        return 0, f"a process of the user with the id {min(users)}"
    return 0, ""


def _link(path: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(path)
    return ""


# -- UNIX sockets


class SocketLock:
    """A lock file beside a UNIX socket: of two servers that start at once, one wins.

    A connection attempt tells a live socket from a dead one, but not from one that is just
    being made.
    """

    def __init__(self, path: str, fd: int | None = None) -> None:
        """Lock the path, or go on with a lock that this process holds as ``fd``.

        Raises:
            CannotBind: another process holds it, or it cannot be made.
        """
        self.path = path
        self._lock_path = path + ".lock"
        self._made: tuple[int, int] | None = None
        self._access = Access()
        self.fd = self._lock() if fd is None else fd
        os.set_inheritable(self.fd, False)

    def _lock(self) -> int:
        shown = f"unix:{self.path}"
        while True:
            try:
                fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                if os.path.lexists(self._lock_path):
                    advice = "remove it if no server runs there, or choose another path"
                    reason = f"its lock {self._lock_path} cannot be used ({error.strerror})"
                    raise CannotBind(shown, reason, advice) from None
                raise _explain_path(self.path, error) from None
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its last owner may have removed the path between our open and our lock.
                if os.path.samestat(os.fstat(fd), os.stat(self._lock_path)):
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
                    return fd
            except FileNotFoundError:
                pass
            except BlockingIOError:
                pid = os.pread(fd, 32, 0).decode("utf-8", "replace").strip()
                os.close(fd)
                raise _in_use(self.path, f"process {pid} (asgictl)" if pid else "") from None
            except OSError as error:
                os.close(fd)
                raise _explain_path(self.path, error) from None
            os.close(fd)

    def hand_over(self) -> dict[str, Any]:
        """Return what the next program in this process needs to go on with it."""
        return {
            "path": self.path,
            "fd": self.fd,
            "made": self._made,
            "access": astuple(self._access),
        }

    @classmethod
    def take_over(cls, left: Mapping[str, Any]) -> "SocketLock":
        """Go on with a lock of the program before us in this process."""
        lock = cls(left["path"], left["fd"])
        lock._made = left["made"] and tuple(left["made"])
        lock._access = Access(*left.get("access", ()))
        return lock

    def made(self, access: Access) -> None:
        """Remember the socket, so that only this very one is changed and removed later."""
        self._made, self._access = _identity(self.path), access

    def give_access(self, access: Access) -> None:
        """Change the permissions and the owner of the socket to others than it was made with.

        Raises:
            OSError: this user may not, or the path is not ours any more.
        """
        before = self._access
        if access == before:
            return
        if self._made != _identity(self.path):
            raise FileNotFoundError(errno.ENOENT, "the path leads to another file now")
        # Who was told an owner once does not keep it when nobody is told any more.
        uid = os.geteuid() if access.uid < 0 <= before.uid else access.uid
        gid = os.getegid() if access.gid < 0 <= before.gid else access.gid
        os.chown(self.path, uid, gid, follow_symlinks=False)
        os.chmod(self.path, access.mode)
        self._access = access

    def leads_here(self) -> bool:
        """Return whether the path is still that of the socket that was made."""
        with contextlib.suppress(OSError):
            return self._made == _identity(self.path)
        return False

    def release(self) -> None:
        """Let the path be locked anew."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self.fd), os.stat(self._lock_path)):
                os.unlink(self._lock_path)

    def remove(self) -> None:
        """Remove the socket and the lock."""
        if self._made and self.leads_here():
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self.release()
        os.close(self.fd)


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _unix(address: UnixAddress, backlog: int, access: Access) -> Listener:
    path = os.path.abspath(address.path)
    lock = SocketLock(path)
    try:
        end = _bind_unix(path, backlog, access, lock)
    except BaseException as error:
        lock.remove()
        if isinstance(error, OSError):
            raise _explain_path(path, error) from None
        raise
    return Listener(str(address), end, f"unix:{path}", lock)


def _bind_unix(path: str, backlog: int, access: Access, lock: SocketLock) -> socket.socket:
    # The rights come with the path, and the owner before listen(): nobody gets in between. It
    # is not bound under another name and moved, since that would be the server's in the scope.
    umask = os.umask(0o777 & ~access.mode)
    end = None
    try:
        _clear(path)
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.bind(path)
        lock.made(access)
        os.chown(path, access.uid, access.gid, follow_symlinks=False)
        end.listen(backlog)
        end.setblocking(False)
    except BaseException:
        if end is not None:
            end.close()
        raise
    finally:
        os.umask(umask)
    return end


def _clear(path: str) -> None:
    """Remove a socket that nobody listens on any more, as a killed server leaves it.

    Raises:
        CannotBind: something else is there.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise CannotBind(
            f"unix:{path}", "there is a file that is not a socket", "move it out of the way"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return  # gone meanwhile
        except OSError:
            pass  # a full queue, another user's, of another type: somebody's in any case
    raise _in_use(path, _holder(_bound_to(path))[1])


def _in_use(path: str, holder: str) -> CannotBind:
    by = holder or "another process"
    return CannotBind(f"unix:{path}", f"{by} serves there", "stop it, or choose another path")


def _explain_path(path: str, error: OSError) -> CannotBind:
    folder = os.path.dirname(path)
    reason, advice = error.strerror or str(error), "see --uds and --bind"
    if isinstance(error, FileNotFoundError) and not os.path.isdir(folder):
        reason, advice = f"the directory {folder} does not exist", "make it first"
    elif isinstance(error, PermissionError):
        reason, advice = f"this user may not write in {folder}", "change its rights, or the path"
    return CannotBind(f"unix:{path}", reason, advice)
