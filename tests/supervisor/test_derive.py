"""What follows from the settings, number by number."""

import pytest

from asgictl import derive


@pytest.mark.parametrize(
    ("timeout", "workers", "seconds"),
    [
        (30.0, 1, 1.0),
        (30.0, 20, 1.0),
        # A big fleet is heard as often as one of 20, as long as nobody is missed by that.
        (30.0, 64, 3.2),
        (30.0, 1000, 3.75),
        (4.0, 1, 0.5),
        (4.0, 1000, 0.5),
        (0.5, 1, 0.25),
    ],
)
def test_workers_beat_often_enough_to_be_missed_and_no_more_often_than_it_needs(
    timeout: float, workers: int, seconds: float
) -> None:
    assert derive.beat_interval(timeout, workers) == seconds
