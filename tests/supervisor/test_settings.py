"""What a setting may be, wherever it comes from."""

import dataclasses
import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgictl.settings import (
    INSTEAD,
    WHERE,
    InheritedDescriptor,
    Settings,
    SystemdSockets,
    TcpAddress,
    UnixAddress,
    parse_bind,
)
from asgictl_worker.errors import BadSetting, ConfigurationError, ContradictorySettings, ExitCode
from asgictl_worker.settings import (
    WorkerSettings,
    check,
    declarations,
    parse_header,
    read,
    setting,
    wanted,
)

DECLARATIONS = declarations(Settings)
EACH = pytest.mark.parametrize("declaration", DECLARATIONS.values(), ids=DECLARATIONS)


@EACH
def test_every_declaration_allows_its_own_default(declaration):
    assert check(declaration, declaration.default) == declaration.default


@EACH
def test_every_declaration_has_a_sentence_and_a_heading(declaration):
    assert declaration.facts.sentence.endswith((".", ")"))
    assert declaration.facts.group
    assert (declaration.kind is float) <= (declaration.facts.unit == "seconds")


def test_no_two_settings_share_a_flag_or_a_variable():
    flags = [flag for one in DECLARATIONS.values() for flag in (one.flag, *one.facts.flags)]
    variables = [
        name for one in DECLARATIONS.values() for name in (one.variable, *one.facts.variables)
    ]
    assert len(set(flags)) == len(flags)
    assert len(set(variables)) == len(variables)


def test_advice_is_given_only_for_options_that_do_not_exist():
    ours = {flag for one in DECLARATIONS.values() for flag in (one.flag, *one.facts.flags)}
    assert not ours & set(INSTEAD), "these options exist now: take their rows out of INSTEAD"


def test_advice_names_only_options_that_exist():
    ours = {flag for one in DECLARATIONS.values() for flag in (one.flag, *one.facts.flags)}
    ours |= {"--no-" + one.flag[2:] for one in DECLARATIONS.values() if one.kind is bool}
    named = {
        word.strip("`;:,.")
        for advice in INSTEAD.values()
        for word in advice.split()
        if word.startswith("--")
    }
    assert named - ours == {"--reload"} - ours


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().workers = 3


# -- Types and ranges


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "8000"),
        ("port", 8000.0),
        ("port", True),
        ("port", -1),
        ("port", 65536),
        ("port", None),
        ("workers", 0),
        ("workers", "many"),
        ("workers", True),
        ("workers", 1.5),
        ("timeout", "soon"),
        ("timeout", 0.5),
        ("timeout", math.inf),
        ("timeout", math.nan),
        ("timeout", False),
        ("timeout", "-3s"),
        ("limit_request_line", "8 pages"),
        ("limit_request_line", 63),
        ("limit_request_line", 100.0),
        ("access_log", 1),
        ("access_log", "yes"),
        ("loop", "trio"),
        ("loop", 3),
        ("root_path", 3),
        ("root_path", None),
        ("bind", 8000),
        ("bind", (8000,)),
        ("bind", ("127.0.0.1:1", "127.0.0.1:1")),
        ("uds", "/" + "x" * 107),
        ("uds", "a\0b"),
        ("host", "http://localhost"),
        ("host", "[::1]"),
        ("umask", "99"),
        ("umask", "1777"),
        ("header", ("no colon",)),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(name, value):
    with pytest.raises(BadSetting) as caught:
        Settings(**{name: value})
    assert caught.value.setting == name
    assert str(caught.value).startswith(f"{name} cannot be ")
    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("timeout", 30, 30.0),
        ("timeout", "1500ms", 1.5),
        ("timeout", "2m", 120.0),
        ("timeout", "1h", 3600.0),
        ("timeout", "1.5 s", 1.5),
        ("ws_max_size", "16M", 16 * 1024 * 1024),
        ("ws_max_size", "64k", 64 * 1024),
        ("ws_max_size", "1.5K", 1536),
        ("ws_max_size", "1GiB", 1024**3),
        ("ws_max_size", "100B", 100),
        ("limit_request_body", "none", None),
        ("ws_ping_interval", "none", None),
        ("use_colors", "none", None),
        ("uds", "", None),
        ("workers", "auto", "auto"),
        ("bind", "127.0.0.1:1", ("127.0.0.1:1",)),
        ("bind", ["127.0.0.1:1"], ("127.0.0.1:1",)),
        ("umask", "0o027", "0o027"),
        ("host", "", ""),
        ("host", "::1", "::1"),
    ],
)
def test_a_value_is_brought_into_its_own_type(name, value, meant):
    found = getattr(Settings(**{name: value}), name)
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("port", "a whole number from 0 to 65535"),
        ("backlog", "a whole number of at least 1"),
        ("workers", "auto or a whole number from 1 to 1024"),
        ("loop", "auto, asyncio or uvloop"),
        ("access_log", "true or false"),
        ("use_colors", "true or false or none"),
        ("timeout", "a duration in seconds of at least 1 (or with a unit: 500ms, 30s, 2m, 1h)"),
        (
            "limit_request_body",
            "a size in bytes of at least 0 (or with a unit: 64K, 16M, 1G) or none",
        ),
        ("root_path", "a text in quotes (PATH)"),
        ("user", "a text in quotes"),
    ],
)
def test_an_error_says_what_is_allowed(name, phrase):
    assert wanted(DECLARATIONS[name]) == phrase


