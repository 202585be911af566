"""The extensions of ASGI: early hints, trailers, and files that the application has opened."""

import asyncio
import os

import pytest
from tests.worker.http.wire import DATE, GET, HELLO, Peer, hello, response
from tests.worker.waiting import until

from asgictl_worker.http.http1 import LARGE
from asgictl_worker.http.response import ClientDisconnected, Phase, UnexpectedMessage

START = {"type": "http.response.start", "status": 200}
BODY = {"type": "http.response.body", "body": b"hello"}
PART = {**BODY, "more_body": True}
TE = GET.replace(b"\r\n\r\n", b"\r\nTE: deflate, Trailers\r\n\r\n")
OLD = GET.replace(b"1.1", b"1.0")
HEAD = b"HTTP/1.1 200 OK\r\n" + DATE + b"server: asgictl\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


async def answers(*messages, data=GET, **options):
    """Let the application send these, and return the peer."""

    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    peer = Peer(app, **options)
    peer.send(data)
    await peer.idle()
    return peer


@pytest.mark.parametrize(
    ("data", "extensions"),
    [
        (GET, {"pathsend", "zerocopysend", "early_hint"}),
        (TE, {"pathsend", "zerocopysend", "early_hint", "trailers"}),
        (TE.replace(b"Trailers", b"x"), {"pathsend", "zerocopysend", "early_hint"}),
        (OLD, {"pathsend", "zerocopysend"}),
        (TE.replace(b"1.1", b"1.0"), {"pathsend", "zerocopysend"}),
    ],
)
async def test_what_works_is_announced_and_nothing_else(data, extensions, parser):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await hello(scope, receive, send)

    peer = Peer(app, http=parser)
    # Twice, since a repeated request is known again.
    peer.send(data)
    await peer.idle()
    if b"1.0" not in data:
        peer.send(data)
        await peer.idle()
    for scope in scopes:
        assert set(scope["extensions"]) == {f"http.response.{name}" for name in extensions}


# -- Early hints


def hint(*links):
    return {"type": "http.response.early_hint", "links": links}


HINT = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nlink: </b>\r\n\r\n"


@pytest.mark.parametrize("before", [[], [START]])
async def test_hints_come_before_the_response(before, parser):
    rest = [START, BODY][len(before) :]
    peer = await answers(*before, hint(b"</a.css>; rel=preload", b"</b>"), *rest, http=parser)
    assert peer.written == HINT + response(b"hello")
    assert peer.log.lines == ["10.0.0.7:52100 GET / 1.1 200 5"]


async def test_hints_may_be_many():
    peer = await answers(hint(b"<a>"), hint(b"<b>"), START, BODY)
    assert peer.written.count(b"HTTP/1.1 103 Early Hints\r\n") == 2


async def test_hints_that_come_too_late_are_not_sent():
    peer = await answers(START, PART, hint(b"</a>"), BODY)
    assert peer.written == CHUNKED + b"5\r\nhello\r\n5\r\nhello\r\n0\r\n\r\n"


async def test_an_http_1_0_client_would_take_a_hint_for_the_response():
    peer = await answers(hint(b"</a>"), START, BODY, data=OLD)
    assert peer.written.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("link", [b"a\r\nx: y", b"a\0", "text"])
async def test_a_hint_that_cannot_be_sent_is_refused(link, caplog):
    peer = await answers(hint(link), START, BODY)
    assert peer.written.startswith(b"HTTP/1.1 500 ")
    assert "the application sent the header" in caplog.text


# -- Trailers


WITH_TRAILERS = {**START, "trailers": True}


def trailers(*headers, more=False):
    return {"type": "http.response.trailers", "headers": headers, "more_trailers": more}


@pytest.mark.parametrize(
    ("parts", "chunks"),
    [
        ([BODY], b"5\r\nhello\r\n"),
        ([PART, BODY], b"5\r\nhello\r\n" * 2),
        ([{**BODY, "body": b""}], b""),
    ],
)
async def test_trailers_come_behind_the_chunks(parts, chunks, parser):
    peer = await answers(
        WITH_TRAILERS,
        *parts,
        trailers((b"x-sum", b"1"), more=True),
        trailers((b"Server-Timing", b"a;dur=1")),
        data=TE * 2,
        http=parser,
    )
    one = CHUNKED + chunks + b"0\r\nx-sum: 1\r\nServer-Timing: a;dur=1\r\n\r\n"
    await peer.written_is(one * 2)


