"""How soon all who watch a service tell of an accident, and whether they tell the same.

``python -m tests.benchmarks.same_story`` kills, crashes, fills and blocks workers of a real
service, while five witnesses are asked without a pause: ``asgictl status --json``, ``asgictl top``
without a terminal (a look every second, as it does by itself), ``/metrics``, what the page is made
from, and the log. ``staying_up`` writes the figures below its tables.
"""

import argparse
import contextlib
import json
import os
import re
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.kit import ASGICTL, Project, Server, clean_environment, wait_for
from tests.witnesses import (
    ACCIDENTS,
    BLOCKED,
    Story,
    fetch,
    told_by_json,
    told_by_log,
    told_by_metrics,
    told_by_text,
)

WORKERS = 4
TIMEOUT = 8.0
REPEATS = 10
NAMES = ("status", "top", "metrics", "page", "log")
LIMIT = "150M"
IMPORT_SECONDS = 1.5
"""What a successor needs, at least."""

Fact = Callable[[Story], bool]


class Watch:
    """Asks all witnesses of a service again and again, each in a thread of its own.

    A witness has told something when its answer was there: what a command needs to start counts.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = int(server.assert_log(r"fleet are on http://127\.0\.0\.1:(\d+)")[1])
        self.stories: dict[str, list[tuple[float, Story]]] = defaultdict(list)
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(name, look, pause))
            for name, look, pause in (
                ("status", self._status, 0.05),
                ("metrics", lambda: told_by_metrics(fetch(self.port, "/metrics")), 0.02),
                ("page", lambda: told_by_json(self.found()["status"]), 0.02),
                ("log", lambda: told_by_log(server.log()), 0.01),
            )
        ]
        self._threads.append(threading.Thread(target=self._top))

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def found(self) -> dict[str, object]:
        """Return what the page is made from."""
        found: dict[str, object] = json.loads(fetch(self.port, "/fleet.json"))
        return found

    def told(self, name: str, fact: Fact) -> float | None:
        """Return when a witness told a fact first."""
        return next((at for at, story in list(self.stories[name]) if fact(story)), None)

    def _ask(self, name: str, look: Callable[[], Story], pause: float) -> None:
        while not self._over.wait(pause):
            with contextlib.suppress(OSError):
                story = look()
                self.stories[name].append((time.monotonic(), story))

    def _command(self, *arguments: str) -> subprocess.Popen[str]:
        server = self.server
        control = server.scratch / "asgictl" / f"{server.pid}.sock"
        return subprocess.Popen(
            [sys.executable, str(ASGICTL), *arguments, "--control", str(control)],
            cwd=server.project.directory,
            env=clean_environment(server.scratch),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _status(self) -> Story:
        return told_by_json(json.loads(self._command("status", "--json").communicate()[0]))

    def _top(self) -> None:
        top, frame = self._command("top"), ""
        assert top.stdout is not None
        for line in top.stdout:
            frame = line if line.startswith("application") else frame + line
            self.stories["top"].append((time.monotonic(), told_by_text(frame)))
            if self._over.is_set():
                break
        top.kill()
        top.communicate()


@contextlib.contextmanager
def _watched() -> Iterator[Watch]:
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder) / "project").write(ACCIDENTS)
        options = ("--workers", str(WORKERS), "--timeout", f"{TIMEOUT:g}", "--max-memory", LIMIT)
        server = Server(
            project,
            *("app:app", "--port", "0", "--admin-bind", "127.0.0.1:0", *options),
            environment={"IMPORT_SECONDS": f"{IMPORT_SECONDS}"},
        )
        try:
            server.wait_until_ready()
            with Watch(server) as watch:
                wait_for(lambda: len(watch.stories) == len(NAMES), "all witnesses are there")
                yield watch
        finally:
            server.destroy()


def _request(watch: Watch, path: str) -> tuple[float, int]:
    """Ask for an accident, and return when it happened, in monotonic seconds, and to whom."""

    def ask() -> None:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(watch.server.url + path, timeout=60),
        ):
            pass

    threading.Thread(target=ask, daemon=True).start()
    when = watch.server.project.directory / "when"
    wait_for(when.exists, f"{path} has happened")
    moment, pid = when.read_text().split()
    return float(moment), int(pid)


def _ended(cause: str) -> Fact:
    return lambda story: story.exits == {cause: 1}


def _is(word: str) -> Fact:
    return lambda story: any(word in state for state in story.states.values())


Seen = Iterator[tuple[str, float, Fact]]
"""What is to be told, since when the supervisor could know of it, and how to recognise it."""


def kill(watch: Watch) -> Seen:
    """Kill a worker."""
    victim, began = min(watch.server.workers()), time.monotonic()
    os.kill(victim, signal.SIGKILL)
    yield "kill -9: the worker was killed by SIGKILL", began, _ended("SIGKILL")


def abort(watch: Watch) -> Seen:
    """Let the application abort its process."""
    when, _ = _request(watch, "/abort")
    yield "os.abort(): it was killed by SIGABRT", when, _ended("SIGABRT")


def segfault(watch: Watch) -> Seen:
    """Let the application read where there is nothing."""
    when, _ = _request(watch, "/segfault")
    yield "invalid memory: it was killed by SIGSEGV", when, _ended("SIGSEGV")


def leak(watch: Watch) -> Seen:
    """Let a worker hold more than it may: it goes when its successor is ready."""
    began, pid = _request(watch, "/leak")
    ends: list[float] = []
    end = os.pidfd_open(pid)

    def wait() -> None:
        select.select([end], [], [])
        ends.append(time.monotonic())
        os.close(end)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    yield "a leak passes --max-memory: it wants a successor", began, _is("max-memory")
    waiting.join()
    yield "the same, replaced: it has ended for max-memory", ends[0], _ended("max-memory")


def block(watch: Watch) -> Seen:
    """Block an event loop: it is late, then suspect, then judged."""
    began, _ = _request(watch, "/block")
    yield "blocked for 1 s: its loop is late", began + BLOCKED, _is("blocked")
    # When it last beat, by the supervisor's own word.
    found = watch.found()
    at = time.monotonic() - (time.time() - float(str(found["at"])))
    beat = at - max(row["beat"] for row in found["status"]["workers"])  # type: ignore[index]
    half = f"silent for {TIMEOUT / 2:g} s, half of --timeout: it is suspect"
    yield half, beat + TIMEOUT / 2, _is("suspect")
    yield f"silent for {TIMEOUT:g} s: it was ended for hang", beat + TIMEOUT, _ended("hang")


STAGED = (kill, abort, segfault, leak, block)


def _delays(
    stage: Callable[[Watch], Seen], wait: float
) -> Iterator[tuple[str, dict[str, float | None]]]:
    with _watched() as watch:
        time.sleep(wait)
        for what, since, fact in stage(watch):
            wait_for(lambda fact=fact: watch.told("page", fact), what)  # type: ignore[misc]
            until = time.monotonic() + 4
            everybody = lambda fact=fact: all(watch.told(name, fact) for name in NAMES)  # noqa: E731
            wait_for(
                lambda: everybody() or time.monotonic() > until,  # noqa: B023
                "they have told it, or never will",
            )
            yield (
                what,
                {
                    name: None if (told := watch.told(name, fact)) is None else told - since
                    for name in NAMES
                },
            )
        last = {name: watch.stories[name][-1][1].exits for name in NAMES}
        assert all(story == last["log"] for story in last.values()), f"they disagree: {last}"


def measured(only: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """Stage each accident several times, and yield for each fact what each witness needed."""
    for stage in STAGED:
        if not re.search(only, stage.__name__):
            continue
        found: dict[str, dict[str, list[float | None]]] = {}
        for number in range(REPEATS):
            # Each time at another moment between two looks of those who look every second.
            for what, delays in _delays(stage, number / REPEATS):
                for name, delay in delays.items():
                    found.setdefault(what, defaultdict(list))[name].append(delay)
        for what, each in found.items():
            yield what, {name: _in_words(each[name]) for name in NAMES}


def _in_words(delays: list[float | None]) -> str:
    known = [delay for delay in delays if delay is not None]
    if not known:
        return "–"
    words = f"{statistics.median(known):.2f} ({max(known):.2f})"
    return words if len(known) == len(delays) else f"{words}, {len(delays) - len(known)} never"


def section(told: list[tuple[str, dict[str, str]]]) -> str:
    """Return what was measured as a part of the page on staying up, in Markdown."""
    lines = [
        "",
        "## How soon it is told, and whether all tell the same",
        "",
        f"""By `python -m tests.benchmarks.same_story`: {WORKERS} workers whose application needs {IMPORT_SECONDS:g} s to
