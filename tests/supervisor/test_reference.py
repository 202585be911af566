"""Pages and files that are made from the declarations."""

import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.supervisor.core.fleet import serving

from asgictl import reference
from asgictl.cli import VERBS
from asgictl.configuration import SETTINGS, from_file
from asgictl.operate import desk, metrics, status
from asgictl.operate.totals import Totals
from asgictl.settings import Settings
from asgictl_worker.errors import ExitCode

ROOT = pathlib.Path(__file__).parents[2]


def test_the_page_of_options_is_up_to_date():
    committed = (ROOT / reference.PAGE).read_text(encoding="utf-8")
    assert committed == reference.page(), "run `python -m asgictl.reference`"


def test_every_setting_stands_on_the_page_with_its_spellings():
    page = reference.page()
    for declaration in SETTINGS.values():
        assert f"\n### `{declaration.name}`\n" in page
        for spelling in (*reference.flags(declaration), *reference.variables(declaration)):
            assert f"`{spelling}`" in page
        assert declaration.facts.sentence in page


def test_every_exit_code_stands_on_its_page():
    page = (ROOT / "docs/reference/exit-codes.md").read_text(encoding="utf-8")
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert {int(code) for code in ExitCode} <= rows


def test_every_verb_and_its_options_stand_on_their_page():
    page = (ROOT / "docs/reference/verbs.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| .*?`([a-z-]+)", page, re.MULTILINE))
    assert set(VERBS) <= rows
    protocol = (ROOT / "docs/reference/control-protocol.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `([a-z-]+)` \| (.*?) \| .*\|$", protocol, re.MULTILINE))
    for name, verb in desk.VERBS.items():
        assert all(f"`{argument}`" in table[name] for argument in verb.takes), name


def test_the_page_of_metrics_is_up_to_date():
    written = (ROOT / metrics.PAGE).read_text(encoding="utf-8")
    assert written == metrics.page(), "run python -m asgictl.reference"


def test_every_key_of_the_status_stands_on_its_page():
    page = (ROOT / "docs/reference/control-protocol.md").read_text(encoding="utf-8")
    found = status.status(serving(workers=1), Totals(started=0.0), 1.0)
    for key in (*found, *found["workers"][0]):
        assert f"`{key}`" in page, key


def test_the_sample_file_changes_nothing_until_a_line_is_uncommented(tmp_path):
    path = tmp_path / "asgictl.toml"
    path.write_text(reference.sample())
    assert from_file(str(path)) == {}


def test_each_line_of_the_sample_file_is_a_setting_with_its_default():
    lines = re.findall(r"^# ([a-z_]+ = .*)$", reference.sample(), re.MULTILINE)
    found = tomllib.loads("\n".join(lines))
    assert set(found) == set(SETTINGS)
    for name, declaration in SETTINGS.items():
        if declaration.default not in (None, ()):
            assert found[name] == declaration.default


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("timeout", 30.0, "30 seconds"),
        ("timeout", 0.25, "0.25 seconds"),
        ("min_ready", 1.0, "1 second"),
        ("ws_max_size", 16 * 1024 * 1024, "16M"),
        ("ws_max_size", 64 * 1024, "64K"),
        ("ws_max_size", 8190, "8190 bytes"),
        ("ws_max_size", 0, "0 bytes"),
        ("port", 8000, "8000"),
        ("access_log", True, "on"),
        ("factory", False, "off"),
        ("uds", None, "none"),
        ("bind", (), "none"),
        ("bind", ("a:1", "b:2"), "a:1, b:2"),
        ("root_path", "", "empty"),
        ("loop", "auto", "auto"),
    ],
)
def test_a_value_in_words(name, value, words):
    assert reference.in_words(SETTINGS[name], value) == words


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(
    texts
    | st.lists(texts).map(tuple)
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
)
def test_a_value_in_toml_is_read_back_the_same(value):
    found = tomllib.loads(f"x = {reference.in_toml(value)}")["x"]
    assert found == (list(value) if isinstance(value, tuple) else value)


def test_headings_list_every_setting_once():
    names = [one.name for members in reference.by_group().values() for one in members]
    assert sorted(names) == sorted(SETTINGS)
    assert len(names) == len(reference.declarations(Settings))


@pytest.mark.parametrize("page", ["configure", "move-from-uvicorn-or-gunicorn"])
def test_the_examples_of_the_pages_work(page, tmp_path):
    text = (ROOT / f"docs/how-to/{page}.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        path = tmp_path / "asgictl.toml"
        path.write_text(block)
        assert from_file(str(path))
    (tmp_path / ".env").write_text("ASGICTL_WORKERS=3\n")
    for line in re.findall(r"^\$ asgictl (?:config )?([^>\n]*)", text, re.MULTILINE):
        found = subprocess.run(
            [sys.executable, "-m", "asgictl", "config", *shlex.split(line)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (found.returncode, found.stderr) == (0, ""), line
