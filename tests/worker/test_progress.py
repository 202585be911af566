"""What a long start is busy with."""

import asyncio
import builtins
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from asgictl_worker import progress


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.02)
    monkeypatch.setattr(progress, "AGAIN", 0.02)


@pytest.fixture
def free_alarm() -> Iterator[None]:
    """Take SIGALRM away from pytest-timeout for a moment."""
    timer = signal.setitimer(signal.ITIMER_REAL, 0.0)
    handler = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)


@pytest.mark.usefixtures("free_alarm")
def test_an_import_that_takes_long_is_told_by_its_innermost_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outer_of_test.py").write_text("import inner_of_test")
    (tmp_path / "inner_of_test.py").write_text(
        "import builtins\ndef wait():\n    builtins.heard_by_test.wait(30)\nwait()"
    )
    heard = threading.Event()
    monkeypatch.setattr(builtins, "heard_by_test", heard, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    said: list[str] = []

    def tell(busy: str) -> None:
        said.append(busy)
        if said.count("importing inner_of_test") > 1:
            heard.set()

    with progress.of_import(tell):
        __import__("outer_of_test")

    assert heard.is_set()
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.usefixtures("free_alarm")
def test_alarms_of_the_application_are_its_own() -> None:
    def own(*_: object) -> None: ...

    signal.signal(signal.SIGALRM, own)
    with progress.of_import(lambda _: None):
        assert signal.getsignal(signal.SIGALRM) is own
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    with progress.of_import(lambda _: None):
        signal.signal(signal.SIGALRM, own)
    assert signal.getsignal(signal.SIGALRM) is own


async def test_a_startup_that_takes_long_is_told_until_it_is_over() -> None:
    said: list[str] = []
    twice = asyncio.Event()

    def tell(busy: str) -> None:
        said.append(busy)
        if len(said) > 1:
            twice.set()

    with progress.of_startup(tell):
        await twice.wait()
    count = len(said)
    await asyncio.sleep(0)
    assert said == ["waiting for the application's startup"] * count