import, `--timeout {TIMEOUT:g}` and `--max-memory {LIMIT}`; each accident {REPEATS} times. Seconds from when it happened,
or from the moment of the first column, until somebody who asks without a pause has read it: median, and
the worst in brackets. `status` is `asgictl status --json`, which takes a third of a second itself, most
of it to measure processor time; `top` looks once a second, without a terminal; `page` is what the page is
made from, which it asks for once a second. At the end of each the five were compared: they agreed.""",
        "",
        "| what is told | " + " | ".join(NAMES) + " |",
        "|---" * (len(NAMES) + 1) + "|",
        *(f"| {what} | {' | '.join(found[name] for name in NAMES)} |" for what, found in told),
        "",
        """The log tells nothing before half of `--timeout`, when the stack of the worker is in it, too; one that turns
again before that logs what has blocked it (`--loop-lag-warning`). The metrics count workers by state, and
have no word for one that waits for its successor.""",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ", ".join(stage.__name__ for stage in STAGED)
    parser.add_argument("--only", default="", help=f"a pattern for the accidents: {names}")
    options = parser.parse_args()
    sys.stdout.write(f"{'seconds, median (worst)':58}" + "".join(f"{n:>14}" for n in NAMES) + "\n")
    for what, found in measured(options.only):
        sys.stdout.write(f"{what:58}" + "".join(f"{found[name]:>14}" for name in NAMES) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
