"""asgictl: an ASGI server of a supervisor and its workers.

This is the whole public interface::

    import asgictl

    if __name__ == "__main__":
        asgictl.run("module:app", workers=4)

To serve inside an event loop of your own, see ``asgictl_worker.Server``.
"""

import typing

if typing.TYPE_CHECKING:
    from asgictl.configuration import Source
    from asgictl.settings import Settings

# The one place where it is written: pyproject.toml reads it here. A look-up in the metadata
# of the installation would cost the supervisor a megabyte.
__version__ = "0.1.0"

__all__ = ["Settings", "__version__", "run"]

_serving = False
"""Whether ``serve()`` runs in this process or, by inheritance, in one that forked it."""


def __getattr__(name: str) -> typing.Any:
    # Lazily, so that a process pays only for what it uses.
    if name == "Settings":
        from asgictl.settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def run(application: typing.Any, **settings: typing.Any) -> None:
    """Serve an application until a signal stops the server.

    This process becomes the supervisor, so call it in the main thread, and under
    ``if __name__ == "__main__":`` when the application is in the same module. Settings that
    are not given here come from ``ASGICTL_*`` variables, the settings file and the
    defaults, in this order, as on the command line.

    Args:
        application: its name, ``module:attribute``: only workers import it. An object that the
            program itself has under some name will do, and is found by that.
        settings: by their names, such as ``workers=4``; see docs/reference/options.md. The
            arguments of ``uvicorn.run()`` are understood.

    Raises:
        TypeError: ``application`` is neither a name nor has one in the program.
        ConfigurationError: a setting is not known or has a value that cannot work.
        ServerFailed: the server did not start, or could not go on; ``exit_code`` says why.
    """
    from asgictl.configuration import Source, from_arguments
    from asgictl_worker.errors import ServerFailed

    if not isinstance(application, str) and (name := _name_of(application, settings)):
        application = name
    if not isinstance(application, str):
        raise TypeError(
            f"asgictl.run() takes the name of an application, not {application!r}: every worker imports it "
            'anew; pass "module:attribute", or serve the object itself with asgictl_worker.Server'
        )
    code = serve(application, Source.of_this_process(from_arguments(settings)))
    if code:
        raise ServerFailed(code)


def _name_of(application: object, settings: dict[str, typing.Any]) -> str:
    """Return how workers import an object of the program that runs, or nothing.

    They import it under its own name, since ``__main__`` is us. What finds it there, a
    directory, becomes a setting.
    """
    import os
    import sys

    program = sys.modules["__main__"]
    file, spec = getattr(program, "__file__", None), getattr(program, "__spec__", None)
    names = [name for name, value in vars(program).items() if value is application]
    if not names or file is None:
        return ""
    if spec is not None and spec.name != "__main__":  # python -m
        return f"{spec.name}:{names[0]}"
    module, suffix = os.path.splitext(os.path.basename(file))
    if suffix != ".py" or not module.isidentifier():
        return ""
    settings.setdefault("app_dir", os.path.dirname(os.path.abspath(file)))
    return f"{module}:{names[0]}"


def serve(application: str, source: "Source") -> int:
    """Be the supervisor and return the exit code; ``run()`` and the command line share this."""
    global _serving
    import os

    if _serving:
        raise RuntimeError(
            "asgictl.run() was called while a worker imported the application; put the call under "
            '`if __name__ == "__main__":`'
        )
    configuration = source.read()
    os.chdir(configuration.directory)
    # Last, since it is the heaviest: mistakes above are reported at once.
    from asgictl.supervisor import Supervisor

    _serving = True
    try:
        return Supervisor(
            application,
            configuration,
            source.read,
            source.directory,
        ).run()
    finally:
        _serving = False
