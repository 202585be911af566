"""The verbs that talk to a running supervisor, as commands of the command line.

Results go to standard output, for people or with ``--json`` for programs; how it goes along
the way goes to standard error. What takes time to import is imported when it is used.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import click

from asgictl.configuration import Configuration, Origin, Source, from_json
from asgictl_worker.errors import AsgictlError, ConfigurationError, ExitCode
from asgictl_worker.settings import seconds_in

if TYPE_CHECKING:
    from asgictl.operate.client import Connection

Talk = Callable[..., Any]
"""Talks to the supervisor, prints for people, and returns what ``--json`` prints."""


class _Seconds(click.types.FloatParamType):
    """A duration, as settings take it."""

    def __init__(self, low: float, high: float = inf) -> None:
        self._low, self._high = low, high

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds = seconds_in(value) if isinstance(value, str) else value
        if seconds is None or not self._low <= seconds <= self._high:
            limits = (
                f"from {self._low:g} to {self._high:g}"
                if self._high < inf
                else "of seconds, from 0 on"
            )
            self.fail(f"{value!r} is no number {limits}; units are 500ms, 30s, 2m, 1h", param, ctx)
        return float(seconds)


class _Verb(click.Command):
    """A command that finds the supervisor, talks to it, and prints what came of it."""

    def __init__(
        self,
        name: str,
        talk: Talk,
        *,
        about: str,
        short: str,
        params: Sequence[click.Parameter] = (),
    ) -> None:
        where: list[click.Parameter] = [
            click.Option(
                ["--control"],
                metavar="PATH",
                help="The supervisor's control socket (if not found).",
            ),
            click.Option(["--pid"], metavar="FILE", help="The supervisor's pid file."),
            click.Option(
                ["-c", "--config"],
                metavar="FILE",
                help="The settings file that may name them (default: as for serving).",
            ),
            click.Option(["--json", "as_json"], is_flag=True, help="Print JSON, for programs."),
        ]
        super().__init__(
            name,
            callback=self._run,
            params=[*params, *where],
            help=about,
            short_help=short,
            context_settings={
                "help_option_names": ["-h", "--help"],
                "max_content_width": 100,
                # scale -1 is no option.
                "ignore_unknown_options": name == "scale",
            },
        )
        self._talk = talk

    def _run(
        self,
        control: str | None,
        pid: str | None,
        config: str | None,
        as_json: bool,
        **arguments: Any,
    ) -> int:
        def talk() -> None:
            with connect(control, pid, config) as connection:
                result = self._talk(connection, not as_json, **arguments)
            if as_json and result is not None:
                echo_json(result)

        return report(talk, as_json)


def report(work: Callable[[], None], as_json: bool) -> int:
    """Do something, and return 0; or say what has gone wrong, and return its exit code."""
    try:
        work()
    except AsgictlError as error:
        detail = getattr(error, "detail", "")
        if as_json:
            failure = {"ok": False, "error": str(error)}
            echo_json(failure | {"detail": detail} if detail else failure)
        else:
            if detail:
                click.echo(detail.rstrip(), err=True)
            click.echo(f"asgictl: error: {error}", err=True)
        return error.exit_code
    return ExitCode.OK


def print_running_settings(
    control: str | None, pid_file: str | None, config: str | None, as_json: bool, explain: bool
) -> None:
    """Print the settings that the running supervisor serves by, as a settings file or as JSON.

    Raises:
        AsgictlError: there is none, or there are several.
    """
    from asgictl.reference import effective

    with connect(control, pid_file, config) as connection:
        found = connection.ask("config")
        directory = connection.ask("ping")["directory"]
    if as_json:
        echo_json(found)
        return
    lists = {name: tuple(value) for name, value in found["settings"].items() if type(value) is list}
    settings = from_json(found["settings"] | lists)
    origins = {name: Origin("argument", text) for name, text in found.get("origins", {}).items()}
    # One of an older supervisor says nothing of them.
    configuration = Configuration(settings, origins, directory, found.get("file"))
    click.echo(effective(configuration, explain=explain and bool(origins)), nl=False)


def connect(control: str | None, pid_file: str | None, config: str | None) -> "Connection":
    """Return a line to the supervisor that is meant.

    Where its socket is may be said by the settings that it was started with; they are looked
    for as ``asgictl run`` would, here.

    Raises:
        AsgictlError: there is none, or there are several.
    """
    from asgictl.operate.client import find

    if control is None and pid_file is None:
        try:
            configuration = Source.of_this_process({}, config).read()
        except ConfigurationError:
            # Broken settings are no reason to keep anybody from asking what goes on.
            if config is not None:
                raise
        else:
            settings, directory = configuration.settings, configuration.directory
            if settings.control_path is not None:
                control = os.path.join(directory, settings.control_path)
            elif settings.pid is not None:
                pid_file = os.path.join(directory, settings.pid)
    return find(os.environ, control, pid_file)


def echo_json(value: object) -> None:
    """Print something for programs."""
    click.echo(json.dumps(value, indent=2))


def _usage(connection: "Connection", pids: Sequence[int], ours: bool) -> Any:
    """Measure processes for a moment, unless they are in another container than we are."""
    from asgictl.operate.usage import WINDOW, Meter

    if not ours:
        return {}
    meter = Meter()
    meter.look(pids)
    time.sleep(WINDOW)
    return meter.look(pids)


def _with_usage(row: Mapping[str, Any], usage: Mapping[int, Any]) -> dict[str, Any]:
    found = usage.get(row["pid"])
    return {
        **row,
        "cpu": found and found.cpu,
        "memory_rss": found and found.rss,
        "memory_pss": found and found.pss,
    }


def _look(connection: "Connection") -> tuple[dict[str, Any], Any]:
    found = connection.ask("status")
    pids = [found["pid"], *(row["pid"] for row in found["workers"] if row["pid"])]
    return found, _usage(connection, pids, connection.pid in (found["pid"], 0))


# -- What each verb says


def _status(connection: "Connection", human: bool) -> Any:
    from asgictl.operate import show

    found, usage = _look(connection)
    if human:
        click.echo(show.status(found, usage), nl=False)
        if found["last_reload"] and found["last_reload"]["detail"]:
            click.echo(f"\n{found['last_reload']['detail'].rstrip()}")
    rows = [_with_usage(row, usage) for row in found["workers"]]
    return _with_usage(found, usage) | {"workers": rows}


def _workers(connection: "Connection", human: bool) -> Any:
    from asgictl.operate import show

    found, usage = _look(connection)
    if human:
        click.echo(show.workers(found["workers"], usage), nl=False)
    return [_with_usage(row, usage) for row in found["workers"]]


def _top(
    connection: "Connection", human: bool, interval: float, count: int | None, svg: str | None
) -> None:
    from asgictl.operate import top

    if human or svg:
        top.run(connection, interval=interval, count=count, svg=svg, emit=click.echo)
        return
    number = 0
    while count is None or number < count:
        if number:
            time.sleep(interval)
        click.echo(json.dumps(connection.ask("status")))
        number += 1


def _listeners(connection: "Connection", human: bool) -> Any:
    from asgictl.operate import show

    found = connection.ask("listeners")
    if human:
        click.echo(show.listeners(found["listeners"], found["overflows"]), nl=False)
    return found


def _events(connection: "Connection", human: bool, follow: bool, last: int) -> None:
    from asgictl.operate import show

    for answer in connection.answers("events", follow=follow, last=last):
        found = answer.get("record")
        if found is None:
            continue
        if human:
            then = time.time() - found["ago"]
            clock = time.strftime("%H:%M:%S", time.localtime(then)) + f"{then % 1:.3f}"[1:]
            click.echo(show.record(found, clock))
        else:
            click.echo(json.dumps(found))


def _follow(
    connection: "Connection", human: bool, timeout: float | None, verb: str, **given: Any
) -> dict[str, Any]:
    """Ask, pass on how it goes, and return the result."""
    answer: dict[str, Any] = {}
    for answer in connection.answers(verb, timeout, **given):
        if human and (words := answer.get("progress")):
            click.echo(words, err=True)
    return answer


def _reload(connection: "Connection", human: bool, wait: bool, timeout: float | None) -> Any:
    result = _follow(connection, human, timeout, "reload", wait=wait)
    if human:
        done = f"reloaded: generation {result['generation']} serves" if wait else "reload requested"
        click.echo(done)
    return result


def _abort_reload(connection: "Connection", human: bool) -> Any:
    result = connection.ask("abort-reload")
    if human:
        click.echo(f"reload aborted: generation {result['generation']} serves on")
    return result


def _reload_tls(connection: "Connection", human: bool, timeout: float | None) -> Any:
    result = _follow(connection, human, timeout, "reload-tls")
    if human:
        click.echo("new connections get the certificates that are on disk now")
    return result


def _upgrade(connection: "Connection", human: bool, timeout: float | None) -> Any:
    from asgictl.operate.client import Failed, Gone, find

    before = None
    try:
        for answer in connection.answers("upgrade", timeout):
            before = answer.get("upgrades", before)
            if human and (words := answer.get("progress")):
                click.echo(words, err=True)
    except Gone:
        pass
    # The same process goes on with the new program, and still listens at the same place.
    with find(os.environ, connection.path) as again:
        found = again.ask("status", 30.0)
    if before is None or found["upgrades"] <= before:
        raise Failed("the supervisor has hung up, and has not been upgraded; see its log")
    if human:
        click.echo(
            f"asgictl {found['version']} has taken over, with {found['ready']} workers ready"
        )
    return {"version": found["version"], "upgrades": found["upgrades"]}


def _stop(
    connection: "Connection", human: bool, now: bool, wait: bool, timeout: float | None
) -> Any:
    from asgictl.operate.client import Gone, TimedOut, wait_for_end

    began = time.monotonic()
    try:
        _follow(connection, human, timeout, "stop", now=now, wait=wait)
    except Gone:
        left = None if timeout is None else max(0.0, timeout - (time.monotonic() - began))
        if not wait_for_end(connection.pid, left):
            raise TimedOut(timeout or 0.0) from None
    if human:
        click.echo("stopped" if wait else "stopping")
    return {"stopped": wait}


def _scale(
    connection: "Connection", human: bool, to: str, wait: bool, timeout: float | None
) -> Any:
    result = _follow(connection, human, timeout, "scale", to=to, wait=wait)
    if human:
        click.echo(f"scaled from {result['before']} to {result['desired']} workers")
    return result


def _worker(
    connection: "Connection", human: bool, worker: str, do: str, wait: bool, timeout: float | None
) -> Any:
    result = _follow(connection, human, timeout, "worker", worker=worker, do=do, wait=wait)
    if human:
        name = f"worker={result['slot']} pid={result['pid']}"
        click.echo(result["stacks"] if do == "stack" else f"{_DONE[do, wait]}: {name}")
    return result


_DONE = {
    ("drain", True): "has left",
    ("drain", False): "is leaving",
    ("restart", True): "replaced",
    ("restart", False): "is to be replaced",
    ("kill", True): "killed",
    ("kill", False): "is being killed",
}


def _reopen_logs(connection: "Connection", human: bool) -> Any:
    result = connection.ask("reopen-logs")
    if human:
        click.echo("log files are being opened again")
    return result


def _log_level(connection: "Connection", human: bool, level: str) -> Any:
    result = connection.ask("log-level", level=level)
    if human:
        click.echo(f"all processes log {level} and worse now, until the supervisor ends")
    return result


def _wait(what: str) -> list[click.Parameter]:
    return [
        click.Option(["--wait/--no-wait"], default=True, help=f"Wait until {what} (the default)."),
        _timeout(),
    ]


def _timeout() -> click.Option:
    return click.Option(
        ["--timeout"],
        type=_Seconds(0.0),
        metavar="SECONDS",
        help="Wait no longer than this, and exit with code 1; what has begun goes on.",
    )


_ALL = (
    _Verb(
        "status",
        _status,
        about="Print what the supervisor and each of its workers are doing.",
        short="Show the supervisor and its workers.",
    ),
    _Verb(
        "top",
        _top,
        about="Show the supervisor and its workers live, and move them by keys: the arrows choose a worker, s "
        "shows its stack, r restarts it, + and - scale, R reloads, q quits. Where there is no terminal, text is "
        "printed at each interval. Drawing needs rich: pip install 'asgictl[top]'.",
        short="Show the service live, and move it by keys.",
        params=[
            click.Option(
                ["-i", "--interval"],
                type=_Seconds(0.1, 4.0),
                default=1.0,
                metavar="SECONDS",
                help="Look this often, at most every 4 s (default: 1).",
            ),
            click.Option(
                ["-n", "--count"],
                type=click.IntRange(min=1),
                metavar="NUMBER",
                help="End after so many looks.",
            ),
            click.Option(
                ["--svg"],
                metavar="FILE",
                help="Draw a picture into a file, of the second look or that of --count, and end.",
            ),
        ],
    ),
    _Verb("workers", _workers, about="Print one line for each worker.", short="Show the workers."),
    _Verb(
        "listeners",
        _listeners,
        about="Print where the supervisor listens, and how many connections wait there.",
        short="Show the listening sockets and their queues.",
    ),
    _Verb(
        "events",
        _events,
        about="Print what the supervisor has learned and done lately: its flight recorder.",
        short="Show what has happened lately, or happens.",
        params=[
            click.Option(["-f", "--follow"], is_flag=True, help="Go on with what happens."),
            click.Option(
                ["-n", "--last"],
                type=click.IntRange(min=0),
                default=100,
                metavar="NUMBER",
                help="How many of the past ones (default: 100).",
            ),
        ],
    ),
    _Verb(
        "reload",
        _reload,
        about="Load settings and application anew, worker by worker, as SIGHUP does. Exit code 0: the new "
        "generation serves alone. Exit code 1: it was refused, with the reason, and the old one serves on.",
        short="Load settings and application anew.",
        params=_wait("the new generation serves alone"),
    ),
    _Verb(
        "abort-reload",
        _abort_reload,
        about="Give up the reload that is under way; the old generation serves on.",
        short="Give up a reload that is under way.",
    ),
    _Verb(
        "reload-tls",
        _reload_tls,
        about="Read certificates and keys again, without a reload: new connections get them. Exit code 1: they "
        "cannot be used, and the old ones stay.",
        short="Read certificates again, without a reload.",
        params=[_timeout()],
    ),
    _Verb(
        "scale",
        _scale,
        about="Change the number of workers to N, or by +N or -N; 0 pauses the service without closing its "
        "sockets.",
        short="Change the number of workers.",
        params=[click.Argument(["to"], metavar="N|+N|-N"), *_wait("the fleet has that size")],
    ),
    _Verb(
        "worker",
        _worker,
        about="Do something to WORKER, which is the number of its slot, or pid=N. drain: let it finish its work "
        "and leave. restart: replace it, the successor being ready first. kill: end it at once. stack: print "
        "where each of its threads is.",
        short="Drain, restart or kill a worker, or print its stack.",
        params=[
            click.Argument(["worker"]),
            click.Argument(["do"], type=click.Choice(["drain", "restart", "kill", "stack"])),
            *_wait("it is done"),
        ],
    ),
    _Verb(
        "stop",
        _stop,
        about="Stop the service: requests in progress are finished first.",
        short="Stop the service.",
        params=[
            click.Option(["--now"], is_flag=True, help="Cut off requests in progress."),
            *_wait("the supervisor has ended"),
        ],
    ),
    _Verb(
        "upgrade",
        _upgrade,
        about="Let the program that is on disk now take over the supervisor's process, as SIGUSR2 does: workers "
        "and connections are kept.",
        short="Let a newer program take over.",
        params=[_timeout()],
    ),
    _Verb(
        "reopen-logs",
        _reopen_logs,
        about="Open all log files again after they were rotated, as SIGUSR1 does.",
        short="Open log files again.",
    ),
    _Verb(
        "log-level",
        _log_level,
        about="Log as much as LEVEL in all processes, until the supervisor ends.",
        short="Log more, or less.",
        params=[
            click.Argument(
                ["level"],
                type=click.Choice(["critical", "error", "warning", "info", "debug"]),
            )
        ],
    ),
)

COMMANDS: Mapping[str, click.Command] = {command.name or "": command for command in _ALL}
