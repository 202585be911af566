"""What the application is told about TLS: the extension ``tls`` of its scope.

Source: https://asgi.readthedocs.io/en/latest/specs/tls.html, version 0.2.
"""

import ssl
from typing import Any
from weakref import WeakKeyDictionary

from asgictl_worker import certificates

_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


_server_certs: WeakKeyDictionary[ssl.SSLContext, str] = WeakKeyDictionary()
_cipher_suites: dict[str, int] = {}
"""Their numbers, by OpenSSL's names (RFC 8446, section B.4)."""


def remember(context: ssl.SSLContext, server_cert: str) -> None:
    """Note the certificate of a context, in PEM: OpenSSL does not tell it later."""
    _server_certs[context] = server_cert


def describe(connection: ssl.SSLObject) -> dict[str, Any]:
    """Return the value of the extension for a connection whose handshake is complete."""
    # SNI may have chosen another context than the one that the connection began with.
    context = connection.context
    chain = _client_chain(connection)
    cipher = connection.cipher()
    return {
        "server_cert": _server_certs.get(context),
        "client_cert_chain": tuple(map(ssl.DER_cert_to_PEM_cert, chain)),
        "client_cert_name": _subject(chain[0]) if chain else None,
        # One that was not verified has ended the handshake.
        "client_cert_error": None,
        "tls_version": _VERSIONS.get(connection.version() or ""),
        "cipher_suite": _number(context, cipher[0]) if cipher else None,
    }


def _number(context: ssl.SSLContext, cipher: str) -> int | None:
    if cipher not in _cipher_suites:
        # OpenSSL sets a protocol number before the two bytes.
        _cipher_suites.update({item["name"]: item["id"] & 0xFFFF for item in context.get_ciphers()})
    return _cipher_suites.get(cipher)


def _client_chain(connection: ssl.SSLObject) -> list[bytes]:
    """Return the certificates that the client sent, its own first, as DER."""
    if connection.getpeercert(binary_form=True) is None:
        return []
    if hasattr(connection, "get_unverified_chain"):  # CPython 3.13
        return list(connection.get_unverified_chain())
    # Before, it was there but not shown; the certificates can write themselves as DER (2).
    hidden: Any = connection
    return [each.public_bytes(2) for each in hidden._sslobj.get_unverified_chain()]


def _subject(der: bytes) -> str | None:
    try:
        return certificates.parse(der).subject
    except certificates.MalformedCertificate:
        return None
