"""Real sockets: bound all or none, never shared, never stolen, and nothing left behind."""

import contextlib
import os
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.supervisor.system.children import (
    FORKS,
    NOBODY,
    ended,
    in_child,
    only_root,
    start,
    use_up_descriptors,
)

from asgictl.settings import (
    BindAddress,
    InheritedDescriptor,
    SystemdSockets,
    TcpAddress,
    UnixAddress,
)
from asgictl.system import listeners
from asgictl.system.listeners import (
    Access,
    CannotBind,
    Listener,
    UnusedSockets,
    bind_all,
    passed_sockets,
)
from asgictl.system.privileges import Identity
from asgictl_worker.errors import AsgictlError, ExitCode

pytestmark = FORKS

LOCAL = TcpAddress("127.0.0.1", 0)
ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")

Bind = Callable[..., list[Listener]]


@pytest.fixture
def bind() -> Iterator[Bind]:
    """Bind, and close at the end of the test."""
    with contextlib.ExitStack() as stack:

        def bind(*addresses: BindAddress, **how: object) -> list[Listener]:
            made = bind_all(addresses, **{"backlog": 16, **how})  # type: ignore[arg-type]
            stack.callback(close, made)
            return made

        yield bind


def close(made: list[Listener]) -> None:
    for listener in made:
        if listener.socket.fileno() >= 0:  # a test may have closed or kept it
            listener.close()


def port_of(listener: Listener) -> int:
    return int(listener.socket.getsockname()[1])


def answers(where: object, family: int = socket.AF_INET) -> bool:
    """Return whether a connection is taken into the kernel's queue."""
    with socket.socket(family) as client:
        client.settimeout(5)
        return client.connect_ex(where) == 0  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.sock"


# -- TCP


def test_a_listener_takes_connections_before_any_worker_lives(bind: Bind) -> None:
    (listener,) = bind(LOCAL)
    assert answers(("127.0.0.1", port_of(listener)))
    assert listener.address == f"http://127.0.0.1:{port_of(listener)}"


def test_a_listener_never_blocks_and_is_not_inherited(bind: Bind, path: Path) -> None:
    for listener in bind(LOCAL, UnixAddress(str(path))):
        assert not listener.socket.getblocking()
        assert not any(map(os.get_inheritable, listener.descriptors))


@ipv6
def test_an_empty_host_is_every_interface_of_both_families(bind: Bind) -> None:
    (listener,) = bind(TcpAddress("", 0))
    assert answers(("127.0.0.1", port_of(listener)))
    assert answers(("::1", port_of(listener)), socket.AF_INET6)
    assert listener.address == f"http://[::]:{port_of(listener)}"


