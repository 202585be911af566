"""Run the fuzzing client of the Autobahn test suite against asgictl.

::

    python -m tests.conformance.autobahn                      # all cases, both event loops
    python -m tests.conformance.autobahn --cases '1.*' 7.1.1  # some of them
    python -m tests.conformance.autobahn --write              # and update the reference page

The suite needs CPython 2.7 (``PYTHON27``, ``python2.7`` or one of pyenv's). It is installed
once, from the package index, into ``.venv-autobahn`` beside ``pyproject.toml``. All of its
cases take an hour on a busy machine, most of it in sections 12 and 13.
"""

import argparse
import collections
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conformance import page
from tests.kit import Project, Server

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-autobahn"
STAMP = ENVIRONMENT / ".installed"
LOOPS = ("asyncio", "uvloop")

REQUIREMENTS = (
    "autobahntestsuite==25.10.1",
    # The last of each that still knows 2.7.
    "cryptography==3.3.2",
    "pyOpenSSL==19.1.0",
    "setuptools==44.0.0",
    "Twisted==19.10.0",
    "zope.interface==4.6.0",
)

ECHO = """
async def app(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
"""

SECTIONS = {
    1: "Framing: text and binary messages",
    2: "Pings and pongs",
    3: "Reserved bits",
    4: "Opcodes",
    5: "Fragmentation",
    6: "UTF-8",
    7: "Closing",
    9: "Limits and performance",
    10: "Automatic fragmentation",
    12: "Compression: sizes",
    13: "Compression: parameters",
}

GOOD = frozenset({"OK", "INFORMATIONAL"})
"""INFORMATIONAL cases have no right and wrong; NON-STRICT ones are wrong, but forgivably."""

# Its packages lie in a directory of their own; addsitedir() reads the .pth files there.
_LAUNCHER = """
import site, sys
sys.path.insert(0, {where!r})
site.addsitedir({where!r})
sys.argv = ["wstest", "--mode", "fuzzingclient", "--spec", {spec!r}]
from autobahntestsuite.wstest import run
run()
"""

Verdicts = dict[str, dict[str, str]]
"""By event loop and case: how the case ended, and how the close after it did."""


class NoSuite(Exception):
    """The suite cannot run here."""


