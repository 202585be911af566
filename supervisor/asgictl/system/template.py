"""Preloading: a process that imports the application once and forks the workers from it.

The supervisor must not hold the application: it could not reload it, and any thread or
crash of the application would be its own. So each generation has a *template*. It imports,
collects its garbage once, freezes what is left out of the collector's sight so that the
pages stay shared (gc.freeze()), and then waits for requests.

A worker is forked twice: the process in between exits at once, and the worker becomes a
child of its nearest ancestor that adopts orphans, which is the supervisor
(PR_SET_CHILD_SUBREAPER, prctl(2)). So workers die, and are reaped, as if the supervisor had
forked them, and they outlive their template.
"""

import contextlib
import gc
import os
import pickle
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn

from asgictl.system import kernel, spawn
from asgictl.system.channel import Channel
from asgictl.system.dumps import DumpFile
from asgictl.system.kernel import Child
from asgictl.system.listeners import Listener
from asgictl_worker import contract

if TYPE_CHECKING:
    from asgictl_worker.tls import TLS

FORK_TIMEOUT = 5.0
"""Seconds that a template gets to fork; importing is over, so it has nothing else to do."""

_PID = struct.Struct("!i")
_ADOPTION_TIMEOUT = 2.0


@dataclass(slots=True, eq=False)
class _Expected:
    channel: Channel
    dumps: DumpFile
    deadline: float


class TemplateProcess:
    """The supervisor's side of a template."""

    def __init__(self, child: Child, channel: Channel) -> None:
        self.child = child
        self.channel = channel
        self._expected: dict[int, _Expected] = {}

    @classmethod
    def start(
        cls,
        application: str,
        surroundings: spawn.Surroundings,
        listeners: list[Listener],
        shared: tuple[int, ...],
    ) -> "TemplateProcess":
        """Fork a template; it says Ready or Failed on its channel.

        Raises:
            OSError: no process or no descriptor is to be had.
        """
        channel, far_end = Channel.pair()
        supervisor = os.getpid()
        with contextlib.closing(far_end):
            try:
                pid = kernel.fork()
            except OSError:
                channel.close()
                raise
            if pid == 0:
                keep = [far_end.fileno(), *shared]
                keep += [listener.socket.fileno() for listener in listeners]

                def work(tls: "TLS | None") -> int:
                    life = _Template(application, surroundings, far_end, supervisor, tls)
                    return life.run()

                spawn.live(supervisor, keep, surroundings, work)
        return cls(Child(pid), channel)

    @property
    def deadline(self) -> float:
        """When the oldest request must have been answered, or infinity."""
        return min((item.deadline for item in self._expected.values()), default=inf)

    def request(self, assignment: contract.Assignment, now: float) -> None:
        """Ask for a worker; Forked answers.

        Raises:
            OSError: there are no descriptors left, or the template is gone.
        """
        channel, far_end = Channel.pair()
        try:
            with contextlib.closing(far_end):
                dumps = DumpFile()
                self._expected[assignment.worker] = _Expected(channel, dumps, now + FORK_TIMEOUT)
                data = pickle.dumps(assignment)
                self.channel.send_descriptors(data, [far_end.fileno(), dumps.fd])
        except OSError:
            self.forget(assignment.worker)
            channel.close()
            raise

    def adopt(self, forked: contract.Forked) -> spawn.WorkerProcess | None:
        """Return the process of a worker that was asked for, or None if there is none."""
        if forked.error or forked.worker not in self._expected:
            self.forget(forked.worker)
            return None
        expected = self._expected.pop(forked.worker)
        return spawn.WorkerProcess(
            child=Child(forked.pid), channel=expected.channel, dumps=expected.dumps
        )

    def forget(self, worker: int) -> None:
        """Stop waiting for a worker."""
        expected = self._expected.pop(worker, None)
        if expected:
            expected.channel.close()
            expected.dumps.close()

    def orphaned(self) -> list[int]:
        """Return the workers that were asked for and will not come, and forget them."""
        workers = list(self._expected)
        for worker in workers:
            self.forget(worker)
        return workers

    def close(self) -> None:
        """End the template; its workers live on."""
        self.orphaned()
        self.child.send("KILL")
        self.channel.close()


