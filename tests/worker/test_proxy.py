import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from tests.worker.http.wire import Peer, hello
from tests.worker.waiting import until

from asgictl_worker.errors import ConfigurationError
from asgictl_worker.proxy import NotAPeer, ProxyTrust

PEER = ("10.0.0.1", 4711)
LONGEST = "2001:0db8:0000:0000:0000:ffff:203.0.113.107"


def forwarded(**headers: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]


def resolve(allow_list="10.0.0.0/8", client=PEER, scheme="http", **headers):
    return ProxyTrust(allow_list).resolve(forwarded(**headers), client, scheme)[:2]


@pytest.mark.parametrize(
    ("allow_list", "peer", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1, ::1", "::1", True),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("10.0.0.0/8", "10.255.0.1", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("fd00::/8", "fd12::1", True),
        ("fe80::/10", "fe80::1%eth0", True),
        ("10.0.0.0/8", "::ffff:10.0.0.1", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("127.0.0.1", None, False),
        ("unix:", None, True),
        ("unix:", "127.0.0.1", False),
        ("*", None, True),
        ("*", "203.0.113.7", True),
        ("*", "no address", False),
        ("", "127.0.0.1", False),
        ("", None, False),
    ],
)
def test_only_listed_peers_are_trusted(allow_list, peer, expected):
    trust = ProxyTrust(allow_list)
    assert trust.trusts(peer) is expected
    assert trust.trusts(peer) is expected, "the answer from the cache is the same"


@pytest.mark.parametrize(
    ("allow_list", "entry"),
    [
        ("localhost", "localhost"),
        ("127.0.0.1, 10.0.0.1/8", "10.0.0.1/8"),
        ("127.0.0.1 ::1", "127.0.0.1 ::1"),
        ("10.0.0.0/33", "10.0.0.0/33"),
        ("127.0.0.1:80", "127.0.0.1:80"),
    ],
)
def test_an_entry_that_is_no_peer_is_named_with_what_would_be_one(allow_list, entry):
    with pytest.raises(NotAPeer, match=r"list addresses .* networks") as caught:
        ProxyTrust(allow_list)
    assert caught.value.entry == entry
    assert repr(entry) in str(caught.value)
    assert isinstance(caught.value, ConfigurationError)


def test_headers_of_an_untrusted_peer_are_not_believed():
    client = ("203.0.113.7", 80)
    assert resolve(client=client, x_forwarded_for="1.1.1.1", x_forwarded_proto="https") == (
        client,
        "http",
    )


def test_without_forwarding_headers_client_and_scheme_stay():
    assert resolve(host="example.org", x_other="1.1.1.1") == (PEER, "http")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("203.0.113.7", ("203.0.113.7", 0)),
        ("203.0.113.7:8080", ("203.0.113.7", 8080)),
        ("203.0.113.7:", ("203.0.113.7", 0)),
        ("203.0.113.7:99999", ("203.0.113.7", 0)),
        ("203.0.113.7:x", ("203.0.113.7", 0)),
        ("203.0.113.7:123456789012345678901234567890", ("203.0.113.7", 0)),
        ("2001:db8::7", ("2001:db8::7", 0)),
        ("[2001:db8::7]", ("2001:db8::7", 0)),
        ("[2001:db8::7]:443", ("2001:db8::7", 443)),
        ("[2001:db8::7]443", PEER),
        ("[2001:db8::7", ("2001:db8::7", 0)),
        ("fe80::1%eth0", PEER),
        (LONGEST, (LONGEST, 0)),
        (f"[{LONGEST}]:44711", (LONGEST, 44711)),
        ("1" * 10_000, PEER),
        ('fe80::1%" 200 0 forged', PEER),
        # The right-most that is not on the list: the rest is what that client wrote.
        ("1.1.1.1, 203.0.113.7", ("203.0.113.7", 0)),
        ("1.1.1.1, 203.0.113.7, 10.0.0.2", ("203.0.113.7", 0)),
        ("1.1.1.1,203.0.113.7 ,\t10.0.0.2:99, 10.0.0.3", ("203.0.113.7", 0)),
        # All are on the list: the left-most.
        ("10.0.0.9, 10.0.0.2", ("10.0.0.9", 0)),
        # Empty elements are skipped, junk ends the walk at the proxy that wrote it.
        (", 203.0.113.7, ,", ("203.0.113.7", 0)),
        ("unknown", PEER),
        ("1.1.1.1, unknown, 10.0.0.2", ("10.0.0.2", 0)),
        ("1.1.1.1, 203.0.113.7.evil, 10.0.0.2", ("10.0.0.2", 0)),
        ("", PEER),
        (",", PEER),
    ],
)
def test_the_client_is_the_right_most_untrusted_address(header, expected):
    assert resolve(x_forwarded_for=header) == (expected, "http")


