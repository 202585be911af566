"""Users of other servers: each of their options is ours, or is answered with what to do instead."""

import inspect
from pathlib import Path

import pytest

from asgictl.configuration import SETTINGS, Source, from_arguments
from asgictl.reference import flags
from asgictl.settings import INSTEAD
from asgictl_worker.errors import ConfigurationError

OPTIONS = {
    "uvicorn": """
        --host --port --uds --fd --reload --reload-dir --reload-include --reload-exclude --reload-delay
        --workers --loop --http --http2 --ws --ws-max-size --ws-max-queue --ws-ping-interval
        --ws-ping-timeout --ws-per-message-deflate --lifespan --interface --env-file --log-config
        --log-level --access-log --no-access-log --use-colors --no-use-colors --proxy-headers
        --no-proxy-headers --server-header --no-server-header --date-header --no-date-header
        --forwarded-allow-ips --root-path --limit-concurrency --backlog --limit-max-requests
        --limit-max-requests-jitter --timeout-keep-alive --timeout-graceful-shutdown
        --timeout-worker-healthcheck --ssl-keyfile --ssl-certfile --ssl-keyfile-password --ssl-version
        --ssl-cert-reqs --ssl-ca-certs --ssl-ciphers --header --version --app-dir
        --h11-max-incomplete-event-size --reset-contextvars --factory --help""",
    "gunicorn": """
        -h --help -v --version -c --config -b --bind --backlog -w --workers -k --worker-class --threads
        --worker-connections --max-requests --max-requests-jitter -t --timeout --graceful-timeout
        --keep-alive --limit-request-line --limit-request-fields --limit-request-field_size --reload
        --reload-engine --reload-extra-file --spew --check-config --print-config --preload --no-sendfile
        --reuse-port --chdir -D --daemon -e --env -p --pid --worker-tmp-dir -u --user -g --group -m
        --umask --initgroups --forwarded-allow-ips --access-logfile --disable-redirect-access-to-syslog
        --access-logformat --error-logfile --log-file --log-level --capture-output --logger-class
        --log-config --log-config-json --log-syslog-to --log-syslog --log-syslog-prefix
        --log-syslog-facility -R --enable-stdio-inheritance --statsd-host --dogstatsd-tags
        --statsd-prefix --enable-backlog-metric -n --name --pythonpath --paste --paster
        --proxy-protocol --proxy-allow-from --protocol --uwsgi-allow-from --keyfile --certfile
        --ssl-version --cert-reqs --ca-certs --suppress-ragged-eofs --do-handshake-on-connect --ciphers
        --http-protocols --http2-cleartext --http2-max-concurrent-streams --http2-initial-window-size
        --http2-max-frame-size --http2-max-header-list-size --paste-global --permit-obsolete-folding
        --strip-header-spaces --permit-unconventional-http-method --permit-unconventional-http-version
        --casefold-http-method --forwarder-headers --header-map --asgi-loop --asgi-lifespan
        --asgi-disconnect-grace-period --websocket-max-message-size --http-parser --root-path
        --dirty-app --dirty-workers --dirty-timeout --dirty-threads --dirty-graceful-timeout
        --control-socket --control-socket-mode --no-control-socket""",
    "hypercorn": """
        -h --help --access-log --access-logfile --access-logformat --backlog -b --bind --ca-certs
        --certfile --cert-reqs --ciphers -c --config -D --daemon --debug --error-log --error-logfile
        --log-file --graceful-timeout --read-timeout --max-requests --max-requests-jitter -g --group -k
        --worker-class --keep-alive --keyfile --keyfile-password --insecure-bind --log-config
        --log-level -p --pid --quic-bind --reload --root-path --server-name --statsd-host
        --statsd-prefix -m --umask -u --user --verify-mode --websocket-ping-interval -w --workers""",
    "granian": """
        --host --port --uds --uds-permissions --interface --http --ws --no-ws --workers
        --blocking-threads --blocking-threads-idle-timeout --runtime-threads --runtime-blocking-threads
        --runtime-mode --loop --task-impl --backlog --backpressure --http1-buffer-size
        --http1-header-read-timeout --http1-keep-alive --no-http1-keep-alive --http1-pipeline-flush
        --http2-adaptive-window --http2-initial-connection-window-size
        --http2-initial-stream-window-size --http2-keep-alive-interval --http2-keep-alive-timeout
        --http2-max-concurrent-streams --http2-max-frame-size --http2-max-headers-size
        --http2-max-send-buffer-size --log --no-log --log-level --log-config --access-log
        --no-access-log --access-log-fmt --ssl-certificate --ssl-keyfile --ssl-keyfile-password
        --ssl-protocol-min --ssl-ca --ssl-crl --ssl-client-verify --url-path-prefix
        --respawn-failed-workers --respawn-interval --rss-sample-interval --rss-samples
        --workers-lifetime --workers-max-rss --workers-kill-timeout --factory --no-factory
        --working-dir --env-files --static-path-route --static-path-mount --static-path-dir-to-file
        --static-path-expires --metrics --metrics-scrape-interval --metrics-address --metrics-port
        --reload --no-reload --reload-paths --reload-ignore-dirs --reload-ignore-patterns
        --reload-ignore-paths --reload-tick --reload-ignore-worker-failure --process-name --pid-file
        --version --help""",
}
OWN = {"--config", "-c", "--version", "-v", "--help", "-h"}
OWN |= {flag for declaration in SETTINGS.values() for flag in flags(declaration)}
PAGE = Path(__file__).parents[2] / "docs/how-to/move-from-uvicorn-or-gunicorn.md"


