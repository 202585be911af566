"""Try out what a start would do, and leave nothing behind: ``asgictl check``.

The application is booted by a real worker, which is told to leave as soon as it is ready. It
has no listener, so nobody is served by it; but what the application does when it is imported
and started, it does.
"""

import contextlib
import os
import select
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from asgictl import admin, derive
from asgictl.configuration import Configuration, read_env_files
from asgictl.reception import CONTROL_ACCESS
from asgictl.settings import (
    BindAddress,
    InheritedDescriptor,
    SystemdSockets,
    TcpAddress,
    UnixAddress,
)
from asgictl.system import kernel, listeners, pidfile, privileges, spawn
from asgictl.system.channel import ALL_MESSAGES
from asgictl_worker import contract
from asgictl_worker.errors import AsgictlError

LEAVE_TIMEOUT = 5.0
"""Seconds beyond its own time-out that a worker gets to leave."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried."""

    what: str
    sound: bool
    text: str
    detail: str = ""
    """A traceback or stacks, or empty."""


def check(
    application: str, configuration: Configuration, served: Mapping[str, int]
) -> Iterator[Finding]:
    """Yield what was found out about each part of a start.

    Args:
        application: its name.
        configuration: the settings; the working directory is theirs already.
        served: addresses that running supervisors of this user listen on, and their pids.
    """
    settings = configuration.settings
    where = configuration.file or "no settings file"
    try:
        environ = read_env_files(settings.env_file, os.environ)
        identity = privileges.identity(settings.user, settings.group)
        reading = spawn.with_certificates(settings, environ, strict=False)
    except AsgictlError as error:
        yield Finding("settings", False, str(error))
        return
    yield Finding("settings", True, f"they make sense ({where})")
    if settings.uses_tls:
        remarks = "; ".join(str(remark) for remark in reading.remarks)
        yield Finding("certificates", True, remarks or "they can be used")
    access = listeners.Access.of(settings.uds_permissions, identity)
    with contextlib.ExitStack() as listening:
        for address in settings.addresses:
            yield _listen("address", address, access, served, listening)
        if looking := admin.wanted(settings):
            access = admin.access(settings)
            yield _listen("admin", looking, access, served, listening)
        if settings.control_path is not None:
            control = UnixAddress(settings.control_path)
            yield _listen("control", control, CONTROL_ACCESS, served, listening)
    if settings.pid is not None:
        yield _own(settings.pid, served)
    variables = spawn.child_environ(environ)
    surroundings = spawn.Surroundings(
        # What a worker says of its life is not of interest here.
        settings=replace(settings, log_level="warning"),
        environ=identity.adapt(variables, os.environ) if identity else variables,
        identity=identity,
    )
    yield from _boot(application, surroundings)


def _listen(
    what: str,
    address: BindAddress,
    access: listeners.Access,
    served: Mapping[str, int],
    listening: contextlib.ExitStack,
) -> Finding:
    """Try an address, and hold it in ``listening``: the next one must not be in its way."""
    if isinstance(address, InheritedDescriptor | SystemdSockets):
        return Finding(what, True, f"{address} is handed over at the start")
    try:
        made = listeners.bind_all([address], backlog=1, access=access)
    except AsgictlError as error:
        for shown, pid in served.items():
            if _is_same(address, shown):
                text = f"{address} is served by the running supervisor, pid {pid}"
                return Finding(what, True, text)
        return Finding(what, False, str(error))
    for listener in made:
        listening.callback(listener.close)
    return Finding(what, True, f"{address} can be listened on")


def _own(path: str, served: Mapping[str, int]) -> Finding:
    try:
        pidfile.PidFile(path).remove()
    except pidfile.PidFileHeld as error:
        ours = error.holder in map(str, served.values())
        said = f"{path} is that of the running supervisor, pid {error.holder}"
        return Finding("pid file", ours, said if ours else str(error))
    except AsgictlError as error:
        return Finding("pid file", False, str(error))
    return Finding("pid file", True, f"{path} can be written")


def _is_same(address: BindAddress, shown: str) -> bool:
    if isinstance(address, TcpAddress):
        return shown.rpartition(":")[2] == str(address.port)
    return shown == f"unix:{os.path.abspath(str(address).removeprefix('unix:'))}"


def _boot(application: str, surroundings: spawn.Surroundings) -> Iterator[Finding]:
    settings = surroundings.settings
    lifeline = os.pipe2(os.O_CLOEXEC)

    def assignment(channel_fd: int, dump_fd: int) -> contract.Assignment:
        return contract.Assignment(
            worker=1,
            slot=0,
            generation=1,
            application=application,
            listeners=(),
            channel_fd=channel_fd,
            lifeline_fd=lifeline[0],
            dump_fd=dump_fd,
            beat_interval=1.0,
            **derive.extensions(settings),
        )

    process = spawn.spawn_worker(assignment, surroundings, [], (lifeline[0],))
    with contextlib.closing(process):
        try:
            booted = _watch(application, process, settings.timeout_boot)
            yield booted
            if booted.sound:
                process.channel.send(contract.Drain(timeout=0.0, reason="check"))
                yield _leave(process, settings.timeout_lifespan_shutdown)
        finally:
            process.child.send("KILL")
            process.child.wait(LEAVE_TIMEOUT)
            for fd in lifeline:
                os.close(fd)


def _watch(application: str, process: spawn.WorkerProcess, timeout: float) -> Finding:
    """Return how the boot of a worker has ended."""
    began, stage = kernel.monotonic(), "fork"
    for message in _messages(process, began + timeout):
        match message:
            case contract.Stage():
                stage = message.stage
            case contract.Ready():
                took = kernel.monotonic() - began
                return Finding("application", True, f"{application} was ready after {took:.2f} s")
            case contract.Failed():
                text = f"boot failed in stage {message.stage!r}: {message.error}"
                return Finding("application", False, text, message.traceback)
    status = process.child.wait(0.2)
    if status is None:
        process.child.send("USR2")
        with contextlib.suppress(StopIteration):
            next(_messages(process, kernel.monotonic() + 0.25))
        text = f"it was not ready after {timeout:g} s, still in stage {stage!r}"
    else:
        how = f"was killed by SIG{status.signal}" if status.signal else f"exited: {status.code}"
        text = f"its process {how} in stage {stage!r}"
    return Finding("application", False, text, process.dumps.read_new())


def _leave(process: spawn.WorkerProcess, timeout: float) -> Finding:
    told = kernel.monotonic()
    for _ in _messages(process, told + timeout + LEAVE_TIMEOUT):
        pass
    status = process.child.wait(LEAVE_TIMEOUT)
    took = kernel.monotonic() - told
    if status == kernel.ExitStatus(code=0):
        return Finding("shutdown", True, f"it has left after {took:.2f} s")
    how = "does not leave" if status is None else f"has ended with {status}"
    return Finding("shutdown", False, f"it {how}, {took:.1f} s after it was told to leave")


def _messages(process: spawn.WorkerProcess, deadline: float) -> Iterator[contract.Message]:
    """Yield what a worker says until it hangs up, or the time is over."""
    poller = select.poll()
    poller.register(process.channel.fileno(), select.POLLIN)
    is_open = True
    while is_open and (left := deadline - kernel.monotonic()) > 0:
        poller.poll(left * 1000)
        messages, is_open = process.channel.receive(ALL_MESSAGES)
        yield from messages