@given(st.floats(min_value=1, max_value=1e6), st.sampled_from(["", "s", " s"]))
def test_a_duration_is_the_same_as_number_and_as_text(seconds, unit):
    assert read(DECLARATIONS["timeout"], f"{seconds:.6f}{unit}") == pytest.approx(seconds)
    assert check(DECLARATIONS["timeout"], seconds) == seconds


@EACH
@given(text=st.text(max_size=12) | st.text("0123456789.msKMGieno", max_size=6))
def test_any_text_is_read_or_refused_and_never_breaks(declaration, text):
    try:
        value = read(declaration, text)
    except BadSetting:
        return
    assert check(declaration, value) == value


@EACH
@given(
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers() | st.text(max_size=5), max_size=3)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=1)
)
def test_any_value_is_allowed_or_refused_and_never_breaks(declaration, value):
    try:
        checked = check(declaration, value)
    except BadSetting:
        return
    assert check(declaration, checked) == checked


@pytest.mark.parametrize("word", ["true", "YES", "on", "1"])
def test_words_turn_a_switch_on(word):
    assert read(DECLARATIONS["factory"], word) is True


@pytest.mark.parametrize("word", ["false", "No", "off", "0"])
def test_words_turn_a_switch_off(word):
    assert read(DECLARATIONS["access_log"], word) is False


def test_words_may_be_written_in_capitals():
    assert read(DECLARATIONS["log_level"], "INFO") == "info"
    assert read(DECLARATIONS["workers"], "Auto") == "auto"


def test_several_values_are_separated_by_commas_but_headers_by_lines():
    assert read(DECLARATIONS["bind"], "a:1, b:2,") == ("a:1", "b:2")
    assert read(DECLARATIONS["header"], "a: 1, 2\nb: 3") == ("a: 1, 2", "b: 3")


def test_a_type_that_no_flag_can_carry_is_a_mistake_of_ours():
    odd = ("odd", bytes, setting(b"", "Odd.", group="Odd"))
    with pytest.raises(AssertionError, match="odd has a type"):
        declarations(dataclasses.make_dataclass("Odd", [odd]))


# -- Headers


def test_a_header_is_split_into_lower_name_and_bare_value():
    assert parse_header("X-Frame-Options:  DENY ") == (b"x-frame-options", b"DENY")
    assert parse_header("a:") == (b"a", b"")
    assert parse_header("a:b:c") == (b"a", b"b:c")
    assert parse_header("a: \xe9") == (b"a", b"\xe9")


@pytest.mark.parametrize("text", ["", "a", ":b", "a b:c", "a:b\r\nc:d", "a:\0", "a:\u20ac", "a :b"])
def test_a_text_that_is_no_header_is_refused(text):
    with pytest.raises(ValueError, match="NAME:VALUE"):
        parse_header(text)


@pytest.mark.parametrize(
    "name", ["Connection", "content-length", "Keep-Alive", "TRANSFER-ENCODING", "upgrade"]
)
def test_a_header_that_frames_a_response_is_refused(name):
    with pytest.raises(BadSetting, match="frames a single response"):
        WorkerSettings(header=(f"{name}: x",))


