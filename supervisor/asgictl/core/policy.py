"""The numbers that the supervisor decides by, and the rules that are made of them alone."""

from dataclasses import dataclass

MIN_UPTIME = 10.0
"""A worker that was ready for this many seconds has proved its code; a crash later is news."""

RELOAD_SPACING = 1.0
"""Seconds between the starts of two reloads, however many HUPs arrive."""

SAME_WORD = 1.0
"""Seconds within which a second TERM says nothing that the first has not said."""

TERMINATE_GRACE = 2.0
"""Seconds between SIGTERM and SIGABRT; the worker has had its drain by then."""

ABORT_GRACE = 2.0
"""Seconds between SIGABRT and SIGKILL; faulthandler writes the stacks in this time."""

KILL_GRACE = 5.0
"""Seconds until a process that SIGKILL does not end is reported as unkillable."""

UNKILLABLE_REMINDER = 60.0
"""Seconds between two reports of a process that SIGKILL does not end."""

PROBE_PATIENCE = 1.0
"""Seconds until /proc is asked again, should an answer not have come."""

DUMP_DELAY = 0.25
"""Seconds that a worker gets to write its stacks before they are read."""

DRAIN_MARGIN = 1.0
"""Seconds that a worker may overrun its own drain before it is terminated."""

PROMISE_MARGIN = 5.0
"""Seconds that the service manager is asked for beyond our own deadlines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings that the core needs; all times are durations in seconds."""

    workers: int
    timeout: float = 30.0
    """No beat for this long is a hang; half of it is suspicious."""
    boot_timeout: float = 60.0
    stop_timeout: float = 30.0
    reload_drain_timeout: float = 300.0
    lifespan_timeout: float = 10.0
    min_ready: float = 1.0
    give_up_after: float = 300.0
    preload: bool = False
    max_workers: int = 1024
    surge: int = 0
    """How many replacements may boot at a time; 0 is a quarter of the fleet."""
    stop_delay: float = 0.0
    """How long to go on accepting after TERM, so that load balancers can look away."""

    @property
    def late_after(self) -> float:
        """Seconds without a beat after which a worker is suspect."""
        return self.timeout / 2

    def surge_for(self, desired: int) -> int:
        """Return how many replacements may boot at the same time."""
        return self.surge or max(1, desired // 4)

    def process_limit(self, desired: int) -> int:
        """Return how many processes there may be when another one is to be started.

        Replacements do not wait for the drains of their predecessors, so many reloads
        could pile processes up; that ends at twice the fleet.
        """
        return desired + self.surge_for(desired) + max(4, 2 * desired)

    @property
    def drain_overtime(self) -> float:
        """Seconds that a worker may take after its drain.

        The worker watches the drain itself, then the application's shutdown has its own time.
        """
        return self.lifespan_timeout + DRAIN_MARGIN
