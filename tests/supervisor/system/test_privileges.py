"""Becoming somebody else: a real process does it, and tries to come back."""

import ctypes
import os
import pwd
from pathlib import Path

import pytest
from tests.supervisor.system.children import (
    FORKS,
    NOBODY,
    ended,
    in_child,
    only_root,
    start,
    status_field,
)

from asgictl.settings import Settings, UnixAddress
from asgictl.system import kernel, listeners, privileges, spawn
from asgictl.system.pidfile import PidFile
from asgictl.system.privileges import Identity, NotAllowed, UnknownAccount, UnknownGroup, identity
from asgictl_worker.errors import ExitCode

pytestmark = FORKS

ME = pwd.getpwuid(os.getuid())
SOMEBODY = Identity(NOBODY, NOBODY, "", "")


# -- Who is meant


def test_without_settings_workers_stay_who_they_are() -> None:
    assert identity(None, None) is None


@pytest.mark.parametrize("user", [ME.pw_name, str(ME.pw_uid)])
def test_everybody_may_stay_who_they_are(user: str) -> None:
    wanted = identity(user, str(os.getgid()))
    assert wanted == Identity(ME.pw_uid, os.getgid(), ME.pw_name, ME.pw_dir)


@only_root
def test_a_user_brings_its_group_and_a_group_can_be_chosen() -> None:
    nobody = pwd.getpwnam("nobody")
    assert identity("nobody", None) == Identity(
        nobody.pw_uid, nobody.pw_gid, "nobody", nobody.pw_dir
    )
    assert identity("nobody", "12345") == Identity(nobody.pw_uid, 12345, "nobody", nobody.pw_dir)
    assert identity("4000000000", "12345") == Identity(4000000000, 12345, "", "")
    assert identity(None, "12345") == Identity(0, 12345, "", "")


def test_a_user_without_an_entry_does_not_get_the_group_of_root() -> None:
    with pytest.raises(UnknownGroup, match=r"no user with the id 4000000000 .* add --group"):
        identity("4000000000", None)


@pytest.mark.parametrize(
    ("user", "group", "kind"),
    [
        ("no such user", None, "user"),
        (None, "no such group", "group"),
        ("4294967295", "1", "user"),
        ("99999999999999999999", "1", "user"),
        (None, "4294967295", "group"),
        ("²", None, "user"),
        ("", None, "user"),
    ],
)
def test_an_account_that_is_not_there_is_named(
    user: str | None, group: str | None, kind: str
) -> None:
    with pytest.raises(UnknownAccount) as caught:
        identity(user, group)
    assert str(caught.value) == (
        f"there is no {kind} {user if kind == 'user' else group!r} on this machine; see --{kind}"
        if kind == "group"
        else f"there is no user {user!r} on this machine; see --user"
    )
    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION


@only_root
def test_only_root_may_become_somebody_else() -> None:
    def work() -> str:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with pytest.raises(NotAllowed) as caught:
            identity("0", "0")
        return str(caught.value)

    assert in_child(work) == (
        f"workers cannot run as {pwd.getpwuid(0).pw_name}:0: only root may change the user of a "
        f"process; start asgictl as root, or leave --user and --group out"
    )


@only_root
def test_a_root_without_its_powers_is_told_so_at_the_start() -> None:
    """As in a container with all capabilities dropped."""

    def work() -> str:
        _drop_capabilities()
        with pytest.raises(NotAllowed) as caught:
            identity("nobody", None)
        return caught.value.reason

    assert in_child(work) == "this root lacks CAP_SETGID and CAP_SETUID, as in some containers"


def _drop_capabilities() -> None:
    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    nothing = (ctypes.c_uint32 * 6)()
    header = Header(0x20080522, 0)  # capset(2), version 3
    assert ctypes.CDLL(None).capset(ctypes.byref(header), nothing) == 0


# -- Becoming it


@only_root
def test_everything_is_lost_and_nothing_can_be_had_back() -> None:
    def work() -> dict[str, object]:
        os.setgroups([0, 4, 27])
        privileges.become(SOMEBODY)
        refused = []
        for attempt in (
            lambda: os.setuid(0),
            lambda: os.seteuid(0),
            lambda: os.setreuid(0, 0),
            lambda: os.setgid(0),
            lambda: os.setegid(0),
            lambda: os.setgroups([0]),
            lambda: os.chown("/etc/passwd", NOBODY, NOBODY),
            lambda: open("/etc/shadow", "rb"),  # noqa: SIM115
            lambda: os.kill(1, 0),
        ):
            try:
                attempt()
            except PermissionError:
                refused.append(True)
        fields = ("Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapAmb")
        return {"refused": refused, **{name: status_field(name).split() for name in fields}}

    assert in_child(work) == {
        "refused": [True] * 9,
        "Uid": [str(NOBODY)] * 4,
        "Gid": [str(NOBODY)] * 4,
        "Groups": [str(NOBODY)],
        "CapPrm": ["0" * 16],
        "CapEff": ["0" * 16],
        "CapAmb": ["0" * 16],
    }


