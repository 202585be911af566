"""--max-lifetime and --max-memory: a successor takes over, and nothing is lost."""

import httpx
import pytest
from tests.conftest import Serve
from tests.kit import Load, Project, application

pytestmark = [pytest.mark.system]

LEAKING = "KEPT = []\n" + application("1").replace(
    "    answer =", "    KEPT.append(b'x' * 200_000)\n    answer ="
)


def test_old_workers_are_replaced_one_by_one_under_load(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", "--max-lifetime", "1")
    first = server.workers()
    with Load(server.port, keep_alive=8, closing=2) as load:
        server.assert_log(r"wants a successor \(max-lifetime: served for 1 s\)", count=2)
        server.wait_for_workers(2, other_than=first)
    load.assert_nothing_lost()
    server.stop()


def test_a_worker_that_leaks_is_replaced(serve: Serve, project: Project) -> None:
    project.write(LEAKING)
    server = serve("--max-memory", "100M")
    (first,) = server.workers()
    with httpx.Client(base_url=server.url) as client:
        for _ in range(500):
            assert client.get("/").status_code == 200
    server.assert_log(r"wants a successor \(max-memory: \d+ MiB of memory used\)")
    server.wait_for_workers(1, other_than={first})
    server.stop()
