"""`asgictl check` tries out a start, tells the truth, and leaves nothing behind."""

import json
import os
import socket

import pytest
from tests.conftest import Serve
from tests.kit import Project, application, run
from tests.system.applications import FAILING_LIFESPAN

pytestmark = [pytest.mark.system]


def test_a_sound_application_is_booted_and_shut_down(project: Project) -> None:
    project.write(application("1").replace("return\n", "open('left', 'w').close(); return\n"))
    done = run(project, "check", "app:app", "--port", "0")
    assert (done.code, done.stderr) == (0, "")
    lines = [line.split()[:2] for line in done.stdout.splitlines()]
    assert lines == [
        ["ok", "settings"],
        ["ok", "address"],
        ["ok", "application"],
        ["ok", "shutdown"],
    ]
    assert (project.directory / "left").exists(), "its shutdown has run"


@pytest.mark.parametrize(
    ("code", "options", "said"),
    [
        ("raise ValueError('on purpose')", (), "ValueError: on purpose"),
        (FAILING_LIFESPAN, (), "no database today"),
        ("import os; os._exit(7)", (), "its process exited: 7 in stage 'import'"),
        ("import os; os.abort()", (), "its process was killed by SIGABRT in stage 'import'"),
        (
            "import time\ndef stuck(): time.sleep(60)\nstuck()",
            ("--timeout-boot", "6"),
            "not ready after 6 s, still in stage 'import'",
        ),
    ],
    ids=["exception", "lifespan", "exit", "abort", "hang"],
)
def test_what_does_not_boot_is_told_with_its_reason(
    project: Project, code: str, options: tuple[str, ...], said: str
) -> None:
    project.write(code)
    done = run(project, "check", "app:app", "--port", "0", *options)
    assert done.code == 1
    assert "FAILED  application" in done.stdout
    assert said in done.stdout
    if "stuck" in code:
        assert "in stuck" in done.stderr, "its stack"


def test_an_address_in_use_is_told_and_the_rest_is_tried(project: Project) -> None:
    project.write(application("1"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = run(project, "check", "app:app", "--port", port, "--json")
    found = json.loads(done.stdout)
    assert (done.code, found["ok"]) == (1, False)
    sound = {finding["what"]: finding["sound"] for finding in found["findings"]}
    assert sound == {"settings": True, "address": False, "application": True, "shutdown": True}
    assert "the port is in use" in done.stdout


def test_an_address_that_the_service_itself_serves_is_no_mistake(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--admin-bind", "127.0.0.1:0")
    looking = server.assert_log(r"fleet are on http://(.*:\d+)")[1]
    arguments = ("--port", str(server.port), "--admin-bind", looking)
    done = run(project, "check", "app:app", *arguments)
    assert done.stdout.count(f"is served by the running supervisor, pid {server.pid}") == 2
    assert f"ok      admin         {looking} is served by" in done.stdout
    assert done.code == 0
    server.stop()


def test_an_admin_address_that_cannot_be_had_is_told(project: Project) -> None:
    project.write(application("1"))

    def said(address: str) -> str:
        done = run(project, "check", "app:app", "--port", "0", "--admin-bind", address)
        (line,) = (line for line in done.stdout.splitlines() if "admin " in line)
        assert done.code == (1 if line.startswith("FAILED") else 0)
        assert "ok      application" in done.stdout, "the rest is tried"
        return line

    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        assert "the port is in use by process" in said(taken)
    assert "the directory /nowhere does not exist; make it first" in said("unix:/nowhere/x.sock")
    assert "this machine does not have that address" in said("192.0.2.1:0")
    assert said("127.0.0.1:0") == "ok      admin         127.0.0.1:0 can be listened on"
    assert said("unix:x.sock").endswith("unix:x.sock can be listened on")
    assert not (project.directory / "x.sock").exists()
    done = run(project, "check", "app:app", "--port", "8123", "--admin-bind", ":8123")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert "an address of its own" in done.stderr


def test_pid_file_and_control_socket_are_tried_too(start: Serve, project: Project) -> None:
    project.write(application("1"))
    names = ("--pid", "x.pid", "--control", "x.sock")

    def said(*options: str) -> list[str]:
        done = run(project, "check", "app:app", *options)
        lines = [
            line for line in done.stdout.splitlines() if "pid file" in line or "control" in line
        ]
        assert done.code == int(any(line.startswith("FAILED") for line in lines)), done.stdout
        return lines

    assert said("--port", "0", *names) == [
        "ok      control       unix:x.sock can be listened on",
        "ok      pid file      x.pid can be written",
    ]
    assert {path.name for path in project.directory.iterdir()} == {"app.py"}
    wrong = said("--port", "0", "--pid", "/nowhere/x.pid", "--control", "/nowhere/x.sock")
    assert wrong[0].startswith("FAILED  control       cannot listen on unix:/nowhere/x.sock")
    assert wrong[1].startswith("FAILED  pid file      cannot write the pid file /nowhere/x.pid")
    server = start("app:app", "--port", "0", *names).wait_until_ready()
    control, pid_file = said("--port", str(server.port), *names)
    assert f"is served by the running supervisor, pid {server.pid}" in control
    assert f"x.pid is that of the running supervisor, pid {server.pid}" in pid_file
    server.stop()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_admin_address_in_a_place_that_is_not_ours_is_told(project: Project) -> None:
    project.write(application("1"))
    done = run(project, "check", "app:app", "--port", "0", "--admin-bind", "unix:/etc/x.sock")
    assert "this user may not write in /etc" in done.stdout


def test_bad_settings_are_told_as_for_a_start(project: Project) -> None:
    project.write("workers = 'many'\n", "asgictl.toml")
    assert run(project, "check", "app:app").code == 78
    assert run(project, "check").code == 2
    (project.directory / "asgictl.toml").unlink()
    done = run(project, "check", "app:app", "--user", "nobody-of-this-name")
    assert done.code == 1
    assert "there is no user 'nobody-of-this-name'" in done.stdout
