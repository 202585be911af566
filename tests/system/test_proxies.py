"""Real proxies in front: HAProxy with the PROXY protocol, HAProxy and nginx with headers."""

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.authority import Authority
from tests.conformance.http1.servers import APPLICATION as conformance
from tests.conftest import Serve
from tests.kit import PATIENCE, Load, Project, application, read_until_closed, wait_for
from websockets.sync.client import unix_connect

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

BIG = 6_000_000
PATIENT = ("--timeout-keep-alive", "90")
"""Longer than the proxies keep their connections, as docs/how-to/behind-a-proxy.md says."""

APPLICATION = """
import json
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    found = {key: scope[key] for key in ("type", "client", "server", "scheme", "path")}
    host = dict(scope["headers"])[b"host"].decode()
    text = json.dumps(found | {"host": host})
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": text})
        await receive()
    else:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text.encode()})
"""
Begin = Callable[..., None]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start a proxy with a configuration; skip the test where it is not installed."""
    with contextlib.ExitStack() as stack:

        def begin(name: str, options: list[str], text: str, **how: Any) -> None:
            program = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
            if program is None:
                pytest.skip(f"{name} is not installed (apt-get install {name})")
            file = tmp_path / f"{name}.conf"
            file.write_text(textwrap.dedent(text))
            log = stack.enter_context((tmp_path / f"{name}.log").open("wb"))
            process = subprocess.Popen(
                [program, *options, str(file)], stdout=log, stderr=subprocess.STDOUT, **how
            )
            stack.callback(process.wait)
            stack.callback(process.kill)

        yield begin


def haproxy(begin: Begin, text: str, servers: dict[str, str], *, bind: str = "") -> dict[str, int]:
    """Start HAProxy with a port for each of the servers; return the ports."""
    listeners = {name: socket.create_server(("127.0.0.1", 0)) for name in servers}
    lines = ["defaults", *(f"  {line}" for line in text.split("\n"))]
    lines += ["  timeout connect 30s", "  timeout client 60s", "  timeout server 60s"]
    for name, server in servers.items():
        where = f"bind fd@{listeners[name].fileno()} {bind}"
        lines += [f"listen {name}", f"  {where}", f"  server {name} {server}"]
    fds = tuple(listener.fileno() for listener in listeners.values())
    begin("haproxy", ["-db", "-f"], "\n".join([*lines, ""]), pass_fds=fds)
    ports = {name: listener.getsockname()[1] for name, listener in listeners.items()}
    for listener in listeners.values():
        listener.close()  # HAProxy has its own
    return ports


def nginx(begin: Begin, directory: Path, app: str, *, server: str = "", location: str = "") -> Path:
    """Start nginx in front of a server; return the path of the socket that it listens on.

    Args:
        begin: starts it.
        directory: for its files.
        app: the address of the server.
        server: more directives, for all requests.
        location: more directives, about the server behind.
    """
    front = directory / "front.sock"
    kinds = ("proxy", "client_body", "fastcgi", "uwsgi", "scgi")
    begin(
        "nginx",
        ["-p", str(directory), "-e", "stderr", "-g", "daemon off; master_process off;", "-c"],
        f"""
        pid nginx.pid;
        error_log stderr;
        events {{}}
        http {{
            access_log off;
            {" ".join(f"{kind}_temp_path temp-{kind};" for kind in kinds)}
            upstream app {{ server {app}; keepalive 16; }}
            map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
            server {{
                listen unix:{front};
                client_max_body_size 0;
                {server}
                location / {{
                    proxy_pass http://app;
                    proxy_http_version 1.1;
                    proxy_set_header Upgrade $http_upgrade;
                    proxy_set_header Connection $connection_upgrade;
                    {location}
                }}
            }}
        }}
        """,
    )
    wait_for(front.exists, "nginx listens")
    return front


def ask(port: int, context: ssl.SSLContext | None = None) -> tuple[dict[str, Any], Any]:
    """Return what the application saw, and who we are."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(
            socket.create_connection(
                ("127.0.0.1", port), timeout=PATIENCE, source_address=("127.0.0.2", 0)
            )
        )
        own = list(client.getsockname())
        if context is not None:
            client = stack.enter_context(context.wrap_socket(client, server_hostname="localhost"))
        client.sendall(b"GET /a HTTP/1.1\r\nhost: example.org\r\nconnection: close\r\n\r\n")
        answer = read_until_closed(client)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), answer
    return json.loads(body), own


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_haproxy_tells_who_the_client_is(
    loop: str, serve: Serve, project: Project, begin: Begin, tmp_path: Path
) -> None:
    project.write(APPLICATION)
    path = tmp_path / "app.sock"
    server = serve(
        "--loop", loop, "--proxy-protocol", "--bind", "127.0.0.1:0", "--bind", f"unix:{path}"
    )
    tcp = f"127.0.0.1:{server.port}"
    options = "send-proxy-v2 proxy-v2-options"
    ports = haproxy(
        begin,
        "mode tcp",
        {
            "v1": f"{tcp} send-proxy",
            "v2": f"{tcp} send-proxy-v2",
            "fields": f"{tcp} {options} crc32c,authority,unique-id",
            "tls": f"{tcp} send-proxy-v2-ssl-cn",
            "unix1": f"unix@{path} send-proxy",
            "unix2": f"unix@{path} send-proxy-v2",
            "checked": f"{tcp} send-proxy-v2 check inter 50ms fall 9999 check-send-proxy",
        },
    )
    for port in ports.values():
        seen, own = ask(port)
        assert (seen["client"], seen["server"]) == (own, ["127.0.0.1", port])
        assert (seen["scheme"], seen["path"]) == ("http", "/a")
    server.assert_log(r'asgictl\.access \[\d+\] 127\.0\.0\.2:\d+ "GET /a ', count=len(ports))
    server.assert_not_logged("WARNING|ERROR")
    server.stop()


