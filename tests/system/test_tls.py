"""TLS in real processes: certificates that are checked, renewed and swapped, and never plain text."""

import contextlib
import os
import socket
import ssl
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from tests.authority import Authority
from tests.conftest import Serve
from tests.kit import PATIENCE, Load, Project, application, read_until_closed, run, wait_for
from websockets.sync.client import connect

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

ECHO = """
async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": scope["scheme"]})
        await receive()
    elif scope["type"] == "http":
        tls = scope["extensions"]["tls"]
        body = f'{scope["scheme"]} {tls["tls_version"]:#06x} {tls["client_cert_name"]}'.encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
"""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def serial_of(port: int, context: ssl.SSLContext) -> str:
    """Return the serial number of the certificate that a new connection is shown."""
    with (
        socket.create_connection(("127.0.0.1", port), PATIENCE) as end,
        context.wrap_socket(end, server_hostname="localhost") as connection,
    ):
        found = connection.getpeercert()
    assert found is not None
    return str(found["serialNumber"])


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_http_and_websockets_are_served_and_the_address_says_https(
    serve: Serve, project: Project, authority: Authority, loop: str
) -> None:
    project.write(ECHO)
    server = serve("--loop", loop, *authority.issue().options)
    server.assert_log(rf"listens on https://127\.0\.0\.1:{server.port} ")
    context = authority.client()
    answer = httpx.get(f"https://localhost:{server.port}/", verify=context, trust_env=False)
    assert answer.text == "https 0x0304 None"
    with connect(f"wss://localhost:{server.port}/", ssl=context, proxy=None) as client:
        assert client.recv(PATIENCE) == "wss"
    server.stop()


def test_gunicorns_names_and_client_certificates(
    serve: Serve, project: Project, authority: Authority
) -> None:
    project.write(ECHO)
    issued = authority.issue()
    names = ("--certfile", issued.certfile, "--keyfile", issued.keyfile)
    server = serve(*names, "--ca-certs", authority.certfile, "--cert-reqs", "2")
    url = f"https://localhost:{server.port}/"
    agent = authority.client(authority.issue("agent", file="agent", common_name="86"))
    assert "CN=86,OU=" in httpx.get(url, verify=agent, trust_env=False).text
    with pytest.raises(httpx.TransportError):
        httpx.get(url, verify=authority.client(), trust_env=False)
    server.stop()


def test_plain_http_is_never_answered(serve: Serve, project: Project, authority: Authority) -> None:
    project.write(ECHO)
    server = serve(*authority.issue().options)
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP" not in read_until_closed(client)
    server.stop()
    server.assert_not_logged("Traceback")


def test_a_unix_socket_speaks_tls_too(
    serve: Serve, project: Project, authority: Authority, tmp_path: Path
) -> None:
    project.write(ECHO)
    path = str(tmp_path / "app.sock")
    server = serve("--uds", path, *authority.issue().options)
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(PATIENCE)
        end.connect(path)
        with authority.client().wrap_socket(end, server_hostname="localhost") as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
            assert b"https 0x0304" in read_until_closed(connection)
    server.stop()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--ssl-certfile", "none.pem"), "ssl_certfile 'none.pem': it cannot be read: No such"),
        (("--ssl-keyfile", "key.pem"), "ssl_keyfile is set but ssl_certfile is not"),
        (("--ssl-certfile", "app.py"), "ssl_certfile 'app.py': there is no certificate in it"),
    ],
)
def test_a_certificate_that_cannot_be_used_ends_the_start_with_code_78(
    project: Project, options: tuple[str, ...], problem: str
) -> None:
    project.write(ECHO)
    ended = run(project, "app:app", "--port", "0", *options)
    assert ended.code == 78, ended.stderr
    assert ended.stderr.strip().startswith(f"asgictl: error: {problem}")
    assert "Traceback" not in ended.stderr


