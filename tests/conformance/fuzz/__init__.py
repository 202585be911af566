"""Differential fuzzing of everything that reads what strangers send.

``targets.py`` has the properties, ``corpus.py`` what fuzzing begins with: the bytes of the
conformance cases. ``python -m tests.conformance.fuzz`` lets atheris look for inputs that break
a property, guided by coverage; ``test_fuzz.py`` tries some with hypothesis in every run.
"""
