"""All cases."""

from tests.conformance.http1 import bodies, connections, requests, responses

CASES = [*requests.CASES, *bodies.CASES, *responses.CASES, *connections.CASES]