def test_without_ipv6_an_empty_host_is_every_interface_of_ipv4(
    bind: Bind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    (listener,) = bind(TcpAddress("", 0))
    assert listener.address == f"http://0.0.0.0:{port_of(listener)}"


@ipv6
def test_both_wildcards_may_share_a_port(bind: Bind) -> None:
    (four,) = bind(TcpAddress("0.0.0.0", 0))
    port = port_of(four)
    four.close()
    for order in (("0.0.0.0", "::"), ("::", "0.0.0.0")):
        both = bind(*(TcpAddress(host, port) for host in order))
        assert {listener.socket.family for listener in both} == {socket.AF_INET, socket.AF_INET6}
        for listener in both:
            listener.close()


@ipv6
def test_a_name_is_served_on_all_its_addresses_and_one_free_port(
    bind: Bind, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolves_to(monkeypatch, ("127.0.0.1", "::1", "127.0.0.1"))
    made = bind(TcpAddress("localhost", 0))
    assert [listener.address for listener in made] == [
        f"http://127.0.0.1:{port_of(made[0])}",
        f"http://[::1]:{port_of(made[0])}",
    ]


@ipv6
def test_a_free_port_has_to_be_free_on_every_address(
    bind: Bind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's first choice is taken on the second address."""
    resolves_to(monkeypatch, ("127.0.0.1", "::1"))
    with socket.socket(socket.AF_INET6) as rival:
        real = listeners._listen

        def listen(family: int, *rest: object, **how: object) -> socket.socket:
            end = real(family, *rest, **how)  # type: ignore[arg-type]
            if family == socket.AF_INET and rival.getsockname()[1] == 0:
                rival.bind(("::1", end.getsockname()[1]))
                rival.listen()
            return end

        monkeypatch.setattr(listeners, "_listen", listen)
        made = bind(TcpAddress("localhost", 0))
        assert len({port_of(listener) for listener in made}) == 1
        assert port_of(made[0]) != rival.getsockname()[1]


@pytest.mark.parametrize("addresses", [("192.0.2.1", "127.0.0.1"), ("127.0.0.1", "192.0.2.1")])
def test_an_address_of_a_name_that_this_machine_lacks_is_left_out(
    bind: Bind, monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, str]
) -> None:
    resolves_to(monkeypatch, addresses)
    (listener,) = bind(TcpAddress("localhost", 0))
    assert listener.address.startswith("http://127.0.0.1:")


def resolves_to(monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...]) -> None:
    """Let every name have these addresses, as /etc/hosts may."""
    real = socket.getaddrinfo

    def look_up(host: str, port: int, **how: object) -> list[object]:
        return [item for each in hosts for item in real(each, port, **how)]  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_names_are_looked_up_in_advance_and_only_once(
    bind: Bind, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    addresses = [TcpAddress("localhost", 0), LOCAL, TcpAddress("", 0), UnixAddress(str(path))]
    places = listeners.resolve(addresses)
    assert set(places) == {"localhost:0", "127.0.0.1:0", ":0"}

    def look_up(*_: object, **__: object) -> None:
        raise AssertionError("a name server may take long")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    made = bind(*addresses, places=places)
    assert listeners.resolve(addresses, keep=made) == {}
    assert bind(*addresses, keep=made) == made


def test_a_port_in_use_names_its_holder(bind: Bind) -> None:
    (held,) = bind(LOCAL)
    address = TcpAddress("127.0.0.1", port_of(held))

    def work() -> str:
        held.socket.close()  # our copy: the holder is somebody else now
        with pytest.raises(CannotBind) as caught:
            bind_all([address], backlog=1)
        assert caught.value.exit_code == ExitCode.CANNOT_BIND
        return str(caught.value)

    name = Path("/proc/self/comm").read_text().strip()
    assert in_child(work) == (
        f"cannot listen on 127.0.0.1:{address.port}: the port is in use by "
        f"process {os.getpid()} ({name}); stop that program, or choose another --port"
    )


@only_root
def test_a_port_held_by_another_user_names_that_user(bind: Bind) -> None:
    (held,) = bind(LOCAL)
    address = TcpAddress("127.0.0.1", port_of(held))

    def work() -> str:
        held.socket.close()
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with pytest.raises(CannotBind) as caught:
            bind_all([address], backlog=1)
        return caught.value.reason

    assert in_child(work) == "the port is in use by a process of the user with the id 0"


def test_an_address_that_overlaps_one_of_ours_is_told_apart(bind: Bind) -> None:
    (held,) = bind(LOCAL)
    with pytest.raises(CannotBind, match="this server itself has the port"):
        bind(TcpAddress("0.0.0.0", port_of(held)))


def test_two_that_reach_bind_at_once_do_not_both_listen() -> None:
    """bind() succeeds for both, as long as neither listens; listen() decides."""
    with socket.socket() as rival:
        rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rival.bind(("127.0.0.1", 0))
        address = TcpAddress("127.0.0.1", rival.getsockname()[1])
        (ours,) = bind_all([address], backlog=1)
        with pytest.raises(OSError, match="in use"):
            rival.listen()
        ours.close()


def test_many_that_start_at_once_on_one_port_have_one_winner() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = TcpAddress("127.0.0.1", probe.getsockname()[1])
    assert winners(lambda: bind_all([address], backlog=1)) == 1


def test_many_that_start_at_once_on_one_path_have_one_winner(path: Path) -> None:
    stale(path)
    assert winners(lambda: bind_all([UnixAddress(str(path))], backlog=1)) == 1
    # The winner was killed, so its lock is left over; that hinders nobody.
    assert winners(lambda: bind_all([UnixAddress(str(path))], backlog=1)) == 1


def winners(bind: Callable[[], object], rivals: int = 12) -> int:
    """Let processes bind at the same moment; return how many can. They keep it until then."""
    go, begin = os.pipe()
    told, tell = os.pipe()
    end, finish = os.pipe()

    def compete() -> None:
        os.close(begin)
        os.close(finish)
        os.read(go, 1)
        try:
            kept = bind()
        except AsgictlError:
            os.write(tell, b"-")
        else:
            os.write(tell, b"+")
            os.read(end, 1)
            del kept

    children = [start(compete) for _ in range(rivals)]
    os.close(begin)
    results = b"".join(os.read(told, 1) for _ in children)
    os.close(finish)
    assert all(ended(child).code == 0 for child in children)
    for fd in (go, told, tell, end):
        os.close(fd)
    return results.count(b"+")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (TcpAddress("no-such-host.invalid", 80), "'no-such-host.invalid' has no address"),
        (TcpAddress("x" * 70, 80), "has no address"),
        (TcpAddress("192.0.2.1", 0), "this machine does not have that address"),
    ],
)
def test_an_address_that_cannot_be_had_says_why(
    bind: Bind, address: TcpAddress, reason: str
) -> None:
    with pytest.raises(CannotBind, match=reason):
        bind(address)


