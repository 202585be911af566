"""Who stands above us: a terminal that may be closed, a shell that passes no signals on."""

import contextlib
import os
import signal
from pathlib import Path

_SHELLS = frozenset({"ash", "bash", "busybox", "dash", "ksh", "sh", "zsh"})


class Terminal:
    """The terminal that we were started in, if any.

    When it is closed the kernel sends SIGHUP (tty_ioctl(4), credentials(7)), which is no wish
    for a reload. Whoever wants to live on says so with nohup(1).
    """

    def __init__(self) -> None:
        """Look at standard input; to be called before SIGHUP gets a handler."""
        self._was_there = os.isatty(0)
        self.may_close = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        """nohup(1) has been used: the end of the terminal is not ours."""

    def is_gone(self) -> bool:
        """Return whether there was a terminal and there is none any more."""
        if not self._was_there:
            return False
        with contextlib.suppress(OSError):
            os.tcgetpgrp(0)
            return False
        return True


def shell_above(parent: int | None = None) -> str:
    """Return the name of the shell that is process 1 and our parent, or nothing.

    ``docker run IMAGE sh -c "asgictl ..."`` makes one: the engine signals process 1, and such
    a shell passes nothing on.
    """
    if (os.getppid() if parent is None else parent) != 1:
        return ""
    with contextlib.suppress(OSError):
        name = Path("/proc/1/comm").read_text("utf-8", "replace").strip()
        if name in _SHELLS:
            return name
    return ""
