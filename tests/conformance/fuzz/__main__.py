"""Let atheris look for inputs that break a property, one target after the other.

::

    python -m tests.conformance.fuzz --minutes 60                 # all targets, in turn
    python -m tests.conformance.fuzz --minutes 10 --target frames
    python -m tests.conformance.fuzz --corpus DIR --minutes 60    # keep what was learnt
    python -m tests.conformance.fuzz --minutes 60 --write         # and update the reference page
    python -m tests.conformance.fuzz --target http1 --reproduce FILE

Needs atheris (``pip install --group fuzz``; there are wheels for Linux). It runs one process at
a time, on one core. What breaks a property is left in a file, whose name is told.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.conformance import page

ROOT = Path(__file__).parents[3]

TARGETS = (
    *("http1", "shared", "chunks", "connection", "repeated"),
    *("frames", "handshake", "proxy", "introduction"),
)
"""Those of ``targets.py``, which must not be imported before atheris can watch it."""

MAX_LENGTH = 2048
"""Bytes of the longest input."""

MEMORY = 1024
"""MiB above which a target has failed; it needs a tenth of that."""

HANG = 60
"""Seconds after which one input is taken for a hang; the longest takes a fraction of one."""


def child(name: str, arguments: Sequence[str]) -> None:
    """Fuzz one target in this process until libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["asgictl_worker", "h11"]):
        from tests.conformance.fuzz import targets
    target, _ = targets.TARGETS[name]
    atheris.Setup([sys.argv[0], *arguments], target)
    atheris.Fuzz()


def plant(name: str, directory: Path) -> None:
    """Write the inputs that a target begins with, and the words to mix in."""
    from tests.conformance.fuzz import corpus, targets

    directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.seeds(name)):
        (directory / f"seed-{number}").write_bytes(seed)
    words = ("".join(f"\\x{code:02x}" for code in word) for word in corpus.WORDS)
    directory.with_suffix(".words").write_text("".join(f'"{word}"\n' for word in words))


class Result(NamedTuple):
    """What came of fuzzing one target."""

    name: str
    inputs: str
    seconds: float
    memory: str
    """The most that the process took, in MiB."""
    held: bool

    def __str__(self) -> str:
        facts = f"{self.inputs} inputs in {self.seconds:.0f} s, {self.memory} MiB at most"
        return f"{self.name}: {facts}: {'held' if self.held else 'BROKEN'}"


def fuzz(name: str, seconds: int, directory: Path) -> Result:
    """Fuzz one target for so long, and print what came of it."""
    corpus = directory / name
    plant(name, corpus)
    began = time.monotonic()
    process = subprocess.run(
        [
            *(sys.executable, "-m", "tests.conformance.fuzz", "--child", name, str(corpus)),
            f"-max_total_time={seconds}",
            f"-max_len={MAX_LENGTH}",
            f"-rss_limit_mb={MEMORY}",
            f"-timeout={HANG}",
            f"-dict={corpus.with_suffix('.words')}",
            f"-artifact_prefix={directory / name}-",
            "-print_final_stats=1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    result = Result(
        name,
        _stat(process.stdout, "number_of_executed_units"),
        time.monotonic() - began,
        _stat(process.stdout, "peak_rss_mb"),
        process.returncode == 0,
    )
    sys.stdout.write(f"{result}\n")
    if not result.held:
        lines = (line for line in process.stdout.splitlines() if not line.startswith("INFO:"))
        sys.stdout.write("\n".join([*lines][-40:]) + "\n")
    sys.stdout.flush()
    return result


def render(results: Sequence[Result]) -> str:
    """Return the section of the reference page."""
    from tests.conformance.fuzz import targets

    lines = [
        "What reads the network has to hold for any bytes, however the network cuts them. hypothesis tries",
        "some in every run of the tests; atheris, guided by coverage, went on for longer, beginning with the",
        "bytes of the cases above.",
        "",
        "Written by `python -m tests.conformance.fuzz --minutes 60 --write`.",
        "",
        "| target | property | inputs | minutes | memory | |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        target, _ = targets.TARGETS[result.name]
        what = (target.__doc__ or "").partition("\n")[0].rstrip(".")
        cells = (result.name, what, result.inputs, f"{result.seconds / 60:.1f}")
        how = "held" if result.held else "**broken**"
        lines.append(f"| {' | '.join(cells)} | {result.memory} MiB | {how} |")
    return "\n".join(lines)


def _stat(text: str, name: str) -> str:
    found = re.search(rf"stat::{name}: +(\d+)", text)
    return found[1] if found else "?"


def main() -> int:
    """Run the command; 0 if every property held, and where atheris is not installed."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.fuzz")
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one")
    parser.add_argument("--corpus", type=Path, help="keep the inputs that found something new here")
    parser.add_argument("--write", action="store_true", help="update docs/reference/conformance.md")
    parser.add_argument("--reproduce", type=Path, metavar="FILE", help="try this input only")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.target or TARGETS
    if arguments.reproduce:
        from tests.conformance.fuzz import targets

        for name in names:
            targets.TARGETS[name][0](arguments.reproduce.read_bytes())
        return 0
    if importlib.util.find_spec("atheris") is None:
        sys.stderr.write("skipped: atheris is not installed (pip install --group fuzz)\n")
        return 0
    if arguments.child:
        child(arguments.child[0], arguments.child[1:])
    with tempfile.TemporaryDirectory() as scratch:
        directory = arguments.corpus or Path(scratch)
        seconds = round(arguments.minutes * 60 / len(names)) or 1
        results = [fuzz(name, seconds, directory) for name in names]
    if arguments.write:
        page.write("fuzz", render(results))
    return 0 if all(result.held for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
