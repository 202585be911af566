"""Files that change while somebody develops: a child that watches them, and what it is to watch.

watchfiles runs threads, and may fail where files are many or far away; so it lives in a
process of its own, which writes what has changed to a pipe. Its end is an event like others,
and no reason for the supervisor to end.
"""

import contextlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import NoReturn

import setproctitle

from asgictl.settings import Settings
from asgictl.system import kernel, signals
from asgictl_worker.errors import BadSetting, ConfigurationError

INCLUDED = ("*.py",)
EXCLUDED = (".*", ".py[cod]", ".sw.*", "~*", "*~", "__pycache__", "node_modules", "site-packages")
"""Names of files, and of directories on the way to them, that are left out."""

QUIET = 30
"""Milliseconds without another change after which changes are told."""

EXIT_TIMEOUT = 1.0
"""Seconds to wait, at most, for the end of the child once it was killed."""

MOST_NAMES = 5
"""Files that are told by name, at most; one write to the pipe must not be cut."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Files that have changed, by paths as people write them; a few of them, if there are many."""

    files: tuple[str, ...]
    count: int
    code: bool = True
    """One of them is no file that settings are read from."""
    settings: bool = False
    """One of them is."""

    def __str__(self) -> str:
        more = self.count - len(self.files)
        return ", ".join(self.files) + (f" and {more} more" if more else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """What is to be watched: directories, patterns, and files whatever they are called.

    A pattern is compared as ``Path.match()`` does it, from the right; one with a slash only
    by the parts that it has. An excluded directory hides all that is in it.
    """

    directories: tuple[str, ...]
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    settings_files: frozenset[str]
    delay: float
    polling: bool | None

    @classmethod
    def of(cls, settings: Settings, directory: str, files: Iterable[str] = ()) -> "Area":
        """Return what settings ask for.

        Args:
            settings: all of them.
            directory: the working directory, which relative paths count from.
            files: those that settings were read from.
        """

        def absolute(path: str) -> str:
            return os.path.realpath(os.path.join(directory, path))

        # uvicorn takes directories in place of patterns, too.
        into = [each for each in settings.reload_include if os.path.isdir(absolute(each))]
        out_of = [each for each in settings.reload_exclude if os.path.isdir(absolute(each))]
        chosen = [absolute(each) for each in (*settings.reload_dir, *into)]
        if not chosen:
            chosen = [absolute("."), absolute(settings.app_dir or ".")]
        include = {*INCLUDED, *settings.reload_include} - {*into} - {*settings.reload_exclude}
        exclude = {*EXCLUDED, *settings.reload_exclude} - {*out_of} - {*settings.reload_include}
        return cls(
            directories=tuple(
                each
                for each in dict.fromkeys(chosen)
                if not any(_is_in(each, one) for one in chosen)
            ),
            include=tuple(sorted(include)),
            exclude=(*sorted(exclude), *map(absolute, out_of)),
            settings_files=frozenset(map(absolute, files)),
            delay=settings.reload_delay,
            polling=settings.reload_polling,
        )

    def check(self) -> None:
        """Make sure that it can be watched.

        Raises:
            ConfigurationError: a directory is not there, or watchfiles is not.
        """
        for each in self.directories:
            if not os.path.isdir(each):
                raise BadSetting("reload_dir", each, "a directory that exists")
        if importlib.util.find_spec("watchfiles") is None:
            raise ConfigurationError(
                "reload needs the package watchfiles, which is not installed; "
                f"`{sys.executable} -m pip install watchfiles` gets it"
            )

    def covers(self, path: str) -> bool:
        """Return whether a changed file counts."""
        if path in self.settings_files:
            return True
        base = max((each for each in self.directories if _is_in(path, each)), key=len, default="")
        if not any(_matches(path, pattern) for pattern in self.include):
            return False
        on_the_way = path
        while on_the_way not in (base, "/", ""):
            if any(_matches(on_the_way, pattern) for pattern in self.exclude):
                return False
            on_the_way = os.path.dirname(on_the_way)
        return True

    def changes(self, paths: Iterable[str], directory: str) -> Changes | None:
        """Return what is to be told of changed files, or None if none of them counts."""
        found = sorted(path for path in paths if self.covers(path))
        if not found:
            return None
        names = tuple(
            os.path.relpath(path, directory) if _is_in(path, directory) else path
            for path in found[:MOST_NAMES]
        )
        read = len(self.settings_files.intersection(found))
        return Changes(names, len(found), code=read < len(found), settings=read > 0)


def _is_in(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("/"):
        return fnmatchcase(path, pattern)
    parts, wanted = path.split("/"), pattern.removeprefix("./").rstrip("/").split("/")
    last = parts[-len(wanted) :]
    return len(last) == len(wanted) and all(map(fnmatchcase, last, wanted))


class Watcher:
    """The process that watches, as the supervisor sees it."""

    def __init__(self, area: Area) -> None:
        """Start it.

        Raises:
            OSError: no process or no descriptor is to be had.
        """
        self.area = area
        self._received = bytearray()
        parent = os.getpid()
        self.child, self._said = kernel.fork_to_hear(
            lambda write_end: _watch(parent, area, write_end)
        )

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._said

    def receive(self) -> tuple[list[Changes | str], bool]:
        """Return what it has said, remarks as text, and whether it goes on."""
        goes_on = True
        try:
            while data := os.read(self._said, 65536):
                self._received += data
            goes_on = False
        except BlockingIOError:
            pass
        *lines, rest = bytes(self._received).split(b"\n")
        self._received[:] = rest
        return [_understood(line) for line in lines], goes_on

    def close(self) -> None:
        """End it."""
        os.close(self._said)
        self.child.send("KILL")
        self.child.wait(EXIT_TIMEOUT)
        self.child.close()


def _understood(line: bytes) -> Changes | str:
    found = json.loads(line)
    if isinstance(found, str):
        return found
    return Changes(**{**found, "files": tuple(found["files"])})


# -- In the child


def _watch(parent: int, area: Area, write_end: int) -> NoReturn:
    try:
        signals.reset_in_child()
        # Both reach the whole process group, and are the supervisor's.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        kernel.close_all_but([write_end])
        kernel.unblock_signals()
        if not kernel.die_with_parent(parent, signal.SIGKILL):
            os._exit(0)
        setproctitle.setproctitle("asgictl: watches files")
        for said in _tell(area):
            os.write(write_end, json.dumps(said).encode() + b"\n")
    except BrokenPipeError:
        pass
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(write_end, json.dumps(f"{error!r:.500}").encode() + b"\n")
    finally:
        sys.stdout.flush()
        os._exit(0)


def _tell(area: Area) -> Iterator[str | dict[str, object]]:
    """Yield remarks, and what has changed, for ever."""
    from watchfiles import watch

    directory = os.getcwd()
    polling = area.polling
    while True:
        looks = watch(
            *area.directories,
            watch_filter=None,
            debounce=max(int(area.delay * 1000), QUIET + 1),
            step=QUIET,
            rust_timeout=0,
            force_polling=polling,
            poll_delay_ms=int(area.delay * 1000),
            ignore_permission_denied=True,
        )
        try:
            for found in looks:
                changes = area.changes((path for _, path in found), directory)
                if changes is not None:
                    yield asdict(changes)
        except OSError as error:
            if polling:
                raise
            # inotify(7): the limit of watches is reached, or there is none on this file system.
            yield (
                f"the kernel does not report changes of files ({error}); looking at all of them "
                f"every {area.delay:g} s instead"
            )
            polling = True
