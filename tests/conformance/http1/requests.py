"""Heads of requests: their lines, their fields, and what the application is told of them."""

from tests.conformance.http1.case import (
    DROPPED,
    REFUSALS,
    Answer,
    Bytewise,
    Case,
    Outcome,
    Pause,
    Then,
    answered,
    must,
    refused,
    several,
    should,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

# Answers to what must not be understood in any other way; whether the connection goes on is
# left open where the source does not say.
BAD = refused(400, then=Then.EITHER)
REFUSED = refused(then=Then.EITHER)
OWN = refused(400)


def line(request_line: bytes) -> bytes:
    """Return a request with this line, in which all else is right."""
    return request_line + b"\r\nHost: a\r\n\r\n"


def fields(*lines: bytes) -> bytes:
    """Return a request with these lines behind the Host."""
    return b"".join(
        (b"GET / HTTP/1.1\r\nHost: a\r\n", *(each + b"\r\n" for each in lines), b"\r\n")
    )


def hosts(*lines: bytes, version: bytes = b"1.1") -> bytes:
    """Return a request with these lines only."""
    return b"GET / HTTP/%b\r\n%b\r\n" % (version, b"".join(each + b"\r\n" for each in lines))


def saw(**what: object) -> Outcome:
    """Return the outcome in which the application was told this."""
    return answered(saw=what)


REQUEST_LINES = [
    must("line.get", "RFC 9112, section 3", GET, saw(method="GET", path="/", body="")),
    *(
        must(
            f"line.method-{method.lower()}",
            "RFC 9110, section 9.1",
            line(b"%b /m HTTP/1.1" % method.encode()),
            saw(method=method, path="/m"),
            answered(status=(405, 501), then=Then.EITHER),
        )
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH")
    ),
    should(
        "line.empty-line-first",
        "RFC 9112, section 2.2: at least one empty line before the request is ignored",
        b"\r\n" + GET,
        saw(method="GET"),
    ),
    should(
        "line.method-unknown",
        "RFC 9110, section 9.1: 501, unless the application takes it",
        line(b"BREW / HTTP/1.1"),
        saw(method="BREW"),
        refused(501, 405, 400, then=Then.EITHER),
    ),
    should(
        "line.method-endless",
        "RFC 9112, section 3: a method longer than any that is known gets 501",
        line(b"A" * 2000 + b" / HTTP/1.1"),
        saw(method="A" * 2000),
        REFUSED,
    ),
    *(
        should(
            f"line.method-with-{name}",
            "RFC 9110, section 9.1: a method is a token",
            line(method + b" / HTTP/1.1"),
            REFUSED,
            own=OWN,
        )
        for name, method in {
            "parenthesis": b"G(T",
            "colon": b"GET:",
            "nul": b"G\x00T",
            "comma": b"GET,POST",
            "high-byte": b"G\xe9T",
            "quote": b'"GET"',
        }.items()
    ),
    *(
        must(
            f"line.space-{name}",
            "RFC 9112, section 3: parsed at white space, or refused",
            line(text),
            saw(method="GET", path="/"),
            REFUSED,
            own=OWN,
        )
        for name, text in {
            "doubled": b"GET  / HTTP/1.1",
            "doubled-before-version": b"GET /  HTTP/1.1",
            "at-end": b"GET / HTTP/1.1 ",
            "is-tab": b"GET\t/\tHTTP/1.1",
            "is-form-feed": b"GET\x0c/\x0cHTTP/1.1",
            "first": b" GET / HTTP/1.1",
        }.items()
    ),
    *(
        should(
            f"line.{name}",
            "RFC 9112, section 3: an invalid request line is answered with 400",
            line(text),
            refused(400, 505, then=Then.EITHER),
            own=OWN,
        )
        for name, text in {
            "no-version": b"GET /",
            "no-target": b"GET HTTP/1.1",
            "four-words": b"GET / x HTTP/1.1",
            "space-in-target": b"GET /a b HTTP/1.1",
            "nul-in-target": b"GET /\x00 HTTP/1.1",
            "control-in-target": b"GET /\x01 HTTP/1.1",
            "delete-in-target": b"GET /\x7f HTTP/1.1",
            "tab-in-target": b"GET /\tx HTTP/1.1",
            "high-bytes-in-target": b"GET /\xc3\xa4 HTTP/1.1",
            "carriage-return-in-target": b"GET /\rx HTTP/1.1",
            "fragment": b"GET /a#b HTTP/1.1",
            "target-without-slash": b"GET a HTTP/1.1",
            "authority-with-get": b"GET a:80 HTTP/1.1",
            "asterisk-with-get": b"GET * HTTP/1.1",
            "backslash-first": b"GET \\a HTTP/1.1",
        }.items()
    ),
    must(
        "line.asterisk-with-options",
        "RFC 9112, section 3.2.4",
        line(b"OPTIONS * HTTP/1.1"),
        answered(status=(200, 204, 404, 405, 501), then=Then.EITHER),
    ),
    must(
        "line.url",
        "RFC 9112, section 3.2.2: a server takes the absolute form",
        line(b"GET http://a/x?y HTTP/1.1"),
        answered(),
    ),
    should(
        "line.url-is-reduced",
        "RFC 9110, section 7.1: the path of the target URI",
        line(b"GET http://a/x?y HTTP/1.1"),
        saw(path="/x", query="y"),
    ),
    should(
        "line.url-without-path",
        "RFC 9112, section 3.2.1: an empty path is sent as /",
        line(b"GET http://a HTTP/1.1"),
        saw(path="/", query=""),
    ),
    should(
        "line.url-with-query-only",
        "RFC 9110, section 4.2.3: an empty path is /",
        line(b"GET http://a?y=1 HTTP/1.1"),
        saw(path="/", query="y=1"),
    ),
    should(
        "line.url-scheme-in-capitals",
        "RFC 9110, section 4.2.3: the scheme is not case-sensitive",
        line(b"GET HTTP://a/x HTTP/1.1"),
        saw(path="/x"),
    ),
    must(
        "line.url-outdoes-host",
        "RFC 9112, section 3.2.2: the Host header is ignored beside an absolute form",
        line(b"GET http://b/x HTTP/1.1"),
        saw(host=["b"]),
        BAD,
    ),
    must(
        "line.url-without-host",
        "RFC 9110, section 4.2.1: an empty host is rejected as invalid",
        line(b"GET http:///x HTTP/1.1"),
        BAD,
    ),
    must(
        "line.url-with-user",
        "RFC 9110, section 4.2.4: a user in a URL is an error, or left out",
        line(b"GET http://u:p@a/x HTTP/1.1"),
        BAD,
        saw(path="/x", host=["a"]),
        own=OWN,
    ),
    should(
        "line.url-of-another-scheme",
        "RFC 9110, section 7.4: requests for what the server is not responsible for",
        line(b"GET ftp://a/x HTTP/1.1"),
        refused(400, 403, 404, 421, then=Then.EITHER),
    ),
    *(
        must(
            f"line.{name}",
            "ASGI, HTTP connection scope",
            line(b"GET " + target + b" HTTP/1.1"),
            saw(**told),
        )
        for name, target, told in [
            ("escaped-path", b"/a%20b%2Fc", {"path": "/a b/c", "raw_path": "/a%20b%2Fc"}),
            ("escaped-utf8", b"/%C3%A4", {"path": "/ä"}),
            ("escaped-query", b"/?x=%20&y", {"path": "/", "query": "x=%20&y"}),
            ("two-question-marks", b"/a?b?c=/?", {"path": "/a", "query": "b?c=/?"}),
            ("two-slashes", b"//a/b", {"path": "//a/b"}),
            ("colon-in-path", b"/a:b@c", {"path": "/a:b@c"}),
            ("escaped-badly", b"/%zz", {"path": "/%zz"}),
            ("long-query", b"/?" + b"q" * 4000, {"query": "q" * 4000}),
        ]
    ),
    must(
        "line.longer-than-any",
        "RFC 9112, section 3: a target that is too long gets 414",
        line(b"GET /" + b"x" * 300_000 + b" HTTP/1.1"),
        answered(),
        refused(414, then=Then.EITHER),
        own=refused(414),
    ),
    must(
        "line.version-1-0",
        "RFC 9110, section 2.5",
        b"GET / HTTP/1.0\r\n\r\n",
        answered(then=Then.CLOSED),
    ),
    should(
        "line.version-1-2",
        "RFC 9110, section 2.5: a higher minor version is served as the highest known",
        line(b"GET / HTTP/1.2"),
        saw(http_version="1.1"),
    ),
    should(
        "line.version-of-the-answer",
        "RFC 9110, section 2.5: answers carry the server's version, whatever the client's",
        b"GET / HTTP/1.0\r\n\r\n",
        answered(version="1.1", then=Then.CLOSED),
    ),
    *(
        should(
            f"line.version-{name}",
            "RFC 9112, section 2.3",
            line(b"GET / " + version),
            refused(400, 505, then=Then.EITHER),
        )
        for name, version in {
            "in-small-letters": b"http/1.1",
            "with-two-digits": b"HTTP/1.10",
            "without-minor": b"HTTP/1",
            "of-another-protocol": b"HTCPCP/1.1",
            "with-letters": b"HTTP/1.1x",
            "with-a-comma": b"HTTP/1,1",
            "with-a-sign": b"HTTP/+1.1",
            "3-0": b"HTTP/3.0",
            "0-9": b"HTTP/0.9",
        }.items()
    ),
    should(
        "line.handshake-of-tls",
        "RFC 9112, section 2.2: what is no request is answered with 400",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x55" * 60,
        REFUSED,
        DROPPED,
    ),
    must("line.bytewise", "RFC 9112, section 2.2", [Bytewise(GET)], saw(method="GET")),
    must(
        "line.cut-in-line-ends",
        "RFC 9112, section 2.2",
        [b"GET / HTTP/1.1\r", Pause(), b"\nHost: a\r\n\r", Pause(), b"\n"],
        saw(method="GET", host=["a"]),
    ),
]

HOSTS = [
    must("host.missing", "RFC 9112, section 3.2", hosts(b"X: y"), BAD),
    must(
        "host.empty",
        "RFC 9112, section 3.2: the authority may be empty",
        hosts(b"Host:"),
        saw(host=[""]),
    ),
    must("host.twice", "RFC 9112, section 3.2", hosts(b"Host: a", b"Host: b"), BAD),
    must("host.twice-the-same", "RFC 9112, section 3.2", hosts(b"Host: a", b"Host: a"), BAD),
    must(
        "host.twice-around-others",
        "RFC 9112, section 3.2",
        hosts(b"Host: a", b"X: y", b"HOST: b"),
        BAD,
    ),
    must(
        "host.twice-in-1-0",
        "RFC 9112, section 3.2",
        hosts(b"Host: a", b"Host: b", version=b"1.0"),
        BAD,
    ),
    must(
        "host.missing-in-1-0",
        "RFC 9112, section 3.2: asked for in HTTP/1.1 only",
        hosts(version=b"1.0"),
        answered(then=Then.CLOSED),
    ),
    must(
        "host.missing-beside-url",
        "RFC 9112, section 3.2: also with the absolute form",
        b"GET http://a/ HTTP/1.1\r\n\r\n",
        BAD,
    ),
    *(
        must(
            f"host.with-{name}",
            "RFC 9112, section 3.2: an invalid value",
            hosts(b"Host: " + value),
            BAD,
        )
        for name, value in {
            "space": b"a b",
            "path": b"a/b",
            "user": b"u@a",
            "two-ports": b"a:1:2",
            "port-of-letters": b"a:http",
            "open-bracket": b"[::1",
            "nul": b"a\x00b",
            "high-byte": b"\xe4",
        }.items()
    ),
    *(
        must(
            f"host.is-{name}",
            "RFC 9110, section 7.2",
            hosts(b"Host: " + value),
            saw(host=[value.decode()]),
        )
        for name, value in {
            "name-and-empty-port": b"a:",
            "name-and-port": b"a.example:8000",
            "ipv4": b"192.0.2.1",
            "ipv6": b"[2001:db8::1]:8000",
            "capitals": b"A.Example",
            "underscore": b"my_host",
        }.items()
    ),
]

FIELDS = [
    must(
        "field.space-before-colon",
        "RFC 9112, section 5.1: answered with 400",
        fields(b"X : y"),
        BAD,
    ),
    must(
        "field.tab-before-colon", "RFC 9112, section 5.1: answered with 400", fields(b"X\t: y"), BAD
    ),
    *(
        must(
            f"field.{name}",
            "RFC 9112, section 5.2: refused with 400, or the fold becomes spaces",
            fields(*lines),
            BAD,
            *(saw(x=["a" + " " * spaces + "b"]) for spaces in range(1, 5)),
            own=OWN,
        )
        for name, lines in {
            "folded-with-space": (b"X: a", b" b"),
            "folded-with-tab": (b"X: a", b"\tb"),
            "folded-with-more": (b"X: a", b"   b"),
        }.items()
    ),
    must(
        "field.folded-before-any",
        "RFC 9112, section 2.2: refused, or dropped",
        b"GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n",
        BAD,
        saw(host=["a"], x=[]),
        own=OWN,
    ),
    must(
        "field.nul-in-value",
        "RFC 9110, section 5.5: refused, or replaced by a space",
        fields(b"X: a\x00b"),
        REFUSED,
        saw(x=["a b"]),
        own=OWN,
    ),
    must(
        "field.carriage-return-in-value",
        "RFC 9112, section 2.2: invalid, or replaced by a space",
        fields(b"X: a\rb: c"),
        REFUSED,
        saw(x=["a b: c"]),
        own=OWN,
    ),
    must(
        "field.carriage-return-in-line-end",
        "RFC 9112, section 2.2: invalid, or replaced by a space",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\r\n\r\n",
        REFUSED,
        saw(x=["a"]),
        own=OWN,
    ),
    must(
        "field.line-feed-in-value",
        "RFC 9112, section 2.2: a line end, or invalid",
        fields(b"X: a\nX: b"),
        REFUSED,
        saw(x=["a", "b"]),
        own=OWN,
    ),
    must(
        "field.line-feeds-only",
        "RFC 9112, section 2.2: line ends, or invalid",
        b"GET / HTTP/1.1\nHost: a\nX: a\n\n",
        REFUSED,
        saw(x=["a"]),
        DROPPED,
        own=refused(400, 408),
    ),
    must(
        "field.line-ends-turned-round",
        "RFC 9112, section 2.2",
        b"GET / HTTP/1.1\n\rHost: a\n\r\n\r",
        REFUSED,
        DROPPED,
        own=refused(400, 408),
    ),
    *(
        should(
            f"field.{name}-in-value",
            "RFC 9110, section 5.5: invalid, or kept where that is safe",
            fields(b"X: a" + bytes([code]) + b"b"),
            REFUSED,
            saw(x=["a" + chr(code) + "b"]),
            saw(x=["a b"]),
            own=OWN,
        )
        for name, code in {"bell": 7, "escape": 27, "delete": 127, "vertical-tab": 11}.items()
    ),
    *(
        should(
            f"field.name-{name}",
            "RFC 9112, section 2.2: what does not match the grammar gets 400",
            fields(text),
            REFUSED,
            own=OWN,
        )
        for name, text in {
            "with-space": b"X Y: a",
            "with-bracket": b"X[Y]: a",
            "with-nul": b"X\x00: a",
            "with-high-byte": b"X\xe4: a",
            "with-slash": b"X/Y: a",
            "in-quotes": b'"X": a',
            "with-escape": b"X\x1b: a",
            "missing": b": a",
            "and-no-colon": b"X",
            "and-equal-sign": b"X= a",
        }.items()
    ),
    must(
        "field.name-in-small-letters",
        "ASGI, HTTP connection scope",
        fields(b"X: y"),
        saw(names=["host", "x"]),
    ),
    must(
        "field.order",
        "ASGI, HTTP connection scope",
        fields(b"X: 2", b"Y: 0", b"X: 1"),
        saw(x=["2", "1"]),
    ),
    must(
        "field.white-space-around-value",
        "RFC 9110, section 5.5: not part of the value",
        fields(b"X: \t y z\t "),
        saw(x=["y z"]),
    ),
    must("field.no-white-space", "RFC 9112, section 5", fields(b"X:y"), saw(x=["y"])),
    must("field.empty-value", "RFC 9112, section 5", fields(b"X:"), saw(x=[""])),
    must("field.value-of-spaces", "RFC 9112, section 5", fields(b"X:   "), saw(x=[""])),
    must("field.tab-in-value", "RFC 9110, section 5.5", fields(b"X: y\tz"), saw(x=["y\tz"])),
    must(
        "field.obsolete-text",
        "RFC 9110, section 5.5: opaque",
        fields(b"X: \xe4\xff"),
        saw(x=["\xe4\xff"]),
    ),
    must("field.colons-in-value", "RFC 9112, section 5", fields(b"X: a:b: c"), saw(x=["a:b: c"])),
    must(
        "field.every-character-of-a-name",
        "RFC 9110, section 5.6.2",
        fields(b"!#$%&'*+-.^`|~09aZ: y"),
        saw(names=["host", "!#$%&'*+-.^`|~09az"]),
    ),
    must("field.fifty", "RFC 9110, section 5.4", fields(*[b"X: y"] * 50), saw(x=["y"] * 50)),
    must(
        "field.twenty-thousand",
        "RFC 9110, section 5.4: more than the server wishes to process gets a 4xx",
        fields(*[b"X: y"] * 20_000),
        answered(),
        refused(then=Then.EITHER),
        own=refused(431),
    ),
    must(
        "field.of-4000-bytes",
        "RFC 9110, section 5.4",
        fields(b"X: " + b"y" * 4000),
        saw(x=["y" * 4000]),
    ),
    must(
        "field.of-300000-bytes",
        "RFC 9110, section 5.4: more than the server wishes to process gets a 4xx",
        fields(b"X: " + b"y" * 300_000),
        answered(),
        refused(then=Then.EITHER),
        own=refused(431),
    ),
    should(
        "field.without-end",
        "RFC 9110, section 17.5: limits on what is collected",
        [GET[:-2] + b"X: " + b"y" * 2_000_000],
        REFUSED,
        DROPPED,
        own=refused(431),
    ),
    should(
        "line.without-end",
        "RFC 9110, section 17.5: limits on what is collected",
        [b"GET /" + b"y" * 2_000_000],
        REFUSED,
        DROPPED,
        own=refused(414),
    ),
    must(
        "field.refused-then-nothing",
        "RFC 9112, section 11.2: what follows a refusal is not a request",
        fields(b"X : y") + b"GET /mark?refused-then-nothing HTTP/1.1\r\nHost: a\r\n\r\n",
        refused(),
        several(Answer(status=REFUSALS), Answer(status=(200,), body=b"marked")),
        own=refused(400),
    ),
]

SCOPE = [
    must("scope.http-version", "ASGI, HTTP connection scope", GET, saw(http_version="1.1")),
    must(
        "scope.http-version-1-0",
        "ASGI, HTTP connection scope",
        b"GET / HTTP/1.0\r\n\r\n",
        answered(saw={"http_version": "1.0"}, then=Then.CLOSED),
    ),
    must("scope.scheme", "ASGI, HTTP connection scope", GET, saw(scheme="http")),
    must("scope.root-path", "ASGI, HTTP connection scope", GET, saw(root_path="")),
    must("scope.asgi-version", "ASGI, HTTP connection scope", GET, saw(asgi="3.0")),
    must(
        "scope.client", "ASGI, HTTP connection scope: a port is an integer", GET, saw(client="int")
    ),
    must(
        "scope.server", "ASGI, HTTP connection scope: a port is an integer", GET, saw(server="int")
    ),
    must(
        "scope.headers",
        "ASGI, HTTP connection scope: byte strings",
        fields(b"X: y"),
        saw(headers_are_bytes=True),
    ),
    must(
        "scope.host-first",
        "ASGI, HTTP connection scope: in the order received",
        b"GET / HTTP/1.1\r\nX: y\r\nHost: a\r\n\r\n",
        saw(host=["a"], x=["y"]),
    ),
    must(
        "scope.message",
        "ASGI, Request event: an empty body is one event",
        b"GET /messages HTTP/1.1\r\nHost: a\r\n\r\n",
        answered(saw={"kinds": ["http.request"]}),
    ),
]

CASES: list[Case] = [*REQUEST_LINES, *HOSTS, *FIELDS, *SCOPE]
