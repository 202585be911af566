"""The board spreads connections: who has clearly more lets the others go first."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgictl_worker import board as module
from asgictl_worker.board import Board


@pytest.fixture
def memory() -> Iterator[int]:
    fd = module.create()
    yield fd
    os.close(fd)


def test_a_worker_alone_may_always_accept(memory: int) -> None:
    board = Board(memory, 1, 100.0)
    assert [board.allowance(count) for count in (0, 1, 1000)] == [None] * 3


def test_who_has_clearly_more_than_the_least_loaded_lets_it_go_first(memory: int) -> None:
    few, many = Board(memory, 1, 100.0), Board(memory, 2, 100.0)
    few.refresh(100.0, 3)
    many.refresh(100.0, 10)
    assert many.allowance(10) <= 0
    assert few.allowance(3) > 0


def test_a_worker_that_shows_no_sign_of_life_does_not_count(memory: int) -> None:
    Board(memory, 1, 100.0)
    many = Board(memory, 2, 100.0)
    now = 100.0 + module.STALE_AFTER + 1.0
    many.refresh(now, 10)
    assert many.allowance(10) is None


def test_a_worker_that_accepts_no_more_does_not_count(memory: int) -> None:
    leaving, staying = Board(memory, 1, 100.0), Board(memory, 2, 100.0)
    leaving.hide()
    staying.refresh(100.1, 10)
    assert staying.allowance(10) is None


def test_a_successor_takes_the_row_of_a_worker_that_is_long_gone(memory: int) -> None:
    Board(memory, 1, 100.0).refresh(100.0, 50)
    successor = Board(memory, 1 + module.ROWS, 200.0)
    other = Board(memory, 2, 200.0)
    assert other.allowance(2) <= 0
    successor.refresh(200.0, 0)
    assert successor.allowance(0) > 0


@given(
    arrivals=st.lists(st.integers(0, 3), min_size=64, max_size=200),
    workers=st.integers(2, 4),
)
def test_whoever_looks_first_the_spread_stays_even(arrivals: list[int], workers: int) -> None:
    fd = module.create()
    try:
        boards = [Board(fd, number, 100.0) for number in range(workers)]
        for board in boards:
            board.refresh(100.0, 0)
        counts = [0] * workers
        for eager in arrivals:
            order = sorted(range(workers), key=lambda number: number != eager % workers)
            taker = next(each for each in order if boards[each].allowance(counts[each]) > 0)
            counts[taker] += 1
            boards[taker].allowance(counts[taker])
        assert max(counts) <= min(counts) + 2 + min(counts) // 8
    finally:
        os.close(fd)
