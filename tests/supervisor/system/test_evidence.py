"""Why a worker does not beat: conclusions as a pure function, samples from real processes."""

import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kit import wait_for
from tests.supervisor.system.children import FORKS, ended, in_child, start
from tests.supervisor.system.test_machine import tree

from asgictl.core.events import Verdict
from asgictl.system import evidence
from asgictl.system.evidence import Sample, conclude

pytestmark = FORKS

PATIENCE = 15.0
BEFORE = Sample(time=100.0, state="S", on_processor=50.0, waiting=5.0)


def after(
    state: str,
    *,
    elapsed: float = 15.0,
    worked: float = 0.0,
    waited: float = 0.0,
    traced: bool = False,
) -> Sample:
    return Sample(
        time=BEFORE.time + elapsed,
        state=state,
        on_processor=BEFORE.on_processor + worked,
        waiting=BEFORE.waiting + waited,
        traced=traced,
    )


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        (after("S"), Verdict.BLOCKED),
        (after("S", worked=0.1, waited=0.1), Verdict.BLOCKED),
        (after("R", worked=14.9), Verdict.BUSY),
        (after("S", worked=8.0), Verdict.BUSY),
        (after("R", worked=8.0, waited=7.0), Verdict.BUSY),
        (after("R", worked=0.5, waited=14.0), Verdict.STARVED),
        (after("S", worked=0.5, waited=14.0), Verdict.STARVED),
        # It still waits, and the kernel adds that up only at the end of a wait.
        (after("R"), Verdict.STARVED),
        (after("T"), Verdict.STOPPED),
        (after("t"), Verdict.STOPPED),
        (after("S", traced=True), Verdict.STOPPED),
        (after("R", traced=True, worked=15.0), Verdict.STOPPED),
        (after("D"), Verdict.WAITING_FOR_DISK),
        (after("D", waited=15.0), Verdict.WAITING_FOR_DISK),
        (None, Verdict.UNKNOWN),
    ],
)
def test_each_kind_of_silence_has_its_verdict(now: Sample | None, verdict: Verdict) -> None:
    assert conclude(BEFORE, now, PATIENCE) is verdict


@pytest.mark.parametrize(
    ("state", "verdict"), [("R", Verdict.BUSY), ("S", Verdict.BLOCKED), ("T", Verdict.STOPPED)]
)
def test_a_single_sample_tells_by_its_state(state: str, verdict: Verdict) -> None:
    assert conclude(None, after(state), PATIENCE) is verdict
    assert conclude(BEFORE, replace(BEFORE, state=state), PATIENCE) is verdict


def test_a_starved_worker_that_spins_is_found_out_in_the_end() -> None:
    """Of a tenth of a processor, an endless loop takes all, and a healthy worker little."""
    verdicts = [
        conclude(BEFORE, after("R", elapsed=e, worked=e / 10, waited=e * 0.9), PATIENCE)
        for e in (15.0, 30.0, 60.0, 90.0)
    ]
    assert verdicts == [Verdict.STARVED, Verdict.STARVED, Verdict.STARVED, Verdict.BUSY]


def test_a_boot_is_compared_with_its_beginning() -> None:
    """What a process has had of a processor begins at its fork, so one look is enough."""
    forked = Sample(time=100.0, state="R", on_processor=0.0, waiting=0.0)
    boot = partial(replace, forked, time=160.0)
    assert conclude(forked, boot(on_processor=35.0, waiting=20.0), 60.0) is Verdict.BUSY
    assert conclude(forked, boot(on_processor=20.0, waiting=40.0), 60.0) is Verdict.STARVED
    assert conclude(forked, boot(state="S", on_processor=1.0), 60.0) is Verdict.BLOCKED