def test_a_wrong_password_ends_the_start_and_does_not_ask_the_terminal(
    project: Project, authority: Authority
) -> None:
    project.write(ECHO)
    issued = authority.issue(password="swordfish")
    ended = run(project, "app:app", "--port", "0", *issued.options, within=10)
    assert ended.code == 78
    assert "the key is encrypted; set ssl_keyfile_password" in ended.stderr
    wrong = (*issued.options, "--ssl-keyfile-password", "trout")
    ended = run(project, "app:app", "--port", "0", *wrong, within=10)
    assert ended.code == 78
    assert "the key cannot be decrypted" in ended.stderr
    assert "trout" not in ended.stderr


def test_the_password_may_come_by_a_variable(
    serve: Serve, project: Project, authority: Authority
) -> None:
    project.write(ECHO)
    issued = authority.issue(password="swordfish")
    environment = {"ASGICTL_SSL_KEYFILE_PASSWORD": "swordfish"}
    server = serve(*issued.options, environment=environment)
    serial_of(server.port, authority.client())
    server.stop()
    server.assert_not_logged("swordfish")


def test_an_expired_certificate_is_served_when_there_is_no_other_but_not_swapped_in(
    serve: Serve, project: Project, authority: Authority
) -> None:
    project.write(ECHO)
    issued = authority.issue(ends=timedelta(hours=-1))
    server = serve("--min-ready", "0", *issued.options)
    server.assert_log("WARNING .* the certificate has expired at .*; renew it")
    authority.issue()
    server.reload()
    good = serial_of(server.port, authority.client())
    authority.issue(ends=timedelta(hours=-1))
    server.signal("HUP")
    server.assert_log("reload refused, .*: ssl_certfile .* the certificate has expired at")
    assert serial_of(server.port, authority.client()) == good
    server.stop()


def test_a_certificate_that_ends_soon_is_warned_about(
    serve: Serve, project: Project, authority: Authority
) -> None:
    project.write(ECHO)
    server = serve(*authority.issue(ends=timedelta(days=3)).options)
    server.assert_log("WARNING .* the certificate expires at .*; renew it")
    server.stop()


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_reloads_under_load_swap_the_certificate_and_lose_nothing(
    serve: Serve, project: Project, authority: Authority, preload: tuple[str, ...]
) -> None:
    project.write(application("0"))
    issued = authority.issue()
    server = serve("--workers", "2", "--min-ready", "0.2", *preload, *issued.options)
    context = authority.client()
    serials = [serial_of(server.port, context)]
    with Load(server.port, keep_alive=16, closing=4, tls=context) as load:
        for version in ("1", "2", "3"):
            project.write(application(version))
            authority.issue()
            server.reload(within=60)
            serials.append(serial_of(server.port, context))
        load.wait_for_answers(200)
    load.assert_nothing_lost()
    assert set(load.tally.by_version) == {"0", "1", "2", "3"}
    assert len(set(serials)) == 4
    server.stop()


def test_a_renewed_certificate_serves_even_if_the_new_code_does_not(
    serve: Serve, project: Project, authority: Authority
) -> None:
    project.write(application("good"))
    server = serve("--workers", "2", "--min-ready", "0", *authority.issue().options)
    old, context = server.workers(), authority.client()
    before = serial_of(server.port, context)
    authority.issue()
    project.write("raise RuntimeError('broken on purpose')")
    server.signal("HUP")
    server.assert_log("reload refused")
    server.assert_log("certificate and key were read again", count=2)
    assert serial_of(server.port, context) != before
    assert server.workers() == old
    server.stop()


