"""Tracebacks that begin in the application.

The frames by which asgictl, the event loop and the import system called the application
tell its author nothing; they are left out as long as they come first. What the application
itself calls, our ``receive`` and ``send`` among it, is kept, and so is a traceback that never
left us: then the bug is ours.
"""

import importlib
import os
import traceback
from collections.abc import Iterator

_FOREIGN = (
    os.path.dirname(__file__) + os.sep,
    os.path.dirname(importlib.__file__) + os.sep,
    os.path.join(os.path.dirname(os.__file__), "asyncio") + os.sep,
    "<frozen importlib",
    "uvloop/",
)


def from_application(error: BaseException) -> str:
    """Return the traceback of ``error``, its causes included, from the application on."""
    summary = traceback.TracebackException.from_exception(error, compact=True)
    for part in _parts(summary):
        leading = 0
        while leading < len(part.stack) and _is_foreign(part.stack[leading]):
            leading += 1
        # A syntax error shows the application's line, though nothing of it has run.
        if leading < len(part.stack) or isinstance(error, SyntaxError):
            del part.stack[:leading]
    return "".join(summary.format()).rstrip("\n")


def touches_application(error: BaseException) -> bool:
    """Return whether any code but ours and the import system's was running when it was raised."""
    return not all(map(_is_foreign, traceback.extract_tb(error.__traceback__)))


def last_line(error: BaseException) -> str:
    """Return what Python prints last: the type of ``error`` and its text."""
    return "".join(traceback.format_exception_only(error)).rstrip("\n").rpartition("\n")[2]


def _parts(
    summary: traceback.TracebackException | None,
) -> Iterator[traceback.TracebackException]:
    if summary is None:
        return
    yield summary
    yield from _parts(summary.__cause__)
    yield from _parts(summary.__context__)
    for inner in getattr(summary, "exceptions", None) or ():
        yield from _parts(inner)


def _is_foreign(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(_FOREIGN)
