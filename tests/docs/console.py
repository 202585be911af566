"""Runs the console blocks of a page, and compares what is printed with what stands there.

A block of ``console`` has commands after ``$`` and what they print. A comment before a block
says more about it:

* ``<!-- terminal: NAME -->``: the command runs in another terminal and goes on; what is shown has
  to appear there. A block without a command is what that terminal shows next; ``^C`` interrupts it.
* ``<!-- file: NAME -->``: the block is the content of a file, whatever its language.
* ``<!-- not run -->``: it cannot be run in a test.

In what is printed, numbers, units of time and the width of gaps may differ, and ``...`` stands for
anything. A command may fail only if the next one asks for its ``$?``. Ports 8000 and 9000 and the
directory of the pages are replaced by free ones. ``python -m tests.docs.console PAGES`` runs pages and shows
the first difference; with ``--write`` it puts what commands in the shell print into the pages.
"""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.kit import PATIENCE, clean_environment

ROOT = Path(__file__).parents[2]
HOME = "/home/me/shop"
PORTS = ("8000", "9000")
SHELL = "shell"
"""The terminal in which commands end before the next one is typed."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command and what it prints; or what a terminal shows next; or a file to be written."""

    start: int
    """Where what it prints begins in the page."""
    line: int
    terminal: str
    command: str
    printed: str


@dataclass(frozen=True, slots=True)
class File:
    """A file that the reader writes."""

    name: str
    text: str


class Differs(AssertionError):
    """A page says something that is not so; ``actual`` is what a command has printed."""

    def __init__(self, sentence: str, actual: str | None = None) -> None:
        super().__init__(sentence)
        self.actual = actual


def steps(page: str) -> Iterator[Step | File]:
    """Return what a page has its reader do, in order."""
    block = re.compile(
        r"(?:^<!-- *(?P<what>[^>\n]*?) *-->\n+)?^```(?P<kind>\w*)\n(?P<body>.*?)^```$",
        re.MULTILINE | re.DOTALL,
    )
    for found in block.finditer(page):
        what, _, name = (found["what"] or "").partition(": ")
        if what == "file":
            yield File(name, found["body"])
        elif found["kind"] == "console" and what != "not run":
            yield from _commands(page, *found.span("body"), name if what == "terminal" else SHELL)


def _commands(page: str, start: int, stop: int, terminal: str) -> Iterator[Step]:
    """Return the commands of a block; a line that ends with a backslash goes on."""
    line = page[:start].count("\n") + 1
    body = page[start:stop]
    prompts = list(re.finditer(r"^\$ ((?:.*\\\n)*.*)\n", body, re.MULTILINE))
    before = body[: prompts[0].start()] if prompts else body
    if before.strip():
        yield Step(start, line, terminal, "", before)
    ends = [prompt.start() for prompt in prompts[1:]] + [len(body)]
    for prompt, end in zip(prompts, ends, strict=False):
        number = line + body[: prompt.start()].count("\n")
        printed = body[prompt.end() : end]
        yield Step(start + prompt.end(), number, terminal, prompt[1], printed)


def pattern(printed: str) -> str:
    """Return an expression for what is printed, in which what may differ may differ."""
    lines = []
    for line in printed.splitlines():
        if line.strip() == "...":
            lines.append(r"(?:.*\n)*?")
            continue
        text = re.escape(line.rstrip()).replace("\\ ", " ").replace(re.escape("..."), ".*?")
        text = re.sub(r"[\d,]*\d(?:\\\.\d+)?", r"[\\d,]*\\d(?:\\.\\d+)?", text)
        number = r"\\d\(\?:\\\.\\d\+\)\?"  # the end of what stands for a number now
        text = re.sub(rf"({number}) (?:ms|s|min)\b", r"\1 (?:ms|s|min)", text)
        # One request, two requests.
        text = re.sub(rf"({number}) (\w\w+?)s?\b", r"\1 \2s?", text)
        text = re.sub(r" +", "[ ]+", text)
        lines.append(rf"[ ]*{text.removeprefix('[ ]+')}[ ]*\n")
    return "".join(lines)


