"""Every test of the HTTP side that asks for ``parser`` runs with both of them."""

import pytest


@pytest.fixture(params=["httptools", "h11"])
def parser(request: pytest.FixtureRequest) -> str:
    """The name of the parser, as the setting ``http`` takes it."""
    return request.param
