"""The page of the ASGI interface says what the code does."""

import re

from tests.docs.console import ROOT

from asgictl_worker.asgi import SPEC_VERSION, VERSION
from asgictl_worker.http.request import Request
from asgictl_worker.http.response import TRANSITIONS, Phase
from asgictl_worker.lifespan import SPEC_VERSION as LIFESPAN_VERSION

PAGE = (ROOT / "docs" / "reference" / "asgi.md").read_text(encoding="utf-8")


def diagram() -> str:
    """Return the phases of a response as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.WAITING.name}"]
    for source, arrows in TRANSITIONS.items():
        labels: dict[Phase, list[str]] = {}
        for step, target in arrows.items():
            labels.setdefault(target, []).append(step.value.removeprefix("http.response."))
        for target, steps in labels.items():
            lines.append(f"    {source.name} --> {target.name}: {', '.join(steps)}")
    lines.append(f"    {Phase.COMPLETE.name} --> [*]")
    return "\n".join(lines)


def test_the_diagram_is_that_of_the_table() -> None:
    assert f"```mermaid\n{diagram()}\n```" in PAGE, diagram()


def test_every_key_of_a_scope_and_every_extension_stand_there() -> None:
    keys = set(re.findall(r"^\| `([a-z_.]+)` \|", PAGE, re.MULTILINE))
    request = Request("GET", b"/", "1.1", [(b"te", b"trailers"), (b"host", b"a")])
    found = set()
    for kind in ("http", "websocket"):
        scope = request.scope(kind, None, None, "http", state={})
        found |= {*scope, *scope["extensions"]}
    assert found | {"tls"} == keys


def test_the_versions_are_those_of_the_code() -> None:
    assert f"ASGI {VERSION}" in PAGE
    assert f"are those of version {SPEC_VERSION}" in PAGE
    assert f"protocol is version {LIFESPAN_VERSION}" in PAGE
