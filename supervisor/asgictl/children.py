"""The processes that the supervisor has: workers, templates, and those that answer one question.

Who lives, what they say, how they ended, and that nobody stays unburied. What follows from it
is not decided here: it becomes an event for the core, or a call of whoever asked.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from math import inf

from asgictl.core import events as ev
from asgictl.core.state import WorkerHandle, WorkerState
from asgictl.system import evidence, kernel, reexec, spawn, template
from asgictl.system.channel import ALL_MESSAGES, MESSAGES_PER_TURN
from asgictl.system.watch import Area, Changes, Watcher
from asgictl_worker import contract

log = logging.getLogger("asgictl.supervisor")

UpgradeAnswer = Callable[[str], None]
"""Called with why an upgrade cannot be, or with nothing if it can."""


class Children:
    """All of them, while they live and until they are buried."""

    def __init__(
        self,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        learn: Callable[[ev.Event], None],
        heard: Callable[[int, contract.Message], None],
    ) -> None:
        """Begin without any.

        Args:
            watch: calls a function whenever a descriptor becomes readable.
            unwatch: stops that.
            learn: takes events of births and deaths.
            heard: takes what a worker says, by its number.
        """
        self._watch = watch
        self._unwatch = unwatch
        self._learn = learn
        self._heard = heard
        self.workers: dict[int, spawn.WorkerProcess] = {}
        self.templates: dict[int, template.TemplateProcess] = {}
        self.greeting: contract.Message | None = None
        """What every new worker is told."""
        self._samples: dict[int, evidence.Sample | None] = {}
        self._memory = evidence.MemoryWatch()
        self._preflight: tuple[int, spawn.Preflight] | None = None
        self._check: reexec.Check | None = None
        self._check_answer: UpgradeAnswer
        self._check_deadline = inf
        self._watcher: Watcher | None = None
        self._strangers: list[kernel.Child] = []
        """Children that were told to end, and are only to be buried."""

    @property
    def fork_deadline(self) -> float:
        """When the oldest request for a fork must have been answered, or infinity."""
        return min((item.deadline for item in self.templates.values()), default=inf)

    @property
    def deadline(self) -> float:
        """When to call ``on_time()``, or infinity."""
        return min(self.fork_deadline, self._check_deadline)

    def on_time(self, now: float) -> None:
        """Wait no longer for those that should have answered."""
        for number, process in list(self.templates.items()):
            if now >= process.deadline:
                self._template_lost(number, process, "it does not fork")
        if now >= self._check_deadline:
            self._on_check(timed_out=True)

    def reap(self) -> None:
        """Bury all dead children: workers, preflights, and orphans that were adopted."""
        for worker, process in list(self.workers.items()):
            status = process.child.reap()
            if status is not None:
                self._worker_exited(worker, process, status)
        for number, item in list(self.templates.items()):
            if (status := item.child.reap()) is not None:
                self._template_exited(number, item, status)
        if self.fork_deadline < inf:
            return  # an orphan may be a worker whose pid we are about to be told
        # These are asked for their end by whoever waits for what they have to say.
        if self._preflight:
            self._preflight[1].child.reap()
        if self._check:
            self._check.child.reap()
        if self._watcher:
            self._watcher.child.reap()
        strangers, self._strangers = self._strangers, []
        for child in strangers:
            self.bury(child)
        known = {process.child.pid for process in self.workers.values()}
        known |= {item.child.pid for item in self.templates.values()}
        with contextlib.suppress(ChildProcessError):
            while (
                found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            ) is not None:
                if found.si_pid in known:
                    return  # it died just now, and has a wake-up of its own
                os.waitpid(found.si_pid, 0)
                log.debug("buried the orphan pid=%d", found.si_pid)

    def bury(self, child: kernel.Child) -> None:
        """Reap a child that nobody waits for any more, now or when it has ended."""
        if child.reap() is None:
            self._strangers.append(child)
        else:
            child.close()

    # -- Workers

    def add_worker(self, worker: int, process: spawn.WorkerProcess) -> None:
        """Hear a worker from now on, and notice its end."""
        self.workers[worker] = process
        if self.greeting:
            process.channel.send(self.greeting)
        self._watch(process.channel.fileno(), lambda: self._on_channel(worker, process))
        if process.child.pidfd >= 0:
            self._watch(process.child.pidfd, lambda: self._on_pidfd(worker, process))

    def tell(self, message: contract.Message) -> None:
        """Send a message to all workers."""
        for process in self.workers.values():
            process.channel.send(message)

    def evidence_of(self, worker: WorkerHandle, patience: float, now: float) -> ev.Verdict:
        """Return what /proc says of a silent worker, compared with when it was asked first.

        One that boots is compared with its beginning, when it had neither run nor waited.
        """
        sample = evidence.sample(self.workers[worker.id].child.pid, now)
        before: evidence.Sample | None
        if worker.state is WorkerState.STARTING:
            before = evidence.Sample(time=worker.born, state="R", on_processor=0.0, waiting=0.0)
            return evidence.conclude(before, sample, patience)
        before = self._samples.get(worker.id)
        if before is None or before.time <= worker.last_beat:
            # The first of this silence; all later ones are compared with it.
            self._samples[worker.id] = sample
        return evidence.conclude(before, sample, patience)

    def _worker_exited(
        self, worker: int, process: spawn.WorkerProcess, status: kernel.ExitStatus
    ) -> None:
        # First its last words: they say more than its exit code.
        self._hear(worker, process, ALL_MESSAGES)
        self._unwatch(process.channel.fileno())
        if process.child.pidfd >= 0:
            self._unwatch(process.child.pidfd)
        out_of_memory = status.signal == "KILL" and self._memory.killed_since_last_call()
        self._learn(ev.Exited(worker, status.code, status.signal, out_of_memory))
        del self.workers[worker]
        self._samples.pop(worker, None)
        process.close()

    def _on_pidfd(self, worker: int, process: spawn.WorkerProcess) -> None:
        status = process.child.reap()
        if status is not None:
            self._worker_exited(worker, process, status)

    def _on_channel(self, worker: int, process: spawn.WorkerProcess) -> None:
        if not self._hear(worker, process):
            # The end of the line is no proof of death: a grandchild may live on without it,
            # or hold it open. The pidfd tells.
            self._unwatch(process.channel.fileno())

    def _hear(
        self, worker: int, process: spawn.WorkerProcess, limit: int = MESSAGES_PER_TURN
    ) -> bool:
        messages, is_open = process.channel.receive(limit)
        for message in messages:
            self._heard(worker, message)
        return is_open

    # -- Templates

    def add_template(self, number: int, process: template.TemplateProcess) -> None:
        """Hear the template of a generation from now on."""
        self.templates[number] = process
        self._watch(process.channel.fileno(), lambda: self._on_template(number, process))

    def drop_template(self, number: int, why: str) -> None:
        """End a template that is not needed any more, whatever it was asked for."""
        process = self.templates[number]
        for worker in process.orphaned():
            self._learn(ev.SpawnFailed(worker, why))
        self.lose_template(number)

    def lose_template(self, number: int) -> None:
        """End a template; nobody waits for its workers."""
        process = self.templates.pop(number)
        self._unwatch(process.channel.fileno())
        process.close()
        self.bury(process.child)

    def _on_template(self, number: int, process: template.TemplateProcess) -> None:
        messages, is_open = process.channel.receive()
        for message in messages:
            match message:
                case contract.Stage():
                    log.info("still %s: the template of generation %d", message.busy, number)
                case contract.Ready():
                    self._learn(ev.TemplateReady(number))
                case contract.Failed():
                    self.lose_template(number)
                    self._learn(ev.TemplateFailed(number, message.error, message.traceback))
                    return
                case contract.Forked():
                    worker = process.adopt(message)
                    if worker is None:
                        self._learn(ev.SpawnFailed(message.worker, message.error))
                    else:
                        self.add_worker(message.worker, worker)
                        self._learn(ev.Spawned(message.worker, worker.child.pid))
        if not is_open:
            self._unwatch(process.channel.fileno())

    def _template_exited(
        self, number: int, process: template.TemplateProcess, status: kernel.ExitStatus
    ) -> None:
        self._on_template(number, process)
        if self.templates.get(number) is process:
            how = f"killed by SIG{status.signal}" if status.signal else f"exit code {status.code}"
            self._template_lost(number, process, how)

    def _template_lost(self, number: int, process: template.TemplateProcess, why: str) -> None:
        missing = process.orphaned()
        self.lose_template(number)
        # First the template: a core that still believes in it would fork from it again.
        self._learn(ev.TemplateFailed(number, why))
        for worker in missing:
            self._learn(ev.SpawnFailed(worker, f"the template of its generation is lost: {why}"))

    # -- The one that watches files

    def watch_files(self, area: Area | None, changed: Callable[[Changes], None]) -> None:
        """Call ``changed`` with what changes in an area from now on; None watches no more.

        Raises:
            OSError: no process or no descriptor is to be had.
        """
        if self._watcher is not None:
            if self._watcher.area == area:
                return
            self._unwatch(self._watcher.fileno())
            self._watcher.close()
            self._watcher = None
        if area is not None:
            self._watcher = watcher = Watcher(area)
            self._watch(watcher.fileno(), lambda: self._on_watcher(watcher, changed))

    def close(self) -> None:
        """End whoever has not been told to yet, when the supervisor leaves."""
        if self._watcher is not None:
            self._watcher.close()

    def _on_watcher(self, watcher: Watcher, changed: Callable[[Changes], None]) -> None:
        said, goes_on = watcher.receive()
        for each in said:
            if isinstance(each, str):
                log.warning("%s", each)
            else:
                changed(each)
        if not goes_on:
            self.watch_files(None, changed)
            log.error("files are watched no more; HUP replaces the workers until you start anew")

    # -- Those that answer one question

    def start_preflight(
        self, epoch: int, read: Callable[[], spawn.Reading], answer: Callable[[spawn.Reading], None]
    ) -> None:
        """Read the settings in a child, and give what it finds to ``answer``.

        Raises:
            OSError: no process or no descriptor is to be had.
        """
        self.end_preflight()
        preflight = spawn.Preflight(read)
        self._preflight = (epoch, preflight)
        self._watch(preflight.fileno(), lambda: self._on_preflight(preflight, answer))

    def _on_preflight(
        self, preflight: spawn.Preflight, answer: Callable[[spawn.Reading], None]
    ) -> None:
        reading = preflight.receive()
        if reading is not None:
            self.end_preflight()
            answer(reading)

    def end_preflight(self, epoch: int | None = None) -> None:
        """Wait no longer for a preflight: that of an epoch, or whichever there is."""
        if self._preflight and epoch in (None, self._preflight[0]):
            _, preflight = self._preflight
            self._preflight = None
            self._unwatch(preflight.fileno())
            preflight.close()
            self.bury(preflight.child)

    @property
    def checking(self) -> bool:
        """Whether a new program is being asked if it can take over."""
        return self._check is not None

    def start_check(
        self,
        state_fd: int,
        environ: Mapping[str, str],
        directory: str,
        now: float,
        answer: UpgradeAnswer,
    ) -> None:
        """Ask the program on disk whether it can take over.

        Raises:
            OSError: no process or no descriptor is to be had.
        """
        self._check = reexec.Check(state_fd, environ, directory)
        self._check_answer = answer
        self._check_deadline = now + reexec.CHECK_TIMEOUT
        self._watch(self._check.fileno(), self._on_check)

    def _on_check(self, timed_out: bool = False) -> None:
        check = self._check
        if check is None or not (timed_out or check.ended()):
            return
        self._unwatch(check.fileno())
        self._check, self._check_deadline = None, inf
        status = check.child.wait(spawn.EXIT_TIMEOUT)
        check.close()
        self.bury(check.child)
        why = ""
        if status != kernel.ExitStatus(code=0):
            why = "it did not answer in time" if timed_out else check.complaint or str(status)
        self._check_answer(why)
