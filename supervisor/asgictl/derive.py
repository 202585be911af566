"""What follows from what: settings become the core's policy, messages become its events.

Pure functions between the words of the settings and the contract and those of the core.
"""

from typing import Any

from asgictl.core import events as ev
from asgictl.core.policy import Policy
from asgictl.settings import Settings
from asgictl.system import machine
from asgictl_worker import contract

BEATS_PER_SECOND = 20
"""About as many beats as the supervisor hears of a fleet of any size, if its time-out allows."""


def event_of(worker: int, message: contract.Message) -> ev.Event | None:
    """Return what a worker's message means for the core."""
    match message:
        case contract.Beat():
            return ev.Beat(worker, message.connections, message.in_flight)
        case contract.Stage():
            return ev.StageReached(worker, message.stage, message.busy)
        case contract.Ready():
            return ev.BecameReady(worker)
        case contract.Failed():
            return ev.BootFailed(
                worker, message.stage, message.error, message.traceback, message.shown
            )
        case contract.Recycle():
            return ev.RecycleRequested(worker, message.reason)
        case contract.Draining():
            return ev.DrainStarted(worker)
    return None


def policy_from(settings: Settings) -> Policy:
    """Return the numbers that the core decides by."""
    workers = settings.workers
    return Policy(
        workers=machine.available_processors()[0] if workers == "auto" else int(workers),
        timeout=settings.timeout,
        boot_timeout=settings.timeout_boot,
        stop_timeout=settings.timeout_graceful_shutdown,
        reload_drain_timeout=settings.timeout_reload_drain,
        lifespan_timeout=settings.timeout_lifespan_shutdown,
        min_ready=settings.min_ready,
        give_up_after=settings.give_up_after,
        preload=settings.preload,
        max_workers=max_workers(settings),
        surge=settings.max_surge,
        stop_delay=settings.stop_delay,
    )


def extensions(settings: Settings) -> dict[str, Any]:
    """Return the user's own code in a worker, as fields of its assignment."""
    return {
        "worker_class": settings.worker_class,
        "on_worker_start": settings.on_worker_start,
        "on_worker_stop": settings.on_worker_stop,
    }


def max_workers(settings: Settings) -> int:
    """Return up to how many workers the fleet may be scaled at run time."""
    wanted = 0 if settings.workers == "auto" else int(settings.workers)
    return settings.max_workers or max(4 * machine.available_processors()[0], 2 * wanted)


def beat_interval(timeout: float, workers: int) -> float:
    """Return the seconds between two beats, often enough to be missed in time.

    A big fleet beats less often, so that hearing it stays cheap.
    """
    return max(0.25, min(timeout / 8, max(1.0, workers / BEATS_PER_SECOND)))


def limits(settings: Settings, slot: int, workers: int) -> dict[str, Any]:
    """Return when the worker of a slot asks for a successor, as fields of its assignment.

    Jitter is spread evenly over the slots: independent dice collide. A lifetime is spread by
    a tenth, for workers that start together would also grow old together.
    """
    share = slot / max(1, workers)
    requests = settings.max_requests
    return {
        "max_requests": requests and requests + int(settings.max_requests_jitter * share),
        "max_lifetime": settings.max_lifetime * (1 + 0.1 * share),
        "max_memory": settings.max_memory,
    }
