"""Where the control socket of a supervisor is, so that both sides look in the same places.

systemd makes a runtime directory for a service (``RuntimeDirectory=``), and one for each user
who is logged in; else there is a directory of ours for temporary files, which only its user may enter.
In a directory that supervisors share, a socket is named by its process id.
"""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable, Mapping
from glob import escape, glob

SERVICE_SOCKET = "asgictl.sock"
"""The name of the socket in a directory that belongs to one service alone."""


def for_supervisor(environ: Mapping[str, str], uid: int, pid: int) -> list[str]:
    """Return the paths that a supervisor without a setting tries, the best one first."""
    shared = [_session(environ), _temporary(environ, uid)]
    return _service(environ) + [os.path.join(folder, f"{pid}.sock") for folder in shared if folder]


def of_process(environ: Mapping[str, str], uid: int, pid: int) -> list[str]:
    """Return the sockets that may be those of the supervisor with this process id and user.

    That of a service with a directory of its own can only say by itself whose it is.
    """
    named = [os.path.join(folder, f"{pid}.sock") for folder in _shared(environ, uid)]
    return [path for path in (*named, *_service(environ), *_services()) if _is_socket(path)]


def of_user(environ: Mapping[str, str], uid: int) -> list[str]:
    """Return all sockets at which supervisors of this user may listen."""
    found = _service(environ)
    for folder in _shared(environ, uid):
        found += sorted(glob(os.path.join(escape(folder), "*.sock")))
    return [path for path in dict.fromkeys((*found, *_services())) if _is_socket(path)]


def prepare(path: str) -> None:
    """Make the directory for a socket, if it is one that supervisors share, and tidy it up.

    Raises:
        OSError: it cannot be made, or somebody else could put sockets there.
    """
    if os.path.basename(path) == SERVICE_SOCKET:
        return
    folder = os.path.dirname(path)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not ours or found.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "others than its owner may enter it", folder)
    for left in glob(os.path.join(escape(folder), "*.sock")):
        if _is_dead(left):
            for name in (left, f"{left}.lock"):
                with contextlib.suppress(OSError):
                    os.unlink(name)


def clean_up(path: str) -> None:
    """Remove the directory that ``prepare()`` has made, unless others use it."""
    if os.path.basename(path) != SERVICE_SOCKET:
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(path))


def _service(environ: Mapping[str, str]) -> list[str]:
    # Several are listed with colons between (systemd.exec(5), RuntimeDirectory=).
    folder = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return [os.path.join(folder, SERVICE_SOCKET)] if os.path.isabs(folder) else []


def _services() -> list[str]:
    return sorted(glob(f"/run/*/{SERVICE_SOCKET}"))


def _session(environ: Mapping[str, str]) -> str:
    folder = environ.get("XDG_RUNTIME_DIR", "")
    return os.path.join(folder, "asgictl") if os.path.isabs(folder) else ""


def _temporary(environ: Mapping[str, str], uid: int) -> str:
    folder = environ.get("TMPDIR", "")
    return os.path.join(folder if os.path.isabs(folder) else "/tmp", f"asgictl-{uid}")


def _shared(environ: Mapping[str, str], uid: int) -> Iterable[str]:
    # sudo and cron run without the variable, but the directory may be there.
    folders = (_session(environ), f"/run/user/{uid}/asgictl", _temporary(environ, uid))
    return dict.fromkeys(folder for folder in folders if folder)


def _is_socket(path: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    return False


def _is_dead(path: str) -> bool:
    """Return whether nobody listens at a socket any more (unix(7), ECONNREFUSED)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
    return False
