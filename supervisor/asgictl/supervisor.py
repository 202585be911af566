"""The loop: wait, learn, decide, act.

This module owns the order of things and nothing else: what to do is decided in
``asgictl.core``, how it is done is known in ``asgictl.system``. One thread, one poll(2);
its time-out is the earliest deadline of the core, so an idle supervisor sleeps until a
worker beats. No step waits for anything.
"""

import contextlib
import logging
import os
import select
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import setproctitle

import asgictl
from asgictl import admin, banner, derive
from asgictl.children import Children
from asgictl.configuration import Configuration, read_env_files
from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core.state import Phase, State, WorkerState, next_deadline
from asgictl.core.step import initial, step
from asgictl.generations import Generation, Generations
from asgictl.operate.desk import Desk
from asgictl.operate.recorder import FlightRecorder
from asgictl.operate.totals import Totals
from asgictl.reception import Reception
from asgictl.settings import Settings
from asgictl.system import (
    handover,
    kernel,
    listeners,
    machine,
    notify,
    pidfile,
    queues,
    reexec,
    shortage,
    spawn,
    watch,
)
from asgictl.system.signals import SignalPipe
from asgictl.system.template import TemplateProcess
from asgictl.system.terminal import Terminal, shell_above
from asgictl_worker import board, contract, counters, logs
from asgictl_worker.errors import ConfigurationError, ExitCode

log = logging.getLogger("asgictl.supervisor")

LAG_TOLERANCE = 0.25
"""Seconds by which the loop may be late before it counts as having been held up."""

RENEWAL = 0
"""Stands for an epoch where certificates alone are looked at: reloads count from 1."""

LAST_WORDS = 0.5
"""Seconds to wait, at most, for whoever reads the log when we leave."""

TASKS_INTERVAL = 10.0
"""Seconds between two looks at how many processes there may still be."""

MAX_ERRORS = 5
"""Errors of ours within ``ERROR_WINDOW`` seconds after which we are not to be believed."""
ERROR_WINDOW = 60.0


