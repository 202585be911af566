import asyncio
import contextlib
import datetime
import re
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.authority import Authority, Issued
from tests.worker.waiting import until
from websockets.asyncio.client import connect

from asgictl_worker import tls
from asgictl_worker.connection import FAREWELL
from asgictl_worker.errors import BadSetting, ExitCode, MissingSetting
from asgictl_worker.server import HANDSHAKE_GRACE, Server
from asgictl_worker.settings import WorkerSettings
from asgictl_worker.timers import INTERVAL
from asgictl_worker.tls import TLS, CannotUseTLS, MayNotRead

GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
REFUSED = (ssl.SSLError, ConnectionResetError, httpx.TransportError)
"""How clients see that their handshake has failed: the event loops do not send alerts."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue()


def settings(*given: Issued, **more: Any) -> WorkerSettings:
    found = given[0].settings if given else {}
    return WorkerSettings(access_log=False, lifespan="off", **(found | more))


# -- Settings


def test_there_is_no_tls_without_a_certificate() -> None:
    assert not settings().uses_tls


def test_a_key_without_a_certificate_is_refused_instead_of_serving_plain_text() -> None:
    with pytest.raises(MissingSetting, match="ssl_keyfile is set but ssl_certfile is not"):
        settings(ssl_keyfile="key.pem")


@pytest.mark.parametrize("wanted", ["optional", "required", 1, 2])
def test_client_certificates_need_an_authority_of_their_own(wanted: Any) -> None:
    with pytest.raises(MissingSetting, match="ssl_cert_reqs is set but ssl_ca_certs is not"):
        settings(ssl_certfile="a", ssl_cert_reqs=wanted)


@pytest.mark.parametrize("name", ["module", "module:function()", ":function", "a b:c", "a:b:c"])
def test_a_factory_is_named_by_module_and_function(name: str) -> None:
    with pytest.raises(BadSetting, match="the name of a function, module:function"):
        settings(ssl_context_factory=name)


def test_the_password_is_not_shown() -> None:
    assert "swordfish" not in repr(settings(ssl_certfile="a", ssl_keyfile_password="swordfish"))


# -- The context


def test_a_context_is_strict_by_default(issued: Issued) -> None:
    context = tls.from_files(settings(issued))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.verify_mode is ssl.CERT_NONE


def test_certificate_and_key_may_share_a_file(issued: Issued, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_text(Path(issued.keyfile).read_text() + Path(issued.certfile).read_text())
    tls.from_files(settings(ssl_certfile=str(both)))


def test_an_encrypted_key_is_read_with_its_password(authority: Authority) -> None:
    encrypted = authority.issue(file="encrypted", password="swordfish")
    tls.from_files(settings(encrypted, ssl_keyfile_password="swordfish"))


def test_a_wrong_password_is_told_apart_from_none_at_all(authority: Authority) -> None:
    encrypted = authority.issue(file="encrypted", password="swordfish")
    with pytest.raises(CannotUseTLS, match=r"encrypted.key': the key is encrypted; set ssl_keyfi"):
        tls.from_files(settings(encrypted))
    with pytest.raises(CannotUseTLS, match="the key cannot be decrypted; correct") as caught:
        tls.from_files(settings(encrypted, ssl_keyfile_password="trout"))
    assert "trout" not in str(caught.value)
    with pytest.raises(CannotUseTLS, match="password cannot be longer than 1024 bytes"):
        tls.from_files(settings(encrypted, ssl_keyfile_password="x" * 2000))


def test_a_key_of_another_certificate_is_refused(authority: Authority, issued: Issued) -> None:
    other = authority.issue(file="other")
    mixed = settings(ssl_certfile=issued.certfile, ssl_keyfile=other.keyfile)
    with pytest.raises(CannotUseTLS, match=r"other.key': the key does not belong to the first"):
        tls.from_files(mixed)


@pytest.mark.parametrize(
    ("setting", "text", "problem"),
    [
        ("ssl_certfile", None, "it cannot be read: No such file"),
        ("ssl_keyfile", None, "it cannot be read: No such file"),
        ("ssl_ca_certs", None, "it cannot be read: No such file"),
        ("ssl_certfile", "", "there is no certificate in it"),
        ("ssl_certfile", "words", "there is no certificate in it"),
        ("ssl_keyfile", "", "no usable private key is in it"),
        ("ssl_keyfile", "words", "no usable private key is in it"),
        ("ssl_ca_certs", "", "there is no certificate in it"),
    ],
)
def test_a_file_that_does_not_serve_is_named_with_its_setting(
    setting: str, text: str | None, problem: str, issued: Issued, tmp_path: Path
) -> None:
    path = tmp_path / "file.pem"
    if text is not None:
        path.write_text(text)
    wrong = settings(issued, **{"ssl_ca_certs": issued.certfile} | {setting: str(path)})
    with pytest.raises(CannotUseTLS) as caught:
        tls.from_files(wrong)
    assert str(caught.value).startswith(f"{setting} '{path}': {problem}")
    assert caught.value.exit_code is ExitCode.BAD_CONFIGURATION


def test_ciphers_that_do_not_exist_are_refused(issued: Issued) -> None:
    with pytest.raises(CannotUseTLS, match="ssl_ciphers 'ROT13': it selects no cipher"):
        tls.from_files(settings(issued, ssl_ciphers="ROT13"))


def test_authorities_may_stand_in_a_directory(authority: Authority, issued: Issued) -> None:
    context = tls.from_files(
        settings(issued, ssl_ca_certs=str(authority.directory), ssl_cert_reqs="required")
    )
    assert context.verify_mode is ssl.CERT_REQUIRED


# -- What is read before privileges are dropped


def test_files_that_may_not_be_read_any_more_are_used_as_they_were_read_before(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = TLS(settings(authority.issue(file="roots")))
    each.read_files()

    def forbidden(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    # As root the rights of a file count for nothing, so they are taken away here.
    monkeypatch.setattr("builtins.open", forbidden)
    each.load()
    first = each.context
    with pytest.raises(MayNotRead, match="it cannot be read: Permission denied"):
        each.load()
    assert each.context is first


def test_what_goes_wrong_before_privileges_are_dropped_is_told_by_load(tmp_path: Path) -> None:
    each = TLS(settings(ssl_certfile=str(tmp_path / "none.pem")))
    each.read_files()
    with pytest.raises(CannotUseTLS, match="No such file"):
        each.load()


# -- The check before a start and a reload


def remarks(*, strict: bool = False, now: datetime.datetime = NOW, **of: Any) -> list[str]:
    return tls.check(WorkerSettings(**of), now, strict=strict)


def test_nothing_is_checked_without_tls() -> None:
    assert remarks() == []


def test_a_good_certificate_leaves_nothing_to_say(issued: Issued) -> None:
    assert remarks(strict=True, **issued.settings) == []


def test_an_expired_certificate_is_an_error_where_there_is_a_better_one(issued: Issued) -> None:
    later = NOW + 91 * DAY
    with pytest.raises(CannotUseTLS, match=r"the certificate has expired at 20\d\d-\d\d-\d\d"):
        remarks(strict=True, now=later, **issued.settings)
    (remark,) = remarks(now=later, **issued.settings)
    assert "the certificate has expired at" in remark


def test_a_certificate_of_the_future_is_an_error_too(issued: Issued) -> None:
    earlier = NOW - 2 * DAY
    with pytest.raises(CannotUseTLS, match="the certificate is not valid before 20"):
        remarks(strict=True, now=earlier, **issued.settings)
    (remark,) = remarks(now=earlier, **issued.settings)
    assert "the certificate is not valid before" in remark


def test_a_certificate_that_ends_soon_is_remarked_upon(issued: Issued) -> None:
    soon = NOW + 90 * DAY - tls.EXPIRES_SOON
    assert remarks(strict=True, now=soon - DAY, **issued.settings) == []
    (remark,) = remarks(strict=True, now=soon + DAY, **issued.settings)
    assert re.search(r"server.pem': the certificate expires at .* UTC; renew it", remark)


def test_authorities_that_nobody_asks_are_remarked_upon(issued: Issued) -> None:
    (remark,) = remarks(ssl_ca_certs=issued.certfile, **issued.settings)
    assert "set ssl_cert_reqs to required" in remark
    asked = issued.settings | {"ssl_ca_certs": issued.certfile, "ssl_cert_reqs": 2}
    assert remarks(**asked) == []


def test_the_check_finds_what_loading_would_find(issued: Issued, tmp_path: Path) -> None:
    with pytest.raises(CannotUseTLS, match="No such file"):
        remarks(**issued.settings | {"ssl_keyfile": str(tmp_path / "none.key")})


# -- Serving


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with what was asked for, and note the scope."""
    echo.scope = scope  # type: ignore[attr-defined]
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"].upper()})
        return
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    body = b"%d " % size + (b"x" * 3_000_000 if scope["path"] == "/big" else b"")
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def serving(of: WorkerSettings, app: Any = echo, **how: Any) -> AsyncIterator[Server]:
    server = Server(app, of, **how)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve(port=0))
        await server.started.wait()
        try:
            yield server
        finally:
            server.stop(0)


