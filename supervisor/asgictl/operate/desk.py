"""The verbs of the control socket, on the supervisor's side.

A verb looks at the state, gives the core an event if something is to happen, and says what
came of it; what follows from the event is the core's to decide. A verb that has to wait is a
generator: it yields None until the next event, and is never waited for.
"""

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from asgictl.core import events as ev
from asgictl.core.state import ACTIVE, Phase, State, WorkerHandle, WorkerState
from asgictl.operate import status
from asgictl.operate.control import Answer, Answers
from asgictl.operate.protocol import Refused, Request
from asgictl.operate.recorder import FlightRecorder
from asgictl.operate.totals import Totals

LEVELS = ("critical", "error", "warning", "info", "debug")
"""What ``log-level`` takes, as the setting of the same name does."""

_SIGNALS = {False: "TERM", True: "QUIT"}


class Supervised(Protocol):
    """What the desk sees and moves of the supervisor."""

    @property
    def state(self) -> State:
        """What the core knows."""

    @property
    def now(self) -> float:
        """Monotonic seconds."""

    @property
    def totals(self) -> Totals:
        """What has happened since the start."""

    @property
    def recorder(self) -> FlightRecorder:
        """The last events."""

    def learn(self, event: ev.Event) -> None:
        """Give an event to the core, and do what comes of it."""

    def identity(self) -> dict[str, Any]:
        """Who the supervisor is: application, version, pid, addresses."""

    def listening(self) -> dict[str, Any]:
        """Where it listens, and how full the kernel's queues are."""

    def settings(self) -> dict[str, Any]:
        """The settings of the committed generation, where each came from, and the file."""

    def set_log_level(self, level: str) -> None:
        """Log as much as that, in all processes."""

    def renew_certificates(self, answer: Callable[[str], None]) -> bool:
        """Look at the certificates, and have them read again if they are good.

        Returns:
            False if there are none; else ``answer`` gets what is wrong with them, or nothing.
        """


