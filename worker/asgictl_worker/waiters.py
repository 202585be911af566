"""Wait, in several tasks if need be, for the same thing to happen."""

import asyncio


class Waiters:
    """Those who wait for the same thing: mostly nobody, sometimes one."""

    __slots__ = ("_futures", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._futures: list[asyncio.Future[None]] = []

    def join(self) -> asyncio.Future[None]:
        """Return a future that the next ``wake()`` completes."""
        if self._futures:
            # Those of an application that waits with a time-out, over and over.
            self._futures = [future for future in self._futures if not future.done()]
        future = self._loop.create_future()
        self._futures.append(future)
        return future

    def wake(self) -> None:
        """Let all who joined look again whether they can go on."""
        futures = self._futures
        if futures:
            for future in futures:
                if not future.done():
                    future.set_result(None)
            futures.clear()