def port_of(server: Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


def url(server: Server, path: str = "/") -> str:
    return f"https://localhost:{port_of(server)}{path}"


def browser(context: ssl.SSLContext) -> httpx.AsyncClient:
    return httpx.AsyncClient(verify=context, trust_env=False)


async def open_tls(
    server: Server, context: ssl.SSLContext, name: str = "localhost"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        "127.0.0.1", port_of(server), ssl=context, server_hostname=name
    )


async def test_requests_and_their_bodies_come_through(authority: Authority, issued: Issued) -> None:
    async with serving(settings(issued)) as server, browser(authority.client()) as client:
        answer = await client.post(url(server, "/big"), content=b"y" * 2_000_000)
        assert answer.text == "2000000 " + "x" * 3_000_000
        assert (await client.get(url(server))).text == "0 "
        assert echo.scope["scheme"] == "https"  # type: ignore[attr-defined]
        assert server.service.counters.requests_total == 2


async def test_websockets_come_through(authority: Authority, issued: Issued) -> None:
    async with serving(settings(issued)) as server:
        address = f"wss://localhost:{port_of(server)}/"
        async with connect(address, ssl=authority.client(), proxy=None) as client:
            await client.send("hello" * 100_000)
            assert await client.recv() == "HELLO" * 100_000
        assert echo.scope["scheme"] == "wss"  # type: ignore[attr-defined]
        assert echo.scope["extensions"]["tls"]["tls_version"] == 0x0304  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["h2", "http/1.1"], "http/1.1"), (["h2"], None), ([], None)]
)
async def test_alpn_chooses_what_is_spoken(
    authority: Authority, issued: Issued, offered: list[str], chosen: str | None
) -> None:
    context = authority.client()
    if offered:
        context.set_alpn_protocols(offered)
    async with serving(settings(issued)) as server:
        _, writer = await open_tls(server, context)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == chosen
        writer.transport.abort()