@only_root
def test_a_reserved_port_says_how_to_get_it() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first <= 81:
        pytest.skip("every user may take low ports here")

    def work() -> str:
        os.setuid(NOBODY)
        with pytest.raises(CannotBind) as caught:
            bind_all([TcpAddress("127.0.0.1", 81)], backlog=1)
        return str(caught.value)

    assert "this user may not take a port below 1024; choose a higher --port" in in_child(work)


def test_all_are_bound_or_none(bind: Bind, path: Path) -> None:
    (held,) = bind(LOCAL)
    before = descriptors()
    with pytest.raises(CannotBind):
        bind(LOCAL, UnixAddress(str(path)), TcpAddress("127.0.0.1", port_of(held)))
    assert descriptors() == before
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("left", range(5))
def test_without_a_descriptor_left_it_says_so_and_leaves_nothing(path: Path, left: int) -> None:
    def work() -> str:
        use_up_descriptors(left)
        try:
            bind_all([UnixAddress(str(path)), LOCAL], backlog=1)
        except CannotBind as error:
            return error.reason
        return "bound"

    reason = in_child(work)
    assert reason == ("Too many open files" if left < 3 else "bound")
    assert reason == "bound" or list(path.parent.iterdir()) == []


# -- Reloads


def test_listeners_asked_for_again_are_kept_as_they_are(bind: Bind, path: Path) -> None:
    unix = UnixAddress(str(path))
    first = bind(LOCAL, unix)
    assert bind(unix, LOCAL, keep=first) == first[::-1]


def test_a_connection_in_the_queue_outlives_the_reload(bind: Bind) -> None:
    (listener,) = bind(LOCAL)
    with socket.create_connection(("127.0.0.1", port_of(listener))) as client:
        (kept,) = bind(LOCAL, keep=[listener])
        connection, _ = kept.socket.accept()
        connection.sendall(b"served")
        assert client.recv(6) == b"served"
        connection.close()


def test_a_failed_reload_leaves_the_kept_listeners_open(bind: Bind) -> None:
    (held,) = bind(LOCAL)
    with pytest.raises(CannotBind):
        bind(LOCAL, TcpAddress("0.0.0.0", port_of(held)), keep=[held])
    assert answers(("127.0.0.1", port_of(held)))


def test_a_reload_may_change_the_length_of_the_queue(bind: Bind) -> None:
    first = bind(LOCAL, backlog=1)
    (kept,) = bind(LOCAL, backlog=64, keep=first)
    clients = [socket.create_connection(kept.socket.getsockname(), 5) for _ in range(32)]
    for client in clients:
        client.close()


# -- UNIX sockets


def stale(path: Path) -> None:
    """Leave a socket behind as a killed server does."""
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))
        end.listen()


def test_a_unix_socket_takes_connections_and_leaves_nothing(path: Path) -> None:
    (listener,) = bind_all([UnixAddress(str(path))], backlog=1)
    assert answers(str(path), socket.AF_UNIX)
    assert listener.address == f"unix:{path}"
    assert listener.socket.getsockname() == str(path)  # the application sees it in the scope
    listener.close()
    assert list(path.parent.iterdir()) == []


def test_a_relative_path_counts_from_where_it_was_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (listener,) = bind_all([UnixAddress("app.sock")], backlog=1)
    monkeypatch.chdir("/")
    assert listener.address == f"unix:{tmp_path}/app.sock"
    listener.close()
    assert list(tmp_path.iterdir()) == []


def test_the_longest_path_that_sockets_have_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    room = 107 - len(str(tmp_path)) - 1
    if room < 1:
        pytest.skip("the temporary directory has a long name itself")
    (listener,) = bind_all([UnixAddress(str(tmp_path / ("x" * room)))], backlog=1)
    listener.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o600, 0o777])
