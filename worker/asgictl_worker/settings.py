"""Every option that changes how one worker serves, declared once.

A declaration is a dataclass field made by ``setting()``. The flag, the ``ASGICTL_*``
variable, the key of the settings file, the help text, the reference page and the sample
file are all derived from it (``asgictl.configuration``, ``asgictl.reference``).

Durations are float seconds, sizes are int bytes. ``read()`` turns text into a value and
``check()`` holds every value to its declaration, wherever it came from; a settings object
checks itself when it is made. Nothing here reads files, variables or the clock: settings
can be built in a test without effects.
"""

import math
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from asgictl_worker.errors import BadSetting, ContradictorySettings, MissingSetting

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
    separator: str
    rule: Callable[[str], object] | None
    secret: bool
    with_reload: Any


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
    separator: str = ",",
    rule: Callable[[str], object] | None = None,
    secret: bool = False,
    with_reload: Any = None,
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
        separator: what stands between several values in one environment variable.
        rule: raises ``ValueError`` for a text that cannot work; its message completes the
            sentence "it must be ...".
        secret: the value is never shown.
        with_reload: the default of development, with the setting ``reload``, if it differs.
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
        separator=separator,
        rule=rule,
        secret=secret,
        with_reload=with_reload,
    )
    return field(default=default, repr=not secret, metadata={METADATA_KEY: facts})


def declarations(settings_class: type) -> Mapping[str, Declaration]:
    """Return the declarations of a settings class by name, in the order declared."""
    return _declarations(settings_class)


@cache
def _declarations(settings_class: type) -> Mapping[str, Declaration]:
    hints = typing.get_type_hints(settings_class)
    found = {}
    for item in fields(settings_class):
        assert item.default is not MISSING, f"{item.name} has no default"
        found[item.name] = _declaration(
            item.name, hints[item.name], item.default, item.metadata[METADATA_KEY]
        )
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


def read(declaration: Declaration, text: str) -> Any:
    """Return the value that a text stands for, on a command line or in a variable.

    Several values of one setting are separated by ``declaration.facts.separator``.

    Raises:
        BadSetting: the text is not a value of this setting.
    """
    if declaration.many:
        parts = (part.strip() for part in text.split(declaration.facts.separator))
        return check(declaration, tuple(part for part in parts if part))
    text = text.strip()
    if declaration.kind is bool:
        return check(declaration, SWITCH_WORDS.get(text.lower(), text))
    if text.lower() in declaration.choices:
        return text.lower()
    if declaration.kind is int or declaration.or_number:
        return check(declaration, int(text) if _WHOLE_NUMBER.fullmatch(text) else text)
    return check(declaration, text)


def check(declaration: Declaration, value: object) -> Any:
    """Return the value of a setting in its own type, once it is known to be allowed.

    Some values may be texts, since a settings file has no other way to write them: numbers
    with a unit (``500ms``, ``16M``), and ``none`` (for a text: an empty one) to unset what
    may be unset. A single text stands for a list of one.

    Raises:
        BadSetting: the value has the wrong type, is out of range or breaks the rule.
    """
    if not declaration.many:
        return _check_one(declaration, value)
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, list | tuple):
        raise BadSetting(declaration.name, value, f"a list of which each is {wanted(declaration)}")
    return tuple(_check_one(declaration, part) for part in value)


def _check_one(declaration: Declaration, value: object) -> Any:
    if value is None and declaration.optional:
        return None
    if isinstance(value, str):
        return _check_text(declaration, value)
    # bool is an int to isinstance(), but `workers = true` is a mistake.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if declaration.kind is float and is_number:
        return _check_range(declaration, float(typing.cast("float", value)))
    if (declaration.kind is int or declaration.or_number) and is_number and isinstance(value, int):
        return _check_range(declaration, value)
    if declaration.kind is bool and isinstance(value, bool):
        return value
    raise BadSetting(declaration.name, value, wanted(declaration))


