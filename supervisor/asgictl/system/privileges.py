"""Becoming somebody with fewer rights, for good."""

import grp
import os
import pwd
from dataclasses import dataclass

from asgictl_worker.errors import ConfigurationError


class UnknownAccount(ConfigurationError):
    """There is no such user or group."""

    def __init__(self, kind: str, name: str) -> None:
        self.kind, self.name = kind, name
        super().__init__(f"there is no {kind} {name!r} on this machine; see --{kind}")


class NotAllowed(ConfigurationError):
    """Only root can become somebody else."""

    def __init__(self, account: str) -> None:
        self.account = account
        super().__init__(
            f"workers cannot run as {account}: only root may change the user of a process; "
            f"start asgictl as root, or leave --user and --group out"
        )


@dataclass(frozen=True, slots=True)
class Identity:
    """The user and group that workers run as."""

    uid: int
    gid: int
    name: str
    home: str

    def __str__(self) -> str:
        return f"{self.name or self.uid}:{self.gid}"


def identity(user: str | None, group: str | None) -> Identity | None:
    """Return whom the settings ask for, or None if workers stay who they are.

    Raises:
        UnknownAccount: there is no such user or group.
        NotAllowed: this process may not become them.
    """
    if user is None and group is None:
        return None
    uid, gid, name, home = os.getuid(), os.getgid(), "", ""
    if user is not None:
        try:
            entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
            uid, gid, name, home = entry.pw_uid, entry.pw_gid, entry.pw_name, entry.pw_dir
        except KeyError:
            if not user.isdigit():
                raise UnknownAccount("user", user) from None
            uid = int(user)
    if group is not None:
        try:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise UnknownAccount("group", group) from None
    wanted = Identity(uid, gid, name, home)
    if (uid, gid) != (os.getuid(), os.getgid()) and os.geteuid() != 0:
        raise NotAllowed(str(wanted))
    return wanted


def become(wanted: Identity) -> None:
    """Change user and group, real, effective and saved, and prove that there is no way back.

    Raises:
        OSError: the kernel refuses.
    """
    if os.geteuid() == 0:
        if wanted.name:
            os.initgroups(wanted.name, wanted.gid)
        else:
            os.setgroups([wanted.gid])
        os.setresgid(wanted.gid, wanted.gid, wanted.gid)
        os.setresuid(wanted.uid, wanted.uid, wanted.uid)
    assert os.getresuid() == (wanted.uid,) * 3, "the user was not changed in all three places"
    assert os.getresgid() == (wanted.gid,) * 3, "the group was not changed in all three places"
    if wanted.uid != 0:
        try:
            os.setuid(0)
        except PermissionError:
            return
        raise AssertionError("root can be regained")
