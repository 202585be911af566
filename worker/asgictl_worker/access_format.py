"""The format of access lines: gunicorn's atoms, compiled once into a function.

A format is text with atoms such as ``%(h)s`` and ``%({user-agent}i)s``; ``%%`` is a percent
sign. ``compile_format()`` makes one function of it that formats a whole batch of responses,
which is a good deal faster than to look up the atoms for each. What a client has sent is
escaped, so that it can neither end the line nor the quotes that the format puts around it.

Nothing here does I/O.
"""

import base64
import binascii
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

Headers = Sequence[tuple[bytes, bytes]]


class Details(NamedTuple):
    """What only some formats want to know of an exchange; never changed after it was made."""

    request_headers: Headers
    response_headers: Headers
    request_id: str


NO_DETAILS = Details((), (), "")

Entry = tuple[str, str, bytes, str, int, int, float, Details]
"""One response: client, method, target, HTTP version, status, size, seconds, details."""


class Format(NamedTuple):
    """A compiled format.

    Attributes:
        lines: returns the lines for some entries; the second argument is their time, as
            ``%(t)s`` shows it.
        needs_details: the details of the entries are looked at.
    """

    lines: Callable[[Iterable[Entry], str], list[str]]
    needs_details: bool


DEFAULT = '%(client)s "%(r)s" %(s)s %(B)s %(D)sus'

_ENTRY = "client, method, target, http_version, status, size, seconds, details"
_ATOMS = {
    "h": "host(client)",
    "l": "'-'",
    "u": "user(details.request_headers)",
    "t": "when",
    "r": "f'{method} {quote(target)} HTTP/{http_version}'",
    "m": "method",
    "U": "quote(target.partition(b'?')[0])",
    "q": "quote(target.partition(b'?')[2])",
    "H": "f'HTTP/{http_version}'",
    "s": "status",
    "B": "size",
    "b": "size or '-'",
    "f": "header(details.request_headers, b'referer')",
    "a": "header(details.request_headers, b'user-agent')",
    "T": "int(seconds)",
    "D": "int(seconds * 1e6)",
    "M": "int(seconds * 1e3)",
    "L": "f'{seconds:.6f}'",
    "p": "process",
    "client": "client",
    "request_id": "details.request_id or '-'",
}
"""Expressions of Python by name; they see the parts of an entry and the functions below."""

_VARIABLES = {
    "REMOTE_ADDR": _ATOMS["h"],
    "REMOTE_PORT": "client.rpartition(':')[2] if ':' in client else '-'",
    "REQUEST_METHOD": _ATOMS["m"],
    "RAW_URI": "quote(target)",
    "PATH_INFO": _ATOMS["U"],
    "QUERY_STRING": _ATOMS["q"],
    "SERVER_PROTOCOL": _ATOMS["H"],
}

_ATOM = re.compile(r"%(?:%|\(([^()]*)\)([a-zA-Z]?))?")
_NAMED = re.compile(r"\{([^{}]+)\}([ioe])")
_ESCAPED = re.compile(r"[^ !#-\[\]-~]")
# Deleting these leaves nothing of a value that can stand as it is.
_PLAIN = bytes(code for code in range(0x20, 0x7F) if code not in b'"\\')


def compile_format(text: str, environment: Mapping[str, str] | None = None, pid: int = 0) -> Format:
    """Return a format, ready to be used.

    Args:
        text: see the module; ``%({name}e)s`` are the request's variables as WSGI names them,
            or else those of the process.
        environment: those of the process.
        pid: what ``%(p)s`` shows.

    Raises:
        ValueError: something in it is no atom; the message completes "it must be ...".
    """
    if not text.isprintable():
        raise ValueError("one line without control characters")
    names: dict[str, Any] = {
        "header": header,
        "host": host,
        "process": f"<{pid}>",
        "quote": quote,
        "user": user,
    }
    template, expressions, position = [], [], 0
    for found in _ATOM.finditer(text):
        template.append(text[position : found.start()])
        position = found.end()
        if found[0] == "%%":
            template.append("%%")
            continue
        template.append("%s")
        expressions.append(_expression(found, names, environment or {}))
    template.append(text[position:])
    names["template"] = "".join(template)
    values = "".join(f"{expression}, " for expression in expressions)
    # Of the operator's text, nothing is in this source: names of headers are constants.
    source = f"lambda entries, when: [template % ({values}) for {_ENTRY} in entries]"
    return Format(eval(source, names), "details." in source)


def _expression(found: re.Match[str], names: dict[str, Any], environment: Mapping[str, str]) -> str:
    """Return the expression for one atom; what it needs is added to ``names``."""
    name = found[1]
    if name is None or found[2] not in ("s", "d"):
        near = f"%({name})s" if name else "%%"
        raise ValueError(f"made of atoms such as %(h)s, where {found[0]!r} is none (write {near}?)")
    if name in _ATOMS:
        return _ATOMS[name]
    named = _NAMED.fullmatch(name)
    if named is None:
        raise ValueError(f"made of known atoms, where %({name})s is none{_nearest(name)}")
    text, kind = named.groups()
    constant = f"constant{len(names)}"
    if kind == "e":
        variable = text.upper()
        if variable in _VARIABLES:
            return _VARIABLES[variable]
        if not variable.startswith("HTTP_"):
            names[constant] = quote(environment.get(text, "-").encode("utf-8", "surrogateescape"))
            return constant
        text, kind = variable.removeprefix("HTTP_").replace("_", "-"), "i"
    names[constant] = text.lower().encode()
    side = "request" if kind == "i" else "response"
    return f"header(details.{side}_headers, {constant})"


def _nearest(name: str) -> str:
    if name.startswith("{") and name.endswith("}"):
        return f"; did you mean %({name}i)s, for a header of the request?"
    near = [atom for atom in _ATOMS if atom.lower() == name.lower()]
    near += difflib.get_close_matches(name, _ATOMS, n=1)
    if near:
        return f"; did you mean %({near[0]})s?"
    return f"; there are {', '.join(_ATOMS)}, {{header}}i, {{header}}o and {{variable}}e"


# -- What atoms call


def quote(value: bytes) -> str:
    """Return a text in which quotes, backslashes and all but visible ASCII are escaped."""
    text = value.decode("latin-1")
    if not value.translate(None, _PLAIN):  # hot: nearly always; one pass in C
        return text
    return _ESCAPED.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def header(headers: Headers, wanted: bytes) -> str:
    """Return the value of a header, ``-`` if there is none."""
    for name, value in headers:
        if name == wanted or name.lower() == wanted:
            return quote(value)
    return "-"


@lru_cache(1024)
def host(client: str) -> str:
    """Return the address of ``address:port``, ``-`` for a peer on a UNIX socket."""
    return client.rpartition(":")[0] or "-"


def user(headers: Headers) -> str:
    """Return the name that a client has given by Basic authentication (RFC 7617), or ``-``."""
    for name, value in headers:
        if name == b"authorization" and value[:6].lower() == b"basic ":
            try:
                decoded = base64.b64decode(value[6:].strip(), validate=True)
            except (binascii.Error, ValueError):
                return "-"
            return quote(decoded.partition(b":")[0]).replace(" ", "\\x20") or "-"
    return "-"
