"""What /proc knows of a worker that does not beat, and what may be concluded (proc(5))."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from asgictl.core.events import Verdict

_BUSY_SHARE = 0.5
"""Share of the time on a processor from which on a process is called busy."""

_STARVED_SHARE = 0.5
"""Share of the time spent waiting for a processor from which on it is called starved."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A process at one moment. Durations are seconds since it began."""

    time: float
    state: str
    """R running, S sleeping, D waiting for a disk, T stopped, t traced, Z zombie."""
    on_processor: float
    waiting: float
    """Ready to run, without a processor."""
    traced: bool


def sample(pid: int, now: float) -> Sample | None:
    """Return what /proc says of a process now, or None where it says nothing."""
    root = Path("/proc", str(pid))
    try:
        # The second field is the program's name, which may hold spaces and parentheses.
        state = (root / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
        on_processor, waiting, _ = (root / "schedstat").read_text("ascii").split()
        status = (root / "status").read_text("utf-8", "replace")
    except (OSError, ValueError, IndexError):
        return None
    return Sample(
        time=now,
        state=state,
        on_processor=int(on_processor) / 1e9,
        waiting=int(waiting) / 1e9,
        traced="TracerPid:\t0\n" not in status,
    )


def conclude(before: Sample | None, after: Sample | None) -> Verdict:
    """Return why a process does not beat, from two samples of it.

    A worker that is stopped, or that the machine gives no processor, is not at fault.
    """
    if after is None:
        return Verdict.UNKNOWN
    if after.state in "Tt" or after.traced:
        return Verdict.STOPPED
    if after.state == "D":
        return Verdict.WAITING_FOR_DISK
    if before is None or after.time <= before.time:
        return Verdict.BUSY if after.state == "R" else Verdict.BLOCKED
    elapsed = after.time - before.time
    worked = (after.on_processor - before.on_processor) / elapsed
    waited = (after.waiting - before.waiting) / elapsed
    if worked >= _BUSY_SHARE:
        return Verdict.BUSY
    if waited >= _STARVED_SHARE:
        return Verdict.STARVED
    return Verdict.BUSY if after.state == "R" else Verdict.BLOCKED


class MemoryWatch:
    """The kernel's count of processes killed for memory in our control group.

    It is the only honest source: a SIGKILL alone can come from anybody.
    """

    def __init__(self) -> None:
        self._file = _memory_events()
        self._seen = self._count()

    def killed_since_last_call(self) -> bool:
        """Return whether the kernel has killed anything for memory since the last call."""
        now = self._count()
        grown, self._seen = now > self._seen, now
        return grown

    def _count(self) -> int:
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                for line in self._file.read_text("ascii").splitlines():
                    name, _, value = line.partition(" ")
                    if name == "oom_kill":
                        return int(value)
        return 0


def _memory_events() -> Path | None:
    """Return the events file of the control group that this process is in (cgroups(7))."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
            number, _, path = line.split(":", 2)
            if number == "0":
                file = Path("/sys/fs/cgroup", path.lstrip("/"), "memory.events")
                return file if file.exists() else None
    return None
