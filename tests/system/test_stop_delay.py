"""--stop-delay: go on accepting for a while after TERM, until load balancers look away."""

import time

import httpx
import pytest
from tests.conftest import Serve
from tests.kit import Project, application, wait_for

from asgictl.core.policy import SAME_WORD

pytestmark = [pytest.mark.system]


def test_after_a_stop_delay_requests_are_still_answered(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--workers", "2", "--stop-delay", "1.5")
    server.signal("TERM")
    server.assert_log("stopping: ")
    with httpx.Client() as client:
        assert client.get(server.url).status_code == 200
    server.assert_log("draining")
    server.assert_ended(0)


def test_a_second_term_skips_the_stop_delay(serve: Serve, project: Project) -> None:
    project.write(application("1"))
    server = serve("--stop-delay", "60")
    server.signal("TERM")
    server.assert_log("stopping: ")
    heard = time.monotonic()
    wait_for(lambda: time.monotonic() > heard + SAME_WORD, "a second TERM is another word")
    server.stop(within=10)