async def test_the_extension_tells_version_cipher_and_own_certificate(
    authority: Authority, issued: Issued
) -> None:
    async with serving(settings(issued)) as server, browser(authority.client()) as client:
        await client.get(url(server))
        extension = echo.scope["extensions"]["tls"]  # type: ignore[attr-defined]
        assert extension == {
            "server_cert": issued.certificate,
            "client_cert_chain": (),
            "client_cert_name": None,
            "client_cert_error": None,
            "tls_version": 0x0304,
            "cipher_suite": 0x1302,  # TLS_AES_256_GCM_SHA384
        }
        extension["client_cert_name"] = "CN=root"
        await client.get(url(server))
        assert echo.scope["extensions"]["tls"]["client_cert_name"] is None  # type: ignore[attr-defined]


async def test_the_extension_knows_older_ciphers_by_their_numbers(
    authority: Authority, issued: Issued
) -> None:
    context = authority.client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    async with serving(settings(issued)) as server, browser(context) as client:
        await client.get(url(server))
    extension = echo.scope["extensions"]["tls"]  # type: ignore[attr-defined]
    assert (extension["tls_version"], extension["cipher_suite"]) == (0x0303, 0xC02B)


async def test_plain_connections_have_no_such_extension() -> None:
    async with serving(settings()) as server, httpx.AsyncClient(trust_env=False) as client:
        await client.get(f"http://127.0.0.1:{port_of(server)}/")
    assert "tls" not in echo.scope["extensions"]  # type: ignore[attr-defined]


# -- Client certificates


