"""What goes wrong in an event loop without anybody noticing, told with its place.

* Code that blocks the loop: nothing else is served meanwhile (``LagWatch``).
* Exceptions that nobody retrieves, be it of a task, of a thread or of a callback that cannot
  raise, and warnings such as that of a coroutine which was never awaited (``log_exception()``,
  ``take_over()``).
* Tasks that are left over when the server stops (``cancel_leftovers()``).

What repeats itself is told once a minute, with how often it happened.
"""

import asyncio
import contextlib
import inspect
import itertools
import linecache
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from types import FrameType
from typing import Any, NamedTuple, TextIO

logger = logging.getLogger("asgictl.worker")

SPACING = 60.0
"""Seconds between two reports of the same thing."""

MAX_KNOWN = 200
"""Different things that are remembered; more at a time would not be read."""

CANCEL_GRACE = 1.0
"""Seconds in which cancelled tasks may tidy up."""

STOPPING = 0.5
"""Seconds in which the thread that watches the event loop ends, at most."""


class Repetitions:
    """Knows what was reported lately."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[object, tuple[float, int]] = {}

    def admit(self, key: object, now: float) -> int | None:
        """Return how often this was kept back since its last report, None to keep it back.

        Args:
            key: what it is.
            now: monotonic seconds.
        """
        last, kept = self._known.pop(key, (-SPACING, 0))
        if now - last < SPACING:
            self._known[key] = (last, kept + 1)
            return None
        self._known[key] = (now, 0)
        if len(self._known) > MAX_KNOWN:
            # The one that was seen least recently.
            del self._known[next(iter(self._known))]
        return kept


_repetitions = Repetitions()


def _times(kept: int) -> str:
    return f" ({kept} times more in the meantime)" if kept else ""


# -- A loop that does not turn

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_ASYNCIO = os.path.dirname(os.path.abspath(asyncio.__file__)) + os.sep
_RUNNER = _ASYNCIO + "runners.py"
_SELECTORS = os.path.join(os.path.dirname(_ASYNCIO.rstrip(os.sep)), "selectors.py")


class LagWatch:
    """Reports what blocks the event loop of this thread.

    It asks the loop for a turn again and again. If one does not come in time, a thread of ours
    looks where the loop's thread is; C code that holds the interpreter's lock is seen as soon
    as it lets go. When the loop turns again that is logged. (Of a loop that never does, the
    supervisor tells.)

    faulthandler's timer would look without the lock. It reads frames that are in use, and
    while Python code runs that ends the process now and then.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, threshold: float) -> None:
        """Prepare to watch.

        Args:
            loop: that of this thread, running.
            threshold: seconds for which it may be blocked.
        """
        self._loop = loop
        self._threshold = threshold
        # A block may begin anywhere between two turns; each costs a tenth of a millisecond.
        self._interval = min(1.0, max(0.1, threshold / 2))
        self._thread = threading.get_ident()
        self._seen = ""
        self._handle: asyncio.TimerHandle | None = None
        self._due = self._worked = 0.0
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="asgictl lag", daemon=True)

    def start(self) -> None:
        """Watch from now on."""
        self._arm()
        self._watcher.start()

    def stop(self) -> None:
        """Watch no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._stopped.set()
        self._watcher.join(STOPPING)

    def _arm(self) -> None:
        self._due = time.monotonic() + self._interval
        self._worked = time.thread_time()
        self._handle = self._loop.call_later(self._interval, self._turn)

    def _watch(self) -> None:
        seen = 0.0
        while not self._stopped.wait(max(0.01, self._due + self._threshold - time.monotonic())):
            due = self._due
            if due == seen:
                self._stopped.wait(self._interval)  # seen already, and it goes on
            elif time.monotonic() >= due + self._threshold:
                seen = due
                self._seen = stack_of(sys._current_frames().get(self._thread))

    def _turn(self) -> None:
        blocked = time.monotonic() - self._due
        seen, self._seen = self._seen, ""
        if blocked >= self._threshold:
            self._report(blocked, time.thread_time() - self._worked, seen)
        self._arm()

    def _report(self, blocked: float, worked: float, stack: str) -> None:
        kept = _repetitions.admit(("blocked", stack), time.monotonic())
        if kept is None:
            return
        if not stack and worked >= self._threshold / 2:
            logger.warning(
                "the event loop was blocked for %.2f s (%.2f s of processor time), nothing else was "
                "served; it was C code that kept the interpreter's lock, so where is not known%s",
                blocked,
                worked,
                _times(kept),
            )
            return
        if not stack:
            logger.info(
                "the event loop did not turn for %.2f s, though nothing blocked it: the machine is "
                "overloaded, or was suspended%s",
                blocked,
                _times(kept),
            )
            return
        logger.warning(
            "the event loop was blocked for %.2f s (%.2f s of processor time), nothing else was "
            "served; after %g s it was here%s:\n%s",
            blocked,
            worked,
            self._threshold,
            _times(kept),
            stack,
        )


def stack_of(frame: FrameType | None) -> str:
    """Return the stack of a frame, as Python writes stacks, from the application on.

    Returns:
        Nothing if no code was running but the event loop's own.
    """
    return _from_application(
        [
            _Place(item.filename, item.lineno or 0, item.name)
            for item in traceback.extract_stack(frame)
        ]
    )


class _Place(NamedTuple):
    """A line of code that runs."""

    file: str
    line: int
    name: str

    @property
    def is_of_loop(self) -> bool:
        return self.file.startswith(_ASYNCIO) or self.file == _SELECTORS

    @property
    def is_outer(self) -> bool:
        """Whether it may stand between the loop and the application."""
        return self.is_of_loop or self.file.startswith(_OURS)

    def __str__(self) -> str:
        source = linecache.getline(self.file, self.line).strip()
        text = f'  File "{self.file}", line {self.line}, in {self.name}'
        return f"{text}\n    {source}" if source else text


def _from_application(places: list[_Place]) -> str:
    """Return the places as text, outermost first, without those that say nothing."""
    # What the loop was started by; under a forked worker stands its supervisor.
    entries = [at for at, place in enumerate(places) if place.file == _RUNNER]
    if entries:
        places = places[entries[-1] + 1 :]
    if all(place.is_of_loop for place in places):
        return ""
    if not all(place.is_outer for place in places):
        places = list(itertools.dropwhile(lambda place: place.is_outer, places))
    return "\n".join(map(str, places))


# -- Exceptions and warnings that go nowhere


def log_exception(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what an event loop tells its exception handler (``loop.set_exception_handler()``)."""
    error = context.get("exception")
    kept = _repetitions.admit((context["message"], *_origin(error)), time.monotonic())
    if kept is None:
        return
    facts = ", ".join(
        f"{name}={value!r}"
        for name, value in context.items()
        if name not in ("message", "exception", "source_traceback")
    )
    logger.error(
        "in the event loop: %s%s%s",
        context["message"],
        f" ({facts})" if facts else "",
        _times(kept),
        exc_info=error,
    )


