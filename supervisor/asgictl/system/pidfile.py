"""The file that says which process is the supervisor, and keeps a second one from starting.

It is locked for as long as the supervisor lives (flock(2)) and never written again: a full
disk at a reload cannot hurt. A file without a lock is left over and is taken.
"""

import contextlib
import fcntl
import os

from asgictl_worker.errors import AsgictlError, ExitCode


class PidFileHeld(AsgictlError):
    """Another supervisor lives under this pid file."""

    exit_code = ExitCode.CANNOT_BIND

    def __init__(self, path: str, holder: str) -> None:
        self.path, self.holder = path, holder
        super().__init__(
            f"the pid file {path} is locked by the running process {holder}; "
            f"stop that one first, or give this one another --pid"
        )


class CannotWritePidFile(AsgictlError):
    """The pid file cannot be made."""

    exit_code = ExitCode.BAD_CONFIGURATION

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(
            f"cannot write the pid file {path}: {reason}; "
            f"make its directory and let this user write there, or leave --pid out"
        )


class PidFile:
    """A locked file with this process's id in it."""

    def __init__(self, path: str, fd: int | None = None) -> None:
        """Make and lock the file, or go on with one whose lock this process holds as ``fd``."""
        self.path = os.path.abspath(path)
        if fd is not None:
            self._fd = fd
            os.set_inheritable(fd, False)
            return
        try:
            self._fd = self._lock()
            try:
                # The whole before the cut: who reads meanwhile finds a number.
                text = b"%d\n" % os.getpid()
                os.pwrite(self._fd, text, 0)
                os.ftruncate(self._fd, len(text))
            except OSError:
                self.remove()
                raise
        except OSError as error:
            raise CannotWritePidFile(self.path, error.strerror or str(error)) from None

    def fileno(self) -> int:
        """Return the descriptor that holds the lock."""
        return self._fd

    def _lock(self) -> int:
        # Whoever may write into the directory must not choose which file we write to.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        while True:
            fd = os.open(self.path, flags, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its last owner may have removed the path between our open and our lock.
                if os.path.samestat(os.fstat(fd), os.stat(self.path)):
                    return fd
            except FileNotFoundError:
                pass
            except BlockingIOError:
                holder = os.pread(fd, 32, 0).decode("utf-8", "replace").strip() or "unknown"
                os.close(fd)
                raise PidFileHeld(self.path, holder) from None
            except OSError:
                os.close(fd)
                raise
            os.close(fd)

    def remove(self) -> None:
        """Remove the file, if it is still ours, and let the lock go."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._fd), os.stat(self.path)):
                os.unlink(self.path)
        os.close(self._fd)
