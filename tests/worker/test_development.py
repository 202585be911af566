"""What browsers see while somebody develops."""

import asyncio
from typing import Any

import pytest

from asgictl_worker import contract
from asgictl_worker.development import broken, explained

FAILED = contract.Failed(stage="import", error="the application raised <X>", traceback="line 1 & 2")


async def ask(
    app: Any, *, accept: str = "*/*", method: str = "GET", headers: Any = (), **scope: Any
) -> tuple[int, str, str]:
    """Return status, content type and body of what an application answers."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.connect"}

    kind = scope.get("type", "http")
    fields = [(b"accept", accept.encode()), *headers]
    given = {"type": "http", "method": method, "path": "/x", "headers": fields} | scope
    try:
        await app(given, receive, send)
    finally:
        start, *bodies = sent or [{"type": "nothing"}]
        if kind == "websocket" and start["type"] == "websocket.close":
            return start["code"], "", ""  # noqa: B012 (there is nothing to raise here)
    content = dict(start["headers"]).get(b"content-type", b"").decode()
    return start["status"], content, b"".join(each.get("body", b"") for each in bodies).decode()


class TestBroken:
    async def test_programs_get_the_traceback_as_text(self) -> None:
        status, content, body = await ask(broken(FAILED, asyncio.Event()))

        assert (status, content) == (500, "text/plain; charset=utf-8")
        assert "line 1 & 2" in body
        assert "the application raised <X>" in body
        assert "stage: import" in body

    async def test_browsers_get_a_page_in_which_nothing_of_it_is_markup(self) -> None:
        accept = "text/html,application/xhtml+xml"
        status, content, body = await ask(broken(FAILED, asyncio.Event()), accept=accept)

        assert (status, content) == (500, "text/html; charset=utf-8")
        assert "<pre>line 1 &amp; 2</pre>" in body
        assert "raised &lt;X&gt;" in body

    async def test_only_the_page_of_a_get_asks_again_by_itself(self) -> None:
        app = broken(FAILED, asyncio.Event())
        assert "location.reload" in (await ask(app, accept="text/html"))[2]
        assert "location.reload" not in (await ask(app, accept="text/html", method="POST"))[2]

    async def test_whoever_waits_is_answered_when_the_worker_leaves(self) -> None:
        leaving = asyncio.Event()
        waits = [(b"x-asgictl-wait", b"1")]
        asked = asyncio.create_task(ask(broken(FAILED, leaving), headers=waits))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not asked.done()

        leaving.set()
        assert (await asked)[0] == 204

    async def test_a_websocket_is_refused_with_the_traceback_where_that_can_be_said(self) -> None:
        app = broken(FAILED, asyncio.Event())
        extensions = {"websocket.http.response": {}}
        status, _, body = await ask(app, type="websocket", extensions=extensions)
        assert status == 500
        assert "line 1 & 2" in body

        assert (await ask(app, type="websocket"))[0] == 1011


class TestExplained:
    async def test_an_exception_is_shown_and_raised(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise LookupError("no such thing")

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}
        with pytest.raises(LookupError):
            await explained(app, asyncio.Event())(scope, None, send)

        assert sent[0]["status"] == 500
        assert b"Exception at GET /x" in sent[1]["body"]
        assert b"LookupError: no such thing" in sent[1]["body"]
        assert b"development.py" not in sent[1]["body"].replace(b"test_development.py", b"")

    async def test_a_head_without_a_body_yet_is_taken_back(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise LookupError

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}
        with pytest.raises(LookupError):
            await explained(app, asyncio.Event())(scope, None, send)
        assert [each.get("status") for each in sent] == [500, None]

    async def test_what_is_out_already_is_left_alone(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"1", "more_body": True})
            raise LookupError

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}
        with pytest.raises(LookupError):
            await explained(app, asyncio.Event())(scope, None, send)
        assert [each.get("status") for each in sent] == [200, None]

    async def test_answers_pass_unchanged(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 201, "headers": []})
            await send({"type": "http.response.body", "body": b"made"})

        assert await ask(explained(app, asyncio.Event())) == (201, "", "made")

    async def test_a_head_that_is_all_there_is_goes_out(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 201, "headers": []})

        assert (await ask(explained(app, asyncio.Event())))[0] == 201

    async def test_other_scopes_are_the_applications_own(self) -> None:
        seen = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["type"])

        await explained(app, asyncio.Event())({"type": "lifespan"}, None, None)
        assert seen == ["lifespan"]