class Desk:
    """Answers requests."""

    def __init__(self, supervisor: Supervised) -> None:
        self._supervisor = supervisor
        self._stacks: dict[int, str | None] = {}
        """What workers have written, for those whose stacks somebody waits for."""

    def answer(self, request: Request) -> Answers:
        """Return what is to be said to a request, bit by bit.

        Raises:
            Refused: nobody knows how to do that.
        """
        verb = VERBS.get(request.verb)
        if verb is None:
            raise Refused(f"there is no verb {request.verb!r}; there are: {', '.join(VERBS)}")
        for name, value in request.arguments.items():
            kind = verb.takes.get(name)
            if kind is None:
                known = ", ".join(verb.takes) or "none"
                raise Refused(f"{request.verb} does not take {name!r}; what it takes: {known}")
            if type(value) is not kind:
                raise Refused(f"{name} cannot be {value!r}: it must be a JSON {_IN_JSON[kind]}")
        if missing := [name for name in verb.needs if name not in request.arguments]:
            raise Refused(f"{request.verb} needs {' and '.join(missing)}")
        return _in_steps(verb.do(self, **request.arguments))

    def collected(self, worker: int, stacks: str) -> None:
        """Take what a worker has written about its stacks."""
        if worker in self._stacks:
            self._stacks[worker] = stacks

    # -- Look

    def _ping(self) -> Answer:
        return self._supervisor.identity()

    def status(self) -> Answer:
        """Return who the supervisor is, and everything that goes on."""
        house = self._supervisor
        return house.identity() | status.status(house.state, house.totals, house.now)

    def listeners(self) -> Answer:
        """Return where it listens, and how full the kernel's queues are."""
        return self._supervisor.listening()

    def _config(self) -> Answer:
        return self._supervisor.settings()

    def _events(self, last: int = 100, follow: bool = False) -> Answers:
        house = self._supervisor
        number = max(house.recorder.count - max(last, 0), 0)
        while True:
            for record in house.recorder.since(number):
                number = record.number + 1
                yield {"record": record.in_words(house.now)}
            if not follow:
                return {}
            yield None

    # -- Reload, upgrade, stop

    def _reload(self, wait: bool = True) -> Answers:
        house = self._supervisor
        self._must_not_stop()
        # One that is under way is superseded by ours, and all wishes until then are one.
        epoch = house.state.epoch + 1
        house.learn(ev.ReloadRequested())
        yield from self._progress(lambda: wait and self._reload_goes_on(epoch))
        ended = house.state.last_reload
        if not wait or ended is None:
            return {"epoch": epoch}
        if ended.epoch != epoch or not ended.committed:
            newer = "superseded by a newer reload" if ended.epoch != epoch else ""
            raise Refused(f"reload refused: {newer or ended.reason}", ended.detail)
        return {"epoch": epoch, "generation": ended.generation}

    def _reload_goes_on(self, epoch: int) -> str:
        self._must_not_stop()
        state = self._supervisor.state
        if state.last_reload is not None and state.last_reload.epoch >= epoch:
            return ""
        if state.epoch < epoch and not state.reload_requested:
            raise Refused("reload refused: somebody has aborted it before it began")
        return status.progress(state) or "waiting for its turn"

    def _abort_reload(self) -> Answer:
        state = self._supervisor.state
        if state.reload is None and not state.reload_requested:
            raise Refused("there is no reload to abort")
        self._supervisor.learn(ev.ReloadAborted())
        return {"generation": state.committed}

    def _reload_tls(self) -> Answers:
        house = self._supervisor
        self._must_not_stop()
        said: list[str] = []
        if house.state.reload or house.state.reload_requested:
            raise Refused("a reload is under way, which reads certificates again, too")
        if not house.renew_certificates(said.append):
            raise Refused("there are no certificates: TLS is not spoken here")
        yield {"progress": "checking the certificates"}
        while not said:
            yield None
            if house.state.reload:
                raise Refused("a reload has begun meanwhile, which reads certificates again, too")
        if said[0]:
            raise Refused(f"the old certificates stay: {said[0]}")
        return {}

    def _upgrade(self) -> Answers:
        state = self._supervisor.state
        if state.phase is not Phase.RUNNING or state.reload or state.reload_requested:
            raise Refused("not now: wait until the fleet is up and no reload is under way")
        yield {
            "progress": "checking the program on disk",
            "upgrades": self._supervisor.totals.upgrades,
        }
        # Next comes the end of this connection, and of this program; or the refusal.
        self._supervisor.learn(ev.Signal("USR2"))
        while True:
            event = yield None
            if isinstance(event, ev.UpgradeRefused):
                raise Refused(f"upgrade refused, everything is as it was: {event.error}")

    def _stop(self, now: bool = False, wait: bool = True) -> Answers:
        self._supervisor.learn(ev.Signal(_SIGNALS[now]))
        # The last word is the end of the connection.
        yield from self._progress(lambda: wait and self._leaving())
        return {}

    def _leaving(self) -> str:
        state = self._supervisor.state
        busy = sum(worker.in_flight for worker in state.workers.values())
        count = len(state.workers)
        return f"{count} {_workers(count)} left, {busy} requests in progress"

    # -- The fleet

    def _scale(self, to: str, wait: bool = True) -> Answers:
        house, before = self._supervisor, self._supervisor.state
        self._must_not_stop()
        if not re.fullmatch(r"[+-]?\d{1,6}", to, re.ASCII):
            raise Refused(f"cannot scale to {to!r}: it must be a number, or +N or -N")
        count = int(to) + (before.desired if to[0] in "+-" else 0)
        if not 0 <= count <= before.policy.max_workers:
            raise Refused(
                f"cannot scale to {count} workers: it must be from 0 to {before.policy.max_workers}, "
                "as --max-workers says"
            )
        house.learn(ev.ScaleRequested(count))
        yield from self._progress(lambda: wait and self._scale_goes_on(count, before))
        return {"before": before.desired, "desired": count}

    def _scale_goes_on(self, count: int, before: State) -> str:
        self._must_not_stop()
        state = self._supervisor.state
        if state.desired != count:
            raise Refused(f"somebody else has scaled to {state.desired} workers meanwhile")
        if state.backoff and state.last_failure_at > before.last_failure_at:
            raise Refused(
                f"{count} workers are wanted, but new ones fail; trying on", state.last_failure
            )
        active = sum(worker.active for worker in state.workers.values())
        if active == count <= state.ready():
            return ""
        return f"{state.ready()} of {count} {_workers(count)} ready"

    def _worker(self, worker: str, do: str, wait: bool = True) -> Answers:
        house = self._supervisor
        move = _MOVES.get(do)
        if move is None:
            raise Refused(f"cannot {do!r} a worker; there are: {', '.join(_MOVES)}")
        chosen = self._find(worker, move)
        if do == "stack":
            return (yield from self._stack(chosen))
        house.learn(move.event(chosen.id))
        yield from self._progress(lambda: wait and self._goes_on(chosen.id, do))
        return {"worker": chosen.id, "slot": chosen.slot, "pid": chosen.pid}

    def _find(self, name: str, move: "_Move") -> WorkerHandle:
        found = re.fullmatch(r"(pid=)?(\d{1,9})", name, re.ASCII)
        if not found:
            raise Refused(f"no worker has the name {name!r}: give its slot, or pid=N")
        by_pid, number = bool(found[1]), int(found[2])
        named = [
            worker
            for worker in self._supervisor.state.workers.values()
            if (worker.pid if by_pid else worker.slot) == number
        ]
        if not named:
            raise Refused(f"there is no worker {name}; `asgictl workers` lists them")
        fit = [worker for worker in named if worker.state in move.states]
        if len(fit) == 1:
            return fit[0]
        them = ", ".join(f"pid={worker.pid} ({worker.state})" for worker in fit or named)
        if fit:
            raise Refused(f"there are several in slot {number}, choose one: {them}")
        raise Refused(f"{them}: not in a state in which that can be done")

    def _goes_on(self, worker: int, do: str) -> str:
        found = self._supervisor.state.workers.get(worker)
        if found is None or (do == "restart" and not found.active):
            return ""
        if do == "restart":
            heirs = [
                each
                for each in self._supervisor.state.workers.values()
                if each.slot == found.slot and each.id > worker and each.active
            ]
            return f"its successor is {heirs[-1].state}" if heirs else "waiting for its turn"
        return f"pid={found.pid} is {found.state}, {found.in_flight} requests in progress"

    def _stack(self, worker: WorkerHandle) -> Answers:
        if worker.id in self._stacks:
            raise Refused("somebody else asks for its stacks just now; try again")
        self._stacks[worker.id] = None
        try:
            self._supervisor.learn(ev.StacksRequested(worker.id))
            while (stacks := self._stacks[worker.id]) is None:
                if worker.id not in self._supervisor.state.workers:
                    raise Refused(f"it has ended meanwhile: {worker}")
                yield None
        finally:
            del self._stacks[worker.id]
        if not stacks:
            raise Refused(f"it has written nothing; it may be too young, or not running: {worker}")
        return {"worker": worker.id, "slot": worker.slot, "pid": worker.pid, "stacks": stacks}

    # -- Logs

    def _reopen_logs(self) -> Answer:
        self._supervisor.learn(ev.Signal("USR1"))
        return {}

    def _log_level(self, level: str) -> Answer:
        if level not in LEVELS:
            raise Refused(f"there is no log level {level!r}; there are: {', '.join(LEVELS)}")
        self._supervisor.set_log_level(level)
        return {"level": level}

    # -- Waiting

    def _must_not_stop(self) -> None:
        if self._supervisor.state.phase is Phase.STOPPING:
            raise Refused("the supervisor is stopping")

    def _progress(self, look: Callable[[], str | bool]) -> Generator[Answer | None, Any, None]:
        """Wait until ``look()`` has nothing more to say, and pass on what is new."""
        said: str | bool = ""
        while words := look():
            if words != said:
                yield {"progress": words}
            said = words
            yield None


