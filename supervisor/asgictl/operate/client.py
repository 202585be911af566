"""The other end of the control socket: find the supervisor, ask it, read what it says.

Clients do wait: they are processes of their own.
"""

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from asgictl.operate import places
from asgictl.operate.control import credentials
from asgictl.operate.protocol import encode
from asgictl_worker.errors import AsgictlError, ExitCode

CONNECT_TIMEOUT = 5.0
"""Seconds in which a supervisor that lives has accepted and answered a ping."""


CONNECT_PAUSE = 0.02
"""Seconds until a full queue is tried again."""


class NotRunning(AsgictlError):
    """There is no supervisor to talk to."""

    exit_code = ExitCode.NOT_RUNNING

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)


class Ambiguous(AsgictlError):
    """There are several supervisors, and nobody has said which is meant."""

    exit_code = ExitCode.USAGE

    def __init__(self, found: "list[Found]") -> None:
        self.found = found
        lines = "".join(f"\n  --control {each.path}  {each}" for each in found)
        super().__init__(f"several supervisors run; name one with --control or --pid:{lines}")


class Failed(AsgictlError):
    """The supervisor has refused a request; the detail is text of many lines, or empty."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(reason)


class Gone(AsgictlError):
    """The supervisor has hung up before the last line of its answer."""

    def __init__(self) -> None:
        super().__init__("the supervisor has hung up in the middle of its answer; see its log")


class TimedOut(AsgictlError):
    """What was asked for has begun, but is not done in the time that it was given."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        super().__init__(f"not done within {timeout:g} s; it goes on, see `asgictl status`")


class Connection:
    """A line to a supervisor."""

    def __init__(self, path: str, timeout: float = CONNECT_TIMEOUT) -> None:
        """Connect.

        Raises:
            OSError: nobody listens there, or we may not.
            NotRunning: whoever listens is neither root nor our user.
        """
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._received = bytearray()
        try:
            self._socket.settimeout(timeout)
            self._connect(time.monotonic() + timeout)
            self.pid, uid = credentials(self._socket)
            if uid not in (os.geteuid(), 0) and os.geteuid() != 0:
                raise NotRunning(f"at {path} listens somebody else, user {uid}")
        except BaseException:
            self._socket.close()
            raise

    def _connect(self, deadline: float) -> None:
        while True:
            try:
                return self._socket.connect(self.path)
            except BlockingIOError:
                # The queue is full, and with a time-out connect() does not wait (unix(7)).
                if time.monotonic() >= deadline:
                    raise
                time.sleep(CONNECT_PAUSE)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, verb: str, timeout: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Return the result of a verb that says nothing before it; see ``answers()``."""
        return list(self.answers(verb, timeout, **arguments))[-1]

    def answers(
        self, verb: str, timeout: float | None = None, **arguments: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield what the supervisor says to a verb; the last one is the result.

        Args:
            verb: what to do.
            timeout: seconds in which the result must be there; None waits.
            arguments: what the verb takes; those that are None are left out.

        Raises:
            Failed: it is refused.
            Gone: the supervisor has hung up.
            TimedOut: the result is not there in time.
        """
        deadline = inf if timeout is None else time.monotonic() + timeout
        given = {name: value for name, value in arguments.items() if value is not None}
        with contextlib.suppress(BrokenPipeError):
            # If it has refused us it has hung up, and said why.
            self._socket.sendall(encode({"verb": verb, **given}))
        while True:
            answer = self._next(deadline, timeout)
            ok = answer.pop("ok", None)
            if ok is False:
                raise Failed(answer.get("error", "no reason given"), answer.get("detail", ""))
            yield answer
            if ok:
                return

    def _next(self, deadline: float, timeout: float | None) -> dict[str, Any]:
        while (end := self._received.find(b"\n")) < 0:
            left = None if deadline == inf else max(0.001, deadline - time.monotonic())
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(256 * 1024)
            except TimeoutError:
                assert timeout is not None
                raise TimedOut(timeout) from None
            except ConnectionResetError:
                data = b""
            if not data:
                raise Gone
            self._received += data
        answer: dict[str, Any] = json.loads(self._received[:end])
        del self._received[: end + 1]
        return answer


@dataclass(frozen=True, slots=True)
class Found:
    """A supervisor that has answered a ping."""

    path: str
    identity: Mapping[str, Any]

    def __str__(self) -> str:
        addresses = ", ".join(self.identity["addresses"])
        words = f"pid {self.identity['pid']}: {self.identity['application']} on {addresses}"
        directory = self.identity.get("directory")  # an older supervisor does not say it
        return f"{words} in {directory}" if directory else words


def find(
    environ: Mapping[str, str], control: str | None = None, pid_file: str | None = None
) -> Connection:
    """Return a connection to the supervisor that is meant.

    Args:
        environ: variables that say where sockets are.
        control: the path of its socket, if it is known.
        pid_file: the path of its pid file, if it is known.

    Raises:
        NotRunning: there is none.
        Ambiguous: there are several.
    """
    if control is not None:
        return _connect(control)
    if pid_file is not None:
        return _of_pid_file(pid_file, environ)
    found = _alive(places.of_user(environ, os.geteuid()))
    if len(found) > 1:
        raise Ambiguous(found)
    if not found:
        raise NotRunning(
            "no supervisor of this user runs, or it has no control socket; "
            "name it with --control PATH or --pid FILE"
        )
    return _connect(found[0].path)


def served_addresses(environ: Mapping[str, str], known: Iterable[str] = ()) -> dict[str, int]:
    """Return where the running supervisors of this user listen, and their pids.

    Args:
        environ: variables that say where control sockets are.
        known: the paths of other control sockets.
    """
    return {
        address: found.identity["pid"]
        for found in _alive([*places.of_user(environ, os.geteuid()), *known])
        # One of an older supervisor says nothing of the admin address.
        for address in (
            *found.identity["addresses"],
            found.identity.get("admin"),
            f"unix:{found.path}",
        )
        if address
    }


def _connect(path: str) -> Connection:
    try:
        return Connection(path)
    except OSError as error:
        raise NotRunning(f"no supervisor answers at {path}: {error.strerror or error}") from None


def _of_pid_file(path: str, environ: Mapping[str, str]) -> Connection:
    try:
        with open(path, encoding="ascii") as file:
            pid = int(file.read(32))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it holds no process id"
        raise NotRunning(f"cannot read the pid file {path}: {reason}") from None
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        uid = os.geteuid()
    for found in _alive(places.of_process(environ, uid, pid)):
        if found.identity["pid"] == pid:
            return _connect(found.path)
    raise NotRunning(
        f"the supervisor of {path}, pid {pid}, does not run or has no control socket; "
        f"name that with --control PATH"
    )


def _alive(paths: list[str]) -> list[Found]:
    found = []
    for path in paths:
        with contextlib.suppress(OSError, AsgictlError), Connection(path) as connection:
            found.append(Found(path, connection.ask("ping", CONNECT_TIMEOUT)))
    return found


def wait_for_end(pid: int, timeout: float | None) -> bool:
    """Return whether a process has ended within ``timeout`` seconds; None waits for ever."""
    if not pid or not hasattr(os, "pidfd_open"):
        return True
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(None if timeout is None else timeout * 1000))
    finally:
        os.close(fd)