class Supervisor:
    """Runs an application in a fleet of workers until it is told to stop."""

    def __init__(
        self,
        application: str,
        configuration: Configuration,
        read: Callable[[], Configuration],
        start_directory: str,
    ) -> None:
        """Prepare, without an effect on the outside.

        Args:
            application: its name, which only the workers look up.
            configuration: the settings to start with.
            read: reads them again for a reload, in a child.
            start_directory: where the program was started; an upgrade starts there again.

        Raises:
            CannotTakeOver: another program has left this process to us, and we cannot go on.
        """
        self._left, self._only_asked = reexec.inherited(os.environ)
        self._start_directory = start_directory
        self._application = application
        settings = configuration.settings
        self._read_configuration = read
        self._now = kernel.monotonic()
        self._policy = derive.policy_from(settings)
        self._state = initial(self._policy, int.from_bytes(os.urandom(8)))
        self._deadline_of: State | None = None
        self._deadline = inf
        self.recorder = FlightRecorder()
        self.totals = Totals(started=self._now)
        self._log_level = ""
        """What somebody has asked for, instead of the setting."""
        self._desk = Desk(self)
        self._pending: deque[ev.Event] = deque()
        self._learning = False
        self._children = Children(self._watch, self._unwatch, self._learn, self._heard)
        self._environ = dict(os.environ)
        environ = read_env_files(settings.env_file, self._environ)
        self._generations = Generations(
            self._environ, listeners.passed_sockets(os.environ, os.getpid())
        )
        self._generations[1] = self._generations.make(
            settings, environ, sources=configuration.sources, file=configuration.file
        )
        self._poll = select.poll()
        self._sources: dict[int, Callable[[], None]] = {}
        self._errors: deque[float] = deque(maxlen=MAX_ERRORS)
        self._tasks = shortage.TaskLimit()
        self._tasks_due = -inf
        self._exit_code: int | None = None
        self._pidfile: pidfile.PidFile | None = None
        self._board = -1
        """Memory that the workers share (asgictl_worker.board)."""
        self._lifeline = (-1, -1)
        """The end that workers read, and the end that only this process holds."""

    # -- Life

    def run(self) -> int:
        """Serve until told to stop, and return the exit code.

        Raises:
            AsgictlError: the listeners, the pid file or the user cannot be had.
        """
        if self._only_asked:
            assert self._left is not None
            handover.restore_state(self._left, self._now)
            return ExitCode.OK
        kernel.fill_standard_descriptors()
        settings = self._generations[1].settings
        logs.configure(settings)
        setproctitle.setproctitle(f"asgictl: supervisor [{self._application}]")
        with contextlib.ExitStack() as leaving:
            leaving.callback(logs.flush, LAST_WORDS)
            self._terminal = Terminal()
            self._signals = SignalPipe()
            leaving.callback(self._signals.close)
            self._watch(self._signals.fileno(), self._on_signals)
            self._spare = shortage.SpareDescriptors()
            leaving.callback(self._spare.close)
            self._manager = notify.ServiceManager(os.environ)
            leaving.callback(self._manager.close)
            kernel.adopt_orphans()
            leaving.callback(self._children.close)
            self._reception = Reception(
                self._desk, self._watch, self._unwatch, self._children.bury, self._spare
            )
            leaving.callback(self._reception.close)
            if self._left is None:
                self._begin(settings, leaving)
            else:
                self._take_over(self._left, leaving)
            while self._exit_code is None:
                try:
                    self._turn()
                except Exception:
                    self._failed("in the loop")
            log.info("stopped, exit code %d", self._exit_code)
        return self._exit_code

    def _begin(self, settings: Settings, leaving: contextlib.ExitStack) -> None:
        if settings.pid is not None:
            self._pidfile = pidfile.PidFile(settings.pid)
            leaving.callback(self._pidfile.remove)
        if settings.reload:
            self._area(self._generations[1]).check()
        if settings.uses_tls:
            self._check_certificates()
        self._generations.bind(self._generations[1])
        leaving.callback(self._keep_generations, set[int]())
        self._reception.open_control(settings)
        self._reception.open_admin(admin.listen(settings), self._generations[1].surroundings)
        self._lifeline = os.pipe2(os.O_CLOEXEC)
        self._board = board.create()
        self.totals.rows = counters.Rows(self._board)
        where = ", ".join(listener.address for listener in self._generations[1].listeners)
        fleet = f"{self._policy.workers} workers" if self._policy.workers != 1 else "1 worker"
        if settings.workers == "auto":
            fleet += f" ({machine.available_processors()[1]})"
        log.info("%s listens on %s with %s", self._application, where, fleet)
        first = self._generations[1]
        log.info("%s", banner.choices(settings, first.file, self._application))
        log.info("supervisor pid %d: Ctrl-C or TERM stops, HUP reloads", os.getpid())
        if shell := shell_above():
            log.warning(
                "process 1 is a shell (%s), which passes no signals on: the container will be "
                'killed and not stopped; start with ["asgictl", ...] or with `exec asgictl`',
                shell,
            )
        for warning in banner.warnings(settings, os.environ):
            log.warning("%s", warning)
        processors, to_terminal = machine.available_processors()[0], os.isatty(1)
        for hint in banner.hints(settings, first.sources, processors, to_terminal=to_terminal):
            log.info("hint: %s", hint)
        if settings.reload:
            log.info("%s", banner.development(self._area(first)))
        self._watch_files()
        self._learn(ev.Started())

    def _check_certificates(self) -> None:
        """Look at the certificates, in a child; a reload has its preflight for that.

        Raises:
            ConfigurationError: they cannot be used.
        """
        first = self._generations[1]
        environ = first.surroundings.environ
        preflight = spawn.Preflight(
            lambda: spawn.with_certificates(first.settings, environ, strict=False)
        )
        reading = preflight.wait()
        if reading.settings is None:
            raise ConfigurationError(reading.error)
        _log_remarks(reading)

    def _take_over(self, left: Mapping[str, Any], leaving: contextlib.ExitStack) -> None:
        """Go on where the program before us has stopped, in this same process."""
        taken = handover.take_over(left, self._now)
        self._state, self._lifeline, self._pidfile = taken.state, taken.lifeline, taken.pidfile
        self._board = taken.board
        self._reception.open_control(self._generations[1].settings, taken.control)
        self.totals = Totals.take_over(taken.operate.get("totals", {}), self._now)
        self.totals.rows = counters.Rows(self._board)
        self.totals.upgrades += 1
        if level := taken.operate.get("log_level"):
            self.set_log_level(level)
        if self._pidfile:
            leaving.callback(self._pidfile.remove)
        leaving.callback(self._keep_generations, set[int]())
        self._generations.clear()
        for number, item in taken.generations.items():
            self._generations[number] = self._generations.make(
                item.settings, item.environ, item.listeners, sources=item.sources, file=item.file
            )
        self._reception.open_admin(taken.admin, self._serving.surroundings)
        for number, holder in taken.templates.items():
            self._children.add_template(number, holder)
        for worker, process in taken.workers.items():
            self._children.add_worker(worker, process)
        self._watch_files()
        # Signals were held back since before the old program ended.
        kernel.unblock_signals()
        log.info("asgictl %s has taken over %d workers", asgictl.__version__, len(taken.workers))
        self._children.reap()

    def _turn(self) -> None:
        deadline = min(
            self._core_deadline(),
            self._children.deadline,
            self._manager.due,
            self._reception.deadline,
        )
        self._now = kernel.monotonic()
        # Rounded up, since poll() counts milliseconds and an early wake-up would spin.
        timeout = None if deadline == inf else max(0, int((deadline - self._now) * 1000) + 1)
        ready = self._poll.poll(timeout)
        self._now = kernel.monotonic()
        late = self._now - deadline
        if late > LAG_TOLERANCE:
            self._learn(ev.Lag(late))
        # All that has arrived is heard before anybody is judged: while we slept, a worker
        # may have sent many beats.
        for fd, _ in ready:
            source = self._sources.get(fd)
            if source is not None:
                source()
        if self._now >= self._children.deadline:
            self._children.on_time(self._now)
        if self._now >= self._manager.due:
            self._manager.on_time(self._now)
        self._reception.on_time(self._now)
        if self._now >= self._tasks_due:
            # Only when there is something else to wake up for.
            self._tasks_due = self._now + TASKS_INTERVAL
            if text := self._tasks.warning():
                log.warning("%s", text)
        if self._now >= self._core_deadline():
            self._learn(ev.Tick())

    def _core_deadline(self) -> float:
        """Return when the core has something to do, which is looked for once per state."""
        if self._state is not self._deadline_of:
            self._deadline_of, self._deadline = self._state, next_deadline(self._state)
        return self._deadline

    def _watch(self, fd: int, source: Callable[[], None], events: int = select.POLLIN, /) -> None:
        self._sources[fd] = source
        self._poll.register(fd, events)

    def _unwatch(self, fd: int) -> None:
        if self._sources.pop(fd, None):
            self._poll.unregister(fd)

    # -- Decide

    def _learn(self, event: ev.Event) -> None:
        """Give an event to the core and do what it asks for; and so on with what comes of it."""
        self._pending.append(event)
        if self._learning:
            return  # the loop below is running further up the stack
        self._learning = True
        try:
            while self._pending:
                self._learn_one(self._pending.popleft())
        finally:
            self._learning = False

    def _learn_one(self, event: ev.Event) -> None:
        before = self._state
        try:
            self._state, actions = step(before, event, self._now)
        except Exception:
            self._failed(f"at {event}")
            actions = []
        self.recorder.add(self._now, event, actions)
        for action in actions:
            try:
                _ACTIONS[type(action)](self, action)
            except Exception as error:
                self._failed(f"at {action}")
                if isinstance(action, act.Spawn):
                    self._learn(ev.SpawnFailed(action.worker, repr(error)))
        if type(event) is not ev.Beat:
            self.totals.learned(event, before, self._state, self._now)
        self._reception.learned(event)

    def _failed(self, where: str) -> None:
        """Live on after a bug of ours: the workers serve without being told anything."""
        self._errors.append(self._now)
        self._manager.withhold_ping()
        history = "\n".join(self.recorder.lines(self._now))
        log.critical(
            "internal error %s; please report it with these last events:\n%s",
            where,
            history,
            exc_info=True,
        )
        full = len(self._errors) == MAX_ERRORS
        if full and self._now - self._errors[0] < ERROR_WINDOW:
            log.critical("too many internal errors; leaving, the workers finish their requests")
            for process in self._children.workers.values():
                process.child.send("TERM")
            self._exit_code = ExitCode.CORE_BROKEN

    # -- Learn

    def _on_signals(self) -> None:
        names = self._signals.read()
        if "HUP" in names and self._terminal.is_gone():
            names -= {"HUP"}
            if not self._terminal.may_close:
                log.info("its terminal was closed; for a service without one see nohup(1)")
                names |= {"TERM"}
        for name in sorted(names - {"CHLD"}):
            self._learn(ev.Signal(name))
        if "CHLD" in names:
            self._children.reap()

    def _heard(self, worker: int, message: contract.Message) -> None:
        if isinstance(message, contract.Beat):
            self.totals.beat(worker, message, self._now)
        event = derive.event_of(worker, message)
        if event is not None:
            self._learn(event)

    def _on_preflight(self, epoch: int, generation: int, reading: spawn.Reading) -> None:
        if reading.settings is None:
            self._learn(ev.PreflightFailed(epoch, reading.error, reading.traceback))
            return
        _log_remarks(reading)
        try:
            made = self._generations.make(
                reading.settings, reading.environ, sources=reading.sources, file=reading.file
            )
            self._generations.bind(made, reading.places)
            policy = derive.policy_from(reading.settings)
        except Exception as error:
            self._learn(ev.PreflightFailed(epoch, str(error)))
            return
        self._generations[generation] = made
        if reading.settings.uses_tls:
            # A renewed certificate serves at once, and even if the new code does not.
            self._children.tell(contract.ReloadTLS())
        self._learn(ev.PreflightPassed(epoch, policy))

    def _watch_files(self) -> None:
        """In development, hear of files that change; those of the committed generation count."""
        area = self._area(self._serving) if self._serving.settings.reload else None
        try:
            self._children.watch_files(area, self._on_files)
        except OSError as error:
            log.error("files cannot be watched: %s", error.strerror)

    @property
    def _serving(self) -> Generation:
        """The committed generation."""
        return self._generations[self._state.committed]

    def _area(self, generation: Generation) -> watch.Area:
        files = [*generation.settings.env_file, *filter(None, [generation.file])]
        return watch.Area.of(generation.settings, os.getcwd(), files)

    def _on_files(self, changes: watch.Changes) -> None:
        self._learn(ev.FilesChanged(str(changes), changes.code, changes.settings))

    # -- Act

    def _spawn(self, action: act.Spawn) -> None:
        generation = self._generations[action.generation]

        def assignment(channel_fd: int, dump_fd: int) -> contract.Assignment:
            return contract.Assignment(
                worker=action.worker,
                slot=action.slot,
                generation=action.generation,
                application=self._application,
                listeners=tuple(listener.for_worker() for listener in generation.listeners),
                channel_fd=channel_fd,
                lifeline_fd=self._lifeline[0],
                dump_fd=dump_fd,
                board_fd=self._board,
                beat_interval=derive.beat_interval(
                    generation.settings.timeout, self._state.desired
                ),
                development=generation.settings.reload,
                **derive.extensions(generation.settings),
                **derive.limits(generation.settings, action.slot, self._state.desired),
            )

        try:
            if generation.settings.preload:
                template = self._children.templates[action.generation]
                template.request(assignment(-1, -1), self._now)
                return
            process = spawn.spawn_worker(
                assignment,
                generation.surroundings,
                generation.listeners,
                (self._lifeline[0], self._board),
            )
        except OSError as error:
            self._learn(ev.SpawnFailed(action.worker, shortage.why_no_fork(error, self._tasks)))
            return
        self._children.add_worker(action.worker, process)
        self._learn(ev.Spawned(action.worker, process.child.pid))

    def _start_template(self, action: act.StartTemplate) -> None:
        generation = self._generations[action.generation]
        try:
            process = TemplateProcess.start(
                self._application,
                generation.surroundings,
                generation.listeners,
                (self._lifeline[0], self._board),
            )
        except OSError as error:
            why = shortage.why_no_fork(error, self._tasks)
            self._learn(ev.TemplateFailed(action.generation, why))
            return
        self._children.add_template(action.generation, process)

    def _drain(self, action: act.Drain) -> None:
        process = self._children.workers[action.worker]
        stopping = self._state.phase is Phase.STOPPING
        mine = self._state.workers[action.worker].generation
        message = contract.Drain(
            timeout=action.timeout,
            reason=action.reason,
            for_good=stopping or self._generations.loses_listeners(mine, self._state.wanted),
        )
        if not process.channel.send(message):
            # It reads its channel no more; a signal may still reach it.
            log.warning("cannot tell worker pid=%d to drain", process.child.pid)
        if stopping:
            self._stop_listening()

    def _stop_listening(self) -> None:
        """Leave the listeners to the workers, who close them when their queues are empty.

        A client that is refused tries elsewhere; one that waits in a queue which nobody reads
        would be cut off when the last worker has left.
        """
        for number in list(self._children.templates):
            self._children.lose_template(number)
        self._generations.close_listeners()

    def _kill(self, action: act.Kill) -> None:
        self._children.workers[action.worker].child.send(action.signal)

    def _dump(self, action: act.Dump) -> None:
        self._children.workers[action.worker].child.send("USR2")

    def _collect_dump(self, action: act.CollectDump) -> None:
        process = self._children.workers.get(action.worker)
        stacks = process.dumps.read_new() if process else ""
        if stacks:
            log.warning("%s:\n%s", action.why, stacks)
        self._desk.collected(action.worker, stacks)

    def _probe(self, action: act.Probe) -> None:
        worker = self._state.workers[action.worker]
        policy = self._state.policy_of(worker.generation)
        booting = worker.state is WorkerState.STARTING
        patience = policy.boot_timeout if booting else policy.late_after
        with self._spare.lent():
            verdict = self._children.evidence_of(worker, patience, self._now)
        self._learn(ev.Evidence(action.worker, verdict))

    def _start_preflight(self, action: act.StartPreflight) -> None:
        try:
            self._children.start_preflight(
                action.epoch,
                self._read,
                lambda reading: self._on_preflight(action.epoch, action.generation, reading),
            )
        except OSError as error:
            why = shortage.why_no_fork(error, self._tasks)
            self._learn(ev.PreflightFailed(action.epoch, why))

    def _read(self) -> spawn.Reading:
        configuration = self._read_configuration()
        settings = configuration.settings
        environ = read_env_files(settings.env_file, self._environ)
        reading = spawn.with_certificates(settings, environ, strict=True)
        places = listeners.resolve(settings.addresses, keep=self._generations.all_listeners())
        return replace(
            reading, places=places, sources=configuration.sources, file=configuration.file
        )

    def _cancel_preflight(self, action: act.CancelPreflight) -> None:
        self._children.end_preflight(action.epoch)

    def _commit(self, action: act.Commit) -> None:
        self._keep_generations({action.generation})
        generation = self._generations[action.generation]
        self._reception.see_change(generation.settings)
        for listener in generation.listeners:
            try:
                listener.give_access(generation.access)
            except OSError as error:
                log.warning(
                    "%s: permissions and owner stay as they are: %s",
                    listener.address,
                    error.strerror,
                )
        self._watch_files()

    def _abandon(self, action: act.Abandon) -> None:
        self._keep_generations(set(self._generations) - {action.generation})

    def _keep_generations(self, keep: set[int]) -> None:
        for number in set(self._children.templates) - keep:
            self._children.drop_template(number, "its generation was given up")
        closed = self._generations.keep(keep)
        served = {listener.address for listener in self._generations.all_listeners()}
        for listener in closed:
            if keep and listener.address not in served:
                log.info("no longer listening on %s", listener.address)

    def _upgrade(self, _action: act.Upgrade) -> None:
        if self._children.checking:
            return
        log.info("upgrading: asking %s whether it can take over", " ".join(reexec.command()))
        try:
            with contextlib.closing(_Descriptor(reexec.write_down(self._hand_over()))) as state:
                self._children.start_check(
                    state.fd, self._environ, self._start_directory, self._now, self._on_check
                )
        except OSError as error:
            self._learn(ev.UpgradeRefused(f"cannot ask: {error.strerror}"))

    def _on_check(self, why: str) -> None:
        if why:
            self._learn(ev.UpgradeRefused(why))
        elif self._state.reload or self._children.fork_deadline < inf:
            self._learn(
                ev.UpgradeRefused("a reload has begun meanwhile; try again when it is over")
            )
        else:
            self._exec()

    def _hand_over(self) -> dict[str, Any]:
        return handover.hand_over(
            self._state,
            self._now,
            generations={
                number: handover.Generation(
                    item.settings,
                    item.surroundings.environ,
                    item.listeners,
                    item.sources,
                    item.file,
                )
                for number, item in self._generations.items()
            },
            workers=self._children.workers,
            templates=self._children.templates,
            lifeline=self._lifeline,
            board=self._board,
            pidfile=self._pidfile,
            control=self._reception.control_listener,
            admin=self._reception.admin_listener,
            operate={"totals": self.totals.hand_over(), "log_level": self._log_level},
        )

    def _exec(self) -> None:
        logs.flush(LAST_WORDS)
        left = self._hand_over()
        try:
            with contextlib.closing(_Descriptor(reexec.write_down(left))) as state:
                keep = handover.descriptors(left)
                reexec.take_over(state.fd, keep, self._environ, self._start_directory)
        except OSError as error:
            self._learn(ev.UpgradeRefused(f"cannot execute it: {error.strerror}"))

    def _reopen_logs(self, _action: act.ReopenLogs) -> None:
        logs.reopen()
        self._children.tell(contract.ReopenLogs())

    def _notify(self, action: act.Notify) -> None:
        match action.event:
            case "ready":
                self._manager.ready(action.status)
            case "reloading":
                self._manager.reloading(action.status)
            case "stopping":
                self._manager.stopping(action.status)
            case "status":
                self._manager.status(action.status)

    def _ask_for_time(self, action: act.AskForTime) -> None:
        self._manager.extend(action.seconds)

    def _log(self, action: act.Log) -> None:
        level = logging.getLevelNamesMapping()[action.level.upper()]
        log.log(level, "%s\n%s" if action.detail else "%s%s", action.text, action.detail)

    def _exit(self, action: act.Exit) -> None:
        self._exit_code = action.code

    # -- Operate: what the desk sees and moves

    @property
    def state(self) -> State:
        """What the core knows."""
        return self._state

    @property
    def now(self) -> float:
        """When this turn of the loop began, in monotonic seconds."""
        return self._now

    def learn(self, event: ev.Event) -> None:
        """Give an event to the core, and do what comes of it."""
        self._learn(event)

    def identity(self) -> dict[str, Any]:
        """Return who this is."""
        admin_listener = self._reception.admin_listener
        return {
            "application": self._application,
            "version": asgictl.__version__,
            "pid": os.getpid(),
            "directory": self._start_directory,
            "addresses": [listener.address for listener in self._serving.listeners],
            "admin": admin_listener.address if admin_listener else None,
        }

    def listening(self) -> dict[str, Any]:
        """Return where the committed generation listens, and how full the kernel's queues are."""
        return {"listeners": self._serving.listening(), "overflows": queues.overflows()}

    def settings(self) -> dict[str, Any]:
        """Return the settings of the committed generation, where each came from, and the file."""
        return self._serving.shown()

    def renew_certificates(self, answer: Callable[[str], None]) -> bool:
        """Look at the certificates in a child, and tell the workers to read them if they are good.

        Returns:
            False if there are none; else ``answer`` gets what is wrong with them, or nothing.
        """
        serving = self._serving
        if not serving.settings.uses_tls:
            return False
        environ = serving.surroundings.environ

        def renew(reading: spawn.Reading) -> None:
            if reading.settings is not None:
                _log_remarks(reading)
                log.info("certificates are read again")
                self._children.tell(contract.ReloadTLS())
            answer(reading.error)

        try:
            self._children.start_preflight(
                RENEWAL,
                lambda: spawn.with_certificates(serving.settings, environ, strict=True),
                renew,
            )
        except OSError as error:
            answer(f"cannot fork: {error.strerror}")
        return True

    def set_log_level(self, level: str) -> None:
        """Log as much as that in all processes, those to come too."""
        self._log_level = level
        logs.set_level(level)
        self._children.greeting = contract.LogLevel(level=level)
        self._children.tell(self._children.greeting)


_ACTIONS: Mapping[type, Callable[[Supervisor, Any], None]] = {
    act.Spawn: Supervisor._spawn,
    act.Drain: Supervisor._drain,
    act.Kill: Supervisor._kill,
    act.Dump: Supervisor._dump,
    act.CollectDump: Supervisor._collect_dump,
    act.Probe: Supervisor._probe,
    act.StartPreflight: Supervisor._start_preflight,
    act.CancelPreflight: Supervisor._cancel_preflight,
    act.StartTemplate: Supervisor._start_template,
    act.Commit: Supervisor._commit,
    act.Abandon: Supervisor._abandon,
    act.Upgrade: Supervisor._upgrade,
    act.ReopenLogs: Supervisor._reopen_logs,
    act.Notify: Supervisor._notify,
    act.AskForTime: Supervisor._ask_for_time,
    act.Log: Supervisor._log,
    act.Exit: Supervisor._exit,
}


@dataclass(frozen=True, slots=True)
class _Descriptor:
    fd: int

    def close(self) -> None:
        os.close(self.fd)


def _log_remarks(reading: spawn.Reading) -> None:
    for remark in reading.remarks:
        log.warning("%s", remark)
