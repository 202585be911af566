"""Upgrade in place: another program takes over this process, with everything that is open.

execve(2) keeps the process id, the children, the open descriptors, the blocked signals and
those that wait; so workers, queued connections, pid file and service manager notice nothing.
What the supervisor knows goes along as JSON in a memfd.

First the new program is started as a child, which reads that JSON and its settings and does
nothing else. If that fails, nothing has happened.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from asgictl.system import kernel, signals
from asgictl_worker.errors import AsgictlError

# Not ASGICTL_*: those are settings, and an unknown one is an error.
_TAKE_OVER = "_ASGICTL_TAKE_OVER"
_CHECK = "_ASGICTL_CHECK_TAKE_OVER"

CHECK_TIMEOUT = 30.0
"""Seconds that the new program gets to read its settings."""

_MAX_COMPLAINT = 16 * 1024


class CannotTakeOver(AsgictlError):
    """The state that another program left cannot be used."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"cannot take the service over: {reason}")


def inherited(environ: "os._Environ[str]") -> tuple[dict[str, Any] | None, bool]:
    """Return what another program has left for us, and whether it only asks if we could.

    The variables that say so are removed: they are not meant for anybody else.

    Raises:
        CannotTakeOver: it cannot be read.
    """
    checking = _CHECK in environ
    number = environ.pop(_CHECK, None) or environ.pop(_TAKE_OVER, None)
    if number is None:
        return None, False
    try:
        fd = int(number)
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        os.close(fd)
        left = json.loads(data)
    except (OSError, ValueError) as error:
        raise CannotTakeOver(f"its state cannot be read ({error})") from None
    if not isinstance(left, dict):
        raise CannotTakeOver("its state is not a JSON object")
    return left, checking


def write_down(state: Mapping[str, Any]) -> int:
    """Return the descriptor of a memfd that holds the state as JSON."""
    fd = os.memfd_create("asgictl-upgrade", os.MFD_CLOEXEC)
    data = json.dumps(state, allow_nan=False).encode()
    while data:
        data = data[os.write(fd, data) :]
    return fd


def command() -> list[str]:
    """Return the command line that this program was started with."""
    return [sys.executable, *sys.orig_argv[1:]]


class Check:
    """The new program, asked in a child whether it could take over."""

    def __init__(self, state_fd: int, environ: Mapping[str, str], directory: str) -> None:
        self._complaint = bytearray()
        asked = {**environ, _CHECK: str(state_fd)}
        self.child, self._output = kernel.fork_to_hear(
            lambda write_end: _ask(state_fd, write_end, asked, directory)
        )

    def fileno(self) -> int:
        """Return the descriptor to poll: it ends when the new program has answered."""
        return self._output

    def ended(self) -> bool:
        """Take what the new program prints; return whether it has closed its output."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._output, 4096):
                self._complaint = (self._complaint + data)[-_MAX_COMPLAINT:]
            return True
        return False

    @property
    def complaint(self) -> str:
        """What the new program printed."""
        return self._complaint.decode("utf-8", "replace").strip()

    def close(self) -> None:
        """Stop waiting."""
        os.close(self._output)
        self.child.send("KILL")


def _ask(state_fd: int, output: int, environ: Mapping[str, str], directory: str) -> NoReturn:
    try:
        signals.reset_in_child()
        kernel.close_all_but([state_fd, output])
        os.set_inheritable(state_fd, True)
        os.dup2(output, 1)
        os.dup2(output, 2)
        kernel.unblock_signals()
        os.chdir(directory)
        os.execve(sys.executable, command(), environ)
    except OSError as error:
        os.write(2, f"cannot execute {sys.executable}: {error}".encode())
    finally:
        os._exit(1)


def take_over(
    state_fd: int, keep: Iterable[int], environ: Mapping[str, str], directory: str
) -> NoReturn:
    """Execute the new program in this process.

    Args:
        state_fd: what ``write_down()`` returned.
        keep: the descriptors that the state names; all others close.
        environ: the variables of the new program.
        directory: where it begins.

    Raises:
        OSError: it cannot be executed; everything is as it was.
    """
    kept = [state_fd, *keep]
    before = os.getcwd()
    # A signal in the gap would meet the default action, and end the service.
    mask = kernel.block_signals()
    try:
        for fd in kept:
            os.set_inheritable(fd, True)
        os.chdir(directory)
        os.execve(sys.executable, command(), {**environ, _TAKE_OVER: str(state_fd)})
    except OSError:
        os.chdir(before)
        for fd in kept:
            os.set_inheritable(fd, False)
        kernel.restore_signals(mask)
        raise
