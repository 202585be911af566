"""What the processes look like from outside: names, memory."""

import psutil
import pytest
from tests.conftest import Serve
from tests.kit import Project, application

pytestmark = [pytest.mark.system]


def test_processes_say_who_they_are(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--workers", "2")
    titles = {psutil.Process(pid).cmdline()[0] for pid in server.workers()}
    assert len(titles) == 2, "each worker has a title of its own"
    assert all("asgictl" in title and "worker" in title and "app:app" in title for title in titles)
    assert "asgictl" in " ".join(psutil.Process(server.pid).cmdline())
    server.stop()


def test_the_supervisor_stays_below_25_megabytes(serve: Serve, project: Project) -> None:
    project.write(application("1") + "\nballast = bytearray(60_000_000)\n")
    server = serve("--workers", "2", "--min-ready", "0")
    server.reload()
    assert psutil.Process(server.pid).memory_info().rss < 25_000_000
    server.stop()
