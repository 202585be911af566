"""What is said at the start: what was chosen and why, and what a newcomer may want to know.

Pure functions from settings to sentences. A hint is for who has not decided: a setting that
somebody gave is not talked about, and each hint names its way out.
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping

from asgictl.settings import Settings, TcpAddress
from asgictl.system.watch import Area

_MANAGED = ("NOTIFY_SOCKET", "KUBERNETES_SERVICE_HOST")
"""Variables of a service manager (sd_notify(3)) and of Kubernetes: seldom does anybody develop
there. INVOCATION_ID would say less: what a desktop starts has it too."""


def choices(settings: Settings, file: str | None, application: str) -> str:
    """Return which parts serve, and where the settings are from."""
    loop = settings.loop if settings.loop != "auto" else _first("uvloop", "asyncio")
    http = settings.http if settings.http != "auto" else _first("httptools", "h11")
    words = [f"event loop {loop}", f"HTTP parser {http}"]
    if settings.worker_class is not None:
        words.append(f"worker class {settings.worker_class}")
    if settings.preload:
        words.append(f"{application} is imported once (preload)")
    if file is not None:
        of_profile = f" with profile {settings.profile}" if settings.profile else ""
        words.append(f"settings of {os.path.basename(file)}{of_profile}")
    return ", ".join(words)


def _first(*names: str) -> str:
    """Return the first that can be imported; the last is taken to be there."""
    return next((name for name in names[:-1] if importlib.util.find_spec(name)), names[-1])


def development(area: Area) -> str:
    """Return what is watched."""
    return (
        f"development: {' '.join(area.include)} in {' and '.join(area.directories)} is watched, "
        "and browsers see tracebacks"
    )


def warnings(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield what is dangerous as it stands."""
    public = _public(settings)
    if settings.reload and any(name in environ for name in _MANAGED):
        yield "--reload shows tracebacks to everybody and drops requests; leave it out of a service"
    elif settings.reload and public:
        yield f"--reload is for development: whoever reaches {public} sees tracebacks"
    if settings.proxy_headers and settings.forwarded_allow_ips == "*" and public:
        yield (
            f"whoever reaches {public} may claim any client address, since --forwarded-allow-ips is *; name "
            "the addresses of your proxies"
        )


def hints(
    settings: Settings, sources: Mapping[str, str], processors: int, *, to_terminal: bool
) -> Iterator[str]:
    """Yield what somebody may not have thought of.

    Args:
        settings: those in effect.
        sources: where each came from.
        processors: how many we may use.
        to_terminal: access lines go to a terminal.
    """
    many = settings.workers != 1
    if settings.reload:
        if many:
            yield "each worker imports the application at every save; without --workers it is one"
        return
    if sources["workers"] == "default" and processors > 1:
        yield f"one worker uses one of {processors} processors; --workers auto starts one for each"
    if many and settings.access_log and to_terminal and sources["access_log"] == "default":
        yield (
            "access lines go to this terminal, which is slower than most requests; --no-access-log, or "
            "`> access.log`, if speed matters"
        )
    public = _public(settings)
    limits = ("limit_concurrency", "limit_request_body")
    if public and all(sources[name] == "default" for name in limits):
        yield (
            f"{public} is open to other machines without limits on load; if no proxy in front has some, set "
            "--limit-concurrency and --limit-request-body"
        )


def _public(settings: Settings) -> str:
    """Return the first address that other machines may reach, or nothing."""
    for address in settings.addresses:
        if isinstance(address, TcpAddress) and not _is_loopback(address.host):
            return str(address)
    return ""


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
