"""The loop with real processes: what happens to it must not happen to the workers."""

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.conftest import Serve
from tests.kit import Load, Project, Server, application, wait_for

pytestmark = pytest.mark.system

BLOCKING = """
import os, time
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["path"] == "/block":
        time.sleep(300)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""


def get(server: Server, path: str = "/") -> bytes:
    with urllib.request.urlopen(server.url + path, timeout=10) as response:
        return bytes(response.read())


def patch(project: Project, code: str) -> dict[str, str]:
    """Let the server run ``code`` before anything else; return the variables that do it."""
    place = project.directory.parent / "patch"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(code, encoding="utf-8")
    return {"PYTHONPATH": str(place)}


# -- Bugs of ours

BUG = """
import asgictl.supervisor as it
real_step, left = it.step, [{count}]
def step(state, event, now):
    if left[0] and type(event).__name__ == "Signal" and event.name == "TTIN":
        left[0] -= 1
        raise RuntimeError("an injected bug")
    return real_step(state, event, now)
it.step = step
"""


def test_a_bug_in_the_core_is_logged_with_its_history_and_the_workers_serve_on(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", environment=patch(project, BUG.format(count=1)))
    before = server.workers()
    server.signal("TTIN")
    server.assert_log("internal error at Signal.*please report it")
    server.assert_log("RuntimeError: an injected bug")
    assert server.workers() == before
    assert get(server)
    server.signal("TTIN")  # the next one does what it should
    server.wait_for_workers(3)
    server.stop()


def test_too_many_bugs_end_the_supervisor_and_the_workers_finish_first(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", environment=patch(project, BUG.format(count=99)))
    for count in range(1, 6):
        server.signal("TTIN")
        server.assert_log("internal error at Signal", count=count)
    server.assert_ended(70)
    server.assert_log("too many internal errors")


def test_a_bug_in_an_action_is_an_error_and_not_the_end(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    code = """
import asgictl.supervisor as it
real, left = it.spawn.spawn_worker, [1]
def spawn_worker(*arguments, **more):
    if len(left) and it.os.path.exists("break"):
        left.pop()
        raise RuntimeError("an injected bug")
    return real(*arguments, **more)
it.spawn.spawn_worker = spawn_worker
"""
    server = serve("--workers", "2", environment=patch(project, code))
    flag = project.directory / "break"
    flag.touch()
    victim = min(server.workers())
    os.kill(victim, signal.SIGKILL)
    server.assert_log("internal error at Spawn")
    # The core hears that there is no worker, and tries again.
    wait_for(lambda: len(server.workers() - {victim}) == 2, "a successor is ready")
    flag.unlink()
    server.stop()


# -- The service manager


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """What hears the words for systemd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(30)
        yield end


def hear(systemd: socket.socket, word: str) -> str:
    """Return the next message with a word in it."""
    while word not in (message := systemd.recv(65536).decode()).split("\n"):
        pass
    return message


def test_the_service_manager_is_told_of_every_turn(
    start: Serve, project: Project, systemd: socket.socket
) -> None:
    project.write(application("1") + "\nassert 'NOTIFY_SOCKET' not in os.environ\n")
    server = start(
        *("app:app", "--port", "0", "--workers", "2", "--min-ready", "0"),
        environment={"NOTIFY_SOCKET": str(systemd.getsockname())},
    )
    # 60 s to boot, and a little: systemd waits longer only if it is asked to.
    hear(systemd, "EXTEND_TIMEOUT_USEC=65000000")
    assert "STATUS=all 2 workers are ready" in hear(systemd, "READY=1")
    assert len(server.wait_for_workers(2)) == 2  # not before they were
    server.signal("HUP")
    assert "MONOTONIC_USEC=" in hear(systemd, "RELOADING=1")
    hear(systemd, "READY=1")
    project.write("raise LookupError('no such\\nREADY=1')\n")
    server.signal("HUP")
    hear(systemd, "RELOADING=1")
    assert "STATUS=reload refused" in hear(systemd, "READY=1")
    server.signal("TERM")
    hear(systemd, "STOPPING=1")
    assert "EXTEND_TIMEOUT_USEC=" in systemd.recv(65536).decode()
    server.assert_ended(0)


