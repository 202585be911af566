"""Samples to a table and a picture: medians of ratios between servers measured in turn."""

import os
import platform
import statistics
from html import escape
from pathlib import Path

from tests.benchmarks.cases import CASES, Sample

Results = dict[str, dict[str, list[Sample]]]
"""Samples by case and server, in the order of the rounds."""

COLOURS = {
    "floor": "#9aa0a6",
    "asgictl": "#0b7a75",
    "uvicorn": "#d9822b",
    "granian": "#7b4fa3",
    "gunicorn": "#4c8c2b",
    "hypercorn": "#b03a5b",
}
_BAR, _GAP, _LEFT, _WIDTH = 15, 26, 280, 880


def median(samples: list[Sample]) -> float | None:
    """Return the median value, or None if the server lost answers in most rounds."""
    clean = [sample.value for sample in samples if usable(sample)]
    return statistics.median(clean) if len(clean) * 2 > len(samples) else None


def usable(sample: Sample) -> bool:
    """Return whether a sample may be compared: a server that drops requests is not fast."""
    return sample.errors == 0 and sample.value != float("inf")


def ratio(row: dict[str, list[Sample]], name: str, base: str) -> float | None:
    """Return the median, over the rounds, of a server's value divided by the base's."""
    pairs = zip(row.get(name, ()), row.get(base, ()), strict=False)
    ratios = [
        one.value / other.value
        for one, other in pairs
        if usable(one) and usable(other) and other.value
    ]
    return statistics.median(ratios) if ratios else None


def markdown(results: Results, base: str) -> str:
    """Return the table: for each case the median of each server and its ratio to the base."""
    names = [name for name in COLOURS if any(name in row for row in results.values())]
    if base not in names:
        base = next(name for name in names if name != "floor" or len(names) == 1)
    lines = ["| case | unit | " + " | ".join(names) + " |", "|---|---|" + "---:|" * len(names)]
    for case, row in results.items():
        cells = [_cell(row, name, base) for name in names]
        lines.append(f"| {CASES[case].title} | {CASES[case].unit} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, list[Sample]], name: str, base: str) -> str:
    if name not in row or not row[name]:
        return "–"
    value = median(row[name])
    if value is None:
        errors = int(statistics.median(sample.errors for sample in row[name]))
        return f"fails ({errors})"
    text = f"{value:.0f}" if value >= 100 else f"{value:.1f}"
    relative = ratio(row, name, base)
    if name == base or relative is None:
        return text
    return f"{text} (×{relative:.2f})"


def svg(results: Results) -> str:
    """Return bars for the cases under load: CPU time per answer, grouped by case."""
    groups = {
        case: {
            name: value
            for name in COLOURS
            if name in row and (value := median(row[name])) is not None
        }
        for case, row in results.items()
        if CASES[case].unit == "µs"
    }
    groups = {case: bars for case, bars in groups.items() if bars}
    parts = []
    y = 40
    for case, bars in groups.items():
        # One server that needs ten times as much would squeeze all others together.
        longest = min(max(bars.values()), 3 * statistics.median(bars.values()))
        parts.append(f'<text x="8" y="{y + 12}" class="case">{escape(CASES[case].title)}</text>')
        for name, value in bars.items():
            width = (_WIDTH - _LEFT - 175) * min(value / longest, 1.0)
            cut = " (bar cut)" if value > longest else ""
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR - 3}" rx="2" fill="{COLOURS[name]}"/>'
                f'<text x="{_LEFT + width + 6:.1f}" y="{y + 10}">{name} {value:.1f}{cut}</text>'
            )
            y += _BAR
        y += _GAP - _BAR
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" '
        'role="img" aria-label="CPU time per answer, by case and server">'
        "<style>text{font:12px system-ui,sans-serif;fill:#444}.case{font-weight:600}"
        "@media(prefers-color-scheme:dark){text{fill:#ccc}}</style>"
        '<text x="8" y="20" class="case">CPU time per answer in microseconds, less is better</text>'
        + "".join(parts)
        + "</svg>\n"
    )


def write_page(results: Results, versions: dict[str, str], base: str, directory: Path) -> None:
    """Write ``performance.md`` and ``performance.svg``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "performance.svg").write_text(svg(results), encoding="utf-8")
    (directory / "performance.md").write_text(_page(results, versions, base), encoding="utf-8")


def _page(results: Results, versions: dict[str, str], base: str) -> str:
    what = ", ".join(f"{name} {version}" for name, version in versions.items())
    rounds = max(len(samples) for row in results.values() for samples in row.values())
    return f"""# Performance

What one worker costs, beside other servers, on the same machine, in the same minutes. Made by `make bench`.

![CPU time per answer](performance.svg)

{markdown(results, base)}

How to read it:

* The unit `µs` is the CPU time, user and system, that all processes of a server spend on one answer. It says how
  many answers a core gives, and it repeats better than answers per second, which also measure the client.
* Each cell is a median over {rounds} rounds; in each round the servers take turns. The factor in brackets is the
  median of the ratios to `{base}` within the rounds.
* `floor` is not a server: uvloop answers each read with the same bytes. Nothing that runs in Python on uvloop can
  be below it.
* `fails` counts requests that were lost, cut or refused; a server that loses requests has no time. The reload is
  by SIGHUP, with 16 clients that keep their connection and 4 that open one per request; its time runs until old
  code has answered its last request.
* Every server has one worker on a core of its own, the client has the other core. Options are the defaults, but for
  a keep-alive time-out that is longer than the measurement and for the access log, which is on only where the row
  says so and is written to a file.
* {what}; {platform.system()}, {os.cpu_count()} cores.

To repeat it: `make bench`, or one part of it with
`python -m tests.benchmarks --cases plain,ws100 --servers asgictl,uvicorn --rounds 3`.
"""
