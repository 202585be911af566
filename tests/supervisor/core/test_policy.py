"""Rules that are made of settings alone."""

import pytest

from asgictl.core.policy import Policy


def test_half_of_the_time_out_is_suspicious() -> None:
    assert Policy(workers=1, timeout=30.0).late_after == 15.0


@pytest.mark.parametrize(("desired", "surge"), [(0, 1), (1, 1), (7, 1), (8, 2), (64, 16)])
def test_a_quarter_of_the_fleet_is_replaced_at_a_time_and_at_least_one(
    desired: int, surge: int
) -> None:
    assert Policy(workers=1).surge_for(desired) == surge


def test_the_surge_can_be_set() -> None:
    assert Policy(workers=1, surge=3).surge_for(64) == 3


@pytest.mark.parametrize(("desired", "limit"), [(1, 1 + 1 + 4), (8, 8 + 2 + 16)])
def test_processes_are_limited_to_the_fleet_its_surge_and_twice_the_fleet_in_drains(
    desired: int, limit: int
) -> None:
    assert Policy(workers=1).process_limit(desired) == limit


def test_a_worker_has_time_for_the_applications_shutdown_after_its_drain() -> None:
    assert Policy(workers=1, lifespan_timeout=10.0).drain_overtime == 11.0
