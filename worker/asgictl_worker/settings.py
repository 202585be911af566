"""Every option that changes how one worker serves, declared once.

A declaration is a dataclass field made by ``setting()``. The flag, the ``ASGICTL_*``
variable, the key of the settings file, the help text, the reference page and the sample
file are all derived from it (``asgictl.configuration``, ``asgictl.reference``).

Durations are float seconds, sizes are int bytes. Nothing here reads files, variables or
the clock: settings can be built in a test without effects.
"""

import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin

METADATA_KEY = "asgictl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a declaration says beyond name, type and default."""

    sentence: str
    group: str
    unit: str
    flags: tuple[str, ...]
    variables: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    metavar: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """One setting, as everything that is derived from it sees it.

    ``kind`` is the type of one value: ``bool``, ``int``, ``float`` or ``str``. ``many``
    says that the setting holds a tuple of them, ``optional`` that it may be None, and
    ``choices`` that only these words are allowed (``or_number`` adds any integer).
    """

    name: str
    kind: type
    many: bool
    optional: bool
    choices: tuple[str, ...]
    or_number: bool
    default: Any
    facts: Facts

    @property
    def flag(self) -> str:
        """Return the main spelling on the command line, such as ``--timeout-keep-alive``."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Return the environment variable, such as ``ASGICTL_TIMEOUT_KEEP_ALIVE``."""
        return "ASGICTL_" + self.name.upper()


def setting(
    default: Any,
    sentence: str,
    *,
    group: str,
    unit: str = "",
    flags: tuple[str, ...] = (),
    variables: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    metavar: str = "",
) -> Any:
    """Declare one setting as a dataclass field.

    Args:
        default: the value when nobody says otherwise; immutable.
        sentence: what it does, one sentence or two, as it stands in the help.
        group: the heading under which help and reference list it.
        unit: ``seconds``, ``bytes``, ... or empty for words and switches.
        flags: further spellings on the command line (gunicorn's, short ones).
        variables: foreign environment variables that are honoured too, such as ``PORT``.
        minimum: the smallest number allowed.
        maximum: the largest number allowed.
        metavar: how the help names the value, if the type says too little.
    """
    facts = Facts(
        sentence=sentence,
        group=group,
        unit=unit,
        flags=flags,
        variables=variables,
        minimum=minimum,
        maximum=maximum,
        metavar=metavar,
    )
    return field(default=default, metadata={METADATA_KEY: facts})


@cache
def declarations(settings_class: type) -> Mapping[str, Declaration]:
    """Return the declarations of a settings class by name, in the order declared."""
    hints = typing.get_type_hints(settings_class)
    found = {}
    for item in fields(settings_class):
        assert item.default is not MISSING, f"{item.name} has no default"
        found[item.name] = _declaration(item.name, hints[item.name], item.default, item.metadata[METADATA_KEY])
    return found