@given(
    state=st.sampled_from("RSDTtZX"),
    numbers=st.lists(st.floats(0, 1e6), min_size=3, max_size=3),
    patience=st.floats(0.5, 1e4),
)
def test_whatever_was_sampled_there_is_a_verdict(
    state: str, numbers: list[float], patience: float
) -> None:
    elapsed, worked, waited = numbers
    now = after(state, elapsed=elapsed, worked=worked, waited=waited)
    verdict = conclude(BEFORE, now, patience)
    # Only two verdicts protect from being replaced, and both need their reason.
    assert (verdict is Verdict.STOPPED) == (state in "Tt")
    if verdict is Verdict.STARVED:
        assert waited or state == "R"
        assert worked < patience


# -- Samples of real processes


def both(pid: int, seconds: float) -> tuple[Sample, Sample]:
    """Sample a process until it was looked at for that long."""
    first = evidence.sample(pid, time.monotonic())
    assert first is not None
    wait_for(lambda: time.monotonic() - first.time >= seconds, "time passes")
    second = evidence.sample(pid, time.monotonic())
    assert second is not None
    return first, second


def verdict(pid: int, seconds: float = 0.5) -> Verdict:
    return conclude(*both(pid, seconds), PATIENCE)


def spin() -> None:
    while True:
        pass


def test_a_process_in_a_system_call_is_blocked() -> None:
    child = start(signal.pause)
    wait_for(lambda: _state(child.pid) == "S", "it sleeps")
    assert verdict(child.pid) is Verdict.BLOCKED
    child.send("KILL")
    ended(child)


def test_a_process_that_computes_is_busy_or_starved_but_not_blocked() -> None:
    child = start(spin)
    wait_for(lambda: _state(child.pid) == "R", "it runs")
    assert verdict(child.pid) in (Verdict.BUSY, Verdict.STARVED)  # others use this machine too
    child.send("KILL")
    ended(child)


def test_a_process_that_competes_for_one_processor_is_starved() -> None:
    processor = {min(os.sched_getaffinity(0))}

    def compete(niceness: int) -> None:
        os.sched_setaffinity(0, processor)
        os.nice(niceness)
        signal.raise_signal(signal.SIGSTOP)
        spin()

    rivals = [start(partial(compete, niceness)) for niceness in (19, 0)]
    for rival in rivals:
        os.waitid(os.P_PID, rival.pid, os.WSTOPPED | os.WNOWAIT)
    for rival in rivals:
        rival.send("CONT")
    wait_for(lambda: all(_state(rival.pid) == "R" for rival in rivals), "both run")
    assert verdict(rivals[0].pid, 1.0) is Verdict.STARVED
    for rival in rivals:
        rival.send("KILL")
        ended(rival)


def test_a_process_that_a_quota_holds_back_is_starved() -> None:
    group = Path("/sys/fs/cgroup/cpu", f"asgictl-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a control group of version 1: {error.strerror}")
    (group / "cpu.cfs_quota_us").write_text("2000")

    def work() -> Verdict:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        child = start(spin)
        try:
            return verdict(child.pid, 1.0)
        finally:
            child.send("KILL")
            ended(child)

    try:
        assert in_child(work) is Verdict.STARVED
    finally:
        group.rmdir()


def test_a_stopped_process_is_stopped() -> None:
    child = start(signal.pause)
    child.send("STOP")
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert verdict(child.pid, 0.0) is Verdict.STOPPED
    child.send("KILL")
    ended(child)


@pytest.mark.skipif(not Path("/usr/bin/strace").exists(), reason="needs strace")
def test_a_traced_process_is_left_to_its_debugger() -> None:
    child = start(signal.pause)
    tracer = subprocess.Popen(["strace", "-qq", "-o", os.devnull, "-p", str(child.pid)])

    def traced() -> bool:
        assert tracer.poll() is None, "strace may not trace here"
        found = evidence.sample(child.pid, 0.0)
        return found is not None and found.traced

    try:
        wait_for(traced, "strace is attached")
        assert verdict(child.pid, 0.0) is Verdict.STOPPED
    finally:
        child.send("KILL")
        ended(child)
        tracer.wait()


