"""Becoming somebody with fewer rights, for good."""

import contextlib
import grp
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass

from asgictl_worker.errors import ConfigurationError


class UnknownAccount(ConfigurationError):
    """There is no such user or group."""

    def __init__(self, kind: str, name: str) -> None:
        self.kind, self.name = kind, name
        super().__init__(f"there is no {kind} {name!r} on this machine; see --{kind}")


class UnknownGroup(ConfigurationError):
    """The group that a user's processes get is written nowhere."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        super().__init__(
            f"there is no user with the id {uid} on this machine, so its group is not known; "
            f"add --group"
        )


class NotAllowed(ConfigurationError):
    """Only root can become somebody else."""

    def __init__(self, account: str, reason: str = "") -> None:
        self.account, self.reason = account, reason
        why = reason or "only root may change the user of a process"
        super().__init__(
            f"workers cannot run as {account}: {why}; "
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

    def adapt(self, environ: Mapping[str, str], inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the variables with those exchanged that say whose process it is.

        With root's HOME, libraries would look for files that a worker may not read. Those that
        the settings have set on purpose are left alone.

        Args:
            environ: variables of a worker.
            inherited: variables of the supervisor.
        """
        if not self.name:
            return dict(environ)
        ours = {"HOME": self.home, "USER": self.name, "LOGNAME": self.name}
        same = {name for name in ours if environ.get(name) == inherited.get(name)}
        return {**environ, **{name: ours[name] for name in same}}


def identity(user: str | None, group: str | None) -> Identity | None:
    """Return whom the settings ask for, or None if workers stay who they are.

    Raises:
        UnknownAccount: there is no such user or group.
        UnknownGroup: a user is given by a number that nobody has, and no group.
        NotAllowed: this process may not become them.
    """
    if user is None and group is None:
        return None
    uid, gid, name, home = os.getuid(), os.getgid(), "", ""
    if user is not None:
        try:
            entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
            uid, gid, name, home = entry.pw_uid, entry.pw_gid, entry.pw_name, entry.pw_dir
        except (KeyError, OverflowError):
            if not user.isdecimal():
                raise UnknownAccount("user", user) from None
            uid = _number("user", user)
            if group is None:
                # Not the group of the supervisor, which is root's.
                raise UnknownGroup(uid) from None
    if group is not None:
        try:
            gid = _number("group", group) if group.isdecimal() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise UnknownAccount("group", group) from None
    wanted = Identity(uid, gid, name, home)
    if (uid, gid) != (os.getuid(), os.getgid()):
        if os.geteuid() != 0:
            raise NotAllowed(str(wanted))
        if missing := _missing_capabilities():
            raise NotAllowed(str(wanted), f"this root lacks {missing}, as in some containers")
    return wanted


def _number(kind: str, text: str) -> int:
    # The highest one stands for "no change" (setresuid(2)).
    if int(text) >= 2**32 - 1:
        raise UnknownAccount(kind, text)
    return int(text)


def _missing_capabilities() -> str:
    """Return which of the capabilities to change user and group this process lacks."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            effective = int(next(line for line in file if line.startswith("CapEff:"))[7:], 16)
        needed = {"CAP_SETGID": 6, "CAP_SETUID": 7}
        return " and ".join(name for name, bit in needed.items() if not effective >> bit & 1)
    return ""


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
        # As root, these change the real, the effective and the saved one (setuid(2)).
        os.setgid(wanted.gid)
        os.setuid(wanted.uid)
    if hasattr(os, "getresuid"):
        assert os.getresuid() == (wanted.uid,) * 3, "the user was not changed in all three places"
        assert os.getresgid() == (wanted.gid,) * 3, "the group was not changed in all three places"
    if wanted.uid != 0:
        try:
            os.setuid(0)
        except PermissionError:
            return
        raise AssertionError("root can be regained")