def _origin(error: BaseException | None) -> tuple[object, ...]:
    """Return what two exceptions have in common that are the same mistake."""
    if error is None:
        return ()
    last = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        last = (frame.f_code.co_filename, line)
    return type(error), last


def log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log a warning instead of printing it, in the place of ``warnings.showwarning()``."""
    kept = _repetitions.admit((category, str(message)), time.monotonic())
    if kept is not None:
        logger.warning(
            "%s:%d: %s: %s%s", filename, lineno, category.__name__, message, _times(kept)
        )


def log_unraisable(unraisable: Any) -> None:
    """Log what Python would print, in the place of ``sys.unraisablehook()``.

    Finalizers and callbacks of C code cannot raise: that of SNI, for instance.
    """
    error = unraisable.exc_value
    message = unraisable.err_msg or "Exception ignored in"
    kept = _repetitions.admit((message, *_origin(error)), time.monotonic())
    if kept is None:
        return
    try:
        what = f" {unraisable.object!r}" if unraisable.object is not None else ""
    except Exception:  # it is being finalized, and may be in pieces
        what = f" a {type(unraisable.object).__name__}"
    logger.error("%s%s%s", message, what, _times(kept), exc_info=error)


def log_thread(failure: threading.ExceptHookArgs) -> None:
    """Log the exception that ended a thread, in the place of ``threading.excepthook()``."""
    error = failure.exc_value
    if issubclass(failure.exc_type, SystemExit):
        return  # as threading has it
    kept = _repetitions.admit(("thread", *_origin(error)), time.monotonic())
    if kept is not None:
        name = "" if failure.thread is None else f" {failure.thread.name!r}"
        logger.error("an exception ended the thread%s%s", name, _times(kept), exc_info=error)


def take_over() -> None:
    """Log what Python would print to standard error, as nobody else wants it.

    A reader of JSON lines could not read it, and to print may block the loop.
    """
    warnings.showwarning = log_warning
    sys.unraisablehook = log_unraisable
    threading.excepthook = log_thread


# -- Tasks that are left over


def describe(task: asyncio.Task[Any]) -> str:
    """Return the name of a task and the lines where it waits, outermost first."""
    lines = []
    awaiting: Any = task.get_coro()
    while inspect.iscoroutine(awaiting) and awaiting.cr_frame is not None:
        lines.append(f"{awaiting.cr_code.co_filename}:{awaiting.cr_frame.f_lineno}")
        awaiting = awaiting.cr_await
    return f"{task.get_name()} ({', '.join(lines)})"


async def cancel_leftovers() -> None:
    """End the tasks that the application has left behind, as far as they let themselves."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        logger.info("cancelling tasks that were left over: %s", _names(tasks))
    for task in tasks:
        task.cancel()
    if tasks:
        _, tasks = await asyncio.wait(tasks, timeout=CANCEL_GRACE)
    if tasks:
        logger.warning("tasks that ignore their cancellation: %s", _names(tasks))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CANCEL_GRACE):
            await asyncio.get_running_loop().shutdown_asyncgens()


def _names(tasks: set[asyncio.Task[Any]]) -> str:
    names = sorted(map(describe, tasks))
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
