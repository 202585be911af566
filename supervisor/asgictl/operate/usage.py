"""What processes use of the machine: memory and processor time, read by their ids (proc(5)).

Read by clients, not by the supervisor: the kernel walks all pages of a process to answer, and
that may take it milliseconds.
"""

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

WINDOW = 0.25
"""Seconds over which processor time is measured."""


@dataclass(frozen=True, slots=True)
class Usage:
    """One process; None is for what the system does not tell us."""

    cpu: float | None = None
    """Share of one processor."""
    rss: int | None = None
    """Bytes in memory, those shared with others counted in full."""
    pss: int | None = None
    """Bytes in memory, those shared with others divided by how many share them."""


class Meter:
    """Measures processor time between two looks."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._seen: dict[int, tuple[float, float]] = {}

    def look(self, pids: Iterable[int]) -> dict[int, Usage]:
        """Return what processes use now, and of the processor since the last look."""
        found, seen = {}, {}
        for pid in pids:
            now, used = time.monotonic(), self._processor_time(pid)
            cpu = None
            if used is not None:
                seen[pid] = now, used
                if pid in self._seen:
                    then, before = self._seen[pid]
                    cpu = max(0.0, used - before) / (now - then) if now > then else None
            rss, pss = self._memory(pid)
            found[pid] = Usage(cpu, rss, pss)
        self._seen = seen
        return found

    def _processor_time(self, pid: int) -> float | None:
        """Return the seconds that all threads have run; those that have ended do not count."""
        total, known = 0, False
        with contextlib.suppress(OSError):
            for task in (self._root / "proc" / str(pid) / "task").iterdir():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    total += int((task / "schedstat").read_text("ascii").split()[0])
                    known = True
        return total / 1e9 if known else None

    def _memory(self, pid: int) -> tuple[int | None, int | None]:
        folder = self._root / "proc" / str(pid)
        with contextlib.suppress(OSError, ValueError):
            sizes = {}
            for line in (folder / "smaps_rollup").read_text("ascii", "replace").splitlines()[1:]:
                name, _, rest = line.partition(":")
                sizes[name] = int(rest.split()[0]) * 1024
            return sizes.get("Rss"), sizes.get("Pss")
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages = int((folder / "statm").read_text("ascii").split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE"), None
        return None, None
