import asyncio
import contextvars
import logging
from typing import Any

import pytest
from tests.worker.waiting import until

from asgictl_worker.lifespan import Lifespan, StartupFailed


class Recorder:
    """An application whose lifespan does what a test says, and that remembers what it heard."""

    def __init__(self, *script: Any) -> None:
        self.script = script
        self.heard: list[str] = []
        self.scope: dict[str, Any] = {}
        self.cancelled = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        try:
            for step in self.script:
                if step == "receive":
                    self.heard.append((await receive())["type"])
                elif step == "hang":
                    await asyncio.Event().wait()
                elif isinstance(step, BaseException):
                    raise step
                elif callable(step):
                    step(scope)
                elif isinstance(step, dict):
                    await send(step)
                else:
                    await send({"type": f"lifespan.{step}"})
        except asyncio.CancelledError:
            self.cancelled = True
            raise


COMPLETE = ("receive", "startup.complete", "receive", "shutdown.complete")


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- Startup


async def test_an_application_hears_startup_and_then_shutdown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Recorder(*COMPLETE)
    lifespan = Lifespan(app)
    await lifespan.startup()
    assert app.heard == ["lifespan.startup"]
    await lifespan.shutdown(5)
    assert app.heard == ["lifespan.startup", "lifespan.shutdown"]
    assert app.scope["type"] == "lifespan"
    assert app.scope["asgi"]["version"] == "3.0"
    assert errors(caplog) == []


async def test_the_state_is_the_very_object_that_the_application_filled() -> None:
    value = object()
    app = Recorder("receive", lambda scope: scope["state"].update(key=value), "startup.complete")
    lifespan = Lifespan(app)
    await lifespan.startup()
    assert lifespan.state is app.scope["state"]
    assert lifespan.state == {"key": value}


@pytest.mark.parametrize("mode", ["auto", "on"])
async def test_startup_failed_ends_the_boot_in_every_mode(mode: Any) -> None:
    app = Recorder("receive", {"type": "lifespan.startup.failed", "message": "no database"})
    with pytest.raises(StartupFailed, match="did not start: no database") as caught:
        await Lifespan(app, mode).startup()
    assert caught.value.details == ""


async def test_a_traceback_as_the_reason_becomes_its_last_line_and_details() -> None:
    text = "Traceback (most recent call last):\n  File ...\nValueError: no database\n"
    app = Recorder("receive", {"type": "lifespan.startup.failed", "message": text}, ValueError())
    with pytest.raises(StartupFailed, match=r"did not start: ValueError: no database$") as caught:
        await Lifespan(app).startup()
    assert caught.value.details == text.strip()


async def test_startup_failed_without_a_reason_says_so() -> None:
    with pytest.raises(StartupFailed, match="it gave no reason"):
        await Lifespan(Recorder("receive", "startup.failed")).startup()


async def test_an_application_that_hangs_after_startup_failed_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asgictl_worker.lifespan.GRACE", 0.01)
    app = Recorder("receive", "startup.failed", "hang")
    with pytest.raises(StartupFailed):
        await Lifespan(app).startup()
    assert app.cancelled


REFUSALS = [
    pytest.param((ValueError("no"),), "ValueError", id="raises at once"),
    pytest.param(("receive", KeyError("method")), "KeyError", id="raises later"),
    pytest.param((), "returned", id="returns"),
    pytest.param(("hello",), "RuntimeError", id="sends something else"),
    pytest.param(("shutdown.complete",), "RuntimeError", id="answers another question"),
]


@pytest.mark.parametrize(("script", "reason"), REFUSALS)
async def test_auto_goes_on_without_an_application_that_takes_no_part(
    script: tuple[Any, ...], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    lifespan = Lifespan(Recorder(*script))
    await lifespan.startup()
    assert lifespan.state is None
    assert (
        f"takes no part in the lifespan protocol: it {reason if reason == 'returned' else 'raised ' + reason}"
        in caplog.text
    )
    await lifespan.shutdown(5)
    assert errors(caplog) == []


@pytest.mark.parametrize(("script", "reason"), REFUSALS)
async def test_on_insists(script: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(StartupFailed, match=reason) as caught:
        await Lifespan(Recorder(*script), "on").startup()
    if reason != "returned":
        assert caught.value.details.startswith("Traceback")
        assert __file__ in caught.value.details.splitlines()[1]


async def test_off_does_not_ask() -> None:
    app = Recorder(*COMPLETE)
    lifespan = Lifespan(app, "off")
    await lifespan.startup()
    await lifespan.shutdown(5)
    assert app.scope == {}
    assert lifespan.state is None


async def test_who_gives_up_on_a_startup_cancels_it() -> None:
    app = Recorder("receive", "hang")
    starting = asyncio.create_task(Lifespan(app).startup())
    await until(lambda: app.heard)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert app.cancelled


async def test_what_startup_sets_in_the_context_stays_there() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    app = Recorder("receive", lambda _: variable.set("set"), "startup.complete", "hang")
    await Lifespan(app).startup()
    assert variable.get() == "unset"


# -- While serving


async def test_an_exception_after_startup_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    app = Recorder("receive", "startup.complete", ValueError("later"))
    lifespan = Lifespan(app)
    await lifespan.startup()
    await lifespan.shutdown(5)
    await asyncio.sleep(0)
    assert errors(caplog) == ["the application's lifespan ended with an exception"]
    assert "ValueError: later" in caplog.text


async def test_startup_is_complete_only_once(caplog: pytest.LogCaptureFixture) -> None:
    lifespan = Lifespan(Recorder("receive", "startup.complete", "startup.complete"))
    await lifespan.startup()
    await lifespan.shutdown(5)
    await asyncio.sleep(0)
    assert "answered 'lifespan.startup' twice" in caplog.text


# -- Shutdown


async def test_shutdown_failed_is_logged_once_though_it_raises_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed = {"type": "lifespan.shutdown.failed", "message": "cannot flush"}
    lifespan = Lifespan(Recorder(*COMPLETE[:3], failed, ValueError()))
    await lifespan.startup()
    await lifespan.shutdown(5)
    await asyncio.sleep(0)
    assert errors(caplog) == ["the application's shutdown failed: cannot flush"]


async def test_an_exception_in_shutdown_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    lifespan = Lifespan(Recorder(*COMPLETE[:3], ValueError("oops")))
    await lifespan.startup()
    await lifespan.shutdown(5)
    await asyncio.sleep(0)
    assert "ValueError: oops" in caplog.text


@pytest.mark.parametrize("script", [("hang",), ("receive", "hang"), (*COMPLETE[2:], "hang")])
async def test_a_shutdown_that_takes_too_long_is_cancelled(
    script: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    app = Recorder(*COMPLETE[:2], *script)
    lifespan = Lifespan(app)
    await lifespan.startup()
    await lifespan.shutdown(0.01)
    assert app.cancelled
    assert errors(caplog) == [
        "the application's lifespan shutdown took longer than 0.01 s, cancelling it"
    ]


async def test_a_lifespan_that_ignores_its_cancellation_is_left_behind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgictl_worker.lifespan.GRACE", 0.01)
    release = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    lifespan = Lifespan(app)
    await lifespan.startup()
    await lifespan.shutdown(0.01)
    assert "ignores its cancellation" in caplog.text
    release.set()
