"""The reference page on conformance: each command writes its own section, between markers."""

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "conformance.md"


def write(section: str, text: str, page: Path = PAGE) -> None:
    """Replace what stands between the markers of a section.

    Raises:
        ValueError: the page has no such markers.
    """
    begin, end = f"<!-- {section}: generated -->\n", f"<!-- /{section} -->\n"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{page} has no markers for the section {section}")
    page.write_text(f"{before}{begin}\n{text}\n\n{end}{after}", encoding="utf-8")
