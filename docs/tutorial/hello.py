"""A first application: it shows which worker answers, with nothing but the standard library.

Run it with ``make run`` or ``asgictl hello:app --workers 4`` and open http://127.0.0.1:8000.
The page sends requests and counts the workers that answered them; change GREETING, send the
supervisor a SIGHUP as the page says, and watch new workers take over without a lost request.
"""

import json
import os
import time

GREETING = "Hello from asgictl"

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>%(greeting)s</title>
<style>
  :root { color-scheme: light dark; --ink: #0b7a75; }
  body { font: 17px/1.6 system-ui, sans-serif; max-width: 42rem; margin: 8vh auto; padding: 0 1.2rem }
  h1 { color: var(--ink); margin: 0 } code { background: #8882; padding: .1em .4em; border-radius: 4px }
  button { font: inherit; color: #fff; background: var(--ink); border: 0; border-radius: 6px; padding: .4em 1em }
  li { list-style: none; display: flex; gap: .7em; align-items: center } ul { padding: 0 }
  li b { font-variant-numeric: tabular-nums; min-width: 9.5em; font-weight: 500 }
  li i { height: 1em; background: var(--ink); border-radius: 3px; transition: width .2s }
</style>
<h1>%(greeting)s</h1>
<p>This page came from worker <code>%(worker)d</code>, as its answer number %(answered)d in
%(uptime).0f seconds. Its supervisor is <code>%(supervisor)d</code>.</p>
<p><button onclick="ask(100)">Send 100 requests</button> &nbsp;<span id="result" role="status"></span></p>
<ul id="workers"></ul>
<p>While the requests run, try this in a shell:</p>
<p><code>kill -HUP %(supervisor)d</code> new workers, with the code that is on disk now; no request is lost<br>
<code>kill -TTIN %(supervisor)d</code> one worker more, <code>-TTOU</code> one less; none is lost either<br>
<code>kill -KILL %(worker)d</code> this worker dies with what it was answering; another takes its place</p>
<p>WebSocket: <code id="socket" role="status">connecting</code></p>
<script>
const byId = id => document.getElementById(id), counts = {}, lost = [];
async function ask(number) {
  for (let sent = 0; sent < number; sent += 10) await Promise.all([...Array(10)].map(async () => {
    try {
      const answer = await (await fetch("/worker", {cache: "no-store"})).json();
      counts[answer.worker] = (counts[answer.worker] || 0) + 1;
    } catch (error) { lost.push(error) }
    const most = Math.max(...Object.values(counts));
    byId("workers").innerHTML = Object.entries(counts).map(([pid, count]) =>
      `<li><b>${pid}: ${count}</b><i style="width:${60 * count / most}%%"></i>`).join("");
    byId("result").textContent = lost.length ? `${lost.length} lost` : "none lost";
  }));
}
function connect() {
  const socket = new WebSocket(location.href.replace(/^http/, "ws").replace(/[^/]*$/, "socket"));
  socket.onmessage = event => byId("socket").textContent = event.data;
  socket.onclose = event => { byId("socket").textContent = `closed, ${event.code}`; setTimeout(connect, 1000) };
}
connect();
</script>
"""


async def app(scope, receive, send):
    """Serve the page, the worker's facts as JSON, and a WebSocket."""
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    elif scope["type"] == "websocket":
        await echo(receive, send)
    elif scope["path"] == "/":
        facts = worker_facts(scope["state"])
        await respond(
            send,
            200,
            b"text/html; charset=utf-8",
            (PAGE % {"greeting": GREETING, **facts}).encode(),
        )
    elif scope["path"] == "/worker":
        await respond(
            send, 200, b"application/json", json.dumps(worker_facts(scope["state"])).encode()
        )
    else:
        await respond(send, 404, b"text/plain", b"There is nothing here; try /\n")


async def lifespan(scope, receive, send):
    """Run once in each worker: what is put into the state here, every request finds there."""
    await receive()
    scope["state"]["worker"] = {"started": time.monotonic(), "answered": 0}
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


def worker_facts(state):
    """Count this request and say who answers it."""
    worker = state["worker"]
    worker["answered"] += 1
    return {
        "worker": os.getpid(),
        "supervisor": os.getppid(),
        "answered": worker["answered"],
        "uptime": time.monotonic() - worker["started"],
    }


async def respond(send, status, content_type, body):
    """Send a whole response."""
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(receive, send):
    """Accept a WebSocket, say who answers, and send every message back."""
    await receive()
    await send({"type": "websocket.accept"})
    await send(
        {
            "type": "websocket.send",
            "text": f"open to worker {os.getpid()} since {time.strftime('%H:%M:%S')}",
        }
    )
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message.get("text") or ""})
