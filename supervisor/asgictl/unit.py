"""A systemd service for an application: ``asgictl init --systemd``."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from asgictl.configuration import SETTINGS
from asgictl.settings import Settings, SystemdSockets, TcpAddress

FIRST_FREE_PORT = 1024
"""Ports below it need CAP_NET_BIND_SERVICE (capabilities(7))."""
STOP_MARGIN = 15
"""Seconds beyond our own time-outs until systemd kills what is left."""


def service(
    *,
    name: str,
    application: str,
    program: Sequence[str],
    directory: str,
    user: str | None,
    chosen: Mapping[str, Any],
    settings: Settings,
) -> str:
    """Return the unit file of a service (systemd.service(5), systemd.exec(5)).

    Args:
        name: of the service, without a suffix.
        application: what it serves.
        program: the words that start asgictl.
        directory: the absolute path that it runs in.
        user: whom it runs as, if the settings do not say it; None takes one that exists only
            while it runs.
        chosen: settings for its command line.
        settings: all that are in effect, which its time-outs and rights follow.
    """
    # systemd changes the user, so that nothing of the service ever runs as root.
    arguments = {name: value for name, value in chosen.items() if name not in ("user", "group")}
    user = settings.user or user
    identity = [f"User={_plain(user)}" if user else "DynamicUser=yes"]
    if settings.group:
        identity.append(f"Group={_plain(settings.group)}")
    low_port = any(
        isinstance(address, TcpAddress) and 0 < address.port < FIRST_FREE_PORT
        for address in settings.addresses
    )
    capabilities = "CAP_NET_BIND_SERVICE" if low_port else ""
    sockets = any(isinstance(address, SystemdSockets) for address in settings.addresses)
    activation = f"Requires={name}.socket\nAfter={name}.socket\n" if sockets else ""
    start = " ".join(map(word, [*program, *_arguments(arguments), application]))
    control = " ".join(map(word, program))
    stop = settings.stop_delay + settings.timeout_graceful_shutdown
    stop += settings.timeout_lifespan_shutdown + STOP_MARGIN
    return f"""\
[Unit]
Description={_plain(application)}, served by asgictl
After=network-online.target
Wants=network-online.target
{activation}
[Service]
Type=notify
NotifyAccess=main
ExecStart={start}
# It waits for the result, so `systemctl reload` fails if the new code does not work.
ExecReload={control} reload
WorkingDirectory={_plain(directory)}
{chr(10).join(identity)}
# The control socket is in there: `asgictl status` finds it.
RuntimeDirectory={name}
RuntimeDirectoryMode=0750
Restart=always
RestartSec=1
# A mistake in the settings does not go away by trying again.
RestartPreventExitStatus=2 78
WatchdogSec=30
TimeoutStartSec={settings.timeout_boot + STOP_MARGIN:g}
TimeoutStopSec={stop:g}
# The supervisor tells its workers what to do; systemd kills whatever is left at the end.
KillMode=mixed
# Running out of memory costs a worker and not the service.
OOMPolicy=continue
LimitNOFILE=65536

# What it may do. PrivateDevices=, ProtectClock= and MemoryDenyWriteExecute= are left out: graphics
# processors and just-in-time compilers need what they take away.
CapabilityBoundingSet={capabilities}
AmbientCapabilities={capabilities}
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=full
ProtectHome=read-only
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0027

[Install]
WantedBy=multi-user.target
"""


def word(text: str) -> str:
    """Return a word for a command line of a unit (systemd.service(5), Command Lines)."""
    text = text.replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./$*\[\]-]+", text, re.ASCII):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def service_name(directory: str) -> str:
    """Return a name for the service of the application in a directory."""
    base = directory.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^a-z0-9_-]+", "-", base.lower()).strip("-") or "asgictl"


def _plain(text: str) -> str:
    return text.replace("%", "%%")


def _arguments(chosen: Mapping[str, Any]) -> list[str]:
    """Return settings as the command line has them."""
    words: list[str] = []
    for name, value in chosen.items():
        flag = SETTINGS[name].flag
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
            continue
        items = value if isinstance(value, tuple) else (value,)
        words += [f"{flag}={str(item).removesuffix('.0')}" for item in items]
    return words
