"""How long a slot waits after failures in a row."""

from hypothesis import given
from hypothesis import strategies as st

from asgictl.core.backoff import (
    FIRST_DELAY,
    MAX_DELAY,
    delay,
    fraction,
    next_seed,
    nominal_delay,
    shortest_delay,
)

seeds = st.integers(0, 2**64 - 1)
counts = st.integers(0, 10_000)


def test_the_first_failure_costs_nothing_then_the_delay_doubles_up_to_its_limit() -> None:
    assert [nominal_delay(count) for count in range(10)] == [
        0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0,
    ]  # fmt: skip


@given(counts)
def test_the_nominal_delay_never_falls_and_is_limited(count: int) -> None:
    assert nominal_delay(count) <= nominal_delay(count + 1) <= MAX_DELAY


@given(counts, seeds)
def test_the_delay_is_within_half_of_the_nominal_one(count: int, seed: int) -> None:
    assert shortest_delay(count) <= delay(count, seed) <= 3 * shortest_delay(count)
    assert shortest_delay(count) == nominal_delay(count) / 2


@given(st.integers(2, 100), seeds)
def test_slots_that_fail_together_do_not_come_back_together(count: int, seed: int) -> None:
    delays, seen = [], set()
    for _ in range(64):
        seed = next_seed(seed)
        delays.append(delay(count, seed))
        seen.add(seed)

    assert len(seen) == len(set(delays)) == 64
    assert max(delays) - min(delays) > FIRST_DELAY / 4


@given(seeds)
def test_a_fraction_is_at_least_zero_and_less_than_one(seed: int) -> None:
    assert 0.0 <= fraction(seed) < 1.0
    assert 0 <= next_seed(seed) < 2**64


def test_fractions_fill_the_interval_evenly() -> None:
    seed, tenths = 7, [0] * 10
    for _ in range(10_000):
        seed = next_seed(seed)
        tenths[int(fraction(seed) * 10)] += 1

    assert min(tenths) > 900
    assert max(tenths) < 1100