def test_a_unix_socket_has_the_permissions_asked_for_whatever_the_umask(
    bind: Bind, path: Path, mode: int
) -> None:
    before = os.umask(0o077)
    try:
        bind(UnixAddress(str(path)), access=Access(mode))
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_permissions_are_told_in_octal() -> None:
    assert Access.of("640", None) == Access(0o640, -1, -1)
    assert Access.of("0o600", Identity(7, 8, "web", "/")) == Access(0o600, 7, 8)


@only_root
def test_a_unix_socket_belongs_to_whom_the_workers_run_as(bind: Bind, path: Path) -> None:
    bind(UnixAddress(str(path)), access=Access(0o600, NOBODY, NOBODY))
    assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY)


def test_a_unix_socket_whose_path_was_removed_is_made_anew(bind: Bind, path: Path) -> None:
    (first,) = bind(UnixAddress(str(path)))
    assert bind(UnixAddress(str(path)), keep=[first]) == [first]
    path.unlink()
    (second,) = bind(UnixAddress(str(path)), keep=[first])
    assert second is not first
    assert answers(str(path), socket.AF_UNIX)
    # The old one goes when the reload is committed, and takes nothing along.
    assert bind(UnixAddress(str(path)), keep=[first, second]) == [second]
    first.close()
    assert answers(str(path), socket.AF_UNIX)
    with pytest.raises(CannotBind, match="serves there"):
        bind(UnixAddress(str(path)))
    second.close()
    assert list(path.parent.iterdir()) == []


def test_also_if_its_lock_was_removed_with_it(bind: Bind, path: Path) -> None:
    (first,) = bind(UnixAddress(str(path)))
    for file in path.parent.iterdir():
        file.unlink()
    (second,) = bind(UnixAddress(str(path)), keep=[first])
    first.close()
    assert answers(str(path), socket.AF_UNIX)
    second.close()
    assert list(path.parent.iterdir()) == []


def test_but_not_if_somebody_else_has_taken_the_path(bind: Bind, path: Path) -> None:
    (first,) = bind(UnixAddress(str(path)))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(CannotBind, match="serves there"):
            bind(UnixAddress(str(path)), keep=[first])
        first.close()
        assert answers(str(path), socket.AF_UNIX)


def test_a_unix_socket_that_is_kept_can_be_given_to_others(bind: Bind, path: Path) -> None:
    (listener,) = bind(UnixAddress(str(path)), access=Access(0o600))
    listener.give_access(Access(0o660))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    # What somebody has changed by hand is not undone as long as the settings stay.
    path.chmod(0o666)
    listener.give_access(Access(0o660))
    assert stat.S_IMODE(path.stat().st_mode) == 0o666


@only_root
def test_its_owner_changes_too_and_back(bind: Bind, path: Path) -> None:
    (listener,) = bind(UnixAddress(str(path)))
    listener.give_access(Access(0o600, NOBODY, NOBODY))
    assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY)
    listener.give_access(Access(0o600))
    assert (path.stat().st_uid, path.stat().st_gid) == (0, os.getegid())


def test_a_file_that_has_taken_the_path_is_not_changed(bind: Bind, path: Path) -> None:
    (listener,) = bind(UnixAddress(str(path)))
    path.unlink()
    path.touch(0o640)
    with pytest.raises(FileNotFoundError, match="another file"):
        listener.give_access(Access(0o600))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_tcp_socket_has_no_permissions(bind: Bind) -> None:
    (listener,) = bind(TcpAddress("127.0.0.1", 0))
    listener.give_access(Access(0o600, NOBODY, NOBODY))


def test_a_socket_that_a_killed_server_left_is_replaced(bind: Bind, path: Path) -> None:
    def work() -> None:
        bind_all([UnixAddress(str(path))], backlog=1)
        signal.raise_signal(signal.SIGKILL)

    assert ended(start(work)).signal == "KILL"
    assert path.is_socket()
    assert path.with_name("app.sock.lock").exists()
    (listener,) = bind(UnixAddress(str(path)))
    assert answers(str(path), socket.AF_UNIX)
    listener.close()
    assert list(path.parent.iterdir()) == []


