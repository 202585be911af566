"""Send a part of a file to a client, by the kernel alone where it can.

Reading is left to a thread, since a disk may be slow and a network disk may hang. What the
thread works on are duplicates of the descriptors: the application may close its own, or be
cancelled, while the thread still reads, and the number may then stand for another file.

Source: sendfile(2).
"""

import asyncio
import os
import stat
from collections.abc import Callable
from io import FileIO
from typing import Any, Protocol

from asgictl_worker.http.response import ClientDisconnected, InvalidResponse

PART = 256 * 1024
"""Bytes that are read, or handed to the kernel, at once."""

CAN_SENDFILE = hasattr(os, "sendfile")


class Destination(Protocol):
    """What is needed of a connection."""

    transport: asyncio.Transport

    def pause_writing(self) -> None:
        """Let senders wait: the client does not read."""

    def resume_writing(self) -> None:
        """Let senders go on."""

    async def wait_until_writable(self) -> None:
        """Wait until the client has read enough of what was written, or is gone."""


class FileChanged(Exception):
    """A file became shorter while it was sent, which the client has to be told."""

    def __init__(self, missing: int) -> None:
        self.missing = missing
        super().__init__(
            f"the file became shorter while it was sent; {missing} bytes are missing, so the "
            f"connection was closed"
        )


def take(path: str, small: int) -> tuple[FileIO | None, int, bytes]:
    """Open a file and, if it is small, read it at once: for a thread, which is asked once then.

    Args:
        path: of the file.
        small: bytes; a file with fewer is read and closed.

    Returns:
        The open file, its size in bytes, and nothing; or None, the size and the content, which
        is shorter than that if the file is cut off at this moment.

    Raises:
        OSError: it cannot be opened or read.
        InvalidResponse: it is a pipe, a device or the like, which has no size.
    """
    file = open(path, "rb", 0, opener=_open)  # noqa: SIM115 - the caller's to close, if it is large
    try:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise InvalidResponse("file", path, "it must be a regular file")
        size = facts.st_size
        if size >= small:
            return file, size, b""
        content = file.read(size)
    except BaseException:
        file.close()
        raise
    file.close()
    return None, size, content


def _open(path: str, flags: int) -> int:
    # To open a named pipe would wait for its writer, and hold the thread as long.
    return os.open(path, flags | os.O_NONBLOCK)


async def read(file: int, offset: int, count: int) -> bytes:
    """Return a small part of a file, or less if it ends before.

    Args:
        file: a descriptor; the caller's to close.
        offset: where the part begins.
        count: bytes.
    """
    with _Threads() as threads:
        data: bytes = await threads.run(os.pread, threads.duplicate(file), count, offset)
        return data


async def copy(
    destination: Destination, file: int, offset: int, count: int, progress: Callable[[int], None]
) -> None:
    """Write a part of a file to a client.

    Args:
        destination: the connection; nobody else writes to it meanwhile.
        file: a descriptor; the caller's to close.
        offset: where the part begins.
        count: bytes; all of them are there, as far as is known.
        progress: is told how many bytes were sent since; raises if the client is gone.

    Raises:
        ClientDisconnected: nobody would read it.
        FileChanged: the file ends before.
    """
    transport = destination.transport
    socket = transport.get_extra_info("socket")
    is_plain = socket is not None and transport.get_extra_info("ssl_object") is None
    with _Threads() as threads:
        source = threads.duplicate(file)
        if not (is_plain and CAN_SENDFILE):
            while count:
                await destination.wait_until_writable()
                progress(0)
                data = await threads.run(os.pread, source, min(count, PART), offset)
                progress(len(data))
                if not data:
                    raise FileChanged(count)
                transport.write(data)
                offset += len(data)
                count -= len(data)
            await destination.wait_until_writable()
            return
        # What was written before goes first: without a buffer, writable means that it is gone.
        transport.set_write_buffer_limits(0)
        try:
            await destination.wait_until_writable()
            progress(0)
            sink = threads.duplicate(socket.fileno())
            while count:
                try:
                    sent = await threads.run(os.sendfile, sink, source, offset, min(count, PART))
                except BlockingIOError:
                    await _wait_for_space(destination, sink)
                    progress(0)
                except (BrokenPipeError, ConnectionError):
                    raise ClientDisconnected from None
                else:
                    if not sent:
                        raise FileChanged(count)
                    offset += sent
                    count -= sent
                    progress(sent)
        finally:
            if not transport.is_closing():
                transport.set_write_buffer_limits()


async def _wait_for_space(destination: Destination, sink: int) -> None:
    loop = asyncio.get_running_loop()
    # As if the transport had said so: then the same people wait, and look whether it lasts.
    destination.pause_writing()
    loop.add_writer(sink, destination.resume_writing)
    try:
        await destination.wait_until_writable()
    finally:
        loop.remove_writer(sink)
        destination.resume_writing()


class _Threads:
    """Runs functions in threads, and closes duplicates when none uses them any more."""

    __slots__ = ("_descriptors", "_job")

    def __init__(self) -> None:
        self._descriptors: list[int] = []
        self._job: asyncio.Future[Any] | None = None

    def duplicate(self, descriptor: int) -> int:
        duplicate = os.dup(descriptor)
        self._descriptors.append(duplicate)
        return duplicate

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        self._job = loop.run_in_executor(None, function, *arguments)
        return await asyncio.shield(self._job)

    def __enter__(self) -> "_Threads":
        return self

    def __exit__(self, *_: object) -> None:
        if self._job is None or self._job.done():
            self._close()
        else:
            self._job.add_done_callback(self._close)

    def _close(self, _: object = None) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
