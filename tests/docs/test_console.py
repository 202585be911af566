"""The pages whose commands are run, and the runner itself."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.console import ROOT, Differs, File, Reader, Step, pattern, steps

TUTORIAL = sorted((ROOT / "docs" / "tutorial").glob("[0-9]*.md"))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.close()


@pytest.mark.system
@pytest.mark.timeout(360)
def test_the_tutorial_is_true(reader: Reader) -> None:
    assert sum(map(reader.follow, TUTORIAL)) > 25


@pytest.mark.system
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["stuck-worker"])
def test_how_tos_with_an_example_are_true(reader: Reader, name: str) -> None:
    assert reader.follow(ROOT / "docs" / "how-to" / f"{name}.md") > 3


# -- The runner


def page(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "page.md"
    path.write_text(text)
    return path


def test_blocks_are_files_commands_and_what_they_print() -> None:
    text = (
        "<!-- file: a.py -->\n```python\nx = 1\n```\n"
        "<!-- not run -->\n```console\n$ rm -rf /\n```\n"
        "```console\n$ echo \\\n  a\na\n$ true\n```\n"
        "<!-- terminal: other -->\n```console\nmore\n```\n```sh\nfalse\n```\n"
    )
    found = list(steps(text))
    assert found[0] == File("a.py", "x = 1\n")
    shown = [step for step in found if isinstance(step, Step)]
    assert [(step.line, step.terminal, step.command, step.printed) for step in shown] == [
        (10, "shell", "echo \\\n  a", "a\n"),
        (13, "shell", "true", ""),
        (17, "other", "", "more\n"),
    ]
    assert [text[step.start :].startswith(step.printed) for step in shown] == [True] * 3


@pytest.mark.parametrize(
    ("printed", "actual"),
    [
        ("took 12 s\n", "took 3.4 ms\n"),
        ("1 request, 2,000 bytes\n", "3 requests, 1 byte\n"),
        ("A   B\n", "A     B  \n"),
        ("one\n...\nlast\n", "one\ntwo\nthree\nlast\n"),
        ("...\nlast\n", "last\n"),
        ("20:15:01 ... done (.*)\n", "20:15:02 anything done (.*)\n"),
    ],
)
def test_numbers_gaps_and_ellipses_may_differ(printed: str, actual: str) -> None:
    assert re.fullmatch(pattern(printed), actual)


@pytest.mark.parametrize(
    ("printed", "actual"),
    [("ready\n", "steady\n"), ("a\nb\n", "a\n"), ("a\n", "a\nb\n"), ("none\n", "1\n")],
)
def test_words_and_lines_may_not_differ(printed: str, actual: str) -> None:
    assert not re.fullmatch(pattern(printed), actual)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```console\n$ echo a\nb\n```\n", r"line 2: `echo a` prints\na\n\nand not\nb"),
        ("```console\n$ false\n```\n", r"`false` fails \(1\)"),
        ("```console\n$ echo a; false\na\n$ true\n```\n", r"a command failed \(1\)"),
        ("```console\n$ echo a; false\na\n```\n", r"a command failed \(1\)"),
        ("```console\n$ (exit 3)\n...\n$ echo $?\n4\n```\n", r"prints\n3\n"),
    ],
)
def test_what_is_not_so_is_found(reader: Reader, tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(Differs, match=why):
        reader.follow(page(tmp_path, text))


def test_a_shell_keeps_its_directory_and_terminals_go_on(reader: Reader, tmp_path: Path) -> None:
    text = (
        "```console\n$ mkdir x\n$ cd x; pwd\n/home/me/shop/x\n$ (exit 3)\n...\n$ echo $?\n3\n```\n"
        "<!-- terminal: b -->\n```console\n$ trap 'echo bye; exit' INT; echo a; while sleep 0.1; do :; done\na\n^C\nbye\n```\n"
    )
    assert reader.follow(page(tmp_path, text)) == 5


def test_what_is_printed_is_written_into_the_page(reader: Reader, tmp_path: Path) -> None:
    path = page(tmp_path, "```console\n$ echo a\n?\n$ pwd\n?\n```\nEnd.\n")
    reader.follow(path, write=True)
    assert path.read_text() == "```console\n$ echo a\na\n$ pwd\n/home/me/shop\n```\nEnd.\n"
