"""What processes use, read from a /proc of our own making and from the real one."""

import os
from pathlib import Path

from asgictl.operate.usage import Meter, Usage


def process(root: Path, pid: int, *threads: float, rollup: str | None = None) -> None:
    """Write what /proc says of a process: nanoseconds of its threads, and its memory."""
    folder = root / "proc" / str(pid)
    for number, seconds in enumerate(threads):
        (folder / "task" / str(number)).mkdir(parents=True, exist_ok=True)
        text = f"{int(seconds * 1e9)} 5 5\n"
        (folder / "task" / str(number) / "schedstat").write_text(text)
    (folder / "statm").write_text("1000 10 5 1 0 1 0\n")
    if rollup is not None:
        (folder / "smaps_rollup").write_text(rollup)


ROLLUP = "00400000-7fff ---p 00000000 00:00 0    [rollup]\nRss:  2048 kB\nPss:   1024 kB\n"


def test_memory_is_read_in_full_and_shared_out(tmp_path: Path) -> None:
    process(tmp_path, 7, 1.0, rollup=ROLLUP)
    assert Meter(tmp_path).look([7]) == {7: Usage(cpu=None, rss=2048 * 1024, pss=1024 * 1024)}


def test_where_that_is_forbidden_the_plain_number_is_taken(tmp_path: Path) -> None:
    process(tmp_path, 7, 1.0)
    rss = 10 * os.sysconf("SC_PAGE_SIZE")
    assert Meter(tmp_path).look([7])[7] == Usage(cpu=None, rss=rss, pss=None)


def test_processor_time_is_that_of_all_threads_between_two_looks(tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    process(tmp_path, 7, 1.0, 2.0)
    meter.look([7])
    process(tmp_path, 7, 1.5, 2.5)
    cpu = meter.look([7])[7].cpu
    assert cpu is not None
    assert cpu > 1.0, "a second of processor time in much less than a second"


def test_a_thread_that_has_ended_makes_nothing_negative(tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    process(tmp_path, 7, 5.0)
    meter.look([7])
    process(tmp_path, 7, 1.0)
    assert meter.look([7])[7].cpu == 0.0


def test_a_process_that_is_gone_is_no_error(tmp_path: Path) -> None:
    assert Meter(tmp_path).look([7, 0]) == {7: Usage(), 0: Usage()}


def test_the_real_system_tells_of_this_process() -> None:
    meter = Meter()
    meter.look([os.getpid()])
    sum(range(1_000_000))
    found = meter.look([os.getpid()])[os.getpid()]
    assert found.cpu is not None
    assert found.cpu > 0
    assert found.rss is not None
    assert found.rss > 1_000_000