async def test_trailers_are_dropped_if_the_client_did_not_ask_for_them():
    peer = await answers(WITH_TRAILERS, BODY, trailers((b"x-sum", b"1")))
    assert peer.written == CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_trailers_are_dropped_where_the_body_has_a_length(method):
    start = {**WITH_TRAILERS, "headers": [(b"content-length", b"5")]}
    data = TE.replace(b"GET", method)
    peer = await answers(start, BODY, trailers((b"x-sum", b"1")), data=data)
    expected = response(b"hello")
    assert peer.written == (expected.removesuffix(b"hello") if method == b"HEAD" else expected)


async def test_trailers_do_not_hide_that_a_body_is_too_short(caplog):
    start = {**WITH_TRAILERS, "headers": [(b"content-length", b"6")]}
    peer = await answers(start, BODY, trailers((b"x-sum", b"1")), data=TE)
    assert peer.transport.closed
    assert "promised Content-Length: 6 but sent 5" in caplog.text


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ((b"Content-Length", b"3"), "it may only stand in the headers"),
        ((b"transfer-encoding", b"chunked"), "it may only stand in the headers"),
        ((b"Set-Cookie", b"a=b"), "it may only stand in the headers"),
        ((b"x", b"a\r\nb"), "the value has a line end"),
        ((b"x y", b"a"), "the name has a character"),
        ((b"x", "text"), "name and value must be bytes"),
        ((b"x",), "it must be (name, value)"),
    ],
)
async def test_trailers_that_cannot_be_sent_cut_the_response(header, sentence, caplog):
    peer = await answers(WITH_TRAILERS, BODY, trailers(header), data=TE)
    assert peer.written == CHUNKED + b"5\r\nhello\r\n"
    assert peer.transport.closed
    assert sentence in caplog.text


async def test_a_response_whose_promised_trailers_never_come_is_cut(caplog):
    peer = await answers(WITH_TRAILERS, BODY, data=TE)
    assert peer.transport.closed
    assert not peer.written.endswith(b"0\r\n\r\n")
    assert "without the http.response.trailers that it promised" in caplog.text


# -- Files that the application has opened


def sends(file, **keys):
    return {"type": "http.response.zerocopysend", "file": file, **keys}


@pytest.fixture(params=[1000, 3 * LARGE], ids=["small", "large"])
def content(request):
    return bytes(index % 251 for index in range(request.param))


@pytest.fixture
def file(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb", buffering=0) as opened:
        yield opened


async def test_an_open_file_can_be_the_body(file, content, parser):
    peer = await answers(START, sends(file), http=parser)
    assert peer.written == response(content)
    assert peer.log.lines == [f"10.0.0.7:52100 GET / 1.1 200 {len(content)}"]
    # The descriptor stays the application's, and has moved as if it had been read.
    assert file.tell() == len(content)


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"offset": 10}, slice(10, None)),
        ({"count": 20}, slice(0, 20)),
        ({"offset": 10, "count": 20}, slice(10, 30)),
        ({"offset": 990, "count": 10**9}, slice(990, None)),
        ({"offset": 10**9}, slice(0, 0)),
        ({"count": 0}, slice(0, 0)),
    ],
)
async def test_a_part_of_a_file_can_be_the_body(keys, part, file, content):
    file.seek(0)
    peer = await answers(START, sends(file.fileno(), **keys))
    assert peer.written == response(content[part])
    assert file.tell() == (0 if "offset" in keys else len(content[part]))


async def test_files_and_parts_of_the_body_can_be_mixed(file, content):
    more = {"more_body": True}
    peer = await answers(
        START, PART, sends(file, offset=0, **more), sends(file, count=0, **more), BODY
    )
    chunk = b"%x\r\n%b\r\n" % (len(content), content)
    assert peer.written == CHUNKED + b"5\r\nhello\r\n" + chunk + b"5\r\nhello\r\n0\r\n\r\n"


async def test_without_an_offset_parts_follow_each_other(file, content):
    peer = await answers(START, sends(file, count=600, more_body=True), sends(file))
    rest = len(content) - 600
    chunks = b"258\r\n%b\r\n%x\r\n%b\r\n" % (content[:600], rest, content[600:])
    assert peer.written == CHUNKED + chunks + b"0\r\n\r\n"


async def test_trailers_can_follow_a_file(file, content):
    peer = await answers(WITH_TRAILERS, sends(file), trailers((b"x", b"1")), data=TE)
    chunk = b"%x\r\n%b\r\n" % (len(content), content)
    assert peer.written == CHUNKED + chunk + b"0\r\nx: 1\r\n\r\n"


async def test_an_answer_to_head_has_nothing_of_the_file(file, content):
    start = {**START, "headers": [(b"content-length", b"%d" % len(content))]}
    peer = await answers(start, sends(file), data=GET.replace(b"GET", b"HEAD") * 2)
    await peer.written_is(response(content).removesuffix(content) * 2)


