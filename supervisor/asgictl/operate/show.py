"""What the supervisor says, as people read it: pure functions from JSON to text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from asgictl.operate.usage import Usage

BLOCKED = 1.0
"""Seconds of lag from which on a worker is shown as blocked."""

MANY_SLOTS = 3
"""Slots that wait and are still told one by one."""

_NOTHING = Usage()


def status(found: Mapping[str, Any], usage: Mapping[int, Usage]) -> str:
    """Return the whole status, for ``asgictl status``."""
    facts = [
        ("application", _application(found)),
        ("listening", ", ".join(found["addresses"])),
        *([("admin", found["admin"])] if found.get("admin") else []),
        ("workers", _fleet(found)),
        ("load", _load(found)),
        ("since start", _history(found)),
    ]
    if found["reload"]:
        since = duration(found["reload"]["seconds"])
        facts.append(("reload", f"{found['reload']['progress']} (for {since})"))
    elif found["reload_requested"]:
        facts.append(("reload", "waiting for its turn"))
    if found["last_reload"]:
        facts.append(("last reload", last_reload(found["last_reload"])))
    own = usage.get(found["pid"], _NOTHING)
    if own.rss is not None:
        share = "" if own.cpu is None else f"{cpu(own)} of a processor, "
        facts.append(("supervisor", f"{share}{memory(own)} of memory"))
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {text}" for name, text in facts]
    return "\n".join(lines) + "\n\n" + workers(found["workers"], usage)


def workers(rows: Iterable[Mapping[str, Any]], usage: Mapping[int, Usage]) -> str:
    """Return the table of workers."""
    cells: list[tuple[str, ...]] = [WORKER_COLUMNS]
    cells += [worker_cells(row, usage.get(row["pid"], _NOTHING)) for row in rows]
    if len(cells) == 1:
        return "no workers\n"
    return table(cells, left=WORKER_TEXTS)


WORKER_COLUMNS = (
    "SLOT",
    "PID",
    "STATE",
    "GEN",
    "AGE",
    "CONNS",
    "BUSY",
    "REQ/S",
    "REQUESTS",
    "LAG",
    "CPU",
    "MEMORY",
    "RESTARTS",
)
WORKER_TEXTS = frozenset({"STATE", "RESTARTS"})
"""Columns of words, which begin at the left."""


def worker_cells(row: Mapping[str, Any], usage: Usage) -> tuple[str, ...]:
    """Return a worker's row of the table."""
    return (
        str(row["slot"]),
        str(row["pid"] or "-"),
        state(row),
        str(row["generation"]),
        duration(row["age"]),
        str(row["connections"]),
        str(row["in_flight"]),
        f"{row['requests_per_second']:,.0f}",
        f"{row['requests']:,}",
        f"{row['loop_lag'] * 1000:.1f} ms",
        cpu(usage),
        memory(usage),
        restarts(row),
    )


def state(row: Mapping[str, Any]) -> str:
    """Return what a worker does, with its stage or the beginning of its reason."""
    words = str(row["state"])
    if words == "ready" and row["loop_lag"] > BLOCKED:
        return "ready, blocked"
    if row["stage"]:
        words += f" ({row['stage']})"
    elif row["why"]:
        words += f" ({row['why'].partition(':')[0]})"
    return words


def restarts(row: Mapping[str, Any]) -> str:
    """Return how often the worker of a slot has ended unplanned, and why the last time."""
    last = row["last_restart"]
    return str(row["restarts"]) + (
        f" ({last['cause']}, {duration(last['ago'])} ago)" if last else ""
    )


def listeners(found: Iterable[Mapping[str, Any]], overflows: int | None) -> str:
    """Return the table of listeners and their queues."""
    cells = [("ADDRESS", "WAITING", "LIMIT", "DROPPED")]
    cells += [
        (item["address"], _known(item["waiting"]), _known(item["limit"]), _known(item["dropped"]))
        for item in found
    ]
    text = table(cells, left={"ADDRESS"})
    if overflows is not None:
        text += f"\nqueue overflows of all sockets of this machine or container: {overflows:,}\n"
    return text


def record(found: Mapping[str, Any], clock: str) -> str:
    """Return an event of the flight recorder and what was done about it."""
    return "\n".join(
        [f"{clock}  {found['event']}", *(f"    -> {text}" for text in found["actions"])]
    )


def table(rows: Sequence[Sequence[str]], left: Iterable[str] = ()) -> str:
    """Return rows in columns, the first row being the headings; numbers end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    words = [name in left for name in rows[0]]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if is_word else cell.rjust(width)
            for cell, width, is_word in zip(row, widths, words, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for size, unit, smaller, smaller_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= size:
            rest = int(seconds % size) // smaller
            return f"{int(seconds // size)} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    raise AssertionError("no duration is left over")


def size(count: int | None) -> str:
    """Return a number of bytes in mebibytes."""
    return "-" if count is None else f"{count / 1024**2:.1f}M"


def _application(found: Mapping[str, Any]) -> str:
    return (
        f"{found['application']}, {found['phase']} for {duration(found['uptime'])} "
        f"(generation {found['generation']}, pid {found['pid']}, asgictl {found['version']})"
    )


def _fleet(found: Mapping[str, Any]) -> str:
    text = f"{found['ready']} of {found['desired']} ready"
    if not found["desired"]:
        text += "; paused: connections wait in the kernel until you scale up"
    return "; ".join([text, *waiting(found)])


def waiting(found: Mapping[str, Any]) -> list[str]:
    """Return which slots wait after what failures: one by one, or how many if there are many."""
    slots = found["waiting"]
    # An older supervisor does not say why.
    causes = {slot: past["cause"] for slot, past in found.get("slots", {}).items() if slot in slots}
    if len(slots) > MANY_SLOTS:
        why = f" ({', '.join(sorted(set(causes.values())))})" if causes else ""
        soonest = duration(max(0.0, min(slots.values())))
        return [
            f"{len(slots)} slots wait after failures{why}, the next is tried again in {soonest}"
        ]
    return [
        f"slot {slot} is tried again in {duration(max(0.0, seconds))}"
        + (f" ({causes[slot]})" if slot in causes else "")
        for slot, seconds in slots.items()
    ]


def _load(found: Mapping[str, Any]) -> str:
    return (
        f"{_count(found['connections'], 'connection')}, "
        f"{_count(found['in_flight'], 'request')} in progress, "
        f"{found['requests_per_second']:,.0f} requests/s"
    )


def _history(found: Mapping[str, Any]) -> str:
    text = f"{_count(found['requests'], 'request')}, {_count(found['errors'], 'error')}"
    text += f", {_count(found['reloads_committed'], 'reload')}"
    if found["reloads_refused"]:
        text += f" ({found['reloads_refused']} refused)"
    if found["upgrades"]:
        text += f", {_count(found['upgrades'], 'upgrade')}"
    if found["exits"]:
        text += "; workers ended: " + ", ".join(
            f"{count} {cause}" for cause, count in sorted(found["exits"].items())
        )
    return text


def last_reload(last: Mapping[str, Any]) -> str:
    """Return how a reload has ended."""
    ago = f"{duration(last['ago'])} ago"
    if last["committed"]:
        return f"generation {last['generation']} committed, {ago}"
    return f"generation {last['generation']} refused, {ago}: {last['reason']}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def cpu(usage: Usage) -> str:
    """Return how much of a processor is used."""
    return "-" if usage.cpu is None else f"{usage.cpu:.0%}"


def memory(usage: Usage) -> str:
    """Return how much memory is used, what is shared being divided if that is known."""
    return size(usage.rss if usage.pss is None else usage.pss)


def _known(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
