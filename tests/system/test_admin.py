"""Health, metrics and the page of real services: what they tell, and what they survive."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import Serve
from tests.kit import PATIENCE, Load, Project, Server, application, wait_for
from tests.system.applications import HELD, held, release

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

BIND = ("--admin-bind", "127.0.0.1:0")


def admin_port(server: Server) -> int:
    return int(server.assert_log(r"fleet are on http://127\.0\.0\.1:(\d+)")[1])


def ask(server: Server, path: str) -> tuple[int, str]:
    """Return status and body of an admin path."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{admin_port(server)}{path}", timeout=PATIENCE
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metrics(server: Server) -> dict[str, float]:
    """Return all values; labels stand behind the name, in order."""
    status, text = ask(server, "/metrics")
    assert status == 200, text
    return {
        ",".join(
            [sample.name, *(value for _, value in sorted(sample.labels.items()))]
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def fleet(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(server, "/fleet.json")[1])
    return found


def admin_process(server: Server) -> psutil.Process:
    def found() -> psutil.Process | None:
        for pid in server.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if " ".join(psutil.Process(pid).cmdline()).startswith("asgictl: admin"):
                    return psutil.Process(pid)
        return None

    return wait_for(found, "the admin process is there")


def counted(server: Server) -> float:
    return metrics(server).get("asgictl_http_requests_total,GET,2xx", 0.0)


# -- Health


def test_ready_is_a_service_with_enough_workers_that_does_not_stop(
    serve: Serve, project: Project
) -> None:
    project.write(HELD)
    server = serve("--workers", "2", *BIND, "--admin-ready-workers", "2")
    assert ask(server, "/livez") == (200, "alive\n")
    # The helper hears of it a moment after the log.
    wait_for(lambda: ask(server, "/readyz") == (200, "ready\n"), "both workers are ready")
    server.signal("TTOU")
    wait_for(lambda: "1 workers are, 2 must be" in ask(server, "/readyz")[1], "one is too few")
    assert ask(server, "/readyz")[0] == 503
    server.signal("TTIN")
    wait_for(lambda: ask(server, "/readyz")[0] == 200, "two are enough")
    server.accept_files()
    with held(project, server.port) as client:
        server.signal("TERM")
        wait_for(lambda: ask(server, "/readyz") == (503, "not ready: stopping\n"), "it stops")
        assert ask(server, "/livez")[0] == 200
        release(project)
        assert b"200 OK" in client.recv(4096)
    server.accept_files()
    server.assert_ended(0)


def test_a_supervisor_that_stands_still_is_not_alive(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve(*BIND)
    assert ask(server, "/livez")[0] == 200
    server.signal("STOP")
    wait_for(lambda: ask(server, "/livez")[0] == 503, "it does not answer")
    assert "no answer of the supervisor" in ask(server, "/livez")[1]
    server.signal("CONT")
    wait_for(lambda: ask(server, "/livez")[0] == 200, "it goes on")
    server.stop()


def test_a_unix_socket_stays_over_a_reload_and_goes_at_the_end(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    project.write("admin_bind = 'unix:admin.sock'", "asgictl.toml")
    server = serve("--min-ready", "0")
    project.write("admin_bind = '127.0.0.1:0'", "asgictl.toml")
    server.reload()
    server.assert_log("admin_bind has changed, which needs a restart; it is still unix:admin.sock")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(project.directory / "admin.sock"))
        client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    server.stop()


def test_a_port_in_use_ends_the_program_with_its_error(start: Serve, project: Project) -> None:
    project.write(application("1"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = start("app:app", "--port", "0", "--admin-bind", f"127.0.0.1:{port}")
        assert server.ended() == 5
    assert re.search(rf"127\.0\.0\.1:{port}.*in use", server.log())


# -- Totals


def test_the_totals_are_those_of_the_clients_over_reloads_upgrades_and_kills(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", "--min-ready", "0", *BIND)
    port = admin_port(server)
    kills = 2
    with Load(server.port, keep_alive=16, closing=4) as load:
        for _ in range(kills):
            victim = min(server.workers())
            os.kill(victim, signal.SIGKILL)
            server.wait_for_workers(2, other_than={victim})
            server.reload()
            load.wait_for_answers(200)
        server.signal("USR2")
        server.assert_log("has taken over 2 workers")
        load.wait_for_answers(200)
    tally = load.stop()
    # Of a request that failed nobody knows whether it was answered before the kill; and the
    # moment between writing an answer and counting it may be that of the kill.
    low, high = tally.answered - kills, tally.answered + len(tally.failures)
    wait_for(lambda: low <= counted(server) <= high, f"{low} to {high}: {counted(server)}")
    found = metrics(server)
    assert found["asgictl_http_request_duration_seconds_count"] == sum(
        value for name, value in found.items() if name.startswith("asgictl_http_requests_total")
    )
    assert found["asgictl_worker_exits_total,SIGKILL"] == kills
    assert found["asgictl_reloads_total,committed"] == kills
    assert found["asgictl_upgrades_total"] == 1
    assert admin_port(server) == port
    server.stop()


def test_the_process_that_serves_is_replaced_when_it_dies(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve(*BIND)
    before = admin_process(server)
    before.kill()
    assert ask(server, "/readyz") == (200, "ready\n"), "whoever connects meanwhile waits"
    assert admin_process(server).pid != before.pid
    server.assert_log(r"the process that serves it, pid=\d+, has ended; trying again in 0\.1 s")
    for name in ("TERM", "INT", "HUP", "USR1", "USR2"):
        os.kill(admin_process(server).pid, getattr(signal, f"SIG{name}"))
    assert ask(server, "/livez")[0] == 200
    server.stop()


# -- Bad company


@contextlib.contextmanager
def connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as leaving:
        yield [
            leaving.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            for _ in range(count)
        ]


def test_it_survives_junk_halves_floods_and_a_thousand_connections(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve(*BIND)
    port = admin_port(server)
    process = admin_process(server)
    junk = [os.urandom(4096), b"GET / HTTP/1.1\r\n", b"\r\n" * 5000, b"GET " + b"x" * 100_000]
    junk += [b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\nx"]
    with connections(port, 1000) as clients:
        for number, client in enumerate(clients):
            with contextlib.suppress(OSError):
                client.sendall(junk[number % len(junk)])
        assert ask(server, "/livez")[0] == 200
    with connections(port, 50) as clients:
        for client in clients:
            # Many requests whose answers nobody reads.
            client.setblocking(False)
            with contextlib.suppress(OSError):
                client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        began = time.monotonic()
        with Load(server.port, keep_alive=4, closing=1) as load:
            load.wait_for_answers(500)
        load.assert_nothing_lost()
        server.signal("TTIN")
        server.wait_for_workers(2)
        assert time.monotonic() - began < PATIENCE
    assert ask(server, "/readyz")[0] == 200
    assert admin_process(server).pid == process.pid
    server.assert_not_logged("internal error|Traceback")
    server.stop()


# -- The page

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def draw(url: str, place: Path, *options: str) -> str:
    """Open a page in Chromium, and return what its document has become."""
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--hide-scrollbars",
            "--virtual-time-budget=4000",
            f"--user-data-dir={place / 'profile'}",
            *options,
            url,
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env={**os.environ, "HOME": str(place), "XDG_RUNTIME_DIR": str(place)},
    )
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to draw the page with")
def test_the_page_shows_the_fleet_in_a_browser(
    serve: Serve, project: Project, tmp_path: Path
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", *BIND)
    with Load(server.port, keep_alive=4, closing=1) as load:
        load.wait_for_answers(200)
        project.write("raise RuntimeError('<b>no</b> good')")
        server.signal("HUP")
        server.assert_log(r"exited with code \d+ .*\(boot failed\)")
        project.write(application("1"))
        victim = min(server.workers())
        os.kill(victim, signal.SIGKILL)
        workers = server.wait_for_workers(2, other_than={victim})
        place = tmp_path / "browser"
        place.mkdir()
        url = f"http://127.0.0.1:{admin_port(server)}/"
        document = draw(url, place, "--dump-dom", "--enable-logging=stderr")
    assert 'data-shown="yes"' in document
    assert "app:app" in document
    assert all(f">{pid}<" in document for pid in workers)
    assert re.search(r">\d \(SIGKILL, ", document)
    assert document.count("<svg") == 5
    assert "was refused" in document
    assert "&lt;b&gt;no&lt;/b&gt; good" in document
    assert "<b>no</b>" not in document
    server.stop()
