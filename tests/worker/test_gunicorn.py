import logging
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger

from asgictl_worker import gunicorn
from asgictl_worker.access_format import Details
from asgictl_worker.errors import BadSetting, MissingSetting
from asgictl_worker.gunicorn import UNLIMITED, AsgiWorker, GunicornAccess, worker_settings


def config(**options: Any) -> Config:
    made = Config()
    for name, value in options.items():
        made.set(name, value)
    return made


def test_gunicorns_defaults_are_kept() -> None:
    settings = worker_settings(config())
    assert settings.timeout_keep_alive == 2.0
    assert settings.limit_request_line == 4094
    assert settings.limit_request_fields == 100
    assert settings.limit_request_field_size == 8190
    assert settings.timeout_graceful_shutdown == 27.0
    assert settings.forwarded_allow_ips == "127.0.0.1,::1,unix:"
    assert settings.ws_max_size == 16 * 1024 * 1024
    assert settings.lifespan == settings.loop == "auto"
    assert not settings.access_log
    assert not settings.uses_tls


@pytest.mark.parametrize(
    ("option", "value", "setting", "expected"),
    [
        ("asgi_loop", "asyncio", "loop", "asyncio"),
        ("asgi_lifespan", "off", "lifespan", "off"),
        ("root_path", "/api", "root_path", "/api"),
        ("keepalive", 75, "timeout_keep_alive", 75.0),
        ("limit_request_line", 0, "limit_request_line", UNLIMITED),
        ("limit_request_line", 2000, "limit_request_line", 2000),
        ("limit_request_fields", 0, "limit_request_fields", UNLIMITED),
        ("limit_request_field_size", 0, "limit_request_field_size", UNLIMITED),
        ("websocket_max_message_size", 1000, "ws_max_size", 1000),
        ("graceful_timeout", 2, "timeout_graceful_shutdown", 1.5),
        ("forwarded_allow_ips", "*", "forwarded_allow_ips", "*,unix:"),
        ("forwarded_allow_ips", "", "forwarded_allow_ips", "unix:"),
        ("forwarded_allow_ips", "10.0.0.0/8", "forwarded_allow_ips", "10.0.0.0/8,unix:"),
        ("proxy_protocol", "off", "proxy_protocol", False),
        ("proxy_protocol", "auto", "proxy_protocol", True),
        ("proxy_protocol", "v1", "proxy_protocol", True),
        ("proxy_allow_ips", "10.0.0.5", "proxy_allow_from", "10.0.0.5,unix:"),
        ("accesslog", "-", "access_log", True),
        ("logconfig_dict", {"version": 1}, "access_log", True),
        ("statsd_host", "localhost:8125", "access_log", True),
        ("certfile", "a.pem", "ssl_certfile", "a.pem"),
    ],
)
def test_an_option_becomes_the_setting_of_that_meaning(
    option: str, value: Any, setting: str, expected: Any
) -> None:
    assert getattr(worker_settings(config(**{option: value})), setting) == expected


def test_tls_options_are_taken_over() -> None:
    settings = worker_settings(
        config(certfile="a", keyfile="b", ca_certs="c", cert_reqs=2, ciphers="HIGH")
    )
    assert settings.uses_tls
    assert settings.ssl_keyfile == "b"
    assert settings.ssl_ca_certs == "c"
    assert settings.ssl_cert_reqs == 2
    assert settings.ssl_ciphers == "HIGH"


def test_what_is_set_elsewhere_wins() -> None:
    settings = worker_settings(config(keepalive=3), {"timeout_keep_alive": 9.0, "ws": "none"})
    assert (settings.timeout_keep_alive, settings.ws) == (9.0, "none")


def test_variables_are_read_as_asgictl_reads_them() -> None:
    environ = {"ASGICTL_TIMEOUT_KEEP_ALIVE": "2m", "ASGICTL_WS": "", "PATH": "/bin"}
    assert gunicorn._from_environment(environ) == {"timeout_keep_alive": 120.0}
    with pytest.raises(BadSetting, match="ws_max_queue cannot be 'many'"):
        gunicorn._from_environment({"ASGICTL_WS_MAX_QUEUE": "many"})


