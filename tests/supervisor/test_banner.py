"""What is said at the start, and to whom not."""

from typing import Any

import pytest

from asgictl import banner
from asgictl.configuration import Source, from_arguments
from asgictl.system.watch import Area


def warned(environ: dict[str, str] | None = None, **settings: Any) -> str:
    return "\n".join(banner.warnings(_read(**settings).settings, environ or {}))


def hinted(processors: int = 8, to_terminal: bool = False, **settings: Any) -> str:
    found = _read(**settings)
    given = (found.settings, found.sources, processors)
    return "\n".join(banner.hints(*given, to_terminal=to_terminal))


def _read(**settings: Any) -> Any:
    return Source(given=from_arguments(settings), environment={}, directory="/").read()


def test_the_parts_that_serve_are_named() -> None:
    assert (
        banner.choices(_read().settings, None, "a:b") == "event loop uvloop, HTTP parser httptools"
    )
    chosen = _read(loop="asyncio", http="h11", preload=True, worker_class="c:D").settings
    assert banner.choices(chosen, "/etc/asgictl.toml", "a:b") == (
        "event loop asyncio, HTTP parser h11, worker class c:D, a:b is imported once (preload), "
        "settings of asgictl.toml"
    )


def test_what_is_watched_is_named() -> None:
    settings = _read(reload=True, reload_dir="src", reload_include="*.html").settings
    said = banner.development(Area.of(settings, "/nowhere"))
    assert said.startswith("development: *.html *.py in /nowhere/src is watched")


class TestWarnings:
    def test_an_ordinary_start_has_none(self) -> None:
        assert warned() == warned(reload=True) == warned(host="0.0.0.0", workers=4) == ""

    @pytest.mark.parametrize("name", ["NOTIFY_SOCKET", "KUBERNETES_SERVICE_HOST"])
    def test_development_under_a_service_manager(self, name: str) -> None:
        assert warned({name: "x"}, reload=True).startswith("--reload shows tracebacks to everybody")
        assert warned({name: "x"}) == ""

    @pytest.mark.parametrize("where", [{"host": "0.0.0.0"}, {"bind": (":8000",)}, {"host": "::"}])
    def test_development_that_others_can_reach(self, where: dict[str, Any]) -> None:
        assert "sees tracebacks" in warned(reload=True, **where)

    def test_clients_that_are_believed_whatever_they_say(self) -> None:
        everybody = {"forwarded_allow_ips": "*"}
        assert "name the addresses of your proxies" in warned(host="", **everybody)
        assert warned(**everybody) == warned(host="", proxy_headers=False, **everybody) == ""


class TestHints:
    def test_one_worker_on_many_processors(self) -> None:
        assert "one of 8 processors; --workers auto" in hinted()

    def test_not_to_who_has_chosen_and_not_where_there_is_one(self) -> None:
        assert hinted(workers=1) == hinted(processors=1) == hinted(workers="auto") == ""

    def test_access_lines_on_a_terminal(self) -> None:
        assert "--no-access-log" in hinted(workers=4, to_terminal=True)
        assert hinted(workers=4) == ""
        assert hinted(workers=4, to_terminal=True, access_log=True) == ""
        assert hinted(workers=1, to_terminal=True) == ""

    def test_no_limits_where_others_reach_it(self) -> None:
        assert "--limit-concurrency and --limit-request-body" in hinted(workers=1, host="0.0.0.0")
        assert hinted(workers=1, host="0.0.0.0", limit_concurrency=100) == ""
        assert hinted(workers=1, host="127.1.2.3") == hinted(workers=1, uds="a.sock") == ""

    def test_many_workers_in_development(self) -> None:
        assert "at every save" in hinted(reload=True, workers=4)
        assert hinted(reload=True) == ""
