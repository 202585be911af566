"""Processors that are ours: fake trees of /proc and /sys, and this machine's own."""

import os
from pathlib import Path

import pytest
from tests.supervisor.system.children import FORKS, in_child

from asgictl.system import machine

pytestmark = FORKS

ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def tree(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Write a fake /proc/self/cgroup and files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        pytest.param("0::/\n", {}, None, id="no files"),
        pytest.param("", {"cpu.max": "100000 100000\n"}, None, id="no groups"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, None, id="unlimited"),
        pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5, id="container"),
        pytest.param(
            "0::/a/b\n",
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"},
            2.0,
            id="of the parent",
        ),
        pytest.param(
            "0::/a/b\n",
            {"a/b/cpu.max": "300000 100000", "a/cpu.max": "200000 100000"},
            2.0,
            id="the smallest",
        ),
        pytest.param(
            "0::/kubepods/pod7/c1\n", {"cpu.max": "50000 100000"}, 0.5, id="path of the outside"
        ),
        pytest.param("0::/../../x\n", {"cpu.max": "50000 100000"}, 0.5, id="path above the root"),
        pytest.param("0::/\n", {"cpu.max": "nonsense\n"}, None, id="not understood"),
        pytest.param("0::/\n", {"cpu.max": "100000 0\n"}, None, id="no period"),
        pytest.param(
            "4:memory:/\n3:cpu,cpuacct:/docker/x\n",
            {
                "cpu,cpuacct/docker/x/cpu.cfs_quota_us": "250000\n",
                "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
            },
            2.5,
            id="version 1, both names",
        ),
        pytest.param(
            "3:cpu,cpuacct:/docker/x\n",
            {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2.5,
            id="version 1, one name, path of the outside",
        ),
        pytest.param(
            "1:cpu:/a/b\n",
            {
                "cpu/a/b/cpu.cfs_quota_us": "-1\n",
                "cpu/a/b/cpu.cfs_period_us": "100000\n",
                "cpu/a/cpu.cfs_quota_us": "100000\n",
                "cpu/a/cpu.cfs_period_us": "100000\n",
            },
            1.0,
            id="version 1, of the parent",
        ),
        pytest.param(
            "2:cpuacct:/\n1:cpu:/\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            4.0,
            id="both versions",
        ),
        pytest.param(
            "2:cpuset:/\n",
            {"cpuset/cpu.cfs_quota_us": "1\n", "cpuset/cpu.cfs_period_us": "1\n"},
            None,
            id="another controller",
        ),
    ],
)
def test_the_smallest_quota_on_the_way_up_counts(
    tmp_path: Path, groups: str, files: dict[str, str], quota: float | None
) -> None:
    assert machine.processor_quota(tree(tmp_path, groups, files)) == quota


def test_without_a_proc_file_system_there_is_no_quota(tmp_path: Path) -> None:
    assert machine.processor_quota(tmp_path) is None


def test_a_path_with_colons_and_odd_bytes_is_followed(tmp_path: Path) -> None:
    name = "a:b\udcff"
    root = tree(tmp_path, "", {f"{name}/cpu.max": "50000 100000"})
    (root / "proc/self/cgroup").write_text(f"0::/{name}\n", "utf-8", "surrogateescape")
    assert machine.processor_quota(root) == 0.5


@pytest.mark.parametrize(
    ("quota", "count", "why"),
    [
        (10_000, 1, "a quota of 0.1 processors"),
        (100_000, 1, "a quota of 1 processor"),
        (110_000, 2, "a quota of 1.1 processors"),
        (900_000, 4, "processors by affinity"),
    ],
)
def test_a_quota_is_rounded_up_to_whole_processors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: int, count: int, why: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 5, 9}, raising=False)
    root = tree(tmp_path, "0::/\n", {"cpu.max": f"{quota} 100000\n"})
    assert machine.available_processors({}, root) == (count, why)


@pytest.mark.parametrize(
    ("value", "count"), [("3", 3), ("0", ALL), ("-1", ALL), ("default", ALL), ("²", ALL)]
)
def test_a_variable_of_python_itself_overrides_a_sensible_count(
    tmp_path: Path, value: str, count: int
) -> None:
    found, _ = machine.available_processors({"PYTHON_CPU_COUNT": value}, tmp_path)
    assert found == count


def test_without_affinity_all_processors_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert machine.available_processors({}, tmp_path) == (os.cpu_count(), "processors")


def test_affinity_counts() -> None:
    def work() -> tuple[int, str]:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return machine.available_processors({})

    assert in_child(work)[0] == 1


def test_a_real_quota_counts() -> None:
    group = Path("/sys/fs/cgroup/cpu", f"asgictl-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a control group of version 1: {error.strerror}")
    try:
        (group / "cpu.cfs_quota_us").write_text("60000")

        def work() -> float | None:
            (group / "cgroup.procs").write_text(str(os.getpid()))
            return machine.processor_quota()

        assert in_child(work) == 0.6
    finally:
        group.rmdir()
