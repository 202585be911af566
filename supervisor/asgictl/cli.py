"""The command line: ``asgictl [OPTIONS] APP`` serves, ``asgictl VERB`` does something else.

Options are made from the declarations of the settings. Their values stay texts here:
``configuration`` reads them as it reads variables, so that errors are the same. A mistake of
the operator is one line on standard error and an exit code, never a traceback.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem, get_completion_class

from asgictl import serve
from asgictl.configuration import (
    CONFIG_VARIABLE,
    FILE_NAME,
    SETTINGS,
    Layer,
    Source,
    from_command_line,
    to_json,
)
from asgictl.operate.commands import COMMANDS, echo_json, print_running_settings, report
from asgictl.reference import (
    by_group,
    default_in_words,
    effective,
    flags,
    metavar,
    sample,
    variables,
)
from asgictl.settings import INSTEAD
from asgictl_worker.errors import AsgictlError, ExitCode
from asgictl_worker.settings import SWITCH_WORDS, Declaration

PROGRAM = "asgictl"
SHELLS = ("bash", "zsh", "fish")
"""Those that options can be completed in."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Do what the command line says and end the process with an ``ExitCode``.

    Args:
        arguments: what follows the program's name; None takes those of this process.
    """
    try:
        code = commands.main(arguments, PROGRAM, standalone_mode=False) or ExitCode.OK
    except click.NoSuchOption as error:
        code = _fail(_unknown_option(error), ExitCode.USAGE)
    except click.ClickException as error:
        # Click writes choices one below the other.
        code = _fail(" ".join(error.format_message().split()), ExitCode.USAGE)
    except click.Abort:
        # Interrupted before the supervisor listens to signals; shells expect 128 + SIGINT.
        code = 130
    except AsgictlError as error:
        code = _fail(str(error), error.exit_code)
    raise SystemExit(int(code))


def _fail(sentence: str, code: ExitCode) -> ExitCode:
    click.echo(f"{PROGRAM}: error: {sentence}", err=True)
    return code


def _unknown_option(error: click.NoSuchOption) -> str:
    sentence = f"there is no option {error.option_name}"
    if advice := INSTEAD.get(error.option_name):
        return f"{sentence}; {advice}"
    if error.possibilities:
        return f"{sentence}; did you mean {' or '.join(error.possibilities)}?"
    verb = error.ctx.info_name if error.ctx else "run"
    command = PROGRAM if verb in ("run", PROGRAM) else f"{PROGRAM} {verb}"
    return f"{sentence}; `{command} --help` lists all"


def _option(declaration: Declaration) -> click.Option:
    facts = declaration.facts
    if declaration.kind is bool:
        switch = f"{declaration.flag}/--no-{declaration.flag.removeprefix('--')}"
        return click.Option(
            [*facts.flags, switch, declaration.name], default=None, help=facts.sentence
        )

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        kind = {"FILE": "file", "PATH": "file", "DIRECTORY": "dir"}.get(facts.metavar)
        if kind:
            return [CompletionItem(incomplete, type=kind)]
        return [CompletionItem(word) for word in declaration.choices if word.startswith(incomplete)]

    return click.Option(
        [declaration.flag, *facts.flags, declaration.name],
        multiple=declaration.many,
        type=click.UNPROCESSED,
        metavar=metavar(declaration),
        help=facts.sentence,
        shell_complete=complete,
    )


class _SettingsCommand(click.Command):
    """A command that takes every setting as an option, listed under its heading."""

    def __init__(self, name: str, *, params: Sequence[click.Parameter], **facts: Any) -> None:
        config = click.Option(
            ["-c", "--config"],
            metavar="FILE",
            type=click.Path(readable=False),  # whoever reads it says better why it cannot be read
            help="Read settings from this file (default: asgictl.toml, or [tool.asgictl] in pyproject.toml). "
            f"[{CONFIG_VARIABLE}]",
        )
        options = [_option(declaration) for declaration in SETTINGS.values()]
        super().__init__(name, params=[*params, config, *options], **facts)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _switches_without_values(args))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        others = [parameter for parameter in self.get_params(ctx) if parameter.name not in SETTINGS]
        records = [
            parameter.get_help_record(ctx)
            for parameter in others
            if isinstance(parameter, click.Option)
        ]
        with formatter.section("General"):
            formatter.write_dl([record for record in records if record])
        for group, declarations in by_group().items():
            with formatter.section(group):
                formatter.write_dl([_help_record(declaration) for declaration in declarations])


def _help_record(declaration: Declaration) -> tuple[str, str]:
    between = " / " if declaration.kind is bool else ", "
    names = f"{between.join(flags(declaration))} {metavar(declaration)}".rstrip()
    default = default_in_words(declaration)
    return (
        names,
        f"{declaration.facts.sentence} [default: {default}; {', '.join(variables(declaration))}]",
    )


def _switches_without_values(args: list[str]) -> list[str]:
    """Return ``args`` with ``--switch=false`` and ``--switch false`` as ``--no-switch``.

    uvicorn has such an option (``--ws-per-message-deflate false``), and variables and files
    have switches with values anyway.
    """
    switches = {declaration.flag for declaration in SETTINGS.values() if declaration.kind is bool}
    result: list[str] = []
    for arg in args:
        flag, equals, word = arg.partition("=")
        if result and "--" not in result and result[-1] in switches and arg.lower() in SWITCH_WORDS:
            flag, equals, word = result.pop(), "=", arg
        if equals and flag in switches and "--" not in result:
            arg = flag if SWITCH_WORDS.get(word.lower(), word) is True else f"--no-{flag[2:]}"
            if word.lower() not in SWITCH_WORDS:
                from_command_line({flag[2:].replace("-", "_"): word})
        result.append(arg)
    return result


def _given(values: Mapping[str, object]) -> Layer:
    return from_command_line(
        {name: value for name, value in values.items() if value not in (None, ())}
    )


class _Commands(click.Group):
    """The verbs; what is no verb is the application to run, and its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Nothing at all comes here when a shell completes the first word.
        if (
            (args or not ctx.resilient_parsing)
            and args[:1] != ["--"]
            and (not args or args[0] not in self.commands)
        ):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return super().shell_complete(ctx, incomplete) + self.commands["run"].shell_complete(
            ctx, incomplete
        )


