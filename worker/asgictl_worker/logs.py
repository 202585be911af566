"""Set up logging, for workers and the supervisor alike.

Without ``log_config`` the loggers below ``asgictl`` write human lines to standard error::

    2026-11-22 21:30:00 INFO  asgictl.worker [4711] text

or, with ``log_format`` json, an object per record for machines::

    {"time":"2026-11-22T21:30:00.123Z","level":"INFO","logger":"asgictl.worker","pid":4711,
    "message":"text"}

The root logger, and with it the application's own logging, is left alone. The supervisor
imports this module: no event loop here.
"""

import contextlib
import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, ClassVar, TextIO

from asgictl_worker import request_ids, tracebacks
from asgictl_worker.errors import ConfigurationError
from asgictl_worker.outlet import Outlet
from asgictl_worker.settings import WorkerSettings

STDERR = 2


class LogConfigError(ConfigurationError):
    """The file named by ``log_config`` cannot be used."""

    def __init__(self, path: str, problem: str, advice: str = "") -> None:
        self.path, self.problem = path, problem
        super().__init__(f"log_config {path!r}: {problem}" + (f"; {advice}" if advice else ""))


def configure(settings: WorkerSettings) -> None:
    """Configure Python's logging as the settings say; again and after a fork, if need be.

    Raises:
        LogConfigError: the file named by ``log_config`` cannot be used.
    """
    if settings.log_config is not None:
        _use_file(settings.log_config)
        return
    if settings.log_format == "json":
        handler = OutletHandler(Outlet(STDERR, dropped_as_json))
        handler.setFormatter(JSONFormatter())
    else:
        handler = OutletHandler(Outlet(STDERR))
        handler.setFormatter(LineFormatter(colors=wants_colors(settings, handler.outlet)))
    logger = logging.getLogger("asgictl")
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
    logger.setLevel(settings.log_level.upper())
    logger.propagate = False


def wants_colors(settings: WorkerSettings, outlet: Outlet) -> bool:
    """Return whether lines to this outlet are coloured."""
    if settings.use_colors is None:
        return outlet.is_terminal and not os.environ.get("NO_COLOR")
    return settings.use_colors


def set_level(level: str) -> None:
    """Log as much as one of the words of the setting ``log_level`` says, from now on."""
    with contextlib.suppress(ValueError):  # a word of a newer supervisor
        logging.getLogger("asgictl").setLevel(level.upper())


def flush(timeout: float = 0.0) -> None:
    """Write what was kept back for a slow reader, waiting at most ``timeout`` seconds."""
    for handler in _handlers():
        if isinstance(handler, OutletHandler):
            handler.flush_within(timeout)


def reopen() -> None:
    """Open all log files anew, after they were rotated; the old one stays if that fails."""
    for handler in _handlers():
        if not isinstance(handler, logging.FileHandler) or handler.stream is None:
            continue
        try:
            old = handler.setStream(handler._open())
        except OSError as error:
            logging.getLogger("asgictl").error(
                "cannot reopen the log file %s, writing on to the old one: %s",
                handler.baseFilename,
                error.strerror,
            )
        else:
            if old is not None:
                old.close()


class OutletHandler(logging.Handler):
    """Hands formatted records to an ``Outlet``."""

    def __init__(self, outlet: Outlet) -> None:
        super().__init__()
        self.outlet = outlet

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as a line, or several if it carries a traceback."""
        try:
            self._write(self.format(record))
        except Exception:
            # logging would print to sys.stderr, which may block.
            problem = f"cannot format the log record {record.msg!r}"
            self._write(
                self.format(
                    logging.LogRecord(
                        "asgictl", logging.ERROR, record.pathname, 0, problem, (), sys.exc_info()
                    )
                )
            )

    def flush_within(self, timeout: float) -> None:
        """Write the backlog, waiting at most ``timeout`` seconds."""
        self.acquire()
        try:
            self.outlet.flush(timeout)
        finally:
            self.release()

    def close(self) -> None:
        """Give the outlet back."""
        super().close()
        self.outlet.close()

    def _write(self, text: str) -> None:
        self.outlet.write(text.encode("utf-8", "backslashreplace") + b"\n")


class NonBlockingHandler(OutletHandler):
    """The handler to name in a file: it never waits for its reader, and says what it dropped.

    Args:
        stream: has a descriptor, as ``ext://sys.stderr`` and ``ext://sys.stdout`` have.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        stream = stream or sys.stderr
        # Python has no sys.stderr where the descriptor was closed.
        super().__init__(Outlet(STDERR if stream is None else stream.fileno()))