# -- Where to listen


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", TcpAddress("127.0.0.1", 8000)),
        ("localhost:0", TcpAddress("localhost", 0)),
        (":80", TcpAddress("", 80)),
        ("[::1]:65535", TcpAddress("::1", 65535)),
        ("[::]:80", TcpAddress("::", 80)),
        ("unix:/run/app.sock", UnixAddress("/run/app.sock")),
        ("unix:app.sock", UnixAddress("app.sock")),
        ("unix:///run/app.sock", UnixAddress("/run/app.sock")),
        ("fd://3", InheritedDescriptor(3)),
        ("fd://web", SystemdSockets("web")),
        ("systemd:app.socket", SystemdSockets("app.socket")),
        ("systemd:*", SystemdSockets("*")),
    ],
)
def test_an_address_is_parsed(text, address):
    assert parse_bind(text) == address
    assert parse_bind(str(address)) == address


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("8000", "for port 8000 on every interface write :8000"),
        ("localhost", "HOST:PORT"),
        ("localhost:http", "HOST:PORT"),
        ("localhost:65536", "from 0 to 65535"),
        ("::1:8000", "in brackets"),
        ("::", "in brackets"),
        ("[localhost]:80", "IPv6 address in the brackets"),
        ("http://localhost:80", "HOST:PORT"),
        ("unix:", "HOST:PORT"),
        ("unix:" + "x" * 108, "107 bytes"),
        ("fd://", "HOST:PORT"),
        ("systemd:", "HOST:PORT"),
        ("systemd:a/b", "HOST:PORT"),
        ("fd://-1", "HOST:PORT"),
        ("", "HOST:PORT"),
        ("a b:80", "HOST:PORT"),
    ],
)
def test_an_address_that_is_none_is_refused_with_advice(text, advice):
    with pytest.raises(BadSetting) as caught:
        Settings(bind=(text,))
    assert advice in str(caught.value)


@given(st.text(string.ascii_letters + string.digits + ":[]/. unixfd", max_size=20))
def test_any_text_is_an_address_or_refused(text):
    try:
        address = parse_bind(text)
    except ValueError:
        return
    assert parse_bind(str(address)) == address


@pytest.mark.parametrize(
    ("settings", "addresses"),
    [
        ({}, (TcpAddress("127.0.0.1", 8000),)),
        ({"host": "::1", "port": 0}, (TcpAddress("::1", 0),)),
        ({"uds": "a.sock"}, (UnixAddress("a.sock"),)),
        ({"fd": 0}, (InheritedDescriptor(0),)),
        ({"bind": (":1", "unix:x")}, (TcpAddress("", 1), UnixAddress("x"))),
    ],
)
def test_addresses_come_from_whichever_setting_names_them(settings, addresses):
    assert Settings(**settings).addresses == addresses


def _answer(name):
    return {"bind": (":1",), "uds": "x", "fd": 3, "host": "0.0.0.0", "port": 1}[name]


@pytest.mark.parametrize("first", WHERE)
@pytest.mark.parametrize("second", WHERE)
def test_two_settings_that_say_where_to_listen_contradict_each_other(first, second):
    both = {first: _answer(first), second: _answer(second)}
    if WHERE[first] == WHERE[second]:
        Settings(**both)
        return
    with pytest.raises(ContradictorySettings) as caught:
        Settings(**both)
    assert set(caught.value.settings) == {first, second}
    assert "both say where to listen" in str(caught.value)


def test_a_wsgi_application_cannot_be_asked_for_a_lifespan():
    with pytest.raises(ContradictorySettings, match="a WSGI application has no lifespan"):
        WorkerSettings(interface="wsgi", lifespan="on")


def test_settings_errors_are_configuration_errors():
    assert issubclass(BadSetting, ConfigurationError)
    assert issubclass(ContradictorySettings, ConfigurationError)


@pytest.mark.parametrize(("control", "path"), [("auto", None), ("none", None), ("here", "here")])
def test_a_control_socket_has_a_path_where_somebody_names_one(
    control: str, path: str | None
) -> None:
    assert Settings(control=control).control_path == path
