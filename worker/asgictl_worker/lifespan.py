"""Startup and shutdown of the application, by the ASGI lifespan protocol.

One task runs the application with a ``lifespan`` scope for as long as the worker lives.
Which outcome means what:

=================================  ==================  =========================
before ``startup.complete``        lifespan "auto"     lifespan "on"
=================================  ==================  =========================
``lifespan.startup.failed``        the boot fails      the boot fails
an exception                       serve without       the boot fails, traceback
the application returns            serve without       the boot fails
=================================  ==================  =========================

An exception later than that is logged, and requests are served on. With "off" the
application is not asked at all.

As with the other servers, the task has a copy of the worker's context: what startup sets in
a ``contextvars`` variable is not seen by requests. ``scope["state"]`` is the way to them.

Source: https://asgi.readthedocs.io/en/latest/specs/lifespan.html
"""

import asyncio
import logging
from typing import Any, Literal

from asgictl_worker import tracebacks
from asgictl_worker.asgi import Application, Message
from asgictl_worker.errors import AsgictlError, ExitCode

logger = logging.getLogger("asgictl.worker")

SPEC_VERSION = "2.0"

GRACE = 1.0
"""Seconds in which an application that failed, or was cancelled, may tidy up."""

Mode = Literal["auto", "on", "off"]


class StartupFailed(AsgictlError):
    """The application cannot be served, because its startup did not succeed."""

    exit_code = ExitCode.NO_WORKER_BOOTED

    def __init__(self, problem: str, details: str = "") -> None:
        self.problem, self.details = problem, details
        """``details`` is a traceback, or the whole text that the application gave as reason."""
        super().__init__(f"the application did not start: {problem}")


class Lifespan:
    """Takes one application through startup and shutdown.

    Attributes:
        state: what the application put into ``scope["state"]``, or None if it does not take
            part; requests get a copy.
    """

    __slots__ = ("_answer", "_app", "_mode", "_requests", "_task", "_waiting_for", "state")

    def __init__(self, app: Application, mode: Mode = "auto") -> None:
        self.state: dict[str, Any] | None = None
        self._app = app
        self._mode = mode
        self._task: asyncio.Task[None] | None = None
        self._requests: asyncio.Queue[Message] = asyncio.Queue()
        self._waiting_for = ""
        self._answer: asyncio.Future[Message] | None = None

    async def startup(self) -> None:
        """Run the application until it says that its startup is complete.

        Raises:
            StartupFailed: it said that startup failed, or with mode "on" did not say anything.
        """
        if self._mode == "off":
            return
        state: dict[str, Any] = {}
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": SPEC_VERSION},
            "state": state,
        }
        self._task = asyncio.get_running_loop().create_task(
            self._run(scope), name="asgictl lifespan"
        )
        try:
            answer = await self._ask("lifespan.startup")
        except BaseException:
            # Whoever waits gave up, as when the worker is told to stop while it boots.
            await self._give_up(self._task)
            raise
        if answer is None:
            self._check_silence(self._task)
            return
        if answer["type"] == "lifespan.startup.failed":
            # The application may still want to end in its own way.
            await asyncio.wait([self._task], timeout=GRACE)
            await self._give_up(self._task)
            raise _startup_failed(str(answer.get("message", "")))
        self.state = state
        self._task.add_done_callback(self._log_exception)

    async def shutdown(self, within: float) -> None:
        """Let the application shut down, for at most ``within`` seconds; then cancel it.

        Never raises: there is nobody left who could do better. What goes wrong is logged.
        """
        task = self._task
        if task is None or task.done():
            return
        try:
            async with asyncio.timeout(within):
                answer = await self._ask("lifespan.shutdown")
                # Complete, but it may have a few lines left to run.
                await asyncio.wait([task])
        except TimeoutError:
            logger.warning(
                "the application's lifespan shutdown took longer than %g s, cancelling it", within
            )
            await self._give_up(task)
            return
        if answer is not None and answer["type"] == "lifespan.shutdown.failed":
            logger.error(
                "the application's shutdown failed: %s",
                str(answer.get("message", "")).strip() or "it gave no reason",
            )

    async def _ask(self, request: str) -> Message | None:
        """Send a message and return the answer, or None if the application ends without one."""
        assert self._task is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._waiting_for = request
        self._requests.put_nowait({"type": request})
        either: list[asyncio.Future[Any]] = [self._task, self._answer]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return self._answer.result() if self._answer.done() else None

    async def _run(self, scope: dict[str, Any]) -> None:
        await self._app(scope, self._requests.get, self._send)

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        expected = self._waiting_for
        if self._answer is None or kind not in (f"{expected}.complete", f"{expected}.failed"):
            raise RuntimeError(
                f"the application sent {kind!r} "
                + (f"in answer to {expected!r}" if expected else "before it was asked anything")
            )
        if self._answer.done():
            raise RuntimeError(f"the application answered {expected!r} twice")
        self._answer.set_result(message)

    def _check_silence(self, task: asyncio.Task[None]) -> None:
        """Decide what it means that the application ended before it answered the startup."""
        error = None if task.cancelled() else task.exception()
        if self._mode == "on":
            if error is None:
                raise StartupFailed(
                    "it returned without answering lifespan.startup; with lifespan off it would "
                    "not be asked"
                )
            raise StartupFailed(
                tracebacks.last_line(error), tracebacks.from_application(error)
            ) from error
        reason = "it returned at once" if error is None else f"it raised {type(error).__name__}"
        logger.info("the application takes no part in the lifespan protocol: %s", reason)
        if error is not None:
            logger.debug("how the application refused the lifespan protocol", exc_info=error)

    def _log_exception(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        answer = self._answer.result() if self._answer is not None and self._answer.done() else {}
        # Who says that shutdown failed often raises as well; shutdown() tells it then.
        if error is not None and answer.get("type") != "lifespan.shutdown.failed":
            logger.error("the application's lifespan ended with an exception", exc_info=error)

    @staticmethod
    async def _give_up(task: asyncio.Task[None]) -> None:
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=GRACE)
        if not done:
            logger.warning("the application's lifespan task ignores its cancellation")
        elif not task.cancelled():
            task.exception()


def _startup_failed(message: str) -> StartupFailed:
    # Starlette puts its traceback here: the last line of it is the sentence.
    lines = message.strip().splitlines() or ["it gave no reason"]
    return StartupFailed(lines[-1].strip(), message.strip() if len(lines) > 1 else "")
