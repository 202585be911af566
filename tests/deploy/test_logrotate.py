"""deploy/logrotate, run by the real logrotate while a server writes."""

import os
import subprocess
from pathlib import Path

import pytest
from tests.conftest import Serve
from tests.deploy.test_proxies import adapted, program
from tests.deploy.units import DEPLOY
from tests.kit import ASGICTL, Load, Project, application, clean_environment, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

LOGGING = """
version = 1
[formatters.plain]
format = "%(message)s"
[handlers.file]
class = "logging.FileHandler"
formatter = "plain"
filename = "LOGS/access.log"
[loggers."asgictl.access"]
level = "INFO"
handlers = ["file"]
propagate = false
[loggers.asgictl]
level = "INFO"
handlers = ["console"]
[handlers.console]
class = "logging.StreamHandler"
"""


def test_no_line_is_lost_when_files_are_rotated(
    serve: Serve, project: Project, tmp_path: Path
) -> None:
    logrotate = program("logrotate")
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o755)
    project.write(application("1"))
    project.write(LOGGING.replace("LOGS", str(logs)), "log.toml")
    control = tmp_path / "control.sock"
    server = serve("--workers", "2", "--log-config", "log.toml", "--control", str(control))
    changes = {
        "/var/log/shop/": f"{logs}/",
        "/srv/shop/.venv/bin/asgictl": str(ASGICTL),
        "/run/shop/asgictl.sock": str(control),
    }
    config = tmp_path / "logrotate.conf"
    config.write_text(adapted(DEPLOY / "logrotate" / "shop", changes))
    config.chmod(0o644)
    command = [logrotate, "--force", "--state", str(tmp_path / "state"), str(config)]
    environment = clean_environment(tmp_path) | {"PATH": os.environ["PATH"]}
    with Load(server.port, keep_alive=8, closing=2) as load:
        for _ in range(2):
            load.wait_for_answers(100)
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment
            )
            assert done.returncode == 0, done.stdout + done.stderr
            wait_for((logs / "access.log").exists, "the new file")
        load.wait_for_answers(100)
    load.assert_nothing_lost()
    server.stop()
    # The older one of the rotated files is compressed.
    subprocess.run(["gunzip", str(logs / "access.log.2.gz")], check=True)
    files = sorted(logs.iterdir())
    assert [file.name for file in files] == ["access.log", "access.log.1", "access.log.2"]
    lines = [file.read_text().count('"GET /') for file in files]
    assert all(lines), lines
    assert sum(lines) == load.tally.answered, lines
