"""The user's own code in a worker, beside the application: hooks, and another class of server.

All are named as the application is, ``module:attribute``, and looked up in the worker.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from asgictl_worker import application
from asgictl_worker.errors import AsgictlError, ExitCode
from asgictl_worker.server import Server
from asgictl_worker.settings import WorkerSettings

logger = logging.getLogger("asgictl.worker")


class CannotUse(AsgictlError):
    """A hook, or the class of server, is not what it should be."""

    exit_code = ExitCode.NO_WORKER_BOOTED

    def __init__(self, setting: str, name: str, problem: str, advice: str = "") -> None:
        self.setting, self.name, self.problem = setting, name, problem
        super().__init__(f"{setting} {name!r}: {problem}" + (f"; {advice}" if advice else ""))


@dataclass(frozen=True, slots=True)
class Worker:
    """The worker that a hook runs in."""

    slot: int
    """Its place in the fleet, from 0; its successor has the same."""
    generation: int
    """Grows with each reload."""
    pid: int
    settings: WorkerSettings


async def start(hooks: Sequence[str], worker: Worker) -> None:
    """Run hooks one after the other before the application is loaded.

    Raises:
        CannotUse: a name leads to nothing that can be called.
        BaseException: whatever a hook raises.
    """
    for name in hooks:
        await _call(_find("on_worker_start", name, worker.settings), worker)


async def stop(hooks: Sequence[str], worker: Worker, within: float) -> None:
    """Run hooks one after the other after the application has shut down.

    Never raises: what goes wrong is logged, and the next hook has its turn.

    Args:
        hooks: their names.
        worker: their argument.
        within: seconds for all of them together, as far as they wait.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    for name in hooks:
        try:
            async with asyncio.timeout_at(deadline):
                await _call(_find("on_worker_stop", name, worker.settings), worker)
        except TimeoutError:
            if loop.time() < deadline:
                logger.exception("on_worker_stop %r failed", name)
            else:
                logger.warning("on_worker_stop %r takes too long, leaving without its end", name)
        except Exception:
            logger.exception("on_worker_stop %r failed", name)


def server_class(name: str, settings: WorkerSettings) -> type[Server]:
    """Return the class that ``worker_class`` names.

    Raises:
        CannotUse: it is no subclass of ``Server``.
    """
    found = _look_up("worker_class", name, settings)
    if not (inspect.isclass(found) and issubclass(found, Server)):
        raise CannotUse(
            "worker_class", name, f"it is {found!r}", "name a subclass of asgictl_worker.Server"
        )
    return found


async def _call(hook: Callable[[Worker], Any], worker: Worker) -> None:
    result = hook(worker)
    if inspect.isawaitable(result):
        await result


def _find(setting: str, name: str, settings: WorkerSettings) -> Callable[[Worker], Any]:
    found = _look_up(setting, name, settings)
    if not callable(found):
        raise CannotUse(setting, name, f"it is {found!r}", "name a function of one argument")
    hook: Callable[[Worker], Any] = found
    return hook


def _look_up(setting: str, name: str, settings: WorkerSettings) -> Any:
    try:
        return application.find(name, settings.app_dir)
    except application.ApplicationError as error:
        raise CannotUse(setting, name, error.problem, error.advice) from None