def test_the_watchdog_is_pinged_by_the_loop_and_not_while_it_stands_still(
    start: Serve, project: Project, systemd: socket.socket
) -> None:
    project.write(application("1"))
    environ = {"NOTIFY_SOCKET": str(systemd.getsockname()), "WATCHDOG_USEC": "600000"}
    server = start("app:app", "--port", "0", environment=environ).wait_until_ready()
    begun = time.monotonic()
    systemd.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while systemd.recv(65536):
            pass  # what was said while it booted
    systemd.settimeout(30)
    for _ in range(6):
        hear(systemd, "WATCHDOG=1")
    assert time.monotonic() - begun > 0.6, "as often as the watchdog needs, and no more"
    server.signal("STOP")
    systemd.settimeout(0.7)
    with pytest.raises(TimeoutError):
        list(iter(lambda: hear(systemd, "WATCHDOG=1"), ""))  # what was said before it stopped
    systemd.settimeout(30)
    server.signal("CONT")
    hear(systemd, "WATCHDOG=1")
    server.stop()


@pytest.mark.skipif(
    not Path("/usr/bin/systemd-socket-activate").exists(), reason="needs systemd-socket-activate"
)
def test_sockets_of_systemd_are_served_by_name_through_a_reload_and_left_behind(
    project: Project,
) -> None:
    project.write(application("1"))
    path = project.directory.parent / "web.sock"
    log = project.directory.parent / "log"
    with log.open("wb") as file:
        tool = subprocess.Popen(
            [
                *("systemd-socket-activate", "--fdname=web", "-l", str(path)),
                *(sys.executable, "-m", "asgictl", "app:app", "--bind", "systemd:web"),
                *("--control", "none", "--min-ready", "0"),
            ],
            cwd=project.directory,
            stderr=file,
        )
    try:
        wait_for(path.exists, "the tool listens")
        with Load(str(path), keep_alive=4, closing=2) as load:
            tool.send_signal(signal.SIGHUP)
            wait_for(lambda: "reloaded: generation 2" in log.read_text(), "it has reloaded")
            load.wait_for_answers(100)
            load.assert_nothing_lost()
        tool.terminate()
        assert tool.wait(20) == 0
    finally:
        tool.kill()
        tool.wait()
    assert path.is_socket()
    assert f"app:app listens on unix:{path} with 1 worker" in log.read_text()
    assert not path.with_name("web.sock.lock").exists()


# -- Shortages


def count_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_twenty_reloads_leave_no_descriptor_and_no_process_behind(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", "--min-ready", "0")
    server.reload()  # what is opened once, is open now
    settled: Callable[[], bool] = lambda: len(server.children()) == 2  # noqa: E731
    wait_for(settled, "only the workers are left")
    before = count_descriptors(server.pid)
    for _ in range(20):
        server.reload()
    wait_for(settled, "only the workers are left")
    wait_for(lambda: zombies(server.pid) == 0, "no zombie is left")
    # Those of the last worker that has ended are closed a moment later, before the reloads, too.
    wait_for(lambda: count_descriptors(server.pid) <= before, "no descriptor is left")
    server.stop()


def zombies(pid: int) -> int:
    return sum(child.status() == psutil.STATUS_ZOMBIE for child in psutil.Process(pid).children())


def test_without_descriptors_the_workers_serve_on_and_a_dead_one_is_replaced_later(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2")
    limit = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    # Below what was opened first and stays open; not below what is polled (poll(2), EINVAL).
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (8, limit[1]))
    victim, survivor = sorted(server.workers())
    os.kill(victim, signal.SIGKILL)
    server.assert_log(r"cannot fork: Too many open files \(this process may open 8: see Limit")
    server.signal("HUP")
    server.assert_log("reload refused.*Too many open files")
    assert server.workers() == {survivor}
    assert get(server)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limit)
    wait_for(lambda: len(server.workers() - {victim}) == 2, "a successor is ready")
    server.assert_not_logged("internal error")
    server.reload()
    server.stop()