def _in_steps(answer: Answer | Answers) -> Answers:
    if isinstance(answer, Mapping):
        return answer
    return (yield from answer)


def _workers(count: int) -> str:
    return "worker" if count == 1 else "workers"


@dataclass(frozen=True, slots=True)
class _Move:
    """What can be done to a worker, and in which states."""

    event: Callable[[int], ev.Event]
    states: frozenset[WorkerState]


_ALIVE = frozenset(WorkerState) - {WorkerState.GONE}
_MOVES: Mapping[str, _Move] = {
    "drain": _Move(ev.WorkerDrainRequested, ACTIVE),
    "restart": _Move(ev.WorkerRestartRequested, ACTIVE),
    "kill": _Move(ev.WorkerKillRequested, _ALIVE - {WorkerState.KILLING, WorkerState.UNKILLABLE}),
    "stack": _Move(ev.StacksRequested, _ALIVE - {WorkerState.KILLING, WorkerState.UNKILLABLE}),
}


@dataclass(frozen=True, slots=True)
class Verb:
    """A row of the table of verbs."""

    do: Callable[..., Answer | Answers]
    takes: Mapping[str, type]
    """The arguments and their types."""
    needs: tuple[str, ...] = ()


_IN_JSON = {str: "string", bool: "true or false", int: "integer"}

VERBS: Mapping[str, Verb] = {
    "ping": Verb(Desk._ping, {}),
    "status": Verb(Desk.status, {}),
    "listeners": Verb(Desk.listeners, {}),
    "config": Verb(Desk._config, {}),
    "events": Verb(Desk._events, {"last": int, "follow": bool}),
    "reload": Verb(Desk._reload, {"wait": bool}),
    "abort-reload": Verb(Desk._abort_reload, {}),
    "reload-tls": Verb(Desk._reload_tls, {}),
    "upgrade": Verb(Desk._upgrade, {}),
    "stop": Verb(Desk._stop, {"now": bool, "wait": bool}),
    "scale": Verb(Desk._scale, {"to": str, "wait": bool}, ("to",)),
    "worker": Verb(Desk._worker, {"worker": str, "do": str, "wait": bool}, ("worker", "do")),
    "reopen-logs": Verb(Desk._reopen_logs, {}),
    "log-level": Verb(Desk._log_level, {"level": str}, ("level",)),
}
"""Every verb; its name is the same on the command line."""
