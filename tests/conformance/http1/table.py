"""Count who passes what, and write it down."""

import collections
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.conformance.http1.case import Case, Level

AREAS = {
    "line": "request line",
    "host": "Host",
    "field": "header fields",
    "scope": "ASGI scope",
    "length": "Content-Length",
    "coding": "Transfer-Encoding",
    "chunk": "chunks and trailers",
    "continue": "100-continue",
    "answer": "responses",
    "mistake": "mistakes of applications",
    "keep": "persistent connections",
    "pipeline": "pipelining",
    "close": "closing",
    "disconnect": "http.disconnect",
    "upgrade": "upgrades",
}


@dataclass(slots=True)
class Score:
    """What one server passed."""

    name: str
    version: str
    passed: collections.Counter[str] = field(default_factory=collections.Counter)
    tried: collections.Counter[str] = field(default_factory=collections.Counter)
    failed: list[Case] = field(default_factory=list)

    def add(self, case: Case, passed: bool) -> None:
        """Count a case, by area, by level, and in all."""
        for key in (case.area, case.level.value, ""):
            self.tried[key] += 1
            self.passed[key] += passed
        if not passed:
            self.failed.append(case)

    def cell(self, key: str) -> str:
        """Return how many of how many."""
        return f"{self.passed[key]} / {self.tried[key]}"

    def summary(self) -> str:
        """Return one line for people who wait."""
        levels = ", ".join(f"{level.value} {self.cell(level.value)}" for level in Level)
        return f"{self.name} {self.version}: {self.cell('')} ({levels})"


def render(scores: Sequence[Score], cases: Sequence[Case]) -> str:
    """Return the section of the reference page."""
    names = " | ".join(score.name for score in scores)
    lines = [
        f"{len(cases)} cases of our own: what is sent, what may come back, and the section that says",
        "so. Where a standard allows several things every one of them passes; *should* are those that it",
        "only recommends. All servers serve the same application with their default settings.",
        "The cases were written beside asgictl, which was mended until it passed them; what others fail",
        "is where they decided otherwise, not how good they are.",
        "",
        "Written by `python -m tests.conformance.http1 --peers --write`; `--case` shows what a server",
        "does in a case.",
        "",
        f"| area | {names} |",
        "|---|" + "---|" * len(scores),
        "| version | " + " | ".join(score.version for score in scores) + " |",
    ]
    keys = {**AREAS, "MUST": "**must**", "SHOULD": "**should**", "": "**all**"}
    for key, title in keys.items():
        lines.append(f"| {title} | " + " | ".join(score.cell(key) for score in scores) + " |")
    lines.append("")
    for score in scores:
        for level in Level:
            failed = [f"`{case.name}`" for case in score.failed if case.level is level]
            if failed:
                lines += [f"* {score.name} fails, {level.value}: {', '.join(failed)}."]
    return "\n".join(lines)
