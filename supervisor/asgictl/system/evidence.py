"""What /proc knows of a worker that does not beat, and what may be concluded (proc(5))."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from asgictl.core.events import Verdict
from asgictl.system import machine

_SHARE = 0.5
"""Share of the time from which on a process is called busy, or starved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A process at one moment. Durations are seconds since it began."""

    time: float
    state: str
    """R running, S sleeping, D waiting for a disk, T stopped, t traced, Z zombie."""
    on_processor: float
    """Time on a processor, of the main thread: the event loop runs there."""
    waiting: float
    """Ready to run, without a processor; a wait that still goes on does not count yet."""
    traced: bool = False


def sample(pid: int, now: float, root: Path = machine.ROOT) -> Sample | None:
    """Return what is known of a process now, or None where the system says nothing."""
    process = root / "proc" / str(pid)
    try:
        # The second field is the program's name, which may hold spaces and parentheses.
        state = (process / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
        on_processor, waiting, _ = (process / "schedstat").read_text("utf-8").split()
        status = (process / "status").read_text("utf-8", "replace")
        return Sample(
            time=now,
            state=state,
            on_processor=int(on_processor) / 1e9,
            waiting=int(waiting) / 1e9,
            traced="TracerPid:\t0\n" not in status,
        )
    except (OSError, ValueError, IndexError):
        return None


def conclude(before: Sample | None, after: Sample | None, patience: float) -> Verdict:
    """Return why a process does not beat, from two samples of it.

    A worker that is stopped, or that the machine gives no processor, is not at fault: unless
    it has had, little by little, as much of a processor as makes others guilty.

    Args:
        before: how it was when it was missed first.
        after: how it is now.
        patience: seconds between the two after which a worker is given up.
    """
    if after is None:
        return Verdict.UNKNOWN
    if after.state in "Tt" or after.traced:
        return Verdict.STOPPED
    if after.state == "D":
        return Verdict.WAITING_FOR_DISK
    running = after.state == "R"
    if before is not None and after.time > before.time:
        elapsed = after.time - before.time
        if after.on_processor - before.on_processor >= _SHARE * min(elapsed, patience):
            return Verdict.BUSY
        # Who could run and has not run is waiting right now, also for a container's quota.
        if running or after.waiting - before.waiting >= _SHARE * elapsed:
            return Verdict.STARVED
    return Verdict.BUSY if running else Verdict.BLOCKED


class MemoryWatch:
    """The kernel's count of processes killed for memory in our control group.

    It is the only honest source: a SIGKILL alone can come from anybody.
    """

    def __init__(self, root: Path = machine.ROOT) -> None:
        files = [
            folder / name
            for folder in machine.control_groups("memory", root)
            for name in ("memory.events", "memory.oom_control")
        ]
        self._file = next((file for file in files if file.exists()), None)
        self._seen = self._count()

    def killed_since_last_call(self) -> bool:
        """Return whether the kernel has killed anything for memory since the last call."""
        now = self._count()
        grown, self._seen = now > self._seen, now
        return grown

    def _count(self) -> int:
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                return _facts(self._file).get("oom_kill", 0)
        return 0


def _facts(file: Path) -> dict[str, int]:
    """Return the lines ``name number`` of a file of a control group."""
    pairs = (line.split() for line in file.read_text("utf-8").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
