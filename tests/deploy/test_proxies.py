"""The proxies of deploy/, each the real one, in front of a real server."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import Serve
from tests.deploy.units import DEPLOY
from tests.docs.console import free_port
from tests.kit import Project, Server, is_listening, wait_for
from websockets.sync.client import connect

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

APPLICATION = """
import json
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    found = {key: scope[key] for key in ("type", "client", "scheme", "path")}
    found["host"] = dict(scope["headers"])[b"host"].decode()
    body = b""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": json.dumps(found)})
        await receive()
        return
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    text = json.dumps(found | {"received": len(body)}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text})
"""

Front = Callable[..., None]


def program(name: str) -> str:
    """Return the path of a program of the system; skip the test where it is missing."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed (apt-get install {name})")
    return path


def adapted(path: Path, changes: dict[str, str]) -> str:
    """Return a configuration with what is of this machine; each key has to stand in it."""
    text = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text, f"{old!r} does not stand in {path.name}"
        text = text.replace(old, new)
    return text


@pytest.fixture
def behind(serve: Serve, project: Project, tmp_path: Path) -> Server:
    """A server on the socket that the configurations name."""
    project.write(APPLICATION)
    path = str(tmp_path / "shop.sock")
    return serve("--uds", path, "--workers", "2", "--timeout-keep-alive", "75s")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a proxy, which has to end its own processes."""
    process.terminate()
    try:
        process.wait(30)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    """Check a proxy's configuration by its own means, then start it."""
    with contextlib.ExitStack() as stack:

        def front(check: list[str], start: list[str], port: int, **how: Any) -> None:
            checked = subprocess.run(check, capture_output=True, text=True, check=False, **how)
            assert checked.returncode == 0, checked.stdout + checked.stderr
            log = stack.enter_context((tmp_path / "proxy.log").open("wb"))
            process = subprocess.Popen(start, stdout=log, stderr=subprocess.STDOUT, **how)
            stack.callback(end, process)

            def up() -> bool:
                said = (tmp_path / "proxy.log").read_text()
                assert process.poll() is None, f"the proxy has ended: {said}"
                return is_listening(port)

            wait_for(up, "the proxy listens")

        yield front


def assert_passes_on(port: int, server: Server) -> None:
    """Assert that requests, bodies, WebSockets and who the client is come through, over a reload."""
    # Somebody whom asgictl does not trust, unlike 127.0.0.1.
    client_address = ("127.0.0.2", 0)
    client = httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        headers={"host": "shop.example.com", "x-forwarded-for": "203.0.113.7"},
        timeout=30,
        transport=httpx.HTTPTransport(local_address=client_address[0]),
    )
    with client:
        seen = client.get("/a%20b?c").json()
        assert (seen["path"], seen["host"], seen["scheme"]) == ("/a b", "shop.example.com", "http")
        # The client wrote an address of its own; the proxy's word counts.
        assert seen["client"][0] == client_address[0]
        assert client.post("/", content=b"x" * 1_000_000).json()["received"] == 1_000_000
        own = socket.create_connection(("127.0.0.1", port), 30, source_address=client_address)
        with connect(f"ws://shop.example.com:{port}/ws", sock=own) as websocket:
            seen = json.loads(websocket.recv(timeout=30))
        assert (seen["type"], seen["scheme"]) == ("websocket", "ws")
        assert seen["client"][0] == client_address[0]
        server.signal("HUP")
        answered = 0
        while not re.search("reloaded: generation 2", server.log()):
            assert client.get("/").status_code == 200
            answered += 1
        assert answered > 5


def test_nginx(behind: Server, front: Front, tmp_path: Path) -> None:
    nginx = program("nginx")
    port = free_port()
    changes = {
        "/run/shop.sock": f"{tmp_path}/shop.sock",
        "listen 80;": f"listen 127.0.0.1:{port};",
    }
    site = adapted(DEPLOY / "nginx" / "shop.conf", changes)
    folders = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{name}_temp_path {tmp_path}/{name}; " for name in folders)
    file = tmp_path / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # who may enter the test's directory
    file.write_text(
        f"{user} pid {tmp_path}/nginx.pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{site}\n}}"
    )
    options = ["-p", str(tmp_path), "-e", "stderr", "-c", str(file)]
    front([nginx, *options, "-t"], [nginx, *options, "-g", "daemon off;"], port)
    assert_passes_on(port, behind)


def test_haproxy(behind: Server, front: Front, tmp_path: Path) -> None:
    haproxy = program("haproxy")
    port = free_port()
    file = tmp_path / "haproxy.cfg"
    changes = {"/run/shop.sock": f"{tmp_path}/shop.sock", "bind :80": f"bind 127.0.0.1:{port}"}
    file.write_text(adapted(DEPLOY / "haproxy" / "haproxy.cfg", changes))
    front([haproxy, "-c", "-f", str(file)], [haproxy, "-db", "-f", str(file)], port)
    assert_passes_on(port, behind)


def test_caddy(behind: Server, front: Front, tmp_path: Path) -> None:
    caddy = program("caddy")
    port = free_port()
    file = tmp_path / "Caddyfile"
    changes = {
        "/run/shop.sock": f"{tmp_path}/shop.sock",
        # In clear, without a certificate from outside, and without a port for its own commands.
        "shop.example.com {": f"http://shop.example.com:{port} {{\n\tbind 127.0.0.1",
    }
    text = adapted(DEPLOY / "caddy" / "Caddyfile", changes)
    file.write_text("{\n\tadmin off\n}\n" + text)
    environment = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    options = ["--config", str(file), "--adapter", "caddyfile"]
    front(
        [caddy, "validate", *options], [caddy, "run", *options], port, env=environment, cwd=tmp_path
    )
    assert_passes_on(port, behind)
