import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asgictl_worker import logs
from asgictl_worker.errors import ContradictorySettings
from asgictl_worker.logs import LogConfigError
from asgictl_worker.settings import WorkerSettings

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (\S+) +(\S+) \[(\d+)\] (.*)\n")


def log(level: int, text: str, *arguments: object, **how: Any) -> None:
    logging.getLogger("asgictl.worker").log(level, text, *arguments, **how)


# -- Lines


def test_a_line_has_time_level_logger_process_and_text(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(WorkerSettings())
    log(logging.INFO, "ready after %d s", 3)
    found = LINE.fullmatch(capfd.readouterr().err)
    assert found is not None
    assert found.groups() == ("INFO", "asgictl.worker", str(os.getpid()), "ready after 3 s")


def test_only_what_is_important_enough_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(WorkerSettings(log_level="warning"))
    log(logging.INFO, "quiet")
    log(logging.WARNING, "loud")
    assert "quiet" not in (text := capfd.readouterr().err)
    assert "loud" in text


def test_configuring_twice_does_not_write_twice(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(WorkerSettings())
    logs.configure(WorkerSettings())
    log(logging.INFO, "once")
    assert capfd.readouterr().err.count("once") == 1


def test_the_applications_own_logging_is_left_alone() -> None:
    before = logging.root.handlers[:], logging.root.level
    logs.configure(WorkerSettings())
    assert (logging.root.handlers[:], logging.root.level) == before


@pytest.mark.parametrize(("use_colors", "colored"), [(None, False), (True, True), (False, False)])
def test_colours_are_for_terminals_and_for_who_asks(
    use_colors: bool | None, colored: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.configure(WorkerSettings(use_colors=use_colors))
    log(logging.ERROR, "text")
    assert ("\x1b[31m" in capfd.readouterr().err) is colored


@pytest.mark.parametrize(("environment", "colored"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_colours_unless_its_user_has_none_of_it(
    environment: dict[str, str], colored: bool
) -> None:
    ours, theirs = os.openpty()
    code = (
        "import logging; from asgictl_worker import logs, settings;"
        "logs.configure(settings.WorkerSettings()); logging.getLogger('asgictl').error('text')"
    )
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    subprocess.run([sys.executable, "-c", code], stderr=theirs, env=clean | environment, check=True)
    text = os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)
    assert b"text" in text
    assert (b"\x1b[31m" in text) is colored


def test_a_traceback_follows_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(WorkerSettings())
    log(logging.ERROR, "failed", exc_info=ValueError("oops"))
    first, *_, last = capfd.readouterr().err.splitlines()
    assert first.endswith("failed")
    assert last == "ValueError: oops"


def test_text_that_is_no_unicode_is_written_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(WorkerSettings())
    log(logging.INFO, "name \udcff é")
    assert "name \\udcff é" in capfd.readouterr().err


def test_a_record_that_cannot_be_formatted_is_reported_on_the_same_way(
    capfd: pytest.CaptureFixture[str],
) -> None:
    logs.configure(WorkerSettings())
    log(logging.INFO, "%d files", "three")
    text = capfd.readouterr().err
    assert "cannot format the log record '%d files'" in text
    assert "TypeError" in text


def test_what_was_kept_back_is_written_by_flush(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(WorkerSettings())
    (handler,) = logging.getLogger("asgictl").handlers
    assert isinstance(handler, logs.OutletHandler)
    handler.outlet._kept += b"kept back\n"
    logs.flush()
    assert capfd.readouterr().err == "kept back\n"


def test_a_log_that_nobody_reads_does_not_stop_the_process() -> None:
    code = (
        "import logging; from asgictl_worker import logs, settings;"
        "logs.configure(settings.WorkerSettings());"
        "[logging.getLogger('asgictl').info('x' * 1000) for _ in range(2000)];"
        "print('done')"
    )
    reader, writer = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=writer, stdout=subprocess.PIPE, timeout=20, check=True
    )
    os.close(reader)
    os.close(writer)
    assert done.stdout == b"done\n"


def test_a_closed_standard_error_does_not_stop_the_process() -> None:
    code = (
        "import logging; from asgictl_worker import logs, settings;"
        "logs.configure(settings.WorkerSettings());"
        "logging.getLogger('asgictl').info('x'); print('done')"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code],
        stdout=subprocess.PIPE,
        timeout=20,
        check=True,
    )
    assert done.stdout == b"done\n"


# -- JSON


def in_json(capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capfd.readouterr().err)
    return found


def use_json() -> None:
    logs.configure(WorkerSettings(log_format="json"))


def test_a_record_is_an_object_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    use_json()
    log(logging.WARNING, "first %s\nsecond \x1b[31m é", "line", extra={"worker": 3})
    text = capfd.readouterr().err
    assert text.count("\n") == 1
    assert text.isascii()
    found = json.loads(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {
        "level": "WARNING",
        "logger": "asgictl.worker",
        "pid": os.getpid(),
        "message": "first line\nsecond \x1b[31m é",
        "worker": 3,
    }


def test_a_traceback_is_a_field(capfd: pytest.CaptureFixture[str]) -> None:
    use_json()
    log(logging.ERROR, "failed", exc_info=ValueError("oops"))
    assert in_json(capfd)["exception"] == "ValueError: oops"


def test_a_stack_is_a_field(capfd: pytest.CaptureFixture[str]) -> None:
    use_json()
    log(logging.INFO, "here", stack_info=True)
    assert "test_a_stack_is_a_field" in in_json(capfd)["stack"]


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, {(1, 2): 3}, object(), b"x"])
def test_a_fact_that_json_does_not_know_is_shown_as_text(
    value: object, capfd: pytest.CaptureFixture[str]
) -> None:
    use_json()
    circle: list[Any] = [value]
    log(logging.INFO, "text", extra={"fact": value, "number": 1})
    found = in_json(capfd)
    assert found["fact"] in (repr(value), str(value))
    assert found["number"] == 1
    circle.append(circle)
    log(logging.INFO, "text", extra={"fact": circle})
    assert in_json(capfd)["fact"] == repr(circle)


def test_a_fact_does_not_replace_what_every_object_has(capfd: pytest.CaptureFixture[str]) -> None:
    use_json()
    log(logging.INFO, "text", extra={"time": "never", "level": "none", "pid": 0})
    found = in_json(capfd)
    assert (found["level"], found["pid"]) == ("INFO", os.getpid())
    assert found["time"] != "never"


def test_a_record_that_cannot_be_formatted_is_an_object_too(
    capfd: pytest.CaptureFixture[str],
) -> None:
    use_json()
    log(logging.INFO, "%d files", "three")
    found = in_json(capfd)
    assert found["message"] == "cannot format the log record '%d files'"
    assert found["exception"].splitlines()[-1].startswith("TypeError")


def test_lost_lines_are_told_in_json() -> None:
    assert json.loads(logs.dropped_as_json(3))["message"].startswith("3 log lines were dropped")


def test_json_and_a_file_contradict_each_other() -> None:
    with pytest.raises(ContradictorySettings, match="log_format and log_config"):
        WorkerSettings(log_format="json", log_config="x.json")


def test_the_formatter_can_be_named_in_a_file(tmp_path: Path) -> None:
    config = json.loads(json.dumps(CONFIG).replace("FILE", str(tmp_path / "out")))
    config["formatters"]["plain"] = {"()": "asgictl_worker.logs.JSONFormatter"}
    (tmp_path / "log.json").write_text(json.dumps(config))
    logs.configure(WorkerSettings(log_config=str(tmp_path / "log.json")))
    log(logging.INFO, "hello")
    assert json.loads((tmp_path / "out").read_text())["message"] == "hello"


# -- log_config

CONFIG = {
    "version": 1,
    "formatters": {"plain": {"format": "%(levelname)s~%(message)s"}},
    "handlers": {
        "file": {"class": "logging.FileHandler", "filename": "FILE", "formatter": "plain"}
    },
    "loggers": {"asgictl": {"level": "INFO", "handlers": ["file"], "propagate": False}},
}
TOML = """
version = 1
[formatters.plain]
format = "%(levelname)s~%(message)s"
[handlers.file]
class = "logging.FileHandler"
filename = "FILE"
formatter = "plain"
[loggers.asgictl]
level = "INFO"
handlers = ["file"]
propagate = false
"""
YAML = """
version: 1
formatters: {plain: {format: "%(levelname)s~%(message)s"}}
handlers: {file: {class: logging.FileHandler, filename: FILE, formatter: plain}}
loggers: {asgictl: {level: INFO, handlers: [file], propagate: false}}
"""
INI = """
[loggers]
keys = root, asgictl
[handlers]
keys = file
[formatters]
keys = plain
[logger_root]
handlers =
[logger_asgictl]
qualname = asgictl
level = INFO
handlers = file
propagate = 0
[handler_file]
class = FileHandler
args = ("FILE",)
formatter = plain
[formatter_plain]
format = %(levelname)s~%(message)s
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.json", json.dumps(CONFIG)),
        ("log.toml", TOML),
        ("log.yaml", YAML),
        ("log.yml", YAML),
        ("log.ini", INI),
        ("log.CONF", INI),
    ],
)
def test_a_file_configures_all_of_logging(name: str, text: str, tmp_path: Path) -> None:
    other = logging.getLogger("other")
    (tmp_path / name).write_text(text.replace("FILE", str(tmp_path / "out")))
    logs.configure(WorkerSettings(log_config=str(tmp_path / name)))
    log(logging.INFO, "hello")
    assert (tmp_path / "out").read_text() == "INFO~hello\n"
    assert not other.disabled, "loggers that were there already fell silent"


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("missing.json", None, "No such file or directory$"),
        ("log.xml", "", "does not say what it is; end it in one of .json, .toml"),
        ("log.json", "{", "Expecting property name"),
        ("log.json", "[]", "holds a list and not a table"),
        ("log.json", "{}", "version"),
        ("log.toml", "version = ", "Invalid value"),
        ("log.yaml", "a: [", "expected the node content|did not find expected"),
        ("log.ini", "nonsense", "no section headers"),
        ("log.ini", "[loggers]\nkeys = root\n", "formatters"),
        (
            "log.json",
            json.dumps(CONFIG).replace("FILE", "/no/such/place"),
            "handler 'file': .*/no/such/place",
        ),
        (
            "log.ini",
            INI.replace("FILE", "/no/such/place"),
            "No such file or directory: /no/such/place",
        ),
        ("log.json", b"\xff\xfe", "utf-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(
    name: str, text: str | bytes | None, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LogConfigError, match=problem) as caught:
        logs.configure(WorkerSettings(log_config=str(path)))
    assert str(path) in str(caught.value)
    assert caught.value.__cause__ is None


def test_yaml_without_pyyaml_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = tmp_path / "log.yaml"
    path.write_text(YAML)
    with pytest.raises(LogConfigError, match=r"pip install pyyaml, or write it as \.toml"):
        logs.configure(WorkerSettings(log_config=str(path)))


NON_BLOCKING = """
version = 1
[formatters.json]
"()" = "asgictl_worker.logs.JSONFormatter"
[handlers.stderr]
class = "asgictl_worker.logs.NonBlockingHandler"
stream = "ext://sys.stderr"
formatter = "json"
[loggers.asgictl]
level = "INFO"
handlers = ["stderr"]
"""


@pytest.mark.parametrize("redirection", ["", "2>&-"])
def test_a_handler_for_files_that_does_not_wait(redirection: str, tmp_path: Path) -> None:
    (tmp_path / "log.toml").write_text(NON_BLOCKING)
    code = (
        "import logging; from asgictl_worker import logs, settings;"
        "logs.configure(settings.WorkerSettings(log_config='log.toml'));"
        "[logging.getLogger('asgictl').info('x' * 1000) for _ in range(2000)];"
        "print('done')"
    )
    reader, writer = os.pipe()
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, code],
        cwd=tmp_path,
        stderr=writer,
        stdout=subprocess.PIPE,
        timeout=20,
        check=True,
    )
    os.close(writer)
    with open(reader, encoding="ascii") as file:
        text = file.read()
    assert done.stdout == b"done\n"
    if redirection:
        assert text == ""
    else:
        assert json.loads(text.split("\n", 1)[0])["message"] == "x" * 1000


def test_a_file_for_another_server_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(json.dumps(CONFIG).replace('"asgictl"', '"uvicorn"'))
    code = (
        "import logging; from asgictl_worker import logs, settings;"
        "[logs.configure(settings.WorkerSettings(log_config='log.json')) for _ in range(3)]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    [line] = done.stderr.splitlines()
    assert "log_config 'log.json' gives neither the logger asgictl nor the root logger" in line


# -- Rotation


def configured_for(tmp_path: Path) -> Path:
    path = tmp_path / "log.toml"
    path.write_text(TOML.replace("FILE", str(tmp_path / "out")))
    logs.configure(WorkerSettings(log_config=str(path)))
    return tmp_path / "out"


def test_reopened_logs_go_to_the_new_file(tmp_path: Path) -> None:
    out = configured_for(tmp_path)
    log(logging.INFO, "one")
    out.rename(tmp_path / "rotated")
    log(logging.INFO, "two")
    logs.reopen()
    log(logging.INFO, "three")
    assert (tmp_path / "rotated").read_text() == "INFO~one\nINFO~two\n"
    assert out.read_text() == "INFO~three\n"


def test_a_log_that_cannot_be_reopened_goes_on_in_the_old_file(tmp_path: Path) -> None:
    out = configured_for(tmp_path)
    log(logging.INFO, "one")
    out.rename(tmp_path / "rotated")
    out.mkdir()
    logs.reopen()
    log(logging.INFO, "two")
    text = (tmp_path / "rotated").read_text()
    assert text.startswith("INFO~one\nERROR~cannot reopen the log file")
    assert text.endswith("INFO~two\n")


# -- Weight


@pytest.mark.parametrize("module", ["logs", "settings", "contract"])
def test_what_the_supervisor_imports_loads_no_event_loop(module: str) -> None:
    code = (
        f"import asgictl_worker.{module}, sys;"
        "print([name for name in ('asyncio', 'uvloop', 'ssl', 'socketserver') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