def test_with_everybody_trusted_the_client_is_the_left_most_address():
    assert resolve("*", x_forwarded_for="1.1.1.1, 2.2.2.2")[0] == ("1.1.1.1", 0)


def test_several_header_lines_are_one_list():
    headers = [(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"203.0.113.7, 10.0.0.2")]
    assert ProxyTrust("10.0.0.0/8").resolve(headers, PEER, "http")[0] == ("203.0.113.7", 0)


def test_a_peer_on_a_unix_socket_gets_the_address_that_it_reports():
    assert resolve("unix:", None, x_forwarded_for="203.0.113.7") == (("203.0.113.7", 0), "http")


@pytest.mark.parametrize(
    ("scheme", "header", "expected"),
    [
        ("http", "https", "https"),
        ("http", "HTTPS", "https"),
        ("http", " https ", "https"),
        ("https", "http", "http"),
        ("http", "wss", "https"),
        ("ws", "https", "wss"),
        ("ws", "wss", "wss"),
        ("wss", "http", "ws"),
        ("http", "gopher", "http"),
        ("http", "", "http"),
        ("http", "http, https", "https"),
    ],
)
def test_the_scheme_is_what_the_proxy_saw_in_the_kind_of_the_scope(scheme, header, expected):
    assert resolve(scheme=scheme, x_forwarded_proto=header) == (PEER, expected)


@pytest.mark.parametrize(
    ("schemes", "expected"),
    [
        ("https, http", "https"),  # one for each hop: that of the client's hop
        ("http, http", "http"),
        ("https", "https"),  # replaced by each proxy: the nearest one's
        ("http, http, https", "https"),
    ],
)
def test_schemes_belong_to_addresses_where_there_are_as_many(schemes, expected):
    assert resolve(x_forwarded_for="203.0.113.7, 10.0.0.2", x_forwarded_proto=schemes) == (
        ("203.0.113.7", 0),
        expected,
    )


def test_the_scheme_left_of_the_client_is_not_believed():
    assert resolve(x_forwarded_for="10.0.0.9, 203.0.113.7", x_forwarded_proto="https, http") == (
        ("203.0.113.7", 0),
        "http",
    )


