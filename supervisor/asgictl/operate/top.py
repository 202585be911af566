"""``asgictl top``: the service live in a terminal, and keys to move it.

What is shown is made of the status, as everything is that asks the supervisor; nothing here
knows how that comes about. Where there is no terminal, or no rich to draw with, it is the
text of ``asgictl status``, again and again.
"""

import contextlib
import io
import os
import re
import select
import sys
import termios
import textwrap
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asgictl.operate import show
from asgictl.operate.client import Connection, Failed, Gone, NotRunning, TimedOut
from asgictl.operate.usage import Meter, Usage
from asgictl_worker.errors import AsgictlError

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod, RenderableType

PATIENCE = 5.0
"""Seconds in which the supervisor must have answered."""

RETURN_WITHIN = 10.0
"""Seconds in which it must be back after it has hung up: an upgrade takes less."""

REMEMBERED = 240
"""Frames that the charts show at most."""

NEWS_LINES = 3
"""Lines that the reason of a refused reload may have; ``asgictl status`` prints all of it."""

WORD_LOOKS = 4
"""How many looks long it is shown what came of a key."""

_LONGEST_STATE = 22
_BARS = " ▁▂▃▄▅▆▇█"
_NOTHING = Usage()

KEYS = (
    ("↑ ↓", "choose a worker"),
    ("s", "its stack"),
    ("r", "restart it"),
    ("+ -", "scale"),
    ("R", "reload"),
    ("q", "quit"),
)


class NoRich(AsgictlError):
    """There is nothing to draw with."""

    def __init__(self) -> None:
        super().__init__(
            "`asgictl top` draws with rich, which is not installed; "
            "`pip install 'asgictl[top]'` does that, and `asgictl top | cat` needs none"
        )


class CannotDraw(AsgictlError):
    """The picture cannot be written."""

    def __init__(self, path: str, error: OSError) -> None:
        self.path = path
        super().__init__(f"cannot write the picture {path}: {error.strerror}")


