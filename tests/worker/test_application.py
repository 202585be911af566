import logging
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from asgictl_worker import tracebacks
from asgictl_worker.application import (
    MalformedName,
    NoSuchAttribute,
    NoSuchDirectory,
    NoSuchModule,
    NotAnApplication,
    adapt,
    load,
)

ASGI3 = "async def app(scope, receive, send): await send('asgi3')\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that writes modules into an own directory, made the working directory."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)

    def write(**modules: str) -> Path:
        for name, text in modules.items():
            path = tmp_path / (name.replace("_in_", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return tmp_path

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


async def answer(app: Any, kind: str = "http") -> list[Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": kind, "method": "GET"}, receive, send)
    return sent


# -- Names that lead somewhere


async def test_a_name_is_a_module_and_an_attribute_in_the_working_directory(project: Any) -> None:
    project(one=ASGI3)
    assert await answer(load("one:app")) == ["asgi3"]


async def test_an_attribute_may_have_dots_and_a_module_may_be_in_a_package(project: Any) -> None:
    project(pkg_in_inner=ASGI3 + "class site:\n    inner = app\n")
    assert await answer(load("pkg.inner:site.inner")) == ["asgi3"]


@pytest.mark.parametrize("attribute", ["app", "application"])
async def test_a_module_alone_means_its_app_or_its_application(
    project: Any, attribute: str
) -> None:
    project(alone=ASGI3.replace("app(", f"{attribute}("))
    assert await answer(load("alone")) == ["asgi3"]


async def test_app_dir_comes_before_everything_else_on_the_path(
    project: Any, tmp_path: Path
) -> None:
    project(one="app = None\n", deeper_in_one=ASGI3)
    assert await answer(load("one:app", app_dir="deeper")) == ["asgi3"]
    assert sys.path[0] == str(tmp_path / "deeper")


async def test_the_path_does_not_grow_with_every_load(project: Any) -> None:
    project(one=ASGI3)
    load("one")
    before = sys.path[:]
    load("one")
    assert sys.path == before


async def test_a_module_that_was_written_after_the_first_look_is_found(project: Any) -> None:
    project(one=ASGI3)
    load("one")
    project(two=ASGI3)
    assert await answer(load("two")) == ["asgi3"]


@pytest.mark.parametrize(
    ("name", "factory"), [("made:create", True), ("made:create()", False), ("made:create", False)]
)
async def test_a_factory_is_called_when_it_is_said_or_seen(
    project: Any, name: str, factory: bool
) -> None:
    project(made=ASGI3 + "def create(): return app\n")
    assert await answer(load(name, factory=factory)) == ["asgi3"]


def test_a_factory_that_was_only_seen_is_named_in_the_log(
    project: Any, caplog: pytest.LogCaptureFixture
) -> None:
    project(made=ASGI3 + "def create(): return app\n")
    load("made:create")
    assert "--factory" in caplog.text


# -- Names that lead nowhere


@pytest.mark.parametrize(
    "name", ["", ":app", "one:", "one:app:more", "a b:app", "one:app.", "one:1"]
)
def test_a_malformed_name_is_told_the_form(project: Any, name: str) -> None:
    with pytest.raises(MalformedName, match="module:attribute"):
        load(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("one.py", "one"), ("src/one.py:app", "src.one:app"), ("./one:app", "one:app")],
)
def test_a_file_name_is_answered_with_the_module_name(name: str, meant: str) -> None:
    with pytest.raises(MalformedName, match=f"did you mean {meant}\\?"):
        load(name)


def test_a_missing_module_is_answered_with_the_nearest_one(project: Any) -> None:
    project(website=ASGI3)
    with pytest.raises(NoSuchModule, match=r"no module 'webiste' .*did you mean website"):
        load("webiste:app")


def test_a_missing_module_in_a_package_is_answered_with_its_sibling(project: Any) -> None:
    project(pkg_in___init__="", pkg_in_server=ASGI3)
    with pytest.raises(NoSuchModule, match=r"'pkg\.servre'; did you mean pkg\.server\?"):
        load("pkg.servre:app")


def test_a_module_in_another_directory_is_found_there(project: Any) -> None:
    directory = project(one=ASGI3, pkg_in___init__="", pkg_in_web=ASGI3, src_in_service=ASGI3)
    before = sys.path[:]
    with pytest.raises(NoSuchModule, match=r"say --app-dir \., or start there"):
        load("one:app", app_dir=str(directory / "src"))
    sys.path[:] = before
    with pytest.raises(NoSuchModule, match=r"there is pkg/web.py; did you mean pkg\.web\?"):
        load("web:app")
    with pytest.raises(NoSuchModule, match="say --app-dir src, or start there"):
        load("service:app")


def test_modules_of_the_standard_library_are_not_offered(project: Any) -> None:
    project(one=ASGI3)
    with pytest.raises(NoSuchModule) as caught:
        load("statistic:app")
    assert "statistics" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [("x", "taking it for an ASGI 2 application"), ("x, y", "a WSGI application, in threads")],
)
def test_an_application_of_an_older_kind_is_told_how_it_was_taken(
    project: Any, caplog: pytest.LogCaptureFixture, parameters: str, words: str
) -> None:
    project(one=f"def app({parameters}): pass\n")
    with caplog.at_level("WARNING", "asgictl.worker"):
        logging.getLogger("asgictl").propagate = True
        load("one:app")
    assert words in caplog.text


def test_a_dot_instead_of_a_colon_is_answered_with_the_colon(project: Any) -> None:
    project(one=ASGI3)
    with pytest.raises(NoSuchModule, match="did you mean one:app"):
        load("one.app")


def test_a_missing_attribute_is_answered_with_the_nearest_one(project: Any) -> None:
    project(one="async def web_app(scope, receive, send): pass\n")
    with pytest.raises(NoSuchAttribute, match="no attribute 'webapp'; did you mean one:web_app"):
        load("one:webapp")


@pytest.mark.parametrize("name", ["one:app", "one"])
def test_a_missing_attribute_is_answered_with_what_looks_like_an_application(
    project: Any, name: str
) -> None:
    project(
        one="class Site:\n    async def __call__(self, scope, receive, send): pass\nweb = Site()\n"
    )
    with pytest.raises(NoSuchAttribute, match="did you mean one:web"):
        load(name)


def test_helpers_with_three_parameters_are_not_offered_as_applications(project: Any) -> None:
    project(one="def rgb(red, green, blue): pass\n")
    with pytest.raises(NoSuchAttribute) as caught:
        load("one:app")
    assert "did you mean" not in str(caught.value)


def test_a_missing_attribute_behind_a_dot_names_its_owner(project: Any) -> None:
    project(one="class site: pass\n")
    with pytest.raises(NoSuchAttribute, match="'site' has no attribute 'app'"):
        load("one:site.app")


@pytest.mark.parametrize(("value", "kind"), [("3", "an int"), ("None", "a NoneType")])
def test_what_cannot_be_called_is_no_application(project: Any, value: str, kind: str) -> None:
    project(one=f"app = {value}\n")
    with pytest.raises(NotAnApplication, match=f"it is {kind}, which cannot be called"):
        load("one:app")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("def create(): return None", "returned a NoneType"),
        ("async def create(): return None", "coroutine function"),
        ("def create(needed): return None", "cannot be called without arguments"),
    ],
)
def test_a_factory_that_makes_no_application_is_told_why(
    project: Any, body: str, problem: str
) -> None:
    project(one=body + "\n")
    with pytest.raises(NotAnApplication, match=problem):
        load("one:create", factory=True)


