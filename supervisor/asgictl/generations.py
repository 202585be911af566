"""The generations of a service: what the workers of each share, and the listeners of all.

A generation is one reading of settings and application. The newest may still be on trial
while an older one serves; listeners that both ask for are the same sockets.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from asgictl.configuration import to_show
from asgictl.settings import Settings
from asgictl.system import listeners, privileges, queues, spawn
from asgictl.system.listeners import Access, Listener
from asgictl_worker.errors import ConfigurationError


@dataclass(slots=True, kw_only=True)
class Generation:
    """What the workers of one generation share."""

    settings: Settings
    surroundings: spawn.Surroundings
    listeners: list[Listener]
    sources: Mapping[str, str]
    """Where each setting came from."""
    file: str | None
    """The settings file."""

    @property
    def access(self) -> Access:
        """Who may connect to its UNIX sockets."""
        return Access.of(self.settings.uds_permissions, self.surroundings.identity)

    def listening(self) -> list[dict[str, Any]]:
        """Return where it listens, and how full the kernel's queues are."""
        return [
            {"address": listener.address, **asdict(queues.queue_of(listener.socket))}
            for listener in self.listeners
        ]

    def shown(self) -> dict[str, Any]:
        """Return its settings as they may be shown, where each came from, and the file."""
        return {
            "settings": to_show(self.settings),
            "origins": dict(self.sources),
            "file": self.file,
        }


class Generations(dict[int, Generation]):
    """All generations that still have workers to come, by number."""

    def __init__(self, environ: Mapping[str, str], passed: Mapping[int, str]) -> None:
        """Begin without any.

        Args:
            environ: the variables that the supervisor was started with.
            passed: sockets that a service manager has handed over.
        """
        super().__init__()
        self._environ = environ
        self._passed = passed

    def make(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        bound: list[Listener] | None = None,
        *,
        sources: Mapping[str, str],
        file: str | None,
    ) -> Generation:
        """Return a generation, which is not one of ours yet.

        Raises:
            ConfigurationError: there is no such user or group, or we may not become them.
        """
        identity = privileges.identity(settings.user, settings.group)
        variables = spawn.child_environ(environ)
        return Generation(
            settings=settings,
            surroundings=spawn.Surroundings(
                settings=settings,
                environ=identity.adapt(variables, self._environ) if identity else variables,
                identity=identity,
            ),
            listeners=bound or [],
            sources=sources,
            file=file,
        )

    def bind(
        self, made: Generation, places: Mapping[str, list[listeners.Place]] | None = None
    ) -> None:
        """Give a generation its listeners: all that it asks for, or none.

        Args:
            made: the generation.
            places: names that were looked up already.

        Raises:
            CannotBind: one of them cannot be had.
            ConfigurationError: one would change between plain text and TLS.
        """
        settings, keep = made.settings, self.all_listeners()
        self._refuse_change_of_tls(settings)
        bound = listeners.bind_all(
            settings.addresses,
            backlog=settings.backlog,
            access=made.access,
            passed=self._passed,
            places=places,
            keep=keep,
        )
        if settings.uses_tls:
            bound = [listener if listener in keep else listener.with_tls() for listener in bound]
        made.listeners = bound

    def all_listeners(self) -> list[Listener]:
        """Return the listeners of all generations, each once."""
        unique = {id(each): each for item in self.values() for each in item.listeners}
        return list(unique.values())

    def keep(self, numbers: set[int]) -> list[Listener]:
        """Forget all other generations; return the listeners closed for it."""
        before = self.all_listeners()
        for number in set(self) - numbers:
            del self[number]
        still = self.all_listeners()
        closed = [listener for listener in before if listener not in still]
        for listener in closed:
            listener.close()
        return closed

    def close_listeners(self) -> None:
        """Stop listening; workers may go on with what they hold of the same sockets."""
        for listener in self.all_listeners():
            listener.close()
        for item in self.values():
            item.listeners = []

    def loses_listeners(self, old: int, new: int) -> bool:
        """Return whether generation ``old`` has a listener that ``new`` does not have."""
        mine, theirs = self.get(old), self.get(new)
        if mine is None or theirs is None:
            return False
        return any(listener not in theirs.listeners for listener in mine.listeners)

    def _refuse_change_of_tls(self, settings: Settings) -> None:
        for address in map(str, settings.addresses):
            for other in self.values():
                asked = [listener.asked for listener in other.listeners]
                if address in asked and other.settings.uses_tls != settings.uses_tls:
                    # A client would meet TLS with one worker and plain text with the next.
                    raise ConfigurationError(
                        f"{address}: a reload cannot turn TLS {'on' if settings.uses_tls else 'off'}, "
                        "for a while old and new workers serve together; start anew, or listen on "
                        "another address"
                    )
