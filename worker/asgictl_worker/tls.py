"""TLS: the context that a worker's connections begin with.

A context is made from files, or by a function of the operator's that may call for the one
from files. What cannot work is refused with the name of the setting and of the file; nothing
ever falls back to plain text.

``TLS`` holds the context that new connections get. A renewed certificate is a new context:
connections that are open keep the one that they began with.
"""

import os
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import cast

from asgictl_worker import certificates, tls_scope
from asgictl_worker.errors import ConfigurationError
from asgictl_worker.settings import WorkerSettings

EXPIRES_SOON = timedelta(days=7)
"""How long before its end a certificate is warned about: whoever renews them is late by then."""

PROTOCOLS = ("http/1.1",)
"""What is offered by ALPN (RFC 7301)."""

Factory = Callable[[WorkerSettings, Callable[[], ssl.SSLContext]], ssl.SSLContext]
"""Makes the context, from the settings and a function that makes the usual one."""

_VERIFY_MODES = {
    **dict.fromkeys(("none", 0), ssl.CERT_NONE),
    **dict.fromkeys(("optional", 1), ssl.CERT_OPTIONAL),
    **dict.fromkeys(("required", 2), ssl.CERT_REQUIRED),
}
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class CannotUseTLS(ConfigurationError):
    """A TLS setting names something that cannot be used."""

    def __init__(self, setting: str, value: str, problem: str, advice: str) -> None:
        self.setting, self.value, self.problem, self.advice = setting, value, problem, advice
        super().__init__(f"{setting} {value!r}: {problem}; {advice}")


class MayNotRead(CannotUseTLS):
    """A file that is there, but not for the user that this process runs as."""


class TLS:
    """The TLS of one worker.

    Attributes:
        context: what new connections begin with, once ``load()`` has made it.
        handshake_timeout: seconds.
    """

    __slots__ = ("_factory", "_from_files", "_settings", "context", "handshake_timeout")

    context: ssl.SSLContext

    def __init__(self, settings: WorkerSettings, factory: Factory | None = None) -> None:
        """Prepare; nothing is read before ``read_files()`` or ``load()``.

        Args:
            settings: those for which ``uses_tls`` is true.
            factory: makes the context; ``ssl_context_factory`` is not asked then.
        """
        self.handshake_timeout = settings.timeout_ssl_handshake
        self._settings = settings
        self._factory = factory
        self._from_files: ssl.SSLContext | CannotUseTLS | None = None

    def read_files(self) -> None:
        """Read the files while this process may, before it changes its user.

        The first ``load()`` uses what was read if it may not read the files any more. What
        goes wrong is told there, where there is somebody to tell.
        """
        if self._settings.ssl_certfile is not None:
            try:
                self._from_files = from_files(self._settings)
            except CannotUseTLS as error:
                self._from_files = error

    def load(self) -> None:
        """Make the context anew, for all connections from now on.

        Raises:
            CannotUseTLS: a setting is wrong; the context is the old one.
            Exception: whatever ``ssl_context_factory`` raises.
        """
        factory, name = self._factory, self._settings.ssl_context_factory
        if factory is None and name is not None:
            factory = _find(name, self._settings.app_dir)
        if factory is None:
            self.context = self._default()
            return
        context = factory(self._settings, self._default)
        if not isinstance(context, ssl.SSLContext):
            raise CannotUseTLS(
                "ssl_context_factory",
                name or repr(factory),
                f"it returned {context!r}",
                "it must return an ssl.SSLContext",
            )
        self.context = context

    def _default(self) -> ssl.SSLContext:
        before, self._from_files = self._from_files, None
        try:
            return from_files(self._settings)
        except MayNotRead:
            if before is None:
                raise
        if isinstance(before, CannotUseTLS):
            raise before
        return before