async def test_a_declared_length_holds_for_files_too(file, content, caplog):
    start = {**START, "headers": [(b"content-length", b"%d" % (len(content) + 1))]}
    peer = await answers(start, sends(file))
    assert peer.written.startswith(b"HTTP/1.1 500 ")
    assert f"promised Content-Length: {len(content) + 1} but sent {len(content)}" in caplog.text


async def test_an_http_1_0_client_gets_a_file_of_unknown_length_by_the_end_of_the_connection(
    file, content
):
    peer = await answers(START, sends(file, more_body=True), BODY, data=OLD)
    assert peer.written.endswith(b"\r\n\r\n" + content + b"hello")
    assert peer.transport.closed


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [({"offset": -1}, "they must be lengths"), ({"count": -1}, "they must be lengths")],
)
async def test_a_part_that_is_none_is_refused(keys, sentence, file, caplog):
    peer = await answers(START, sends(file, **keys))
    assert peer.written.startswith(b"HTTP/1.1 500 ")
    assert sentence in caplog.text


async def test_only_regular_files_can_be_sent(caplog):
    reading, writing = os.pipe()
    peer = await answers(START, sends(reading))
    os.close(reading)
    os.close(writing)
    assert peer.written.startswith(b"HTTP/1.1 500 ")
    assert "it must be a regular file" in caplog.text


async def test_a_file_that_becomes_shorter_while_it_is_sent_cuts_the_response(tmp_path, caplog):
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * 1024 * 1024))

    async def app(scope, receive, send):
        await send(START)
        await send({"type": "http.response.pathsend", "path": str(path)})

    peer = Peer(app)
    peer.connection.pause_writing()
    peer.send(GET)
    await until(lambda: peer.written)
    path.write_bytes(bytes(100))
    peer.connection.resume_writing()
    await peer.idle()
    assert peer.transport.closed
    assert "the file became shorter while it was sent" in caplog.text
    # The log has what was sent, not what was promised.
    [line] = peer.log.lines
    assert int(line.split()[-1]) < 4 * 1024 * 1024


async def test_an_error_behind_promised_trailers_is_answered_whole(caplog):
    async def app(scope, receive, send):
        await send({**START, "trailers": True})
        raise ZeroDivisionError("oops")

    peer = Peer(app)
    peer.send(TE)
    await peer.idle()
    assert peer.written.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert peer.written.endswith(b"content-length: 21\r\n\r\nInternal Server Error")
    assert caplog.text.count("ZeroDivisionError: oops") == 1


async def test_no_message_has_a_place_while_a_file_is_opened(file, caplog):
    """Or the file would become the answer to the next request."""
    errors = []

    async def app(scope, receive, send):
        await send(START)

        async def interrupt():
            with pytest.raises(UnexpectedMessage) as raised:
                await send(BODY)
            errors.append(raised.value.phase)

        await asyncio.gather(
            send({"type": "http.response.pathsend", "path": file.name}), interrupt()
        )

    peer = Peer(app)
    peer.send(GET)
    await peer.idle()
    assert errors == [Phase.COPYING]
    assert peer.log.lines[0].split()[-2] == "200"


async def test_a_named_pipe_is_refused_and_holds_no_thread(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    peer = await answers(START, {"type": "http.response.pathsend", "path": str(path)})
    assert peer.written.startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize("kind", ["pathsend", "zerocopysend"])
async def test_a_file_for_a_response_that_has_ended_is_sent_to_nobody(kind, tmp_path, caplog):
    """The application has failed while another of its tasks was sending the file."""
    sending = []
    (tmp_path / "file").write_bytes(b"the answer to something else")

    async def app(scope, receive, send):
        if sending:
            await hello(scope, receive, send)
            return
        await send(START)
        message = {"type": f"http.response.{kind}", "path": str(opened.name), "file": opened}
        sending.append(asyncio.ensure_future(send(message)))
        await asyncio.sleep(0)
        raise ZeroDivisionError("oops")

    with (tmp_path / "file").open("rb", buffering=0) as opened:
        peer = Peer(app)
        peer.send(GET)
        peer.send(GET)
        await peer.idle()
        with pytest.raises(ClientDisconnected):
            await sending[0]
    await until(lambda: len(peer.log.lines) == 2)
    assert peer.written.startswith(b"HTTP/1.1 500 ")
    assert peer.written.endswith(b"Internal Server Error" + HELLO)
    assert [line.split()[-2] for line in peer.log.lines] == ["500", "200"]
