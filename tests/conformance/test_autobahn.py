"""The quick sections of the Autobahn suite; ``python -m tests.conformance.autobahn`` has all."""

import pytest
from tests.conformance import autobahn

QUICK = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*", "12.1.1", "13.7.1"]

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.mark.skipif(
    not autobahn.is_installed(),
    reason="python -m tests.conformance.autobahn installs the Autobahn suite (needs CPython 2.7)",
)
@pytest.mark.parametrize("loop", autobahn.LOOPS)
def test_the_fuzzing_client_finds_nothing(loop):
    verdicts = autobahn.run(QUICK, [loop], quiet=True)
    assert autobahn.failures(verdicts) == []
    assert len(verdicts[loop]) == 249


def test_the_page_counts_and_names_what_is_not_as_it_should_be():
    verdicts = {
        "asyncio": {"1.1.1": "OK", "1.1.2": "INFORMATIONAL", "7.1.10": "FAILED", "7.1.9": "OK"},
        "uvloop": {"1.1.1": "OK", "1.1.2": autobahn.verdict("OK", "UNCLEAN")},
    }
    assert autobahn.failures(verdicts) == [
        "7.1.10 on asyncio: FAILED",
        "1.1.2 on uvloop: OK, close UNCLEAN",
    ]
    page = autobahn.render(verdicts)
    assert "| 1 | Framing: text and binary messages | 2 / 2 (1 informational) | 1 / 2 |" in page
    assert "| 7 | Closing | 1 / 2 | not run |" in page
    assert "| | **all** | 3 / 4 | 1 / 2 |" in page
    assert page.endswith("* 7.1.10 on asyncio: FAILED\n* 1.1.2 on uvloop: OK, close UNCLEAN")
