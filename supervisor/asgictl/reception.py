"""Where the supervisor is asked: the control socket and the admin addresses.

Each is there if the settings want it. What is answered is the desk's business; who sits behind
the admin addresses is known in ``asgictl.admin``.
"""

import logging
import os
from collections.abc import Callable
from math import inf

from asgictl import admin
from asgictl.core.events import Event
from asgictl.operate import control, places
from asgictl.operate.desk import Desk
from asgictl.settings import Settings, UnixAddress
from asgictl.system import listeners, spawn
from asgictl.system.kernel import Child
from asgictl.system.listeners import Listener

log = logging.getLogger("asgictl.supervisor")

CONTROL_ACCESS = listeners.Access(mode=0o600)
"""Who may connect to the control socket, where the kernel asks."""

BACKLOG = 64


class Reception:
    """Both of them, from the start of the supervisor to its end."""

    def __init__(
        self,
        desk: Desk,
        watch: control.Watch,
        unwatch: Callable[[int], None],
        bury: Callable[[Child], None],
        spare: control.Spare,
    ) -> None:
        """Begin without any.

        Args:
            desk: answers.
            watch: tells the loop to look at a descriptor.
            unwatch: tells the loop to look away.
            bury: takes a child that has ended, or is about to.
            spare: descriptors for who asks when there are no others.
        """
        self._desk = desk
        self._watch, self._unwatch, self._bury, self._spare = watch, unwatch, bury, spare
        self.control_listener: Listener | None = None
        self._control: control.ControlServer | None = None
        self._admin: admin.Admin | None = None

    @property
    def admin_listener(self) -> Listener | None:
        """Where health and metrics are."""
        return self._admin.listener if self._admin else None

    def open_control(self, settings: Settings, bound: Listener | None = None) -> None:
        """Begin to answer verbs, at a socket that is bound already or as the settings say.

        Raises:
            CannotBind: the place that the settings name cannot be had.
        """
        self.control_listener = bound or control.listen(settings.control, os.environ, _bind_control)
        if self.control_listener is not None:
            self._control = control.ControlServer(
                self.control_listener.socket,
                self._watch,
                self._unwatch,
                self._desk.answer,
                spare=self._spare,
            )

    def open_admin(self, listener: Listener | None, surroundings: spawn.Surroundings) -> None:
        """Begin to serve health and metrics, if there is a listener for them."""
        if listener is not None:
            self._admin = admin.Admin(
                listener,
                surroundings,
                {"status": self._desk.status, "listeners": self._desk.listeners},
                self._watch,
                self._unwatch,
                self._bury,
            )
            log.info("health, metrics and a page about the fleet are on %s", listener.address)

    def see_change(self, settings: Settings) -> None:
        """Say that the address for health and metrics is not what a reload has asked for."""
        serving = self._admin.listener.asked if self._admin else "none"
        if str(admin.wanted(settings) or "none") != serving:
            log.warning("admin_bind has changed, which needs a restart; it is still %s", serving)

    @property
    def deadline(self) -> float:
        """When to call ``on_time()``, or infinity."""
        return min(
            self._control.deadline if self._control else inf,
            self._admin.deadline if self._admin else inf,
        )

    def on_time(self, now: float) -> None:
        """Do what is due."""
        if self._control and now >= self._control.deadline:
            self._control.on_time()
        if self._admin and now >= self._admin.deadline:
            self._admin.on_time()

    def learned(self, event: Event) -> None:
        """Let requests that wait look at what has happened."""
        if self._control:
            self._control.learned(event)

    def close(self) -> None:
        """Hang up on everybody and listen no more."""
        if self._admin:
            self._admin.close()
        if self._control:
            self._control.close()
        if self.control_listener:
            path = self.control_listener.address.removeprefix("unix:")
            self.control_listener.close()
            places.clean_up(path)


def _bind_control(path: str) -> Listener:
    (listener,) = listeners.bind_all([UnixAddress(path)], backlog=BACKLOG, access=CONTROL_ACCESS)
    return listener
