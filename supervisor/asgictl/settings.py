"""Every option of the supervisor, declared once; the worker's options come by inheritance.

See ``asgictl_worker.settings`` for how a declaration works.
"""

from dataclasses import dataclass
from typing import Literal

from asgictl_worker.settings import WorkerSettings, setting

_LISTENERS = "Listeners"
_WORKERS = "Workers"
_PROCESS = "Process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(WorkerSettings):
    """All options of asgictl, immutable."""

    # -- Listeners
    bind: tuple[str, ...] = setting(
        (),
        "Listen here (repeat for more): HOST:PORT, [IPV6]:PORT, :PORT, unix:PATH or fd://N. Replaces --host, "
        "--port, --uds and --fd.",
        group=_LISTENERS,
        flags=("-b",),
        metavar="ADDRESS",
    )
    host: str = setting("127.0.0.1", "Listen on this address or name.", group=_LISTENERS)
    port: int = setting(
        8000,
        "Listen on this port; 0 takes a free one.",
        group=_LISTENERS,
        variables=("PORT",),
        minimum=0,
        maximum=65535,
    )
    uds: str | None = setting(
        None, "Listen on this UNIX socket instead of a port.", group=_LISTENERS, metavar="PATH"
    )
    fd: int | None = setting(
        None, "Listen on this inherited descriptor instead of a port.", group=_LISTENERS, minimum=0
    )
    backlog: int = setting(
        2048,
        "How many connections the kernel holds until a worker accepts them.",
        group=_LISTENERS,
        minimum=1,
    )
    # -- Workers
    workers: Literal["auto"] | int = setting(
        1,
        "How many workers serve; auto follows CPU affinity and container limits.",
        group=_WORKERS,
        flags=("-w",),
        variables=("WEB_CONCURRENCY",),
        minimum=1,
        maximum=1024,
    )
    timeout: float = setting(
        30.0,
        "Replace a worker whose event loop has not turned for this long; at half of it its stack is logged.",
        group=_WORKERS,
        unit="seconds",
        flags=("-t",),
        minimum=1,
    )
    timeout_boot: float = setting(
        60.0,
        "A new worker must be ready within this time; importing a big application is not a hang.",
        group=_WORKERS,
        unit="seconds",
        minimum=0.1,
    )
    timeout_reload_drain: float = setting(
        300.0,
        "Let requests and WebSockets of a replaced worker go on for this long.",
        group=_WORKERS,
        unit="seconds",
        minimum=0,
    )
    min_ready: float = setting(
        1.0,
        "A new worker of a reload must stay healthy for this long before it replaces an old one.",
        group=_WORKERS,
        unit="seconds",
        minimum=0,
    )
    give_up_after: float = setting(
        300.0,
        "Exit with code 3 after this long without any ready worker; 0 never gives up.",
        group=_WORKERS,
        unit="seconds",
        minimum=0,
    )
    max_requests: int = setting(
        0,
        "Replace a worker after this many requests; 0 never does.",
        group=_WORKERS,
        flags=("--limit-max-requests",),
        minimum=0,
    )
    max_requests_jitter: int = setting(
        0,
        "Spread --max-requests over the workers by up to this many requests.",
        group=_WORKERS,
        flags=("--limit-max-requests-jitter",),
        minimum=0,
    )
    # -- Process
    pid: str | None = setting(
        None,
        "Write the supervisor's process id to this file.",
        group=_PROCESS,
        flags=("-p",),
        metavar="FILE",
    )
    chdir: str | None = setting(
        None, "Change to this directory before anything else.", group=_PROCESS, metavar="DIRECTORY"
    )
    user: str | None = setting(
        None, "Run workers as this user (name or number).", group=_PROCESS, flags=("-u",)
    )
    group: str | None = setting(
        None, "Run workers as this group (name or number).", group=_PROCESS, flags=("-g",)
    )
    umask: str | None = setting(
        None,
        "The file mode mask of the workers, in octal.",
        group=_PROCESS,
        flags=("-m",),
        metavar="OCTAL",
    )
    env_file: tuple[str, ...] = setting(
        (),
        "Set variables for the application from this file (repeat for more).",
        group=_PROCESS,
        metavar="FILE",
    )
