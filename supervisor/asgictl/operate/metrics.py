"""What monitoring reads: every metric is declared once, with its sentence and where it comes from.

The declarations also make docs/reference/metrics.md. They read a ``Snapshot``; how that comes
about, and who asks for it, is no matter of this module. prometheus_client is imported when
something is written: the supervisor itself needs the declarations only.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from asgictl.core.state import WorkerState
from asgictl.operate.usage import Usage

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

PREFIX = "asgictl_"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known at one moment."""

    status: Mapping[str, Any]
    listeners: Mapping[str, Any]
    usage: Mapping[int, Usage] = field(default_factory=dict)
    """By process id."""
    at: float = 0.0
    """Seconds since the epoch."""


Samples = Iterable[tuple[tuple[str, ...], float | None]]
"""Values by their labels; None is not known, and left out."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One declaration. Names of counters are without their ``_total``."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    sentence: str
    read: Callable[[Snapshot], Samples]
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """The name as it is shown."""
        return PREFIX + self.name + ("_total" if self.kind == "counter" else "")


def _one(key: str) -> Callable[[Snapshot], Samples]:
    return lambda snapshot: [((), snapshot.status[key])]


def _each(key: str) -> Callable[[Snapshot], Samples]:
    return lambda snapshot: [(_place(row), row[key]) for row in snapshot.status["workers"]]


def _place(row: Mapping[str, Any]) -> tuple[str, ...]:
    return str(row["slot"]), str(row["pid"])


def _of_workers(read: Callable[[Usage], float | None]) -> Callable[[Snapshot], Samples]:
    return lambda snapshot: [
        (_place(row), read(snapshot.usage[row["pid"]]))
        for row in snapshot.status["workers"]
        if row["pid"] in snapshot.usage
    ]


def _of_supervisor(read: Callable[[Usage], float | None]) -> Callable[[Snapshot], Samples]:
    return lambda snapshot: [((), read(snapshot.usage.get(snapshot.status["pid"], Usage())))]


def _of_listeners(key: str) -> Callable[[Snapshot], Samples]:
    return lambda snapshot: [
        ((each["address"],), each[key]) for each in snapshot.listeners["listeners"]
    ]


def _requests(snapshot: Snapshot) -> Samples:
    return [
        ((method, status), count)
        for method, found in snapshot.status["requests_by"].items()
        for status, count in found.items()
    ]


def _by_state(snapshot: Snapshot) -> Samples:
    states = [row["state"] for row in snapshot.status["workers"]]
    return [((str(state),), states.count(str(state))) for state in WorkerState]


def _restarts(snapshot: Snapshot) -> Samples:
    # Two processes may be in a slot for a while, and its past is the same.
    past = {str(row["slot"]): row["restarts"] for row in snapshot.status["workers"]}
    # A slot that waits after failures has no process, and is what this is about.
    past |= {slot: each["restarts"] for slot, each in snapshot.status["slots"].items()}
    return [((slot,), count) for slot, count in past.items()]


def _reloads(snapshot: Snapshot) -> Samples:
    return [
        ((result,), snapshot.status[f"reloads_{result}"]) for result in ("committed", "refused")
    ]


def _last_reload(read: Callable[[Mapping[str, Any], float], float]) -> Callable[..., Samples]:
    def samples(snapshot: Snapshot) -> Samples:
        last = snapshot.status["last_reload"]
        return [((), read(last, snapshot.at))] if last else []

    return samples


_WORKER = ("slot", "pid")

METRICS: Sequence[Metric] = (
    # -- The service
    Metric(
        "info",
        "gauge",
        "Always 1; says which application is served by which version.",
        lambda snapshot: [((snapshot.status["application"], snapshot.status["version"]), 1)],
        ("application", "version"),
    ),
    Metric(
        "start_time_seconds",
        "gauge",
        "When the supervisor was started, since the epoch; upgrades in place do not change it.",
        lambda snapshot: [((), round(snapshot.at - snapshot.status["uptime"], 1))],
    ),
    # -- Traffic
    Metric(
        "http_requests",
        "counter",
        "Requests that were answered, or given up by their client (4xx), by method and class of "
        "status. A WebSocket counts with its handshake: 1xx if it was accepted.",
        _requests,
        ("method", "status"),
    ),
    Metric(
        "http_request_duration_seconds",
        "histogram",
        "Time from the head of a request to the end of its response. A worker without an access "
        "log that answers more than 1,000 requests a second times one of eight, at random, and "
        "the others count as the last timed one of their method and class of status.",
        lambda snapshot: (),
    ),
    Metric(
        "requests_in_progress",
        "gauge",
        "Requests and WebSockets that the application works on.",
        _one("in_flight"),
    ),
    Metric(
        "exceptions",
        "counter",
        "Exceptions of the application, and promises that it has broken: a body too short, no response.",
        _one("errors"),
    ),
    Metric(
        "received_bytes",
        "counter",
        "Bytes from clients, heads and frames included, as they are inside of TLS.",
        _one("bytes_received"),
    ),
    Metric("sent_bytes", "counter", "Bytes to clients, likewise.", _one("bytes_sent")),
    Metric(
        "connections_open",
        "gauge",
        "Connections, those of WebSockets included.",
        _one("connections"),
    ),
    Metric(
        "connections_accepted",
        "counter",
        "Connections that were ever set up.",
        _one("connections_total"),
    ),
    Metric("websockets_open", "gauge", "WebSockets, in their handshake too.", _one("websockets")),
    Metric(
        "websockets_opened", "counter", "WebSockets that were ever begun.", _one("websockets_total")
    ),
    Metric(
        "websocket_messages_received",
        "counter",
        "Messages of WebSockets from clients.",
        _one("messages_received"),
    ),
    Metric(
        "websocket_messages_sent",
        "counter",
        "Messages of WebSockets to clients.",
        _one("messages_sent"),
    ),
    Metric(
        "listen_queue_connections",
        "gauge",
        "Connections that wait in the kernel until a worker accepts them.",
        _of_listeners("waiting"),
        ("address",),
    ),
    Metric(
        "listen_queue_limit_connections",
        "gauge",
        "How many may wait.",
        _of_listeners("limit"),
        ("address",),
    ),
    Metric(
        "listen_queue_dropped",
        "counter",
        "Connections that found the queue full.",
        _of_listeners("dropped"),
        ("address",),
    ),
    Metric(
        "listen_overflows",
        "counter",
        "How often any queue of this machine or container was full, those of other programs too.",
        lambda snapshot: [((), snapshot.listeners["overflows"])],
    ),
    # -- The fleet
    Metric("workers", "gauge", "Worker processes, by state.", _by_state, ("state",)),
    Metric("workers_desired", "gauge", "How many workers there shall be.", _one("desired")),
    Metric("workers_ready", "gauge", "How many of them are ready.", _one("ready")),
    Metric(
        "slots_waiting",
        "gauge",
        "Places whose workers fail, and that wait before the next attempt.",
        lambda snapshot: [((), len(snapshot.status["waiting"]))],
    ),
    Metric(
        "busy_ratio",
        "gauge",
        "The share of the last seconds in which event loops have worked or were blocked, as the mean of "
        "all workers; what to scale by.",
        _one("busy"),
    ),
    Metric(
        "busy_seconds",
        "counter",
        "The seconds behind that, of all workers together.",
        _one("busy_seconds"),
    ),
    Metric(
        "worker_exits",
        "counter",
        "Worker processes that have ended, by cause; see the causes below.",
        lambda snapshot: [((cause,), n) for cause, n in snapshot.status["exits"].items()],
        ("cause",),
    ),
    Metric(
        "restarts",
        "counter",
        "Ends of workers that nobody wanted, by slot.",
        _restarts,
        ("slot",),
    ),
    Metric(
        "beats_dropped",
        "counter",
        "Heartbeats that a supervisor which was behind has not taken.",
        _one("beats_dropped"),
    ),
    # -- Reloads
    Metric(
        "generation", "gauge", "The generation that replacements come from.", _one("generation")
    ),
    Metric("reloads", "counter", "Reloads that have ended, by result.", _reloads, ("result",)),
    Metric(
        "reload_in_progress",
        "gauge",
        "1 while a reload is under way.",
        lambda snapshot: [((), int(snapshot.status["reload"] is not None))],
    ),
    Metric(
        "last_reload_success",
        "gauge",
        "1 if the last reload was committed, 0 if it was refused; missing before the first.",
        _last_reload(lambda last, at: int(last["committed"])),
    ),
    Metric(
        "last_reload_timestamp_seconds",
        "gauge",
        "When the last reload ended, since the epoch.",
        _last_reload(lambda last, at: round(at - last["ago"], 1)),
    ),
    Metric("upgrades", "counter", "Upgrades of the supervisor in place.", _one("upgrades")),
    # -- Each worker
    Metric("worker_age_seconds", "gauge", "Since it was forked.", _each("age"), _WORKER),
    Metric(
        "worker_heartbeat_age_seconds",
        "gauge",
        "Since its event loop has last reported; more than an eighth of `--timeout` means that it is late.",
        _each("beat"),
        _WORKER,
    ),
    Metric(
        "worker_loop_lag_seconds",
        "gauge",
        "By how much its event loop is late, or was at worst within the last second.",
        _each("loop_lag"),
        _WORKER,
    ),
    Metric(
        "worker_busy_ratio",
        "gauge",
        "The share of the last seconds in which its event loop has worked or was blocked.",
        _each("busy"),
        _WORKER,
    ),
    Metric(
        "worker_requests", "counter", "Requests that it has answered.", _each("requests"), _WORKER
    ),
    Metric("worker_connections_open", "gauge", "Its connections.", _each("connections"), _WORKER),
    Metric(
        "worker_requests_in_progress",
        "gauge",
        "Requests and WebSockets that it works on.",
        _each("in_flight"),
        _WORKER,
    ),
    Metric(
        "worker_memory_rss_bytes",
        "gauge",
        "Its memory, what it shares with others counted in full.",
        _of_workers(lambda usage: usage.rss),
        _WORKER,
    ),
    Metric(
        "worker_memory_pss_bytes",
        "gauge",
        "Its memory, what it shares with others divided by how many share it; up to ten seconds old.",
        _of_workers(lambda usage: usage.pss),
        _WORKER,
    ),
    # -- The supervisor
    Metric(
        "supervisor_memory_rss_bytes",
        "gauge",
        "The supervisor's memory, likewise.",
        _of_supervisor(lambda usage: usage.rss),
    ),
    Metric(
        "supervisor_memory_pss_bytes",
        "gauge",
        "The supervisor's memory, likewise.",
        _of_supervisor(lambda usage: usage.pss),
    ),
)


class Collector:
    """A snapshot as prometheus_client takes it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> "Iterable[Family]":
        """Yield every metric that has a value."""
        from prometheus_client.metrics_core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        for metric in METRICS:
            name, sentence = PREFIX + metric.name, metric.sentence
            if metric.kind == "histogram":
                histogram = HistogramMetricFamily(name, sentence)
                found = self._snapshot.status["durations"]
                bounds = [*map(repr, found["bounds"]), "+Inf"]
                counts = zip(bounds, accumulate(found["counts"]), strict=True)
                histogram.add_metric((), list(counts), found["sum"])
                yield histogram
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(name, sentence, labels=metric.labels)
            for labels, value in metric.read(self._snapshot):
                if value is not None:
                    family.add_metric(labels, value)
            yield family


