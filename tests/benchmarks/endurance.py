"""What asgictl promises of itself, measured: reloads in a row, stops at any moment, many workers.

``python -m tests.benchmarks.endurance`` prints the figures; they are taken from outside, by
clients and from /proc. ``staying_up`` writes them below its tables.
"""

import argparse
import contextlib
import os
import select
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.kit import Load, Project, Server, application, wait_for
from tests.moments import MOMENTS, options

RELOADS = 20
MANY = 64
WATCHED = 20.0
"""Seconds over which the supervisor of many workers is watched."""


@contextlib.contextmanager
def _servers() -> Iterator[tuple[Project, Callable[..., Server]]]:
    """Give a project, and what starts servers in it; none of them survives."""
    with tempfile.TemporaryDirectory() as folder:
        project, started = Project(Path(folder) / "project"), []

        def start(*arguments: str) -> Server:
            started.append(Server(project, *arguments))
            return started[-1]

        try:
            yield project, start
        finally:
            for server in started:
                server.destroy()


def _memory(pid: int) -> float:
    """Return the memory in MB that is a process's own (proc(5), smaps_rollup)."""
    return psutil.Process(pid).memory_full_info().uss / 1e6


def _counts(server: Server) -> tuple[int, int, float]:
    children = psutil.Process(server.pid).children()
    zombies = sum(child.status() == psutil.STATUS_ZOMBIE for child in children)
    return len(os.listdir(f"/proc/{server.pid}/fd")), zombies, _memory(server.pid)


def reloads_under_load() -> str:
    """Reload again and again while clients of both kinds ask without a pause."""
    with _servers() as (project, start):
        project.write(application("0"))
        server = start("app:app", "--port", "0", "--workers", "4", "--no-access-log")
        server.wait_until_ready()
        with Load(server.port) as load:
            server.reload(60)  # what is opened once, is open now
            before = _counts(server)
            began = time.monotonic()
            for number in range(1, RELOADS + 1):
                project.write(application(str(number)))
                server.reload(60)
            seconds = time.monotonic() - began
            wait_for(lambda: load.tally.by_version[str(RELOADS)] > 0, "the last code serves")
        tally = load.tally
        wait_for(lambda: len(server.children()) == 4, "only the workers are left")
        after = _counts(server)
        server.stop()
    lost = ", ".join(f"{count} {kind}" for kind, count in tally.kinds().items()) or "none"
    return (
        f"{tally.answered} requests answered in {seconds:.0f} s by {len(tally.by_version)} versions, "
        f"lost: {lost}; of the supervisor, before and after: {before[0]} and {after[0]} "
        f"descriptors, {before[1]} and {after[1]} zombies, {before[2]:.1f} and {after[2]:.1f} MB"
    )


def stop_at(moment: str) -> str:
    """Send TERM at a moment; measure until the first worker is told, and until all is over."""
    with _servers() as (project, start):

        def begin(*more: str) -> Server:
            return start(*options(project), *more)

        with MOMENTS[moment](begin, project) as server:
            written = server.log_file.stat().st_size
            pidfds = [os.pidfd_open(pid) for pid in server.children()]
            began = time.monotonic()
            server.signal("TERM")
            told = _until_told(server, written, pidfds, began)
            (project.directory / "go").touch()
            code = server.ended()
            over = time.monotonic() - began
        for fd in pidfds:
            os.close(fd)
        wait_for(lambda: not server.session(), "no process is left", 5.0)
        left = [path.name for path in server.scratch.iterdir()]
    return (
        f"first worker told after {told * 1000:.0f} ms, exit code {code} after {over:.1f} s, "
        f"left behind: {', '.join(left) or 'nothing'}"
    )


def _until_told(server: Server, written: int, pidfds: list[int], began: float) -> float:
    """Return the seconds until a worker says that it drains or, if it boots, is gone."""
    told = b"draining: " if pidfds else b"stopped"
    with server.log_file.open("rb") as log:
        while time.monotonic() < began + 30:
            log.seek(written)
            if told in log.read() or select.select(pidfds, [], [], 0.001)[0]:
                break
    return time.monotonic() - began


def many_workers() -> str:
    """Watch the supervisor of many workers, and change the size of the fleet by a signal."""
    with _servers() as (project, start):
        project.write(application("1"))
        server = start("app:app", "--port", "0", "--workers", str(MANY), "--timeout-boot", "300")
        server.wait_until_ready(300)
        supervisor = psutil.Process(server.pid)
        used, began = sum(supervisor.cpu_times()[:2]), time.monotonic()
        wait_for(lambda: time.monotonic() >= began + WATCHED, "time passes", WATCHED + 10)
        share = (sum(supervisor.cpu_times()[:2]) - used) / (time.monotonic() - began)
        delays = []
        for signal, word in (("TTIN", b"scaling from"), ("TTOU", b"scaling from")) * 10:
            written = server.log_file.stat().st_size
            began = time.monotonic()
            server.signal(signal)
            with server.log_file.open("rb") as log:
                while log.seek(written) and word not in log.read():
                    assert time.monotonic() < began + 30, "the signal is not obeyed"
                    time.sleep(0.001)
            delays.append(time.monotonic() - began)
        server.signal("QUIT")
        server.ended(120)
    return (
        f"{share * 100:.2f} % of a processor over {WATCHED:.0f} s; a signal is obeyed after "
        f"{statistics.median(delays) * 1000:.0f} ms, {max(delays) * 1000:.0f} ms at the most of "
        f"{len(delays)}"
    )


MEASURES: dict[str, Callable[[], str]] = {
    f"{RELOADS} reloads in a row under load": reloads_under_load,
    **{
        f"TERM: {moment}": lambda moment=moment: stop_at(moment)  # type: ignore[misc]
        for moment in MOMENTS
    },
    f"{MANY} workers": many_workers,
}


def measured() -> Iterator[tuple[str, str]]:
    """Take one measure after the other, and yield its name with what was found."""
    for name, measure in MEASURES.items():
        yield name, measure()


def main() -> None:
    """Print what was measured."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for name, found in measured():
        sys.stdout.write(f"{name:32} {found}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
