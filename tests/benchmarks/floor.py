"""The floor under every Python server: uvloop, and the same bytes for each request, unread.

``python -m tests.benchmarks.floor PORT``: no parser, no scope, no application. What a
server costs above this is what its work on HTTP and ASGI costs.
"""

import asyncio
import base64
import hashlib
import sys
from typing import Any

import uvloop

RESPONSE = (
    b"HTTP/1.1 200 OK\r\nserver: floor\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
    b"content-type: text/plain\r\ncontent-length: 13\r\n\r\nHello, World!"
)
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class Floor(asyncio.Protocol):
    """Answers by counting: heads over HTTP, and after an upgrade as many bytes as came in."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.upgraded = False
        self.frame = 0
        self.pending = b""
        self.missing = 0

    def data_received(self, data: bytes) -> None:
        if self.frame:
            self.missing -= len(data)
            while self.missing <= 0:
                self.missing += self.frame
                self.transport.write(self.answer)
        elif self.upgraded or b"sec-websocket-key:" in data[:1000].lower():
            self.first_frame(data)
        else:
            if b"onnection: close" in data:
                self.transport.write(
                    RESPONSE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
                )
                self.transport.close()
            else:
                self.transport.write(RESPONSE * data.count(b"\r\n\r\n"))

    def first_frame(self, data: bytes) -> None:
        """Accept the upgrade and build the answer to the first frame; all others are its equals."""
        if not self.upgraded:
            head, _, data = data.partition(b"\r\n\r\n")
            lines = (line.split(b":", 1) for line in head.split(b"\r\n")[1:])
            fields = {name.lower(): value.strip() for name, value in lines}
            digest = hashlib.sha1(fields[b"sec-websocket-key"] + _GUID).digest()
            self.transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
            )
            self.upgraded = True
        self.pending += data
        if len(self.pending) < 4:
            return
        short = self.pending[1] & 127
        start, size = (2, short) if short < 126 else (4, int.from_bytes(self.pending[2:4], "big"))
        if len(self.pending) < start + 4 + size:
            return
        mask = self.pending[start : start + 4]
        payload = bytes(byte ^ mask[at & 3] for at, byte in enumerate(self.pending[start + 4 :]))
        self.answer = bytes((self.pending[0], short)) + self.pending[2:start] + payload
        self.missing = self.frame = start + 4 + size
        self.transport.write(self.answer)


async def serve(port: int) -> None:
    """Serve until a signal ends the process."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Floor, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