@pytest.mark.parametrize(
    ("header", "client", "scheme"),
    [
        ("for=203.0.113.7", ("203.0.113.7", 0), "http"),
        ("For=203.0.113.7;PROTO=https;by=10.0.0.1", ("203.0.113.7", 0), "https"),
        ('for="[2001:db8::7]:4711";proto=https', ("2001:db8::7", 4711), "https"),
        ('for="203.0.113.7:80" ; proto=https', ("203.0.113.7", 80), "https"),
        ("for=1.1.1.1;proto=http, for=203.0.113.7;proto=https", ("203.0.113.7", 0), "https"),
        ("for=203.0.113.7;proto=https, for=10.0.0.2;proto=http", ("203.0.113.7", 0), "https"),
        (r'for="20\3.0.113.7"', ("203.0.113.7", 0), "http"),
        ("proto=https", PEER, "https"),
        ("for=unknown;proto=https", PEER, "https"),
        ("for=_hidden, for=10.0.0.2", ("10.0.0.2", 0), "http"),
        ("for=203.0.113.7,", ("203.0.113.7", 0), "http"),
        (";for=203.0.113.7;;proto=https; ", ("203.0.113.7", 0), "https"),
        (" , for=203.0.113.7 , ", ("203.0.113.7", 0), "http"),
        ('for=203.0.113.7;by="a, b";proto=https', ("203.0.113.7", 0), "https"),
        # A proxy that does not say who its client is: what stands left of it proves nothing.
        ("for=1.1.1.1, proto=https", PEER, "https"),
        ("for=1.1.1.1, for=10.0.0.2;proto=https, by=10.0.0.3", PEER, "http"),
        # What is malformed, and what stands left of it, is not believed.
        ('for="1.1.1.1, for=203.0.113.7;proto=https', ("203.0.113.7", 0), "https"),
        ('for=1.1.1.1, x, for="[2001:db8::7]"', ("2001:db8::7", 0), "http"),
        ('for=1.1.1.1, for=10.0.0.2;by="', PEER, "http"),
        ("for=1.1.1.1;for=203.0.113.7", PEER, "http"),
        ("for=203.0.113.7:80", PEER, "http"),
        ('for="203.0.113.7', PEER, "http"),
        ("203.0.113.7", PEER, "http"),
        ("", PEER, "http"),
    ],
)
def test_forwarded_is_read_as_rfc_7239_says(header, client, scheme):
    assert resolve(forwarded=header) == (client, scheme)


@pytest.mark.parametrize("name", ["x_forwarded_for", "x_forwarded_proto"])
def test_forwarded_is_not_read_beside_the_older_headers(name):
    old = {"x_forwarded_for": "203.0.113.7", "x_forwarded_proto": "http"}[name]
    client, scheme = resolve(forwarded="for=1.1.1.1;proto=https", **{name: old})
    assert client != ("1.1.1.1", 0)
    assert scheme == "http"


# -- Host and port

SERVER = ("10.0.0.1", 8000)


def resolve_host(*, take_host=True, client=PEER, scheme="http", server=SERVER, **headers):
    """Return the Host headers and the server that the application gets."""
    fields = forwarded(**{"host": "inner:8000", **headers})
    trust = ProxyTrust("10.0.0.0/8", take_host=take_host)
    server = trust.resolve(fields, client, scheme, server)[2]
    return [value.decode() for name, value in fields if name == b"host"], server