class _Run(_SettingsCommand):
    """The command that needs no name."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(PROGRAM, "[OPTIONS] APP")
        formatter.write_usage(PROGRAM, "VERB ...", prefix="       ")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(
                [(name, verb.get_short_help_str(70)) for name, verb in VERBS.items()]
            )


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from asgictl import __version__

        click.echo(f"{PROGRAM} {__version__}")
        ctx.exit()


def _run(app: tuple[str, ...], config: str | None, **values: object) -> int:
    given = _given(values)
    for word in app:
        # One that is no name of a module here may be the verb of another program.
        if (
            not re.search(r"[.:/]", word)
            and not os.path.exists(word)
            and not os.path.exists(f"{word}.py")
        ):
            # Here and not above: it takes memory, and is seldom needed.
            import difflib

            near = difflib.get_close_matches(word, VERBS, n=1, cutoff=0.7)
            if near or len(app) > 1:
                hint = (
                    f"did you mean {near[0]}?" if near else f"`{PROGRAM} main:app` serves main:app"
                )
                raise click.UsageError(f"there is no verb {word}; {hint}")
    if len(app) > 1:
        raise click.UsageError(f"one application is served, and not {' and '.join(app)}")
    if not app:
        raise click.UsageError(
            f"which application? Name it as module:attribute, such as `{PROGRAM} main:app`; "
            f"`{PROGRAM} --help` lists the options"
        )
    return serve(app[0], Source.of_this_process(given, config))


def _config(
    app: str | None,
    config: str | None,
    explain: bool,
    sample_file: bool,
    running: bool,
    as_json: bool,
    **values: object,
) -> int:
    if sample_file:
        click.echo(sample(), nl=False)
    elif running:
        given = {name: item.value for name, item in _given(values).items()}
        return report(
            lambda: print_running_settings(
                given.pop("control", None), given.pop("pid", None), config, as_json, explain
            ),
            as_json,
        )
    else:
        configuration = Source.of_this_process(_given(values), config).read()
        if as_json:
            origins = {name: str(origin) for name, origin in configuration.origins.items()}
            echo_json({"settings": to_json(configuration.settings), "origins": origins})
        else:
            click.echo(effective(configuration, explain=explain), nl=False)
    return ExitCode.OK


def _check(app: str | None, config: str | None, as_json: bool, **values: object) -> int:
    if app is None:
        raise click.UsageError(f"which application? Name it, such as `{PROGRAM} check main:app`")
    configuration = Source.of_this_process(_given(values), config).read()
    os.chdir(configuration.directory)
    from asgictl.check import check
    from asgictl.operate.client import served_addresses

    findings = []
    control = configuration.settings.control_path
    known = [] if control is None else [os.path.abspath(control)]
    for finding in check(app, configuration, served_addresses(os.environ, known)):
        findings.append(finding)
        if not as_json:
            mark = "ok    " if finding.sound else "FAILED"
            click.echo(f"{mark}  {finding.what:<12}  {finding.text}")
            if finding.detail:
                click.echo(finding.detail.rstrip(), err=True)
    sound = all(finding.sound for finding in findings)
    if as_json:
        echo_json({"ok": sound, "findings": [asdict(finding) for finding in findings]})
    return ExitCode.OK if sound else ExitCode.INTERNAL


def _init(
    app: str | None,
    config: str | None,
    systemd: bool,
    output: str | None,
    force: bool,
    as_json: bool,
    **values: object,
) -> None:
    if app is None:
        raise click.UsageError(f"which application? Name it, such as `{PROGRAM} init main:app`")
    given = _given(values)
    chosen = {name: item.value for name, item in given.items()}
    configuration = Source.of_this_process(given, config).read()
    directory = configuration.directory
    if systemd:
        import getpass

        from asgictl import unit

        name = unit.service_name(directory)
        path = output or f"{name}.service"
        text = unit.service(
            name=name,
            application=app,
            program=_program(),
            directory=directory,
            user=getpass.getuser() if os.geteuid() else None,
            chosen=chosen,
            settings=configuration.settings,
        )
        then = (
            f"sudo install -m 644 {path} /etc/systemd/system/{name}.service\n"
            f"sudo systemctl daemon-reload\nsudo systemctl enable --now {name}"
        )
    else:
        path, text = output or FILE_NAME, sample(chosen)
        then = f"{PROGRAM} {app}"
    if path == "-":
        click.echo(text, nl=False)
        return
    try:
        with open(path, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise click.UsageError(
            f"{path} exists already; --force overwrites it, --output - prints"
        ) from None
    except OSError as error:
        raise click.UsageError(f"cannot write {path}: {error.strerror}") from None
    if as_json:
        echo_json({"path": path, "next": then.splitlines()})
    else:
        click.echo(f"wrote {path}; next:\n{then}")


def _completion(shell: str | None) -> None:
    name = shell or os.path.basename(os.environ.get("SHELL", ""))
    kind = get_completion_class(name)
    if kind is None:
        known = ", ".join(SHELLS)
        raise click.UsageError(
            f"which shell? Name one of {known}, such as `{PROGRAM} completion bash`"
        )
    click.echo(kind(commands, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source())


def _program() -> list[str]:
    """Return the words that start this program from anywhere."""
    path = os.path.join(os.path.dirname(sys.executable), PROGRAM)
    return [path] if os.access(path, os.X_OK) else [sys.executable, "-m", PROGRAM]


_WIDE = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

VERBS: dict[str, click.Command] = {
    "run": _Run(
        "run",
        callback=_run,
        help="Serve the ASGI application APP, written as module:attribute.",
        short_help="Serve an application; this verb may be left out.",
        params=[
            click.Argument(["app"], nargs=-1),
            click.Option(
                ["-v", "--version"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_print_version,
                help="Print the version and exit.",
            ),
        ],
        context_settings=_WIDE,
    ),
    "config": _SettingsCommand(
        "config",
        callback=_config,
        help="Print the settings in effect as a settings file. Put it before your usual arguments to see "
        "what they lead to.",
        short_help="Print the settings in effect, and where each comes from.",
        params=[
            click.Argument(["app"], required=False),
            click.Option(["--explain"], is_flag=True, help="Say where each value comes from."),
            click.Option(
                ["--running"],
                is_flag=True,
                help="Print those that the running supervisor serves by, found by --control or --pid.",
            ),
            click.Option(["--json", "as_json"], is_flag=True, help="Print JSON, for programs."),
            click.Option(
                ["--sample", "sample_file"],
                is_flag=True,
                help="Print a commented settings file of the defaults.",
            ),
        ],
        context_settings=_WIDE,
    ),
    "check": _SettingsCommand(
        "check",
        callback=_check,
        help="Try out whether APP would start with these settings: certificates, addresses, import, lifespan. "
        "Put it before your usual arguments. Nobody is served; exit code 1 says that something is wrong.",
        short_help="Try out a start: settings, addresses, import, lifespan.",
        params=[
            click.Argument(["app"], required=False),
            click.Option(["--json", "as_json"], is_flag=True, help="Print JSON, for programs."),
        ],
        context_settings=_WIDE,
    ),
    "init": _SettingsCommand(
        "init",
        callback=_init,
        help="Write a settings file for APP, with the options that are given, or with --systemd a service.",
        short_help="Write a settings file or a systemd service for an application.",
        params=[
            click.Argument(["app"], required=False),
            click.Option(["--systemd"], is_flag=True, help="Write the unit file of a service."),
            click.Option(
                ["-o", "--output"],
                metavar="FILE",
                help=f"Write this file; - prints (default: {FILE_NAME}, or NAME.service).",
            ),
            click.Option(["--force"], is_flag=True, help="Overwrite a file that exists."),
            click.Option(["--json", "as_json"], is_flag=True, help="Print JSON, for programs."),
        ],
        context_settings=_WIDE,
    ),
    "completion": click.Command(
        "completion",
        callback=_completion,
        help="Print what makes SHELL complete verbs, options and their values. Put "
        f'`eval "$({PROGRAM} completion bash)"` into ~/.bashrc, the same with zsh into ~/.zshrc, or '
        f"`{PROGRAM} completion fish | source` into ~/.config/fish/config.fish.",
        short_help="Print the completion of bash, zsh or fish.",
        params=[click.Argument(["shell"], required=False, type=click.Choice(SHELLS))],
        context_settings=_WIDE,
    ),
    **COMMANDS,
}
"""Every verb, by its name: a new one is one row here."""

commands = _Commands(PROGRAM, commands=VERBS)
