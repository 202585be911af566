"""Stack dumps of workers, by way of memory.

A worker's faulthandler writes into a memfd (memfd_create(2)) that the supervisor holds too.
That works while C code holds the GIL, and when the log's pipe is full or closed; and what
was written last outlives the worker.
"""

import os
import tempfile

MAX_DUMP = 256 * 1024
"""How many bytes of one dump are logged; a runaway recursion writes endless stacks."""


_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class DumpFile:
    """The memory that one worker writes its stacks into."""

    __slots__ = ("fd", "offset")

    def __init__(self, fd: int | None = None, offset: int = 0) -> None:
        """Make one, or go on with an open one that was read up to ``offset``."""
        self.offset = offset
        if fd is not None:
            self.fd = fd
            os.set_inheritable(fd, False)
        elif hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("asgictl-stacks", os.MFD_CLOEXEC)
        else:
            self.fd, path = tempfile.mkstemp(prefix="asgictl-stacks-")
            os.unlink(path)

    def read_new(self) -> str:
        """Return what was written since the last call."""
        # pread: the worker shares the file offset, and writes where it stands.
        data = os.pread(self.fd, MAX_DUMP, self.offset)
        self.offset += len(data)
        return without_our_frames(data.decode("utf-8", "replace")).strip()

    def close(self) -> None:
        """Give the memory back."""
        os.close(self.fd)


def without_our_frames(text: str) -> str:
    """Return faulthandler's text without the frames of the supervisor that forked the worker.

    They stand at the end of the main thread's block, most recent call first, and tell
    nothing: a forked child keeps the stack of its parent below its own.
    """
    kept, skipping = [], False
    for line in text.splitlines():
        skipping = line.startswith("  File ") and (skipping or f'"{_OURS}' in line)
        if not skipping:
            kept.append(line)
    return "\n".join(kept)