class Terminal:
    """A window with one command that goes on."""

    def __init__(self, command: str, directory: Path, environment: Mapping[str, str]) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._read = 0
        self.process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Whoever runs the tests in the background has them ignore Ctrl-C, and so would this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def unread(self) -> str:
        """Return what it has shown since the last match."""
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size - self._read, self._read).decode()

    def shows(self, printed: str) -> bool:
        """Return whether what is expected has appeared, and go on behind it."""
        text = self.unread()
        found = re.search("^" + pattern(printed), text, re.MULTILINE)
        if found:
            self._read += len(text[: found.end()].encode())
        return found is not None

    def interrupt(self) -> None:
        """Press Ctrl-C, and wait until the command has ended."""
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(PATIENCE)

    def close(self) -> None:
        """End whatever still runs in it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._output.close()


class Shell:
    """The reader's own shell, in which one command ends before the next one is typed."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.code = 0

    def run(self, command: str) -> str:
        """Return what a command prints; ``code`` is how it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        mark = "end-of-command"
        self._process.stdin.write(
            f"{{ (exit {self.code}); {command}\n}} </dev/null\nprintf '\\n{mark} %d\\n' $?\n"
        )
        self._process.stdin.flush()
        printed = ""
        for line in self._process.stdout:
            if line.startswith(mark):
                self.code = int(line.split()[1])
                return printed.removesuffix("\n")
            printed += line
        raise Differs(f"the shell has ended at {command!r}:\n{printed}")

    def close(self) -> None:
        """End it, and whatever it has left in the background."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


class Reader:
    """Does what pages say, one after the other in the same directory."""

    def __init__(self, scratch: Path) -> None:
        self.directory = scratch / "shop"
        self.directory.mkdir()
        temporary = scratch / "tmp"
        temporary.mkdir()
        ports = (str(free_port()) for _ in PORTS)
        self._actual = {HOME: str(self.directory), **dict(zip(PORTS, ports, strict=True))}
        programs = str(Path(sys.executable).parent)
        self.environment = clean_environment(temporary) | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
        }
        self.shell = Shell(self.directory, self.environment)
        self.terminals: dict[str, Terminal] = {}
        self.unasked = 0

    def follow(self, page: Path, *, write: bool = False) -> int:
        """Do what a page says and return how many steps it has.

        Args:
            page: its file.
            write: put what is printed into the page where it is something else.

        Raises:
            Differs: something else was printed, or a command failed.
        """
        count, shift = 0, 0
        text = fresh = page.read_text(encoding="utf-8")
        for step in steps(text):
            count += 1
            if isinstance(step, File):
                path = self.directory / step.name
                path.write_text(self._here(step.text), encoding="utf-8")
                continue
            try:
                self._do(step, f"{page.name}, line {step.line}")
            except Differs as difference:
                if not write or step.terminal != SHELL or difference.actual is None:
                    raise
                actual = self._there(difference.actual)
                start = step.start + shift
                fresh = fresh[:start] + actual + fresh[start + len(step.printed) :]
                shift += len(actual) - len(step.printed)
                page.write_text(fresh, encoding="utf-8")
        self._assert_no_failure(page.name)
        return count

    def close(self) -> None:
        """End everything that was started."""
        for terminal in self.terminals.values():
            terminal.close()
        self.shell.close()

    def _do(self, step: Step, where: str) -> None:
        printed = self._here(step.printed)
        command = self._here(step.command)
        if step.terminal != SHELL:
            self._do_elsewhere(step.terminal, command, printed, where)
            return
        if "$?" not in command:
            self._assert_no_failure(where)
        actual = self.shell.run(command)
        self.unasked = self.shell.code
        # An exit code is a number that may not differ.
        same = actual == printed if "$?" in command else re.fullmatch(pattern(printed), actual)
        if printed and not same:
            raise Differs(f"{where}: `{command}` prints\n{actual}\nand not\n{printed}", actual)
        if not printed and self.shell.code:
            raise Differs(f"{where}: `{command}` fails ({self.shell.code}):\n{actual}")

    def _do_elsewhere(self, name: str, command: str, printed: str, where: str) -> None:
        if command:
            if name in self.terminals:
                self.terminals[name].close()
            self.terminals[name] = Terminal(command, self.directory, self.environment)
        terminal = self.terminals[name]
        for number, part in enumerate(printed.split("^C\n")):
            if number:
                terminal.interrupt()
            deadline = time.monotonic() + PATIENCE
            while not terminal.shows(part):
                if time.monotonic() > deadline:
                    shown = terminal.unread()
                    raise Differs(f"{where}: terminal {name} shows\n{shown}\nand not\n{part}")
                time.sleep(0.02)

    def _assert_no_failure(self, where: str) -> None:
        if self.unasked:
            raise Differs(f"before {where}: a command failed ({self.unasked})")

    def _there(self, text: str) -> str:
        for shown, actual in self._actual.items():
            text = text.replace(actual, shown)
        return text

    def _here(self, text: str) -> str:
        for shown, actual in self._actual.items():
            text = text.replace(shown, actual)
        return text


def free_port() -> int:
    """Return a port that nobody uses, outside the range from which clients get theirs."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        reader = Reader(Path(scratch))
        try:
            for name in sys.argv[1:]:
                if name.startswith("--"):
                    continue
                began = time.monotonic()
                count = reader.follow(Path(name), write="--write" in sys.argv)
                print(f"{name}: {count} steps, {time.monotonic() - began:.1f} s")  # noqa: T201
        except Differs as difference:
            sys.exit(str(difference))
        finally:
            reader.close()