@pytest.mark.parametrize("wanted", ["optional", "required", 2])
async def test_a_client_certificate_is_shown_to_the_application(
    authority: Authority, issued: Issued, wanted: Any
) -> None:
    of = settings(issued, ssl_ca_certs=authority.certfile, ssl_cert_reqs=wanted)
    who = authority.issue("agent", file="agent", common_name="Smart, Max")
    async with serving(of) as server, browser(authority.client(who)) as client:
        await client.get(url(server))
    extension = echo.scope["extensions"]["tls"]  # type: ignore[attr-defined]
    # OpenSSL's clients send the authority's certificate along if they know it.
    assert extension["client_cert_chain"] == (who.certificate, authority.certificate)
    name = "CN=Smart\\, Max,OU=Testing cert,O=Sprockets\\, Inc."
    assert re.sub(r"OU=Testing cert[^,]*", "OU=Testing cert", extension["client_cert_name"]) == name


async def test_a_client_without_a_certificate_is_served_if_it_is_optional(
    authority: Authority, issued: Issued
) -> None:
    of = settings(issued, ssl_ca_certs=authority.certfile, ssl_cert_reqs="optional")
    async with serving(of) as server, browser(authority.client()) as client:
        assert (await client.get(url(server))).status_code == 200
    assert echo.scope["extensions"]["tls"]["client_cert_chain"] == ()  # type: ignore[attr-defined]


@pytest.mark.parametrize("wanted", ["optional", "required"])
async def test_a_certificate_of_a_foreign_authority_is_refused(
    authority: Authority, issued: Issued, tmp_path: Path, wanted: str
) -> None:
    of = settings(issued, ssl_ca_certs=authority.certfile, ssl_cert_reqs=wanted)
    stranger = Authority(tmp_path).issue("agent", file="agent")
    async with serving(of) as server, browser(authority.client(stranger)) as client:
        with pytest.raises(REFUSED):
            await client.get(url(server))
        assert server.service.counters.requests_total == 0


async def test_a_client_without_a_certificate_is_refused_if_it_is_required(
    authority: Authority, issued: Issued
) -> None:
    of = settings(issued, ssl_ca_certs=authority.certfile, ssl_cert_reqs="required")
    async with serving(of) as server, browser(authority.client()) as client:
        with pytest.raises(REFUSED):
            await client.get(url(server))
        assert server.service.counters.requests_total == 0


# -- What is refused


@pytest.mark.parametrize(
    "words", [GET, b"\x00" * 100, b"SSH-2.0-OpenSSH_9.6\r\n", b"\x16\x03\x01\x02\x00\x01\x00"]
)
async def test_whoever_does_not_speak_tls_is_cut_off_without_a_plain_word(
    issued: Issued, words: bytes
) -> None:
    of = settings(issued, timeout_ssl_handshake=0.2)
    async with serving(of) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        writer.write(words)
        with contextlib.suppress(ConnectionResetError):
            # At most an alert, which is a TLS record (RFC 8446, section 6): type 21.
            assert (await reader.read())[:1] in (b"", b"\x15")
        writer.close()
        await until(lambda: not server.connections)
        assert server.service.counters.requests_total == 0


