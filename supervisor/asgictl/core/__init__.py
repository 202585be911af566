"""Decides: what to do next, given the fleet, an event and the time.

Everything here is pure. Time and randomness come in as arguments, nothing forks, kills,
logs or reads a clock; ``asgictl.system`` acts and ``asgictl.supervisor`` joins the two.
"""
