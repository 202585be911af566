"""A start that cannot succeed says why, once, with the right exit code, and leaves nothing behind."""

import re
import socket
import time
from pathlib import Path

import pytest
from tests.kit import Ended, Project, application, run
from tests.system.applications import FAILING_LIFESPAN

from asgictl_worker.errors import ExitCode

pytestmark = [pytest.mark.system]

FREE = ("--port", "0")


def assert_one_clear_error(ended: Ended, code: ExitCode, pattern: str) -> None:
    """Assert the exit code, one line that says ``pattern``, and no traceback."""
    assert ended.code == code, ended.stderr
    assert re.search(pattern, ended.stderr), ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    errors = [
        line for line in ended.stderr.splitlines() if re.search(r"\berror\b", line, re.IGNORECASE)
    ]
    assert len(errors) == 1, ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("nothere:app", "nothere"),
        ("app:nothere", "nothere"),
        ("app:NUMBER", "NUMBER|call"),
        ("nopackage.module:app", "nopackage"),
    ],
)
@pytest.mark.parametrize("workers", ["1", "4"])
def test_a_name_that_leads_nowhere_is_one_error_without_a_traceback(
    project: Project, name: str, pattern: str, workers: str
) -> None:
    project.write(application("1") + "\nNUMBER = 7\n")
    ended = run(project, name, *FREE, "--workers", workers)
    assert_one_clear_error(ended, ExitCode.NO_WORKER_BOOTED, pattern)


def test_an_error_inside_the_application_shows_its_traceback_once_and_ends_at_once(
    project: Project,
) -> None:
    project.write(
        # Appended: a sibling that is ended meanwhile must not leave an empty file.
        "import time\n"
        "with open('failed', 'a') as file:\n"
        "    print(time.monotonic(), file=file)\n"
        "import no_such_library\n"
    )
    ended = run(project, "app:app", *FREE, "--workers", "4")
    took = time.monotonic() - float((project.directory / "failed").read_text().split()[0])
    assert ended.code == ExitCode.NO_WORKER_BOOTED
    assert "ModuleNotFoundError: No module named 'no_such_library'" in ended.stderr
    assert ended.stderr.count("Traceback") == 1
    assert ended.stderr.count("import no_such_library") == 1
    assert "importlib" not in ended.stderr, "frames of the machinery hide the application's"
    assert took < 1


def test_a_lifespan_that_fails_ends_the_start_with_its_message(project: Project) -> None:
    project.write(FAILING_LIFESPAN)
    ended = run(project, "app:app", *FREE, "--workers", "4")
    assert_one_clear_error(ended, ExitCode.NO_WORKER_BOOTED, "no database today")


def test_a_worker_that_is_never_ready_ends_the_start_after_the_boot_time_out(
    project: Project,
) -> None:
    project.write("import threading\nthreading.Event().wait()\n")
    ended = run(project, "app:app", *FREE, "--timeout-boot", "1")
    assert ended.code == ExitCode.NO_WORKER_BOOTED
    assert "timeout" in ended.stderr.lower() or "1" in ended.stderr
    assert 'app.py", line 2' in ended.stderr, "the stack says where the import is stuck"


def test_a_port_in_use_is_one_error_and_the_other_server_is_not_disturbed(project: Project) -> None:
    project.write(application("1"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = run(project, "app:app", "--port", str(port))
        assert_one_clear_error(ended, ExitCode.CANNOT_BIND, rf"127\.0\.0\.1:{port}.*in use")


def test_an_address_of_another_machine_is_one_error(project: Project) -> None:
    project.write(application("1"))
    ended = run(project, "app:app", "--host", "192.0.2.7", *FREE)
    assert_one_clear_error(ended, ExitCode.CANNOT_BIND, r"192\.0\.2\.7")


def test_one_address_that_fails_frees_all_others(project: Project, tmp_path: Path) -> None:
    project.write(application("1"))
    path = tmp_path / "app.sock"
    ended = run(project, "app:app", "--bind", f"unix:{path}", "--bind", "192.0.2.7:0")
    assert_one_clear_error(ended, ExitCode.CANNOT_BIND, r"192\.0\.2\.7")
    assert not path.exists()


@pytest.mark.parametrize("place", ["/nonexistent/app.sock", "/proc/app.sock"])
def test_a_unix_socket_that_cannot_be_made_is_one_error(project: Project, place: str) -> None:
    project.write(application("1"))
    ended = run(project, "app:app", "--uds", place)
    assert_one_clear_error(ended, ExitCode.CANNOT_BIND, re.escape(place))


def test_a_file_in_the_place_of_a_unix_socket_is_not_removed(
    project: Project, tmp_path: Path
) -> None:
    project.write(application("1"))
    path = tmp_path / "precious"
    path.write_text("data")
    ended = run(project, "app:app", "--uds", str(path))
    assert_one_clear_error(ended, ExitCode.CANNOT_BIND, re.escape(str(path)))
    assert path.read_text() == "data"


@pytest.mark.parametrize(
    ("options", "code", "pattern"),
    [
        (("--workers", "zero"), ExitCode.USAGE, "zero"),
        (("--workers", "0"), ExitCode.USAGE, "workers"),
        (("--timeout", "soon"), ExitCode.USAGE, "soon"),
        (("--bind", "not an address"), ExitCode.USAGE, "not an address"),
        (("--worker", "4"), ExitCode.USAGE, "--workers"),
        (("--fd", "87"), ExitCode.CANNOT_BIND, "87"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_an_option_that_cannot_work_is_one_error(
    project: Project, options: tuple[str, ...], code: ExitCode, pattern: str
) -> None:
    project.write(application("1"))
    assert_one_clear_error(run(project, "app:app", *options), code, pattern)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("workers = [", r"asgictl\.toml"),
        ("worker = 4\n", "worker"),
        ("workers = 'many'\n", "many"),
    ],
    ids=["syntax", "name", "value"],
)
def test_a_settings_file_that_cannot_be_used_is_one_error(
    project: Project, text: str, pattern: str
) -> None:
    project.write(application("1")).write(text, "asgictl.toml")
    ended = run(project, "app:app", *FREE)
    assert_one_clear_error(ended, ExitCode.BAD_CONFIGURATION, pattern)


@pytest.mark.parametrize("variable", ["ASGICTL_WORKERS", "WEB_CONCURRENCY"])
def test_a_variable_that_cannot_be_used_is_one_error_that_names_it(
    project: Project, variable: str
) -> None:
    project.write(application("1"))
    ended = run(project, "app:app", *FREE, environment={variable: "plenty"})
    assert_one_clear_error(ended, ExitCode.BAD_CONFIGURATION, variable)