class LineFormatter(logging.Formatter):
    """Time, level, logger, process, text; tracebacks begin in the application."""

    COLORS: ClassVar = {
        "DEBUG": "\x1b[2m",
        "INFO": "\x1b[32m",
        "WARNING": "\x1b[33m",
        "ERROR": "\x1b[31m",
        "CRITICAL": "\x1b[1;31m",
    }

    def __init__(self, *, colors: bool) -> None:
        # The format names the time, or logging would not compute it.
        super().__init__("%(asctime)s", "%Y-%m-%d %H:%M:%S")
        self.colors = colors

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line for a record."""
        level = f"{record.levelname:<5}"
        if self.colors and record.levelname in self.COLORS:
            level = f"{self.COLORS[record.levelname]}{level}\x1b[0m"
        return f"{record.asctime} {level} {record.name} [{record.process}] {record.message}"

    def formatException(self, ei: Any) -> str:
        """Return the traceback, without the frames by which we called the application."""
        return (
            tracebacks.from_application(ei[1]) if ei[1] is not None else super().formatException(ei)
        )


class JSONFormatter(logging.Formatter):
    """An object per record, in one line of ASCII.

    What was given to the record as ``extra`` becomes fields, and ``request_id`` is one where
    there is a request that has one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the object for a record."""
        fields: dict[str, Any] = {
            "time": in_utc(record.created),
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        identity = request_ids.current()
        if identity:
            fields["request_id"] = identity
        for name, value in record.__dict__.items():
            if name not in _OF_EVERY_RECORD:
                fields.setdefault(name, value)
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = tracebacks.from_application(record.exc_info[1])
        elif record.exc_text:
            fields["exception"] = record.exc_text
        if record.stack_info:
            fields["stack"] = record.stack_info
        try:
            return json.dumps(fields, default=str, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError):
            # A circle, a key that is none, a number that JSON does not know.
            plain = {
                name: value if _is_plain(value) else repr(value) for name, value in fields.items()
            }
            return json.dumps(plain, separators=(",", ":"))


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int)


_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def in_utc(seconds: float) -> str:
    """Return a time as JSON has it, such as ``2026-11-22T21:30:00.123Z`` (RFC 3339)."""
    whole = int(seconds)
    return f"{_second_in_utc(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(8)
def _second_in_utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def dropped_as_json(count: int) -> str:
    """Return the object that says how many lines were lost."""
    text = f"{count} log lines were dropped, nobody took them"
    return JSONFormatter().format(
        logging.LogRecord("asgictl", logging.WARNING, "", 0, text, (), None)
    )


def _handlers() -> Iterator[logging.Handler]:
    yield from logging.root.handlers
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield from logger.handlers


# -- log_config


def _use_file(path: str) -> None:
    # Late: it brings sockets and queues, which nobody needs without a file.
    import logging.config

    read = _READERS.get(os.path.splitext(path)[1].lower())
    if read is None:
        known = ", ".join(_READERS)
        raise LogConfigError(path, "its name does not say what it is", f"end it in one of {known}")
    try:
        with open(path, encoding="utf-8") as file:
            config = read(file.read())
        if read is _read_ini:
            logging.config.fileConfig(config, disable_existing_loggers=False)
        elif isinstance(config, dict):
            # Without this the loggers that exist already, ours among them, would fall silent.
            logging.config.dictConfig({"disable_existing_loggers": False, **config})
        else:
            raise LogConfigError(path, f"it holds a {type(config).__name__} and not a table")
    except LogConfigError:
        raise
    except OSError as error:
        whose = f": {error.filename}" if error.filename not in (None, path) else ""
        raise LogConfigError(path, f"{error.strerror}{whose}") from None
    except ModuleNotFoundError as error:
        advice = "pip install pyyaml, or write it as .toml" if error.name == "yaml" else ""
        raise LogConfigError(path, str(error), advice) from None
    except Exception as error:
        # dictConfig hides what went wrong in the cause: "Unable to configure handler 'file'".
        reasons = [error, error.__cause__ or error]
        problem = ": ".join(dict.fromkeys(str(reason) or repr(reason) for reason in reasons))
        raise LogConfigError(path, problem) from None
    _see_that_we_are_heard(path)


def _see_that_we_are_heard(path: str) -> None:
    """Warn, once and not in every worker, of a file that was written for another server."""
    ours = logging.getLogger("asgictl")
    if path not in _unheard and not ours.hasHandlers():
        _unheard.add(path)
        # Python itself prints warnings that nobody handles.
        ours.warning(
            "log_config %r gives neither the logger asgictl nor the root logger a handler: only "
            "warnings are shown, and no access lines",
            path,
        )


_unheard: set[str] = set()


def _read_yaml(text: str) -> Any:
    # Not a dependency: only those who write YAML need it.
    return importlib.import_module("yaml").safe_load(text)


def _read_toml(text: str) -> Any:
    # Here and not above, as in _read_ini(): the supervisor's memory is small.
    import tomllib

    return tomllib.loads(text)


def _read_ini(text: str) -> Any:
    import configparser

    parser = configparser.ConfigParser()
    parser.read_string(text)
    return parser


_READERS: dict[str, Callable[[str], Any]] = {
    ".json": json.loads,
    ".toml": _read_toml,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".ini": _read_ini,
    ".cfg": _read_ini,
    ".conf": _read_ini,
}