def test_the_header_of_haproxy_comes_before_tls(
    serve: Serve, project: Project, begin: Begin, tmp_path: Path
) -> None:
    project.write(APPLICATION)
    authority = Authority(tmp_path / "authority")
    server = serve("--proxy-protocol", *authority.issue().options)
    tcp = f"127.0.0.1:{server.port}"
    ports = haproxy(begin, "mode tcp", {"v1": f"{tcp} send-proxy", "v2": f"{tcp} send-proxy-v2"})
    for port in ports.values():
        seen, own = ask(port, authority.client())
        assert (seen["client"], seen["scheme"]) == (own, "https")
    server.stop()


def test_haproxy_tells_that_the_client_spoke_tls_with_it(
    serve: Serve, project: Project, begin: Begin, tmp_path: Path
) -> None:
    project.write(APPLICATION)
    authority = Authority(tmp_path / "authority")
    issued = authority.issue()
    both = tmp_path / "both.pem"
    both.write_text(issued.certificate + Path(issued.keyfile).read_text())
    server = serve("--proxy-protocol")
    to = f"127.0.0.1:{server.port} send-proxy-v2-ssl-cn proxy-v2-options crc32c"
    ports = haproxy(begin, "mode tcp", {"tls": to}, bind=f"ssl crt {both}")
    seen, own = ask(ports["tls"], authority.client())
    assert (seen["client"], seen["scheme"]) == (own, "https")
    server.stop()


def test_without_the_header_haproxy_gets_no_answer_and_the_log_says_why(
    serve: Serve, project: Project, begin: Begin
) -> None:
    project.write(APPLICATION)
    server = serve("--proxy-protocol")
    ports = haproxy(begin, "mode tcp", {"plain": f"127.0.0.1:{server.port}"})
    with (
        socket.create_connection(("127.0.0.1", ports["plain"]), PATIENCE) as client,
        contextlib.suppress(ConnectionResetError),
    ):
        client.sendall(b"GET / HTTP/1.1\r\nhost: example.org\r\n\r\n")
        assert read_until_closed(client) == b""
    server.assert_log(r"WARNING .* refused a connection from 127\.0\.0\.1:\d+: no header of the")
    server.stop()


def test_haproxy_with_headers_and_kept_connections(
    serve: Serve, project: Project, begin: Begin
) -> None:
    project.write(APPLICATION)
    server = serve()
    text = "mode http\nhttp-reuse always\noption forwardfor"
    ports = haproxy(begin, text, {"app": f"127.0.0.1:{server.port}"})
    for _ in range(20):
        seen, _ = ask(ports["app"])
        assert (seen["client"], seen["host"]) == (["127.0.0.2", 0], "example.org")
    server.stop()