def test_a_live_server_keeps_its_socket_and_is_named(bind: Bind, path: Path) -> None:
    bind(UnixAddress(str(path)))
    with pytest.raises(CannotBind) as caught:
        bind_all([UnixAddress(str(path))], backlog=1)
    assert str(caught.value) == (
        f"cannot listen on unix:{path}: process {os.getpid()} (asgictl) serves there; "
        f"stop it, or choose another path"
    )
    assert caught.value.exit_code == ExitCode.CANNOT_BIND
    assert answers(str(path), socket.AF_UNIX)


@pytest.mark.parametrize("queue", [16, 0])
def test_a_live_socket_of_another_program_is_never_stolen(path: Path, queue: int) -> None:
    """Not even when its queue is so full that it cannot be connected to."""
    with socket.socket(socket.AF_UNIX) as other, contextlib.ExitStack() as stack:
        other.bind(str(path))
        other.listen(queue)
        if not queue:
            fill_queue(path, stack)
        with pytest.raises(CannotBind, match=rf"process {os.getpid()} \(.+\) serves there"):
            bind_all([UnixAddress(str(path))], backlog=1)
        assert path.stat().st_ino == path.stat().st_ino
        assert [item.name for item in path.parent.iterdir()] == ["app.sock"]


def fill_queue(path: Path, stack: contextlib.ExitStack) -> None:
    while True:
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.setblocking(False)
        try:
            client.connect(str(path))
        except BlockingIOError:
            return


def test_a_socket_of_another_type_is_somebodys(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(CannotBind, match="serves there"):
            bind_all([UnixAddress(str(path))], backlog=1)
        assert path.is_socket()


@only_root
def test_a_socket_that_we_may_not_connect_to_is_somebodys(path: Path) -> None:
    path.parent.chmod(0o777)
    for parent in path.parent.parents[:2]:
        parent.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        path.chmod(0o600)
        other.listen()

        def work() -> str:
            other.close()
            os.setuid(NOBODY)
            with pytest.raises(CannotBind) as caught:
                bind_all([UnixAddress(str(path))], backlog=1)
            return caught.value.reason

        assert in_child(work) == "another process serves there"


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link"])
def test_what_is_not_a_socket_is_left_alone(path: Path, kind: str) -> None:
    target = path.with_name("target")
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        if kind == "link":
            stale(target)
        path.symlink_to(target)
    before = {item: item.lstat().st_ino for item in path.parent.iterdir()}
    with pytest.raises(CannotBind, match="not a socket"):
        bind_all([UnixAddress(str(path))], backlog=1)
    assert {item: item.lstat().st_ino for item in path.parent.iterdir()} == before


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotBind, match=f"the directory {tmp_path}/run does not exist; make it"):
        bind_all([UnixAddress(str(tmp_path / "run/app.sock"))], backlog=1)


@only_root
def test_a_directory_without_the_right_to_write_is_named(tmp_path: Path) -> None:
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    tmp_path.chmod(0o755)

    def work() -> str:
        os.setuid(NOBODY)
        with pytest.raises(CannotBind) as caught:
            bind_all([UnixAddress(str(tmp_path / "app.sock"))], backlog=1)
        return caught.value.reason

    assert in_child(work) == f"this user may not write in {tmp_path}"


@only_root
def test_a_lock_of_another_user_is_named(tmp_path: Path) -> None:
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    tmp_path.chmod(0o1777)
    lock = tmp_path / "app.sock.lock"
    lock.touch(0o600)

    def work() -> str:
        os.setuid(NOBODY)
        with pytest.raises(CannotBind) as caught:
            bind_all([UnixAddress(str(tmp_path / "app.sock"))], backlog=1)
        return str(caught.value)

    assert f"its lock {lock} cannot be used (Permission denied); remove it" in in_child(work)


def test_a_link_in_place_of_the_lock_is_not_followed(path: Path) -> None:
    precious = path.with_name("precious")
    precious.write_text("kept")
    path.with_name("app.sock.lock").symlink_to(precious)
    with pytest.raises(CannotBind, match="its lock"):
        bind_all([UnixAddress(str(path))], backlog=1)
    assert precious.read_text() == "kept"


def test_a_socket_that_took_our_place_is_not_removed(bind: Bind, path: Path) -> None:
    (listener,) = bind(UnixAddress(str(path)))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listener.close()
        assert [item.name for item in path.parent.iterdir()] == ["app.sock"]


# -- Descriptors that others hand over


