"""Where settings come from: defaults < file < environment < command line.

The result is one immutable ``Settings`` and, for each value, where it came from. What a
value may be is said in the settings modules; this one reads the sources and names them in
errors. Sources, the weakest first:

1. the defaults; with ``reload`` some are others, which suit development;
2. variables that other tools share: ``PORT``, ``WEB_CONCURRENCY``, ``FORWARDED_ALLOW_IPS``;
3. the settings file: ``--config FILE``, else ``asgictl.toml`` in the working directory,
   else the table ``[tool.asgictl]`` of ``pyproject.toml`` there; and over it the one of its
   tables ``[profiles.NAME]`` that ``profile`` names;
4. ``ASGICTL_*`` variables, from the environment or from files named by ``env_file``;
5. the command line, or the arguments of ``asgictl.run()``.

``bind``, ``uds``, ``fd`` and ``host`` with ``port`` answer one question, where to listen:
the strongest source that answers it replaces what weaker ones said.
"""

import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from asgictl.settings import INSTEAD, WHERE, WHERE_TWICE, Settings
from asgictl_worker.errors import BadSetting, ConfigurationError, ContradictorySettings, ExitCode
from asgictl_worker.settings import Declaration, check, declarations, read

SETTINGS = declarations(Settings)
CONFIG_VARIABLE = "ASGICTL_CONFIG"
"""The variable that stands for ``--config``."""
FILE_NAME = "asgictl.toml"
# Kubernetes puts these into every container near a Service of the name asgictl.
_KUBERNETES = re.compile(
    r"ASGICTL_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from, as people would look for it."""

    kind: Literal["default", "file", "variable", "flag", "argument"]
    detail: str = ""
    """``asgictl.toml:workers``, ``ASGICTL_WORKERS``, ``--workers``, ... or a remark."""

    def __str__(self) -> str:
        return self.detail or self.kind


@dataclass(frozen=True, slots=True)
class Given:
    """A value that somebody gave."""

    value: Any
    origin: Origin


_NOTHING = Given(None, Origin("default"))

Layer = Mapping[str, Given]
"""What one source gives, by the name of the setting."""

_DEVELOPMENT: Layer = {
    name: Given(declaration.facts.with_reload, Origin("default", "default with reload"))
    for name, declaration in SETTINGS.items()
    if declaration.facts.with_reload is not None
}


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings in effect, and where each came from."""

    settings: Settings
    origins: Mapping[str, Origin]
    directory: str
    """The absolute path that relative ones count from."""
    file: str | None = None
    """The absolute path of the settings file that was read."""

    @property
    def sources(self) -> dict[str, str]:
        """Return where each value came from, in words."""
        return {name: str(origin) for name, origin in self.origins.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Everything that settings are read from; ``read()`` again sees changed files.

    ``environment`` and ``directory`` are those at the start of the program.
    """

    given: Layer
    environment: Mapping[str, str]
    directory: str
    config: str | None = None
    """The settings file named on the command line."""

    @classmethod
    def of_this_process(cls, given: Layer, config: str | None = None) -> "Source":
        """Return the sources as this process finds them when it starts."""
        try:
            directory = os.getcwd()
        except OSError as error:
            raise ConfigurationError(
                f"the working directory is gone ({error.strerror}); go to one that exists"
            ) from None
        return cls(given=given, environment=dict(os.environ), directory=directory, config=config)

    def read(self) -> Configuration:
        """Return the configuration as files and variables have it now.

        Raises:
            ConfigurationError: a source cannot be read, or does not make sense.
        """
        shared, own = from_environment(self.environment)
        # Two settings decide what else is read, so they are settled early: --chdir comes
        # before the search for the file, and the file may name files of variables.
        start = _enter(self.directory, resolve(own, self.given))
        config = self.config or self.environment.get(CONFIG_VARIABLE) or None
        path = find_file(start, config)
        profile = resolve(own, self.given).get("profile", _NOTHING)
        if path:
            from_settings_file = from_file(path, config, profile)
        elif profile.value is not None:
            raise _named(
                BadSetting("profile", profile.value, "in a settings file, and there is none"),
                profile.origin,
            )
        else:
            from_settings_file = {}
        settled = resolve(from_settings_file, own, self.given)
        directory = _enter(self.directory, settled)
        if env_file := settled.get("env_file"):
            shared, own = from_environment(self.environment, _read_env_files(directory, env_file))
        merged = resolve(shared, from_settings_file, own, self.given)
        if merged.get("reload", _NOTHING).value:
            merged = {**_DEVELOPMENT, **merged}
        if "port" in shared and merged.get("port") is shared["port"] and "host" not in merged:
            # Who sets $PORT (a platform) means that others reach it.
            merged["host"] = Given("0.0.0.0", shared["port"].origin)
        if merged.get("chdir", _NOTHING).value is not None:
            # Absolute, so that it means the same when a reload reads it from inside.
            merged["chdir"] = Given(directory, merged["chdir"].origin)
        return _build(merged, directory, path)


def resolve(*layers: Layer) -> dict[str, Given]:
    """Return the strongest of what the layers give; the weakest layer comes first.

    Raises:
        ContradictorySettings: one layer says twice where to listen.
    """
    merged: dict[str, Given] = {}
    for layer in layers:
        answers = {
            WHERE[name]: name
            for name in layer
            if name in WHERE and layer[name].value not in ((), None)
        }
        if len(answers) > 1:
            first, second, *_ = answers.values()
            raise _contradiction((first, second), WHERE_TWICE, layer)
        if answers:
            merged = {
                name: found for name, found in merged.items() if WHERE.get(name) in (None, *answers)
            }
        merged.update(layer)
    return merged


def _build(merged: Layer, directory: str, path: str | None) -> Configuration:
    try:
        settings = Settings(**{name: given.value for name, given in merged.items()})
    except ContradictorySettings as error:
        raise _contradiction(error.settings, error.reason, merged) from None
    except BadSetting as error:
        raise _named(error, merged[error.setting].origin) from None
    default = Origin("default")
    origins = {name: merged[name].origin if name in merged else default for name in SETTINGS}
    return Configuration(settings, origins, directory, path)


def _contradiction(names: tuple[str, str], reason: str, layer: Layer) -> ContradictorySettings:
    sources = []
    for name in names:
        given = layer.get(name, Given(SETTINGS[name].default, Origin("default")))
        sources.append(f"{name} = {given.value!r} ({given.origin})")
    error = ContradictorySettings(names, reason, tuple(sources))
    if any(name in layer and layer[name].origin.kind == "flag" for name in names):
        error.exit_code = ExitCode.USAGE
    return error


def _named(error: BadSetting, origin: Origin) -> BadSetting:
    named = BadSetting(error.setting, error.value, error.wanted, str(origin))
    if origin.kind == "flag":
        named.exit_code = ExitCode.USAGE
    return named


def _give(declaration: Declaration, value: object, origin: Origin) -> Given:
    try:
        if isinstance(value, str) and origin.kind in ("variable", "flag"):
            return Given(read(declaration, value), origin)
        return Given(check(declaration, value), origin)
    except BadSetting as error:
        raise _named(error, origin) from None


def from_command_line(values: Mapping[str, object]) -> Layer:
    """Return what was given by flags: texts, booleans from switches, tuples of texts."""
    return {
        name: _give(SETTINGS[name], value, Origin("flag", SETTINGS[name].flag))
        for name, value in values.items()
    }


def from_arguments(values: Mapping[str, object]) -> Layer:
    """Return what was given to ``asgictl.run()``.

    Raises:
        ConfigurationError: a name is no setting, or a value is not allowed.
    """
    layer = {}
    for given, value in values.items():
        name = _UVICORN.get(given, given)
        if name not in SETTINGS:
            advice = INSTEAD.get("--" + given.replace("_", "-"))
            hint = f"; {advice}" if advice else _nearest(name, operator.attrgetter("name"))
            raise ConfigurationError(f"run() has no argument {given!r}{hint}")
        declaration = SETTINGS[name]
        if value is None and not declaration.optional:
            continue  # as uvicorn has it: nothing is said
        plain = _plain(declaration, value)
        layer[name] = _give(declaration, plain, Origin("argument", f"{given}="))
    return layer


_UVICORN = {
    "limit_max_requests": "max_requests",
    "limit_max_requests_jitter": "max_requests_jitter",
    "headers": "header",
    "reload_dirs": "reload_dir",
    "reload_excludes": "reload_exclude",
    "reload_includes": "reload_include",
}
"""Arguments of ``uvicorn.run()`` that have another name here."""


def _plain(declaration: Declaration, value: object) -> object:
    """Return a value as a settings file could hold it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        words = [": ".join(map(str, each)) if isinstance(each, tuple) else each for each in value]
        plain = [os.fspath(word) if isinstance(word, os.PathLike) else word for word in words]
        return plain if declaration.many else declaration.facts.separator.join(plain)
    if declaration.name == "log_level" and isinstance(value, int):
        # One of the numbers of logging; what is between them belongs to the louder one.
        return next((word for word, number in _LEVELS if value >= number), "debug")
    return value


_LEVELS = (("critical", 50), ("error", 40), ("warning", 30), ("info", 20))


def from_environment(
    environment: Mapping[str, str], files: Mapping[str, tuple[str, str]] | None = None
) -> tuple[Layer, Layer]:
    """Return what variables give: those shared with other tools, and ``ASGICTL_*``.

    An empty variable counts as not set.

    Args:
        environment: the variables of this process.
        files: value and file of each variable in files; those of the process win.

    Raises:
        ConfigurationError: an ``ASGICTL_*`` variable is not known, or a value not allowed.
    """
    everything = {
        name: (value, f"{name} in {file}") for name, (value, file) in (files or {}).items()
    }
    everything |= {
        name: (value, name)
        for name, value in environment.items()
        if value or name not in everything
    }
    everything = {name: found for name, found in everything.items() if found[0]}
    if everything.get("ASGICTL_PORT", ("", ""))[0].startswith("tcp://"):
        del everything["ASGICTL_PORT"]
    shared: dict[str, Given] = {}
    own: dict[str, Given] = {}
    for declaration in SETTINGS.values():
        if found := everything.pop(declaration.variable, None):
            own[declaration.name] = _give(declaration, found[0], Origin("variable", found[1]))
        for name in declaration.facts.variables:
            if found := everything.get(name):
                shared[declaration.name] = _give(
                    declaration, found[0], Origin("variable", found[1])
                )
    for name, (_, detail) in everything.items():
        if (
            name.startswith("ASGICTL_")
            and name != CONFIG_VARIABLE
            and not _KUBERNETES.fullmatch(name)
        ):
            word = name.removeprefix("ASGICTL_").lower()
            hint = _nearest(word, operator.attrgetter("variable"))
            raise ConfigurationError(
                f"the variable {detail} sets nothing; unset it or correct its name{hint}"
            )
    return shared, own


def find_file(directory: str, config: str | None) -> str | None:
    """Return the path of the settings file, or None if there is none."""
    if config:
        return os.path.join(directory, config)
    path = os.path.join(directory, FILE_NAME)
    if os.path.exists(path):
        return path
    path = os.path.join(directory, "pyproject.toml")
    return path if os.path.exists(path) and _table(path) is not None else None


def from_file(path: str, name: str | None = None, profile: Given = _NOTHING) -> Layer:
    """Return what a settings file gives; a ``pyproject.toml`` by its table ``[tool.asgictl]``.

    Args:
        path: where it is.
        name: how errors call it, if not by the last part of the path.
        profile: which of its profiles somebody has asked for, if the file is not to say so.

    Raises:
        ConfigurationError: the file cannot be read, is not TOML, or has a key or a value
            that is not a setting's.
    """
    name = name or os.path.basename(path)
    table = _table(path)
    if table is None:
        raise ConfigurationError(
            f"{path} has no table [tool.asgictl]; add it or name another file with --config"
        )
    tables = table.pop("profiles", {})
    if not isinstance(tables, dict) or not all(isinstance(each, dict) for each in tables.values()):
        raise ConfigurationError(f"{name}: profiles are tables, such as [profiles.production]")
    layer = _from_table(table, name)
    # All of them, so that a mistake shows itself before the profile is needed.
    profiles = {key: _from_table(each, name, f"profiles.{key}.") for key, each in tables.items()}
    chosen = layer.get("profile", _NOTHING) if profile.value is None else profile
    if chosen.value is None:
        return layer
    if chosen.value not in profiles:
        wanted = f"a profile of {name}, which has {', '.join(profiles) or 'none'}"
        raise _named(BadSetting("profile", chosen.value, wanted), chosen.origin)
    return resolve(layer, profiles[chosen.value])


def _from_table(table: Mapping[str, Any], name: str, prefix: str = "") -> Layer:
    layer: dict[str, Given] = {}
    for key, value in table.items():
        setting = key.replace("-", "_")
        if setting not in SETTINGS:
            raise ConfigurationError(
                f"{name}: {prefix + key!r} is no setting{_nearest(setting, operator.attrgetter('name'))}"
            )
        if prefix and setting == "profile":
            raise ConfigurationError(f"{name}: {prefix}{key} leads nowhere; set profile outside")
        if setting in layer:
            raise ConfigurationError(
                f"{name}: {prefix}{setting} stands there twice, with - and with _; keep one of them"
            )
        layer[setting] = _give(SETTINGS[setting], value, Origin("file", f"{name}:{prefix}{key}"))
    return layer


def _table(path: str) -> dict[str, Any] | None:
    # Here and not above: a start without a settings file does not pay for it.
    import tomllib

    if path.endswith(".py"):
        raise ConfigurationError(
            f"{path} is Python, settings files are TOML; `asgictl config --sample` writes one"
        )
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(
            f"the settings file {path} cannot be read: {error.strerror}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the settings file {path} is not valid TOML: {error}") from None
    if os.path.basename(path) != "pyproject.toml":
        return document
    tools = document.get("tool")
    table = tools.get("asgictl") if isinstance(tools, dict) else None
    if table is None or isinstance(table, dict):
        return table
    raise ConfigurationError(
        f"{path}: tool.asgictl is no table; write [tool.asgictl] above the settings"
    )


def to_json(settings: Settings) -> dict[str, Any]:
    """Return settings as JSON knows them, to be handed to another process."""
    return {name: getattr(settings, name) for name in SETTINGS}


def to_show(settings: Settings) -> dict[str, Any]:
    """Return settings as JSON knows them, to be looked at: what is secret is not told."""
    return {
        name: "(secret)" if SETTINGS[name].facts.secret and value is not None else value
        for name, value in to_json(settings).items()
    }


def from_json(values: Mapping[str, Any]) -> Settings:
    """Return the settings that ``to_json()`` was given.

    Another version of asgictl may have made them: names that are not known are left out.
    """
    return Settings(**{name: value for name, value in values.items() if name in SETTINGS})


def read_env_files(paths: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return ``environment`` with the variables of files added; it wins over the files.

    Args:
        paths: files of ``NAME=value`` lines; a later one wins over an earlier one.
        environment: the variables of this process.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    chosen = Given(tuple(paths), Origin("argument"))
    return {name: value for name, (value, _) in _read_env_files("", chosen).items()} | dict(
        environment
    )


def _read_env_files(directory: str, chosen: Given) -> dict[str, tuple[str, str]]:
    if not chosen.value:
        return {}  # and keep a megabyte out of the supervisor
    import dotenv
    from dotenv.parser import parse_stream

    found: dict[str, tuple[str, str]] = {}
    for file in chosen.value:
        path = os.path.join(directory, file)
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            wanted = "a file that a reload can read again, and no pipe"
            raise _named(BadSetting("env_file", file, wanted), chosen.origin)
        try:
            with open(path, encoding="utf-8") as stream:
                # dotenv itself would log the lines it cannot read, and go on without them.
                for line in parse_stream(stream):
                    if line.error:
                        text = line.original.string
                        number = line.original.line + len(text) - len(text.lstrip("\n"))
                        raise ConfigurationError(f"{file}, line {number}: this is not NAME=value")
                stream.seek(0)
                values = dotenv.dotenv_values(stream=stream)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 ({error})"
            raise _named(
                BadSetting("env_file", file, f"a file that can be read; {reason}"), chosen.origin
            ) from None
        if bad := [name for name, value in values.items() if "\0" in f"{name}{value}"]:
            raise ConfigurationError(f"{file}: {bad[0]!r} holds a NUL character; take it out")
        found |= {name: (value, file) for name, value in values.items() if value is not None}
    for name in (CONFIG_VARIABLE, "ASGICTL_CHDIR", "ASGICTL_ENV_FILE", "ASGICTL_PROFILE"):
        if name in found:
            raise ConfigurationError(
                f"{name} in {found[name][1]} comes too late, the file is found by it; set it in the environment itself"
            )
    return found


def _enter(directory: str, merged: Layer) -> str:
    given = merged.get("chdir", _NOTHING)
    if given.value is None:
        return directory
    path = os.path.join(directory, given.value)
    if not os.path.isdir(path):
        raise _named(BadSetting("chdir", given.value, "a directory that exists"), given.origin)
    return path


def _nearest(name: str, spell: Callable[[Declaration], str]) -> str:
    """Return "; did you mean ...?" with the setting nearest to ``name``, or nothing."""
    # gunicorn's and uvicorn's words are spellings of ours on the command line only.
    words = {
        flag.lstrip("-").replace("-", "_"): declaration
        for declaration in SETTINGS.values()
        for flag in (*declaration.facts.flags, declaration.flag)
    }
    # Here and not above: it takes memory, and is seldom needed.
    import difflib

    close = difflib.get_close_matches(name, words, n=1)
    return f"; did you mean {spell(words[close[0]])}?" if close else ""