def ask_control(path: Path, verb: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(b'{"verb": "%b"}\n' % verb.encode())
        return client.recv(65536)


def test_without_a_descriptor_left_it_still_answers_who_asks_what_is_wrong(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    control = project.directory.parent / "control"
    server = serve("--control", str(control))
    used = sorted(int(name) for name in os.listdir(f"/proc/{server.pid}/fd"))
    limit = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used[-1] + 1, limit[1]))
    with contextlib.ExitStack() as clients:
        # Who is connected holds what is left, however much that is.
        for _ in range(used[-1] + 1 - len(used)):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(control))
            client.sendall(b'{"verb": "events", "follow": true}\n')
        wait_for(lambda: count_descriptors(server.pid) == used[-1] + 1, "none is left")
        for _ in range(3):
            assert b'"pid"' in ask_control(control, "status")
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limit)
    wait_for(lambda: count_descriptors(server.pid) == len(used), "all are given back")
    server.stop()


@contextlib.contextmanager
def no_more_processes(pid: int) -> Iterator[None]:
    """Make every fork of a process fail, whoever owns it (cgroups(7), pids.max)."""
    group = Path("/sys/fs/cgroup/pids", f"asgictl-test-{os.getpid()}")
    if os.geteuid() != 0:
        before = resource.prlimit(pid, resource.RLIMIT_NPROC, (0, 0))
        yield
        resource.prlimit(pid, resource.RLIMIT_NPROC, before)
        return
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"root is not bound by RLIMIT_NPROC, and no control group: {error.strerror}")
    (group / "cgroup.procs").write_text(str(pid))
    (group / "pids.max").write_text("0")
    try:
        yield
    finally:
        (group.parent / "cgroup.procs").write_text(str(pid))
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()


def test_without_processes_the_workers_serve_on_and_a_dead_one_is_replaced_later(
    serve: Serve, project: Project
) -> None:
    project.write(application("1"))
    server = serve("--workers", "2")
    victim, survivor = sorted(server.workers())
    with no_more_processes(server.pid):
        os.kill(victim, signal.SIGKILL)
        server.assert_log("cannot fork: Resource temporarily unavailable")
        if os.geteuid() == 0:
            server.assert_log(r"unavailable \(\d+ of 0 processes and threads in /sys/fs/cgroup/")
        server.signal("HUP")
        server.assert_log("reload refused.*Resource temporarily unavailable")
        assert server.workers() == {survivor}
        assert get(server)
    wait_for(lambda: len(server.workers() - {victim}) == 2, "a successor is ready")
    server.assert_not_logged("internal error")
    server.stop()


@pytest.mark.parametrize("closed", [(0,), (1, 2), (0, 1, 2)])
def test_closed_standard_descriptors_are_not_taken_by_sockets(
    start: Serve, project: Project, closed: tuple[int, ...]
) -> None:
    project.write(application("1"))
    code = f"import os\nfor fd in {closed}:\n    os.close(fd)\n"
    server = start("app:app", "--port", "0", environment=patch(project, code))
    port = wait_for(server.ports, "it listens")[0]
    wait_for(lambda: len(server.children()) == 1, "its worker lives")
    (worker,) = server.children()
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    for pid in (server.pid, worker):
        for fd in closed:
            assert os.readlink(f"/proc/{pid}/fd/{fd}") == os.devnull
    server.stop()


# -- Listeners that go away

SLOW = """
import asyncio, time
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["path"] == "/block":
        time.sleep(4)
    elif scope["path"] == "/slow":
        await asyncio.sleep(6)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"answered"})
"""


def ask(port: int, path: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), 20)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return client


def answer(client: socket.socket) -> bytes:
    """Return all that a client gets until its connection is closed."""
    with client:
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_a_stop_answers_who_waits_in_the_kernel_and_refuses_who_comes_later(
    serve: Serve, project: Project
) -> None:
    project.write(SLOW)
    server = serve()
    port = server.port
    slow = ask(port, "/slow")
    blocker = ask(port, "/block")
    wait_for(lambda: blocked(server), "the worker is blocked")
    waiting = [ask(port, "/") for _ in range(20)]
    server.signal("TERM")
    for client in (*waiting, blocker):
        assert b"answered" in answer(client)
    # The worker still serves the slow request, and nobody accepts any more.
    with pytest.raises(ConnectionRefusedError):
        ask(port, "/")
    assert server.process.poll() is None
    assert b"answered" in answer(slow)
    server.assert_ended(0)