def test_an_app_dir_that_is_not_there_is_named(project: Any) -> None:
    with pytest.raises(NoSuchDirectory, match="nowhere"):
        load("one", app_dir="nowhere")


def test_a_working_directory_that_is_gone_is_said_to_be_gone(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "release"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(NoSuchDirectory, match="the working directory is gone"):
        load("one")


# -- What the application raises itself


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import nothing_of_that_name", ModuleNotFoundError),
        ("from os import nothing_of_that_name", ImportError),
        ("1 / 0", ZeroDivisionError),
        ("def oops(:", SyntaxError),
        ("raise SystemExit(4)", SystemExit),
    ],
)
def test_exceptions_of_the_application_pass_through(
    project: Any, text: str, error: type[BaseException]
) -> None:
    project(broken=text + "\n")
    with pytest.raises(error):
        load("broken:app")


def test_a_module_that_imports_its_own_missing_submodule_is_the_applications_mistake(
    project: Any,
) -> None:
    project(pkg_in___init__="import pkg.missing\n", pkg_in_app=ASGI3)
    with pytest.raises(ModuleNotFoundError):
        load("pkg.missing:app")


def test_an_exception_in_a_factory_passes_through(project: Any) -> None:
    project(broken="def create():\n    raise TypeError('inside')\n")
    with pytest.raises(TypeError, match="inside"):
        load("broken:create", factory=True)


