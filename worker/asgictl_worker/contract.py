"""What a supervisor and its workers say to each other, and the bytes they say it in.

One message is one datagram of a ``socketpair(AF_UNIX, SOCK_SEQPACKET)``: borders are kept,
end-of-file means that the other side is gone. A header of fixed size is followed by a
packed BEAT or, for the rare messages, by JSON. Types that are not known are reported as
None by ``decode()``: after an upgrade a new supervisor must live with old workers, and an
old supervisor with new ones.

Nothing here does I/O.
"""

import json
import struct
from dataclasses import asdict, dataclass, fields
from typing import ClassVar, get_args

MAGIC = 0xA5C1
VERSION = 1
HEADER = struct.Struct("!HBB")
MAX_MESSAGE = 64 * 1024
"""The longest datagram, in bytes; texts are cut to fit (``shorten()``)."""

ORPHAN_SIGNAL = 40
"""What the kernel sends to a worker whose supervisor dies: a real-time signal, which nobody else
uses, and which ends a process that is not prepared for it."""


class MalformedMessage(ValueError):
    """Bytes on the channel that this protocol cannot have produced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """Sent by the worker's event loop itself, so that a beat proves that the loop turns.

    ``*_total`` count since the worker started; the supervisor adds up the differences, so
    its totals survive the worker.
    """

    TYPE: ClassVar[int] = 1
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("!IIIQQI")

    connections: int = 0
    in_flight: int = 0
    loop_lag_us: int = 0
    requests_total: int = 0
    errors_total: int = 0
    beats_dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The worker's boot reached a stage: ``fork``, ``hooks``, ``import``, ``lifespan``, ``listen``."""

    TYPE: ClassVar[int] = 2
    stage: str
    busy: str = ""
    """What it is busy with, said now and then while the stage takes long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """lifespan.startup is complete and the listeners are armed."""

    TYPE: ClassVar[int] = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The boot failed; ``traceback`` is empty when the sentence says it all."""

    TYPE: ClassVar[int] = 4
    stage: str
    error: str
    traceback: str = ""
    shown: bool = False
    """The worker goes on, and answers requests with this: development."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recycle:
    """The worker asks to be replaced; it serves on until its successor is ready."""

    TYPE: ClassVar[int] = 5
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Draining:
    """The worker has stopped accepting; ``left`` connections are still open."""

    TYPE: ClassVar[int] = 6
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bye:
    """The worker is done and about to exit of its own will."""

    TYPE: ClassVar[int] = 7
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """A template has forked the worker that it was asked for, or could not (``error``)."""

    TYPE: ClassVar[int] = 8
    worker: int
    pid: int
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Stop accepting, finish what is in progress within ``timeout`` seconds, then exit."""

    TYPE: ClassVar[int] = 33
    timeout: float
    reason: str
    for_good: bool = False
    """Nobody accepts after us: take what the kernel's queue holds, and close the listeners."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReopenLogs:
    """Close and open log files again, after they were rotated."""

    TYPE: ClassVar[int] = 34


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadTLS:
    """Read certificate and key again; new connections get them, open ones keep what they have."""

    TYPE: ClassVar[int] = 35


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLevel:
    """Log as much as somebody has asked for, instead of what the setting says."""

    TYPE: ClassVar[int] = 36
    level: str
    """One of the words of the setting ``log_level``."""


Message = (
    Beat
    | Stage
    | Ready
    | Failed
    | Recycle
    | Draining
    | Bye
    | Forked
    | Drain
    | ReopenLogs
    | ReloadTLS
    | LogLevel
)
_TYPES: dict[int, type[Message]] = {kind.TYPE: kind for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """Return the datagram for a message, at most ``MAX_MESSAGE`` bytes long."""
    head = HEADER.pack(MAGIC, VERSION, message.TYPE)
    if isinstance(message, Beat):
        return head + Beat.LAYOUT.pack(
            message.connections,
            message.in_flight,
            min(message.loop_lag_us, 0xFFFFFFFF),
            message.requests_total,
            message.errors_total,
            message.beats_dropped,
        )
    datagram = head + json.dumps(asdict(message), ensure_ascii=False).encode("utf-8", "replace")
    assert len(datagram) <= MAX_MESSAGE, f"{type(message).__name__} is {len(datagram)} bytes long"
    return datagram


def decode(datagram: bytes) -> Message | None:
    """Return the message in a datagram, or None if its type is not known here.

    Fields that are not known are ignored, missing ones take their default.

    Raises:
        MalformedMessage: the bytes are not from this protocol.
    """
    try:
        magic, _version, number = HEADER.unpack_from(datagram)
        if magic != MAGIC:
            raise MalformedMessage(f"a datagram begins with {magic:#06x} instead of {MAGIC:#06x}")
        kind = _TYPES.get(number)
        if kind is None:
            return None
        if kind is Beat:
            values = Beat.LAYOUT.unpack_from(datagram, HEADER.size)
            return Beat(**dict(zip(_BEAT_FIELDS, values, strict=True)))
        body = json.loads(datagram[HEADER.size :])
        known = {item.name for item in fields(kind)}
        return kind(**{name: value for name, value in body.items() if name in known})
    except (
        struct.error,
        UnicodeDecodeError,
        json.JSONDecodeError,
        TypeError,
        AttributeError,
    ) as error:
        raise MalformedMessage(
            f"a datagram of {len(datagram)} bytes cannot be read: {error}"
        ) from None


_BEAT_FIELDS = tuple(item.name for item in fields(Beat))


def shorten(text: str, limit: int = 40 * 1024) -> str:
    """Return ``text`` cut in the middle so that it fits a message as UTF-8 JSON.

    The beginning and the end of a traceback say most, so both are kept.
    """
    size = len(json.dumps(text, ensure_ascii=False).encode("utf-8", "replace"))
    if size <= limit:
        return text
    # Every character takes at most 6 bytes of JSON (a control character as \\u001b).
    half = limit // 12
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A listening socket that a worker inherits, by descriptor."""

    fd: int
    family: int
    address: str
    """As people read it: ``http://127.0.0.1:8000`` or ``unix:/run/app.sock``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a worker gets from the supervisor that forked it. Descriptors are inherited."""

    worker: int
    slot: int
    generation: int
    application: str
    listeners: tuple[Listener, ...]
    channel_fd: int
    lifeline_fd: int
    """The read end of a pipe whose write end only the supervisor holds."""
    dump_fd: int
    """A memfd for stack dumps: it takes them even when the log's pipe is full."""
    beat_interval: float
    """Seconds between two beats."""
    board_fd: int = -1
    """Memory that all workers share (``board.py``), or -1."""
    development: bool = False
    """Show tracebacks to clients, and serve that of an application that does not boot."""
    worker_class: str | None = None
    """The name of the class that serves, instead of ``Server``."""
    on_worker_start: tuple[str, ...] = ()
    """Names of functions to call before the application is loaded."""
    on_worker_stop: tuple[str, ...] = ()
    """Names of functions to call after the application has shut down."""
    max_requests: int = 0
    """Ask to be replaced after this many requests; 0 never asks."""
    max_lifetime: float = 0.0
    """Ask to be replaced after this many seconds; 0 never asks."""
    max_memory: int = 0
    """Ask to be replaced when holding this many bytes; 0 never asks."""
