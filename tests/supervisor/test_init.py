"""The public interface: ``asgictl.run()`` and what else the package offers."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from importlib.metadata import version

import pytest

import asgictl
from asgictl_worker.errors import ConfigurationError, ExitCode, ServerFailed

APPLICATION = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
"""


def program(tmp_path, text, how=("program.py",)):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(text) + APPLICATION)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ASGICTL_")
    }
    return subprocess.Popen(
        [sys.executable, *how],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def stopped_at_the_end(server):
    with server:
        try:
            yield
        finally:
            server.kill()


def test_the_package_offers_settings_and_version():
    assert asgictl.__version__ == version("asgictl")
    assert dataclasses.is_dataclass(asgictl.Settings)
    assert asgictl.Settings(workers=3).workers == 3
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = asgictl.nonsense


def test_importing_the_package_loads_nothing_else():
    code = "import sys, asgictl; print([name for name in sys.modules if name.startswith(('asgictl', 'click'))])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "['asgictl']\n"


def test_an_application_object_is_refused_with_the_way_out():
    async def app(scope, receive, send): ...

    with pytest.raises(TypeError, match=r'pass "module:attribute", .* asgictl_worker.Server'):
        asgictl.run(app)


def test_an_unknown_argument_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigurationError, match=r"no argument 'worker'; did you mean workers\?"):
        asgictl.run("a:b", worker=3)


def test_the_error_of_a_failed_server_carries_its_exit_code():
    error = ServerFailed(3)
    assert error.exit_code is ExitCode.NO_WORKER_BOOTED
    assert str(error) == "the server ended with exit code 3 (NO_WORKER_BOOTED); its log says why"


@pytest.mark.system
def test_run_serves_until_it_is_asked_to_stop(tmp_path):
    server = program(
        tmp_path,
        f"""
        import asgictl
        if __name__ == "__main__":
            asgictl.run("program:app", uds={str(tmp_path / "socket")!r}, pid="pid")
            print("stopped")
        """,
    )
    with stopped_at_the_end(server):
        assert any("ready" in line for line in server.stderr)
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=20)
    assert (server.returncode, out) == (0, "stopped\n"), err


@pytest.mark.system
@pytest.mark.parametrize("how", [("program.py",), ("-m", "program")])
def test_run_takes_an_object_that_the_program_has_by_its_name_there(tmp_path, how):
    server = program(
        tmp_path,
        f"""
        import asgictl
        async def application(scope, receive, send):
            assert scope["type"] == "http"
        if __name__ == "__main__":
            asgictl.run(application, uds={str(tmp_path / "socket")!r}, workers=None, reload=False)
        """,
        how,
    )
    with stopped_at_the_end(server):
        lines = iter(server.stderr)
        assert any("program:application listens" in line for line in lines)
        assert any("ready" in line for line in lines)
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=20)
    assert server.returncode == 0, err


@pytest.mark.system
def test_a_reload_imports_anew_what_the_program_had_imported_before(tmp_path):
    (tmp_path / "shared.py").write_text("print('shared: one', flush=True)")
    server = program(
        tmp_path,
        f"""
        import shared
        import asgictl
        if __name__ == "__main__":
            asgictl.run("program:app", uds={str(tmp_path / "socket")!r}, min_ready=0)
        """,
    )
    with stopped_at_the_end(server):
        lines = iter(server.stderr)
        assert any("the worker is ready" in line for line in lines)
        (tmp_path / "shared.py").write_text("print('shared: another', flush=True)")
        server.send_signal(signal.SIGHUP)
        assert any("reloaded: generation 2" in line for line in lines)
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=30)
    assert server.returncode == 0, err
    assert out.split("\n") == ["shared: one", "shared: one", "shared: another", ""]


@pytest.mark.system
def test_run_raises_when_the_server_cannot_start(tmp_path):
    server = program(
        tmp_path,
        """
        import asgictl
        from asgictl_worker.errors import ServerFailed
        try:
            asgictl.run("missing:app", port=0)
        except ServerFailed as error:
            print(error.exit_code.name)
        """,
    )
    with stopped_at_the_end(server):
        out, err = server.communicate(timeout=20)
    assert out == "NO_WORKER_BOOTED\n", err


@pytest.mark.system
def test_a_program_without_the_main_guard_is_told_so(tmp_path):
    server = program(tmp_path, 'import asgictl\nasgictl.run("program:app", port=0)\n')
    with stopped_at_the_end(server):
        _, err = server.communicate(timeout=20)
    assert server.returncode != 0
    assert 'put the call under `if __name__ == "__main__":`' in err
