"""The command: take samples of servers in turn, print a table, write the page."""

import argparse
import compileall
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.cases import CASES, Bench, Sample
from tests.benchmarks.report import Results, markdown, write_page
from tests.benchmarks.servers import COMMANDS, ROOT, pin_client


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--cases", default=",".join(CASES), help="names, separated by commas (default: all)"
    )
    parser.add_argument("--servers", default=",".join(COMMANDS), help="names, separated by commas")
    parser.add_argument(
        "--base", default="uvicorn", help="ratios are to this server (or the first one)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="samples of each server in each case")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a sample under load")
    parser.add_argument(
        "--peers", metavar="DIR", help="the virtual environment of the other servers"
    )
    parser.add_argument("--json", metavar="FILE", help="write all samples here")
    parser.add_argument("--from-json", metavar="FILE", help="measure nothing, report these samples")
    parser.add_argument(
        "--write", metavar="DIR", help="write performance.md and performance.svg here"
    )
    return parser.parse_args()


def main() -> None:
    """Measure and report."""
    pin_client()
    # What is installed has its bytecode; a checkout may not, and would start slowly.
    for package in ("supervisor", "worker"):
        compileall.compile_dir(ROOT / package, quiet=1)
    options = arguments()
    if options.from_json:
        read = json.loads(Path(options.from_json).read_text())
        versions, results = read["versions"], _samples(read["samples"])
    else:
        pythons = _pythons(options)
        versions, results = _versions(pythons), _measure(options, pythons)
    if options.json:
        plain = {
            case: {
                name: [dataclasses.asdict(sample) for sample in samples]
                for name, samples in row.items()
            }
            for case, row in results.items()
        }
        text = json.dumps({"versions": versions, "samples": plain}, indent=1)
        Path(options.json).write_text(text + "\n")
    _say(markdown(results, options.base))
    if options.write:
        write_page(results, versions, options.base, Path(options.write))


def _pythons(options: argparse.Namespace) -> dict[str, str]:
    """Return the interpreter that runs each of the servers asked for."""
    names = options.servers.split(",")
    unknown = [name for name in names if name not in COMMANDS]
    unknown += [name for name in options.cases.split(",") if name not in CASES]
    if unknown:
        sys.exit(
            f"unknown: {', '.join(unknown)}; servers: {', '.join(COMMANDS)}; cases: {', '.join(CASES)}"
        )
    peers = str(Path(options.peers) / "bin" / "python") if options.peers else sys.executable
    return {name: sys.executable if name == "asgictl" else peers for name in names}


def _versions(pythons: dict[str, str]) -> dict[str, str]:
    """Return the version of Python, of uvloop and of each server."""
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]), end='')"
    versions = {"CPython": platform.python_version()}
    for name, python in pythons.items():
        package = "uvloop" if name == "floor" else name
        command = [python, "-c", code, package]
        versions[package] = subprocess.run(command, capture_output=True, text=True).stdout
    return versions


def _measure(options: argparse.Namespace, pythons: dict[str, str]) -> Results:
    names = list(pythons)
    results: Results = {}
    with tempfile.TemporaryDirectory(prefix="asgictl-benchmark-") as directory:
        bench = Bench(pythons=pythons, directory=Path(directory), seconds=options.seconds)
        for case in (CASES[name] for name in options.cases.split(",")):
            row: dict[str, list[Sample]] = {
                name: [] for name in names if name != "floor" or case.floor
            }
            results[case.name] = row
            for turn in range(options.rounds):
                # Each server comes first in some round: the machine warms up and cools down.
                order = [*row][turn % len(row) :] + [*row][: turn % len(row)]
                for name in order:
                    try:
                        sample = case.sample(bench, name)
                    except (RuntimeError, AssertionError) as error:
                        _say(f"{case.name}: {name} failed: {error}")
                        continue
                    row[name].append(sample)
                    rate = f", {sample.rate:.0f}/s, p99 {sample.p99:.1f} ms" if sample.rate else ""
                    errors = f", {sample.errors} ERRORS" if sample.errors else ""
                    _say(
                        f"{case.name:12} {turn + 1} {name:10} {sample.value:8.1f} {case.unit}{rate}{errors}"
                    )
    return results


def _samples(plain: dict[str, dict[str, list[dict[str, Any]]]]) -> Results:
    return {
        case: {name: [Sample(**sample) for sample in samples] for name, samples in row.items()}
        for case, row in plain.items()
    }


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.platform != "linux" or (os.cpu_count() or 1) < 2:
        _say("warning: without Linux and two cores, server and client disturb each other")
    main()