def listening(where: object = ("127.0.0.1", 0), family: int = socket.AF_INET) -> socket.socket:
    end = socket.socket(family)
    end.bind(where)  # type: ignore[arg-type]
    end.listen()
    end.set_inheritable(True)
    return end


def test_an_inherited_socket_is_taken_as_it_is(bind: Bind) -> None:
    end = listening()
    (listener,) = bind(InheritedDescriptor(end.fileno()))
    assert listener.address == f"http://127.0.0.1:{end.getsockname()[1]}"
    assert not os.get_inheritable(end.fileno())
    assert not listener.socket.getblocking()
    end.detach()


def test_an_inherited_unix_socket_is_not_removed(path: Path) -> None:
    end = listening(str(path), socket.AF_UNIX)
    (listener,) = bind_all([InheritedDescriptor(end.detach())], backlog=1)
    assert listener.address == f"unix:{path}"
    listener.close()
    assert path.is_socket()


def test_an_abstract_unix_socket_is_shown_with_an_at_sign(bind: Bind) -> None:
    end = listening(f"\0asgictl-test-{os.getpid()}", socket.AF_UNIX)
    (listener,) = bind(InheritedDescriptor(end.detach()))
    assert listener.address == f"unix:@asgictl-test-{os.getpid()}"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: open(os.devnull), "the descriptor is not a socket"),  # noqa: SIM115
        (lambda: socket.socket(), "the socket does not listen"),
        (lambda: socket.socket(type=socket.SOCK_DGRAM), "the socket does not listen"),
    ],
)
def test_what_cannot_be_accepted_from_is_refused_and_left_open(
    make: Callable[[], socket.socket], reason: str
) -> None:
    with make() as file:
        with pytest.raises(CannotBind, match=reason):
            bind_all([InheritedDescriptor(file.fileno())], backlog=1)
        os.fstat(file.fileno())


def test_a_descriptor_that_is_not_there_is_named() -> None:
    with pytest.raises(CannotBind, match=r"cannot listen on fd://987: there is no such descriptor"):
        bind_all([InheritedDescriptor(987)], backlog=1)


def test_a_descriptor_is_given_back_when_another_address_cannot_be_had(bind: Bind) -> None:
    (held,) = bind(LOCAL)
    taken = TcpAddress("127.0.0.1", port_of(held))
    with listening() as end:
        with pytest.raises(CannotBind, match=r"in use|itself"):
            bind(InheritedDescriptor(end.fileno()), taken)
        assert os.get_inheritable(end.fileno())
        assert answers(end.getsockname())


def test_a_reload_may_call_an_inherited_socket_by_its_name(bind: Bind) -> None:
    fd = listening().detach()
    first = bind(InheritedDescriptor(fd))
    assert bind(SystemdSockets("web"), passed={fd: "web"}, keep=first) == first


def test_a_reload_takes_no_socket_that_was_not_handed_over(bind: Bind) -> None:
    first = bind(LOCAL)
    with listening() as ours:  # as the control socket is
        ours.set_inheritable(False)
        with pytest.raises(CannotBind, match="no such descriptor was handed over at the start"):
            bind(LOCAL, InheritedDescriptor(ours.fileno()), keep=first)
        assert answers(ours.getsockname())


# -- Sockets of systemd


def test_sockets_are_told_by_variables() -> None:
    environ = {"LISTEN_PID": "7", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "web:web:admin"}
    assert passed_sockets(environ, 7) == {3: "web", 4: "web", 5: "admin"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_PID": "8", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "7", "LISTEN_FDS": "many"},
        {"LISTEN_PID": "7", "LISTEN_FDS": "0"},
        {"LISTEN_PID": "7"},
    ],
)
def test_sockets_for_another_process_are_not_ours(environ: dict[str, str]) -> None:
    assert passed_sockets(environ, 7) == {}


@pytest.mark.parametrize("names", [None, "", "web"])
def test_a_socket_without_a_name_is_unknown(names: str | None) -> None:
    environ = {"LISTEN_PID": "7", "LISTEN_FDS": "2"}
    if names is not None:
        environ["LISTEN_FDNAMES"] = names
    assert passed_sockets(environ, 7) == {3: names or "unknown", 4: "unknown"}


