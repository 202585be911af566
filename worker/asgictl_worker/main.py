"""The life of a worker that the supervisor has forked: boot, serve, drain, leave.

The supervisor hears of every step through the channel (``contract.py``), and decides; the
worker only reports, and leaves when it is told to or when the supervisor is gone.
"""

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType

import setproctitle

from asgictl_worker import contract, development, extensions, hygiene, logs, progress, tracebacks
from asgictl_worker.acceptor import PlainSocket
from asgictl_worker.asgi import Application
from asgictl_worker.board import Board
from asgictl_worker.connection import parser_class
from asgictl_worker.errors import AsgictlError, ConfigurationError, ExitCode
from asgictl_worker.retirement import reason_to_retire
from asgictl_worker.server import LAST_WORDS, Server, load
from asgictl_worker.settings import WorkerSettings
from asgictl_worker.tls import TLS, MayNotRead

logger = logging.getLogger("asgictl.worker")

ORPHAN_DRAIN = 3.0
"""Seconds to drain, at most, when the supervisor is gone: nobody watches over us any more, and
whoever starts it again wants the memory and the port."""

ORPHAN_LIMIT = 4.0
"""Seconds after which the kernel ends an orphan that has not left by itself."""

SERVING = "serve"
"""What comes after the stages of the boot."""

LEFT_TO_THE_SUPERVISOR = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
    signal.SIGUSR1,
)
"""Signals that reach the workers too, by Ctrl-C or ``pkill``, and that they must outlive."""


def preload(
    name: str, settings: WorkerSettings, tell: Callable[[str], None]
) -> Application | contract.Failed:
    """Load the application before workers are forked that share it; or say why it failed.

    Args:
        name: of the application.
        settings: how to load it.
        tell: called with what is being imported, if that takes long.
    """
    try:
        logs.configure(settings)
        with progress.of_import(tell):
            app = load(name, settings)
        # What every worker would import later is there once then: 2.5 MB less for each.
        from concurrent.futures import ThreadPoolExecutor  # noqa: F401

        loop_factory(settings.loop)
        parser_class(settings.http)
        return app
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return _failed("import", error)