def _check_text(declaration: Declaration, text: str) -> Any:
    if declaration.optional and text == ("" if declaration.kind is str else "none"):
        return None
    if declaration.choices:
        if text in declaration.choices:
            return text
    elif declaration.kind is str:
        # No path and no header can hold it, and the kernel would cut the text there.
        if "\0" in text:
            raise BadSetting(declaration.name, text, "a text without NUL characters")
        if declaration.facts.rule:
            try:
                declaration.facts.rule(text)
            except ValueError as error:
                raise BadSetting(declaration.name, text, str(error)) from None
        return text
    elif declaration.kind is float and (seconds := seconds_in(text)) is not None:
        return _check_range(declaration, seconds)
    elif declaration.facts.unit == "bytes" and (found := _SIZE.fullmatch(text)):
        return _check_range(declaration, int(float(found[1]) * _BYTES[found[2].upper()]))
    raise BadSetting(declaration.name, text, wanted(declaration))


def seconds_in(text: str) -> float | None:
    """Return the duration that is written as ``30``, ``1.5s``, ``500ms``, ``2m`` or ``1h``, or None."""
    found = _DURATION.fullmatch(text)
    return found and float(found[1]) * _SECONDS[found[2] or "s"]


def _check_range(declaration: Declaration, number: float) -> float:
    low, high = declaration.facts.minimum, declaration.facts.maximum
    if (
        not math.isfinite(number)
        or (low is not None and number < low)
        or (high is not None and number > high)
    ):
        raise BadSetting(declaration.name, number, wanted(declaration))
    return number


def wanted(declaration: Declaration) -> str:
    """Return what one value must be, as it completes the sentence "it must be ..."."""
    phrases = list(declaration.choices)
    low, high = declaration.facts.minimum, declaration.facts.maximum
    limits = (
        f" from {low} to {high}"
        if high is not None
        else f" of at least {low}"
        if low is not None
        else ""
    )
    if declaration.kind is bool:
        phrases.append("true or false")
    elif declaration.kind is float:
        phrases.append(f"a duration in seconds{limits} (or with a unit: 500ms, 30s, 2m, 1h)")
    elif declaration.facts.unit == "bytes":
        phrases.append(f"a size in bytes{limits} (or with a unit: 64K, 16M, 1G)")
    elif declaration.kind is int or declaration.or_number:
        phrases.append(f"a whole number{limits}")
    elif not declaration.choices:
        phrases.append(f"a text in quotes ({declaration.facts.metavar})".removesuffix(" ()"))
    if declaration.optional and declaration.kind is not str:
        phrases.append("none")
    return " or ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


SWITCH_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]?)(?:i?B)?", re.IGNORECASE)
_BYTES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}

_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t\x20-\x7e\x80-\xff]*)")
_FRAMING = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding", "upgrade"})


def parse_header(text: str) -> tuple[bytes, bytes]:
    """Return name (in lower case) and value of a ``NAME:VALUE`` setting (RFC 9110, section 5).

    Raises:
        ValueError: the text is no header field, or one that each response sets for itself.
    """
    found = _HEADER.fullmatch(text)
    if not found:
        raise ValueError(
            "NAME:VALUE, the name of letters, digits and hyphens, the value without control characters"
        )
    name = found[1].lower()
    if name in _FRAMING:
        raise ValueError(
            "another header: this one frames a single response and is set by the server"
        )
    return name.encode("ascii"), found[2].strip(" \t").encode("latin-1")


def rule_for_function(text: str) -> None:
    """Hold a text to the form of a name, ``module:function``."""
    if not re.fullmatch(r"[^\s:]+:[^\s:()]+", text):
        raise ValueError("the name of a function, module:function")


