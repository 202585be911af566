"""The worker as a worker class of Gunicorn.

::

    gunicorn -k asgictl_worker.gunicorn.AsgiWorker -w 4 app:app

Gunicorn's arbiter supervises, this serves. Gunicorn's options keep their meaning; what
Gunicorn has no option for is set by ``ASGICTL_*`` variables, or in a subclass.

Exit codes are those that the arbiter knows: 3 for a worker that cannot boot, 4 for an
application that cannot be imported. Both end Gunicorn.
"""

import asyncio
import logging
import os
import signal
import ssl
import sys
import types
from collections.abc import Mapping
from datetime import timedelta
from types import FrameType
from typing import Any, ClassVar, NoReturn

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

from asgictl_worker import application, hygiene
from asgictl_worker.access_format import NO_DETAILS, Headers
from asgictl_worker.access_log import AccessLog, Exchange
from asgictl_worker.errors import AsgictlError
from asgictl_worker.main import loop_factory, turn_once_more
from asgictl_worker.server import Server
from asgictl_worker.settings import WorkerSettings, declarations, read
from asgictl_worker.tls import TLS

logger = logging.getLogger("asgictl.worker")

UNLIMITED = 2**30
"""What Gunicorn's 0 stands for where we have no word for it."""

MARGIN = 3.0
"""Seconds of ``--graceful-timeout`` that are kept for the lifespan shutdown, at most: when it
is over, the arbiter kills."""

MAX_BEAT = 0.5
"""Seconds between two beats, at most; the arbiter and max-requests are looked at then, too."""


