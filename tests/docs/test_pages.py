"""What can be checked of all pages without running them: links, options and verbs that exist."""

import re
from pathlib import Path

import pytest
from tests.docs.console import ROOT

from asgictl import reference
from asgictl.cli import VERBS
from asgictl.configuration import SETTINGS

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "deploy/*.md")
    for path in ROOT.glob(pattern)
    if "_build" not in path.parts
)
FLAGS = {
    flag
    for declaration in SETTINGS.values()
    for flag in (*reference.flags(declaration), declaration.flag)
} | {flag for verb in VERBS.values() for parameter in verb.params for flag in parameter.opts}
FLAGS |= {
    flag
    for verb in VERBS.values()
    for parameter in verb.params
    for flag in parameter.secondary_opts
}
FLAGS |= {"--help", "--version"}


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("name", names(PAGES))
def test_links_lead_to_files(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("name", names(PAGES))
def test_commands_have_verbs_and_options_that_exist(name: str) -> None:
    text = (ROOT / name).read_text().replace("\\\n", " ")
    commands = re.findall(
        r"^\$ (?:(?:sudo|.* --|[A-Z_]+=\S*) )*asgictl ([^|>#&;\n]*)", text, re.MULTILINE
    )
    commands += re.findall(r"`asgictl ([^`\n]*)`", text)
    for command in commands:
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", command):
            assert flag in FLAGS, f"{flag} in `asgictl {command}`"
        word = command.split(" ")[0]
        if re.fullmatch(r"[a-z]+(-[a-z]+)*", word):
            assert word in VERBS, f"`asgictl {command}`"


def test_every_verb_is_walked_through_in_the_tutorial() -> None:
    text = "".join(page.read_text() for page in PAGES if page.parent.name == "tutorial")
    walked = set(re.findall(r"^\$ asgictl ([a-z-]+)\b", text, re.MULTILINE))
    assert set(VERBS) - {"run"} <= walked


def test_every_fragment_of_changes_is_a_sentence_of_a_known_kind() -> None:
    for path in (ROOT / "docs" / "changes").glob("*.md"):
        assert re.fullmatch(r"[\w-]+\.(added|changed|fixed|removed)\.md", path.name), path.name
        text = path.read_text(encoding="utf-8").strip()
        assert text.endswith("."), path.name
        assert "\n" not in text, path.name


def test_every_page_is_reached_from_the_first_one() -> None:
    seen, left = set(), [ROOT / "docs" / "index.md"]
    while left:
        page = left.pop()
        if page in seen:
            continue
        seen.add(page)
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(), re.M | re.S):
            entries = [line for line in tree.split("\n") if line and not line.startswith(":")]
            for entry in entries:
                left += page.parent.glob(f"{entry}.md")
    pages = {path for path in PAGES if path.is_relative_to(ROOT / "docs")}
    assert {path for path in pages if path.parent.name != "changes"} == seen