@pytest.mark.parametrize(
    ("headers", "host", "server"),
    [
        ({"x_forwarded_host": "example.org"}, "example.org", ("example.org", 80)),
        ({"x_forwarded_host": "example.org:8080"}, "example.org:8080", ("example.org", 8080)),
        ({"x_forwarded_host": "[2001:db8::1]"}, "[2001:db8::1]", ("2001:db8::1", 80)),
        ({"x_forwarded_host": "[2001:db8::1]:81"}, "[2001:db8::1]:81", ("2001:db8::1", 81)),
        # The port that goes without saying is not said.
        (
            {"x_forwarded_host": "example.org", "x_forwarded_port": "80"},
            "example.org",
            ("example.org", 80),
        ),
        (
            {"x_forwarded_host": "example.org", "x_forwarded_port": "8443"},
            "example.org:8443",
            ("example.org", 8443),
        ),
        (
            {
                "x_forwarded_host": "example.org",
                "x_forwarded_proto": "https",
                "x_forwarded_port": "443",
            },
            "example.org",
            ("example.org", 443),
        ),
        (
            {"x_forwarded_host": "example.org", "x_forwarded_proto": "https"},
            "example.org",
            ("example.org", 443),
        ),
        # A port in the host is nearer to what the client wrote.
        (
            {"x_forwarded_host": "example.org:81", "x_forwarded_port": "82"},
            "example.org:81",
            ("example.org", 81),
        ),
        # A port alone does not touch the Host header.
        ({"x_forwarded_port": "8443"}, "inner:8000", ("10.0.0.1", 8443)),
        # Not one for each hop: the nearest proxy's word.
        ({"x_forwarded_host": "evil.test, example.org"}, "example.org", ("example.org", 80)),
        (
            {"x_forwarded_host": "evil.test, example.org", "x_forwarded_for": "1.1.1.1"},
            "example.org",
            ("example.org", 80),
        ),
        # One for each: that of the hop of the client.
        (
            {
                "x_forwarded_host": "evil.test, example.org, inner.test",
                "x_forwarded_for": "1.1.1.1, 203.0.113.7, 10.0.0.2",
            },
            "example.org",
            ("example.org", 80),
        ),
        ({"forwarded": "for=203.0.113.7;host=example.org"}, "example.org", ("example.org", 80)),
        (
            {"forwarded": 'for=203.0.113.7;proto=https;host="example.org:8443"'},
            "example.org:8443",
            ("example.org", 8443),
        ),
        (
            {"forwarded": "for=1.1.1.1;host=evil.test, for=203.0.113.7;host=example.org"},
            "example.org",
            ("example.org", 80),
        ),
        # Beside the older headers it was only passed on.
        (
            {"forwarded": "host=evil.test", "x_forwarded_for": "203.0.113.7"},
            "inner:8000",
            SERVER,
        ),
    ],
)
def test_host_and_port_are_what_the_proxy_was_asked_for(headers, host, server):
    assert resolve_host(**headers) == ([host], server)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "a/b",
        "user@example.org",
        "example.org:",
        "example.org:0",
        "example.org:65536",
        "example.org:x",
        "[::1",
        "::1",
        "exa\x01mple",
        "exämple",
        '"',
        "a:1:2",
    ],
)
def test_a_host_that_is_none_is_not_taken(host):
    assert resolve_host(x_forwarded_host=host) == (["inner:8000"], SERVER)


@pytest.mark.parametrize("port", ["", "0", "65536", "x", "+80", "8_0", "999999999999999999999999"])
def test_a_port_that_is_none_is_not_taken(port):
    assert resolve_host(x_forwarded_port=port) == (["inner:8000"], SERVER)


def test_a_host_is_as_long_as_names_can_be():
    longest = ".".join(["a" * 50] * 5)
    assert resolve_host(x_forwarded_host=f"{longest}:65535")[1] == (longest, 65535)
    assert resolve_host(x_forwarded_host=longest + "." + "a" * 50)[1] == SERVER


CLAIMS = {"x_forwarded_host": "evil.test", "x_forwarded_port": "81", "forwarded": "host=evil.test"}


@pytest.mark.parametrize("claims", [CLAIMS, {"forwarded": "host=evil.test"}])
def test_host_and_port_are_not_taken_unless_the_operator_says_so(claims):
    assert resolve_host(take_host=False, **claims) == (["inner:8000"], SERVER)


def test_host_and_port_of_an_untrusted_peer_are_not_taken():
    assert resolve_host(client=("203.0.113.7", 80), **CLAIMS) == (["inner:8000"], SERVER)


def test_a_websocket_has_the_usual_ports_too():
    assert resolve_host(scheme="wss", x_forwarded_host="example.org")[1] == ("example.org", 443)


@pytest.mark.parametrize("server", [("/run/app.sock", None), None])
def test_a_unix_socket_has_no_port_but_gets_a_host(server):
    assert resolve_host(server=server, x_forwarded_port="81")[1] == server
    assert resolve_host(server=server, x_forwarded_host="a:81")[1] == ("a", 81)


