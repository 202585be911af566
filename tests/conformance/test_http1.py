"""HTTP/1.1 and ASGI over it, as a client on the network sees them: our own cases."""

import asyncio
import re

import pytest
from tests.conformance import page
from tests.conformance.http1 import client, servers, table
from tests.conformance.http1.case import (
    DROPPED,
    Answer,
    Case,
    Level,
    Observed,
    Outcome,
    Response,
    Then,
    answered,
    must,
    refused,
)
from tests.conformance.http1.cases import CASES
from tests.kit import PATIENCE

PATIENT = ("--timeout-keep-alive", "60", "--timeout-request-header", "60")
"""A busy machine may keep clients from sending what they have."""


@pytest.fixture(scope="module", params=servers.OWN, ids=lambda peer: peer.name)
def observed(request: pytest.FixtureRequest) -> dict[str, Observed]:
    """What asgictl did in each case, with one of its parsers."""
    peer: servers.Peer = request.param
    with servers.serving(peer, servers.find(peer.program, None), *PATIENT) as port:
        return asyncio.run(client.run(port, CASES, patience=PATIENCE))


@pytest.mark.system
@pytest.mark.timeout(150)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_asgictl_does_what_a_case_asks_for(case: Case, observed: dict[str, Observed]) -> None:
    assert client.objections(case, observed[case.name]) == []
    assert client.objections(case, observed[case.name], own=True) == []


def test_there_are_many_cases_each_with_a_name_an_area_and_a_source() -> None:
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.area for case in CASES} == set(table.AREAS)
    source = re.compile(r"(RFC \d+, section \d|ASGI, [A-Z])")
    assert [case.name for case in CASES if not source.match(case.source)] == []


# -- The client tells right from wrong


async def converse(replies: list[bytes], case: Case, *, reset: bool = False) -> Observed:
    """Run a case against a server that says what it is told, a reply for each packet."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            if not await reader.read(65536):
                break
            writer.write(reply)
        if not reset:
            await writer.drain()
            writer.write_eof()
            await reader.read()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return (await client.run(port, [case], patience=PATIENCE))[case.name]


def a_case(*outcomes: Outcome) -> Case:
    return must("a.case", "RFC 9112, section 1", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", *outcomes)


PROBED = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nprobe"

REPLIES = {
    "a length": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab", "kept"),
    "chunks": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        "kept",
    ),
    "an interim response": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nab",
        "kept",
    ),
}


@pytest.mark.parametrize("name", REPLIES)
async def test_a_good_answer_is_read(name: str) -> None:
    reply, end = REPLIES[name]
    observed = await converse([reply, PROBED], a_case(answered()))
    assert observed.end == end
    assert observed.answers[0].body == b"ab"
    assert not client.objections(a_case(answered(body=b"ab")), observed)


FLAWED = {
    "no status line": b"hello\r\n\r\n",
    "a bad header": b"HTTP/1.1 200 OK\r\nx y: 1\r\n\r\n",
    "a bare line feed": b"HTTP/1.1 200 OK\r\nx: a\nb\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nab",
    "both framings": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
    "a length of letters": b"HTTP/1.1 200 OK\r\ncontent-length: ab\r\n\r\nab",
    "a bad chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\ncontent-le",
}


@pytest.mark.parametrize("name", FLAWED)
async def test_what_is_not_http_is_called_malformed(name: str) -> None:
    observed = await converse([FLAWED[name]], a_case(answered()))
    assert observed.end.startswith("malformed")
    assert client.objections(a_case(answered(), DROPPED), observed)


async def test_a_body_without_end_is_noticed() -> None:
    observed = await converse(
        [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab"], a_case(answered())
    )
    assert observed == Observed(
        (Response(200, (("content-length", "9"),), b"ab", flaw="the body has no end"),), "closed"
    )
    assert client.objections(a_case(answered(then=Then.CLOSED)), observed)
    cut = Outcome((Answer(status=(200,), cut=True),), Then.CLOSED)
    assert not client.objections(a_case(cut), observed)


async def test_a_reset_does_not_end_a_body_that_ends_with_the_connection() -> None:
    observed = await converse([b"HTTP/1.1 200 OK\r\n\r\nab"], a_case(answered()))
    assert (observed.answers[0].flaw, observed.end) == ("", "closed")


async def test_an_answer_too_many_is_noticed() -> None:
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    observed = await converse([reply + reply, PROBED], a_case(answered()))
    assert observed.end.startswith("one more answer")
    assert client.objections(a_case(answered(then=Then.EITHER)), observed)


async def test_a_connection_that_was_said_to_be_closed_has_to_be() -> None:
    reply = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    observed = await converse([reply, PROBED], a_case(answered()))
    assert client.objections(a_case(answered(then=Then.EITHER)), observed)


async def test_an_end_without_an_answer_is_no_answer() -> None:
    observed = await converse([b""], a_case(answered()))
    assert observed == Observed((), "closed")
    assert client.objections(a_case(refused(), answered()), observed)
    assert not client.objections(a_case(refused(), DROPPED), observed)


async def test_a_server_that_is_not_there_is_no_reason_to_stop() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    observed = await client.run(port, [a_case(answered())], patience=PATIENCE)
    assert observed["a.case"] == Observed((), client.UNREACHABLE)


# -- The table


def test_the_table_counts_by_area_and_by_level_and_names_what_failed() -> None:
    cases = [case for case in CASES if case.area in ("scope", "close")]
    score = table.Score("a server", "1.0")
    for case in cases:
        score.add(case, case.name != "close.half-closed")
    scopes = sum(case.area == "scope" for case in cases)
    text = table.render([score], cases)
    assert f"| ASGI scope | {scopes} / {scopes} |" in text
    assert f"| **all** | {len(cases) - 1} / {len(cases)} |" in text
    assert text.endswith("* a server fails, SHOULD: `close.half-closed`.")
    assert score.cell(Level.MUST.value) in score.summary()


def test_a_section_of_the_page_is_replaced_and_the_others_stay(tmp_path) -> None:
    file = tmp_path / "page.md"
    file.write_text(
        "# T\n<!-- a: generated -->\nold\n<!-- /a -->\n<!-- b: generated -->\nb\n<!-- /b -->\n"
    )
    page.write("a", "new", file)
    page.write("a", "newer", file)
    assert file.read_text() == (
        "# T\n<!-- a: generated -->\n\nnewer\n\n<!-- /a -->\n<!-- b: generated -->\nb\n<!-- /b -->\n"
    )
    with pytest.raises(ValueError, match="no markers for the section c"):
        page.write("c", "", file)
