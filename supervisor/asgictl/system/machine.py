"""How much of the machine is ours: processors by affinity and by the container's quota."""

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path


def available_processors() -> tuple[int, str]:
    """Return how many processors this process may use, and the words that explain it.

    CPU affinity (sched_setaffinity(2)) and every quota on the way up our control group
    (cgroups(7), version 2 and 1) count; the smallest wins. $PYTHON_CPU_COUNT beats them.
    """
    override = os.environ.get("PYTHON_CPU_COUNT", "")
    if override.isdigit() and int(override) > 0:
        return int(override), "$PYTHON_CPU_COUNT"
    if hasattr(os, "sched_getaffinity"):
        count, why = len(os.sched_getaffinity(0)), "processors by affinity"
    else:
        count, why = os.cpu_count() or 1, "processors"
    quota = _quota()
    if quota is not None and math.ceil(quota) < count:
        count, why = math.ceil(quota), f"a quota of {quota:g} processors"
    return max(1, count), why


def _quota() -> float | None:
    quotas = []
    for number, controllers, path in _groups():
        if number == "0":
            quotas += _quotas(Path("/sys/fs/cgroup"), path, _read_version_2)
        elif "cpu" in controllers.split(","):
            quotas += _quotas(Path("/sys/fs/cgroup/cpu"), path, _read_version_1)
    return min(quotas, default=None)


def _groups() -> list[tuple[str, str, str]]:
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
        return [(number, names, path) for number, names, path in (x.split(":", 2) for x in lines)]
    return []


def _quotas(root: Path, path: str, read: Callable[[Path], float | None]) -> list[float]:
    folder = root / path.lstrip("/")
    found = []
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            value = read(place)
            if value is not None:
                found.append(value)
        if place == root:
            break
    return found


def _read_version_2(place: Path) -> float | None:
    quota, period = (place / "cpu.max").read_text("ascii").split()
    return None if quota == "max" else int(quota) / int(period)


def _read_version_1(place: Path) -> float | None:
    quota = int((place / "cpu.cfs_quota_us").read_text("ascii"))
    period = int((place / "cpu.cfs_period_us").read_text("ascii"))
    return None if quota < 0 else quota / period
