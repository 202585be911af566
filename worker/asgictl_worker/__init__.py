"""The worker of asgictl: an ASGI server for one process, embeddable in any event loop.

::

    from asgictl_worker import Server, WorkerSettings

    await Server("app:app", WorkerSettings(lifespan="on")).serve(port=8000)

Names are looked up when first used: the supervisor imports ``asgictl_worker.settings`` and
must never load an event loop with it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asgictl_worker.extensions import Worker
    from asgictl_worker.server import Server
    from asgictl_worker.settings import WorkerSettings

    __version__: str

__all__ = ["Server", "Worker", "WorkerSettings", "__version__"]

_HOMES = {
    "Server": "asgictl_worker.server",
    "Worker": "asgictl_worker.extensions",
    "WorkerSettings": "asgictl_worker.settings",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = importlib.import_module("importlib.metadata").version("asgictl")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