class AsgiWorker(Worker):  # type: ignore[misc]  # Gunicorn has no types
    """Serves ASGI (and WSGI) applications under Gunicorn.

    Attributes:
        SETTINGS: settings of the worker that win over everything else, for a subclass.
        failed: this worker could not boot.
    """

    SETTINGS: ClassVar[Mapping[str, Any]] = {}
    failed = False

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Warn about options that have no effect here; the arbiter calls this at its start."""
        for name, advice in _WITHOUT_EFFECT.items():
            option = cfg.settings.get(name)  # other versions have other options
            if option is not None and option.get() != type(option)().get():
                log.warning("%s has no effect with %s: %s", name, cls.__name__, advice)

    def init_process(self) -> None:
        """Prepare the process; Gunicorn's part of it ends by calling ``run()``."""
        _log_to(self.log)
        try:
            self.settings = worker_settings(
                self.cfg, {**_from_environment(os.environ), **self.SETTINGS}
            )
        except AsgictlError as error:
            self._fail(error)
        super().init_process()

    def run(self) -> None:
        """Serve until told to stop."""
        if not self.alive:
            return  # told so while the application was imported
        # Never closed: that would wait without limit for tasks and threads that do not end.
        runner = asyncio.Runner(loop_factory=self._loop_factory())
        try:
            runner.run(self._live())
        except SystemExit as error:
            if self.aborted or self.failed:
                raise
            turn_once_more(runner.get_loop())
            # With a code of its own the application could tell the arbiter anything.
            logger.critical("the application ended this worker", exc_info=error)
            sys.exit(1)

    def _loop_factory(self) -> Any:
        try:
            return loop_factory(self.settings.loop)
        except AsgictlError as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> NoReturn:
        self.failed = True
        known = isinstance(error, AsgictlError)
        details = getattr(error, "details", "")
        logger.critical(
            "this worker cannot boot: %s%s",
            error if known else repr(error),
            f"\n{details}" if details else "",
            exc_info=None if known else error,
        )
        sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def _live(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(hygiene.log_exception)
        app = application.adapt(self.wsgi, self.settings.interface)
        self.server = Server(app, self.settings, tls=self._tls())
        self._listen_to_signals()
        self._beat()
        try:
            booted = await self.server.startup()
        except (Exception, SystemExit) as error:
            self._fail(error)
        if booted:
            await self._serve()
        await self.server.shutdown()
        await hygiene.cancel_leftovers()

    async def _serve(self) -> None:
        server, watch = self.server, None
        if self.settings.access_log:
            server.service.access_log = GunicornAccess(self.log)
        if self.settings.loop_lag_warning:
            watch = hygiene.LagWatch(self.loop, self.settings.loop_lag_warning)
            watch.start()
        server.start_accepting([listener.sock for listener in self.sockets])
        logger.info("ready: pid=%d", os.getpid())
        await server.stopping.wait()
        # If it is the arbiter that stops, nobody accepts what is in the kernel's queue.
        server.stop_accepting(for_good=True)
        logger.info("draining: pid=%d connections=%d", os.getpid(), server.connections)
        await server.drain()
        if watch is not None:
            watch.stop()

    def _tls(self) -> TLS | None:
        if not self.settings.uses_tls:
            return None
        hook = self.cfg.ssl_context

        def make(_: WorkerSettings, default: Any) -> ssl.SSLContext:
            context: ssl.SSLContext = hook(self.cfg, default)
            return context

        return TLS(self.settings, make)

    # -- What others want

    def _listen_to_signals(self) -> None:
        # SIGABRT stays with a plain handler: it comes when the loop does not turn.
        self.loop.add_signal_handler(signal.SIGTERM, self._stop)
        self.loop.add_signal_handler(signal.SIGINT, self._quit)
        self.loop.add_signal_handler(signal.SIGQUIT, self._quit)
        self.loop.add_signal_handler(signal.SIGUSR1, self.log.reopen_files)
        self.loop.add_signal_handler(signal.SIGWINCH, _nothing)

    def _stop(self) -> None:
        # The arbiter repeats itself, so a second one is no reason to hurry.
        if not self.server.stopping.is_set():
            self.alive = False
            self.server.stop()

    def _quit(self) -> None:
        self.alive = False
        self.cfg.worker_int(self)
        self.server.stop(0)

    def handle_abort(self, sig: int, frame: FrameType | None) -> None:
        """Leave at once, and say where the loop was stuck: the arbiter has lost patience."""
        self.aborted = True
        logger.critical(
            "aborted by the arbiter after %g s without a beat, here:\n%s",
            self.cfg.timeout,
            hygiene.stack_of(frame),
        )
        # The exit goes up through whatever runs now; the loop need not tell of that too.
        self.loop.set_exception_handler(_ignore)
        super().handle_abort(sig, frame)

    def _beat(self) -> None:
        """Show the arbiter that the loop turns, and see whether it is time to leave."""
        self.notify()
        if not self.server.stopping.is_set():
            reason = self._reason_to_leave()
            if reason:
                logger.info("leaving: pid=%d reason=%s", os.getpid(), reason)
                self._stop()
        # ``timeout`` is half of the option, and 0 if nobody looks.
        self.loop.call_later(min(MAX_BEAT, self.timeout / 4 or MAX_BEAT), self._beat)

    def _reason_to_leave(self) -> str:
        if not self.alive:
            return "told by Gunicorn"
        if self.ppid != os.getppid():
            return "the arbiter is gone"
        if self.server.started.is_set():
            self.nr = self.server.service.counters.requests_total
            if self.nr >= self.max_requests:
                return f"{self.nr} requests served"
        return ""


# -- Settings


def worker_settings(cfg: Any, more: Mapping[str, Any] | None = None) -> WorkerSettings:
    """Return the worker's settings for Gunicorn's.

    Args:
        cfg: Gunicorn's configuration.
        more: settings that win over those of Gunicorn.

    Raises:
        ConfigurationError: a value is not allowed.
    """
    # Peers without an address have the rights of the socket's directory (Gunicorn's rule).
    trusted = [*cfg.forwarded_allow_ips, "unix:"]
    graceful = float(cfg.graceful_timeout)
    found: dict[str, Any] = {
        "loop": cfg.asgi_loop,
        "lifespan": cfg.asgi_lifespan,
        "root_path": cfg.root_path,
        "limit_request_line": cfg.limit_request_line or UNLIMITED,
        "limit_request_fields": cfg.limit_request_fields or UNLIMITED,
        "limit_request_field_size": cfg.limit_request_field_size or UNLIMITED,
        "timeout_keep_alive": float(cfg.keepalive),
        "timeout_graceful_shutdown": graceful - min(MARGIN, graceful / 4),
        "ws_max_size": cfg.websocket_max_message_size or UNLIMITED,
        "forwarded_allow_ips": ",".join(trusted),
        "proxy_protocol": cfg.proxy_protocol not in ("off", False),
        "proxy_allow_from": ",".join([*cfg.proxy_allow_ips, "unix:"]),
        "access_log": _logs_access(cfg),
        "ssl_certfile": cfg.certfile,
        "ssl_keyfile": cfg.keyfile,
        "ssl_ca_certs": cfg.ca_certs,
        "ssl_cert_reqs": int(cfg.cert_reqs),
        "ssl_ciphers": cfg.ciphers,
    }
    return WorkerSettings(**{**found, **(more or {})})


def _logs_access(cfg: Any) -> bool:
    """Return whether Gunicorn has somewhere to write access lines (as its Logger decides it)."""
    configured = cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json
    syslog = cfg.syslog and not cfg.disable_redirect_access_to_syslog
    return bool(cfg.accesslog or configured or syslog or cfg.statsd_host)


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    return {
        name: read(declaration, environ[declaration.variable])
        for name, declaration in declarations(WorkerSettings).items()
        if environ.get(declaration.variable)
    }


_WITHOUT_EFFECT: Mapping[str, str] = {
    "threads": "a worker runs one event loop; use --workers",
    "worker_connections": "set ASGICTL_LIMIT_CONNECTIONS",
    "http_protocols": "HTTP/1.1 and WebSocket are spoken",
    "http2_cleartext": "HTTP/1.1 and WebSocket are spoken",
    "http2_initial_window_size": "HTTP/1.1 and WebSocket are spoken",
    "http2_max_concurrent_streams": "HTTP/1.1 and WebSocket are spoken",
    "http2_max_frame_size": "HTTP/1.1 and WebSocket are spoken",
    "http2_max_header_list_size": "HTTP/1.1 and WebSocket are spoken",
    "protocol": "HTTP/1.1 and WebSocket are spoken",
    "uwsgi_allow_ips": "HTTP/1.1 and WebSocket are spoken",
    "secure_scheme_headers": "X-Forwarded-Proto and Forwarded are read",
    "permit_obsolete_folding": "requests that can be read in two ways are refused",
    "strip_header_spaces": "requests that can be read in two ways are refused",
    "permit_unconventional_http_method": "methods are those of the IANA registry",
    "permit_unconventional_http_version": "HTTP/1.0 and HTTP/1.1 are spoken",
    "casefold_http_method": "methods are case-sensitive",
    "asgi_disconnect_grace_period": "the application is told by http.disconnect and not cancelled",
    "http_parser": "set ASGICTL_HTTP",
    "pre_request": "put a middleware around the application",
    "post_request": "put a middleware around the application",
    "header_map": "headers are passed on as they came, underscores included",
    "forwarder_headers": "headers are passed on as they came",
    "ssl_version": "set ASGICTL_SSL_MIN_VERSION",
    "do_handshake_on_connect": "the event loop shakes hands",
    "suppress_ragged_eofs": "a client that ends without the end of TLS has left",
    "sendfile": "an application chooses by http.response.pathsend or zerocopysend",
}
"""Gunicorn's options that nothing is done about, and what to do instead."""


# -- Logs


def _log_to(log: Any) -> None:
    """Let our loggers write where Gunicorn's write."""
    errors = getattr(log, "error_log", None)
    if errors is not None:  # a logger class of the operator's may have none
        ours = logging.getLogger("asgictl")
        ours.handlers = errors.handlers
        ours.setLevel(errors.level)
        ours.propagate = errors.propagate


class GunicornAccess(AccessLog):
    """Hands every response to Gunicorn's logger, which knows ``--access-logformat``."""

    __slots__ = ("_log",)

    def __init__(self, log: Any) -> None:
        self._log = log

    def request(
        self,
        client: str,
        method: str,
        target: bytes,
        http_version: str,
        status: int,
        size: int,
        seconds: float,
        exchange: Exchange | None = None,
    ) -> None:
        """See ``AccessLog``."""
        uri = target.decode("ascii", "backslashreplace")
        path, _, query = uri.partition("?")
        details = NO_DETAILS if exchange is None else exchange.details()
        headers = _as_text(details.request_headers)
        environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers}
        environ |= {
            "REMOTE_ADDR": client.rpartition(":")[0] or "-",
            "REQUEST_METHOD": method,
            "RAW_URI": uri,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_PROTOCOL": f"HTTP/{http_version}",
            "REQUEST_ID": details.request_id or "-",
        }
        response = types.SimpleNamespace(
            status=status, sent=size, headers=_as_text(details.response_headers)
        )
        request = types.SimpleNamespace(headers=headers)
        self._log.access(response, request, environ, timedelta(seconds=seconds))

    def flush(self, timeout: float = 0.0) -> None:
        """Do nothing: handlers keep their own buffers."""


def _as_text(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _nothing() -> None:
    pass


def _ignore(_: asyncio.AbstractEventLoop, __: dict[str, Any]) -> None:
    pass
