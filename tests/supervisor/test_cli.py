"""What the command line understands, prints and answers to mistakes."""

import os
import subprocess
import sys
import tomllib

import pytest

from asgictl.cli import VERBS, main
from asgictl.configuration import SETTINGS
from asgictl.reference import by_group, flags, metavar, variables
from asgictl.settings import INSTEAD
from asgictl_worker.errors import ExitCode


@pytest.fixture(autouse=True)
def _clean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("ASGICTL_") or name in (
            "PORT",
            "WEB_CONCURRENCY",
            "FORWARDED_ALLOW_IPS",
        ):
            monkeypatch.delenv(name)


@pytest.fixture
def run(capsys):
    def _run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return _run


@pytest.fixture
def effective(run):
    def _effective(*arguments):
        code, out, err = run("config", *arguments)
        assert (code, err) == (0, "")
        return tomllib.loads(out)

    return _effective


def process(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "asgictl", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


# -- Help


def test_help_lists_every_option_under_its_heading_with_default_variable_and_sentence(
    run, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    squeezed = "".join(out.split())
    for group, declarations in by_group().items():
        assert f"\n{group}:\n" in out
        for declaration in declarations:
            for part in (*flags(declaration), metavar(declaration), *variables(declaration)):
                assert part in out
            assert "".join(declaration.facts.sentence.split()) in squeezed
    for verb in VERBS:
        assert f"\n  {verb} " in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("arguments", [("-h",), ("run", "--help")])
def test_help_has_other_spellings(run, arguments):
    assert run(*arguments) == run("--help")


def test_help_of_a_verb_is_its_own(run):
    code, out, _ = run("config", "--help")
    assert code == 0
    assert "--explain" in out
    assert "--sample" in out
    assert "--workers" in out


@pytest.mark.parametrize("flag", ["--version", "-v"])
def test_the_version_is_printed(run, flag):
    from importlib.metadata import version

    assert run(flag) == (0, f"asgictl {version('asgictl')}\n", "")


# -- Mistakes


def test_no_application_is_a_mistake_with_an_example(run):
    code, out, err = run()
    assert (code, out) == (ExitCode.USAGE, "")
    assert err.startswith("asgictl: error: which application?")
    assert "`asgictl main:app`" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--worker", "3", "a:b"), "there is no option --worker; did you mean "),
        (("--xyzzy",), "there is no option --xyzzy; `asgictl --help` lists all"),
        (("-Z",), "there is no option -Z; `asgictl --help` lists all"),
        (("worker", "-1", "stack"), "there is no option -1; `asgictl worker --help` lists all"),
        (
            ("worker", "0"),
            "Missing argument '{drain|restart|kill|stack}'. Choose from: drain, restart,",
        ),
        (
            ("stop", "--timeout", "x"),
            "Invalid value for '--timeout': 'x' is no number of seconds, from 0 on; units",
        ),
        (
            ("top", "-i", "1h"),
            "Invalid value for '-i' / '--interval': '1h' is no number from 0.1 to 4",
        ),
        (("config", "--explian"), "there is no option --explian; did you mean --explain"),
        (
            ("-k", "uvicorn.workers.UvicornWorker", "a:b"),
            "worker_class cannot be 'uvicorn.workers.UvicornWorker' (--worker-class): it must be module:Class",
        ),
        (("a:b", "c:d"), "one application is served, and not a:b and c:d"),
        (("statsu",), "there is no verb statsu; did you mean status?"),
        (("start", "a:b"), "there is no verb start; did you mean status?"),
        (("serve", "a:b"), "there is no verb serve; `asgictl main:app` serves main:app"),
        (("--workers", "2", "reloadd"), "there is no verb reloadd; did you mean reload?"),
        (("--port",), "Option '--port' requires an argument."),
        (("--port", "http", "a:b"), "port cannot be 'http' (--port): it must be a whole number"),
        (("--uds", "x", "--fd", "3", "a:b"), "uds = 'x' (--uds) and fd = 3 (--fd) contradict"),
        (("--access-log=maybe", "a:b"), "access_log cannot be 'maybe' (--access-log): it must be"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence_and_exit_code_2(run, arguments, sentence):
    code, out, err = run(*arguments)
    assert (code, out) == (ExitCode.USAGE, "")
    assert err.startswith(f"asgictl: error: {sentence}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("option", INSTEAD)
def test_options_of_other_servers_are_answered_with_what_to_do(run, option):
    code, _, err = run(option, "x", "app:app")
    assert (code, err) == (
        ExitCode.USAGE,
        f"asgictl: error: there is no option {option}; {INSTEAD[option]}\n",
    )


def test_a_mistake_in_the_settings_file_has_exit_code_78(run, tmp_path):
    (tmp_path / "asgictl.toml").write_text("worker = 3\n")
    code, out, err = run("app:app")
    assert (code, out) == (ExitCode.BAD_CONFIGURATION, "")
    assert err == "asgictl: error: asgictl.toml: 'worker' is no setting; did you mean workers?\n"


def test_a_mistake_in_a_variable_has_exit_code_78(run, monkeypatch):
    monkeypatch.setenv("ASGICTL_TIMEOUT", "soon")
    code, _, err = run("app:app")
    assert code == ExitCode.BAD_CONFIGURATION
    assert err.startswith("asgictl: error: timeout cannot be 'soon' (ASGICTL_TIMEOUT)")


# -- Options


def test_every_setting_can_be_given_by_each_of_its_flags(effective):
    for declaration in SETTINGS.values():
        if declaration.kind is bool or declaration.facts.metavar or declaration.choices:
            continue
        if declaration.kind is str:
            continue
        value = int(declaration.facts.minimum or 0) + 100
        for flag in flags(declaration):
            assert effective(flag, str(value))[declaration.name] == value


def test_a_repeated_option_makes_a_list(effective):
    assert effective("-b", ":1", "--bind", "unix:x")["bind"] == [":1", "unix:x"]
    assert effective("--header", "a:1,2", "--header", "b: 3")["header"] == ["a:1,2", "b: 3"]


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ((), True),
        (("--no-ws-per-message-deflate",), False),
        (("--ws-per-message-deflate",), True),
        (("--ws-per-message-deflate", "false"), False),
        (("--ws-per-message-deflate", "True"), True),
        (("--ws-per-message-deflate=off",), False),
        (("--ws-per-message-deflate=1",), True),
        (("--no-ws-per-message-deflate", "--ws-per-message-deflate"), True),
    ],
)
def test_a_switch_may_have_a_value_as_uvicorn_has_it(effective, arguments, value):
    assert effective(*arguments, "app:app")["ws_per_message_deflate"] is value


def test_options_may_stand_before_and_after_the_application(effective):
    assert effective("-w", "3", "app:app", "--backlog", "5")["workers"] == 3
    assert effective("-w", "3", "app:app", "--backlog", "5")["backlog"] == 5


def test_the_command_lines_of_uvicorn_and_gunicorn_are_understood(effective):
    uvicorn = (
        "app:app --host 0.0.0.0 --port 80 --workers 4 --loop uvloop --http httptools --ws auto --ws-max-size 1 "
        "--ws-max-queue 1 --ws-ping-interval 1 --ws-ping-timeout 1 --ws-per-message-deflate true --lifespan on "
        "--interface asgi3 --log-level info --no-access-log --no-use-colors --proxy-headers --no-server-header "
        "--no-date-header --forwarded-allow-ips * --root-path /x --limit-concurrency 5 --backlog 5 "
        "--limit-max-requests 5 --limit-max-requests-jitter 2 --timeout-keep-alive 5 "
        "--timeout-graceful-shutdown 5 --header a:b --app-dir . --reset-contextvars --factory"
    )
    assert effective(*uvicorn.split())["max_requests"] == 5
    gunicorn = (
        "-b 0.0.0.0:80 --backlog 5 -w 4 --max-requests 5 --max-requests-jitter 2 -t 30 --graceful-timeout 5 "
        "--keep-alive 2 --limit-request-line 100 --limit-request-fields 5 --limit-request-field_size 100 "
        "--chdir . -p x.pid -u nobody -g nogroup -m 022 --forwarded-allow-ips * --log-level info "
        "--asgi-loop auto --asgi-lifespan auto --websocket-max-message-size 5 --root-path /x app:app"
    )
    found = effective(*gunicorn.split())
    assert found["timeout_graceful_shutdown"] == 5
    assert found["limit_request_field_size"] == 100
    assert found["ws_max_size"] == 5


def test_the_settings_file_may_be_named(effective, tmp_path):
    (tmp_path / "prod.toml").write_text("workers = 7\n")
    assert effective("-c", "prod.toml")["workers"] == 7
    assert effective("--config=prod.toml", "-w", "8")["workers"] == 8


# -- asgictl config


def test_what_config_prints_is_a_settings_file_with_the_same_meaning(run, tmp_path):
    arguments = (
        "-b",
        ":1",
        "-b",
        "unix:x",
        "--header",
        'a: "b" \\',
        "-t",
        "1.5",
        "--no-access-log",
    )
    _, first, _ = run("config", *arguments)
    (tmp_path / "asgictl.toml").write_text(first)
    _, second, _ = run("config")
    assert first == second


def test_explain_says_where_each_value_comes_from(run, tmp_path, monkeypatch):
    (tmp_path / "asgictl.toml").write_text("workers = 7\n")
    monkeypatch.setenv("ASGICTL_BACKLOG", "5")
    code, out, _ = run("config", "--explain", "--port", "80", "app:app")
    lines = {line.split()[0]: line for line in out.splitlines() if " = " in line}
    assert code == 0
    assert lines["workers"].endswith("# asgictl.toml:workers")
    assert lines["backlog"].endswith("# ASGICTL_BACKLOG")
    assert lines["port"].endswith("# --port")
    assert lines["timeout"].endswith("# default")
    assert f"# settings file: {tmp_path / 'asgictl.toml'}" in out
    assert tomllib.loads(out)["workers"] == 7


def test_config_has_json_too(run):
    import json

    code, out, _ = run("config", "--json", "--port", "80")
    found = json.loads(out)
    assert code == 0
    assert found["settings"]["port"] == 80
    assert found["origins"]["port"] == "--port"
    assert found["origins"]["workers"] == "default"


# -- Real processes


def test_python_m_asgictl_is_the_same_program():
    found = process("config", "--workers", "3")
    assert (found.returncode, found.stderr) == (0, "")
    assert tomllib.loads(found.stdout)["workers"] == 3


def test_mistakes_reach_the_shell_as_exit_codes_without_a_traceback():
    found = process("--workers", "0", "app:app")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("asgictl: error: workers cannot be 0 (--workers)")
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("asgictl con", "config"),
        ("asgictl --workers 3 --log-le", "--log-level"),
        ("asgictl --access", "--access-log"),
        ("asgictl --no-access", "--no-access-log"),
        ("asgictl config --expl", "--explain"),
        ("asgictl --log-level deb", "debug"),
    ],
)
def test_shells_complete_verbs_options_and_words(words, expected):
    found = process(
        _ASGICTL_COMPLETE="bash_complete",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split()) - 1),
    )
    assert f"plain,{expected}" in found.stdout.splitlines()