def test_certificates_are_renewed_without_a_reload(
    serve: Serve, project: Project, authority: Authority
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", *authority.issue().options)
    before, workers = serial_of(server.port, authority.client()), server.workers()
    sockets = list(server.scratch.rglob("*.sock"))
    where = ("--control", str(sockets[0]))

    renewed = authority.issue()
    assert run(project, "reload-tls", *where).stdout.startswith("new connections get")
    server.assert_log("certificate and key were read again", count=2)
    after = serial_of(server.port, authority.client())
    assert after != before

    Path(renewed.certfile).write_text("spoiled")
    refused = run(project, "reload-tls", "--json", *where)
    assert refused.code == 1
    assert "the old certificates stay" in refused.stdout
    assert serial_of(server.port, authority.client()) == after
    assert server.workers() == workers
    server.stop()


def test_a_spoiled_certificate_is_refused_and_the_old_one_serves_on(
    serve: Serve, project: Project, authority: Authority
) -> None:
    project.write(application("0"))
    issued = authority.issue()
    server = serve("--min-ready", "0", *issued.options)
    context = authority.client()
    before = serial_of(server.port, context)
    authority.issue(file="other")
    os.replace(issued.certfile.replace("server", "other"), issued.certfile)
    server.signal("HUP")
    server.assert_log("reload refused, .*: ssl_keyfile .* the key does not belong to the first")
    assert serial_of(server.port, context) == before
    server.stop()


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_a_reload_cannot_turn_tls_on_or_off_where_old_workers_still_serve(
    serve: Serve, project: Project, authority: Authority, on: bool
) -> None:
    issued = authority.issue()
    lines = [f'ssl_certfile = "{issued.certfile}"', f'ssl_keyfile = "{issued.keyfile}"']
    with_tls, without = "\n".join(lines), "workers = 1"
    project.write(ECHO).write(without if on else with_tls, "asgictl.toml")
    server = serve("--min-ready", "0")
    project.write(with_tls if on else without, "asgictl.toml")
    server.signal("HUP")
    word = "on" if on else "off"
    server.assert_log(f"reload refused, .*: 127.0.0.1:0: a reload cannot turn TLS {word}")
    server.stop()


def test_a_broken_factory_is_a_failed_boot_with_its_traceback(
    project: Project, authority: Authority
) -> None:
    project.write(ECHO + "\n\ndef make(settings, default):\n    raise LookupError('no luck')\n")
    options = (*authority.issue().options, "--ssl-context-factory", "app:make")
    ended = run(project, "app:app", "--port", "0", *options)
    assert ended.code == 3
    assert "LookupError: no luck" in ended.stderr
    assert 'app.py", line' in ended.stderr


def others_can_run_python() -> bool:
    home = Path(os.__file__)
    return all(place.stat().st_mode & 0o5 == 0o5 for place in home.parents)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up rights")
@pytest.mark.skipif(not others_can_run_python(), reason="Python is for its owner alone")
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_a_key_that_only_root_may_read_serves_workers_of_another_user(
    serve: Serve, project: Project, authority: Authority, preload: tuple[str, ...]
) -> None:
    project.write(ECHO)
    for directory in (project.directory, *project.directory.parents):
        if directory.stat().st_mode & 0o5 != 0o5:
            directory.chmod(directory.stat().st_mode | 0o5)  # pytest keeps its own for itself
    issued = authority.issue()
    os.chmod(issued.keyfile, 0o600)
    server = serve("--user", "nobody", "--min-ready", "0", *preload, *issued.options)
    context = authority.client()
    before = serial_of(server.port, context)
    authority.issue()
    os.chmod(issued.keyfile, 0o600)
    server.reload()
    server.assert_log("only new workers will have the new certificate")
    assert serial_of(server.port, context) != before
    server.stop()


def test_a_slow_handshake_holds_nobody_up(
    serve: Serve, project: Project, authority: Authority
) -> None:
    project.write(ECHO)
    server = serve("--timeout-ssl-handshake", "1", *authority.issue().options)
    with contextlib.ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
            for _ in range(50)
        ]
        serial_of(server.port, authority.client())
        for end in idle:
            assert end.recv(1) == b""
    wait_for(lambda: server.workers(), "the worker lives")
    server.stop()