def find_python() -> str:
    """Return a CPython 2.7.

    Raises:
        NoSuite: there is none.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [*sorted(map(str, pyenv.glob("2.7*/bin/python"))), shutil.which("python2.7")]
    for candidate in filter(None, [os.environ.get("PYTHON27"), *candidates]):
        # pyenv puts commands on the path that only say what they would need.
        answer = subprocess.run([candidate, "--version"], capture_output=True, check=False)
        if b"Python 2.7" in answer.stdout + answer.stderr:
            return candidate
    raise NoSuite("the Autobahn test suite needs CPython 2.7, and there is none; set PYTHON27")


def is_installed() -> bool:
    """Return whether the suite is installed as it is asked for here."""
    return STAMP.exists() and STAMP.read_text() == "\n".join(REQUIREMENTS)


def install(python: str) -> Path:
    """Return where the suite is installed, after installing it if it is not."""
    if not is_installed():
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        command = [python, "-m", "pip", "install", "--quiet", "--target", str(ENVIRONMENT)]
        subprocess.run([*command, *REQUIREMENTS], check=True)
        STAMP.write_text("\n".join(REQUIREMENTS))
    return ENVIRONMENT


@contextmanager
def serving(directory: Path, loop: str) -> Iterator[Server]:
    """Serve the echo application on a free port."""
    project = Project(directory / loop).write(ECHO)
    arguments = ["app:app", "--port", "0", "--loop", loop, "--no-access-log", "--lifespan", "off"]
    server = Server(project, *arguments)
    try:
        yield server.wait_until_ready()
    finally:
        server.destroy()


def run(cases: Sequence[str], loops: Sequence[str] = LOOPS, *, quiet: bool = False) -> Verdicts:
    """Return how each case ended on each loop.

    Raises:
        NoSuite: there is no CPython 2.7.
    """
    python = find_python()
    where = install(python)
    verdicts: Verdicts = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for loop in loops:
            with serving(directory, loop) as server:
                spec = {
                    "outdir": str(directory / f"report-{loop}"),
                    "servers": [{"agent": loop, "url": f"ws://127.0.0.1:{server.port}"}],
                    "cases": list(cases),
                }
                _wstest(python, where, spec, quiet=quiet)
            report = json.loads((directory / f"report-{loop}" / "index.json").read_text())
            verdicts[loop] = {
                case: verdict(result["behavior"], result["behaviorClose"])
                for case, result in report[loop].items()
            }
    return verdicts


def _wstest(python: str, where: Path, spec: Mapping[str, object], *, quiet: bool) -> None:
    spec_file = Path(str(spec["outdir"])).with_suffix(".json")
    spec_file.write_text(json.dumps(spec))
    launcher = _LAUNCHER.format(where=str(where), spec=str(spec_file))
    output = subprocess.DEVNULL if quiet else None
    subprocess.run([python, "-c", launcher], check=True, stdout=output, stderr=output)


def verdict(behavior: str, close: str) -> str:
    """Return how a case ended, in the words of the suite."""
    return behavior if close in GOOD else f"{behavior}, close {close}"


def failures(verdicts: Verdicts) -> list[str]:
    """Return a line for every case that did not end as it should."""
    return [
        f"{case} on {loop}: {verdict}"
        for loop, cases in verdicts.items()
        for case, verdict in sorted(cases.items(), key=lambda item: _order(item[0]))
        if verdict not in GOOD
    ]


def render(verdicts: Verdicts) -> str:
    """Return the section of the reference page."""
    lines = [
        "The [Autobahn test suite](https://github.com/crossbario/autobahn-testsuite) has become what",
        "WebSocket implementations are measured by. Its fuzzing client talks to an echo application",
        "served by asgictl, with the default settings. Each cell says how many cases ended as the suite",
        "wants it, and out of how many; *informational* cases have no right and wrong.",
        "",
        "Written by `python -m tests.conformance.autobahn --write`.",
        "",
        "| section | what | " + " | ".join(verdicts) + " |",
        "|---|---|" + "---|" * len(verdicts),
    ]
    for number, title in SECTIONS.items():
        cells = [_cell(cases, number) for cases in verdicts.values()]
        lines.append(f"| {number} | {title} | " + " | ".join(cells) + " |")
    total = " | ".join(map(_score, verdicts.values()))
    lines += [f"| | **all** | {total} |", ""]
    lines += [f"* {line}" for line in failures(verdicts)]
    return "\n".join(lines).rstrip("\n")


def _score(cases: Mapping[str, str]) -> str:
    return f"{sum(verdict in GOOD for verdict in cases.values())} / {len(cases)}"


def _cell(cases: Mapping[str, str], section: int) -> str:
    counts = collections.Counter(
        verdict for case, verdict in cases.items() if _order(case)[0] == section
    )
    total = sum(counts.values())
    if not total:
        return "not run"
    good = sum(counts[verdict] for verdict in GOOD)
    informational = counts["INFORMATIONAL"]
    return f"{good} / {total}" + (f" ({informational} informational)" if informational else "")


def _order(case: str) -> tuple[int, ...]:
    return tuple(map(int, case.split(".")))


def main() -> int:
    """Run the command; 0 if every case ended as it should, and where the suite cannot run."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.autobahn")
    parser.add_argument("--cases", nargs="+", default=["*"], help="such as 1.* or 7.1.1")
    parser.add_argument("--loop", choices=LOOPS, action="append", help="only this event loop")
    parser.add_argument("--write", action="store_true", help="update docs/reference/conformance.md")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        verdicts = run(arguments.cases, arguments.loop or LOOPS)
    except NoSuite as reason:
        sys.stderr.write(f"skipped: {reason}\n")
        return 0
    for line in failures(verdicts):
        sys.stdout.write(f"{line}\n")
    for loop, cases in verdicts.items():
        sys.stdout.write(f"{loop}: {_score(cases)}\n")
    if arguments.write:
        page.write("autobahn", render(verdicts))
    return 1 if failures(verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
