"""Code of one's own in each worker: a hook, and a Server that watches its load."""

import asyncio
import contextlib

from asgictl_worker import Server, Worker


async def greet(worker: Worker) -> None:
    """Run before the application is imported; a plain function does as well."""
    print(f"slot {worker.slot} of generation {worker.generation} starts", flush=True)


class Counting(Server):
    """Adds a header to each response, and says every second how much there is to do."""

    async def startup(self) -> bool:
        """Begin when the application has."""
        wanted = await super().startup()
        app = self.service.app

        async def with_header(scope, receive, send):
            async def add(message):
                if message["type"] == "http.response.start":
                    message["headers"] = [
                        *message.get("headers", ()),
                        (b"x-served-by", b"counting"),
                    ]
                await send(message)

            await app(scope, receive, add if scope["type"] == "http" else send)

        self.service.app = with_header
        self._counting = asyncio.create_task(self._count())
        return wanted

    async def shutdown(self) -> None:
        """End before the application does."""
        self._counting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._counting
        await super().shutdown()

    async def _count(self) -> None:
        while True:
            print(f"{self.connections} connections", flush=True)
            await asyncio.sleep(1)
