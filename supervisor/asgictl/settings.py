"""Every option of the supervisor, declared once; the worker's options come by inheritance.

See ``asgictl_worker.settings`` for how a declaration works.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from asgictl_worker.errors import BadSetting, ContradictorySettings
from asgictl_worker.settings import WorkerSettings, declarations, rule_for_function, setting


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A port on one address or name; an empty host stands for every interface."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a UNIX socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class InheritedDescriptor:
    """A listening socket that somebody else has bound and handed over by number."""

    fd: int

    def __str__(self) -> str:
        return f"fd://{self.fd}"


@dataclass(frozen=True, slots=True)
class SystemdSockets:
    """All sockets of one name that systemd has opened for us; ``*`` stands for every name."""

    name: str

    def __str__(self) -> str:
        return f"systemd:{self.name}"


BindAddress = TcpAddress | UnixAddress | InheritedDescriptor | SystemdSockets

_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[^\]]*)\]|(?P<host>[^\s:/\[\]]*)):(?P<port>[0-9]+)")
_UNIX_ADDRESS = re.compile(r"unix:(?://)?(?P<path>.+)")
_DESCRIPTOR = re.compile(r"fd://(?P<fd>[0-9]+)")
# Names have no colon, since that stands between them in $LISTEN_FDNAMES (sd_listen_fds(3)).
_SYSTEMD = re.compile(r"(?:systemd:|fd://)(?P<name>[^\s:/-][^\s:/]{0,254})")


def parse_bind(text: str) -> BindAddress:
    """Return where a ``--bind`` value says to listen.

    Raises:
        ValueError: it is none of the accepted forms; the message completes "it must be ...".
    """
    if found := _UNIX_ADDRESS.fullmatch(text):
        _rule_for_socket_path(found["path"])
        return UnixAddress(found["path"])
    if found := _DESCRIPTOR.fullmatch(text):
        return InheritedDescriptor(int(found["fd"]))
    if found := _SYSTEMD.fullmatch(text):
        return SystemdSockets(found["name"])
    if found := _ADDRESS.fullmatch(text):
        if int(found["port"]) > 65535:
            raise ValueError("an address with a port from 0 to 65535")
        if found["ipv6"] is None:
            return TcpAddress(found["host"], int(found["port"]))
        # Here and not above: it is seldom needed, and big.
        import ipaddress

        try:
            ipaddress.IPv6Address(found["ipv6"])
        except ValueError:
            raise ValueError("an address with an IPv6 address in the brackets") from None
        return TcpAddress(found["ipv6"], int(found["port"]))
    if text.count(":") > 1 and "/" not in text:
        raise ValueError("an address with IPv6 in brackets, such as [::1]:8000")
    if text.isdigit():
        raise ValueError(f"an address; for port {text} on every interface write :{text}")
    raise ValueError("HOST:PORT, [IPV6]:PORT, :PORT, unix:PATH, fd://N or systemd:NAME")


def _rule_for_admin_bind(text: str) -> None:
    try:
        wrong = isinstance(parse_bind(text), InheritedDescriptor | SystemdSockets)
    except ValueError as error:
        wrong = "systemd:NAME" in str(error)
        if not wrong:
            raise
    if wrong:
        raise ValueError("HOST:PORT, [IPV6]:PORT, :PORT or unix:PATH")


def _overlap(one: BindAddress, other: BindAddress) -> bool:
    """Return whether the kernel gives only one of two addresses to a program."""
    if not isinstance(one, TcpAddress) or not isinstance(other, TcpAddress):
        return one == other
    hosts = {one.host, other.host}
    everywhere = {"", "::"} if any(":" in host for host in hosts) else {"", "0.0.0.0"}
    return one.port == other.port != 0 and (len(hosts) == 1 or bool(hosts & everywhere))


def _rule_for_host(text: str) -> None:
    if not re.fullmatch(r"[^\s/\[\]]*", text):
        raise ValueError(
            "a name or an address alone, such as 0.0.0.0 or ::1; the port has its own setting"
        )


def _rule_for_umask(text: str) -> None:
    if not re.fullmatch(r"(0o)?[0-7]{1,4}", text) or int(text, 8) > 0o777:
        raise ValueError(
            "an octal number from 0 to 777, such as 027 (in a settings file in quotes)"
        )


def _rule_for_socket_path(text: str) -> None:
    # sockaddr_un holds 108 bytes with the closing NUL on Linux (unix(7)).
    if len(text.encode("utf-8", "surrogateescape")) > 107:
        raise ValueError("a path of at most 107 bytes, as sockets have")


def _rule_for_worker_class(text: str) -> None:
    try:
        rule_for_function(text)
    except ValueError:
        raise ValueError(
            "module:Class, a subclass of asgictl_worker.Server; Gunicorn's are not needed, since every worker "
            "serves ASGI, and WSGI with --interface wsgi"
        ) from None


_LISTENERS = "Listeners"
_WORKERS = "Workers"
_DEVELOPMENT = "Development"
_PROCESS = "Process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(WorkerSettings):
    """All options of asgictl, immutable."""

    # -- Listeners
    bind: tuple[str, ...] = setting(
        (),
        "Listen here (repeat for more): HOST:PORT, [IPV6]:PORT, :PORT, unix:PATH, fd://N, or systemd:NAME for "
        "sockets that systemd has opened (systemd:* for all). Replaces --host, --port, --uds and --fd.",
        group=_LISTENERS,
        flags=("-b",),
        metavar="ADDRESS",
        rule=parse_bind,
    )
    host: str = setting(
        "127.0.0.1",
        "Listen on this address or name; an empty one stands for every interface.",
        group=_LISTENERS,
        metavar="ADDRESS",
        rule=_rule_for_host,
    )
    port: int = setting(
        8000,
        "Listen on this port; 0 takes a free one.",
        group=_LISTENERS,
        variables=("PORT",),
        minimum=0,
        maximum=65535,
    )
    uds: str | None = setting(
        None,
        "Listen on this UNIX socket instead of a port.",
        group=_LISTENERS,
        metavar="PATH",
        rule=_rule_for_socket_path,
    )
    uds_permissions: str = setting(
        "666",
        "The permissions of UNIX sockets, in octal; with --user and --group, these own them.",
        group=_LISTENERS,
        metavar="OCTAL",
        rule=_rule_for_umask,
    )
    fd: int | None = setting(
        None, "Listen on this inherited descriptor instead of a port.", group=_LISTENERS, minimum=0
    )
    backlog: int = setting(
        2048,
        "How many connections the kernel holds until a worker accepts them.",
        group=_LISTENERS,
        minimum=1,
    )
    # -- Workers
    workers: Literal["auto"] | int = setting(
        1,
        "How many workers serve; auto follows CPU affinity and container limits.",
        group=_WORKERS,
        flags=("-w",),
        variables=("WEB_CONCURRENCY",),
        minimum=1,
        maximum=1024,
    )
    timeout: float = setting(
        30.0,
        "Replace a worker whose event loop has not turned for this long; at half of it its stack is logged.",
        group=_WORKERS,
        unit="seconds",
        flags=("-t",),
        minimum=1,
        with_reload=3600.0,
    )
    timeout_boot: float = setting(
        60.0,
        "A new worker must be ready within this time; importing a big application is not a hang.",
        group=_WORKERS,
        unit="seconds",
        minimum=0.1,
        with_reload=600.0,
    )
    timeout_reload_drain: float = setting(
        300.0,
        "Let requests and WebSockets of a replaced worker go on for this long.",
        group=_WORKERS,
        unit="seconds",
        minimum=0,
        with_reload=0.5,
    )
    min_ready: float = setting(
        1.0,
        "The first new worker of a reload must stay healthy for this long before any old one is replaced.",
        group=_WORKERS,
        unit="seconds",
        minimum=0,
        with_reload=0.0,
    )
    preload: bool = setting(
        False,
        "Import the application once, in a process that the workers are forked from: they share its memory and "
        "are ready in milliseconds.",
        group=_WORKERS,
    )
    max_surge: int = setting(
        0,
        "How many successors may boot at the same time while workers are replaced; 0 is a quarter of the workers.",
        group=_WORKERS,
        minimum=0,
    )
    stop_delay: float = setting(
        0.0,
        "After TERM, go on accepting for this long, so that load balancers can look away first.",
        group=_WORKERS,
        unit="seconds",
        minimum=0,
    )
    give_up_after: float = setting(
        300.0,
        "Exit with code 3 after this long without any ready worker; 0 never gives up.",
        group=_WORKERS,
        unit="seconds",
        minimum=0,
        with_reload=0.0,
    )
    max_requests: int = setting(
        0,
        "Replace a worker after this many requests; 0 never does.",
        group=_WORKERS,
        flags=("--limit-max-requests",),
        minimum=0,
    )
    max_requests_jitter: int = setting(
        0,
        "Spread --max-requests over the workers by up to this many requests.",
        group=_WORKERS,
        flags=("--limit-max-requests-jitter",),
        minimum=0,
    )
    max_lifetime: float = setting(
        0.0,
        "Replace a worker that has served for this long; 0 never does. Workers are spread over a tenth of it.",
        group=_WORKERS,
        unit="seconds",
        minimum=0,
        flags=("--workers-lifetime",),
    )
    max_memory: int = setting(
        0,
        "Replace a worker that holds more memory than this for itself; 0 never does.",
        group=_WORKERS,
        unit="bytes",
        minimum=0,
    )
    max_workers: int = setting(
        0,
        "The fleet cannot be scaled above this at run time; 0 is four workers per processor, or twice --workers if "
        "that is more.",
        group=_WORKERS,
        minimum=0,
        maximum=1024,
    )
    on_worker_start: tuple[str, ...] = setting(
        (),
        "Call this function in each worker before it loads the application (repeat for more); it gets an "
        "asgictl_worker.Worker and may be a coroutine function. If it raises, the boot has failed.",
        group=_WORKERS,
        metavar="NAME",
        rule=rule_for_function,
    )
    on_worker_stop: tuple[str, ...] = setting(
        (),
        "Call this function in each worker that leaves, when the application has shut down (repeat for more).",
        group=_WORKERS,
        metavar="NAME",
        rule=rule_for_function,
    )
    worker_class: str | None = setting(
        None,
        "Serve with this subclass of asgictl_worker.Server, written as module:Class.",
        group=_WORKERS,
        flags=("-k",),
        metavar="NAME",
        rule=_rule_for_worker_class,
    )
    # -- Development
    reload: bool = setting(
        False,
        "For development: put new workers in the place of the old ones whenever a file was changed, and show the "
        "traceback of what does not work to the browser.",
        group=_DEVELOPMENT,
    )
    reload_dir: tuple[str, ...] = setting(
        (),
        "Watch this directory, with those below it, instead of the working directory (repeat for more).",
        group=_DEVELOPMENT,
        metavar="DIRECTORY",
    )
    reload_include: tuple[str, ...] = setting(
        (),
        "Watch files of this pattern too, such as *.html, beside *.py (repeat for more).",
        group=_DEVELOPMENT,
        metavar="PATTERN",
    )
    reload_exclude: tuple[str, ...] = setting(
        (),
        "Do not watch files and directories of this pattern (repeat for more). Hidden ones, __pycache__, "
        "node_modules and site-packages are left out anyway, unless --reload-include names them.",
        group=_DEVELOPMENT,
        metavar="PATTERN",
    )
    reload_delay: float = setting(
        0.25,
        "Changes that follow each other in this time are one; where files are polled, look this often.",
        group=_DEVELOPMENT,
        unit="seconds",
        minimum=0.01,
    )
    reload_polling: bool | None = setting(
        None,
        "Look at all files again and again, for mounted volumes on which the kernel reports no changes (default: "
        "as WATCHFILES_FORCE_POLLING says).",
        group=_DEVELOPMENT,
    )
    # -- Process
    pid: str | None = setting(
        None,
        "Write the supervisor's process id to this file.",
        group=_PROCESS,
        flags=("-p", "--pid-file"),
        metavar="FILE",
    )
    control: str = setting(
        "auto",
        "Take commands such as `asgictl status` at this UNIX socket: auto finds a place, none takes no commands.",
        group=_PROCESS,
        metavar="auto|none|PATH",
        rule=_rule_for_socket_path,
    )
    profile: str | None = setting(
        None,
        "Add the table [profiles.NAME] of the settings file: what stands there wins over the rest of the file.",
        group=_PROCESS,
        metavar="NAME",
    )
    admin_bind: str | None = setting(
        None,
        "Serve health (/livez, /readyz), /metrics for Prometheus and a page about the fleet here, without a "
        "password: HOST:PORT, :PORT or unix:PATH. A change needs a restart.",
        group=_PROCESS,
        metavar="ADDRESS",
        rule=_rule_for_admin_bind,
    )
    admin_ready_workers: int = setting(
        1,
        "/readyz answers 503 while fewer workers than this are ready.",
        group=_PROCESS,
        minimum=0,
    )
    chdir: str | None = setting(
        None,
        "Change to this directory before anything else.",
        group=_PROCESS,
        flags=("--working-dir",),
        metavar="DIRECTORY",
    )
    user: str | None = setting(
        None, "Run workers as this user (name or number).", group=_PROCESS, flags=("-u",)
    )
    group: str | None = setting(
        None, "Run workers as this group (name or number).", group=_PROCESS, flags=("-g",)
    )
    umask: str | None = setting(
        None,
        "The file mode mask of the workers, in octal.",
        group=_PROCESS,
        flags=("-m",),
        metavar="OCTAL",
        rule=_rule_for_umask,
    )
    env_file: tuple[str, ...] = setting(
        (),
        "Set variables from this file, unless the environment has them already (repeat for more).",
        group=_PROCESS,
        metavar="FILE",
        flags=("--env-files",),
    )

    def __post_init__(self) -> None:
        """Hold every value to its declaration, and the values to each other.

        Raises:
            BadSetting: a value is not allowed.
            ContradictorySettings: two values cannot both be meant.
        """
        # A slotted dataclass is made anew by its decorator, which super() does not see.
        WorkerSettings.__post_init__(self)
        if self.reload and self.preload:
            raise ContradictorySettings(
                ("reload", "preload"), "workers forked from a template have its old code"
            )
        answers = [name for name in ("bind", "uds", "fd") if getattr(self, name) not in ((), None)]
        if answers:
            plain = declarations(Settings)
            answers += [
                name for name in ("host", "port") if getattr(self, name) != plain[name].default
            ]
        if len(answers) > 1:
            raise ContradictorySettings((answers[0], answers[1]), WHERE_TWICE)
        for address in self.bind:
            if self.bind.count(address) > 1:
                raise BadSetting("bind", address, "an address that is not given twice")
        if self.admin_bind is not None:
            admin = parse_bind(self.admin_bind)
            if any(_overlap(admin, address) for address in self.addresses):
                wanted = "an address of its own, at which the application is not served"
                raise BadSetting("admin_bind", self.admin_bind, wanted)

    @property
    def addresses(self) -> tuple[BindAddress, ...]:
        """Where to listen, from whichever of bind, uds, fd, host and port says it."""
        if self.bind:
            return tuple(map(parse_bind, self.bind))
        if self.uds is not None:
            return (UnixAddress(self.uds),)
        if self.fd is not None:
            return (InheritedDescriptor(self.fd),)
        return (TcpAddress(self.host, self.port),)

    @property
    def control_path(self) -> str | None:
        """Where the control socket has to be, if somebody says it."""
        return None if self.control in ("auto", "none") else self.control


WHERE: Mapping[str, str] = {
    "bind": "bind",
    "uds": "uds",
    "fd": "fd",
    "host": "host:port",
    "port": "host:port",
}
"""The settings that say where to listen, and the answer that each is part of."""
WHERE_TWICE = "both say where to listen"


_HTTP_2 = "HTTP/1.1 and WebSocket are spoken; let a proxy in front speak HTTP/2"
_METRICS = "let a collector read the metrics of the supervisor, which adds up those of all workers"
_NO_TASKS = "run a task queue beside it"
_STATIC = "let the application, or a proxy in front, serve files"
_STRICT = "leave it out: what two parsers could read in two ways is refused"
_SYSLOG = "log lines go to standard error, which systemd and containers collect; see --log-config"

INSTEAD: Mapping[str, str] = {
    # uvicorn
    "--h11-max-incomplete-event-size": "see --limit-request-line and --limit-request-field-size",
    "--http2": _HTTP_2,
    "--ssl-version": "see --ssl-min-version",
    "--timeout-worker-healthcheck": "see --timeout for a worker that hangs and --timeout-boot for one that starts",
    # gunicorn
    "--access-logfile": "access lines are on and go to standard output; see --no-access-log and --log-config",
    "--asgi-disconnect-grace-period": "the application is told by http.disconnect and not cancelled",
    "--capture-output": "what the application prints goes where asgictl's own output goes",
    "--check-config": "`asgictl config` reads and checks all settings",
    "-D": "let systemd or a container engine keep it in the background",
    "--do-handshake-on-connect": "leave it out: the handshake always comes first",
    "--daemon": "let systemd or a container engine keep it in the background",
    "-e": "write the variable into a file and name it with --env-file",
    "--env": "write the variable into a file and name it with --env-file",
    "--error-logfile": "log lines go to standard error; see --log-config",
    "--http-parser": "see --http",
    "--initgroups": "the groups of --user are always set",
    "--log-config-json": "--log-config reads JSON too",
    "--log-file": "log lines go to standard error; see --log-config",
    "--logger-class": "see --log-config",
    "--no-sendfile": "leave it out",
    "--print-config": "`asgictl config` prints the settings in effect",
    "--pythonpath": "see --app-dir",
    "-R": "leave it out: standard output and error are inherited",
    "--enable-stdio-inheritance": "leave it out: standard output and error are inherited",
    "--reload-engine": "leave it out; see --reload-polling",
    "--reload-extra-file": "see --reload-include and --reload-dir",
    "--reload-ignore-patterns": "see --reload-exclude",
    "--reload-ignore-paths": "see --reload-exclude",
    "--reload-ignore-dirs": "see --reload-exclude",
    "--reload-paths": "see --reload-dir",
    "--reload-tick": "see --reload-delay",
    "--reuse-port": "leave it out: the workers share the supervisor's sockets",
    "--suppress-ragged-eofs": "leave it out",
    "--threads": "a worker runs one event loop; see --workers",
    "--worker-connections": "see --limit-connections",
    "--worker-tmp-dir": "leave it out: the heartbeat is no file",
    "--casefold-http-method": _STRICT,
    "--control-socket": "see --control",
    "--control-socket-mode": "leave it out: only its user and root are served there",
    "--dirty-app": _NO_TASKS,
    "--dirty-graceful-timeout": _NO_TASKS,
    "--dirty-threads": _NO_TASKS,
    "--dirty-timeout": _NO_TASKS,
    "--dirty-workers": _NO_TASKS,
    "--disable-redirect-access-to-syslog": _SYSLOG,
    "--dogstatsd-tags": _METRICS,
    "--enable-backlog-metric": "`asgictl listeners` shows the queues",
    "--forwarder-headers": "headers reach the application as they came",
    "--header-map": "headers with _ in their names reach the application as they came",
    "--http-protocols": _HTTP_2,
    "--http2-cleartext": _HTTP_2,
    "--http2-initial-window-size": _HTTP_2,
    "--http2-max-concurrent-streams": _HTTP_2,
    "--http2-max-frame-size": _HTTP_2,
    "--http2-max-header-list-size": _HTTP_2,
    "--log-syslog": _SYSLOG,
    "--log-syslog-facility": _SYSLOG,
    "--log-syslog-prefix": _SYSLOG,
    "--log-syslog-to": _SYSLOG,
    "-n": "processes are named after the application",
    "--name": "processes are named after the application",
    "--no-control-socket": "see --control none",
    "--paste": "name the application as module:attribute",
    "--paster": "name the application as module:attribute",
    "--paste-global": "name the application as module:attribute",
    "--permit-obsolete-folding": _STRICT,
    "--permit-unconventional-http-method": _STRICT,
    "--permit-unconventional-http-version": _STRICT,
    "--protocol": "HTTP is spoken; let the proxy in front speak it too",
    "--spew": "`asgictl worker N stack` shows where a worker is",
    "--statsd-host": _METRICS,
    "--statsd-prefix": _METRICS,
    "--strip-header-spaces": _STRICT,
    "--uwsgi-allow-from": "HTTP is spoken; let the proxy in front speak it too",
    # granian, hypercorn
    "--backpressure": "see --limit-concurrency",
    "--blocking-threads": "threads are the application's own; see --workers",
    "--blocking-threads-idle-timeout": "threads are the application's own; see --workers",
    "--debug": "see --log-level debug, and --reload for tracebacks in the browser",
    "--error-log": "log lines go to standard error; see --log-config",
    "--http1-buffer-size": "see --limit-request-line and --limit-request-field-size",
    "--http1-header-read-timeout": "see --timeout-request-header, in seconds",
    "--http1-keep-alive": "it is on; see --timeout-keep-alive",
    "--http1-pipeline-flush": "leave it out",
    "--http2-adaptive-window": _HTTP_2,
    "--http2-initial-connection-window-size": _HTTP_2,
    "--http2-initial-stream-window-size": _HTTP_2,
    "--http2-keep-alive-interval": _HTTP_2,
    "--http2-keep-alive-timeout": _HTTP_2,
    "--http2-max-headers-size": _HTTP_2,
    "--http2-max-send-buffer-size": _HTTP_2,
    "--log": "it is on; see --log-level",
    "--metrics": _METRICS,
    "--metrics-address": _METRICS,
    "--metrics-port": _METRICS,
    "--metrics-scrape-interval": _METRICS,
    "--no-http1-keep-alive": "see --timeout-keep-alive 0",
    "--no-log": "see --log-level critical and --no-access-log",
    "--no-ws": "see --ws none",
    "--process-name": "processes are named after the application",
    "--read-timeout": "see --timeout-request-header and --timeout-keep-alive",
    "--reload-ignore-worker-failure": "leave it out: what does not boot is shown until the next save",
    "--respawn-interval": "leave it out: a worker that dies is replaced at once, or later the more often it dies",
    "--rss-sample-interval": "leave it out; see --max-memory",
    "--rss-samples": "leave it out; see --max-memory",
    "--runtime-blocking-threads": "a worker runs one event loop; see --workers",
    "--runtime-mode": "a worker runs one event loop; see --workers",
    "--server-name": "let the application, or a proxy in front, refuse foreign host names",
    "--ssl-client-verify": "see --ssl-cert-reqs required",
    "--ssl-crl": "see --ssl-context-factory",
    "--ssl-protocol-min": "see --ssl-min-version",
    "--static-path-dir-to-file": _STATIC,
    "--static-path-expires": _STATIC,
    "--static-path-mount": _STATIC,
    "--static-path-route": _STATIC,
    "--task-impl": "leave it out",
    "--verify-mode": "see --ssl-cert-reqs",
    "--workers-kill-timeout": "see --timeout-graceful-shutdown and --timeout-reload-drain",
    "--workers-max-rss": "see --max-memory, such as 512M",
    "--access-log-fmt": "see --access-log-format, which has gunicorn's atoms",
    "--insecure-bind": "see --bind",
    "--quic-bind": "HTTP/1.1 and WebSocket are spoken; let a proxy in front speak HTTP/3",
    "--runtime-threads": "a worker runs one event loop; see --workers",
    "--respawn-failed-workers": "leave it out: a worker that dies is always replaced",
}
"""What users of other servers do instead, for options that asgictl does not have."""
