"""The head of a request: its rules, and what the application is told about it.

The rules for what a head means stand here once, for every parser. They are those of RFC 9110
and RFC 9112, and where these allow two readings the request is refused: a proxy in front that
reads it the other way would see other requests than we do (RFC 9112, section 11.2).
"""

import re
from typing import Any
from urllib.parse import unquote

from asgictl_worker import asgi
from asgictl_worker.asgi import SPEC_VERSION, VERSION

METHODS = (
    "ACL BIND CHECKOUT COPY DELETE GET HEAD LINK LOCK M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL "
    "MOVE NOTIFY OPTIONS PATCH POST PROPFIND PROPPATCH PURGE PUT REBIND REPORT SEARCH SUBSCRIBE "
    "TRACE UNBIND UNLINK UNLOCK UNSUBSCRIBE"
)
"""The methods that both parsers know, separated by spaces. CONNECT is for proxies, which we are not."""

MAX_LENGTH_DIGITS = 18
"""Of a Content-Length; as many as fit the 64 bits that others keep it in."""

_SPECIAL = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"forwarded",
        b"host",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
    }
)

# RFC 9110, section 4.1; RFC 3986, section 3.2. Deleting plain characters leaves nothing of
# most hosts, faster than the regular expression that the others have to pass.
_PLAIN_HOST_CHARACTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-."
_HOST = re.compile(
    rb"(?:\[[0-9A-Za-z:.%_~!$&'()*+,;=-]+\]|[0-9A-Za-z._~%!$&'()*+,;=-]*)(?::[0-9]*)?"
)
_ABSOLUTE_FORM = re.compile(rb"(?i:https?)://([^/?]+)([^?]*)((?:\?.*)?)")

# hot: to copy a dictionary takes half the time of a literal
_VERSIONS = {"version": VERSION, "spec_version": SPEC_VERSION}


class BadRequest(Exception):
    """A request that is answered with an error and the end of the connection.

    Attributes:
        status: the HTTP status of the answer.
        reason: what is wrong, in words that can be shown to the client.
        is_for_head: it was a HEAD, and its answer has no content (RFC 9110, section 9.3.2).
    """

    is_for_head = False

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(f"{status}: {reason}")


