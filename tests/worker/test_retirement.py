"""A worker asks for a successor when it has served enough, long enough, or has grown."""

import re

import pytest

from asgictl_worker.contract import Assignment
from asgictl_worker.retirement import own_memory, reason_to_retire


def _limits(**limits: float) -> Assignment:
    return Assignment(
        worker=1,
        slot=0,
        generation=1,
        application="app:app",
        listeners=(),
        channel_fd=-1,
        lifeline_fd=-1,
        dump_fd=-1,
        beat_interval=1.0,
        **limits,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({}, ""),
        ({"max_requests": 101}, ""),
        ({"max_requests": 100}, "max-requests: 100 requests served"),
        ({"max_lifetime": 60.5}, ""),
        ({"max_lifetime": 60.0}, "max-lifetime: served for 60 s"),
        ({"max_memory": 1 << 50}, ""),
    ],
)
def test_each_limit_counts_from_its_value_on(limits: dict[str, float], reason: str) -> None:
    assert reason_to_retire(_limits(**limits), requests=100, lifetime=60.0) == reason


def test_memory_that_is_really_held_counts() -> None:
    before = own_memory()
    ballast = bytearray(b"x" * 64 * 1024 * 1024)
    grown = own_memory() - before
    assert 60 * 1024 * 1024 < grown < 70 * 1024 * 1024
    reason = reason_to_retire(_limits(max_memory=before + 1), requests=0, lifetime=0.0)
    assert re.fullmatch(r"max-memory: \d+ MiB of memory used", reason)
    del ballast
