"""Every situation that small fleets can get into, by breadth-first search.

Times are abstracted to their order: two states are the same when the same deadlines come in
the same order. The happenings are everything that can be next, among them that the earliest
deadline comes. So the search goes through all interleavings that hypothesis only samples.
"""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

import pytest
from tests.supervisor.core.ledger import Ledger

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core.policy import ABORT_GRACE, KILL_GRACE, TERMINATE_GRACE, Policy
from asgictl.core.state import Phase, ReloadPhase, State, TemplatePhase, WorkerState, next_deadline
from asgictl.core.step import initial, step

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
BEATING = (WorkerState.SOAKING, WorkerState.READY, WorkerState.SUSPECT, WorkerState.DRAINING)


@dataclass(frozen=True)
class Scope:
    """What a search goes through."""

    policy: Policy
    most_workers: int
    reloads: int
    states: int
    """Stop after so many, and many times that in the night; 0 goes through all of them."""
    processes: int = 3
    """Situations with more of them are not followed further."""
    recycling: bool = False


class Node:
    """A situation: the core's state, the books, and questions that the edge answers at once."""

    __slots__ = ("depth", "ledger", "now", "origin", "probes", "state")

    def __init__(self, state: State, ledger: Ledger, now: float) -> None:
        self.state, self.ledger, self.now = state, ledger, now
        self.probes: tuple[int, ...] = ()
        self.depth = 0
        self.origin: tuple[Node, ev.Event] | None = None

    def after(self, event: ev.Event, now: float) -> "Node":
        """Return the situation after an event, which is checked."""
        ledger = self.ledger.copy()
        state, actions = step(self.state, event, now)
        ledger.check(self.state, event, now, state, actions)
        node = Node(state, ledger, now)
        probed = tuple(item.worker for item in actions if isinstance(item, act.Probe))
        node.probes = probed or self.probes[1:] if isinstance(event, ev.Evidence) else probed
        node.depth = self.depth + 1
        node.origin = (self, event)
        return node

    def history(self) -> str:
        """Return the events that lead here."""
        lines, node = [], self
        while node.origin:
            node, event = node.origin
            lines.append(str(event))
        return "\n".join(reversed(lines))

    def key(self) -> object:
        """Return what distinguishes this situation from others."""
        state, now = self.state, self.now
        reload, patience = state.reload, state.policy.give_up_after
        moments = [state.stop_accepting_at, state.dark_since + (patience or inf)]
        moments.append(state.last_reload_start + 1.0 if state.reload_requested else inf)
        moments.append(reload.deadline if reload else inf)
        moments += [until for _, until in sorted(state.backoff.items())]
        moments += [template.deadline for template in state.templates.values()]
        workers = []
        for worker in state.workers.values():
            moments += [worker.deadline, worker.dump_due]
            workers.append(
                (
                    worker.slot,
                    worker.generation - state.committed,
                    worker.state,
                    worker.pid != 0,
                    worker.sent,
                    worker.recycle != "",
                    worker.last_beat > worker.ready_at,
                    worker.draining_until <= now,
                )
            )
        order = {moment: rank for rank, moment in enumerate(sorted({now, *moments}))}
        return (
            tuple(workers),
            tuple(order[moment] for moment in moments),
            order[now],
            state.desired,
            state.phase,
            state.stop,
            state.next_generation - state.committed,
            reload and (reload.generation - state.committed, reload.phase),
            state.reload_requested,
            tuple(sorted(state.backoff)),
            tuple(min(count, 3) for count in state.failures.values()),
            tuple(
                (item.generation - state.committed, item.phase) for item in state.templates.values()
            ),
            now < state.last_abort + state.policy.timeout,
            self.probes,
        )


def happenings(node: Node, scope: Scope) -> Iterator[tuple[ev.Event, float]]:
    """Yield everything that can be next, and when."""
    state, now = node.state, node.now
    if state.exited:
        return
    if node.probes:
        for verdict in (ev.Verdict.BLOCKED, ev.Verdict.STARVED):
            yield ev.Evidence(node.probes[0], verdict), now
        return
    for worker in state.workers.values():
        if not worker.pid:
            yield ev.Spawned(worker.id, 1000 + worker.id), now
            yield ev.SpawnFailed(worker.id, "EAGAIN"), now
            if not scope.policy.preload:
                return
            continue
        yield ev.Exited(worker.id, 1), now
        if worker.state is WorkerState.STARTING:
            yield ev.BecameReady(worker.id), now
            yield ev.BootFailed(worker.id, "import", "broken"), now
        if worker.state in BEATING and worker.last_beat < now:
            yield ev.Beat(worker.id), now
        if worker.state is WorkerState.READY and scope.recycling:
            yield ev.DrainStarted(worker.id), now
            if not worker.recycle:
                yield ev.RecycleRequested(worker.id, "old"), now
    for template in state.templates.values():
        if template.phase is TemplatePhase.BOOTING:
            yield ev.TemplateReady(template.generation), now
        if template.phase is not TemplatePhase.LOST:
            yield ev.TemplateFailed(template.generation, "broken"), now
    reload = state.reload
    if reload and reload.phase is ReloadPhase.PREFLIGHT:
        yield ev.PreflightPassed(reload.epoch, state.policy), now
        yield ev.PreflightFailed(reload.epoch, "broken"), now
    if state.phase is not Phase.STOPPING:
        if state.next_generation + state.reload_requested < 2 + scope.reloads:
            yield ev.Signal("HUP"), now
        if state.desired < scope.most_workers:
            yield ev.Signal("TTIN"), now
        yield ev.Signal("TTOU"), now
        yield ev.Signal("TERM"), now
    elif state.stop_accepting_at == inf:
        yield ev.Signal("QUIT"), now
    if next_deadline(state) < inf:
        yield ev.Tick(), max(now, next_deadline(state))


