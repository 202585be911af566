"""The user's own code in a worker: hooks, and another class of server."""

import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tests.worker.test_main import Worker, fork, listener, url  # noqa: F401 (fixtures)

from asgictl_worker import contract, extensions
from asgictl_worker.settings import WorkerSettings

HOOKS = """
import asyncio
from asgictl_worker import Server

heard = []

def plain(worker):
    heard.append(("plain", worker.slot, worker.generation))

async def patient(worker):
    await asyncio.sleep(0)
    heard.append(("patient", worker.pid))

def broken(worker):
    raise LookupError("no such thing")

async def endless(worker):
    await asyncio.sleep(60)

async def late(worker):
    raise TimeoutError("of its own")

number = 5

class Other(Server):
    pass
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> extensions.Worker:
    (tmp_path / "hooks_of_test.py").write_text(HOOKS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "hooks_of_test", raising=False)
    settings = WorkerSettings(app_dir=str(tmp_path))
    return extensions.Worker(slot=2, generation=3, pid=4711, settings=settings)


def heard() -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = sys.modules["hooks_of_test"].heard
    return found


class TestStart:
    async def test_functions_and_coroutine_functions_run_in_order(
        self, worker: extensions.Worker
    ) -> None:
        await extensions.start(("hooks_of_test:patient", "hooks_of_test:plain"), worker)
        assert heard() == [("patient", 4711), ("plain", 2, 3)]

    async def test_what_a_hook_raises_passes_through(self, worker: extensions.Worker) -> None:
        with pytest.raises(LookupError):
            await extensions.start(("hooks_of_test:broken", "hooks_of_test:plain"), worker)
        assert heard() == []

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("hooks_of_tests:plain", "there is no module 'hooks_of_tests'.*did you mean"),
            ("hooks_of_test:plane", "has no attribute 'plane'; did you mean hooks_of_test:plain"),
            ("hooks_of_test:number", "it is 5; name a function of one argument"),
        ],
    )
    async def test_a_name_that_leads_to_no_hook_is_told(
        self, worker: extensions.Worker, name: str, sentence: str
    ) -> None:
        with pytest.raises(extensions.CannotUse, match=f"on_worker_start '{name}': .*{sentence}"):
            await extensions.start((name,), worker)


class TestStop:
    async def test_a_hook_that_fails_is_logged_and_the_next_one_runs(
        self, worker: extensions.Worker, caplog: pytest.LogCaptureFixture
    ) -> None:
        names = ("hooks_of_test:broken", "hooks_of_test:none", "hooks_of_test:late")
        with caplog.at_level(logging.ERROR, "asgictl.worker"):
            logging.getLogger("asgictl").propagate = True
            await extensions.stop((*names, "hooks_of_test:plain"), worker, 10.0)

        assert [record.message for record in caplog.records] == [
            f"on_worker_stop {name!r} failed" for name in names
        ]
        assert heard() == [("plain", 2, 3)]

    async def test_a_hook_that_does_not_end_is_left(
        self, worker: extensions.Worker, caplog: pytest.LogCaptureFixture
    ) -> None:
        logging.getLogger("asgictl").propagate = True
        await extensions.stop(("hooks_of_test:endless",), worker, 0.01)
        assert "takes too long" in caplog.text


class TestServerClass:
    def test_a_subclass_is_taken(self, worker: extensions.Worker) -> None:
        found = extensions.server_class("hooks_of_test:Other", worker.settings)
        assert found.__name__ == "Other"

    @pytest.mark.parametrize("name", ["hooks_of_test:plain", "asyncio:Queue"])
    def test_anything_else_is_refused(self, worker: extensions.Worker, name: str) -> None:
        with pytest.raises(
            extensions.CannotUse, match=r"name a subclass of asgictl_worker\.Server"
        ):
            extensions.server_class(name, worker.settings)


EXAMPLE = Path(__file__).parents[2] / "docs/how-to/extend.py"


def test_the_example_of_the_documentation_serves(
    fork: Callable[..., Worker],  # noqa: F811
    listener: socket.socket,  # noqa: F811
    url: str,  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "extend.py").write_text(EXAMPLE.read_text())
    assigned = {"on_worker_start": ("extend:greet",), "worker_class": "extend:Counting"}
    forked = fork(**assigned)
    assert [forked.hear(contract.Stage).stage for _ in range(2)] == ["fork", "hooks"]
    forked.ready()
    assert httpx.get(url).headers["x-served-by"] == "counting"

    forked.say(contract.Drain(timeout=5.0, reason="test"))
    assert forked.exit_code() == 0
    printed = capfd.readouterr().out
    assert printed.startswith("slot 2 of generation 1 starts\n0 connections\n")
    assert printed.endswith("shut down\n")


def test_a_hook_that_raises_fails_the_boot_with_its_traceback(
    fork: Callable[..., Worker],  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    failed = fork(on_worker_start=("hooks:broken",)).hear(contract.Failed)

    assert failed.stage == "hooks"
    assert failed.error == "the application raised LookupError: no such thing"
    assert 'hooks.py", line' in failed.traceback


def test_stop_hooks_run_after_the_application_has_shut_down(
    fork: Callable[..., Worker],  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "hooks.py").write_text("def last(worker): print('last', flush=True)")
    forked = fork(on_worker_stop=("hooks:last",)).ready()
    forked.say(contract.Drain(timeout=5.0, reason="test"))

    assert forked.exit_code() == 0
    assert capfd.readouterr().out == "shut down\nlast\n"