def test_orphans_give_the_port_back_at_once_and_finish_what_they_have_begun(
    serve: Serve, project: Project
) -> None:
    project.write(SLOW.replace("asyncio.sleep(6)", "asyncio.sleep(2)"))
    server = serve("--workers", "2")
    port = server.port
    slow = ask(port, "/slow")
    wait_for(lambda: any(connections(pid) for pid in server.workers()), "it is being served")
    workers = server.workers()
    server.signal("KILL")
    server.process.wait()

    def bound() -> bool:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return True
        return False

    wait_for(bound, "the port is free", within=1)
    assert any(map(psutil.pid_exists, workers)), "the request was over before it was looked at"
    assert b"answered" in answer(slow)
    wait_for(lambda: not server.session() & workers, "the orphans leave")


def connections(pid: int) -> int:
    found = psutil.Process(pid).net_connections("tcp")
    return sum(item.status == psutil.CONN_ESTABLISHED for item in found)


def test_a_listener_that_a_reload_leaves_out_is_emptied_before_it_closes(
    start: Serve, project: Project
) -> None:
    project.write(SLOW)
    project.write('bind = ["127.0.0.1:0", "localhost:0"]\n', "asgictl.toml")
    server = start("app:app", "--min-ready", "0").wait_until_ready()
    stays, goes = server.ports()
    blocker = ask(stays, "/block")
    wait_for(lambda: blocked(server), "the worker is blocked")
    waiting = [ask(goes, "/") for _ in range(20)]
    project.write('bind = ["127.0.0.1:0"]\n', "asgictl.toml")
    server.signal("HUP")
    server.assert_log("no longer listening on")
    assert blocked(server), "the reload was too slow for this test"
    for client in (*waiting, blocker):
        assert b"answered" in answer(client)
    with pytest.raises(ConnectionRefusedError):
        ask(goes, "/")
    assert server.ports() == [stays]
    assert get(server) == b"answered"
    server.stop()


# -- Children that are not ours


def test_orphans_of_the_application_are_buried(serve: Serve, project: Project) -> None:
    """A process that the application forks and forgets comes to the supervisor."""
    project.write("""
import subprocess
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    # sh ends at once; its background process becomes an orphan, and so a child of ours.
    for _ in range(5):
        subprocess.run(["sh", "-c", "exec sleep 0.2 >&- 2>&- &"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"forked"})
""")
    server = serve()
    workers = server.workers()
    assert get(server) == b"forked"
    supervisor = psutil.Process(server.pid)
    wait_for(lambda: {item.pid for item in supervisor.children()} == workers, "they are buried")
    server.assert_not_logged("internal error|was killed|exited")
    server.stop()


def test_a_process_of_the_application_that_outlives_its_worker_hides_no_death(
    serve: Serve, project: Project
) -> None:
    """It holds the worker's end of the line open, as a fork without exec does."""
    project.write("""
import os, time
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"forked"})
""")
    server = serve("--timeout", "60")
    (victim,) = server.workers()
    assert get(server) == b"forked"
    os.kill(victim, signal.SIGKILL)
    server.assert_log("was killed by SIGKILL", within=5)
    wait_for(lambda: len(server.workers() - {victim}) == 1, "a successor is ready")
    for pid in server.session() - {server.pid} - server.workers():
        os.kill(pid, signal.SIGKILL)
    server.stop()


# -- Life and death of workers


def test_a_hung_worker_is_suspected_shown_killed_and_replaced(
    serve: Serve, project: Project
) -> None:
    project.write(BLOCKING)
    server = serve("--workers", "2", "--timeout", "2")
    before = server.workers()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /block HTTP/1.1\r\nHost: x\r\n\r\n")
        server.assert_log(r"no heartbeat for 1\.\d s, asking for its stacks")
        stacks = server.assert_log(
            r'stacks of worker=\d.*(\n.*)+?\n  File ".*app\.py", line \d+ in app'
        )
        assert "supervisor.py" not in stacks.group()
        killed = server.assert_log(
            r"no heartbeat for [2-9]\.\d s \(blocked in a system call\), killing .* pid=(\d+)"
        )
        after = server.wait_for_workers(2, other_than={int(killed[1])})
    assert len(before & after) == 1
    assert get(server)
    server.stop()