def test_an_attribute_error_inside_the_module_passes_through(project: Any) -> None:
    project(lazy="def __getattr__(name):\n    return object().missing\n")
    with pytest.raises(AttributeError, match="missing"):
        load("lazy:app")


def test_the_traceback_begins_in_the_application(project: Any) -> None:
    project(broken="import helper\n", helper="def fail():\n    1 / 0\nfail()\n")
    with pytest.raises(ZeroDivisionError) as caught:
        load("broken:app")
    # The first frame is this test, which a worker does not have.
    caught.value.__traceback__ = caught.value.__traceback__.tb_next
    lines = tracebacks.from_application(caught.value).splitlines()
    assert "broken.py" in lines[1]
    assert "asgictl_worker" not in "".join(lines)
    assert "importlib" not in "".join(lines)
    assert lines[-1] == "ZeroDivisionError: division by zero"


# -- What it speaks


class Awaited:
    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.send = send

    def __await__(self) -> Any:
        yield from self.send("awaited").__await__()


class Called2:
    def __init__(self, scope: Any) -> None:
        pass

    async def __call__(self, receive: Any, send: Any) -> None:
        await send("asgi2")


class Site:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send("asgi3")

    def plain(self, scope: Any, receive: Any, send: Any) -> Any:
        return send("plain")

    def anything(self, *arguments: Any) -> Any:
        return arguments[2]("anything")


def asgi2(scope: Any) -> Any:
    return Called2(scope)


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("content-type", "text/plain")])
    return [b"wsgi"]


@pytest.mark.parametrize(
    ("app", "sent"),
    [
        (Site(), "asgi3"),
        (Site().plain, "plain"),
        (Site().anything, "anything"),
        (Awaited, "awaited"),
        (Called2, "asgi2"),
        (asgi2, "asgi2"),
    ],
)
async def test_auto_sees_how_an_application_can_be_called(app: Any, sent: str) -> None:
    assert await answer(adapt(app)) == [sent]


async def test_the_interface_can_be_said(project: Any) -> None:
    project(
        one="def app(scope):\n    async def run(receive, send): await send('two')\n    return run\n"
    )
    assert await answer(load("one:app", interface="asgi2")) == ["two"]


async def test_wsgi_does_not_see_headers_that_would_take_the_names_of_others() -> None:
    seen: dict[str, str] = {}

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.update({key: value for key, value in environ.items() if key.startswith("HTTP_")})
        return wsgi(environ, start_response)

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        pass

    headers = [(b"x-real-ip", b"10.0.0.7"), (b"x_real_ip", b"1.1.1.1"), (b"x_user", b"root")]
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": headers,
        "http_version": "1.1",
        "scheme": "http",
        "server": None,
        "client": None,
    }
    adapted: Any = adapt(app, "wsgi")
    await adapted(scope, receive, send)
    adapted.executor.shutdown()
    assert seen == {"HTTP_X_REAL_IP": "10.0.0.7"}