class Frame:
    """What is shown at one moment, and by whom.

    Attributes:
        status: of the service.
        usage: of its processes, by id.
        history: requests per second, oldest first.
        chosen: the number of the worker that keys act on.
        word: what came of the last key, or what goes wrong.
    """

    def __init__(
        self,
        status: Mapping[str, Any],
        usage: Mapping[int, Usage],
        history: Sequence[float] = (),
        chosen: int | None = None,
        word: str = "",
    ) -> None:
        self.status, self.usage = status, usage
        self.history, self.chosen, self.word = history, chosen, word

    def draw(self, width: int = 120, height: int = 40) -> "RenderableType":
        """Return it as rich draws it."""
        from rich.console import Console, Group
        from rich.rule import Rule

        above = Group(self._head(), self._numbers(width), *self._news(width), "")
        below = Group(Rule(style="dim"), self._foot())
        # In a narrow terminal some of it takes several lines.
        console = Console(width=width, file=io.StringIO())
        taken = sum(len(console.render_lines(part)) for part in (above, below))
        # Of the table, two lines are its heading and how many workers there are more.
        return Group(above, self._workers(width, max(3, height - taken - 2)), below)

    def _head(self) -> "RenderableType":
        from rich.text import Text

        status = self.status
        words, style = _health(status)
        return Text.assemble(
            (status["application"], "bold"),
            "  ",
            (f" {words} ", f"{style} reverse"),
            (f"  {', '.join(status['addresses'])}  generation {status['generation']}", "dim"),
            (f", up {show.duration(status['uptime'])}, pid {status['pid']}", "dim"),
            (f", asgictl {status['version']}", "dim"),
            no_wrap=True,
            overflow="ellipsis",
        )

    def _numbers(self, width: int) -> "RenderableType":
        from rich.text import Text

        status = self.status
        own = self.usage.get(status["pid"], _NOTHING)
        facts = [
            ("workers", f"{status['ready']} of {status['desired']}"),
            ("requests/s", f"{status['requests_per_second']:,.0f}"),
            ("p50", latency(status["p50"])),
            ("p99", latency(status["p99"])),
            ("in progress", f"{status['in_flight']:,}"),
            ("connections", f"{status['connections']:,}"),
            ("busy", share(status["busy"])),
            ("since start: requests", f"{status['requests']:,}"),
            ("exceptions", f"{status['errors']:,}"),
            ("upgrades", f"{status['upgrades']:,}"),
            ("supervisor", f"{show.memory(own)}, {show.cpu(own)}"),
        ]
        text = Text()
        for number, (name, value) in enumerate(facts):
            text.append("\n" if number == 7 else "   " if number else "")
            text.append(f"{name} ", "dim").append(value, "bold")
        peak = f"  at most {max(self.history, default=0.0):,.0f} /s"
        text.append("\n").append(bars(self.history, width - len(peak)), "cyan")
        text.append(peak, "dim")
        return text

    def _news(self, width: int) -> "list[RenderableType]":
        from rich.text import Text

        status = self.status
        found: list[RenderableType] = []
        if status["reload"]:
            since = show.duration(status["reload"]["seconds"])
            found.append(Text(f"reload: {status['reload']['progress']} (for {since})", "cyan"))
        elif status["reload_requested"]:
            found.append(Text("reload: waiting for its turn", "cyan"))
        elif status["last_reload"]:
            good = status["last_reload"]["committed"]
            text = f"last reload: {show.last_reload(status['last_reload'])}"
            style = "green" if good else "yellow"
            found += [Text(line, style) for line in shortened(text, width, NEWS_LINES)]
        found += [Text(words, "yellow") for words in show.waiting(status)]
        return found

    def _workers(self, width: int, room: int) -> "RenderableType":
        from rich.table import Table
        from rich.text import Text

        rows = self.status["workers"]
        if not rows:
            return Text("no workers", "dim")
        begin = self._begin([row["worker"] for row in rows], room)
        shown = rows[begin : begin + room]
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        columns = fitting(self._cells(shown), width)
        for name, is_word, cells in columns:
            # If there is too little room all the same, the last column is cut.
            lengths = [len(name), *(len(text) for text, _ in cells)]
            widest = None if name == columns[-1][0] else max(lengths)
            side: JustifyMethod = "left" if is_word else "right"
            table.add_column(name, justify=side, no_wrap=True, min_width=widest)
        for number, row in enumerate(shown):
            line = (Text(*cells[number]) for _, _, cells in columns)
            table.add_row(*line, style="reverse" if row["worker"] == self.chosen else "")
        if (left := len(rows) - begin - room) > 0:
            table.add_row(Text(f"{left} more", "dim"))
        return table

    def _cells(self, rows: Sequence[Mapping[str, Any]]) -> "list[tuple[str, bool, list[Cell]]]":
        usage = [self.usage.get(row["pid"], _NOTHING) for row in rows]
        return [
            (name, is_word, [read(row, used) for row, used in zip(rows, usage, strict=True)])
            for name, is_word, read in _COLUMNS
        ]

    def _begin(self, numbers: list[int], room: int) -> int:
        """Return which worker stands in the first line, so that the chosen one is seen."""
        if self.chosen not in numbers or len(numbers) <= room:
            return 0
        return max(0, min(numbers.index(self.chosen) - room // 2, len(numbers) - room))

    def _foot(self) -> "RenderableType":
        from rich.text import Text

        if self.word:
            return Text(self.word, "yellow", no_wrap=True, overflow="ellipsis")
        text = Text(no_wrap=True, overflow="ellipsis")
        for key, what in KEYS:
            text.append(key, "bold").append(f" {what}   ", "dim")
        return text


def _health(status: Mapping[str, Any]) -> tuple[str, str]:
    if status["phase"] != "running":
        return status["phase"], "yellow"
    if not status["desired"]:
        return "paused", "yellow"
    if not status["ready"]:
        return "down", "red"
    blocked = any(row["loop_lag"] > show.BLOCKED for row in status["workers"])
    if status["ready"] < status["desired"] or blocked:
        return "degraded", "yellow"
    return "healthy", "green"


def _state(row: Mapping[str, Any], _usage: Usage) -> tuple[str, str]:
    words = show.state(row)
    if len(words) > _LONGEST_STATE:
        words = words[: _LONGEST_STATE - 1] + "…"
    if row["state"] == "ready":
        return words, "red" if row["loop_lag"] > show.BLOCKED else "green"
    return words, {"starting": "cyan", "soaking": "cyan", "draining": "dim"}.get(
        row["state"], "red"
    )


def _lag(row: Mapping[str, Any], _usage: Usage) -> tuple[str, str]:
    lag = row["loop_lag"]
    return latency(lag), "red" if lag > show.BLOCKED else "yellow" if lag > 0.1 else ""


def _busy(row: Mapping[str, Any], _usage: Usage) -> tuple[str, str]:
    return share(row["busy"]), "red" if (row["busy"] or 0.0) > 0.85 else ""


def _restarts(row: Mapping[str, Any], _usage: Usage) -> tuple[str, str]:
    last = row["last_restart"]
    return show.restarts(row), "yellow" if last and last["ago"] < 300.0 else ""


def _plain(key: str) -> "Callable[[Mapping[str, Any], Usage], Cell]":
    return lambda row, usage: (f"{row[key]:,.0f}", "")


Cell = tuple[str, str]
"""Text and style."""

_COLUMNS: Sequence[tuple[str, bool, Callable[[Mapping[str, Any], Usage], Cell]]] = (
    ("slot", False, lambda row, usage: (str(row["slot"]), "")),
    ("pid", False, lambda row, usage: (str(row["pid"] or "-"), "")),
    ("state", True, _state),
    ("gen", False, _plain("generation")),
    ("age", False, lambda row, usage: (show.duration(row["age"]), "")),
    ("conns", False, _plain("connections")),
    ("in prog", False, _plain("in_flight")),
    ("req/s", False, _plain("requests_per_second")),
    ("p50", False, lambda row, usage: (latency(row["p50"]), "")),
    ("p99", False, lambda row, usage: (latency(row["p99"]), "")),
    ("busy", False, _busy),
    ("lag", False, _lag),
    ("cpu", False, lambda row, usage: (show.cpu(usage), "")),
    ("memory", False, lambda row, usage: (show.memory(usage), "")),
    ("restarts", True, _restarts),
)
"""Name, whether it is a word, and how a cell is read."""

_DISPENSABLE = ("gen", "cpu", "conns", "age", "p50", "memory", "in prog", "busy", "restarts")
"""Columns that are left out where they do not fit, the first one first."""


def fitting(
    columns: Sequence[tuple[str, bool, Sequence[Cell]]], width: int
) -> list[tuple[str, bool, Sequence[Cell]]]:
    """Return the columns for which there is room; the last one may be cut."""

    def needed() -> int:
        widths = [max(len(name), *(len(text) for text, _ in cells)) for name, _, cells in left]
        if left[-1][0] == "restarts":
            widths[-1] = min(widths[-1], _SHORT)
        return sum(widths) + 2 * len(left)

    left = list(columns)
    for name in _DISPENSABLE:
        if needed() <= width:
            break
        left = [each for each in left if each[0] != name]
    return left


_SHORT = 16
"""Characters of the last column that are worth more than another column."""


def latency(seconds: float | None) -> str:
    """Return seconds in the unit in which people think of them."""
    if seconds is None:
        return "-"
    if seconds >= 1.0:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def share(value: float | None) -> str:
    """Return a share in per cent."""
    return "-" if value is None else f"{value:.0%}"


def shortened(text: str, width: int, count: int) -> list[str]:
    """Return a text in lines of that width, and of so many at most."""
    lines = textwrap.wrap(text, width)
    if len(lines) > count:
        lines[count - 1 :] = [lines[count - 1][: width - 1] + "…"]
    return lines


def bars(values: Sequence[float], width: int) -> str:
    """Return a chart one line high, the newest value at the right."""
    shown = list(values)[-max(1, width) :]
    peak = max(shown, default=0.0)
    text = "".join(
        _BARS[0 if value <= 0 else max(1, round(value / peak * (len(_BARS) - 1)))]
        for value in shown
    )
    return text.rjust(max(1, width))


# -- The view


class View:
    """Asks the supervisor, and does what keys say."""

    def __init__(self, connection: Connection, ours: bool) -> None:
        """Begin to look.

        Args:
            connection: to the supervisor; another one is made when it hangs up.
            ours: the processes are in this container, so that they can be measured.
        """
        self._connection = connection
        self._meter = Meter() if ours else None
        self._history: deque[float] = deque(maxlen=REMEMBERED)
        self._chosen: int | None = None
        self._word, self._word_left = "", 0
        self.stacks = ""
        """What is shown instead, until a key is pressed."""
        self.frame: Frame

    def look(self) -> Frame:
        """Return what is to be shown now.

        Raises:
            AsgictlError: the supervisor is gone.
        """
        found = self._ask("status")
        pids = [found["pid"], *(row["pid"] for row in found["workers"] if row["pid"])]
        usage = self._meter.look(pids) if self._meter else {}
        self._history.append(found["requests_per_second"])
        self._word_left -= 1
        if self._word_left < 0:
            self._word = ""
        self.frame = Frame(found, usage, self._history, self._chosen, self._word)
        return self.frame

    def press(self, key: str) -> bool:
        """Do what a key says; return whether to go on."""
        if self.stacks:
            self.stacks = ""
            return True
        self._word, self._word_left = "", WORD_LOOKS
        match key:
            case "q" | "Q" | "\x03" | "\x04":
                return False
            case "\x1b[A" | "k":
                self._choose(-1)
            case "\x1b[B" | "j":
                self._choose(+1)
            case "+" | "-":
                self._do(f"scaling by {key}1", "scale", to=f"{key}1", wait=False)
            case "R":
                self._do("reload requested", "reload", wait=False)
            case "r" | "s":
                self._act(key)
        self.frame.chosen, self.frame.word = self._chosen, self._word
        return True

    def _choose(self, step: int) -> None:
        numbers = [row["worker"] for row in self.frame.status["workers"]]
        if not numbers:
            self._chosen = None
        elif self._chosen not in numbers:
            self._chosen = numbers[0 if step > 0 else -1]
        else:
            place = numbers.index(self._chosen) + step
            self._chosen = numbers[max(0, min(place, len(numbers) - 1))]

    def _act(self, key: str) -> None:
        rows = [row for row in self.frame.status["workers"] if row["worker"] == self._chosen]
        if not rows:
            self._word = "choose a worker first, with the arrows"
            return
        name = f"pid={rows[0]['pid']}"
        if key == "r":
            word = f"slot {rows[0]['slot']}, {name} is to be replaced"
            self._do(word, "worker", worker=name, do="restart", wait=False)
            return
        answer = self._do("", "worker", worker=name, do="stack", wait=True)
        self.stacks = answer.get("stacks", "")

    def _do(self, done: str, verb: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer = self._ask(verb, **arguments)
        except (Failed, TimedOut) as error:
            self._word = str(error)
            return {}
        self._word = done
        return answer

    def _ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        try:
            return self._connection.ask(verb, PATIENCE, **arguments)
        except (Gone, BrokenPipeError):
            # It hangs up on who says nothing for a while, and for an upgrade.
            self._connection = _again(self._connection.path)
            return self._connection.ask(verb, PATIENCE, **arguments)
        except TimedOut:
            # The answer may come yet, and would be taken for the next one.
            self._connection = _again(self._connection.path)
            raise


def _again(path: str) -> Connection:
    deadline = time.monotonic() + RETURN_WITHIN
    while True:
        try:
            return Connection(path)
        except OSError as error:
            if time.monotonic() >= deadline or isinstance(error, FileNotFoundError):
                raise NotRunning("the supervisor has ended") from None
            time.sleep(0.1)


def run(
    connection: Connection,
    *,
    interval: float,
    count: int | None,
    svg: str | None,
    emit: Callable[[str], None],
) -> None:
    """Show the service until somebody has seen enough.

    Args:
        connection: to the supervisor.
        interval: seconds between two looks.
        count: how many looks, or None for no end.
        svg: draw the last look into this file, as a picture, instead of onto the terminal.
        emit: prints text where there is no terminal.

    Raises:
        AsgictlError: the supervisor is gone, or there is nothing to draw with.
    """
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty() and svg is None
    if on_terminal or svg:
        try:
            import rich  # noqa: F401
        except ImportError:
            raise NoRich from None
    view = View(connection, _is_ours(connection))
    if svg:
        _save(view, svg, interval, count or 2)
    elif on_terminal:
        with _keyboard() as keys:
            _show(view, keys, interval, count)
    else:
        _print(view, interval, count, emit)


def _is_ours(connection: Connection) -> bool:
    return connection.pid in (connection.ask("ping", PATIENCE)["pid"], 0)


def _print(view: View, interval: float, count: int | None, emit: Callable[[str], None]) -> None:
    number = 0
    while count is None or number < count:
        if number:
            time.sleep(interval)
            emit("")
        frame = view.look()
        emit(show.status(frame.status, frame.usage).rstrip())
        number += 1


def _show(view: View, keys: Callable[[float], str], interval: float, count: int | None) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        number = 0
        while count is None or number < count:
            view.look()
            number += 1
            until = time.monotonic() + interval
            while True:
                live.update(_picture(view, console), refresh=True)
                left = until - time.monotonic()
                if left <= 0:
                    break
                if (key := keys(left)) and not view.press(key):
                    return


def _picture(view: View, console: "Console") -> "RenderableType":
    from rich.panel import Panel
    from rich.text import Text

    if view.stacks:
        text = Text(view.stacks.rstrip())
        return Panel(text, title="any key goes back", height=console.height - 1)
    return view.frame.draw(console.width, console.height)


def _save(view: View, path: str, interval: float, count: int) -> None:
    from rich.console import Console

    for number in range(count):
        if number:
            time.sleep(interval)
        view.look()
    console = Console(record=True, width=130, file=io.StringIO(), force_terminal=True)
    console.print(view.frame.draw(130, 40))
    # Fonts would come from somebody else's server.
    picture = re.sub(
        r"@font-face \{.*?\}", "", console.export_svg(title="asgictl top"), flags=re.DOTALL
    )
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(picture)
    except OSError as error:
        raise CannotDraw(path, error) from None


def keys_in(text: str) -> list[str]:
    """Return the keys in what a terminal has sent; an arrow is several characters."""
    return [key.replace("\x1bO", "\x1b[") for key in _KEY.findall(text)]


_KEY = re.compile(r"\x1b[\[O][A-Z]|\x1b\[[0-9;]*[~A-Z]|.", re.DOTALL)


@contextlib.contextmanager
def _keyboard() -> Iterator[Callable[[float], str]]:
    """Read keys one by one, without showing them; what is read is a key, or nothing in time."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    pending: deque[str] = deque()

    def key(seconds: float) -> str:
        if not pending:
            try:
                ready, _, _ = select.select([descriptor], [], [], seconds)
            except InterruptedError:
                return ""
            if ready:
                # The end of the input is the end of the view.
                pending.extend(keys_in(os.read(descriptor, 64).decode("utf-8", "replace")) or "q")
        return pending.popleft() if pending else ""

    try:
        tty.setcbreak(descriptor)
        yield key
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
