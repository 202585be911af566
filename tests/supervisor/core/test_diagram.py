"""The committed picture of a worker's life is drawn from the table.

``python -m tests.supervisor.core.test_diagram`` draws it anew.
"""

import re
from pathlib import Path

from asgictl.core.diagram import mermaid

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "states.md"
BLOCK = re.compile(r"(?<=```mermaid\n).*?(?=\n```)", re.DOTALL)


def test_the_page_shows_the_table_as_it_is() -> None:
    found = BLOCK.findall(PAGE.read_text())

    assert found == [mermaid()], "draw it anew: python -m tests.supervisor.core.test_diagram"


def test_every_arrow_of_the_table_is_a_line() -> None:
    lines = mermaid().splitlines()

    assert lines[0] == "stateDiagram-v2"
    assert "    [*] --> STARTING" in lines
    assert "    STARTING --> TERMINATING: failed, retire" in lines
    assert "    UNKILLABLE --> GONE: exit" in lines
    assert lines[-1] == "    GONE --> [*]"


if __name__ == "__main__":
    PAGE.write_text(BLOCK.sub(mermaid().replace("\\", r"\\"), PAGE.read_text()))
