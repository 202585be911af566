"""What the core can ask for. ``asgictl.supervisor`` carries actions out in order."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a worker; answered by Spawned or SpawnFailed."""

    worker: int
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell a worker to stop accepting and to finish within ``timeout`` seconds."""

    worker: int
    timeout: float
    reason: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Send a signal, named without the ``SIG``, to a worker."""

    worker: int
    signal: Literal["TERM", "ABRT", "KILL"]


@dataclass(frozen=True, slots=True)
class Dump:
    """Ask a worker's interpreter for the stacks of its threads."""

    worker: int


@dataclass(frozen=True, slots=True)
class CollectDump:
    """Log the stacks that a worker has written since the last time."""

    worker: int
    why: str


@dataclass(frozen=True, slots=True)
class Probe:
    """Look in /proc at what a worker does; answered by Evidence."""

    worker: int


@dataclass(frozen=True, slots=True)
class StartPreflight:
    """Read the settings again and check them in a child; answered by Preflight*."""

    epoch: int
    generation: int


@dataclass(frozen=True, slots=True)
class CancelPreflight:
    """Nobody waits for this preflight any more."""

    epoch: int


@dataclass(frozen=True, slots=True)
class StartTemplate:
    """Import the application once, to fork workers from; answered by Template*."""

    generation: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A generation has proved itself: drop what only older ones needed."""

    generation: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """A generation will never be used: drop its settings, listeners and template."""

    generation: int


@dataclass(frozen=True, slots=True)
class ReopenLogs:
    """Tell every worker, and the supervisor, to open its log files again."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Check the new program in a child, then execute it in this process."""


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell the service manager (sd_notify(3))."""

    event: Literal["ready", "reloading", "stopping", "status"]
    status: str


@dataclass(frozen=True, slots=True)
class AskForTime:
    """Tell the service manager that the change under way may take ``seconds`` more."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Log:
    """Write a log line; ``detail`` is a traceback or other text of several lines."""

    level: Literal["debug", "info", "warning", "error"]
    text: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Exit:
    """Leave, with this code; no worker is left."""

    code: int


Action = (
    Spawn
    | Drain
    | Kill
    | Dump
    | CollectDump
    | Probe
    | StartPreflight
    | CancelPreflight
    | StartTemplate
    | Commit
    | Abandon
    | ReopenLogs
    | Upgrade
    | Notify
    | AskForTime
    | Log
    | Exit
)
