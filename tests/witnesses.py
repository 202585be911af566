"""All who tell of a service, each in its own words: status, top, metrics, the page and the log.

What they say is brought to one form, so that tests and measurements can compare it.
"""

import json
import re
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.kit import Project, Server, run

BLOCKED = 1.0
"""Seconds by which an event loop is late when it is said to be blocked."""

ACCIDENTS = """
import ctypes, os, time
held = []
time.sleep(float(os.environ.get("IMPORT_SECONDS", "0")))

def now():
    with open("when.new", "w") as file:
        file.write(f"{time.monotonic()} {os.getpid()}")
    os.replace("when.new", "when")

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    match scope["path"]:
        case "/block": now(); time.sleep(3600)
        case "/exit": now(); os._exit(7)
        case "/abort": now(); os.abort()
        case "/segfault": now(); ctypes.string_at(0)
        case "/leak": held.append(bytearray(os.urandom(1 << 20)) * 150); now()
        case "/raise": raise RuntimeError("boom")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""
"""An application for every accident; it writes down when it happens, in monotonic seconds, and to
which process."""


@dataclass
class Story:
    """What somebody tells at one moment."""

    exits: dict[str, int] = field(default_factory=dict)
    """Workers that have ended, by cause."""
    states: dict[int, str] = field(default_factory=dict)
    """What workers are said to do, by process id: with why, and ", blocked" if they are. What
    is said of nobody by name stands at -1."""

    def says(self, word: str, pid: int) -> bool:
        """Return whether this is said of a worker."""
        return any(word in state for whose, state in self.states.items() if whose in (pid, -1))


def told_by_json(found: Mapping[str, Any]) -> Story:
    """Return what a status tells: that of ``asgictl status --json``, or that of the page."""
    states = {}
    for row in found["workers"]:
        why = (row["stage"] or row["why"]).partition(":")[0]
        blocked = ", blocked" if row["state"] == "ready" and row["loop_lag"] > BLOCKED else ""
        states[row["pid"]] = row["state"] + (f" ({why})" if why else "") + blocked
    return Story(dict(found["exits"]), states)


def told_by_text(text: str) -> Story:
    """Return what ``asgictl top`` and ``asgictl status`` tell in words."""
    ended = re.search(r"workers ended: (.*)", text)
    exits = re.findall(r"(\d+) ([^,\n]+)", ended[1] if ended else "")
    # Slot, process, and the state, which ends where the number of the generation stands.
    rows = re.findall(r"^ *\d+ +(\d+)  ([a-z].*?)  +\d", text, re.MULTILINE)
    return Story({cause: int(count) for count, cause in exits}, {int(p): s for p, s in rows})


def told_by_metrics(text: str) -> Story:
    """Return what the metrics tell; they count states, so whose it is stays open."""
    story, counted = Story(), []
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "asgictl_worker_exits_total":
                story.exits[sample.labels["cause"]] = int(sample.value)
            elif sample.name == "asgictl_worker_loop_lag_seconds" and sample.value > BLOCKED:
                story.states[int(sample.labels["pid"])] = ", blocked"
            elif sample.name == "asgictl_workers" and sample.value:
                counted.append(sample.labels["state"])
    story.states[-1] = ", ".join(counted)
    return story


_END = re.compile(
    r"(?:was killed by (?P<signal>SIG\w+)|exited with (?P<code>code \d+)) after "
    r"[^(\n]*(?:\((?P<fate>[^)\n]*)\))?: worker=\d+ pid="
)
_SAID = (
    ("suspect", re.compile(r"asking for its stacks: worker=\d+ pid=(\d+)")),
    ("aborting", re.compile(r"killing worker=\d+ pid=(\d+)")),
    ("ready (max-memory)", re.compile(r"successor \(max-memory: .*\): worker=\d+ pid=(\d+)")),
)


def told_by_log(text: str) -> Story:
    """Return what the log tells; causes are those words of it that the others count by."""
    exits = Counter[str]()
    for end in _END.finditer(text):
        fate = (end["fate"] or "").removeprefix("recycle: ").partition(":")[0]
        exits[fate or end["signal"] or f"exit {end['code']}"] += 1
    states = {}
    for state, pattern in _SAID:
        states |= {int(pid): state for pid in pattern.findall(text)}
    return Story(dict(exits), states)


def fetch(port: int, path: str) -> str:
    """Return what an admin address answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def witnesses(server: Server, admin_port: int) -> dict[str, Callable[[], Story]]:
    """Return all who tell of a service, by name."""
    project: Project = server.project
    control = ("--control", str(server.scratch / "asgictl" / f"{server.pid}.sock"))
    return {
        "status": lambda: told_by_json(
            json.loads(run(project, "status", "--json", *control).stdout)
        ),
        "top": lambda: told_by_text(run(project, "top", "-n", "1", *control).stdout),
        "metrics": lambda: told_by_metrics(fetch(admin_port, "/metrics")),
        "page": lambda: told_by_json(json.loads(fetch(admin_port, "/fleet.json"))["status"]),
        "log": lambda: told_by_log(server.log()),
    }
