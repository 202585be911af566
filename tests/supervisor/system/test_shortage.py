"""When descriptors or processes run out: what is held back, and what is said."""

import contextlib
import errno
import os
import resource
from pathlib import Path

import pytest
from tests.supervisor.system.children import FORKS, in_child
from tests.supervisor.system.test_machine import tree

from asgictl.system.shortage import SpareDescriptors, TaskLimit, why_no_fork

pytestmark = FORKS


def fill_up() -> None:
    """Leave this process no descriptor."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with contextlib.suppress(OSError):
        while True:
            os.open(os.devnull, os.O_RDONLY)


def opens() -> bool:
    try:
        os.close(os.open("/proc/self/stat", os.O_RDONLY))
    except OSError:
        return False
    return True


def test_what_is_held_back_is_there_when_nothing_else_is() -> None:
    def work() -> list[bool]:
        spare = SpareDescriptors(2)
        fill_up()
        before = opens()
        with spare.lent():
            meanwhile = opens()
        return [before, meanwhile, opens()]

    assert in_child(work) == [False, True, False]


def test_no_more_is_lent_than_is_held_back() -> None:
    def work() -> list[bool]:
        spare = SpareDescriptors(2)
        fill_up()
        taken = []
        for _ in range(3):
            lent = spare.lend()
            taken.append(lent and os.open(os.devnull, os.O_RDONLY))
        spare.take_back()  # there is nothing to take: it is a matter for later
        os.close(taken[0])
        spare.take_back()
        return [taken[1] > 0, bool(taken[2]), opens(), spare.lend(), spare.lend()]

    assert in_child(work) == [True, False, False, True, False]


def test_nothing_is_held_back_after_the_end() -> None:
    def work() -> list[int]:
        before = len(os.listdir("/proc/self/fd"))
        spare = SpareDescriptors(2)
        between = len(os.listdir("/proc/self/fd"))
        spare.close()
        spare.take_back()
        return [between - before, len(os.listdir("/proc/self/fd")) - before]

    assert in_child(work) == [2, 0]


# -- Processes

GROUPS = "0::/web/asgictl\n"


def limits(root: Path, *, inner: str = "max", outer: str = "max", taken: int = 0) -> TaskLimit:
    files = {
        "web/asgictl/pids.max": f"{inner}\n",
        "web/asgictl/pids.current": f"{taken}\n",
        "web/pids.max": f"{outer}\n",
        "web/pids.current": f"{taken + 10}\n",
    }
    return TaskLimit(tree(root, GROUPS, files))


def test_the_group_with_the_least_room_counts(tmp_path: Path) -> None:
    where = tmp_path / "sys/fs/cgroup/web"
    assert limits(tmp_path, inner="100", outer="105", taken=50).fullest() == (60, 105, where)


@pytest.mark.parametrize("text", ["max", "", "many"])
def test_without_a_limit_there_is_nothing_to_say(tmp_path: Path, text: str) -> None:
    tasks = limits(tmp_path, inner=text, taken=5000)
    assert tasks.fullest() is None
    assert tasks.warning() == ""


def test_without_control_groups_neither(tmp_path: Path) -> None:
    assert TaskLimit(tmp_path).warning() == ""


def test_a_limit_that_comes_near_is_told_once_until_it_was_far_again(tmp_path: Path) -> None:
    tasks = limits(tmp_path, inner="100")
    taken = tmp_path / "sys/fs/cgroup/web/asgictl/pids.current"

    def told(count: int) -> bool:
        taken.write_text(f"{count}\n")
        return f"{count} of the 100 processes and threads" in tasks.warning()

    assert [told(count) for count in (10, 89, 90, 99, 80, 95, 74, 91)] == [
        *(False, False, True, False),
        *(False, False, False, True),
    ]


@pytest.mark.parametrize(("taken", "named"), [(99, False), (100, True), (101, True)])
def test_a_failed_fork_names_the_limit_only_if_it_was_reached(
    tmp_path: Path, taken: int, named: bool
) -> None:
    tasks = limits(tmp_path, inner="100", taken=taken)
    text = why_no_fork(OSError(errno.EAGAIN, "Resource temporarily unavailable"), tasks)
    assert text.startswith("cannot fork: Resource temporarily unavailable")
    assert ("TasksMax=" in text) is named


def test_without_descriptors_it_names_their_limit(tmp_path: Path) -> None:
    text = why_no_fork(OSError(errno.EMFILE, "Too many open files"), TaskLimit(tmp_path))
    assert text.startswith("cannot fork: Too many open files (this process may open ")
    assert "LimitNOFILE=" in text


def test_other_reasons_stand_alone(tmp_path: Path) -> None:
    text = why_no_fork(OSError(errno.ENOMEM, "Cannot allocate memory"), TaskLimit(tmp_path))
    assert text == "cannot fork: Cannot allocate memory"