def test_nginx_with_headers_kept_connections_and_websockets(
    serve: Serve, project: Project, begin: Begin, tmp_path: Path
) -> None:
    project.write(APPLICATION)
    server = serve("--uds", str(tmp_path / "app.sock"), "--forwarded-host")
    front = nginx(
        begin,
        tmp_path,
        f"unix:{tmp_path}/app.sock",
        server="""
            set_real_ip_from unix:;
            real_ip_header x-test-client;
        """,
        location="""
            proxy_set_header Host inner;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto https;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Port 8443;
        """,
    )
    headers = {"host": "example.org", "x-test-client": "203.0.113.7", "x-forwarded-for": "1.1.1.1"}
    expected = {
        "client": ["203.0.113.7", 0],
        "server": ["example.org", 8443],
        "host": "example.org:8443",
    }
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(front)), headers=headers) as client:
        for number in range(20):
            answer = client.post(f"http://front/{number}", content=b"x" * 1000 * number)
            found = expected | {"type": "http", "scheme": "https", "path": f"/{number}"}
            assert answer.json() == found
    with unix_connect(
        str(front),
        "ws://example.org/socket",
        additional_headers={"x-test-client": "203.0.113.7"},
    ) as socket_:
        seen = json.loads(socket_.recv(PATIENCE))
    assert seen == expected | {"type": "websocket", "scheme": "wss", "path": "/socket"}
    server.stop()


@pytest.mark.parametrize(("buffering", "parser"), [("on", "httptools"), ("off", "h11")])
def test_nginx_passes_everything_on_whether_it_buffers_or_not(
    buffering: str, parser: str, serve: Serve, project: Project, begin: Begin, tmp_path: Path
) -> None:
    project.write(conformance.read_text())
    server = serve("--http", parser, *PATIENT)
    front = nginx(
        begin,
        tmp_path,
        f"127.0.0.1:{server.port}",
        location=f"proxy_buffering {buffering}; proxy_request_buffering {buffering};",
    )
    transport = httpx.HTTPTransport(uds=str(front))
    with httpx.Client(transport=transport, base_url="http://front", timeout=PATIENCE) as client:
        for _ in range(2):
            told = client.post("/", content=b"x" * BIG).json()
            assert (told["method"], told["body"]) == ("POST", BIG)
            # Without buffering the chunks come through as they are.
            told = client.post("/", content=iter([b"part"] * 1000)).json()
            assert told["body"] == "part" * 1000
            assert ("transfer-encoding" in told["names"]) is (buffering == "off")
            assert client.get("/large").content == b"x" * 64 * 65536
            assert client.get("/stream").text == "one two three"
            assert client.get("/stream-length").text == "one two three"
            assert client.head("/hello").content == b""
            assert client.get("/204-empty").status_code == 204
            assert client.get("/404").text == "a body"
            assert client.get("/mistake/raise-before").status_code == 500
            with pytest.raises(httpx.RemoteProtocolError):
                client.get("/mistake/raise-in-length")
    # nginx may close a connection on which an answer came before the whole request, and not say so.
    for _ in range(3):
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(front)), timeout=PATIENCE
        ) as client:
            assert client.post("http://front/early", content=b"x" * 100_000).text == "early"
    server.stop()


@pytest.mark.timeout(300)
def test_a_reload_behind_nginx_loses_nothing(
    serve: Serve, project: Project, begin: Begin, tmp_path: Path
) -> None:
    project.write(application("one"))
    server = serve("--workers", "2", *PATIENT)
    front = nginx(begin, tmp_path, f"127.0.0.1:{server.port}")
    with Load(str(front), keep_alive=12, closing=4) as load:
        for version in ("two", "three"):
            project.write(application(version))
            server.reload(within=2 * PATIENCE)
            load.wait_for_answers(200)
    load.assert_nothing_lost()
    assert set(load.tally.by_version) == {"one", "two", "three"}
    server.stop()


@pytest.mark.timeout(300)
def test_a_reload_behind_haproxy_loses_nothing(
    serve: Serve, project: Project, begin: Begin
) -> None:
    project.write(application("one"))
    server = serve("--workers", "2", *PATIENT)
    # A kept connection may end just as a request is on its way; that one can be sent again.
    text = "mode http\nhttp-reuse always\nretry-on all-retryable-errors"
    ports = haproxy(begin, text, {"app": f"127.0.0.1:{server.port}"})
    with Load(ports["app"], keep_alive=12, closing=4) as load:
        for version in ("two", "three"):
            project.write(application(version))
            server.reload(within=2 * PATIENCE)
            load.wait_for_answers(200)
    load.assert_nothing_lost()
    assert set(load.tally.by_version) == {"one", "two", "three"}
    server.stop()