def work(
    assignment: contract.Assignment,
    settings: WorkerSettings,
    loaded: Application | None = None,
    tls: TLS | None = None,
) -> int:
    """Be a worker until told to leave; return the exit code of the process.

    The process is taken to be freshly forked: descriptors that are not in the assignment are
    closed, signals are unblocked, privileges are dropped. It must end soon after this has
    returned, without waiting for threads: the event loop and the application's threads are
    left as they are.

    Args:
        assignment: what the supervisor wants of this worker.
        settings: how to serve.
        loaded: the application, if ``preload()`` has loaded it before the fork.
        tls: if files had to be read before privileges were dropped.

    Returns:
        0 after a drain, ``ExitCode.NO_WORKER_BOOTED`` if it did not come to serving, and
        ``ExitCode.INTERNAL`` if the application ended the process.
    """
    return _Worker(assignment, settings, loaded, tls).run()


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes an event loop of the kind that the setting ``loop`` names.

    Raises:
        ConfigurationError: it is uvloop, and uvloop cannot be imported.
    """
    if name != "asyncio":
        try:
            import uvloop
        except ImportError as error:
            if name == "uvloop":
                raise ConfigurationError(
                    f"loop is 'uvloop', which cannot be imported ({error}); "
                    "install uvloop, or set loop to auto"
                ) from None
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop


def turn_once_more(loop: asyncio.AbstractEventLoop) -> None:
    """Let a loop that a task has ended call back those who wait for the task.

    It was an application that has raised SystemExit, say. Its client is answered then, and the
    log tells of which request.
    """
    with contextlib.suppress(BaseException):  # others may raise it, too
        loop.run_until_complete(asyncio.sleep(0))


class Channel:
    """The worker's end of the line to the supervisor. Nothing here waits, but ``flush()``.

    Messages that do not fit are kept and sent with the next one; beats are not, they are
    counted: an old beat says nothing.
    """

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._kept: deque[bytes] = deque()
        self.beats_dropped = 0

    def fileno(self) -> int:
        """Return the descriptor to watch for messages."""
        return self._socket.fileno()

    def send(self, message: contract.Message) -> None:
        """Send a message, or keep it until the supervisor reads again."""
        self._kept.append(contract.encode(message))
        self.flush()

    def beat(self, beat: contract.Beat) -> None:
        """Send a beat, unless the supervisor is behind."""
        if not self.flush() or not self._send(contract.encode(beat)):
            self.beats_dropped += 1

    def flush(self, within: float = 0.0) -> bool:
        """Send what was kept, blocking for at most ``within`` seconds; return whether it went."""
        while self._kept:
            if not self._send(self._kept[0]):
                poller = select.poll()
                poller.register(self._socket, select.POLLOUT)
                if not within or not poller.poll(within * 1000):
                    return False
                within = 0.0
                continue
            self._kept.popleft()
        return True

    def let_go(self) -> None:
        """Leave the descriptor open: its end is what the supervisor takes for ours."""
        self._socket.detach()

    def receive(self) -> Iterator[contract.Message]:
        """Yield the messages that have arrived, those that are understood.

        Raises:
            EOFError: the supervisor is gone.
        """
        while True:
            try:
                datagram = self._socket.recv(contract.MAX_MESSAGE)
            except BlockingIOError:
                return
            except OSError as error:
                raise EOFError from error
            if not datagram:
                raise EOFError
            try:
                message = contract.decode(datagram)
            except contract.MalformedMessage as error:
                logger.warning("ignoring a message of the supervisor: %s", error)
                continue
            if message is not None:
                yield message

    def _send(self, datagram: bytes) -> bool:
        try:
            self._socket.send(datagram)
        except BlockingIOError:
            return False
        except OSError:
            # The supervisor is gone: reading says so too, and what follows is decided there.
            return True
        return True


class _Worker:
    def __init__(
        self,
        assignment: contract.Assignment,
        settings: WorkerSettings,
        loaded: Application | None,
        tls: TLS | None,
    ) -> None:
        self.assignment = assignment
        self.settings = settings
        self.loaded = loaded
        self.tls = tls
        self.channel = Channel(assignment.channel_fd)
        self.stage = ""
        self.server_class = Server
        self.reason = ""
        self.recycling = False
        self.terminated = False
        self.beat_due = self.served_since = 0.0
        self.board: Board | None = None
        self.lag_watch: hygiene.LagWatch | None = None
        self.loop: asyncio.AbstractEventLoop
        self.server: Server

    # -- Boot

    def run(self) -> int:
        try:
            self._enter("fork")
            self._prepare_process()
            logs.configure(self.settings)
            # The runner is never closed: that would wait without limit for tasks that ignore
            # their cancellation, and for threads.
            runner = asyncio.Runner(loop_factory=loop_factory(self.settings.loop))
            return runner.run(self._live())
        except AsgictlError as error:
            return self._fail(error)
        except BaseException as error:
            # A task of the application may raise SystemExit, which ends the loop.
            if self.stage != SERVING:
                return self._fail(error)
            turn_once_more(runner.get_loop())
            logger.critical("an exception ended this worker: %s", self, exc_info=error)
            return ExitCode.INTERNAL
        finally:
            logs.flush(LAST_WORDS)
            self.channel.flush(LAST_WORDS)
            self.channel.let_go()

    def _prepare_process(self) -> None:
        assignment = self.assignment
        setproctitle.setproctitle(f"asgictl: worker {assignment.slot} [{assignment.application}]")
        for number in LEFT_TO_THE_SUPERVISOR:
            # Not SIG_IGN, which the programs that the application starts would inherit.
            signal.signal(number, _nothing)
        signal.signal(contract.ORPHAN_SIGNAL, _limit_orphan)
        faulthandler.enable(file=assignment.dump_fd)
        faulthandler.register(
            signal.SIGUSR2, file=assignment.dump_fd, all_threads=True, chain=False
        )

    async def _live(self) -> int:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(hygiene.log_exception)
        hygiene.take_over()
        try:
            booted = await self._boot()
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            return self._fail(error)
        if booted:
            await self._serve()
        patience = self.loop.time() + self.settings.timeout_lifespan_shutdown
        await self.server.shutdown()
        left = max(LAST_WORDS, patience - self.loop.time())
        await extensions.stop(self.assignment.on_worker_stop, self._facts, left)
        await hygiene.cancel_leftovers()
        if self.lag_watch is not None:
            self.lag_watch.stop()
        self.channel.send(contract.Bye(reason=self.reason))
        return ExitCode.OK

    async def _boot(self) -> bool:
        """Return whether to serve; False if we are told to leave before that."""
        if not self.assignment.development:
            return await self._start(await self._load(), self.settings)
        leaving = asyncio.Event()
        try:
            app = await self._load()
            return await self._start(development.explained(app, leaving), self.settings, leaving)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            failed = replace(_failed(self.stage, error), shown=True)
            self.channel.send(failed)
        settings = replace(self.settings, lifespan="off")
        return await self._start(development.broken(failed, leaving), settings, leaving)

    async def _load(self) -> Application:
        """Prepare for the application, and import it."""
        if self.assignment.on_worker_start:
            self._enter("hooks")
            await extensions.start(self.assignment.on_worker_start, self._facts)
        self._enter("import")
        if self.assignment.worker_class is not None:
            name = self.assignment.worker_class
            self.server_class = extensions.server_class(name, self.settings)
        # In the running loop, as everybody does it: applications look for it when imported.
        with progress.of_import(self._busy):
            return self.loaded or load(self.assignment.application, self.settings)

    @property
    def _facts(self) -> extensions.Worker:
        mine = self.assignment
        return extensions.Worker(mine.slot, mine.generation, os.getpid(), self.settings)

    async def _start(
        self, app: Application, settings: WorkerSettings, leaving: asyncio.Event | None = None
    ) -> bool:
        """Start an application, and serve it from then on; return whether that is still wanted."""
        self._enter("lifespan")
        self.server = self.server_class(app, settings, tls=self.tls)
        if leaving is not None:
            self.server.stopping = leaving
        # From here on the loop turns, and can react; before, SIGTERM ends the process at once.
        self.loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        self.loop.add_reader(self.channel.fileno(), self._on_channel)
        self.loop.add_reader(self.assignment.lifeline_fd, self._on_orphaned)
        with progress.of_startup(self._busy):
            if not await self.server.startup():
                return False
        self._enter("listen")
        listeners = [PlainSocket(fileno=each.fd) for each in self.assignment.listeners]
        self.server.start_accepting(listeners, self._join_board())
        # What is alive now stays alive: later collections need not look at it.
        gc.collect()
        gc.freeze()
        self.stage = SERVING
        if self.settings.loop_lag_warning:
            self.lag_watch = hygiene.LagWatch(self.loop, self.settings.loop_lag_warning)
            self.lag_watch.start()
        self.channel.send(contract.Ready())
        logger.info("ready: %s", self)
        return True

    def _join_board(self) -> Callable[[], int | None] | None:
        """Return what says how many connections to take, for the sake of the other workers."""
        if self.assignment.board_fd < 0:
            return None
        server = self.server
        board = Board(self.assignment.board_fd, self.assignment.worker, self.loop.time())
        self.board = board
        service = server.service
        service.on_fewer = board.show
        service.counters.share(self.assignment.board_fd, self.assignment.worker)
        service.ticker.on_turn = self._count
        return lambda: board.allowance(server.connections)

    def _count(self, lateness: float = 0.0) -> None:
        """Let the supervisor read what was counted until now."""
        self.server.service.counters.tick(lateness, self.server.connections)

    def _busy(self, busy: str) -> None:
        self.channel.send(contract.Stage(stage=self.stage, busy=busy))

    def _enter(self, stage: str) -> None:
        self.stage = stage
        self.channel.send(contract.Stage(stage=stage))

    def _fail(self, error: BaseException) -> int:
        """Report why the boot failed; the supervisor logs it, once for all workers."""
        self.channel.send(_failed(self.stage, error))
        return ExitCode.NO_WORKER_BOOTED

    # -- Serve

    async def _serve(self) -> None:
        self.beat_due = self.served_since = self.loop.time()
        self._beat()
        await self.server.stopping.wait()
        # The listeners stay open, for the other workers, unless we were told otherwise.
        self.server.stop_accepting()
        if self.board is not None:
            self.board.hide()
        left = len(self.server.service.connections)
        logger.info("draining: %s connections=%d reason=%s", self, left, self.reason)
        self.channel.send(contract.Draining(left=left))
        await self.server.drain()
        # Or the supervisor's totals would miss what was done since the last beat.
        self._count()
        self._report()

    def _beat(self) -> None:
        now = self.loop.time()
        if self.board is not None and not self.server.stopping.is_set():
            self.board.refresh(now, self.server.connections)
        self._report(lag=max(0.0, now - self.beat_due))
        if not self.recycling:
            reason = reason_to_retire(
                self.assignment,
                requests=self.server.service.counters.requests_total,
                lifetime=now - self.served_since,
            )
            if reason:
                self.recycling = True
                self.channel.send(contract.Recycle(reason=reason))
        logs.flush()
        self.beat_due = now + self.assignment.beat_interval
        self.loop.call_at(self.beat_due, self._beat)

    def _report(self, lag: float = 0.0) -> None:
        counters = self.server.service.counters
        self.channel.beat(
            contract.Beat(
                connections=len(self.server.service.connections),
                in_flight=counters.in_flight,
                loop_lag_us=int(lag * 1_000_000),
                requests_total=counters.requests_total,
                errors_total=counters.errors_total,
                beats_dropped=self.channel.beats_dropped,
            )
        )

    # -- What others want

    def _on_sigterm(self) -> None:
        # The first one may come in the middle of a long drain, and shortens it.
        self._leave("SIGTERM", 0.0 if self.terminated else self.settings.timeout_graceful_shutdown)
        self.terminated = True

    def _on_channel(self) -> None:
        try:
            for message in self.channel.receive():
                if isinstance(message, contract.Drain):
                    self._leave(message.reason, message.timeout)
                    if message.for_good:
                        self._stop_listening()
                elif isinstance(message, contract.ReopenLogs):
                    logs.reopen()
                elif isinstance(message, contract.ReloadTLS):
                    self._renew_certificate()
                elif isinstance(message, contract.LogLevel):
                    logs.set_level(message.level)
        except EOFError:
            self._on_orphaned()

    def _stop_listening(self) -> None:
        """Answer those who wait in the kernel's queue; whoever comes later is refused."""
        self.server.stop_accepting(for_good=True)
        for listener in self.server.sockets:
            listener.close()

    def _renew_certificate(self) -> None:
        tls = self.server.tls
        if tls is None:
            return
        try:
            tls.load()
        except MayNotRead as error:
            logger.info("only new workers will have the new certificate: %s: %s", self, error)
        except AsgictlError as error:
            logger.error("going on with the old certificate: %s: %s", self, error)
        except Exception:
            logger.exception("going on with the old certificate: %s", self)
        else:
            logger.info("certificate and key were read again: %s", self)

    def _on_orphaned(self) -> None:
        self.loop.remove_reader(self.channel.fileno())
        self.loop.remove_reader(self.assignment.lifeline_fd)
        logger.warning("the supervisor is gone, leaving: %s", self)
        self._leave(
            "the supervisor is gone", min(self.settings.timeout_graceful_shutdown, ORPHAN_DRAIN)
        )
        # Nobody accepts after us, and whoever starts it again wants the port now.
        self._stop_listening()

    def _leave(self, reason: str, within: float) -> None:
        self.reason = self.reason or reason
        self.server.stop(within)

    def __str__(self) -> str:
        assignment = self.assignment
        return f"worker={assignment.worker} slot={assignment.slot} generation={assignment.generation} pid={os.getpid()}"


def _failed(stage: str, error: BaseException) -> contract.Failed:
    if isinstance(error, AsgictlError):
        sentence, trace = str(error), getattr(error, "details", "")
    else:
        sentence = f"the application raised {tracebacks.last_line(error)}"
        if isinstance(error, ModuleNotFoundError):
            sentence += f"; this is {sys.executable}: is it installed there?"
        trace = tracebacks.from_application(error)
    return contract.Failed(
        stage=stage, error=contract.shorten(sentence, 4096), traceback=contract.shorten(trace)
    )


def _limit_orphan(_number: int, _frame: FrameType | None) -> None:
    """Have the kernel end this process soon.

    The lifeline makes an orphan leave gracefully, if its event loop turns. One that is stuck
    has nobody left who would notice; this runs between two lines of whatever it is stuck in.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, ORPHAN_LIMIT)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    pass