COMPLETED = [
    ("re", "reload reload-tls reopen-logs"),
    ("reload --", "--config --control --help --json --no-wait --pid --timeout --wait"),
    ("worker 0 re", "restart"),
    ("log-level w", "warning"),
    ("--ws-max-", "--ws-max-queue --ws-max-size"),
]


@pytest.mark.parametrize(("typed", "offered"), COMPLETED)
def test_a_real_bash_completes_what_is_typed(typed, offered):
    words = ["asgictl", *typed.split(" ")]
    script = (
        'eval "$(asgictl completion bash)"\n'
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
        'compopt() { :; }\n_asgictl_completion asgictl\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    # Shells find asgictl where it is installed, and nowhere else.
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    found = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.stderr == ""
    assert sorted(found.stdout.split()) == offered.split()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_their_own_completion(shell):
    found = process("completion", shell)
    assert found.returncode == 0
    assert f"_ASGICTL_COMPLETE={shell}_complete" in found.stdout


def test_the_shell_of_the_user_is_taken_unless_another_is_named():
    assert "bash_complete" in process("completion", SHELL="/usr/bin/bash").stdout
    unknown = process("completion", SHELL="/bin/tcsh")
    assert (unknown.returncode, "Name one of bash, zsh, fish" in unknown.stderr) == (2, True)


def test_shells_complete_files():
    found = process(
        _ASGICTL_COMPLETE="bash_complete", COMP_WORDS="asgictl --log-config x", COMP_CWORD="2"
    )
    assert found.stdout.splitlines() == ["file,x"]


def test_the_command_line_stays_light():
    heavy = "asyncio, email, importlib.metadata, ssl, tomllib, logging.config, httptools, h11, uvloop, websockets"
    code = (
        "import sys, asgictl.cli, asgictl.configuration as c\n"
        "c.Source.of_this_process({}).read()\n"
        f"print(sorted(set({heavy!r}.split(', ')) & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert found.stdout == "[]\n"
