"""Real supervisors, asked and moved by `asgictl VERB`; clients that mean harm."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.conftest import Serve
from tests.kit import (
    ASGICTL,
    PATIENCE,
    Ended,
    Load,
    Project,
    Server,
    application,
    clean_environment,
    run,
    wait_for,
)
from tests.system.applications import BLOCKING, FAILING_LIFESPAN, HANGING_IMPORT

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


def tried(server: Server, *arguments: str) -> Ended:
    """Run a verb and return how that went."""
    return run(server.project, *arguments, "--control", str(socket_of(server)))


def say(server: Server, *arguments: str, code: int = 0) -> Ended:
    """Run a verb, assert its exit code, and return what it has printed."""
    done = tried(server, *arguments)
    assert done.code == code, done.stdout + done.stderr
    return done


def ask(server: Server, *arguments: str) -> Any:
    """Run a verb with --json, assert that it is done, and return what it prints."""
    return json.loads(say(server, *arguments, "--json").stdout)


def refused(server: Server, *arguments: str, code: int = 1) -> Ended:
    """Run a verb that is not done, and return what it has printed."""
    return say(server, *arguments, code=code)


def socket_of(server: Server) -> Path:
    return server.scratch / "asgictl" / f"{server.pid}.sock"


def assert_answers_soon(server: Server) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"200" in client.recv(4096)
    assert time.monotonic() - began < 5.0


@contextlib.contextmanager
def verb(server: Server, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a verb in the background."""
    process = subprocess.Popen(
        [sys.executable, str(ASGICTL), *arguments, "--control", str(socket_of(server))],
        cwd=server.project.directory,
        env=clean_environment(server.scratch),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# -- Look


def test_status_tells_the_truth_about_a_loaded_fleet(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--workers", "2")
    with Load(server.port, keep_alive=8, closing=2) as load:
        load.wait_for_answers(500)

        def loaded() -> Any:
            found = ask(server, "status")
            seen = found["requests_per_second"] > 10 and found["connections"] >= 8
            return seen and any(row["cpu"] > 0.01 for row in found["workers"]) and found

        found = wait_for(loaded, "the load is seen")
        text = say(server, "status").stdout
    assert {row["pid"] for row in found["workers"]} == server.workers()
    assert found["pid"] == server.pid
    assert found["addresses"] == [server.url]
    assert found["ready"] == found["desired"] == 2
    assert all(row["memory_pss"] > 5_000_000 for row in found["workers"])
    assert "2 of 2 ready" in text
    assert len(re.findall(r"^ +[01] +\d+  ready ", text, re.MULTILINE)) == 2
    server.stop()


def test_the_totals_are_what_clients_got_over_reloads_upgrades_and_stops(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", "--min-ready", "0")
    with Load(server.port, keep_alive=16, closing=4) as load:
        load.wait_for_answers(500)
        ask(server, "reload")
        load.wait_for_answers(500)
        ask(server, "upgrade")
        load.wait_for_answers(500)
        ask(server, "worker", "0", "restart")
        ask(server, "scale", "1")
        load.wait_for_answers(500)
    load.assert_nothing_lost()
    answered = load.tally.answered
    wait_for(
        lambda: ask(server, "status")["requests"] == answered,
        f"the total is {answered}: {ask(server, 'status')}",
        within=10,
    )
    server.stop()


def test_workers_and_listeners_are_tables(serve: Serve, project: Project) -> None:
    project.write(BLOCKING)
    server = serve("--workers", "1", "--backlog", "7")
    assert [row["slot"] for row in ask(server, "workers")] == [0]
    assert "SLOT" in say(server, "workers").stdout
    clients = [socket.create_connection(("127.0.0.1", server.port), PATIENCE) for _ in range(5)]
    with contextlib.ExitStack() as leaving:
        for client in clients:
            leaving.enter_context(client)
        clients[0].sendall(b"GET /block HTTP/1.1\r\nHost: x\r\n\r\n")
        time_out = wait_for(lambda: ask(server, "workers")[0]["beat"] > 1.5, "the loop is blocked")
        assert time_out
        for _ in range(3):
            leaving.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
        (listener,) = ask(server, "listeners")["listeners"]
        assert listener["waiting"] == 3
        assert listener["limit"] == 7
        assert server.url in say(server, "listeners").stdout
        assert ask(server, "worker", "0", "kill")
    server.stop("QUIT")


def test_events_are_told_and_followed(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve()
    past = say(server, "events").stdout
    assert "BecameReady(worker=1)" in past
    assert "-> Spawn(worker=1, slot=0, generation=1)" in past
    with verb(server, "events", "-f", "-n", "1") as following:
        assert following.stdout is not None
        following.stdout.readline()
        server.signal("USR1")
        while "Signal(name='USR1')" not in following.stdout.readline():
            assert following.poll() is None
    lines = say(server, "events", "--json", "-n", "2").stdout.splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"number", "ago", "event", "actions"}] * 2
    server.stop()


def test_config_tells_what_the_running_supervisor_serves_by(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", "--header", "x-a: 1")
    where = ("--control", str(socket_of(server)))
    found = run(project, "config", "--running", *where)
    assert found.code == 0, found.stderr
    assert tomllib.loads(found.stdout)["workers"] == 2
    assert tomllib.loads(found.stdout)["header"] == ["x-a: 1"]
    found = run(project, "config", "--running", "--json", *where)
    assert json.loads(found.stdout)["settings"]["workers"] == 2
    assert json.loads(found.stdout)["origins"]["workers"] == "--workers"
    explained = run(project, "config", "--running", "--explain", *where).stdout
    assert re.search(r"^workers = 2 +# --workers$", explained, re.MULTILINE)
    assert "# settings file: no settings file was found" in explained
    server.stop()
    assert run(project, "config", "--running", *where).code == 69


# -- Reload


def test_reload_waits_for_its_result_and_tells_how_it_goes(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", "--min-ready", "0")
    before = server.workers()
    done = say(server, "reload")
    assert (done.code, done.stdout) == (0, "reloaded: generation 2 serves\n")
    assert "generation 2: checking the settings\n" in done.stderr
    assert not before & {row["pid"] for row in ask(server, "workers") if row["state"] == "ready"}
    server.stop()


@pytest.mark.parametrize(
    ("broken", "reason", "detail"),
    [
        ("raise RuntimeError('on purpose')", "RuntimeError: on purpose", "Traceback"),
        (FAILING_LIFESPAN, "no database today", ""),
    ],
    ids=["import", "lifespan"],
)
def test_a_refused_reload_exits_with_1_and_says_why(
    serve: Serve, project: Project, broken: str, reason: str, detail: str
) -> None:
    project.write(application("1"))
    server = serve("--min-ready", "0")
    project.write(broken)
    done = refused(server, "reload")
    assert done.stderr.splitlines()[-1].startswith("asgictl: error: reload refused: ")
    assert reason in done.stderr
    assert detail in done.stderr
    answer = json.loads(refused(server, "reload", "--json").stdout)
    assert answer["ok"] is False
    assert reason in answer["error"]
    status = ask(server, "status")
    assert status["last_reload"]["committed"] is False
    assert reason in say(server, "status").stdout
    assert_answers_soon(server)
    server.stop()


def test_a_reload_in_progress_can_be_left_alone_and_aborted(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--min-ready", "0")
    project.write(HANGING_IMPORT + application("2"))
    assert "reload requested" in say(server, "reload", "--no-wait").stdout
    wait_for((project.directory / "importing").exists, "the new code is imported")
    assert ask(server, "status")["reload"]["phase"] == "canary"
    timed_out = refused(server, "reload", "--timeout", "0.5")
    assert "not done within 0.5 s; it goes on" in timed_out.stderr
    with verb(server, "reload") as waiting:
        assert waiting.stdout is not None
        assert "generation" in waiting.stdout.readline()
        assert "generation 1 serves on" in say(server, "abort-reload").stdout
        assert waiting.wait(PATIENCE) == 1
    refused(server, "abort-reload")
    assert_answers_soon(server)
    server.accept_files()
    server.stop()


# -- Move


def test_scale_changes_the_fleet_and_zero_pauses_it(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--workers", "1")
    assert ask(server, "scale", "3") == {"before": 1, "desired": 3}
    server.wait_for_workers(3)
    ask(server, "scale", "-1")
    ask(server, "scale", "+1")
    assert "scaled from 3 to 0 workers" in say(server, "scale", "0").stdout
    assert "paused" in say(server, "status").stdout
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as queued:
        queued.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
        ask(server, "scale", "1")
        assert b"200" in queued.recv(4096), "who came while it was paused is answered"
    assert "it must be from 0 to 8" in refused(server, "scale", "2000").stderr
    assert "must be a number" in refused(server, "scale", "many").stderr
    server.stop()


def test_one_worker_is_drained_restarted_killed_and_looked_into(
    serve: Serve, project: Project
) -> None:
    project.write(BLOCKING)
    server = serve("--workers", "2", "--timeout", "60")
    old = ask(server, "worker", "0", "restart")["pid"]
    drained = ask(server, "worker", "1", "drain")["pid"]
    victim = wait_for(
        lambda: (rows := ask(server, "workers"))[0]["state"] == "ready" and rows[0]["pid"],
        "slot 0 serves",
    )
    ask(server, "worker", f"pid={victim}", "kill")
    fresh = server.wait_for_workers(2)
    assert not {old, drained, victim} & fresh
    assert ask(server, "status")["exits"] == {"asked for": 3}

    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall(b"GET /block HTTP/1.1\r\nHost: x\r\n\r\n")
        rows = wait_for(
            lambda: [row for row in ask(server, "workers") if (row["beat"] or 0) > 1.5],
            "a worker is blocked",
        )
        stack = say(server, "worker", f"pid={rows[0]['pid']}", "stack").stdout
        assert "in stuck_in_here" in stack
        server.assert_log("in stuck_in_here")
        ask(server, "worker", f"pid={rows[0]['pid']}", "kill")
    for arguments in (("7", "kill"), ("pid=1", "drain"), ("x", "stack")):
        assert refused(server, "worker", *arguments).stderr.count("\n") == 1
    assert refused(server, "worker", "0", "dance", code=2)
    server.stop()


def test_upgrade_waits_until_the_new_program_answers(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--workers", "2")
    before = server.workers()
    ask(server, "log-level", "debug")
    done = say(server, "upgrade")
    assert done.code == 0
    assert re.fullmatch(r"asgictl \S+ has taken over, with 2 workers ready\n", done.stdout)
    status = ask(server, "status")
    assert (status["pid"], status["upgrades"]) == (server.pid, 1)
    assert server.workers() == before
    ask(server, "upgrade")
    server.stop()


def test_a_refused_upgrade_exits_with_1_and_says_why(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    project.write("workers = 1\n", "asgictl.toml")
    server = serve()
    project.write("workers = nonsense\n", "asgictl.toml")
    done = refused(server, "upgrade")
    assert "upgrade refused, everything is as it was" in done.stderr
    assert "not valid TOML" in done.stderr
    assert_answers_soon(server)
    server.stop()


@pytest.mark.parametrize("options", [(), ("--now",)])
def test_stop_returns_when_the_supervisor_has_ended(
    serve: Serve, project: Project, options: tuple[str, ...]
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2")
    done = say(server, "stop", *options)
    assert (done.code, done.stdout) == (0, "stopped\n")
    assert server.process.wait(1.0) == 0
    server.assert_ended(0)
    assert "no supervisor answers at" in refused(server, "stop", code=69).stderr


def test_the_log_level_changes_in_all_processes_those_to_come_too(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "1")
    ask(server, "log-level", "debug")
    ask(server, "scale", "2")
    server.assert_log(r"DEBUG asgictl.supervisor .* forked worker=1")
    ask(server, "log-level", "error")
    lines = server.log().count("\n")
    ask(server, "scale", "1")
    assert server.log().count("\n") == lines
    assert refused(server, "log-level", "loud", code=2)
    server.stop()


def test_reopen_logs_reaches_all_processes(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    config = '[loggers.asgictl]\nlevel = "INFO"\nhandlers = ["file"]\n'
    config += '[handlers.file]\nclass = "logging.FileHandler"\nfilename = "out.log"\n'
    project.write("version = 1\n" + config, "log.toml")
    server = serve_by_log(serve, project)
    (project.directory / "out.log").rename(project.directory / "out.log.1")
    ask(server, "reopen-logs")
    wait_for((project.directory / "out.log").exists, "the new file")
    server.accept_files()
    server.stop()


def serve_by_log(serve: Serve, project: Project) -> Server:
    """Start a server that logs into a file of its own; it is ready when a client says so."""
    start: Any = serve.__closure__[0].cell_contents  # type: ignore[attr-defined]
    server: Server = start("app:app", "--port", "0", "--log-config", "log.toml")

    def ready() -> bool:
        done = tried(server, "status", "--json")
        return done.code == 0 and json.loads(done.stdout)["ready"] == 1

    wait_for(ready, "it is ready")
    return server


# -- Find


def found_by(project: Project, *arguments: str) -> Any:
    """Run a verb that has to find the supervisor by itself."""
    done = run(project, *arguments, "--json")
    assert done.code == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def not_found(project: Project, *arguments: str, code: int) -> Ended:
    done = run(project, *arguments)
    assert done.code == code, done.stdout + done.stderr
    return done


def test_it_is_found_by_pid_file_settings_and_path(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--pid", "x.pid")
    path = str(socket_of(server))
    assert found_by(project, "status", "--pid", "x.pid")["pid"] == server.pid
    assert found_by(project, "status", "--control", path)["pid"] == server.pid
    project.write("pid = 'x.pid'\n", "asgictl.toml")
    assert found_by(project, "status")["pid"] == server.pid
    project.write(f"control = '{path}'\n", "asgictl.toml")
    assert found_by(project, "status")["pid"] == server.pid
    project.write("this is broken", "asgictl.toml")
    assert found_by(project, "status")["pid"] == server.pid, "broken settings do not blind anybody"
    (project.directory / "asgictl.toml").unlink()
    server.stop()
    assert (
        "cannot read the pid file" in not_found(project, "status", "--pid", "x.pid", code=69).stderr
    )
    assert (
        "no supervisor answers at"
        in not_found(project, "status", "--control", path, code=69).stderr
    )


def test_several_are_listed_and_one_is_chosen(
    serve: Serve, project: Project, tmp_path: Path
) -> None:
    project.write(application("1"))
    first, second = serve("--pid", "1.pid"), serve("--pid", "2.pid")
    error = not_found(project, "status", code=2).stderr
    for server in (first, second):
        line = f"--control {socket_of(server)}  pid {server.pid}: app:app on {server.url}"
        assert f"{line} in {project.directory}" in error
    assert found_by(project, "status", "--pid", "2.pid")["pid"] == second.pid
    second.accept_files()
    second.stop()
    assert found_by(project, "status")["pid"] == first.pid
    first.accept_files()
    first.stop()


def test_it_may_have_a_path_of_its_own_or_none(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--control", "my.sock")
    path = project.directory / "my.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    assert found_by(project, "status", "--control", "my.sock")["pid"] == server.pid
    taken = run(project, "app:app", "--port", "0", "--control", "my.sock")
    assert taken.code == 5
    assert "my.sock" in taken.stderr
    server.stop()
    assert not path.exists()

    server = serve("--control", "none")
    assert not socket_of(server).exists()
    not_found(project, "status", code=69)
    server.stop()


def test_where_no_place_works_it_serves_without(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    nowhere = {"XDG_RUNTIME_DIR": "/proc", "TMPDIR": "/proc"}
    server = serve(environment=nowhere)
    server.assert_log("INFO .* no control socket")
    assert_answers_soon(server)
    not_found(project, "status", code=69)
    server.stop()


def test_the_socket_of_a_killed_supervisor_is_tidied_up_by_the_next(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve()
    server.destroy()
    assert socket_of(server).exists()
    not_found(project, "status", code=69)
    server = serve()
    left = {path.name for path in socket_of(server).parent.iterdir()}
    assert left == {f"{server.pid}.sock", f"{server.pid}.sock.lock"}
    server.accept_files()
    server.stop()


# -- Harm


def test_junk_half_requests_floods_and_a_thousand_connections_are_survived(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2")
    path = str(socket_of(server))
    memory = psutil.Process(server.pid).memory_info().rss
    with contextlib.ExitStack() as leaving:

        def connect() -> socket.socket:
            client = leaving.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(path)
            client.settimeout(PATIENCE)
            return client

        with Load(server.port, keep_alive=8, closing=2) as load:
            for junk in (b"\x00\xff\xfe\n", b"GET / HTTP/1.1\r\n\r\n", b"[" * 60_000 + b"\n"):
                client = connect()
                client.sendall(junk)
                assert json.loads(client.makefile("rb").readline())["ok"] is False
                client.close()
            overlong = connect()
            with contextlib.suppress(BrokenPipeError):
                overlong.sendall(b"x" * 1_000_000)
            overlong.close()
            half = connect()
            half.sendall(b'{"verb": ')
            assert b"no whole request within 5 s" in half.recv(4096)
            flood = connect()
            flood.settimeout(0)
            request = b'{"verb":"status"}\n' * 1000
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                while True:
                    flood.sendall(request)
            crowd = [connect() for _ in range(1000)]
            load.wait_for_answers(500)
        load.assert_nothing_lost()
        said = [client.recv(4096) for client in crowd]
        assert sum(b"16 clients are connected already" in text for text in said) >= 984
    wait_for(lambda: tried(server, "status").code == 0, "the verbs work again")
    assert psutil.Process(server.pid).memory_info().rss < memory + 8_000_000
    server.stop()


def test_a_client_that_does_not_read_is_dropped_and_holds_nobody_up(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_of(server)))
        client.sendall(b'{"verb": "events", "follow": true, "last": 0}\n')
        ask(server, "status")
        server.stop()
