"""The settings as people read them: help, reference page and sample file.

Everything here is derived from the declarations. ``python -m asgictl.reference`` writes the
page of options; a test compares the page with the declarations.
"""

import json
import os
import textwrap
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from asgictl.configuration import FILE_NAME, SETTINGS, Configuration
from asgictl.settings import TcpAddress
from asgictl_worker.settings import Declaration, WorkerSettings, declarations

PAGE = "docs/reference/options.md"


def by_group() -> Mapping[str, list[Declaration]]:
    """Return the declarations under their headings, the supervisor's own before the worker's."""
    inherited = declarations(WorkerSettings)
    groups: dict[str, list[Declaration]] = {}
    for declaration in sorted(
        SETTINGS.values(), key=lambda declaration: declaration.name in inherited
    ):
        groups.setdefault(declaration.facts.group, []).append(declaration)
    return groups


def flags(declaration: Declaration) -> tuple[str, ...]:
    """Return the spellings of a setting on the command line, short ones first."""
    spellings = sorted(
        (declaration.flag, *declaration.facts.flags), key=lambda flag: flag.startswith("--")
    )
    if declaration.kind is bool:
        spellings.append("--no-" + declaration.flag.removeprefix("--"))
    return tuple(spellings)


def variables(declaration: Declaration) -> tuple[str, ...]:
    """Return the environment variables of a setting, the strongest first."""
    return (declaration.variable, *declaration.facts.variables)


def metavar(declaration: Declaration) -> str:
    """Return the name of a setting's value, such as ``SECONDS``; a switch has none."""
    if declaration.kind is bool:
        return ""
    if declaration.facts.metavar:
        return declaration.facts.metavar
    words = list(declaration.choices)
    if declaration.or_number or (declaration.kind is not str and not declaration.choices):
        words.append(declaration.facts.unit.upper() or "NUMBER")
    return "|".join(words) or "TEXT"


def in_words(declaration: Declaration, value: Any) -> str:
    """Return a value as a sentence has it, such as ``5 seconds``, ``16M`` or ``on``."""
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    if declaration.facts.unit == "bytes" and value and value % 1024 == 0:
        return f"{value // 1024**2}M" if value % 1024**2 == 0 else f"{value // 1024}K"
    if declaration.facts.unit:
        return f"{value:g} {declaration.facts.unit.removesuffix('s') if value == 1 else declaration.facts.unit}"
    return str(value) or "empty"


def default_in_words(declaration: Declaration) -> str:
    """Return the default, and that of development if it is another."""
    words, with_reload = in_words(declaration, declaration.default), declaration.facts.with_reload
    if with_reload is None:
        return words
    return f"{words}, with reload {in_words(declaration, with_reload)}"


def in_toml(value: Any) -> str:
    """Return a value as a settings file has it."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(in_toml, value)) + "]"
    if isinstance(value, str):
        # Basic strings of TOML are those of JSON, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).lower()


def effective(configuration: Configuration, *, explain: bool = False) -> str:
    """Return the settings in effect as a settings file, with the origin of each on request."""
    settings, lines = configuration.settings, []
    elsewhere = settings.bind or not isinstance(settings.addresses[0], TcpAddress)
    for name in SETTINGS:
        value = getattr(settings, name)
        line = f"{name} = {in_toml(value)}"
        if value is None:
            line = f"# {name} is not set"
        elif SETTINGS[name].facts.secret:
            line = f"# {name} is set, and secret"
        elif elsewhere and name in ("host", "port"):
            # In a settings file they would contradict what says where to listen.
            line = f"# {name} is not used"
        lines.append(f"{line:<44}  # {configuration.origins[name]}" if explain else line)
    if explain:
        file = configuration.file or "no settings file was found"
        lines = [f"# settings file: {file}", f"# directory: {configuration.directory}", "", *lines]
    return "\n".join(lines) + "\n"


def sample(chosen: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return a settings file in which every setting is commented out, but those that are chosen."""
    lines = [f"# {FILE_NAME}: settings of asgictl. Take the # from the lines that you change."]
    for group, members in by_group().items():
        lines += ["", f"# -- {group}"]
        for declaration in members:
            is_empty = declaration.default in (None, ())
            example = _example(declaration) if is_empty else in_toml(declaration.default)
            lines += [
                "",
                *textwrap.wrap(
                    _sentence(declaration), 98, initial_indent="# ", subsequent_indent="# "
                ),
            ]
            if declaration.name in chosen:
                lines.append(f"{declaration.name} = {in_toml(chosen[declaration.name])}")
            else:
                lines.append(f"# {declaration.name} = {example}")
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the reference page of all options, in Markdown."""
    parts = [_PREFACE]
    for group, members in by_group().items():
        parts.append(f"## {group}\n")
        for declaration in members:
            spellings = ", ".join(f"`{flag}`" for flag in flags(declaration))
            value = f" `{metavar(declaration)}`" if metavar(declaration) else ""
            facts = [
                f"default: {default_in_words(declaration)}",
                "variable: " + ", ".join(f"`{name}`" for name in variables(declaration)),
            ]
            if limits := _limits(declaration):
                facts.insert(1, limits)
            parts.append(f"### `{declaration.name}`\n")
            parts.append(f"{declaration.facts.sentence}\n")
            parts.append(
                f"{spellings}{value}\n\n" + "\n".join(f"* {fact}" for fact in facts) + "\n"
            )
    return "\n".join(parts)


def _sentence(declaration: Declaration) -> str:
    facts = [f"default: {default_in_words(declaration)}"]
    if limits := _limits(declaration):
        facts.append(limits)
    return f"{declaration.facts.sentence} ({'; '.join(facts)})"


def _limits(declaration: Declaration) -> str:
    low, high = declaration.facts.minimum, declaration.facts.maximum
    words = [f"one of: {', '.join(declaration.choices)}"] if declaration.choices else []
    if low is not None:
        words.append(f"from {low} to {high}" if high is not None else f"at least {low}")
    return " or a number ".join(words)


def _example(declaration: Declaration) -> str:
    """Return something to put where the default is nothing."""
    if declaration.kind is bool:
        return "true"
    if declaration.kind is not str:
        return str(int(declaration.facts.minimum or 0))
    word = in_toml(metavar(declaration))
    return f"[{word}]" if declaration.many else word


_PREFACE = """\
# Options

<!-- Generated from the declarations by `python -m asgictl.reference`; change those. -->

Each setting is one name with four spellings: a flag on the command line, a variable, a key of
the settings file, and an argument of `asgictl.run()`. Key and argument are the name itself; in
the file a `-` may stand for each `_`. [Configure asgictl](../how-to/configure.md) says which
spelling wins.

Durations are seconds, or have a unit: `500ms`, `30s`, `2m`, `1h`. Sizes are bytes, or have one:
`64K`, `16M`, `1G` (steps of 1024). Switches are `true` or `false` (also yes and no, on and off,
1 and 0). Where a default is none, `none` unsets a number and an empty text unsets a text. A
setting that may be repeated is a list in the file; in a variable, commas separate its values
(line breaks for `header`).
"""


if __name__ == "__main__":
    from asgictl.operate import metrics

    for name, text in ((PAGE, page()), (metrics.PAGE, metrics.page())):
        with open(
            os.path.join(os.path.dirname(__file__), "..", "..", name), "w", encoding="utf-8"
        ) as file:
            file.write(text)
