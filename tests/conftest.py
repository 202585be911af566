"""Fixtures for tests with real processes; a failed test shows what its servers said.

``HYPOTHESIS_PROFILE=nightly`` tries properties harder, for a long night (``make nightly``).
"""

import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.kit import Project, Server

# A busy machine is no reason to fail.
_ALWAYS: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", max_examples=100, **_ALWAYS)
settings.register_profile("nightly", max_examples=10_000, **_ALWAYS)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Who starts the tests in the background of a script, or by nohup(1), makes them ignore these, and
# all that they start.
for _number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGINT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        _is_interrupt = _number is signal.SIGINT
        signal.signal(_number, signal.default_int_handler if _is_interrupt else signal.SIG_DFL)

Serve = Callable[..., Server]
SERVERS = pytest.StashKey[list[Server]]()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty directory for an application."""
    return Project(tmp_path / "project")


@pytest.fixture
def start(request: pytest.FixtureRequest, project: Project) -> Iterator[Serve]:
    """Start servers on free ports; whatever still runs at the end of the test is killed."""
    servers: list[Server] = request.node.stash.setdefault(SERVERS, [])

    def start(*arguments: str, **how: Any) -> Server:
        server = Server(project, *arguments, **how)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.destroy()


@pytest.fixture
def serve(start: Serve) -> Serve:
    """Start servers as ``start`` does, and wait until all their workers are ready."""

    def serve(*options: str, name: str = "app:app", **how: Any) -> Server:
        address = () if {"--bind", "--uds", "--fd"} & set(options) else ("--port", "0")
        return start(name, *address, *options, **how).wait_until_ready()

    return serve


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the servers' logs to the report of a failed test."""
    report = yield
    if report.when == "call" and report.failed:
        for number, server in enumerate(item.stash.get(SERVERS, []), 1):
            lines = [line for line in server.log().splitlines() if "asgictl.access" not in line]
            report.sections.append((f"log of server {number}", "\n".join(lines[-200:])))
    return report