def test_a_strange_program_name_confuses_nothing(tmp_path: Path) -> None:
    script = tmp_path / "a) R 1 (b"
    script.symlink_to("/bin/sleep")
    process = subprocess.Popen([script, "60"], executable=script)
    try:
        wait_for(lambda: _comm(process.pid) == script.name[:15], "it runs the program")
        wait_for(lambda: _sampled_state(process.pid) == "S", "it is seen to sleep")
    finally:
        process.kill()
        process.wait()


def test_nothing_is_known_of_a_process_that_is_gone() -> None:
    child = start(lambda: 0)
    ended(child)
    assert evidence.sample(child.pid, 0.0) is None


def test_a_proc_file_that_is_not_understood_says_nothing(tmp_path: Path) -> None:
    process = tmp_path / "proc/7"
    process.mkdir(parents=True)
    for name in ("stat", "schedstat", "status"):
        (process / name).write_text("nonsense")
    assert evidence.sample(7, 0.0, tmp_path) is None


def test_the_numbers_of_proc_are_read(tmp_path: Path) -> None:
    process = tmp_path / "proc/7"
    process.mkdir(parents=True)
    (process / "stat").write_text("7 (python) S 1")
    (process / "schedstat").write_text("3000000000 2000000000 9\n")
    (process / "status").write_text("Name:\tpython\nTracerPid:\t0\n")
    assert evidence.sample(7, 4.0, tmp_path) == Sample(
        time=4.0, state="S", on_processor=3.0, waiting=2.0
    )
    (process / "status").write_text("Name:\tpython\nTracerPid:\t99\n")
    found = evidence.sample(7, 4.0, tmp_path)
    assert found is not None
    assert found.traced


# -- Memory


@pytest.mark.parametrize(
    ("groups", "name"),
    [
        ("0::/a/b\n", "a/b/memory.events"),
        ("0::/outside/of/here\n", "memory.events"),
        ("3:memory:/a\n0::/\n", "memory/a/memory.oom_control"),
        ("3:memory:/docker/of/the/host\n", "memory/memory.oom_control"),
    ],
)
def test_a_process_killed_for_memory_is_reported_once(
    tmp_path: Path, groups: str, name: str
) -> None:
    root = tree(tmp_path, groups, {name: "oom 0\noom_kill 2\n"})
    file = root / "sys/fs/cgroup" / name
    watch = evidence.MemoryWatch(root)
    assert not watch.killed_since_last_call()
    file.write_text("oom 1\noom_kill 3\n")
    assert watch.killed_since_last_call()
    assert not watch.killed_since_last_call()


@pytest.mark.parametrize("text", ["", "low 0\n", "oom_kill many\n"])
def test_what_is_not_understood_is_no_evidence(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path, "0::/\n", {"memory.events": text})
    assert not evidence.MemoryWatch(root).killed_since_last_call()


def test_without_control_groups_nothing_is_blamed_on_memory(tmp_path: Path) -> None:
    assert not evidence.MemoryWatch(tmp_path).killed_since_last_call()


def test_a_real_lack_of_memory_is_noticed() -> None:
    group = Path("/sys/fs/cgroup/memory", f"asgictl-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a control group of version 1: {error.strerror}")
    (group / "memory.limit_in_bytes").write_text(str(64 << 20))

    def work() -> list[object]:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        watch = evidence.MemoryWatch()

        def eat() -> None:
            Path("/proc/self/oom_score_adj").write_text("1000")
            hoard = [bytearray(b"x" * (1 << 20)) for _ in itertools.repeat(None, 256)]
            sys.exit(len(hoard))

        before = watch.killed_since_last_call()
        status = ended(start(eat))
        return [before, status.signal, watch.killed_since_last_call()]

    try:
        assert in_child(work) == [False, "KILL", True]
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _sampled_state(pid: int) -> str:
    found = evidence.sample(pid, 0.0)
    return found.state if found else ""


def _comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
