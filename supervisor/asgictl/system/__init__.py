"""Acts: the only doors from the supervisor to the operating system. No policy lives here."""
