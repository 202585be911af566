"""An application that occupies 60 MB before it serves, as applications with a framework do."""

from tests.benchmarks.applications import collecting as app

__all__ = ["CONTENT", "app"]

CONTENT = [
    {"number": number, "name": f"item {number}", "tags": [str(number), str(-number)]}
    for number in range(110_000)
]