async def test_a_client_that_does_not_begin_the_handshake_is_cut_off_in_time(
    issued: Issued,
) -> None:
    async with serving(settings(issued, timeout_ssl_handshake=0.1)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        await until(lambda: server.connections == 1)
        assert await reader.read() == b""
        writer.close()
        await until(lambda: not server.connections)


async def test_a_client_that_speaks_only_old_tls_is_refused(
    authority: Authority, issued: Issued
) -> None:
    context = authority.client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(settings(issued, ssl_min_version="1.3")) as server:
        with pytest.raises(REFUSED):
            await open_tls(server, context)


async def test_a_client_without_a_common_cipher_is_refused(
    authority: Authority, issued: Issued
) -> None:
    context = authority.client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    of = settings(issued, ssl_ciphers="ECDHE-ECDSA-AES256-GCM-SHA384")
    async with serving(of) as server:
        with pytest.raises(REFUSED):
            await open_tls(server, context)


async def test_a_server_whose_certificate_cannot_be_read_does_not_start(tmp_path: Path) -> None:
    server = Server(echo, settings(ssl_certfile=str(tmp_path / "none.pem")))
    with pytest.raises(CannotUseTLS):
        await server.serve(port=0)


# -- Renewal, SNI and factories


async def test_a_renewed_certificate_is_for_new_connections_and_old_ones_go_on(
    authority: Authority,
) -> None:
    first = authority.issue(file="renewed")
    async with serving(settings(first)) as server, browser(authority.client()) as client:
        await client.get(url(server))
        before = echo.scope["extensions"]["tls"]["server_cert"]  # type: ignore[attr-defined]
        authority.issue(file="renewed")
        assert server.tls is not None
        server.tls.load()
        await client.get(url(server))
        assert echo.scope["extensions"]["tls"]["server_cert"] == before  # type: ignore[attr-defined]
        async with browser(authority.client()) as other:
            await other.get(url(server))
        after = echo.scope["extensions"]["tls"]["server_cert"]  # type: ignore[attr-defined]
        assert after != before
        assert after == first.certificate


async def test_a_renewal_that_fails_leaves_the_old_certificate(authority: Authority) -> None:
    first = authority.issue(file="spoiled")
    async with serving(settings(first)) as server, browser(authority.client()) as client:
        first.spoil_key()
        assert server.tls is not None
        with pytest.raises(CannotUseTLS):
            server.tls.load()
        assert (await client.get(url(server))).status_code == 200


FACTORY = """
import ssl
from asgictl_worker.tls import from_files

def choose(settings, default_factory):
    context = default_factory()
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other.load_cert_chain({certfile!r}, {keyfile!r})

    def by_name(connection, name, _):
        if name == "other.test":
            connection.context = other

    context.sni_callback = by_name
    return context

def nothing(settings, default_factory):
    return None

def broken(settings, default_factory):
    raise LookupError("no certificate today")

number = 5
"""


@pytest.fixture
def factories(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Return the settings with which a module of factories is found, as ``factories``."""
    other = authority.issue("other.test", file="other")
    text = FACTORY.format(certfile=other.certfile, keyfile=other.keyfile)
    (tmp_path / "factories.py").write_text(text)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "factories", raising=False)
    return {"app_dir": str(tmp_path)}


async def test_a_factory_chooses_the_certificate_by_the_name_that_the_client_asks_for(
    authority: Authority, issued: Issued, factories: dict[str, Any]
) -> None:
    of = settings(issued, ssl_context_factory="factories:choose", **factories)
    async with serving(of) as server:
        for name in ("localhost", "other.test"):
            _, writer = await open_tls(server, authority.client(), name)
            names = writer.get_extra_info("peercert")["subjectAltName"]
            assert ("DNS", name) in names
            writer.transport.abort()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("factories:nothing", "it returned None; it must return an ssl.SSLContext"),
        ("factories:number", "it is not a function"),
        ("factories:chose", r"has no attribute 'chose'; did you mean factories:choose\?"),
        ("no_such_module:choose", "there is no module 'no_such_module'"),
    ],
)
def test_a_factory_that_does_not_serve_is_refused_by_its_name(
    name: str, problem: str, issued: Issued, factories: dict[str, Any]
) -> None:
    each = TLS(settings(issued, ssl_context_factory=name, **factories))
    with pytest.raises(CannotUseTLS, match=f"^ssl_context_factory '{name}': .*{problem}"):
        each.load()


def test_what_a_factory_raises_is_its_own_affair(issued: Issued, factories: dict[str, Any]) -> None:
    each = TLS(settings(issued, ssl_context_factory="factories:broken", **factories))
    with pytest.raises(LookupError, match="no certificate today"):
        each.load()


def test_the_usual_context_needs_a_certificate(factories: dict[str, Any]) -> None:
    each = TLS(settings(ssl_context_factory="factories:choose", **factories))
    with pytest.raises(CannotUseTLS, match="default_factory, which has no certificate; set ssl_ce"):
        each.load()


async def test_a_factory_may_be_given_as_a_function(authority: Authority, issued: Issued) -> None:
    made = []

    def factory(of: WorkerSettings, default: Any) -> ssl.SSLContext:
        made.append(of)
        context: ssl.SSLContext = default()
        return context

    of = settings(issued)
    async with serving(of, tls=TLS(of, factory)) as server, browser(authority.client()) as client:
        assert (await client.get(url(server))).status_code == 200
    assert made == [of]


# -- The end of a connection


async def test_an_answer_that_ends_the_connection_is_followed_by_the_end_of_tls(
    authority: Authority, issued: Issued
) -> None:
    context = authority.client()
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    async with serving(settings(issued)) as server:
        reader, writer = await open_tls(server, context)
        writer.write(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n0 ")
        writer.close()
        await until(lambda: not server.connections)


async def test_a_client_that_closes_in_the_middle_is_gone_for_the_application(
    authority: Authority, issued: Issued
) -> None:
    heard: list[str] = []

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        heard.append("request")
        heard.append((await receive())["type"])

    async with serving(settings(issued), waiting) as server:
        _, writer = await open_tls(server, authority.client())
        writer.write(GET)
        await until(lambda: heard)
        # There is no half of TLS that stays open: the end of one direction ends both.
        writer.close()
        await until(lambda: not server.connections and len(heard) == 2)
        assert heard == ["request", "http.disconnect"]


@pytest.mark.parametrize("parts", [1, 1000])
async def test_a_client_that_reads_nothing_is_cut(
    parts: int, authority: Authority, issued: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgictl_worker.connection.LOOK", 0.1)
    body = bytes(24 * 1024 * 1024 // parts)

    async def sending(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        for left in range(parts, 0, -1):
            await send({"type": "http.response.body", "body": body, "more_body": left > 1})

    async with serving(settings(issued, timeout_write=0.5), sending) as server:
        # A reader that nobody asks soon stops to take what comes.
        _, writer = await open_tls(server, authority.client())
        writer.write(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        await until(lambda: server.connections)
        await until(lambda: not server.connections and not server.service.tasks)
        writer.close()


def silent_client(
    server: Server, context: ssl.SSLContext
) -> tuple[socket.socket, ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """Shake hands and ask once, in a thread, and never look at the connection again."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    end = socket.create_connection(("127.0.0.1", port_of(server)), 10)

    def step(action: Any) -> Any:
        while True:
            try:
                result = action()
            except ssl.SSLWantReadError:
                if data := outgoing.read():
                    end.sendall(data)
                incoming.write(end.recv(65536))
            else:
                if data := outgoing.read():
                    end.sendall(data)
                return result

    step(connection.do_handshake)
    step(lambda: connection.write(GET))
    assert step(lambda: connection.read(65536)).startswith(b"HTTP/1.1 200")
    return end, connection, incoming, outgoing


async def test_a_client_that_does_not_answer_the_end_of_tls_does_not_hold_up_a_drain(
    authority: Authority, issued: Issued
) -> None:
    async with serving(settings(issued)) as server:
        end, *rest = await asyncio.to_thread(silent_client, server, authority.client())
        with end:
            began = asyncio.get_running_loop().time()
            server.stop(20)
            await until(lambda: not server.connections)
            assert asyncio.get_running_loop().time() - began < 5
        assert rest


async def test_a_client_that_is_slow_to_read_gets_the_end_of_its_answer(
    authority: Authority, issued: Issued
) -> None:
    size = 3_000_002
    async with serving(settings(issued)) as server:
        # A small window, so that most of the answer waits in our memory.
        end = socket.socket()
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        end.connect(("127.0.0.1", port_of(server)))
        end.setblocking(False)
        reader, writer = await asyncio.open_connection(
            sock=end, ssl=authority.client(), server_hostname="localhost"
        )
        writer.write(b"GET /big HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        began = server.service.ticker.now
        await until(lambda: server.service.ticker.now > began + FAREWELL + 3 * INTERVAL)
        assert len(await reader.readexactly(size)) == size
        writer.close()
        await until(lambda: not server.connections)


async def test_a_handshake_that_never_ends_does_not_hold_up_a_drain(issued: Issued) -> None:
    async with serving(settings(issued)) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        await until(lambda: server.connections == 1)
        began = asyncio.get_running_loop().time()
        server.stop(20)
        await until(lambda: not server.connections)
        assert asyncio.get_running_loop().time() - began < HANDSHAKE_GRACE + 3
        writer.close()


async def test_a_connection_that_is_reset_in_the_handshake_leaves_nothing(issued: Issued) -> None:
    async with serving(settings(issued)) as server:
        end = socket.create_connection(("127.0.0.1", port_of(server)))
        await until(lambda: server.connections == 1)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.close()
        await until(lambda: not server.connections)
