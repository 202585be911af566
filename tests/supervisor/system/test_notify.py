"""Words to a service manager: a real datagram socket hears them."""

import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest
from tests.kit import wait_for
from tests.supervisor.system.children import FORKS, ended, in_child, start, use_up_descriptors

from asgictl.system.notify import MAX_STATUS, PRIVATE_VARIABLES, ServiceManager

pytestmark = FORKS


class Systemd:
    """What systemd has at its end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)
        self.name = address.replace("\0", "@")

    def heard(self) -> list[str]:
        """Return the messages that wait."""
        messages = []
        while select.select([self.socket], [], [], 0)[0]:
            messages.append(self.socket.recv(65536).decode())
        return messages


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    abstract = f"\0asgictl-test-{os.getpid()}"
    systemd = Systemd(abstract if request.param == "abstract" else str(tmp_path / "notify"))
    yield systemd
    systemd.socket.close()


@pytest.fixture
def managers() -> Iterator[list[ServiceManager]]:
    managers: list[ServiceManager] = []
    yield managers
    for manager in managers:
        manager.close()


@pytest.fixture
def manager(systemd: Systemd, managers: list[ServiceManager]) -> ServiceManager:
    managers.append(ServiceManager({"NOTIFY_SOCKET": systemd.name}))
    return managers[-1]


def test_each_word_is_one_datagram(systemd: Systemd, manager: ServiceManager) -> None:
    manager.ready("2 ready")
    manager.status("rolling")
    manager.extend(1.5)
    manager.stopping("bye")
    assert systemd.heard() == [
        "READY=1\nSTATUS=2 ready",
        "STATUS=rolling",
        "EXTEND_TIMEOUT_USEC=1500000",
        "STOPPING=1\nSTATUS=bye",
    ]


def test_a_reload_is_stamped_with_the_clock_that_systemd_compares(
    systemd: Systemd, manager: ServiceManager
) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.reloading("checking")
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    (message,) = systemd.heard()
    reloading, stamp, status = message.split("\n")
    assert (reloading, status) == ("RELOADING=1", "STATUS=checking")
    name, _, value = stamp.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= after


def test_a_status_cannot_say_anything_else(systemd: Systemd, manager: ServiceManager) -> None:
    manager.status("refused: bad\nREADY=1\r\n  MAINPID=1\tü\udcff" + "x" * 9999)
    (message,) = systemd.heard()
    assert message.startswith("STATUS=refused: bad READY=1 MAINPID=1 ü?xx")
    assert len(message) == len("STATUS=") + MAX_STATUS


@pytest.mark.parametrize("address", ["", "vsock:2:3", "relative/path"])
def test_without_a_service_manager_nothing_is_said(address: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    manager.ready("ready")
    manager.withhold_ping()
    manager.on_time(1.0)
    assert manager.due == inf
    manager.close()


def test_a_service_manager_that_is_gone_hurts_nobody(
    tmp_path: Path, managers: list[ServiceManager]
) -> None:
    managers.append(ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}))
    managers[0].ready("ready")
    assert managers[0].due == inf


def test_what_does_not_fit_is_said_later_in_order(
    systemd: Systemd, manager: ServiceManager
) -> None:
    sent = 0
    while manager.due == inf:
        manager.status(str(sent))
        sent += 1
    manager.ready("at last")
    assert 0 < manager.due - time.monotonic() <= 0.1
    first = systemd.heard()
    manager.on_time(manager.due)
    assert manager.due == inf
    assert first + systemd.heard() == [
        *(f"STATUS={number}" for number in range(sent)),
        "READY=1\nSTATUS=at last",
    ]


def test_what_never_fits_does_not_pile_up(systemd: Systemd, manager: ServiceManager) -> None:
    for number in range(1000):
        manager.status(str(number))
    heard = systemd.heard()
    while manager.due < inf:
        manager.on_time(manager.due)
        heard += systemd.heard()
    assert len(heard) < 1000
    assert heard[-1] == "STATUS=999"


def test_the_last_descriptor_may_be_gone(systemd: Systemd, manager: ServiceManager) -> None:
    def work() -> None:
        use_up_descriptors()
        manager.ready("ready")

    in_child(work)
    assert systemd.heard() == ["READY=1\nSTATUS=ready"]


def test_an_application_cannot_speak_for_us() -> None:
    assert {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} <= set(PRIVATE_VARIABLES)


# -- The watchdog


def watched(systemd: Systemd, seconds: float, **more: str) -> ServiceManager:
    environ = {"NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": str(int(seconds * 1e6))}
    return ServiceManager({**environ, **more})


def test_the_watchdog_is_pinged_more_than_twice_per_time_out(
    systemd: Systemd, managers: list[ServiceManager]
) -> None:
    manager = watched(systemd, 30.0)
    managers.append(manager)
    now = manager.due
    assert now <= time.monotonic()
    for _ in range(3):
        manager.on_time(manager.due)
    assert systemd.heard() == ["WATCHDOG=1"] * 3
    assert manager.due == pytest.approx(now + 30.0)


def test_too_early_nothing_is_due(systemd: Systemd, managers: list[ServiceManager]) -> None:
    manager = watched(systemd, 30.0)
    managers.append(manager)
    manager.on_time(manager.due)
    systemd.heard()
    manager.on_time(manager.due - 0.001)
    assert systemd.heard() == []


def test_one_error_is_forgiven_and_more_are_not(
    systemd: Systemd, managers: list[ServiceManager]
) -> None:
    manager = watched(systemd, 30.0)
    managers.append(manager)
    said = []
    for failed in (False, True, False, True, True, True):
        if failed:
            manager.withhold_ping()
        now = manager.due
        manager.on_time(now)
        said += [now] * len(systemd.heard())
    assert said[1] - said[0] < 30.0
    assert manager.due - said[1] > 30.0


@pytest.mark.parametrize("pid", [os.getpid() + 1, "", "x"])
def test_a_watchdog_of_another_process_is_not_ours(
    systemd: Systemd, managers: list[ServiceManager], pid: object
) -> None:
    managers.append(watched(systemd, 30.0, WATCHDOG_PID=str(pid)))
    assert managers[0].due == inf


def test_a_watchdog_of_ours_is(systemd: Systemd, managers: list[ServiceManager]) -> None:
    managers.append(watched(systemd, 30.0, WATCHDOG_PID=str(os.getpid())))
    assert managers[0].due < inf


@pytest.mark.parametrize("value", ["0", "-5", "soon", ""])
def test_a_time_out_that_is_none_is_none(
    systemd: Systemd, managers: list[ServiceManager], value: str
) -> None:
    managers.append(ServiceManager({"NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": value}))
    assert managers[0].due == inf


# -- The tool of systemd says the same


@pytest.mark.skipif(not shutil.which("systemd-notify"), reason="needs systemd-notify")
def test_our_words_are_those_of_systemd_notify(tmp_path: Path) -> None:
    systemd = Systemd(str(tmp_path / "notify"))
    environ = {"NOTIFY_SOCKET": systemd.name, "PATH": os.environ["PATH"]}
    tool = ["systemd-notify", "--no-block", "--ready", "--status=2 ready"]
    subprocess.run(tool, env=environ, check=True, timeout=10)
    (theirs,) = wait_for(systemd.heard, "the tool has spoken")

    def work() -> None:
        manager = ServiceManager(environ)
        manager.ready("2 ready")
        manager.close()

    assert ended(start(work)).code == 0
    (ours,) = systemd.heard()
    assert set(ours.split("\n")) <= set(theirs.rstrip("\n").split("\n"))
    systemd.socket.close()
