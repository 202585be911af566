"""Decides: what to do next, given the fleet, an event and the time.

Everything here is pure. Time and randomness come in as arguments, nothing forks, kills,
logs or reads a clock; ``asgictl.system`` acts and ``asgictl.supervisor`` joins the two.

``step.py`` is the door. An event (``events.py``) is entered into the state (``state.py``) by
the rule that belongs to it: ``health.py`` for silence and deadlines, ``lives.py`` for births
and deaths, ``reload.py`` for new generations, ``commands.py`` and ``stop.py`` for what people
want. Then ``reconcile.py`` compares the fleet with the wanted one and asks for the difference
(``actions.py``). ``turn.py`` holds the moves that all of them are made of.
"""
