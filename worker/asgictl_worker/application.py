"""Find the application by its name and make it an ASGI 3 callable.

A name that leads nowhere is the operator's mistake: an ``ApplicationError`` says so without
a traceback, and offers the nearest name. Whatever the application's own code raises while it
is imported or made passes through untouched: it is its author's, and the traceback is the
explanation.
"""

import difflib
import importlib
import inspect
import itertools
import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

from asgictl_worker import tracebacks
from asgictl_worker.asgi import Application, Receive, Scope, Send
from asgictl_worker.errors import AsgictlError, ExitCode

logger = logging.getLogger("asgictl.worker")

Interface = Literal["auto", "asgi3", "asgi2", "wsgi"]

_OLDER = {
    "asgi2": "takes one argument: taking it for an ASGI 2 application",
    "wsgi": "takes two arguments: taking it for a WSGI application, in threads",
}

DEFAULT_ATTRIBUTES = ("app", "application")
"""What a name without attribute stands for, in this order."""

MAX_PLACES = 1000
"""Directories in which a module is looked for that is not where it was said to be."""

WSGI_THREADS = 40
"""How many requests a WSGI application handles at a time; further ones wait for a thread."""


class ApplicationError(AsgictlError):
    """The name does not lead to an application."""

    exit_code = ExitCode.NO_WORKER_BOOTED

    def __init__(self, name: str, problem: str, advice: str = "") -> None:
        self.name, self.problem, self.advice = name, problem, advice
        super().__init__(
            f"cannot load the application {name!r}: {problem}" + (f"; {advice}" if advice else "")
        )


class MalformedName(ApplicationError):
    """The name is not of the form ``module:attribute``."""


class NoSuchDirectory(ApplicationError):
    """The directory in which to look for the application is not there."""


class NoSuchModule(ApplicationError):
    """There is no module of that name."""


class NoSuchAttribute(ApplicationError):
    """The module is there, but has no attribute of that name."""


class NotAnApplication(ApplicationError):
    """The name leads to something that cannot be called as an application."""


def load(
    name: str,
    *,
    app_dir: str | None = None,
    factory: bool = False,
    interface: Interface = "auto",
) -> Application:
    """Import the application and return it as an ASGI 3 callable.

    Args:
        name: ``module:attribute``, where the attribute may have dots; ``module`` alone means
            its ``app`` or ``application``; ``module:function()`` is a factory.
        app_dir: put first on ``sys.path``; None is the working directory.
        factory: the name is a function without arguments that returns the application.
        interface: what the application speaks; auto looks at how it can be called.

    Raises:
        ApplicationError: the name is wrong.
        BaseException: whatever the application's own code raises.
    """
    module_name, attribute = _split(name)
    _look_first_in(name, app_dir)
    module = _import(name, module_name)
    found = _attribute(name, module, attribute.removesuffix("()"))
    if not callable(found):
        raise NotAnApplication(
            name,
            f"it is {_article(found)}, which cannot be called",
            _offer(_applications(module), module_name),
        )
    if factory or attribute.endswith("()"):
        found = _make(name, found)
    elif interface == "auto" and _is_factory(found):
        logger.warning("%s takes no arguments: using it as a factory (say --factory)", name)
        found = _make(name, found)
    if interface == "auto" and (interface := _interface(found)) in _OLDER:
        logger.warning("%s %s (say --interface %s)", name, _OLDER[interface], interface)
    return adapt(found, interface)


def find(name: str, app_dir: str | None = None) -> Any:
    """Import a module and return what ``module:attribute`` names; see ``load()``."""
    module_name, attribute = _split(name)
    _look_first_in(name, app_dir)
    return _attribute(name, _import(name, module_name), attribute)


def adapt(app: Callable[..., Any], interface: Interface = "auto") -> Application:
    """Return ``app`` as an ASGI 3 callable, whichever of the three interfaces it has."""
    if interface == "auto":
        interface = _interface(app)
    if interface == "asgi2":
        return _from_asgi2(app)
    if interface == "wsgi":
        from asgictl_worker.wsgi import WSGI  # only for those who need threads

        return WSGI(app, WSGI_THREADS)
    return cast("Application", app)


# -- From a name to an object


def _split(name: str) -> tuple[str, str]:
    module, colon, attribute = name.partition(":")
    parts = [*module.split("."), *attribute.removesuffix("()").split(".")]
    if os.sep in module or module.endswith(".py"):
        dotted = module.removeprefix("./").removesuffix(".py").strip(os.sep).replace(os.sep, ".")
        raise MalformedName(
            name,
            "it names a file, and a module is wanted",
            f"did you mean {dotted}{colon}{attribute}?",
        )
    if not all(part.isidentifier() for part in (parts if colon else parts[:-1])):
        raise MalformedName(
            name,
            "it is not of the form module:attribute",
            "for example main:app is the object app in main.py",
        )
    return module, attribute


def _look_first_in(name: str, app_dir: str | None) -> None:
    try:
        directory = os.path.abspath(app_dir or ".")
    except FileNotFoundError:
        raise NoSuchDirectory(
            name,
            "the working directory is gone",
            "start again from one that exists, or set app_dir",
        ) from None
    if not os.path.isdir(directory):
        raise NoSuchDirectory(name, f"app_dir {directory!r} is not a directory")
    if sys.path[:1] != [directory]:
        sys.path.insert(0, directory)
    # A finder may remember how the directory looked before the last deploy.
    importlib.invalidate_caches()


