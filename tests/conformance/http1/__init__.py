"""Conformance with HTTP/1.1 and with ASGI over it: cases as data, run against any server.

``case.py`` has the vocabulary, ``requests.py``, ``bodies.py``, ``responses.py`` and
``connections.py`` the cases, ``application.py`` what the server under test serves, ``client.py``
the strict client, ``servers.py`` the servers. ``python -m tests.conformance.http1`` runs all.
"""
