"""Stack dumps of workers, by way of memory.

A worker's faulthandler writes into a memfd (memfd_create(2)) that the supervisor holds too.
That works while C code holds the GIL, and when the log's pipe is full or closed; and what
was written last outlives the worker.
"""

import fcntl
import os
import re

MAX_DUMP = 256 * 1024
"""How many bytes of one dump are logged: a hundred threads have long stacks."""

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

_WATCHER = re.compile(
    r'^  File "[^"]*/asgictl_worker/hygiene\.py", line \d+ in _watch$', re.MULTILINE
)


class DumpFile:
    """The memory that one worker writes its stacks into."""

    __slots__ = ("fd", "offset")

    def __init__(self, fd: int | None = None, offset: int = 0) -> None:
        """Make one, or go on with an open one that was read up to ``offset``."""
        self.offset = offset
        if fd is not None:
            self.fd = fd
            os.set_inheritable(fd, False)
            return
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("asgictl-stacks", os.MFD_CLOEXEC)
        else:
            import tempfile

            self.fd, path = tempfile.mkstemp(prefix="asgictl-stacks-")
            os.unlink(path)
        # So that the worker goes on at the beginning when we have cut the file.
        fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) | os.O_APPEND)

    def read_new(self) -> str:
        """Return what was written since the last call, without an end that is too long."""
        # The size first: what is written from now on comes with the next call.
        size = os.fstat(self.fd).st_size
        data = os.pread(self.fd, min(MAX_DUMP, size - self.offset), self.offset)
        left_out = size - self.offset - len(data)
        self.offset = size
        if size > MAX_DUMP:
            # A worker that is late now and then for a month would fill the machine's memory.
            os.ftruncate(self.fd, 0)
            self.offset = 0
        text = without_our_frames(data.decode("utf-8", "replace")).strip()
        return f"{text}\n... {left_out} bytes left out ..." if left_out > 0 else text

    def close(self) -> None:
        """Give the memory back."""
        os.close(self.fd)


def without_our_frames(text: str) -> str:
    """Return faulthandler's text without what tells nothing of the application.

    The frames of the supervisor that forked the worker stand at the end of the main thread's
    block, most recent call first: a forked child keeps the stack of its parent below its own.
    The thread that watches the event loop has a block of its own.
    """
    kept, skipping = [], False
    threads = [each for each in text.split("\n\n") if not _WATCHER.search(each)]
    for line in "\n\n".join(threads).splitlines():
        skipping = line.startswith("  File ") and (skipping or f'"{_OURS}' in line)
        if not skipping:
            kept.append(line)
    return "\n".join(kept)
