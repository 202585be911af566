"""Sums over what workers have counted, and what can be read from them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import add
from typing import Any

from asgictl_worker.counters import BOUNDS, CELLS, CLASSES, METHODS, STEPS, Row


@dataclass(slots=True)
class Sums:
    """What several workers have counted, one after the other or side by side; it only grows."""

    cells: list[int] = field(default_factory=lambda: [0] * CELLS)
    seconds: float = 0.0
    busy: float = 0.0
    connections_total: int = 0
    websockets_total: int = 0
    messages_received: int = 0
    messages_sent: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    errors: int = 0

    def add(self, counted: "Row | Sums") -> None:
        """Take in what a worker has counted."""
        self.cells = list(map(add, self.cells, counted.cells))
        for name in _SCALARS:
            setattr(self, name, getattr(self, name) + getattr(counted, name))

    @property
    def requests(self) -> int:
        """How many requests were answered, or given up."""
        return sum(self.cells)

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Return how many requests there were by method and class of status, where there were."""
        found: dict[str, dict[str, int]] = {}
        for method, status, begin in _kinds():
            if count := sum(self.cells[begin : begin + STEPS]):
                found.setdefault(method, {})[status] = count
        return found

    def hand_over(self) -> dict[str, Any]:
        """Return everything by name, as JSON knows it."""
        left = {name: getattr(self, name) for name in _SCALARS}
        cells = {
            f"{method} {status}": self.cells[begin : begin + STEPS]
            for method, status, begin in _kinds()
        }
        used = {kind: counts for kind, counts in cells.items() if any(counts)}
        return left | {"bounds": list(BOUNDS), "cells": used}

    @classmethod
    def take_over(cls, left: Mapping[str, Any]) -> "Sums":
        """Go on with sums of a program that may be of another age.

        Durations that it has sorted into other steps are put into the longest one that is not
        shorter.
        """
        sums = cls(**{name: left[name] for name in _SCALARS if name in left})
        places = {f"{method} {status}": begin for method, status, begin in _kinds()}
        bounds = [*left.get("bounds", ()), None]
        for kind, counts in left.get("cells", {}).items():
            begin = places.get(kind, places["other other"])
            for bound, count in zip(bounds, counts, strict=False):
                sums.cells[begin + _step(bound)] += count
        return sums


_SCALARS = tuple(item.name for item in fields(Sums) if item.name != "cells")


def _kinds() -> Iterator[tuple[str, str, int]]:
    for row, method in enumerate(METHODS):
        for column, status in enumerate(CLASSES):
            yield method, status, (row * len(CLASSES) + column) * STEPS


def _step(bound: float | None) -> int:
    fitting = (number for number, own in enumerate(BOUNDS) if bound is not None and bound <= own)
    return next(fitting, STEPS - 1)


def steps_of(cells: Sequence[int]) -> list[int]:
    """Return how many requests of all kinds have taken how long, by step."""
    return [sum(cells[step::STEPS]) for step in range(STEPS)]


def total(several: Iterable[Sequence[int]]) -> list[int]:
    """Return the sum of counts by step."""
    return [sum(column) for column in zip([0] * STEPS, *several, strict=True)]


def quantile(steps: Sequence[int], share: float) -> float | None:
    """Return the seconds within which a share of requests was answered, or None without any.

    Within a step they are taken to be spread evenly; of those that took longer than the last
    bound only that is known.
    """
    wanted = share * sum(steps)
    if not wanted:
        return None
    lower = 0.0
    for bound, count in zip(BOUNDS, steps, strict=False):
        if wanted <= count:
            return lower + (bound - lower) * wanted / count
        wanted -= count
        lower = bound
    return lower
