"""How much of the machine is ours: processors by affinity and by the container's quota.

Why memory does not count: docs/decisions/workers-auto.md.
"""

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path("/")


def available_processors(
    environ: Mapping[str, str] = os.environ, root: Path = ROOT
) -> tuple[int, str]:
    """Return how many processors this process may use, and the words that explain it.

    CPU affinity (sched_setaffinity(2)) and every quota on the way up our control group
    count; the smallest wins. $PYTHON_CPU_COUNT beats them.

    Args:
        environ: variables of the process.
        root: where ``proc`` and ``sys`` are.
    """
    override = environ.get("PYTHON_CPU_COUNT", "")
    if override.isdecimal() and int(override) > 0:
        return int(override), "$PYTHON_CPU_COUNT"
    if hasattr(os, "sched_getaffinity"):
        count, why = len(os.sched_getaffinity(0)), "processors by affinity"
    else:
        count, why = os.cpu_count() or 1, "processors"
    quota = processor_quota(root)
    if quota is not None and quota < count:
        # Half a processor more would stay unused if it were rounded down.
        count = max(1, math.ceil(quota))
        why = f"a quota of {quota:g} processor{'' if quota == 1 else 's'}"
    return count, why


def processor_quota(root: Path = ROOT) -> float | None:
    """Return the smallest limit on processor time, in processors, or None without one."""
    quotas = []
    for folder in control_groups("cpu", root):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quotas.append(_quota(folder))
    return min((quota for quota in quotas if quota is not None), default=None)


def control_groups(controller: str, root: Path = ROOT) -> list[Path]:
    """Return the folders of our control group and of its ancestors, innermost first.

    Version 2 is looked at before version 1 (cgroups(7)); on machines with both, each
    controller is in one of them. Folders may be missing: in a container, /proc often names
    the path outside of it, of which only the upper end can be seen.
    """
    folders = []
    with contextlib.suppress(OSError, ValueError):
        lines = (root / "proc/self/cgroup").read_text("utf-8", "surrogateescape").splitlines()
        groups = [line.split(":", 2) for line in lines]
        for number, controllers, path in sorted(groups, key=lambda group: group[0] != "0"):
            if number != "0" and controller not in controllers.split(","):
                continue
            mounted = root / "sys/fs/cgroup"
            if number != "0":
                # Where cpu and cpuacct are one, both names are links, but not everywhere.
                both = mounted / controllers
                mounted = both if both.is_dir() else mounted / controller
            names = [name for name in path.split("/") if name not in ("", "..")]
            folders += [mounted.joinpath(*names[:end]) for end in range(len(names), -1, -1)]
    return folders


def _quota(folder: Path) -> float | None:
    if (file := folder / "cpu.max").exists():
        quota, period = file.read_text("utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    quota = (folder / "cpu.cfs_quota_us").read_text("utf-8")
    period = (folder / "cpu.cfs_period_us").read_text("utf-8")
    return None if int(quota) < 0 else int(quota) / int(period)