def write(snapshot: Snapshot, accept: str = "") -> tuple[bytes, str]:
    """Return all metrics, and what kind of text they are.

    Args:
        snapshot: where they come from.
        accept: the header of who asks; OpenMetrics if it wants that, else Prometheus' own text.
    """
    from prometheus_client.exposition import choose_encoder

    try:
        encode, content_type = choose_encoder(accept)
    except (ValueError, TypeError):  # of a version that is none
        encode, content_type = choose_encoder("")
    return encode(Collector(snapshot)), content_type


PAGE = "docs/reference/metrics.md"


def page() -> str:
    """Return the reference page, in Markdown."""
    rows = [
        f"| `{metric.full_name}` | {metric.kind} | "
        f"{', '.join(f'`{label}`' for label in metric.labels)} | {metric.sentence} |"
        for metric in METRICS
    ]
    return _PREFACE + "\n".join(rows) + "\n" + _POSTFACE


_PREFACE = """\
# Metrics

<!-- Generated from the declarations by `python -m asgictl.reference`; change those. -->

With [`--admin-bind`](options.md#admin_bind) they are at `/metrics`, in Prometheus' text format, or as
OpenMetrics for those who ask for it by `Accept`. [Monitor a service](../how-to/monitor.md) shows how.

Workers count in memory that the supervisor reads. So the totals survive workers, reloads and
upgrades in place; of a worker that is killed no request is lost, and of its bytes, messages,
connections and exceptions those of the last 0.2 s. A worker that is blocked is seen like any other.

| name | kind | labels | |
|---|---|---|---|
"""

_POSTFACE = """
`status` is `1xx` to `5xx`, or `other` for codes above; `method` is a usual one or `other`. `slot` is
the place of a worker, which keeps its number when the process is replaced; `pid` is the process.
`state` is one of the [states of a worker](states.md).

`cause` is `reload`, `reload refused`, `max-requests`, `max-lifetime`, `max-memory`, `scale-down`,
`stop` or `asked for`, which are planned, or `hang`, `boot failed`, `boot time-out`, `out of memory`,
`SIG...` or `exit code N`, which are not.
"""