def _rule_for_peers(text: str) -> None:
    # Not above: the rules of HTTP import the settings, and have no use for networks.
    from asgictl_worker.proxy import NotAPeer, ProxyTrust

    try:
        ProxyTrust(text)
    except NotAPeer as error:
        raise ValueError(
            "addresses, networks, unix: or *, separated by commas, where "
            f"{error.entry!r} {error.reason}"
        ) from None


def _rule_for_access_format(text: str) -> None:
    from asgictl_worker import access_format  # only for those who have one

    access_format.compile_format(text)


def _rule_for_header_name(text: str) -> None:
    try:
        name, value = parse_header(f"{text}:")
    except ValueError:
        name, value = b"", b""
    if not name or value:
        raise ValueError("the name of a header that frames nothing, such as X-Request-ID")


_APPLICATION = "Application"
_PROTOCOL = "Protocol"
_LIMITS = "Limits and time-outs"
_WEBSOCKET = "WebSocket"
_TLS = "TLS"
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
        False,
        "The name is a function without arguments that returns the application.",
        group=_APPLICATION,
    )
    interface: Literal["auto", "asgi3", "asgi2", "wsgi"] = setting(
        "auto",
        "What the application speaks; auto looks at how it can be called.",
        group=_APPLICATION,
    )
    lifespan: Literal["auto", "on", "off"] = setting(
        "auto",
        "Whether the application takes part in the lifespan protocol; auto asks it and goes on without.",
        group=_APPLICATION,
        flags=("--asgi-lifespan",),
    )
    root_path: str = setting(
        "",
        "The path under which a proxy in front mounts the application.",
        group=_APPLICATION,
        metavar="PATH",
        flags=("--url-path-prefix",),
    )
    reset_contextvars: bool = setting(
        False,
        "Run every request in an empty context instead of a copy of the worker's.",
        group=_APPLICATION,
    )
    # -- Protocol
    loop: Literal["auto", "asyncio", "uvloop"] = setting(
        "auto",
        "The event loop; auto takes uvloop where it imports.",
        group=_PROTOCOL,
        flags=("--asgi-loop",),
    )
    http: Literal["auto", "httptools", "h11"] = setting(
        "auto", "The HTTP/1.1 parser; auto takes httptools where it imports.", group=_PROTOCOL
    )
    server_header: bool = setting(True, "Send a Server header.", group=_PROTOCOL)
    date_header: bool = setting(True, "Send a Date header.", group=_PROTOCOL)
    header: tuple[str, ...] = setting(
        (),
        "Add this header to every response (repeat for more).",
        group=_PROTOCOL,
        metavar="NAME:VALUE",
        # A comma may stand in a value.
        separator="\n",
        rule=parse_header,
    )
    # -- Limits and time-outs
    limit_concurrency: int | None = setting(
        None,
        "Answer 503 above this many requests and WebSockets in progress in one worker.",
        group=_LIMITS,
        minimum=1,
    )
    limit_connections: int | None = setting(
        None,
        "Answer 503 to whatever is asked on connections above this many in one worker, and close them.",
        group=_LIMITS,
        minimum=1,
    )
    limit_request_line: int = setting(
        8190, "Answer 414 to a longer request line.", group=_LIMITS, unit="bytes", minimum=64
    )
    limit_request_fields: int = setting(
        100, "Answer 431 to more header fields.", group=_LIMITS, minimum=1
    )
    limit_request_field_size: int = setting(
        8190,
        "Answer 431 to a longer header field (name and value).",
        group=_LIMITS,
        flags=("--limit-request-field_size",),
        unit="bytes",
        minimum=64,
    )
    limit_request_head: int = setting(
        64 * 1024,
        "Answer 431 to a longer head of a request (request line and header fields together).",
        group=_LIMITS,
        unit="bytes",
        minimum=256,
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
    timeout_request_body: float | None = setting(
        60.0,
        "Answer 408 if nothing more of a request's body arrives for this long.",
        group=_LIMITS,
        unit="seconds",
        minimum=0.1,
    )
    timeout_request: float | None = setting(
        None,
        "Answer 504 and cancel the application if a request takes longer, streams of any kind included (default: "
        "no limit).",
        group=_LIMITS,
        unit="seconds",
        minimum=0.1,
    )
    timeout_write: float | None = setting(
        60.0,
        "Cut the connection of a client that reads nothing of what was written for this long.",
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
        with_reload=0.5,
    )
    timeout_lifespan_shutdown: float = setting(
        10.0,
        "Let the application's lifespan shutdown take this long.",
        group=_LIMITS,
        unit="seconds",
        minimum=0,
        with_reload=3.0,
    )
    drain_idle_window: float = setting(
        1.0,
        "While draining, keep idle connections open for this long, so that a request already on its way is "
        "answered and not lost.",
        group=_LIMITS,
        unit="seconds",
        minimum=0,
        with_reload=0.0,
    )
    drain_spread: float = setting(
        5.0,
        "While draining, close WebSockets and end streams of events (text/event-stream) one after the other, over "
        "this long at most and a quarter of the time that is left, for their clients connect again at once.",
        group=_LIMITS,
        unit="seconds",
        minimum=0,
    )
    # -- WebSocket
    ws: Literal["auto", "none", "websockets", "websockets-sansio", "wsproto"] = setting(
        "auto",
        "Whether to speak WebSocket; none ignores every upgrade. There is one engine: the names of uvicorn's "
        "mean auto.",
        group=_WEBSOCKET,
    )
    ws_max_size: int = setting(
        16 * 1024 * 1024,
        "Close with 1009 when a message is longer, counted after decompression.",
        group=_WEBSOCKET,
        flags=("--websocket-max-message-size",),
        unit="bytes",
        minimum=1,
    )
    ws_max_queue: int = setting(
        32,
        "Stop reading while this many messages wait for the application.",
        group=_WEBSOCKET,
        minimum=1,
    )
    ws_ping_interval: float | None = setting(
        20.0,
        "Send a ping this often; 0 turns pings off.",
        group=_WEBSOCKET,
        unit="seconds",
        minimum=0,
        flags=("--websocket-ping-interval",),
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
    # -- TLS
    ssl_certfile: str | None = setting(
        None,
        "Speak TLS on every listener, with the certificate in this PEM file (and after it those that lead to its "
        "authority).",
        group=_TLS,
        flags=("--certfile", "--ssl-certificate"),
        metavar="FILE",
    )
    ssl_keyfile: str | None = setting(
        None,
        "The private key of the certificate, in PEM (default: it is in the file of the certificate).",
        group=_TLS,
        flags=("--keyfile",),
        metavar="FILE",
    )
    ssl_keyfile_password: str | None = setting(
        None,
        "The password of the private key. Other users see what stands on a command line, so set the variable.",
        group=_TLS,
        metavar="TEXT",
        secret=True,
        flags=("--keyfile-password",),
    )
    ssl_ca_certs: str | None = setting(
        None,
        "Accept client certificates that these authorities have issued: a PEM file, or a directory as "
        "`openssl rehash` makes it.",
        group=_TLS,
        flags=("--ca-certs", "--ssl-ca"),
        metavar="PATH",
    )
    ssl_cert_reqs: Literal["none", "optional", "required"] | int = setting(
        "none",
        "Whether clients must show a certificate; 0, 1 and 2 mean the same as the words.",
        group=_TLS,
        flags=("--cert-reqs",),
        minimum=0,
        maximum=2,
    )
    ssl_min_version: Literal["1.2", "1.3"] = setting(
        "1.2", "The oldest version of TLS that is spoken.", group=_TLS
    )
    ssl_ciphers: str | None = setting(
        None,
        "The ciphers of TLS 1.2, as `openssl ciphers` reads them (default: those that Python takes for good).",
        group=_TLS,
        flags=("--ciphers",),
        metavar="LIST",
    )
    ssl_context_factory: str | None = setting(
        None,
        "A function module:function(settings, default_factory) that returns the ssl.SSLContext to use, for "
        "instance one that chooses certificates by SNI.",
        group=_TLS,
        metavar="NAME",
        rule=rule_for_function,
    )
    timeout_ssl_handshake: float = setting(
        10.0,
        "Close a connection that has not finished its TLS handshake after this long.",
        group=_TLS,
        unit="seconds",
        minimum=0.1,
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
        rule=_rule_for_peers,
    )
    proxy_protocol: bool = setting(
        False,
        "Every connection begins with a header of the PROXY protocol (version 1 or 2) that says who the client is; "
        "whoever sends none is refused.",
        group=_PROXY,
    )
    proxy_allow_from: str | None = setting(
        None,
        "Peers that may send headers of the PROXY protocol, in the words of forwarded_allow_ips (default: those "
        "peers); all others are refused.",
        group=_PROXY,
        metavar="LIST",
        rule=_rule_for_peers,
    )
    forwarded_host: bool = setting(
        False,
        "Also take Host and server from X-Forwarded-Host and X-Forwarded-Port. Only for proxies that set or "
        "remove these headers: others pass on what the client wrote.",
        group=_PROXY,
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
    log_format: Literal["text", "json"] = setting(
        "text",
        "Write log and access log as lines for people, or as JSON objects, one per line, for machines.",
        group=_LOGGING,
    )
    access_log: bool = setting(True, "Write a line for every response.", group=_LOGGING)
    access_log_format: str | None = setting(
        None,
        "What a line of the access log says, in gunicorn's atoms, such as '%(h)s \"%(r)s\" %(s)s %({user-agent}i)s'.",
        group=_LOGGING,
        flags=("--access-logformat",),
        metavar="FORMAT",
        rule=_rule_for_access_format,
    )
    request_id_header: str | None = setting(
        None,
        "Give every request an id: the one in this header if the peer is trusted, else a new one. It stands in this "
        "header for the application and for the client, and in the logs.",
        group=_LOGGING,
        metavar="NAME",
        rule=_rule_for_header_name,
    )
    loop_lag_warning: float = setting(
        1.0,
        "Log the stack of what blocks the event loop for this long; 0 never does.",
        group=_LOGGING,
        unit="seconds",
        minimum=0,
    )
    use_colors: bool | None = setting(
        None, "Colour the log (default: when it goes to a terminal).", group=_LOGGING
    )

    def __post_init__(self) -> None:
        """Hold every value to its declaration, and the values to each other.

        Raises:
            BadSetting: a value is not allowed.
            ContradictorySettings: two values cannot both be meant.
            MissingSetting: a value means nothing without another.
        """
        for name, declaration in declarations(type(self)).items():
            value = getattr(self, name)
            checked = check(declaration, value)
            if checked is not value:
                object.__setattr__(self, name, checked)
        if self.log_format == "json" and self.log_config is not None:
            raise ContradictorySettings(
                ("log_format", "log_config"), "the file says how records are formatted"
            )
        if self.interface == "wsgi" and self.lifespan == "on":
            raise ContradictorySettings(
                ("interface", "lifespan"), "a WSGI application has no lifespan"
            )
        if self.ssl_keyfile is not None and not self.uses_tls:
            raise MissingSetting("ssl_keyfile", "ssl_certfile", "a key alone does not make TLS")
        if self.ssl_cert_reqs not in ("none", 0) and self.ssl_ca_certs is None:
            # Those of the system would let everybody in who can buy a certificate.
            raise MissingSetting(
                "ssl_cert_reqs", "ssl_ca_certs", "somebody must say whose certificates are good"
            )

    @property
    def uses_tls(self) -> bool:
        """Whether connections begin with a TLS handshake: all of them, on all listeners."""
        return self.ssl_certfile is not None or self.ssl_context_factory is not None
