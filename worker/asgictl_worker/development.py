"""What browsers see while somebody develops: the traceback of code that does not work.

For the author at this machine only: a traceback tells strangers too much. A page that shows one
asks again as soon as files have changed, so that what was mended appears by itself.
"""

import asyncio
import html

from asgictl_worker import contract, tracebacks
from asgictl_worker.asgi import Application, Message, Receive, Scope, Send

WAITING = b"x-asgictl-wait"
"""The header of a request that is answered when this worker leaves."""

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 3em auto; max-width: 60em; padding: 0 1em;
       color: #222; background: #fff }}
h1 {{ font-size: 1.3em }}
pre {{ font: 14px/1.5 ui-monospace, monospace; padding: 1em; overflow-x: auto;
      background: #f4f1ec; border-left: 4px solid #b00020 }}
footer {{ color: #777 }}
@media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #1b1b1b }} pre {{ background: #262421 }} }}
</style>
<h1>{title}</h1>
<p>{sentence}</p>
{traceback}
<footer>asgictl --reload: save a file, and this page asks again.</footer>
{script}
</html>
"""
_SCRIPT = f"""\
<script>
fetch(location.href, {{headers: {{"{WAITING.decode()}": "1"}}}}).finally(() => location.reload());
</script>"""


def broken(failed: contract.Failed, leaving: asyncio.Event) -> Application:
    """Return an application that shows why another one did not boot.

    Args:
        failed: why.
        leaving: set when this worker has to make room for the next.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        title = f"The application does not boot (stage: {failed.stage})"
        if scope["type"] == "http":
            await _answer(scope, send, title, failed.error, failed.traceback)
            return
        await receive()
        if "websocket.http.response" in scope.get("extensions", {}):
            await _answer(scope, send, title, failed.error, failed.traceback, "websocket.http.")
        else:
            await send({"type": "websocket.close", "code": 1011})

    return _waits(app, leaving)


def explained(app: Application, leaving: asyncio.Event) -> Application:
    """Return an application that shows the exceptions of ``app`` before it raises them."""

    async def explain(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        held: list[Message] = []
        begun = False

        async def hold(message: Message) -> None:
            # The head waits for the body, as in the cycle: until then nothing is out.
            nonlocal begun
            if message["type"] == "http.response.start" and not (held or begun):
                held.append(message)
                return
            begun = True
            while held:
                await send(held.pop())
            await send(message)

        try:
            await app(scope, receive, hold)
            while held:
                await send(held.pop())
        except Exception as error:
            if not begun:
                title = f"Exception at {scope['method']} {scope['path']}"
                trace = tracebacks.from_application(error)
                await _answer(scope, send, title, tracebacks.last_line(error), trace)
            raise

    return _waits(explain, leaving)


def _waits(app: Application, leaving: asyncio.Event) -> Application:
    """Return ``app`` with an answer to those who wait for what comes after it."""

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or WAITING not in dict(scope["headers"]):
            await app(scope, receive, send)
            return
        await leaving.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    return wait


async def _answer(
    scope: Scope, send: Send, title: str, sentence: str, traceback: str, kind: str = "http."
) -> None:
    headers = dict(scope["headers"])
    if b"text/html" in headers.get(b"accept", b""):
        content = b"text/html; charset=utf-8"
        text = _PAGE.format(
            title=html.escape(title),
            sentence=html.escape(sentence),
            traceback=f"<pre>{html.escape(traceback)}</pre>" if traceback else "",
            # Whoever has sent a form does not want it to be sent again.
            script=_SCRIPT if scope.get("method") == "GET" else "",
        )
    else:
        content = b"text/plain; charset=utf-8"
        text = "\n\n".join(filter(None, (title, traceback, sentence))) + "\n"
    fields = [(b"content-type", content), (b"cache-control", b"no-store")]
    await send({"type": f"{kind}response.start", "status": 500, "headers": fields})
    await send({"type": f"{kind}response.body", "body": text.encode("utf-8", "replace")})
