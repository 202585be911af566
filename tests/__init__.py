"""The tests of asgictl: ``worker`` and ``supervisor`` mirror the packages, ``system`` runs real processes."""
