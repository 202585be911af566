"""What the supervisor can learn. Each event is a fact, delivered once to ``step()``."""

from dataclasses import dataclass
from enum import StrEnum

from asgictl.core.policy import Policy


class Verdict(StrEnum):
    """What /proc says of a worker that does not beat."""

    BLOCKED = "blocked in a system call"
    BUSY = "busy on the processor"
    STARVED = "starved of processor time"
    STOPPED = "stopped by a signal or a debugger"
    WAITING_FOR_DISK = "waiting for a disk"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Started:
    """The listeners are bound; the fleet may be built."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal arrived. Signals are requests without a count: many may arrive as one."""

    name: str
    """Without the ``SIG``: TERM, INT, QUIT, HUP, TTIN, TTOU, USR1, USR2."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; deadlines may be due."""


@dataclass(frozen=True, slots=True)
class Lag:
    """The supervisor itself woke ``seconds`` too late: it was stopped, starved or suspended.

    Workers may have suffered with it, so nobody is judged by that time.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Spawned:
    """The fork of a worker succeeded."""

    worker: int
    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The fork of a worker failed; there is no process."""

    worker: int
    error: str


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker's process ended and was reaped."""

    worker: int
    code: int | None
    """The exit code, or None if a signal killed it."""
    signal: str = ""
    """The name of that signal, without the ``SIG``."""
    out_of_memory: bool = False
    """The kernel's own count says that it killed for memory."""


@dataclass(frozen=True, slots=True)
class StageReached:
    """A worker's boot has come to ``stage``, or is still there."""

    worker: int
    stage: str
    busy: str = ""
    """What it is busy with, if that takes long."""


@dataclass(frozen=True, slots=True)
class BecameReady:
    """A worker's application is up and its listeners are armed."""

    worker: int


@dataclass(frozen=True, slots=True)
class BootFailed:
    """A worker could not boot; it says why and exits by itself."""

    worker: int
    stage: str
    error: str
    traceback: str = ""
    shown: bool = False
    """It goes on and serves this traceback, in development."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A worker's event loop has turned."""

    worker: int
    connections: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class RecycleRequested:
    """A worker has served long enough, or has grown too big, and asks for a successor."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class DrainStarted:
    """A worker has stopped accepting, on our word or because somebody signalled it."""

    worker: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """The answer to a Probe."""

    worker: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class PreflightPassed:
    """The new settings are sound and the new listeners are bound."""

    epoch: int
    policy: Policy


@dataclass(frozen=True, slots=True)
class PreflightFailed:
    """The new settings, certificates, listeners or application are not sound."""

    epoch: int
    error: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class TemplateReady:
    """The template of a generation holds the application in memory and can fork."""

    generation: int


@dataclass(frozen=True, slots=True)
class TemplateFailed:
    """The template of a generation could not boot, or has died."""

    generation: int
    error: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class UpgradeRefused:
    """The new program did not pass its check; everything is as it was."""

    error: str


@dataclass(frozen=True, slots=True)
class ReloadRequested:
    """Somebody wants new settings and a new application, as by SIGHUP."""


@dataclass(frozen=True, slots=True)
class FilesChanged:
    """Files of the application have changed, in development."""

    what: str
    """Which, as a sentence begins with it."""
    code: bool = True
    settings: bool = False
    """Settings are read from one of them."""


@dataclass(frozen=True, slots=True)
class ReloadAborted:
    """Somebody wants the reload that is requested or under way to be given up."""


@dataclass(frozen=True, slots=True)
class ScaleRequested:
    """Somebody wants ``count`` workers; 0 pauses the service, with its listeners open."""

    count: int


@dataclass(frozen=True, slots=True)
class WorkerRestartRequested:
    """Somebody wants a worker to be replaced."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerDrainRequested:
    """Somebody wants a worker to finish its work and leave, without waiting for a successor."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerKillRequested:
    """Somebody wants a worker to be gone, whatever it is doing."""

    worker: int


@dataclass(frozen=True, slots=True)
class StacksRequested:
    """Somebody wants to know where a worker is in its code."""

    worker: int


Event = (
    Started
    | Signal
    | Tick
    | Lag
    | Spawned
    | SpawnFailed
    | Exited
    | StageReached
    | BecameReady
    | BootFailed
    | Beat
    | RecycleRequested
    | DrainStarted
    | Evidence
    | PreflightPassed
    | PreflightFailed
    | TemplateReady
    | TemplateFailed
    | UpgradeRefused
    | ReloadRequested
    | FilesChanged
    | ReloadAborted
    | ScaleRequested
    | WorkerRestartRequested
    | WorkerDrainRequested
    | WorkerKillRequested
    | StacksRequested
)
