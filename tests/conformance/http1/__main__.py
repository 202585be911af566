"""Run the cases of HTTP/1.1 against servers, and write how many each of them passes.

::

    python -m tests.conformance.http1                       # asgictl, with both parsers
    python -m tests.conformance.http1 --peers               # and what else is installed
    python -m tests.conformance.http1 --peers --bin DIR     # ... in this directory
    python -m tests.conformance.http1 --case 'chunk.*'      # some of the cases, in detail
    python -m tests.conformance.http1 --peers --write       # and update the reference page
"""

import argparse
import asyncio
import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conformance import page
from tests.conformance.http1 import client, servers, table
from tests.conformance.http1.case import Case, Observed
from tests.conformance.http1.cases import CASES


def try_all(
    peer: servers.Peer, program: str, cases: Sequence[Case], patience: float
) -> dict[str, Observed]:
    """Return what came back in each case; where one brings the server down, it counts alone."""
    with servers.serving(peer, program) as port:
        observed = asyncio.run(client.run(port, cases, patience=patience))
    fell = any(each.end == client.UNREACHABLE for each in observed.values())
    for case in cases:
        if fell and client.objections(case, observed[case.name]):
            with servers.serving(peer, program) as port:
                observed |= asyncio.run(client.run(port, [case], patience=patience))
    return observed


def main() -> int:
    """Run the command; 0 if asgictl passes every case."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.http1")
    parser.add_argument("--peers", action="store_true", help="also try the other servers")
    parser.add_argument("--bin", type=Path, help="look for the servers here first")
    parser.add_argument("--server", help="only servers whose name begins like this")
    parser.add_argument("--case", default="*", help="only cases with such a name, like chunk.*")
    parser.add_argument("--patience", type=float, default=8.0, help="seconds to wait for answers")
    parser.add_argument("--write", action="store_true", help="update docs/reference/conformance.md")
    arguments = parser.parse_args()

    cases = [case for case in CASES if fnmatch.fnmatch(case.name, arguments.case)]
    scores: list[table.Score] = []
    failed = False
    for peer in servers.OWN + (servers.PEERS if arguments.peers else ()):
        if not peer.name.startswith(arguments.server or ""):
            continue
        try:
            program = servers.find(peer.program, arguments.bin)
        except servers.NotInstalled:
            sys.stderr.write(f"skipped: {peer.name} is not installed\n")
            continue
        observed = try_all(peer, program, cases, arguments.patience)
        score = table.Score(peer.name, servers.version(program))
        for case in cases:
            objections = client.objections(case, observed[case.name])
            score.add(case, not objections)
            own = peer in servers.OWN and client.objections(case, observed[case.name], own=True)
            failed = failed or (peer in servers.OWN and bool(objections or own))
            for objection in objections or own or ():
                sys.stdout.write(f"{peer.name}: {case.name}: {objection}\n")
        sys.stdout.write(f"{score.summary()}\n")
        scores.append(score)
    if arguments.write:
        page.write("http1", table.render(scores, CASES))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