def search(scope: Scope) -> tuple[list[Node], bool]:
    """Return one node per situation, nearest first, and whether that is all of them."""
    start = Node(initial(scope.policy, 1), Ledger(), 100.0).after(ev.Started(), 100.0)
    seen, nodes, todo = {start.key()}, [start], deque([start])
    most = scope.states * (25 if NIGHTLY else 1) or inf
    while todo and len(nodes) < most:
        node = todo.popleft()
        if len(node.state.workers) > scope.processes:
            continue
        for event, now in happenings(node, scope):
            try:
                reached = node.after(event, now)
            except AssertionError as error:
                error.add_note(f"{node.history()}\n{event}")
                raise
            key = reached.key()
            if key not in seen:
                seen.add(key)
                nodes.append(reached)
                todo.append(reached)
    return nodes, not todo


PLAIN = Policy(workers=1, give_up_after=0.0)
SCOPES = {
    "one worker and a reload": Scope(PLAIN, most_workers=1, reloads=1, states=0, processes=2),
    "one worker that recycles": Scope(
        PLAIN, most_workers=1, reloads=0, states=0, processes=2, recycling=True
    ),
    "one worker from a template": Scope(
        replace(PLAIN, preload=True), most_workers=1, reloads=1, states=5_000
    ),
    "two workers and a reload": Scope(
        replace(PLAIN, workers=2), most_workers=2, reloads=1, states=5_000
    ),
    "three workers": Scope(
        replace(PLAIN, workers=3, give_up_after=300.0),
        most_workers=3,
        reloads=1,
        states=5_000,
        processes=4,
    ),
}


@pytest.mark.timeout(36_000 if NIGHTLY else 180)
@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
def test_no_situation_of_a_small_fleet_breaks_a_rule(scope: Scope) -> None:
    nodes, complete = search(scope)

    assert complete or scope.states
    for node in nodes[::100]:
        try:
            assert helped(node), "fair children do not lead to the fleet that is wanted"
            assert stopped(node), "a stop does not end in time"
        except AssertionError as error:
            error.add_note(node.history())
            raise


def helped(node: Node) -> bool:
    """Return whether children that do what they are told lead to the fleet that is wanted."""
    for _ in range(500):
        state, now = node.state, node.now
        if state.exited:
            return True
        if is_settled(state):
            return True
        event = _fair(node)
        if event is None:
            # Nothing but time: the workers beat, and then the next deadline may be there.
            now = min(now + 0.9, max(now, next_deadline(state)))
            for worker in state.workers.values():
                if worker.state in BEATING:
                    node = node.after(ev.Beat(worker.id), now)
            event = ev.Tick()
        node = node.after(event, now)
    return False


def is_settled(state: State) -> bool:
    """Return whether the fleet is as it should be and nothing is going on."""
    active = [worker for worker in state.workers.values() if worker.active]
    return (
        state.reload is None
        and not state.reload_requested
        and len(active) == state.desired == state.ready()
        and all(item.generation == state.committed and not item.recycle for item in active)
    )


def _fair(node: Node) -> ev.Event | None:
    state = node.state
    if node.probes:
        return ev.Evidence(node.probes[0], ev.Verdict.BLOCKED)
    for worker in state.workers.values():
        if not worker.pid:
            return ev.Spawned(worker.id, 1000 + worker.id)
        if worker.state is WorkerState.STARTING:
            return ev.BecameReady(worker.id)
        if not worker.active:
            return ev.Exited(worker.id, 0)
    for template in state.templates.values():
        if template.phase is TemplatePhase.BOOTING:
            return ev.TemplateReady(template.generation)
    if state.reload and state.reload.phase is ReloadPhase.PREFLIGHT:
        return ev.PreflightPassed(state.reload.epoch, state.policy)
    return None


def stopped(node: Node) -> bool:
    """Return whether a TERM leads out in time, though every child leaves only when killed."""
    state, begun = node.state, node.now
    policy = state.policy
    patience = policy.stop_delay + policy.stop_timeout + policy.drain_overtime
    patience += TERMINATE_GRACE + ABORT_GRACE + KILL_GRACE
    if not state.exited:
        node = node.after(ev.Signal("TERM"), node.now)
    while not node.state.exited:
        killed = [item.id for item in node.state.workers.values() if "KILL" in item.sent]
        if node.probes:
            node = node.after(ev.Evidence(node.probes[0], ev.Verdict.STARVED), node.now)
        elif killed:
            node = node.after(ev.Exited(killed[0], None, "KILL"), node.now)
        else:
            node = node.after(ev.Tick(), max(node.now, next_deadline(node.state)))
        if node.now > begun + patience:
            return False
    return True
