"""The page of faults names tests that exist, for every fault from F1 to F62."""

import re
from pathlib import Path

ROOT = Path(__file__).parent
PAGE = (ROOT.parent / "docs" / "reference" / "faults.md").read_text()


def _tests() -> set[str]:
    names = {path.name for path in ROOT.rglob("test_*.py")}
    for path in ROOT.rglob("test_*.py"):
        names.update(re.findall(r"def (test_\w+)\(", path.read_text()))
    return names


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+(?:\.py)?)`", PAGE))
    assert len(named) > 60
    assert not named - _tests()


def test_every_fault_has_one_row() -> None:
    rows = [int(number) for number in re.findall(r"^\| F(\d+) \|", PAGE, re.MULTILINE)]
    assert sorted(rows) == list(range(1, 63))
