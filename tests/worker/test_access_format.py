"""Formats of access lines: every atom, what is refused, and that nobody can forge a line."""

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgictl_worker.access_format import (
    _ATOMS,
    DEFAULT,
    NO_DETAILS,
    Details,
    Entry,
    compile_format,
    quote,
)

BASIC = b"Basic " + base64.b64encode(b"alice:secret")
DETAILS = Details(
    request_headers=[
        (b"host", b"example.org"),
        (b"referer", b"http://example.org/from"),
        (b"user-agent", b"curl/8.0"),
        (b"authorization", BASIC),
    ],
    response_headers=[(b"Content-Type", b"text/plain"), (b"x-cache", b"hit")],
    request_id="r-1",
)
ENTRY: Entry = ("10.0.0.7:52100", "GET", b"/a/b?c=d", "1.1", 200, 12, 1.2345678, DETAILS)
WHEN = "[22/Nov/2026:21:30:00 +0000]"


def line(text: str, entry: Entry = ENTRY, **environment: str) -> str:
    """Return what a format makes of one entry."""
    [found] = compile_format(text, environment, 4711).lines([entry], WHEN)
    return found


@pytest.mark.parametrize(
    ("atom", "expected"),
    [
        ("h", "10.0.0.7"),
        ("l", "-"),
        ("u", "alice"),
        ("t", WHEN),
        ("r", "GET /a/b?c=d HTTP/1.1"),
        ("m", "GET"),
        ("U", "/a/b"),
        ("q", "c=d"),
        ("H", "HTTP/1.1"),
        ("s", "200"),
        ("B", "12"),
        ("b", "12"),
        ("f", "http://example.org/from"),
        ("a", "curl/8.0"),
        ("T", "1"),
        ("D", "1234567"),
        ("M", "1234"),
        ("L", "1.234568"),
        ("p", "<4711>"),
        ("client", "10.0.0.7:52100"),
        ("request_id", "r-1"),
        ("{Host}i", "example.org"),
        ("{user-agent}i", "curl/8.0"),
        ("{x-missing}i", "-"),
        ("{content-type}o", "text/plain"),
        ("{X-Cache}o", "hit"),
        ("{host}o", "-"),
        ("{REMOTE_ADDR}e", "10.0.0.7"),
        ("{remote_port}e", "52100"),
        ("{REQUEST_METHOD}e", "GET"),
        ("{RAW_URI}e", "/a/b?c=d"),
        ("{PATH_INFO}e", "/a/b"),
        ("{QUERY_STRING}e", "c=d"),
        ("{SERVER_PROTOCOL}e", "HTTP/1.1"),
        ("{HTTP_USER_AGENT}e", "curl/8.0"),
        ("{POD}e", "web-1"),
        ("{NOT_SET}e", "-"),
    ],
)
def test_an_atom_stands_for(atom, expected):
    assert line(f"%({atom})s", POD="web-1") == expected
    assert line(f"<%({atom})s|%({atom})s>", POD="web-1") == f"<{expected}|{expected}>"


def test_every_atom_is_tested():
    [mark] = test_an_atom_stands_for.pytestmark
    assert set(_ATOMS) <= {atom for atom, _ in mark.args[1]}


def test_what_is_not_there_is_a_hyphen():
    entry = ("unix", "-", b"-", "1.1", 499, 0, 0.0, NO_DETAILS)
    assert line("%(h)s %(u)s %(b)s %(f)s %(a)s %(request_id)s", entry) == "- - - - - -"
    assert line("%({REMOTE_PORT}e)s %(q)s|", entry) == "- |"


@pytest.mark.parametrize("value", [b"Basic !", b"Basic", b"Bearer x", b"Basic " + b"Og=="])
def test_a_user_is_only_who_has_a_name(value):
    entry = (*ENTRY[:7], Details([(b"authorization", value)], [], ""))
    assert line("%(u)s", entry) == "-"


def test_text_stays_text():
    assert line("100%% %(s)d {not} 'quoted' \\n") == "100% 200 {not} 'quoted' \\n"
    assert line("nothing") == "nothing"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("%(S)s", r"known atoms, where %\(S\)s is none; did you mean %\(s\)s\?"),
        ("%(request-id)s", r"did you mean %\(request_id\)s\?"),
        ("%({host})s", r"did you mean %\(\{host\}i\)s, for a header"),
        ("%({host}x)s", r"there are h, l, u, .*\{header\}i"),
        ("%(zzzz)s", r"there are h, l, u, "),
        ("%()s", "there are h, l"),
        ("100%", r"where '%' is none \(write %%\?\)"),
        ("%h", "where '%' is none"),
        ("%(h)", r"where '%\(h\)' is none \(write %\(h\)s\?\)"),
        ("%(h)x", r"where '%\(h\)x' is none"),
        ("%(h", "where '%' is none"),
        ("a\nb", "one line without control characters"),
    ],
)
def test_what_is_no_format_is_refused_with_what_was_meant(text, problem):
    with pytest.raises(ValueError, match=problem):
        compile_format(text)


def test_only_a_format_that_asks_for_details_is_given_them():
    assert not compile_format(DEFAULT).needs_details
    for atom in ("u", "f", "a", "request_id", "{x}i", "{x}o", "{HTTP_X}e"):
        assert compile_format(f"%({atom})s").needs_details


def test_the_operators_text_is_no_code():
    assert line("%({x' or 1/0 or '}i)s") == "-"
    assert line("' + {seconds} + %s".replace("%", "%%")) == "' + {seconds} + %s"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"plain text", "plain text"),
        (b'"; DROP', "\\x22; DROP"),
        (b"a\\b", "a\\x5cb"),
        (b"a\r\nb\x00\x1b[31m", "a\\x0d\\x0ab\\x00\\x1b[31m"),
        ("ä".encode(), "\\xc3\\xa4"),
        (b"\x7f\x80\xff", "\\x7f\\x80\\xff"),
    ],
)
def test_what_a_client_sends_is_escaped(value, expected):
    assert quote(value) == expected


@given(st.binary(max_size=30), st.binary(max_size=30))
def test_no_request_can_forge_a_line(target, value):
    details = Details(
        [(b"user-agent", value), (b"authorization", b"Basic " + base64.b64encode(value))],
        [(b"x-out", value)],
        "id",
    )
    entry = ("10.0.0.7:1", "GET", target, "1.1", 200, 0, 0.0, details)
    text = '%(u)s "%(r)s" %(s)s "%(a)s" "%({x-out}o)s" "%(U)s" "%(q)s"'
    assert re.fullmatch(r'[!#-~]+ ("[ !#-~]*" ?){1}200( "[ !#-~]*"){4}', line(text, entry))
