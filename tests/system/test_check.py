"""`asgictl check` tries out a start, tells the truth, and leaves nothing behind."""

import json
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
    server = serve()
    done = run(project, "check", "app:app", "--port", str(server.port))
    assert f"is served by the running supervisor, pid {server.pid}" in done.stdout
    assert done.code == 0
    server.stop()


def test_bad_settings_are_told_as_for_a_start(project: Project) -> None:
    project.write("workers = 'many'\n", "asgictl.toml")
    assert run(project, "check", "app:app").code == 78
    assert run(project, "check").code == 2
    (project.directory / "asgictl.toml").unlink()
    done = run(project, "check", "app:app", "--user", "nobody-of-this-name")
    assert done.code == 1
    assert "there is no user 'nobody-of-this-name'" in done.stdout
