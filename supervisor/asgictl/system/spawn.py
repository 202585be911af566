"""Forking children: workers, and the preflight of a reload.

Between fork and the first line of the child's own work, everything is undone that belongs
to the supervisor: its signal handlers, its descriptors, its words for the service manager.
"""

import atexit
import contextlib
import gc
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

from asgictl.settings import Settings
from asgictl.system import kernel, privileges, signals
from asgictl.system.channel import Channel
from asgictl.system.dumps import DumpFile
from asgictl.system.kernel import Child
from asgictl.system.listeners import Listener, Place
from asgictl.system.notify import PRIVATE_VARIABLES
from asgictl_worker import contract
from asgictl_worker.errors import AsgictlError

if TYPE_CHECKING:
    from asgictl_worker.tls import TLS

_WORKER_OOM_POINTS = 100
"""When memory runs out, the kernel shall take a worker and not the supervisor."""

_OURS = ("asgictl", "asgictl_worker")
_STANDARD = os.path.dirname(os.__file__) + os.sep
_INSTALLED = ("/site-packages/", "/dist-packages/", "/lib-dynload/")
"""Where modules are that a deployment does not change."""

EXIT_TIMEOUT = 0.2
"""Seconds that a process gets to end after it has closed its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the children of one generation find: variables, rights, directory."""

    settings: Settings
    environ: Mapping[str, str]
    identity: privileges.Identity | None


@dataclass(slots=True, kw_only=True, eq=False)
class WorkerProcess:
    """A worker's process and our ends of its lines."""

    child: Child
    channel: Channel
    dumps: DumpFile

    def close(self) -> None:
        """Give all descriptors back."""
        self.child.close()
        self.channel.close()
        self.dumps.close()


def spawn_worker(
    assignment: Callable[[int, int], contract.Assignment],
    surroundings: Surroundings,
    listeners: list[Listener],
    shared: tuple[int, ...],
) -> WorkerProcess:
    """Fork a worker.

    Args:
        assignment: makes the worker's assignment, given its channel's and dump's descriptors.
        surroundings: what its generation is to find.
        listeners: the sockets that it accepts from.
        shared: descriptors that all workers inherit, lifeline and board.

    Raises:
        OSError: no process or no descriptor is to be had.
    """
    channel, far_end = Channel.pair()
    try:
        dumps = DumpFile()
    except OSError:
        channel.close()
        far_end.close()
        raise
    parent = os.getpid()
    try:
        pid = kernel.fork()
    except OSError:
        channel.close()
        far_end.close()
        dumps.close()
        raise
    if pid == 0:
        keep = [far_end.fileno(), dumps.fd, *shared]
        keep += [listener.socket.fileno() for listener in listeners]

        def work(tls: "TLS | None") -> int:
            from asgictl_worker import main

            mine = assignment(far_end.fileno(), dumps.fd)
            return main.work(mine, surroundings.settings, tls=tls)

        live(parent, keep, surroundings, work)
    far_end.close()
    return WorkerProcess(child=Child(pid), channel=channel, dumps=dumps)


def live(
    parent: int, keep: list[int], surroundings: Surroundings, work: Callable[["TLS | None"], int]
) -> NoReturn:
    """Be a child: prepare, work, and leave without unwinding the parent's frames."""
    code = 1
    try:
        signals.reset_in_child()
        kernel.close_all_but(keep)
        os.environ.clear()
        os.environ.update(surroundings.environ)
        if surroundings.settings.umask is not None:
            os.umask(int(surroundings.settings.umask, 8))
        kernel.prefer_as_victim(_WORKER_OOM_POINTS)
        tls = None
        if surroundings.identity is not None:
            tls = _read_certificates(surroundings.settings)
            privileges.become(surroundings.identity)
            kernel.forbid_new_privileges()
        if not kernel.die_with_parent(parent, contract.ORPHAN_SIGNAL):
            raise RuntimeError("the supervisor was gone before its worker began")
        # What the supervisor holds is not ours to collect, and shared as long as nobody looks.
        gc.freeze()
        kernel.unblock_signals()
        _forget_program()
        code = work(tls)
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code)