class Request:
    """A head that follows the rules.

    Args:
        method: one of ``METHODS``.
        target: visible ASCII characters, as sent.
        http_version: ``1.0`` or ``1.1``.
        headers: names in lower case, values without surrounding white space, in the order
            received. The list belongs to the request from here on; applications get copies.

    Attributes:
        accepts_trailers: the client would look at trailers behind a response.
        content_length: the declared length of the body in bytes, or None.
        chunked: the body comes in chunks.
        keep_alive: the client would go on with this connection after the response.
        expect_continue: the client waits for ``100 Continue`` before it sends the body.
        is_repeatable: who sends the same head again asks for the same again.
        is_usual: neither HTTP/1.0 nor HEAD.
        forwarded: a proxy left headers that say who the client is.
        has_body: a body follows that is not empty, or may be.
        upgrade: the protocol that the client would rather speak, in lower case, or nothing.

    Raises:
        BadRequest: a rule is broken.
    """

    # hot: CPython looks up an attribute that shadows one of the class in two dictionaries each
    # time, so all are slots, filled at once.
    __slots__ = (
        "_template",
        "accepts_trailers",
        "chunked",
        "content_length",
        "expect_continue",
        "forwarded",
        "has_body",
        "headers",
        "http_version",
        "is_repeatable",
        "is_usual",
        "keep_alive",
        "method",
        "settled",
        "target",
        "upgrade",
    )

    def __init__(
        self, method: str, target: bytes, http_version: str, headers: asgi.Headers
    ) -> None:
        self.method = method
        self.target = target
        self.http_version = http_version
        self.headers = headers
        self.keep_alive = http_version != "1.0"
        self.is_usual = self.keep_alive and method != "HEAD"
        self.content_length: int | None = None
        self.chunked = self.has_body = self.expect_continue = False
        self.forwarded = self.accepts_trailers = self.is_repeatable = False
        self.upgrade = b""
        self.settled: dict[str, Any] | None = None
        host: bytes | None = None
        for name, value in headers:
            if name not in _SPECIAL:  # hot: one look-up for most headers
                continue
            if name == b"host":
                if host is not None:
                    raise BadRequest(400, "more than one Host header")
                host = value
            else:
                self._classify(name, value)
        if host is None:
            if http_version == "1.1":
                # RFC 9112, section 3.2
                raise BadRequest(400, "no Host header")
        elif host.translate(None, _PLAIN_HOST_CHARACTERS) and not _HOST.fullmatch(host):
            raise BadRequest(400, "the Host header is not a host")
        if self.upgrade:
            self._settle_upgrade()
        if target[:1] != b"/":
            self._settle_target()
        elif target.find(b"#") >= 0:  # hot: "in" takes ten times as long for bytes
            raise BadRequest(400, "the target has a fragment")
        self._template = _template(method, self.target, http_version)

    def _classify(self, name: bytes, value: bytes) -> None:
        """Take in one of the headers that steer the connection."""
        if name == b"connection":
            for option in _elements(value):
                if option == b"close":
                    self.keep_alive = False
                elif option == b"keep-alive" and self.http_version == "1.0":
                    self.keep_alive = True
        elif name == b"content-length":
            self._declare_length(value)
        elif name == b"transfer-encoding":
            self._declare_coding(value)
        elif name == b"expect":
            # RFC 9110, section 10.1.1: an expectation of an HTTP/1.0 client is ignored.
            if value.lower() == b"100-continue" and self.http_version == "1.1":
                self.expect_continue = True
        elif name == b"upgrade":
            self.upgrade = value.lower()
        elif name == b"te":
            # RFC 9110, section 10.1.4; HTTP/1.0 has no chunks, and so no trailers.
            if b"trailers" in _elements(value) and self.http_version == "1.1":
                self.accepts_trailers = True
        else:
            self.forwarded = True

    def _declare_length(self, value: bytes) -> None:
        if self.content_length is not None:
            raise BadRequest(400, "more than one Content-Length header")
        if self.chunked:
            raise BadRequest(400, "both Content-Length and Transfer-Encoding")
        # RFC 9110, section 8.6: digits only; int() alone would take " +1_0 ".
        if not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
            raise BadRequest(400, "the Content-Length header is not a length")
        self.content_length = int(value)
        self.has_body = self.content_length > 0

    def _declare_coding(self, value: bytes) -> None:
        if self.chunked:
            raise BadRequest(400, "more than one Transfer-Encoding header")
        if self.content_length is not None:
            raise BadRequest(400, "both Content-Length and Transfer-Encoding")
        if self.http_version == "1.0":
            # RFC 9112, section 6.1: the framing is faulty.
            raise BadRequest(400, "Transfer-Encoding in an HTTP/1.0 request")
        if value.lower() != b"chunked":
            codings = _elements(value)
            if codings[-1:] != [b"chunked"] or codings.count(b"chunked") > 1:
                raise BadRequest(400, "the last transfer coding is not chunked")
            raise BadRequest(501, "a transfer coding other than chunked")
        self.chunked = self.has_body = True

    @property
    def is_plain(self) -> bool:
        """Whether the headers ask no more of the connection than to read a body.

        So do those of most requests.
        """
        return self.keep_alive and not (
            self.chunked
            or self.forwarded
            or self.accepts_trailers
            or self.expect_continue
            or self.upgrade
            or self.http_version == "1.0"
        )

    def _settle_upgrade(self) -> None:
        """Keep ``upgrade`` only if it counts (RFC 9110, section 7.8)."""
        asked = any(
            name == b"connection" and b"upgrade" in _elements(value) for name, value in self.headers
        )
        # A body would stand between the head and the new protocol; the upgrade is optional
        # for us, so such a request is served as what it is.
        if not asked or self.http_version == "1.0" or self.has_body:
            self.upgrade = b""

    def _settle_target(self) -> None:
        """Reduce a target that is not a path to one (RFC 9112, section 3.2)."""
        target = self.target
        if target == b"*" and self.method == "OPTIONS":
            return
        match = _ABSOLUTE_FORM.fullmatch(target)
        if match is None or b"#" in target:
            raise BadRequest(400, "the target is neither a path nor a URL")
        authority, path, query = match.groups()
        if authority.startswith(b":") or not _HOST.fullmatch(authority):
            raise BadRequest(400, "the target has no valid host")
        # Section 3.2.2: the Host header gives way to the host of the target.
        self.headers[:] = [item for item in self.headers if item[0] != b"host"]
        self.headers.insert(0, (b"host", authority))
        self.target = (path or b"/") + query

    def scope(
        self,
        kind: str,
        client: tuple[str, int] | None,
        server: tuple[str, int | None] | None,
        scheme: str,
        root_path: str = "",
        state: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the ASGI scope; nothing in it that can be changed is shared.

        Args:
            kind: ``http`` or ``websocket``.
            client: address and port; None for a peer on a UNIX socket.
            server: address and port, or the path of a UNIX socket and None.
            scheme: ``http`` or ``https``, ``ws`` or ``wss``.
            root_path: the path under which a proxy mounts the application.
            state: what the lifespan startup left; copied.
        """
        scope = self._template.copy()  # hot: a third of the time that a literal takes
        scope["asgi"] = _VERSIONS.copy()
        scope["client"] = client
        scope["server"] = server
        scope["scheme"] = scheme
        scope["headers"] = self.headers.copy()
        if root_path:
            # The path includes the root path (ASGI, HTTP connection scope).
            scope["root_path"] = root_path
            scope["path"] = root_path + scope["path"]
            scope["raw_path"] = root_path.encode() + scope["raw_path"]
        if kind == "http":
            extensions: dict[str, Any] = {
                "http.response.pathsend": {},
                "http.response.zerocopysend": {},
            }
            if self.http_version == "1.1":
                extensions["http.response.early_hint"] = {}
                if self.accepts_trailers:
                    extensions["http.response.trailers"] = {}
            scope["extensions"] = extensions
        else:
            scope["type"] = kind
            del scope["method"]
            scope["subprotocols"] = [
                item.decode("ascii", "replace")
                for name, value in self.headers
                if name == b"sec-websocket-protocol"
                for item in _elements(value, lower=False)
            ]
            scope["extensions"] = {"websocket.http.response": {}}
        if state is not None:
            scope["state"] = state.copy()
        return scope

    def settle(
        self,
        client: tuple[str, int] | None,
        server: tuple[str, int | None] | None,
        scheme: str,
        root_path: str,
    ) -> None:
        """Prepare for ``repeated_scope()``; the arguments are those of ``scope()``."""
        self.settled = self.scope("http", client, server, scheme, root_path)
        for changeable in ("asgi", "headers", "extensions"):
            self.settled[changeable] = None

    def repeated_scope(self, state: dict[str, Any] | None) -> dict[str, Any]:
        """Return what ``scope()`` would, for a plain request that its connection repeats."""
        assert self.settled is not None
        scope = self.settled.copy()
        scope["asgi"] = _VERSIONS.copy()
        scope["headers"] = self.headers.copy()
        scope["extensions"] = {
            "http.response.pathsend": {},
            "http.response.zerocopysend": {},
            "http.response.early_hint": {},
        }
        if state is not None:
            scope["state"] = state.copy()
        return scope


def familiar_request(line: Request, fields: Request) -> Request:
    """Return a request whose line and whose header fields were seen, and checked, before.

    Args:
        line: a request that the line was seen in.
        fields: a plain request that the fields were seen in.
    """
    request = Request.__new__(Request)
    request.method = line.method
    request.target = line.target
    request.http_version = "1.1"
    request._template = line._template
    request.is_usual = line.is_usual
    request.headers = fields.headers
    request.content_length = fields.content_length
    request.has_body = fields.has_body
    request.keep_alive = True
    request.chunked = request.expect_continue = False
    request.forwarded = request.accepts_trailers = request.is_repeatable = False
    request.upgrade = b""
    request.settled = None
    return request


def _template(method: str, target: bytes, http_version: str) -> dict[str, Any]:
    """Return the scope of a request as far as its line says; the rest is still to be set."""
    raw_path, _, query = target.partition(b"?")
    path = raw_path.decode("ascii")
    return {
        "type": "http",
        "asgi": None,
        "http_version": http_version,
        "server": None,
        "client": None,
        "scheme": "",
        "method": method,
        "root_path": "",
        "path": unquote(path) if "%" in path else path,
        "raw_path": raw_path,
        "query_string": query,
        "headers": None,
        "extensions": None,
    }


def _elements(value: bytes, *, lower: bool = True) -> list[bytes]:
    """Return the elements of a comma-separated list (RFC 9110, section 5.6.1)."""
    if lower:
        value = value.lower()
    return [item for item in (item.strip(b" \t") for item in value.split(b",")) if item]