class _Template:
    """The template's own side."""

    def __init__(
        self,
        application: str,
        surroundings: spawn.Surroundings,
        channel: socket.socket,
        supervisor: int,
        tls: "TLS | None",
    ) -> None:
        self._application = application
        self._settings = surroundings.settings
        self._channel = channel
        self._supervisor = supervisor
        self._tls = tls

    def run(self) -> int:
        from asgictl_worker import main

        # What the import leaves behind is collected once, below, and never looked at again.
        gc.disable()
        loaded = main.preload(self._application, self._settings, self._say)
        if not isinstance(loaded, contract.Failed) and threading.active_count() > 1:
            loaded = _refusal()
        if isinstance(loaded, contract.Failed):
            self._channel.send(contract.encode(loaded))
            return 3
        gc.collect()
        gc.freeze()
        self._channel.send(contract.encode(contract.Ready()))
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._channel, contract.MAX_MESSAGE, 2)
            if not data:
                return 0
            self._fork(data, descriptors, loaded)

    def _say(self, busy: str) -> None:
        self._channel.send(contract.encode(contract.Stage(stage="import", busy=busy)))

    def _fork(self, data: bytes, descriptors: list[int], loaded: Any) -> None:
        assignment = pickle.loads(data)  # from the supervisor, through a socket of its own
        assert isinstance(assignment, contract.Assignment)
        channel_fd, dump_fd = descriptors
        assignment = replace(assignment, channel_fd=channel_fd, dump_fd=dump_fd)
        pid, error = 0, ""
        try:
            pid = _fork_twice(lambda: self._become_worker(assignment, loaded))
        except OSError as problem:
            error = problem.strerror or str(problem)
        finally:
            os.close(channel_fd)
            os.close(dump_fd)
        answer = contract.Forked(worker=assignment.worker, pid=pid, error=error)
        self._channel.send(contract.encode(answer))

    def _become_worker(self, assignment: contract.Assignment, loaded: Any) -> int:
        from asgictl_worker import main

        self._channel.close()
        # Parent-death signals follow the parent at the time of the call: wait for the right one.
        deadline = time.monotonic() + _ADOPTION_TIMEOUT
        while os.getppid() != self._supervisor and time.monotonic() < deadline:
            time.sleep(0.0005)
        if not kernel.die_with_parent(self._supervisor, contract.ORPHAN_SIGNAL):
            raise RuntimeError("the supervisor was gone before its worker began")
        gc.enable()
        return main.work(assignment, self._settings, loaded, self._tls)


def _refusal() -> contract.Failed:
    names = ", ".join(
        thread.name for thread in threading.enumerate() if thread is not threading.main_thread()
    )
    return contract.Failed(
        stage="import",
        error=f"the application has started threads while it was imported ({names}), and a fork "
        "leaves threads behind; start them in the lifespan startup, or leave --preload out",
    )


def _fork_twice(work: Callable[[], int]) -> int:
    """Fork a grandchild that is nobody's child here, and return its pid.

    Raises:
        OSError: one of the forks failed.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        between = kernel.fork()
        if between == 0:
            _be_between(write_end, work)
        os.waitpid(between, 0)
        answer = os.read(read_end, _PID.size)
    finally:
        os.close(read_end)
        os.close(write_end)
    pid: int = _PID.unpack(answer)[0]
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    return pid


def _be_between(write_end: int, work: Callable[[], int]) -> NoReturn:
    code = 1
    try:
        try:
            pid = os.fork()
        except OSError as error:
            os.write(write_end, _PID.pack(-(error.errno or 1)))
            os._exit(1)
        if pid:
            os.write(write_end, _PID.pack(pid))
            os._exit(0)
        os.close(write_end)
        kernel.unblock_signals()
        code = work()
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        spawn.leave(code)