def _forget_program() -> None:
    """Forget the modules that a program has imported before it called ``asgictl.run()``.

    What it shares with the application would be that of the program's start, after every reload.
    """
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(_STANDARD) or any(part in file for part in _INSTALLED):
            continue
        if file and name != "__main__" and name.partition(".")[0] not in _OURS:
            del sys.modules[name]


def _read_certificates(settings: Settings) -> "TLS | None":
    """Read what the user that we become may not: private keys are often root's alone."""
    if not settings.uses_tls:
        return None
    # Here and not above: the supervisor itself never loads ssl.
    from asgictl_worker.tls import TLS

    tls = TLS(settings)
    tls.read_files()
    return tls


def leave(code: int) -> NoReturn:
    """End a forked process without unwinding the frames that it has from its parent."""
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that children get: all but those meant for the supervisor."""
    return {name: value for name, value in environ.items() if name not in PRIVATE_VARIABLES}


# -- Preflight


@dataclass(frozen=True, slots=True)
class Reading:
    """What a preflight has found: new settings with their variables, or why there are none."""

    settings: Settings | None
    environ: Mapping[str, str]
    error: str = ""
    traceback: str = ""
    remarks: tuple[str, ...] = ()
    """What should be mended, though it works."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each setting came from."""
    file: str | None = None
    """The settings file."""
    places: Mapping[str, list[Place]] = field(default_factory=dict)
    """What stands behind the names of new addresses; to look them up may take long."""


class Preflight:
    """A child that reads the settings again, so that nothing it meets can hurt the supervisor.

    A file on a dead network disk blocks the child and not the supervisor, and what parsing
    leaves in memory goes with it.
    """

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._received = bytearray()
        self.child, self._result = kernel.fork_to_hear(
            lambda write_end: _read_settings(write_end, read)
        )

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._result

    def receive(self) -> Reading | None:
        """Return what was found, or None if the child is not done."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._result, 65536):
                self._received += data
            return _reading(bytes(self._received))
        return None

    def wait(self) -> Reading:
        """Return what was found, as soon as that is; at a start there is nothing else to do."""
        os.set_blocking(self._result, True)
        reading = self.receive()
        assert reading is not None, "a read that blocks ends with all there is"
        self.close()
        self.child.wait(EXIT_TIMEOUT)
        self.child.close()
        return reading

    def close(self) -> None:
        """Stop waiting; a child that is still reading is killed."""
        os.close(self._result)
        self.child.send("KILL")


def _read_settings(write_end: int, read: Callable[[], Reading]) -> NoReturn:
    try:
        signals.reset_in_child()
        kernel.close_all_but([write_end])
        kernel.unblock_signals()
        try:
            found = read()
        except AsgictlError as error:
            found = Reading(None, {}, str(error))
        except Exception as error:
            found = Reading(None, {}, repr(error), traceback.format_exc())
        data = pickle.dumps(found)
        while data:
            data = data[os.write(write_end, data) :]
    finally:
        os._exit(0)


def with_certificates(settings: Settings, environ: Mapping[str, str], *, strict: bool) -> Reading:
    """Return what was read, once its certificates have been looked at; called in a preflight.

    Raises:
        ConfigurationError: they cannot be used; if ``strict``, also if they have expired.
    """
    remarks = []
    if settings.uses_tls:
        # Here and not above: the supervisor itself never loads ssl.
        from asgictl_worker import tls

        remarks = tls.check(settings, datetime.now(UTC), strict=strict)
    return Reading(settings, dict(environ), remarks=tuple(remarks))


def _reading(data: bytes) -> Reading:
    try:
        found = pickle.loads(data)  # written by our own child, through a pipe of our own
    except (EOFError, pickle.UnpicklingError):
        return Reading(None, {}, "the process that read the settings has died")
    assert isinstance(found, Reading)
    return found
