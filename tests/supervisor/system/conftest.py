"""No forked child outlives its test."""

from collections.abc import Iterator

import pytest
from tests.supervisor.system.children import end_all


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    yield
    end_all()
