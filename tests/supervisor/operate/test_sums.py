"""Adding up what workers count."""

import json

from hypothesis import given
from hypothesis import strategies as st

from asgictl.operate.sums import Sums, quantile, steps_of, total
from asgictl_worker.counters import BOUNDS, CLASSES, METHODS, STEPS, Counters


def sums(*requests: tuple[str, int, float]) -> Sums:
    counters = Counters()
    for method, status, seconds in requests:
        counters.request(method, status, seconds)
    return Sums(cells=list(counters.cells), seconds=counters.seconds)


def test_requests_are_told_by_method_and_status() -> None:
    found = sums(("GET", 200, 0.1), ("GET", 204, 9.0), ("GET", 404, 0.1), ("X", 200, 0.1))
    assert found.by_kind() == {"GET": {"2xx": 2, "4xx": 1}, "other": {"2xx": 1}}
    assert found.requests == 4
    assert Sums().by_kind() == {}


def test_steps_add_up_over_everything_else() -> None:
    found = steps_of(sums(("GET", 200, 0.0), ("PUT", 500, 0.0), ("GET", 200, 99.0)).cells)
    assert (found[0], found[-1], sum(found)) == (2, 1, 3)
    assert total([found, found]) == [2 * count for count in found]
    assert total([]) == [0] * STEPS


@given(st.lists(st.floats(0.0, 60.0), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_quantile_lies_in_the_step_of_the_true_one(durations: list[float], share: float) -> None:
    steps = steps_of(sums(*(("GET", 200, seconds) for seconds in durations)).cells)
    rank = max(1, -(-share * len(durations) // 1))
    true = sorted(durations)[int(rank) - 1]
    found = quantile(steps, share)
    assert found is not None
    lower = max((bound for bound in BOUNDS if bound < true), default=0.0)
    upper = min((bound for bound in BOUNDS if bound >= true), default=BOUNDS[-1])
    assert lower <= found <= upper * (1 + 1e-9)


def test_without_requests_there_is_no_quantile() -> None:
    assert quantile([0] * STEPS, 0.5) is None
    assert quantile([], 0.5) is None


_REQUESTS = st.tuples(
    st.sampled_from(METHODS), st.sampled_from([0, 100, 200, 599]), st.floats(0.0, 60.0)
)


@given(st.lists(_REQUESTS, max_size=50))
def test_they_survive_the_way_to_another_program(
    requests: list[tuple[str, int, float]],
) -> None:
    before = sums(*requests)
    before.errors, before.bytes_sent = 3, 1 << 60
    assert Sums.take_over(json.loads(json.dumps(before.hand_over()))) == before


def test_steps_and_kinds_that_are_not_known_find_the_next_best_place() -> None:
    left = {"bounds": [0.2, 60.0], "cells": {"BREW 2xx": [1, 2, 3]}, "errors": 1, "later": 1}
    found = Sums.take_over(left)
    assert found.by_kind() == {"other": {"other": 6}}
    steps = steps_of(found.cells)
    assert (steps[BOUNDS.index(0.25)], steps[-1]) == (1, 5)
    assert found.errors == 1


def test_every_kind_has_its_own_name() -> None:
    everything = sums(*((method, 99 + 100 * n, 0.1) for method in METHODS for n in range(1, 6)))
    assert everything.by_kind() == {method: dict.fromkeys(CLASSES[1:], 1) for method in METHODS}