@given(
    for_=st.binary(max_size=60),
    proto=st.binary(max_size=20),
    host=st.binary(max_size=30),
    rfc7239=st.binary(max_size=60),
    everybody=st.booleans(),
)
def test_no_header_breaks_the_walk(for_, proto, host, rfc7239, everybody):
    trust = ProxyTrust("*" if everybody else "10.0.0.0/8", take_host=True)
    for headers in (
        [
            (b"x-forwarded-for", for_),
            (b"x-forwarded-proto", proto),
            (b"x-forwarded-host", host),
            (b"x-forwarded-port", host),
        ],
        [(b"forwarded", rfc7239)],
    ):
        (host, port), scheme, _ = trust.resolve(headers, PEER, "http")
        assert trust.trusts(host) or not everybody
        assert 0 <= port <= 65535
        assert scheme in ("http", "https")
        assert all(value.isascii() for name, value in headers if name == b"host")


def test_quotes_and_commas_in_forwarded_do_not_cost_much_time():
    text = 'for="' + ", " * 30_000 + "for=203.0.113.7;proto=https"
    start = time.perf_counter()
    found = ProxyTrust("*").resolve(forwarded(forwarded=text), PEER, "http")
    assert found == (("203.0.113.7", 0), "https", None)
    assert time.perf_counter() - start < 1.0


def test_long_claims_are_not_remembered_and_mean_the_same():
    trust = ProxyTrust("10.0.0.0/8")
    short, long = "203.0.113.7", ", ".join(["1.1.1.1"] * 200 + ["203.0.113.7"])
    for _ in range(2):
        for text in (short, long):
            found = trust.resolve(forwarded(x_forwarded_for=text), PEER, "http")
            assert found == (("203.0.113.7", 0), "http", None)
    assert trust._known_walk.cache_info().currsize == 1


def test_what_is_remembered_of_one_peer_does_not_become_another():
    trust = ProxyTrust("10.0.0.0/8")
    for client in (PEER, ("10.0.0.2", 9), ("203.0.113.9", 1)):
        for scheme in ("http", "wss"):
            headers = forwarded(x_forwarded_proto="unknown")
            assert trust.resolve(headers, client, scheme) == (client, scheme, None)


# -- In requests


async def test_what_one_proxy_is_believed_is_not_believed_of_others():
    """Workers remember heads that connections begin with, but not what came of them."""
    hosts = []

    async def app(scope, receive, send):
        hosts.append(dict(scope["headers"])[b"host"])
        await hello(scope, receive, send)

    service = None
    for address in (*["10.0.0.7"] * 3, "192.0.2.9"):
        peer = Peer(app, client=(address, 52100), service=service)
        service = peer.service
        service.proxy_trust = ProxyTrust("10.0.0.7", take_host=True)
        peer.send(b"GET / HTTP/1.1\r\nhost: inner\r\nx-forwarded-host: example.org\r\n\r\n")
        await peer.idle()
    assert hosts == [*[b"example.org"] * 3, b"inner"]


@pytest.mark.parametrize(
    ("take_host", "url"),
    [(True, "https://example.org:8443/a?b"), (False, "https://inner/a?b")],
)
async def test_frameworks_build_urls_from_what_is_believed(take_host, url):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    peer = Peer(app)
    peer.service.proxy_trust = ProxyTrust("10.0.0.7", take_host=take_host)
    lines = (
        b"GET /a?b HTTP/1.1",
        b"Host: inner",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host: example.org",
        b"X-Forwarded-Port: 8443",
    )
    data = b"\r\n".join(lines) + b"\r\n\r\n"
    peer.send(data + data)
    await until(lambda: len(scopes) == 2)
    for scope in scopes:
        assert str(Request(scope).url) == url
        assert sum(name == b"host" for name, _ in scope["headers"]) == 1
        assert scope["server"] == (("example.org", 8443) if take_host else ("10.0.0.1", 8000))
