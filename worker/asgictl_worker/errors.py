"""The errors that people meet: each names the thing, what happened and the next step.

Errors meant for the operator derive from ``AsgictlError``. They are printed without a
traceback and end the program with ``exit_code``. A broken promise inside asgictl is an
``AssertionError`` and keeps its traceback: it is our bug, not the operator's.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process tells its caller when it ends (docs/reference/exit-codes.md)."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    NO_WORKER_BOOTED = 3
    CANNOT_BIND = 5
    NOT_RUNNING = 69
    CORE_BROKEN = 70
    BAD_CONFIGURATION = 78


class AsgictlError(Exception):
    """Something the operator can mend; the sentence says how."""

    exit_code: ExitCode = ExitCode.INTERNAL


class ConfigurationError(AsgictlError):
    """A setting has a value that cannot work."""

    exit_code = ExitCode.BAD_CONFIGURATION


class BadSetting(ConfigurationError):
    """One setting has a value that it cannot take."""

    def __init__(self, setting: str, value: object, wanted: str, source: str = "") -> None:
        self.setting, self.value, self.wanted, self.source = setting, value, wanted, source
        where = f" ({source})" if source else ""
        super().__init__(f"{setting} cannot be {value!r}{where}: it must be {wanted}")


class ContradictorySettings(ConfigurationError):
    """Two settings cannot both be meant."""

    def __init__(
        self, settings: tuple[str, str], reason: str, sources: tuple[str, ...] = ()
    ) -> None:
        self.settings, self.reason, self.sources = settings, reason, sources
        named = " and ".join(sources or settings)
        super().__init__(f"{named} contradict each other: {reason}; keep one of them")


class MissingSetting(ConfigurationError):
    """One setting means nothing without another."""

    def __init__(self, setting: str, missing: str, reason: str) -> None:
        self.setting, self.missing, self.reason = setting, missing, reason
        super().__init__(f"{setting} is set but {missing} is not: {reason}; set both or neither")


class ServerFailed(AsgictlError):
    """The server did not start or could not go on; what happened stands in its log."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = ExitCode(exit_code)
        super().__init__(
            f"the server ended with exit code {exit_code} ({self.exit_code.name}); its log says why"
        )
