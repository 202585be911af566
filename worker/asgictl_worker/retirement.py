"""When a worker has served long enough and asks for a successor.

It only asks: it serves on until the supervisor has a successor ready, and the supervisor
replaces one worker at a time.
"""

import os

from asgictl_worker.contract import Assignment

_PAGE = os.sysconf("SC_PAGE_SIZE")


def reason_to_retire(limits: Assignment, *, requests: int, lifetime: float) -> str:
    """Return why it is time for a successor, or nothing; which limit it is comes first.

    Args:
        limits: ``max_requests``, ``max_lifetime`` and ``max_memory``; 0 is no limit.
        requests: how many the worker has served.
        lifetime: seconds since it began to serve.
    """
    if limits.max_requests and requests >= limits.max_requests:
        return f"max-requests: {requests} requests served"
    if limits.max_lifetime and lifetime >= limits.max_lifetime:
        return f"max-lifetime: served for {lifetime:.0f} s"
    if limits.max_memory and (memory := own_memory()) >= limits.max_memory:
        return f"max-memory: {memory / 1024**2:.0f} MiB of memory used"
    return ""


def own_memory() -> int:
    """Return the bytes of memory that this process holds for itself.

    Resident memory without mapped files and without what is shared on purpose (proc(5),
    statm). Pages that a template shares with its workers count, since the kernel can tell
    those apart only by a walk through all of them. Where there is no /proc it returns 0.
    """
    try:
        with open("/proc/self/statm", "rb") as file:
            _, resident, shared, *_ = file.read().split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * _PAGE