def _import(name: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        wanted = error.name or ""
        asked_for = wanted == module_name or module_name.startswith(wanted + ".")
        if not asked_for or tracebacks.touches_application(error):
            raise
    parent, _, last = wanted.rpartition(".")
    package = sys.modules.get(parent)
    if package is not None and hasattr(package, last):
        advice = f"did you mean {parent}:{last}?"
    else:
        places = getattr(package, "__path__", ()) if parent else sys.path
        siblings = {module.name for module in pkgutil.iter_modules(places)}
        siblings -= set() if parent else sys.stdlib_module_names
        nearest = difflib.get_close_matches(last, siblings, n=3)
        advice = _offer([f"{parent}.{near}" if parent else near for near in nearest], "")
        if not parent:
            advice = _elsewhere(last, sys.path[0]) or advice
    raise NoSuchModule(
        name,
        f"there is no module {wanted!r}" + ("" if parent else f" in {sys.path[0]} or on sys.path"),
        advice or "check the name and app_dir",
    )


def _elsewhere(module: str, directory: str) -> str:
    """Return where a module is that was looked for in the wrong directory, or nothing."""
    base = Path(directory)
    places = (base.parent, *base.glob("[!.]*/"), *base.glob("[!.]*/[!.]*/"))
    for place in itertools.islice(places, MAX_PLACES):
        found = next(
            (
                path
                for path in (place / f"{module}.py", place / module / "__init__.py")
                if path.exists()
            ),
            None,
        )
        if found is None:
            continue
        if (place / "__init__.py").exists():
            dotted = ".".join((*place.relative_to(base).parts, module))
            return f"there is {os.path.relpath(found, base)}; did you mean {dotted}?"
        return f"it is in {place}: say --app-dir {os.path.relpath(place)}, or start there"
    return ""


def _attribute(name: str, module: ModuleType, attribute: str) -> Any:
    if not attribute:
        for default in DEFAULT_ATTRIBUTES:
            if hasattr(module, default):
                return getattr(module, default)
        raise NoSuchAttribute(
            name,
            f"module {module.__name__!r} has neither {' nor '.join(DEFAULT_ATTRIBUTES)}",
            _offer(_applications(module), module.__name__)
            or "name the attribute: module:attribute",
        )
    found: Any = module
    owner = f"module {module.__name__!r}"
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            if tracebacks.touches_application(error):
                raise
            nearest = difflib.get_close_matches(part, dir(found), n=3)
            offered = nearest or (_applications(module) if found is module else [])
            break
        owner = f"{part!r}"
    else:
        return found
    raise NoSuchAttribute(
        name,
        f"{owner} has no attribute {part!r}",
        _offer(offered, module.__name__ if found is module else ""),
    )


def _make(name: str, factory: Callable[[], Any]) -> Callable[..., Any]:
    try:
        made = factory()
    except TypeError as error:
        if tracebacks.touches_application(error):
            raise
        raise NotAnApplication(
            name, f"the factory cannot be called without arguments: {error}"
        ) from None
    if inspect.iscoroutine(made):
        made.close()
        raise NotAnApplication(
            name, "the factory is a coroutine function", "make it a plain function without await"
        )
    if not callable(made):
        raise NotAnApplication(
            name, f"the factory returned {_article(made)}, which cannot be called"
        )
    return cast("Callable[..., Any]", made)


def _offer(names: Iterable[str], module: str) -> str:
    spelled = [f"{module}:{name}" if module else name for name in names]
    return f"did you mean {' or '.join(spelled)}?" if spelled else ""


def _applications(module: ModuleType) -> list[str]:
    """Return the names in ``module`` of what looks like an application: at most three."""
    found = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and not inspect.isclass(value)
        and (inspect.iscoroutinefunction(value) or not inspect.isroutine(value))
        and _positional(value) == (3, 3)
    ]
    return found[:3]


def _article(value: object) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


# -- From an object to ASGI 3


def _positional(function: Callable[..., Any]) -> tuple[int, float] | None:
    """Return how many positional arguments it needs and takes, or None if it does not say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    needed, taken = 0, 0.0
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            taken = float("inf")
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            taken += 1
            needed += parameter.default is parameter.empty
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            return None
    return needed, taken


def _is_factory(app: Callable[..., Any]) -> bool:
    """Return whether it can be called without arguments and in no way as an application."""
    return _positional(app) == (0, 0)


def _interface(app: Callable[..., Any]) -> Interface:
    if inspect.isclass(app):
        # ASGI 3 by class: the instance is awaited. ASGI 2: the instance is called.
        return "asgi3" if hasattr(app, "__await__") else "asgi2"
    call = app if inspect.isroutine(app) else getattr(app, "__call__", app)  # noqa: B004 (the bound method is wanted)
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(call):
        return "asgi3"
    needed, taken = _positional(app) or (0, float("inf"))
    if needed <= 3 <= taken:
        return "asgi3"
    return "wsgi" if needed <= 2 <= taken else "asgi2" if needed <= 1 <= taken else "asgi3"


def _from_asgi2(app: Callable[..., Any]) -> Application:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope)(receive, send)

    return call