@pytest.mark.parametrize("server", OPTIONS)
def test_each_option_is_ours_or_has_an_answer(server: str) -> None:
    unknown = [each for each in OPTIONS[server].split() if each not in OWN and each not in INSTEAD]
    assert unknown == []


@pytest.mark.parametrize("server", OPTIONS)
def test_the_page_names_each_option_that_is_not_ours(server: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    section = page.partition(f"\n## From {server}\n")[2].partition("\n## ")[0]
    missing = [
        each for each in OPTIONS[server].split() if each not in OWN and f"`{each}`" not in section
    ]
    assert missing == []


def test_an_answer_is_only_given_where_there_is_no_option() -> None:
    assert OWN.isdisjoint(INSTEAD)


UVICORN_RUN = {
    "host": "127.0.0.1",
    "port": 8000,
    "uds": None,
    "fd": None,
    "loop": "auto",
    "http": "auto",
    "ws": "auto",
    "ws_max_size": 16777216,
    "ws_max_queue": 32,
    "ws_ping_interval": 20.0,
    "ws_ping_timeout": 20.0,
    "ws_per_message_deflate": True,
    "lifespan": "auto",
    "interface": "auto",
    "reload": False,
    "reload_dirs": None,
    "reload_includes": None,
    "reload_excludes": None,
    "reload_delay": 0.25,
    "workers": None,
    "env_file": None,
    "log_config": None,
    "log_level": None,
    "access_log": True,
    "proxy_headers": True,
    "server_header": True,
    "date_header": True,
    "forwarded_allow_ips": None,
    "root_path": "",
    "limit_concurrency": None,
    "backlog": 2048,
    "limit_max_requests": None,
    "limit_max_requests_jitter": 0,
    "timeout_keep_alive": 5,
    "timeout_graceful_shutdown": None,
    "ssl_keyfile": None,
    "ssl_certfile": None,
    "ssl_keyfile_password": None,
    "ssl_cert_reqs": 0,
    "ssl_ca_certs": None,
    "ssl_ciphers": None,
    "ssl_context_factory": None,
    "headers": None,
    "use_colors": None,
    "app_dir": None,
    "factory": False,
    "reset_contextvars": False,
}
"""What ``uvicorn.run()`` takes, with its defaults, but for what has an answer."""


def test_the_arguments_of_uvicorn_run_are_understood_and_its_defaults_are_ours() -> None:
    found = Source(given=from_arguments(UVICORN_RUN), environment={}, directory="/").read().settings
    assert found.addresses == type(found)().addresses
    assert found.workers == 1
    assert inspect.signature(__import__("asgictl").run).parameters.keys() == {
        "application",
        "settings",
    }


def test_values_may_be_of_the_kinds_that_uvicorn_run_takes() -> None:
    layer = from_arguments(
        {
            "headers": [("x-a", "1"), ("x-b", "2")],
            "reload_dirs": ["src", Path("lib")],
            "reload_includes": "*.html",
            "forwarded_allow_ips": ["10.0.0.1", "10.0.0.2"],
            "log_level": 30,
            "env_file": Path("some.env"),
            "ssl_certfile": Path("cert.pem"),
            "limit_max_requests": 100,
        }
    )
    assert {name: given.value for name, given in layer.items()} == {
        "header": ("x-a: 1", "x-b: 2"),
        "reload_dir": ("src", "lib"),
        "reload_include": ("*.html",),
        "forwarded_allow_ips": "10.0.0.1,10.0.0.2",
        "log_level": "warning",
        "env_file": ("some.env",),
        "ssl_certfile": "cert.pem",
        "max_requests": 100,
    }
    assert str(layer["header"].origin) == "headers="


@pytest.mark.parametrize(
    ("number", "word"), [(5, "debug"), (20, "info"), (25, "info"), (60, "critical")]
)
def test_a_log_level_may_be_a_number(number: int, word: str) -> None:
    assert from_arguments({"log_level": number})["log_level"].value == word


def test_an_argument_that_has_an_answer_is_given_it() -> None:
    with pytest.raises(ConfigurationError, match=r"no argument 'http2'; HTTP/1.1 and WebSocket"):
        from_arguments({"http2": False})