def test_sockets_are_taken_by_name(bind: Bind, path: Path) -> None:
    web, web6, admin = listening(), listening(), listening(str(path), socket.AF_UNIX)
    passed = {web.fileno(): "web", web6.fileno(): "web", admin.fileno(): "admin"}
    made = bind(SystemdSockets("admin"), SystemdSockets("web"), passed=passed)
    assert [item.socket.fileno() for item in made] == [
        admin.fileno(),
        web.fileno(),
        web6.fileno(),
    ]
    assert not any(os.get_inheritable(item.socket.fileno()) for item in made)
    kept = bind(SystemdSockets("web"), SystemdSockets("admin"), passed=passed, keep=made)
    assert kept == [*made[1:], made[0]]
    for end in (web, web6, admin):
        end.detach()


def test_a_star_takes_them_all(bind: Bind) -> None:
    ends = [listening(), listening()]
    passed = {end.fileno(): name for end, name in zip(ends, ("a", "b"), strict=True)}
    assert len(bind(SystemdSockets("*"), LOCAL, passed=passed)) == 3
    for end in ends:
        end.detach()


def test_a_socket_that_nothing_serves_is_an_error(bind: Bind) -> None:
    web, admin = listening(), listening()
    passed = {web.fileno(): "web", admin.fileno(): "admin"}
    with pytest.raises(UnusedSockets) as caught:
        bind(InheritedDescriptor(web.fileno()), passed=passed)
    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION
    assert "nothing serves the sockets that were passed to this process: admin;" in str(
        caught.value
    )
    assert "--bind systemd:admin" in str(caught.value)
    web.detach()
    admin.close()


def test_a_name_that_was_not_passed_is_an_error_that_names_the_others(bind: Bind) -> None:
    with listening() as web, pytest.raises(CannotBind, match="these were passed: web"):
        bind(SystemdSockets("wbe"), passed={web.fileno(): "web"})


def test_a_start_without_systemd_is_told(bind: Bind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    with pytest.raises(CannotBind, match="no sockets were passed to this process; start it by"):
        bind(SystemdSockets("web"))


def test_a_start_through_a_shell_is_told(bind: Bind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    with pytest.raises(CannotBind, match="but to process 1; let that one start asgictl with exec"):
        bind(SystemdSockets("web"))


@pytest.mark.parametrize("second", [SystemdSockets("*"), InheritedDescriptor])
def test_one_socket_under_two_names_is_an_error(bind: Bind, second: BindAddress) -> None:
    web = listening()
    if second is InheritedDescriptor:
        second = InheritedDescriptor(web.fileno())
    with pytest.raises(CannotBind, match="another --bind means the same socket"):
        bind(SystemdSockets("web"), second, passed={web.fileno(): "web"})
    web.detach()


@pytest.mark.skipif(
    not Path("/usr/bin/systemd-socket-activate").exists(), reason="needs systemd-socket-activate"
)
def test_the_tool_of_systemd_hands_its_sockets_over(path: Path) -> None:
    code = (
        "import os, sys\n"
        "from asgictl.settings import SystemdSockets\n"
        "from asgictl.system.listeners import bind_all, passed_sockets\n"
        "passed = passed_sockets(os.environ, os.getpid())\n"
        "for item in bind_all([SystemdSockets('web')], backlog=1, passed=passed):\n"
        "    item.socket.accept()[0].sendall(item.address.encode())\n"
        "    item.close()\n"
    )
    tool = subprocess.Popen(
        [
            "systemd-socket-activate",
            "--fdname=web",
            *("-E", f"PYTHONPATH={os.pathsep.join(sys.path)}"),
            *("-l", str(path), sys.executable, "-c", code),
        ],
        env={"PATH": os.environ["PATH"]},
        stderr=subprocess.PIPE,
    )
    assert tool.stderr is not None
    try:
        assert select.select([tool.stderr], [], [], 10)[0]
        assert b"Listening on" in tool.stderr.readline()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(path))
            assert client.recv(200) == f"unix:{path}".encode()
        assert tool.wait(10) == 0
        assert path.is_socket()
    finally:
        tool.kill()
        tool.wait()
        tool.stderr.close()


# -- From one program to the next


def test_the_next_program_goes_on_with_everything(path: Path) -> None:
    first = bind_all([LOCAL, UnixAddress(str(path))], backlog=1)
    left = [listener.hand_over() for listener in first]
    taken = [Listener.take_over(item) for item in left]
    for old, new in zip(first, taken, strict=True):
        assert (new.asked, new.address) == (old.asked, old.address)
        assert new.descriptors == old.descriptors
        old.socket.detach()
        new.close()
    assert list(path.parent.iterdir()) == []


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))