def _declaration(name: str, hint: Any, default: Any, facts: Facts) -> Declaration:
    many = optional = or_number = False
    choices: tuple[str, ...] = ()
    kind: type | None = None
    if get_origin(hint) is tuple:
        many = True
        hint = get_args(hint)[0]
    parts = (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
    for part in parts:
        if part is NoneType:
            optional = True
        elif get_origin(part) is Literal:
            choices = get_args(part)
            kind = kind or str
        elif choices:
            or_number = True
        else:
            kind = part
    if choices and int in parts:
        or_number, kind = True, str
    assert kind in (bool, int, float, str), f"{name} has a type that no flag can carry: {hint}"
    return Declaration(
        name=name,
        kind=kind,
        many=many,
        optional=optional,
        choices=choices,
        or_number=or_number,
        default=default,
        facts=facts,
    )


_APPLICATION = "Application"
_PROTOCOL = "Protocol"
_LIMITS = "Limits and time-outs"
_WEBSOCKET = "WebSocket"
_PROXY = "Behind a proxy"
_LOGGING = "Logging"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Options that change how one worker loads and serves an application."""

    # -- Application
    app_dir: str | None = setting(
        None,
        "Look for the application in this directory first (default: the working directory).",
        group=_APPLICATION,
        metavar="DIRECTORY",
    )
    factory: bool = setting(
        False, "The name is a function without arguments that returns the application.", group=_APPLICATION
    )
    interface: Literal["auto", "asgi3", "asgi2", "wsgi"] = setting(
        "auto", "What the application speaks; auto looks at how it can be called.", group=_APPLICATION
    )
    lifespan: Literal["auto", "on", "off"] = setting(
        "auto",
        "Whether the application takes part in the lifespan protocol; auto asks it and goes on without.",
        group=_APPLICATION,
    )
    root_path: str = setting(
        "", "The path under which a proxy in front mounts the application.", group=_APPLICATION, metavar="PATH"
    )
    reset_contextvars: bool = setting(
        False, "Run every request in an empty context instead of a copy of the worker's.", group=_APPLICATION
    )
    # -- Protocol
    loop: Literal["auto", "asyncio", "uvloop"] = setting(
        "auto", "The event loop; auto takes uvloop where it imports.", group=_PROTOCOL
    )
    http: Literal["auto", "httptools", "h11"] = setting(
        "auto", "The HTTP/1.1 parser; auto takes httptools where it imports.", group=_PROTOCOL
    )
    server_header: bool = setting(True, "Send a Server header.", group=_PROTOCOL)
    date_header: bool = setting(True, "Send a Date header.", group=_PROTOCOL)
    header: tuple[str, ...] = setting(
        (), "Add this header to every response (repeat for more).", group=_PROTOCOL, metavar="NAME:VALUE"
    )
    # -- Limits and time-outs
    limit_concurrency: int | None = setting(
        None,
        "Answer 503 above this many requests and WebSockets in progress in one worker.",
        group=_LIMITS,
        minimum=1,
    )
    limit_request_line: int = setting(
        8190, "Answer 414 to a longer request line.", group=_LIMITS, unit="bytes", minimum=64
    )
    limit_request_fields: int = setting(100, "Answer 431 to more header fields.", group=_LIMITS, minimum=1)
    limit_request_field_size: int = setting(
        8190, "Answer 431 to a longer header field (name and value).", group=_LIMITS, unit="bytes", minimum=64
    )
    limit_request_body: int | None = setting(
        None, "Answer 413 to a longer request body.", group=_LIMITS, unit="bytes", minimum=0
    )
    timeout_request_header: float = setting(
        10.0,
        "Answer 408 if the head of a request has not arrived this long after its first byte, and close a new "
        "connection that sends nothing.",
        group=_LIMITS,
        unit="seconds",
        minimum=0.1,
    )
    timeout_keep_alive: float = setting(
        5.0,
        "Close a connection that has been idle this long after a response.",
        group=_LIMITS,
        unit="seconds",
        flags=("--keep-alive",),
        minimum=0,
    )
    timeout_graceful_shutdown: float = setting(
        30.0,
        "Let requests in progress go on for this long when the server stops.",
        group=_LIMITS,
        unit="seconds",
        flags=("--graceful-timeout",),
        minimum=0,
    )
    timeout_lifespan_shutdown: float = setting(
        10.0,
        "Let the application's lifespan shutdown take this long.",
        group=_LIMITS,
        unit="seconds",
        minimum=0,
    )
    drain_idle_window: float = setting(
        0.25,
        "While draining, keep idle connections open for this long, so that a request already on its way is "
        "answered and not lost.",
        group=_LIMITS,
        unit="seconds",
        minimum=0,
    )
    # -- WebSocket
    ws: Literal["auto", "websockets", "none"] = setting(
        "auto", "The WebSocket engine; none refuses every upgrade.", group=_WEBSOCKET
    )
    ws_max_size: int = setting(
        16 * 1024 * 1024,
        "Close with 1009 when a message is longer, counted after decompression.",
        group=_WEBSOCKET,
        unit="bytes",
        minimum=1,
    )
    ws_max_queue: int = setting(
        32, "Stop reading while this many messages wait for the application.", group=_WEBSOCKET, minimum=1
    )
    ws_ping_interval: float | None = setting(
        20.0, "Send a ping this often; 0 turns pings off.", group=_WEBSOCKET, unit="seconds", minimum=0
    )
    ws_ping_timeout: float | None = setting(
        20.0,
        "Close with 1011 when a ping stays unanswered for this long; 0 waits for ever.",
        group=_WEBSOCKET,
        unit="seconds",
        minimum=0,
    )
    ws_per_message_deflate: bool = setting(
        True, "Offer compression of messages (RFC 7692).", group=_WEBSOCKET
    )
    # -- Behind a proxy
    proxy_headers: bool = setting(
        True,
        "Take scheme and client address from X-Forwarded-Proto and X-Forwarded-For when the peer is trusted.",
        group=_PROXY,
    )
    forwarded_allow_ips: str = setting(
        "127.0.0.1,::1,unix:",
        "Peers whose forwarding headers are believed: addresses and networks, separated by commas; unix: stands "
        "for peers on UNIX sockets, * for everybody.",
        group=_PROXY,
        variables=("FORWARDED_ALLOW_IPS",),
        metavar="LIST",
    )
    # -- Logging
    log_level: Literal["critical", "error", "warning", "info", "debug"] = setting(
        "info", "The least important log lines that are still written.", group=_LOGGING
    )
    log_config: str | None = setting(
        None,
        "Configure Python's logging from this file (.json, .toml, .yaml, or .ini as fileConfig reads it).",
        group=_LOGGING,
        metavar="FILE",
    )
    access_log: bool = setting(True, "Write a line for every response.", group=_LOGGING)
    use_colors: bool | None = setting(
        None, "Colour the log (default: when it goes to a terminal).", group=_LOGGING
    )
