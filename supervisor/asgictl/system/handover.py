"""What one supervisor program leaves to the next in the same process, as JSON and back.

Numbers of descriptors are part of it: they survive execve(2). See ``reexec``.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from asgictl.core.snapshot import UnreadableSnapshot, restore, snapshot
from asgictl.core.state import State
from asgictl.settings import Settings
from asgictl.system.channel import Channel
from asgictl.system.dumps import DumpFile
from asgictl.system.kernel import Child
from asgictl.system.listeners import Listener
from asgictl.system.pidfile import PidFile
from asgictl.system.reexec import CannotTakeOver
from asgictl.system.spawn import WorkerProcess
from asgictl.system.template import TemplateProcess
from asgictl_worker.settings import declarations


@dataclass(frozen=True, slots=True)
class Generation:
    """What is known of one generation."""

    settings: Settings
    environ: Mapping[str, str]
    listeners: list[Listener]
    sources: Mapping[str, str]
    file: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What was taken over."""

    state: State
    generations: Mapping[int, Generation]
    workers: Mapping[int, WorkerProcess]
    templates: Mapping[int, TemplateProcess]
    lifeline: tuple[int, int]
    board: int
    pidfile: PidFile | None
    control: Listener | None
    admin: Listener | None
    operate: Mapping[str, Any]
    """What ``asgictl.operate`` has counted and was told."""


def hand_over(
    state: State,
    now: float,
    *,
    generations: Mapping[int, Generation],
    workers: Mapping[int, WorkerProcess],
    templates: Mapping[int, TemplateProcess],
    lifeline: tuple[int, int],
    board: int,
    pidfile: PidFile | None,
    control: Listener | None,
    admin: Listener | None,
    operate: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything that the next program needs, ready for ``json.dumps()``."""
    listeners = list(
        {id(each): each for item in generations.values() for each in item.listeners}.values()
    )
    return {
        "core": snapshot(state, now),
        "listeners": [listener.hand_over() for listener in listeners],
        "generations": {
            number: {
                "settings": asdict(item.settings),
                "environ": dict(item.environ),
                "listeners": [listeners.index(listener) for listener in item.listeners],
                "sources": dict(item.sources),
                "file": item.file,
            }
            for number, item in generations.items()
        },
        "workers": {
            number: {
                "pid": item.child.pid,
                "channel": item.channel.fileno(),
                "dumps": item.dumps.fd,
                "offset": item.dumps.offset,
            }
            for number, item in workers.items()
        },
        "templates": {
            number: {"pid": item.child.pid, "channel": item.channel.fileno()}
            for number, item in templates.items()
        },
        "lifeline": list(lifeline),
        "board": board,
        "pidfile": pidfile and {"path": pidfile.path, "fd": pidfile.fileno()},
        "control": control and control.hand_over(),
        "admin": admin and admin.hand_over(),
        "operate": operate,
    }


def descriptors(left: Mapping[str, Any]) -> list[int]:
    """Return the descriptors that must stay open for the next program."""
    found = [*left["lifeline"], left["board"]]
    for item in left["workers"].values():
        found += [item["channel"], item["dumps"]]
    found += [item["channel"] for item in left["templates"].values()]
    for item in (*left["listeners"], left["control"], left["admin"]):
        if item:
            found.append(item["fd"])
            if item["lock"]:
                found.append(item["lock"]["fd"])
    if left["pidfile"]:
        found.append(left["pidfile"]["fd"])
    return found


def restore_state(left: Mapping[str, Any], now: float) -> tuple[State, Mapping[int, Settings]]:
    """Return the core's state and the settings of each generation; nothing is opened.

    Raises:
        CannotTakeOver: they are not readable for this program.
    """
    try:
        state = restore(left["core"], now)
        settings = {
            int(number): _settings(item["settings"]) for number, item in left["generations"].items()
        }
    except (UnreadableSnapshot, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CannotTakeOver(str(error)) from None
    return state, settings


def take_over(left: Mapping[str, Any], now: float) -> Taken:
    """Go on with what the program before us has left open.

    Raises:
        CannotTakeOver: it is not readable for this program.
    """
    state, settings = restore_state(left, now)
    listeners = [Listener.take_over(item) for item in left["listeners"]]
    for fd in (*left["lifeline"], left["board"]):
        os.set_inheritable(fd, False)
    pidfile = left["pidfile"]
    return Taken(
        state=state,
        generations={
            int(number): Generation(
                settings[int(number)],
                item["environ"],
                [listeners[index] for index in item["listeners"]],
                item.get("sources", {}),
                item.get("file"),
            )
            for number, item in left["generations"].items()
        },
        workers={
            int(number): WorkerProcess(
                child=Child(item["pid"]),
                channel=_channel(item["channel"]),
                dumps=DumpFile(item["dumps"], item["offset"]),
            )
            for number, item in left["workers"].items()
        },
        templates={
            int(number): TemplateProcess(Child(item["pid"]), _channel(item["channel"]))
            for number, item in left["templates"].items()
        },
        lifeline=(left["lifeline"][0], left["lifeline"][1]),
        board=left["board"],
        pidfile=PidFile(pidfile["path"], pidfile["fd"]) if pidfile else None,
        control=Listener.take_over(left["control"]) if left.get("control") else None,
        admin=Listener.take_over(left["admin"]) if left.get("admin") else None,
        operate=left.get("operate", {}),
    )


def _channel(fd: int) -> Channel:
    os.set_inheritable(fd, False)
    return Channel(socket.socket(fileno=fd))


def _settings(values: Mapping[str, Any]) -> Settings:
    # Settings that this program does not know any more are left out, new ones are defaults.
    known = declarations(Settings)
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name in known
    }
    return Settings(**chosen)
