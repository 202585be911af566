"""How Sphinx builds these pages: `make docs`, with every warning as an error."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "supervisor"))

from asgictl import __version__  # noqa: E402

project = "asgictl"
author = "the asgictl maintainers"
release = version = __version__

extensions = ["myst_parser", "sphinx_copybutton", "sphinxcontrib.mermaid"]
# Fragments are collected into the page of changes; they are no pages of their own.
exclude_patterns = ["_build", "changes/*"]
nitpicky = True
# Options begin with two hyphens, in headings too.
smartquotes = False

# So that `page.md#heading` is checked too.
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
myst_enable_extensions = ["colon_fence", "deflist"]

# The button copies commands, without prompts and without what they print.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

html_theme = "furo"
html_title = "asgictl"
html_copy_source = False
html_show_copyright = False


def unreleased() -> str:
    """Return the changes since the last release, collected from docs/changes."""
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "next"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=True)
    _, _, changes = done.stdout.partition("\n### ")
    return f"## Not released yet\n\n### {changes}" if changes else ""


def collect_changes(app, docname, source):
    """Put the changes that no release has yet where the page of changes wants them."""
    if docname == "changes":
        source[0] = source[0].replace("<!-- unreleased -->", unreleased())


def setup(app):
    """Connect to Sphinx."""
    app.connect("source-read", collect_changes)