def from_files(settings: WorkerSettings) -> ssl.SSLContext:
    """Return the context that the files and the other settings describe.

    Raises:
        CannotUseTLS: a file cannot be read, or does not fit.
    """
    if settings.ssl_certfile is None:
        raise CannotUseTLS(
            "ssl_context_factory",
            settings.ssl_context_factory or "",
            "it calls default_factory, which has no certificate",
            "set ssl_certfile too, or make the context without it",
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[settings.ssl_min_version]
    # A client of TLS 1.2 could ask for one costly handshake after the other.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(PROTOCOLS)
    if settings.ssl_ciphers is not None:
        try:
            context.set_ciphers(settings.ssl_ciphers)
        except ssl.SSLError:
            raise CannotUseTLS(
                "ssl_ciphers",
                settings.ssl_ciphers,
                "it selects no cipher",
                "see `openssl ciphers -v` for their names",
            ) from None
    _load_certificate(context, settings)
    if settings.ssl_ca_certs is not None:
        _load_authorities(context, settings.ssl_ca_certs)
        context.verify_mode = _VERIFY_MODES[settings.ssl_cert_reqs]
    return context


def _load_certificate(context: ssl.SSLContext, settings: WorkerSettings) -> None:
    certfile, keyfile = settings.ssl_certfile, settings.ssl_keyfile
    assert certfile is not None
    text = _read("ssl_certfile", certfile)
    whose = ("ssl_keyfile", keyfile) if keyfile is not None else ("ssl_certfile", certfile)
    if keyfile is not None:
        _read(*whose)
    password, asked = settings.ssl_keyfile_password or "", False

    def answer() -> str:
        nonlocal asked
        asked = True
        return password

    try:
        # Always with an answer: OpenSSL would ask the terminal and wait.
        context.load_cert_chain(certfile, keyfile, answer)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CannotUseTLS(
                *whose,
                f"the key does not belong to the first certificate in {certfile!r}",
                "name the two that were made together, the server's own certificate first",
            ) from None
        if asked and not password:
            raise CannotUseTLS(*whose, "the key is encrypted", "set ssl_keyfile_password") from None
        if asked:
            raise CannotUseTLS(
                *whose,
                "the key cannot be decrypted",
                "correct ssl_keyfile_password",
            ) from None
        if certificates.first_of(text) is None:
            raise CannotUseTLS(
                "ssl_certfile", certfile, "there is no certificate in it", "it must be PEM"
            ) from None
        raise CannotUseTLS(
            *whose, f"no usable private key is in it ({error.reason or error})", "it must be PEM"
        ) from None
    except ValueError as error:
        # A password of more than 1023 bytes, among others.
        raise CannotUseTLS(*whose, str(error), "correct ssl_keyfile_password") from None
    own = certificates.first_of(text)
    if own is not None:
        tls_scope.remember(context, ssl.DER_cert_to_PEM_cert(own))


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    is_directory = os.path.isdir(path)
    if not is_directory:
        _read("ssl_ca_certs", path)
    try:
        if is_directory:
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise CannotUseTLS(
            "ssl_ca_certs",
            path,
            f"there is no certificate in it ({error.reason or error})",
            "it must be PEM",
        ) from None


def _read(setting: str, path: str) -> str:
    try:
        with open(path, encoding="latin-1") as file:
            return file.read()
    except OSError as error:
        kind = MayNotRead if isinstance(error, PermissionError) else CannotUseTLS
        raise kind(
            setting, path, f"it cannot be read: {error.strerror}", "check the path and its rights"
        ) from None


def _find(name: str, app_dir: str | None) -> Factory:
    # Here and not above: whoever only reads files has no use for the application's side.
    from asgictl_worker import application

    try:
        found = application.find(name, app_dir)
    except application.ApplicationError as error:
        raise CannotUseTLS("ssl_context_factory", name, error.problem, error.advice) from None
    if not callable(found):
        raise CannotUseTLS(
            "ssl_context_factory", name, "it is not a function", "name one of two arguments"
        )
    return cast("Factory", found)


def check(settings: WorkerSettings, now: datetime, *, strict: bool) -> list[str]:
    """Look at the files as ``load()`` will, and at the dates; return what should be mended.

    Args:
        settings: with or without TLS.
        now: the time, with its zone.
        strict: a certificate that is not valid now is an error and not a remark. It should
            not replace one that is; but who has nothing else is better served by it than by
            no server at all.

    Raises:
        CannotUseTLS: the files do not make a context.
    """
    certfile = settings.ssl_certfile
    if certfile is None:
        return []
    remarks = []
    from_files(settings)
    own = certificates.first_of(_read("ssl_certfile", certfile))
    if settings.ssl_ca_certs is not None and settings.ssl_cert_reqs in ("none", 0):
        remarks.append(
            "ssl_ca_certs is set, but clients are not asked for a certificate: set ssl_cert_reqs "
            "to required (or optional)"
        )
    if own is not None:
        remarks += _look_at_dates(certfile, own, now, strict)
    return remarks


def _look_at_dates(certfile: str, der: bytes, now: datetime, strict: bool) -> list[str]:
    try:
        certificate = certificates.parse(der)
    except certificates.MalformedCertificate:
        # OpenSSL has taken it, so it is our reading that is too narrow.
        return []
    begin, end = (
        f"{moment:%Y-%m-%d %H:%M} UTC" for moment in (certificate.not_before, certificate.not_after)
    )
    if certificate.not_after <= now:
        problem = f"the certificate has expired at {end}"
    elif certificate.not_before > now:
        problem = f"the certificate is not valid before {begin}"
    elif certificate.not_after - now < EXPIRES_SOON:
        return [f"ssl_certfile {certfile!r}: the certificate expires at {end}; renew it"]
    else:
        return []
    error = CannotUseTLS("ssl_certfile", certfile, problem, "renew it, or correct the clock")
    if strict:
        raise error
    return [str(error)]