def test_a_key_alone_does_not_make_plain_text() -> None:
    with pytest.raises(MissingSetting):
        worker_settings(config(keyfile="b"))


class Recorder:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, text: str, *arguments: object) -> None:
        self.lines.append(text % arguments)


def test_options_without_effect_are_named_with_what_to_do_instead() -> None:
    log = Recorder()
    AsgiWorker.check_config(config(), log)
    assert log.lines == []
    AsgiWorker.check_config(config(threads=2, casefold_http_method=True), log)
    assert log.lines == [
        "threads has no effect with AsgiWorker: a worker runs one event loop; use --workers",
        "casefold_http_method has no effect with AsgiWorker: methods are case-sensitive",
    ]


@pytest.mark.parametrize("name", gunicorn._WITHOUT_EFFECT)
def test_every_option_that_is_warned_about_exists(name: str) -> None:
    assert name in Config().settings


def access_line(atoms: str, **facts: Any) -> str:
    """Return what Gunicorn's own logger makes of a response."""
    log = Logger(config(accesslog="-", access_log_format=atoms))
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    log.access_log.handlers = [handler]
    try:
        GunicornAccess(log).request(
            **{
                "client": "10.0.0.7:52100",
                "method": "GET",
                "target": b"/a/b?c=d",
                "http_version": "1.1",
                "status": 200,
                "size": 12,
                "seconds": 1.25,
            }
            | facts
        )
    finally:
        log.access_log.handlers = []
        log.error_log.handlers = []
    (record,) = records
    return record.getMessage()


@pytest.mark.parametrize(
    ("atoms", "line"),
    [
        ('%(h)s "%(r)s" %(s)s %(b)s', '10.0.0.7 "GET /a/b?c=d HTTP/1.1" 200 12'),
        ("%(m)s %(U)s %(q)s %(H)s %(B)s", "GET /a/b c=d HTTP/1.1 12"),
        ("%(T)s %(D)s %(M)s %(L)s", "1 1250000 1250 1.250000"),
        ("%(f)s %(a)s %({x-a}i)s %({x-b}o)s", "- - - -"),
        ("%({request_id}e)s %(u)s", "- -"),
    ],
)
def test_access_lines_follow_gunicorns_format(atoms: str, line: str) -> None:
    assert access_line(atoms) == line


class Exchange:
    def details(self) -> Details:
        return Details(
            [
                (b"user-agent", b'cu"rl'),
                (b"referer", b"http://a/"),
                (b"x-a", b"\xe4"),
                (b"authorization", b"Basic YWxpY2U6c2VjcmV0"),
            ],
            [(b"X-B", b"b")],
            "r-1",
        )


def test_access_lines_tell_headers_and_the_id_of_the_request() -> None:
    atoms = "%(f)s %(a)s %({x-a}i)s %({x-b}o)s %(u)s %({request_id}e)s"
    line = access_line(atoms, exchange=Exchange())
    assert line == 'http://a/ cu\\"rl \xe4 b alice r-1'


@pytest.mark.parametrize(
    ("client", "shown"), [("unix", "-"), ("::1:80", "::1"), ("10.0.0.7:1", "10.0.0.7")]
)
def test_access_lines_name_the_client_without_its_port(client: str, shown: str) -> None:
    assert access_line("%(h)s", client=client) == shown


def test_our_log_goes_where_gunicorns_goes() -> None:
    ours = logging.getLogger("asgictl")
    before = ours.handlers, ours.level, ours.propagate
    log = Logger(config(errorlog="-", loglevel="warning"))
    try:
        gunicorn._log_to(log)
        assert ours.handlers is log.error_log.handlers
        assert ours.level == logging.WARNING
        assert not ours.propagate
        gunicorn._log_to(object())  # a logger of the operator's, without loggers inside
    finally:
        ours.handlers, ours.level, ours.propagate = before
        log.error_log.handlers = []