@only_root
def test_a_user_keeps_the_groups_that_it_is_a_member_of() -> None:
    member = next((item for item in pwd.getpwall() if _groups(item) > {item.pw_gid}), None)
    if member is None:
        member = pwd.getpwnam("nobody")
    wanted = identity(member.pw_name, None)
    assert wanted is not None

    def work() -> set[int]:
        os.setgroups([0, 4242])
        privileges.become(wanted)
        return set(os.getgroups())

    assert in_child(work) == _groups(member)


def _groups(user: pwd.struct_passwd) -> set[int]:
    return set(os.getgrouplist(user.pw_name, user.pw_gid))


@only_root
def test_with_a_group_alone_root_stays_root_without_other_groups() -> None:
    def work() -> tuple[int, int, list[int]]:
        os.setgroups([0, 4, 27])
        privileges.become(Identity(0, 12345, "", ""))
        return os.getuid(), os.getgid(), os.getgroups()

    assert in_child(work) == (0, 12345, [12345])


def test_who_becomes_itself_changes_nothing() -> None:
    wanted = Identity(os.getuid(), os.getgid(), "", "")
    if os.geteuid() == 0:
        pytest.skip("root loses its other groups")
    privileges.become(wanted)


# -- What belongs to it


def test_the_variables_tell_whose_process_it_is() -> None:
    inherited = {"HOME": "/root", "USER": "root", "PATH": "/bin"}
    web = Identity(7, 7, "web", "/srv/web")
    assert web.adapt({**inherited, "X": "1"}, inherited) == {
        "HOME": "/srv/web",
        "USER": "web",
        "LOGNAME": "web",
        "PATH": "/bin",
        "X": "1",
    }


def test_variables_that_were_set_on_purpose_are_left_alone() -> None:
    inherited = {"HOME": "/root", "USER": "root"}
    web = Identity(7, 7, "web", "/srv/web")
    assert web.adapt({**inherited, "HOME": "/data"}, inherited)["HOME"] == "/data"


def test_a_user_without_an_entry_has_no_home() -> None:
    inherited = {"HOME": "/root"}
    assert SOMEBODY.adapt(inherited, inherited) == inherited


@only_root
def test_a_spawned_worker_has_nothing_of_root(tmp_path: Path) -> None:
    answer, write_end = os.pipe()
    surroundings = spawn.Surroundings(
        settings=Settings(umask="027"), environ={"A": "b"}, identity=SOMEBODY
    )

    def work(_tls: object) -> int:
        fields = ("Uid", "Groups", "CapEff", "NoNewPrivs", "Umask")
        text = ";".join(" ".join(status_field(name).split()) for name in fields)
        os.write(write_end, f"{text};{dict(os.environ)}".encode())
        return 0

    parent = os.getpid()
    pid = kernel.fork()
    if pid == 0:
        spawn.live(parent, [write_end], surroundings, work)
    assert ended(kernel.Child(pid)).code == 0
    ids = " ".join([str(NOBODY)] * 4)
    assert os.read(answer, 4096).decode() == f"{ids};{NOBODY};{'0' * 16};1;0027;{{'A': 'b'}}"
    os.close(answer)
    os.close(write_end)


@only_root
def test_files_of_the_supervisor_stay_its_own_while_its_workers_are_somebody_else(
    tmp_path: Path,
) -> None:
    """The pid file is root's: who owned it could make root kill another process."""
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    path = tmp_path / "app.sock"
    pidfile = PidFile(str(tmp_path / "pid"))
    access = listeners.Access.of("660", SOMEBODY)
    (listener,) = listeners.bind_all([UnixAddress(str(path))], backlog=1, access=access)

    def work() -> list[bool]:
        privileges.become(SOMEBODY)
        connectable = os.access(path, os.R_OK | os.W_OK)
        writable = [os.access(file, os.W_OK) for file in (pidfile.path, f"{path}.lock", tmp_path)]
        return [connectable, *writable]

    assert in_child(work) == [True, False, False, False]
    listener.close()
    pidfile.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_that_refuses_is_not_overlooked() -> None:
    def work() -> int:
        if os.geteuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        privileges.become(Identity(12345, 12345, "", ""))
        return 0

    assert ended(start(lambda: _quietly(work))).code == 7


def _quietly(work: object) -> int:
    try:
        work()  # type: ignore[operator]
    except AssertionError:
        return 7
    return 0
