"""The page of the ASGI interface says what the code does."""

import re
from collections.abc import Iterable

import pytest
from tests.docs.console import ROOT

from asgictl_worker.asgi import SPEC_VERSION, VERSION
from asgictl_worker.http import response as http
from asgictl_worker.http.request import Request
from asgictl_worker.lifespan import SPEC_VERSION as LIFESPAN_VERSION
from asgictl_worker.websocket import cycle

PAGE = (ROOT / "docs" / "reference" / "asgi.md").read_text(encoding="utf-8")


def diagram(arrows: Iterable[tuple[str, str, str]], first: str, last: str) -> str:
    """Return a Mermaid state diagram of arrows: from where, by what, to where."""
    labels: dict[tuple[str, str], list[str]] = {}
    for source, label, target in arrows:
        labels.setdefault((source, target), []).append(label)
    lines = [
        f"    {source} --> {target}: {', '.join(by)}" for (source, target), by in labels.items()
    ]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {first}", *lines, f"    {last} --> [*]"])


def response() -> str:
    """Return the phases of a response."""
    arrows = (
        (source.name, step.value.removeprefix("http.response."), target.name)
        for source, steps in http.TRANSITIONS.items()
        for step, target in steps.items()
    )
    return diagram(arrows, "WAITING", "COMPLETE")


def websocket() -> str:
    """Return the states of a WebSocket."""
    arrows = (
        (source.name, message.removeprefix("websocket."), target.name)
        for source, messages in cycle.TRANSITIONS.items()
        for message, target in messages.items()
    )
    return diagram(arrows, "CONNECTING", "CLOSED")


@pytest.mark.parametrize("made", [response(), websocket()], ids=["response", "websocket"])
def test_the_diagrams_are_those_of_the_tables(made: str) -> None:
    assert f"```mermaid\n{made}\n```" in PAGE, made


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
