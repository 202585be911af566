"""What the supervisor knows, as JSON, for whoever asks at the control socket.

Memory and processor time are not part of it: reading them for many workers takes longer than
the supervisor's loop may stand still. Whoever shows them reads them by the process ids
(``usage.py``). Keys are documented in docs/reference/control-protocol.md; durations are
seconds.
"""

from math import inf
from typing import Any

from asgictl.core.state import Phase, Reload, ReloadPhase, State, WorkerHandle, WorkerState
from asgictl.operate.sums import quantile, steps_of, total
from asgictl.operate.totals import Now, Totals
from asgictl_worker.counters import BOUNDS


def status(state: State, totals: Totals, now: float) -> dict[str, Any]:
    """Return the whole fleet and what has become of it."""
    nows = {worker: totals.now(worker, now) for worker in state.workers}
    table = [_worker(worker, nows[worker.id], totals, now) for worker in _in_order(state)]
    sums = totals.sums(state.workers)
    recent = total(each.steps for each in nows.values() if each.steps)
    known = [each.busy for each in nows.values() if each.busy is not None]
    return {
        "phase": str(state.phase),
        "uptime": round(now - totals.started, 3),
        "generation": state.committed,
        "desired": state.desired,
        "ready": state.ready(),
        "connections": sum(worker["connections"] for worker in table),
        "in_flight": sum(worker["in_flight"] for worker in table),
        "websockets": sum(worker["websockets"] for worker in table),
        "requests_per_second": round(sum(each.rate for each in nows.values()), 1),
        "p50": _rounded(quantile(recent, 0.5)),
        "p99": _rounded(quantile(recent, 0.99)),
        "busy": round(sum(known) / len(known), 4) if known else None,
        "requests": sums.requests,
        "requests_by": sums.by_kind(),
        "durations": {
            "bounds": list(BOUNDS),
            "counts": steps_of(sums.cells),
            "sum": round(sums.seconds, 6),
        },
        "errors": sums.errors,
        "connections_total": sums.connections_total,
        "websockets_total": sums.websockets_total,
        "messages_received": sums.messages_received,
        "messages_sent": sums.messages_sent,
        "bytes_received": sums.bytes_received,
        "bytes_sent": sums.bytes_sent,
        "busy_seconds": round(sums.busy, 3),
        "beats_dropped": totals.beats_dropped,
        "exits": dict(totals.exits),
        "waiting": {str(slot): round(until - now, 3) for slot, until in state.backoff.items()},
        "slots": {
            str(slot): {
                "restarts": each.restarts,
                "cause": each.cause,
                "ago": round(now - each.at, 3) if each.at > -inf else None,
            }
            for slot, each in sorted(totals.slots.items())
        },
        "reload": state.reload and _reload(state, state.reload, now),
        "reload_requested": state.reload_requested,
        "last_reload": _last_reload(state, now),
        "reloads_committed": totals.reloads_committed,
        "reloads_refused": totals.reloads_refused,
        "upgrades": totals.upgrades,
        "workers": table,
    }


def _in_order(state: State) -> list[WorkerHandle]:
    return sorted(state.workers.values(), key=lambda worker: (worker.slot, worker.id))


def _worker(worker: WorkerHandle, does: Now, totals: Totals, now: float) -> dict[str, Any]:
    history = totals.slots.get(worker.slot)
    counts = bool(does.row.ticked)
    beaten = worker.last_beat != inf
    return {
        "worker": worker.id,
        "slot": worker.slot,
        "pid": worker.pid,
        "generation": worker.generation,
        "state": str(worker.state),
        "stage": worker.stage if worker.state is WorkerState.STARTING else "",
        "why": worker.fate or worker.recycle,
        "age": round(now - worker.born, 3),
        "beat": round(now - worker.last_beat, 3) if beaten else None,
        "connections": does.row.connections if counts else worker.connections,
        "in_flight": does.row.in_flight if counts else worker.in_flight,
        "websockets": does.row.websockets,
        "requests": does.requests,
        "requests_per_second": round(does.rate, 1),
        "p50": _rounded(quantile(does.steps, 0.5)),
        "p99": _rounded(quantile(does.steps, 0.99)),
        "errors": does.row.errors,
        "busy": _rounded(does.busy),
        "loop_lag": round(does.lag, 6),
        "restarts": history.restarts if history else 0,
        "last_restart": {"cause": history.cause, "ago": round(now - history.at, 3)}
        if history
        else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _reload(state: State, reload: Reload, now: float) -> dict[str, Any]:
    return {
        "epoch": reload.epoch,
        "generation": reload.generation,
        "phase": str(reload.phase),
        "seconds": round(now - reload.started, 3),
        "progress": progress(state),
    }


def _last_reload(state: State, now: float) -> dict[str, Any] | None:
    ended = state.last_reload
    if ended is None:
        return None
    return {
        "epoch": ended.epoch,
        "generation": ended.generation,
        "committed": ended.committed,
        "reason": ended.reason,
        "detail": ended.detail,
        "ago": round(now - ended.finished, 3),
    }


def progress(state: State) -> str:
    """Return how far a reload has come, in words."""
    reload = state.reload
    if reload is None:
        if state.phase is Phase.BOOTING:
            return "waiting for the first worker"
        return "waiting for its turn" if state.reload_requested else ""
    generation = f"generation {reload.generation}"
    match reload.phase:
        case ReloadPhase.PREFLIGHT:
            return f"{generation}: checking the settings"
        case ReloadPhase.TEMPLATE:
            return f"{generation}: importing the application"
        case ReloadPhase.CANARY:
            first = [
                each for each in state.workers.values() if each.generation == reload.generation
            ]
            stages = [each.stage for each in first if each.state is WorkerState.STARTING]
            soaking = any(each.state is WorkerState.SOAKING for each in first)
            doing = f"in stage {stages[0]!r}" if stages else "proving itself" if soaking else "next"
            return f"{generation}: first worker {doing}"
        case ReloadPhase.ROLLING:
            serving = sum(
                any(
                    each.generation == reload.generation and each.state is WorkerState.READY
                    for each in occupants
                )
                for occupants in state.slots()
            )
            return f"{generation}: {serving} of {state.desired} workers replaced"
