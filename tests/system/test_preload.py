"""--preload: workers are forked from a template that has imported the application once."""

import os
import signal

import httpx
import psutil
import pytest
from tests.conftest import Serve
from tests.kit import Load, Project, application, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

COUNTING = (
    "import os\nwith open('imports', 'a') as file:\n    print(os.getpid(), file=file)\n"
    + application("1")
)


def _imports(project: Project) -> list[str]:
    return (project.directory / "imports").read_text().split()


def _template(server: object) -> int:
    (pid,) = server.children() - server.workers()  # type: ignore[attr-defined]
    return int(pid)


def test_the_application_is_imported_once_for_all_workers(serve: Serve, project: Project) -> None:
    project.write(COUNTING)
    server = serve("--workers", "4", "--preload")
    assert _imports(project) == [str(_template(server))]
    assert {httpx.get(server.url).json()["pid"] for _ in range(5)} <= server.workers()
    server.accept_files()
    server.stop()


def test_a_reload_brings_new_code_without_losing_a_request(serve: Serve, project: Project) -> None:
    project.write(application("0"))
    server = serve("--workers", "3", "--preload", "--min-ready", "0.2")
    with Load(server.port, keep_alive=16, closing=4) as load:
        project.write(application("1"))
        server.reload()
        load.wait_for_answers(300)
    load.assert_nothing_lost()
    assert set(load.tally.by_version) == {"0", "1"}
    wait_for(lambda: len(server.children()) == 4, "the old template leaves")
    server.stop()


def test_broken_code_at_a_reload_is_refused_and_replacements_still_come_from_memory(
    serve: Serve, project: Project
) -> None:
    project.write(application("good"))
    server = serve("--workers", "2", "--preload")
    project.write("raise RuntimeError('broken on purpose')")
    server.signal("HUP")
    server.assert_log("reload refused.*broken on purpose")
    (project.directory / "app.py").unlink()
    old = server.workers()
    victim = min(old)
    os.kill(victim, signal.SIGKILL)
    new = wait_for(lambda: server.workers() - old, "a successor")
    wait_for(lambda: len(server.workers()) == 2, "two workers")
    assert new
    assert {httpx.get(server.url).json()["version"] for _ in range(20)} == {"good"}
    server.accept_files()
    server.stop()


def test_a_killed_template_is_replaced_and_its_workers_serve_on(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", "--preload")
    workers, template = server.workers(), _template(server)
    os.kill(template, signal.SIGKILL)
    server.assert_log("the template of generation 1 failed: killed by SIGKILL")
    wait_for(lambda: len(server.children()) == 3, "another template")
    assert server.workers() == workers
    os.kill(min(workers), signal.SIGKILL)
    wait_for(lambda: len(server.workers() - workers) == 1, "a worker from the other template")
    server.stop()


def test_a_template_that_does_not_boot_ends_the_first_start_with_one_traceback(
    start: Serve, project: Project
) -> None:
    project.write("raise RuntimeError('broken on purpose')")
    server = start("app:app", "--port", "0", "--workers", "4", "--preload")
    server.assert_ended(3)
    assert server.log().count("Traceback") == 1


def test_an_application_that_starts_threads_at_import_is_told_why_it_cannot_be_preloaded(
    start: Serve, project: Project
) -> None:
    project.write(
        "import threading\n"
        "threading.Thread(target=threading.Event().wait, name='metrics', daemon=True).start()\n"
        + application("1")
    )
    server = start("app:app", "--port", "0", "--preload")
    server.assert_ended(3)
    server.assert_log(r"started threads while it was imported \(metrics\)")


def test_workers_share_the_memory_of_the_template(serve: Serve, project: Project) -> None:
    project.write("BALLAST = [object() for _ in range(1_000_000)]\n" + application("1"))
    server = serve("--workers", "2", "--preload")
    template = psutil.Process(_template(server))
    for pid in server.workers():
        memory = psutil.Process(pid).memory_full_info()
        assert memory.uss < 0.5 * template.memory_info().rss, memory
    server.stop()


IMPORTING = """
import os, sys
BEFORE = set()
os.register_at_fork(after_in_child=lambda: BEFORE.update(sys.modules))
async def app(scope, receive, send):
    if scope["type"] == "http":
        body = " ".join(sys.modules.keys() - BEFORE).encode()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": body})
"""


@pytest.mark.parametrize("options", [(), ("--loop", "asyncio", "--http", "h11")])
def test_workers_import_nothing_of_their_own(
    serve: Serve, project: Project, options: tuple[str, ...]
) -> None:
    project.write(IMPORTING)
    server = serve("--workers", "2", "--preload", *options)
    assert httpx.get(server.url).text == ""
    server.stop()


def test_after_a_kill_of_the_supervisor_neither_template_nor_workers_are_left(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", "--preload")
    server.signal("KILL")
    server.ended()
    wait_for(lambda: not server.session(), "everybody leaves", 5.0)