def test_a_boot_that_somebody_has_stopped_is_not_a_boot_that_hangs(
    start: Serve, project: Project
) -> None:
    project.write(application("1") + "\nimport signal\nos.kill(os.getpid(), signal.SIGSTOP)\n")
    server = start("app:app", "--port", "0", "--timeout-boot", "5")
    server.assert_log(r"not ready after \d+ s, but it is stopped by a signal or a debugger")
    (worker,) = server.children()
    os.kill(worker, signal.SIGCONT)
    server.wait_until_ready()
    assert server.workers() == {worker}
    server.stop()


def test_settings_that_are_broken_at_a_reload_are_refused(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    project.write("workers = 2\n", "asgictl.toml")
    server = serve()
    before = server.workers()
    project.write("workers = 'many'\n", "asgictl.toml")
    server.signal("HUP")
    server.assert_log("reload refused, generation 1 serves on: .*workers")
    assert server.workers() == before
    assert get(server)
    project.write("workers = 3\n", "asgictl.toml")
    server.reload()
    server.wait_for_workers(3, other_than=before)
    server.stop()


def test_a_port_in_use_at_a_reload_is_refused_and_the_old_one_serves_on(
    start: Serve, project: Project
) -> None:
    project.write(application("1"))
    project.write('bind = ["127.0.0.1:0"]\n', "asgictl.toml")
    server = start("app:app").wait_until_ready()
    with socket.create_server(("127.0.0.1", 0)) as rival:
        taken = f"127.0.0.1:{rival.getsockname()[1]}"
        project.write(f'bind = ["127.0.0.1:0", "{taken}"]\n', "asgictl.toml")
        before = count_descriptors(server.pid)
        server.signal("HUP")
        server.assert_log(
            f"reload refused.*cannot listen on {taken}: the port is in use by process"
        )
    assert get(server)
    wait_for(lambda: count_descriptors(server.pid) == before, "nothing was left open")
    server.stop()


@pytest.mark.parametrize("phase", ["booting", "preflight", "rolling", "draining", "backing off"])
def test_a_stop_is_obeyed_at_once_in_every_phase(
    start: Serve, project: Project, phase: str
) -> None:
    project.write(application("1"))
    arguments = ["app:app", "--port", "0", "--workers", "2"]
    patches = {}
    if phase == "booting":
        project.write("import time\ntime.sleep(60)\n")
    elif phase == "preflight":
        patches = patch(
            project,
            "import os, time, asgictl.configuration as it\n"
            "real = it.Source.read\n"
            "def read(source):\n"
            "    if os.path.exists('slow'):\n"
            "        open('reading', 'w').close()\n"
            "        time.sleep(60)\n"
            "    return real(source)\n"
            "it.Source.read = read\n",
        )
    server = start(*arguments, environment=patches)
    if phase == "booting":
        wait_for(lambda: len(server.children()) == 2, "workers boot")
    else:
        server.wait_until_ready()
    slow, reading = project.directory / "slow", project.directory / "reading"
    if phase == "preflight":
        slow.touch()
        server.signal("HUP")
        wait_for(reading.exists, "the settings are being read")
    elif phase == "rolling":
        project.write("import time\ntime.sleep(60)\n")
        server.signal("HUP")
        wait_for(lambda: len(server.children()) == 3, "a new worker boots")
    elif phase == "draining":
        server.signal("TTOU")
    elif phase == "backing off":
        project.write("raise LookupError\n")
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        server.assert_log("trying again in", count=2)
    slow.unlink(missing_ok=True)
    reading.unlink(missing_ok=True)
    begun = time.monotonic()
    server.signal("TERM")
    server.assert_ended(0, within=5)
    assert time.monotonic() - begun < 4


def test_a_worker_that_dies_in_a_stop_does_not_hold_it_up(serve: Serve, project: Project) -> None:
    project.write(BLOCKING)
    server = serve("--workers", "2", "--timeout-graceful-shutdown", "20")
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /block HTTP/1.1\r\nHost: x\r\n\r\n")
        busy = wait_for(lambda: blocked(server), "a worker is blocked")
        server.signal("TERM")
        wait_for(lambda: server.workers() == {busy}, "the other one has left")
        os.kill(busy, signal.SIGKILL)
        server.assert_ended(0, within=5)


def blocked(server: Server) -> int:
    """Return the worker with a connection whose loop sleeps, or 0."""
    for pid in server.workers():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            wchan = Path(f"/proc/{pid}/syscall").read_text()
            if re.match(r"(230|35) ", wchan):  # clock_nanosleep, nanosleep
                return pid
    return 0
