"""Which source wins, and what an error says about each."""

import itertools
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgictl.configuration import (
    SETTINGS,
    Origin,
    Source,
    find_file,
    from_arguments,
    from_command_line,
    from_environment,
    from_file,
    from_json,
    read_env_files,
    resolve,
    to_json,
)
from asgictl.reference import in_toml
from asgictl.settings import WHERE, Settings
from asgictl_worker.errors import BadSetting, ConfigurationError, ContradictorySettings, ExitCode


def configuration(directory, flags=None, environment=None, config=None):
    given_ = from_command_line(flags or {})
    return Source(
        given=given_, environment=environment or {}, directory=str(directory), config=config
    ).read()


def settings(directory, flags=None, environment=None, config=None):
    return configuration(directory, flags, environment, config).settings


@pytest.fixture
def write(tmp_path):
    def _write(text, name="asgictl.toml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return _write


# -- Precedence

RANKS = ("shared", "file", "variable", "flag")


def some_values(declaration, directory):
    """Return four values, neighbours different, none of them the default."""
    name = declaration.name
    if name == "chdir":
        return [str(directory / f"d{number}") for number in range(4)]
    if name == "env_file":
        return [(str(directory / f"env{number}"),) for number in range(4)]
    if declaration.kind is bool:
        return [not declaration.default, bool(declaration.default)] * 2
    if name == "ssl_cert_reqs":
        return ["optional", 2, 1, "required"]
    if declaration.kind in (int, float) or declaration.or_number:
        start = int(declaration.facts.minimum or 0) + 64
        return [
            declaration.kind(start + number) if not declaration.or_number else start + number
            for number in range(4)
        ]
    if declaration.choices:
        words = [word for word in declaration.choices if word != declaration.default]
        return list(itertools.islice(itertools.cycle(words), 4))
    text = {
        "bind": "127.0.0.1:{}",
        "admin_bind": "127.0.0.1:900{}",
        "header": "x-n: {}",
        "umask": "02{}",
        "forwarded_allow_ips": "10.0.0.{}",
        "proxy_allow_from": "10.0.0.{}",
        "uds_permissions": "60{}",
        "ssl_context_factory": "module:function{}",
        "on_worker_start": "module:function{}",
        "on_worker_stop": "module:function{}",
        "worker_class": "module:Class{}",
    }.get(name, "text{}")
    texts = [text.format(number) for number in range(4)]
    return [(text,) for text in texts] if declaration.many else texts


NEEDED = {"ssl_keyfile": {"ssl_certfile": "a"}, "ssl_cert_reqs": {"ssl_ca_certs": "a"}}


def as_text(declaration, value):
    return declaration.facts.separator.join(value) if declaration.many else str(value)


# A profile has to be there; tests of its own are below.
@pytest.mark.parametrize("name", sorted(set(SETTINGS) - {"profile"}))
def test_the_strongest_source_wins_for_every_setting_and_every_set_of_sources(name, tmp_path):
    declaration = SETTINGS[name]
    values = dict(zip(RANKS, some_values(declaration, tmp_path), strict=True))
    for number in range(4):
        (tmp_path / f"d{number}").mkdir()
        (tmp_path / f"env{number}").touch()
    (file := tmp_path / "other.toml").write_text(f"{name} = {in_toml(values['file'])}\n")
    ranks = RANKS if declaration.facts.variables else RANKS[1:]
    for size in range(len(ranks) + 1):
        for chosen in itertools.combinations(ranks, size):
            environment = {}
            if "shared" in chosen:
                environment[declaration.facts.variables[0]] = as_text(declaration, values["shared"])
            if "variable" in chosen:
                environment[declaration.variable] = as_text(declaration, values["variable"])
            flags = {name: values["flag"]} if "flag" in chosen else {}
            flags |= NEEDED.get(name, {})
            config = str(file) if "file" in chosen else None
            found = configuration(tmp_path, flags, environment, config)
            expected = values[chosen[-1]] if chosen else declaration.default
            assert getattr(found.settings, name) == expected
            details = {
                "shared": (declaration.facts.variables or ("",))[0],
                "file": f"{file}:{name}",
                "variable": declaration.variable,
                "flag": declaration.flag,
            }
            assert str(found.origins[name]) == (details[chosen[-1]] if chosen else "default")


def test_each_value_remembers_its_kind_of_origin(write, tmp_path):
    write("workers = 2\nbacklog = 5\n")
    found = configuration(
        tmp_path, {"backlog": "7"}, {"ASGICTL_TIMEOUT": "9", "FORWARDED_ALLOW_IPS": "*"}
    )
    assert found.origins["workers"] == Origin("file", "asgictl.toml:workers")
    assert found.origins["backlog"] == Origin("flag", "--backlog")
    assert found.origins["timeout"] == Origin("variable", "ASGICTL_TIMEOUT")
    assert found.origins["forwarded_allow_ips"] == Origin("variable", "FORWARDED_ALLOW_IPS")
    assert found.origins["host"] == Origin("default")
    assert found.file == str(tmp_path / "asgictl.toml")
    assert found.directory == str(tmp_path)


# -- Where to listen is one question

VALUES = {"bind": (":1",), "uds": "x", "fd": 3, "host": "0.0.0.0", "port": 9}
answers = st.sampled_from(
    [(), ("bind",), ("uds",), ("fd",), ("host",), ("port",), ("host", "port")]
)


@given(st.tuples(answers, answers, answers))
def test_the_strongest_source_that_says_where_to_listen_replaces_other_answers(layers):
    made = [from_arguments({name: VALUES[name] for name in layer}) for layer in layers]
    merged = resolve(*made)
    Settings(**{name: found.value for name, found in merged.items()})
    strongest = [layer for layer in layers if layer]
    kinds = {WHERE[name] for name in merged}
    assert kinds == ({WHERE[strongest[-1][0]]} if strongest else set())


def test_a_bind_on_the_command_line_replaces_the_port_of_the_file(write, tmp_path):
    write("port = 9000\n")
    found = settings(tmp_path, {"bind": (":1",)})
    assert (found.bind, found.port) == ((":1",), 8000)


def test_an_empty_answer_says_nothing(write, tmp_path):
    write("uds = 'x'\n")
    assert settings(tmp_path, {"uds": ""}).uds is None


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"uds": "x", "fd": "3"}, ("uds = 'x' (--uds)", "fd = 3 (--fd)")),
        ({"bind": (":1",), "port": "1"}, ("bind = (':1',) (--bind)", "port = 1 (--port)")),
    ],
)
def test_one_source_that_answers_twice_is_an_error(tmp_path, flags, named):
    with pytest.raises(ContradictorySettings) as caught:
        settings(tmp_path, flags)
    for part in (*named, "both say where to listen"):
        assert part in str(caught.value)


def test_other_contradictions_name_both_sources(write, tmp_path):
    write("lifespan = 'on'\n")
    with pytest.raises(ContradictorySettings) as caught:
        settings(tmp_path, {"interface": "wsgi"})
    assert str(caught.value) == (
        "interface = 'wsgi' (--interface) and lifespan = 'on' (asgictl.toml:lifespan) contradict each other: "
        "a WSGI application has no lifespan; keep one of them"
    )


# -- Variables that other tools share


def test_port_alone_listens_on_every_ipv4_interface(tmp_path):
    found = configuration(tmp_path, environment={"PORT": "5000"})
    assert (found.settings.host, found.settings.port) == ("0.0.0.0", 5000)
    assert found.origins["host"] == Origin("variable", "PORT")


def test_port_means_the_same_in_an_env_file(write, tmp_path):
    write("PORT=5000\n", ".env")
    assert settings(tmp_path, {"env_file": (".env",)}).host == "0.0.0.0"


@pytest.mark.parametrize(
    ("flags", "environment", "host"),
    [
        ({"host": "127.0.0.1"}, {"PORT": "1"}, "127.0.0.1"),
        ({}, {"PORT": "1", "ASGICTL_HOST": "::1"}, "::1"),
        ({"port": "2"}, {"PORT": "1"}, "127.0.0.1"),
        ({"uds": "x"}, {"PORT": "1"}, "127.0.0.1"),
        ({}, {"PORT": ""}, "127.0.0.1"),
    ],
)
def test_port_does_not_change_the_host_when_something_else_says_where(
    tmp_path, flags, environment, host
):
    assert settings(tmp_path, flags, environment).host == host


def test_a_bad_shared_variable_is_named():
    with pytest.raises(BadSetting, match=r"workers cannot be 'many' \(WEB_CONCURRENCY\)"):
        from_environment({"WEB_CONCURRENCY": "many"})


# -- Variables of our own


def test_an_empty_variable_counts_as_not_set():
    assert from_environment({"ASGICTL_WORKERS": "", "WEB_CONCURRENCY": ""}) == ({}, {})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ASGICTL_WORKER", "did you mean ASGICTL_WORKERS?"),
        ("ASGICTL_KEEP_ALIVE", "did you mean ASGICTL_TIMEOUT_KEEP_ALIVE?"),
        ("ASGICTL_XYZZY", "sets nothing; unset it"),
    ],
)
def test_a_variable_that_sets_nothing_is_an_error_with_the_nearest_name(name, hint):
    with pytest.raises(ConfigurationError) as caught:
        from_environment({name: "1"})
    assert f"the variable {name} sets nothing" in str(caught.value)
    assert hint in str(caught.value)


def test_variables_that_kubernetes_makes_for_a_service_of_our_name_are_left_alone():
    assert from_environment(
        {
            "ASGICTL_SERVICE_HOST": "10.0.0.1",
            "ASGICTL_SERVICE_PORT": "80",
            "ASGICTL_SERVICE_PORT_HTTP": "80",
            "ASGICTL_PORT": "tcp://10.0.0.1:80",
            "ASGICTL_PORT_80_TCP": "tcp://10.0.0.1:80",
            "ASGICTL_PORT_80_TCP_ADDR": "10.0.0.1",
        }
    ) == ({}, {})


# -- The settings file


def test_the_file_in_the_working_directory_comes_before_pyproject(write, tmp_path):
    write("[tool.asgictl]\nworkers = 3\n", "pyproject.toml")
    assert settings(tmp_path).workers == 3
    write("backlog = 9\n")
    assert (settings(tmp_path).workers, settings(tmp_path).backlog) == (1, 9)
    write("workers = 5\n", "conf/other.toml")
    assert settings(tmp_path, config="conf/other.toml").workers == 5
    assert settings(tmp_path, environment={"ASGICTL_CONFIG": "conf/other.toml"}).workers == 5
    flag_wins = configuration(
        tmp_path, config="pyproject.toml", environment={"ASGICTL_CONFIG": "missing.toml"}
    )
    assert flag_wins.settings.workers == 3


def test_a_pyproject_without_our_table_is_no_settings_file(write, tmp_path):
    for text in ("[project]\nname = 'x'\n", "tool = 3\n", "[tool]\n"):
        write(text, "pyproject.toml")
        assert find_file(str(tmp_path), None) is None
    write("[tool]\nasgictl = 3\n", "pyproject.toml")
    with pytest.raises(ConfigurationError, match=r"tool\.asgictl is no table"):
        find_file(str(tmp_path), None)


def test_keys_may_have_dashes(write, tmp_path):
    write("timeout-boot = '2m'\nbind = [':1', 'unix:x']\naccess-log = false\n")
    found = settings(tmp_path)
    assert (found.timeout_boot, found.bind, found.access_log) == (120.0, (":1", "unix:x"), False)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("worker = 3", ["asgictl.toml: 'worker' is no setting", "did you mean workers?"]),
        ("keep_alive = 3", ["did you mean timeout_keep_alive?"]),
        ("[server]\nworkers = 3", ["asgictl.toml: 'server' is no setting"]),
        ("min-ready = 1\nmin_ready = 2", ["min_ready stands there twice"]),
        (
            "workers = 'many'",
            ["workers cannot be 'many' (asgictl.toml:workers)", "auto or a whole number"],
        ),
        ("port = '80'", ["port cannot be '80' (asgictl.toml:port): it must be a whole number"]),
        (
            "access-log = 1",
            ["access_log cannot be 1 (asgictl.toml:access-log): it must be true or false"],
        ),
        ("bind = 80", ["bind cannot be 80 (asgictl.toml:bind)", "a list of which each is a text"]),
        ("header = {a = 1}", ["header cannot be {'a': 1}", "a list"]),
        ("umask = 22", ["a text in quotes (OCTAL)"]),
        ("workers = 1\nport = = 2", ["asgictl.toml is not valid TOML", "line 2"]),
        ("uds = 'x'\nfd = 3", ["uds = 'x' (asgictl.toml:uds) and fd = 3 (asgictl.toml:fd)"]),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place(write, tmp_path, text, parts):
    write(text)
    with pytest.raises(ConfigurationError) as caught:
        settings(tmp_path)
    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION
    for part in parts:
        assert part in str(caught.value)


def test_a_file_that_is_not_utf_8_is_not_toml(tmp_path):
    (tmp_path / "asgictl.toml").write_bytes(b"uds = '\xff'")
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        settings(tmp_path)


def test_a_named_file_must_exist(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        settings(tmp_path, config="missing.toml")


def test_a_named_pyproject_must_have_our_table(write, tmp_path):
    write("[project]\n", "pyproject.toml")
    with pytest.raises(ConfigurationError, match=r"no table \[tool.asgictl\]"):
        settings(tmp_path, config="pyproject.toml")


def test_a_broken_pyproject_is_an_error_since_settings_may_stand_in_it(write, tmp_path):
    write("[tool.asgictl\n", "pyproject.toml")
    with pytest.raises(ConfigurationError, match=r"pyproject.toml is not valid TOML"):
        settings(tmp_path)


def test_a_gunicorn_settings_file_is_refused_with_the_way_out(write, tmp_path):
    write("workers = 3\n", "gunicorn.conf.py")
    with pytest.raises(ConfigurationError, match="is Python, settings files are TOML"):
        settings(tmp_path, config="gunicorn.conf.py")


# -- Flags and arguments


def test_a_bad_flag_is_an_error_of_usage(tmp_path):
    with pytest.raises(BadSetting) as caught:
        settings(tmp_path, {"workers": "many"})
    assert caught.value.exit_code == ExitCode.USAGE
    assert "workers cannot be 'many' (--workers)" in str(caught.value)


def test_a_rule_between_values_is_also_an_error_of_usage(tmp_path):
    with pytest.raises(BadSetting) as caught:
        settings(tmp_path, {"bind": (":1", ":1")})
    assert caught.value.exit_code == ExitCode.USAGE
    assert "(--bind)" in str(caught.value)


def test_arguments_of_run_are_held_to_the_same_rules():
    assert from_arguments({"workers": 4, "timeout": "2m"})["timeout"].value == 120.0
    with pytest.raises(BadSetting, match=r"workers cannot be 0 \(workers=\)"):
        from_arguments({"workers": 0})
    with pytest.raises(ConfigurationError, match=r"no argument 'worker'; did you mean workers\?"):
        from_arguments({"worker": 4})


# -- Directory


def test_chdir_comes_before_the_search_for_the_file(write, tmp_path):
    write("workers = 7\n", "release/asgictl.toml")
    found = configuration(tmp_path, {"chdir": "release"})
    assert found.settings.workers == 7
    assert found.directory == found.settings.chdir == str(tmp_path / "release")
    assert settings(tmp_path, environment={"ASGICTL_CHDIR": "release"}).workers == 7
    assert (
        settings(
            tmp_path / "x", {"chdir": str(tmp_path / "release")}, config="asgictl.toml"
        ).workers
        == 7
    )


def test_chdir_in_the_file_is_where_the_server_runs(write, tmp_path):
    write("chdir = 'release'\n")
    (tmp_path / "release").mkdir()
    assert configuration(tmp_path).directory == str(tmp_path / "release")


def test_chdir_keeps_a_link_as_it_is_so_that_a_reload_follows_it_anew(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "current").symlink_to("one")
    assert settings(tmp_path, {"chdir": "current"}).chdir == str(tmp_path / "current")


def test_chdir_must_exist(tmp_path):
    with pytest.raises(BadSetting, match=r"chdir cannot be 'nowhere' \(--chdir\)"):
        settings(tmp_path, {"chdir": "nowhere"})


def test_a_working_directory_that_was_removed_is_named(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigurationError, match="the working directory is gone"):
        Source.of_this_process({})


# -- Files of variables


def test_an_env_file_stands_for_the_environment_which_wins(write, tmp_path):
    write("ASGICTL_WORKERS=3\nWEB_CONCURRENCY=9\nASGICTL_BACKLOG=5\nexport SECRET='a b'\n", ".env")
    found = configuration(tmp_path, {"env_file": (".env",)}, {"ASGICTL_BACKLOG": "6"})
    assert (found.settings.workers, found.settings.backlog) == (3, 6)
    assert str(found.origins["workers"]) == "ASGICTL_WORKERS in .env"
    variables = read_env_files([str(tmp_path / ".env")], {"ASGICTL_BACKLOG": "6", "HOME": "/"})
    assert variables == {
        "ASGICTL_WORKERS": "3",
        "WEB_CONCURRENCY": "9",
        "ASGICTL_BACKLOG": "6",
        "SECRET": "a b",
        "HOME": "/",
    }


def test_an_env_file_is_looked_for_where_the_server_runs(write, tmp_path):
    write("chdir = 'release'\nenv_file = '.env'\n")
    write("ASGICTL_WORKERS=3\n", "release/.env")
    assert settings(tmp_path).workers == 3


def test_a_later_env_file_wins_over_an_earlier_one(write, tmp_path):
    write("ASGICTL_WORKERS=3\n", "a.env")
    write("ASGICTL_WORKERS=4\n", "b.env")
    write("env_file = ['a.env', 'b.env']\n")
    assert settings(tmp_path).workers == 4


def test_a_bad_value_in_an_env_file_is_named_with_the_file(write, tmp_path):
    write("ASGICTL_WORKERS=many\n", ".env")
    with pytest.raises(BadSetting, match=r"\(ASGICTL_WORKERS in .env\)"):
        settings(tmp_path, {"env_file": (".env",)})
    write("ASGICTL_WORKER=1\n", ".env")
    with pytest.raises(
        ConfigurationError, match=r"the variable ASGICTL_WORKER in .env sets nothing"
    ):
        settings(tmp_path, {"env_file": (".env",)})


@pytest.mark.parametrize("name", ["ASGICTL_CONFIG", "ASGICTL_CHDIR", "ASGICTL_ENV_FILE"])
def test_what_finds_the_env_file_cannot_stand_in_it(write, tmp_path, name):
    write(f"{name}=x\n", ".env")
    with pytest.raises(ConfigurationError, match=f"{name} in .env comes too late"):
        settings(tmp_path, {"env_file": (".env",)})


def test_an_env_file_must_be_readable(tmp_path):
    with pytest.raises(BadSetting, match=r"env_file cannot be '.env' \(--env-file\).*No such file"):
        settings(tmp_path, {"env_file": (".env",)})
    (tmp_path / ".env").write_bytes(b"A=\xff\n")
    with pytest.raises(BadSetting, match="it is not UTF-8"):
        settings(tmp_path, {"env_file": (".env",)})
    (tmp_path / ".env").write_bytes(b"A=1\nB=x\0y\n")
    with pytest.raises(ConfigurationError, match=r"^\.env: 'B' holds a NUL character"):
        settings(tmp_path, {"env_file": (".env",)})
    (tmp_path / ".env").unlink()
    os.mkfifo(tmp_path / ".env")
    with pytest.raises(BadSetting, match="no pipe"):
        settings(tmp_path, {"env_file": (".env",)})


def test_a_line_of_an_env_file_that_cannot_be_read_is_named(write, tmp_path):
    write("A=1\n\nB='x\n", ".env")
    with pytest.raises(ConfigurationError, match=r"^\.env, line 3: this is not NAME=value$"):
        settings(tmp_path, {"env_file": (".env",)})


# -- Again and elsewhere


def test_reading_again_sees_what_has_changed(write, tmp_path):
    source = Source(given={}, environment={}, directory=str(tmp_path))
    write("workers = 2\n")
    assert source.read().settings.workers == 2
    write("workers = 3\n")
    assert source.read().settings.workers == 3
    os.unlink(tmp_path / "asgictl.toml")
    assert source.read().settings.workers == 1


def test_development_has_defaults_of_its_own_which_any_source_outweighs(write, tmp_path):
    write("min_ready = 7")
    found = configuration(tmp_path, {"reload": True}, {"ASGICTL_DRAIN_IDLE_WINDOW": "2"})

    assert found.settings.timeout_graceful_shutdown == 0.5
    assert found.sources["timeout_graceful_shutdown"] == "default with reload"
    assert (found.settings.min_ready, found.settings.drain_idle_window) == (7.0, 2.0)
    assert configuration(tmp_path, {"reload": False}).settings.timeout_graceful_shutdown == 30.0


PROFILES = """
workers = 2
host = "0.0.0.0"

[profiles.production]
workers = 8
bind = ["unix:app.sock"]
env_file = [".env.production"]

[profiles.small]
workers = 1
"""


@pytest.mark.parametrize("how", ["flag", "variable", "file"])
def test_a_profile_wins_over_the_rest_of_its_file(write, tmp_path, how):
    write(('profile = "production"\n' if how == "file" else "") + PROFILES)
    write("ASGICTL_TIMEOUT=7\n", ".env.production")
    flags = {"profile": "production"} if how == "flag" else {}
    environment = {"ASGICTL_PROFILE": "production"} if how == "variable" else {}
    found = configuration(tmp_path, flags, environment)

    assert (found.settings.workers, found.settings.bind) == (8, ("unix:app.sock",))
    assert found.settings.timeout == 7.0
    assert found.sources["workers"] == "asgictl.toml:profiles.production.workers"


def test_a_profile_is_weaker_than_variables_and_the_command_line(write, tmp_path):
    write('profile = "small"\n' + PROFILES)
    write("", ".env.production")

    assert settings(tmp_path, {"workers": "3"}).workers == 3
    assert settings(tmp_path, {}, {"ASGICTL_WORKERS": "4"}).workers == 4
    assert settings(tmp_path, {}, {"ASGICTL_PROFILE": "production"}).workers == 8
    assert settings(tmp_path, {}, {"WEB_CONCURRENCY": "5"}).workers == 1


def test_pyproject_has_profiles_too(write, tmp_path):
    write("[tool.asgictl.profiles.small]\nworkers = 3\n", "pyproject.toml")
    assert settings(tmp_path, {"profile": "small"}).workers == 3


@pytest.mark.parametrize(
    ("text", "profile", "sentence"),
    [
        (PROFILES, "prod", r"'prod' \(--profile\): .* asgictl.toml, which has production, small"),
        ("workers = 2", "x", "which has none"),
        ('profile = "x"', None, r"profile cannot be 'x' \(asgictl.toml:profile\)"),
        ("[profiles.x]\nworker = 2", None, "'profiles.x.worker' is no setting; did you mean workers"),
        ("[profiles.x]\nworkers = 0", None, r"workers cannot be 0 \(asgictl.toml:profiles.x.workers\)"),
        ('[profiles.x]\nprofile = "y"', None, "profiles.x.profile leads nowhere; set profile outside"),
        ('profiles = "x"', None, "profiles are tables"),
        ("[profiles]\nworkers = 2", None, "profiles are tables"),
    ],
)  # fmt: skip
def test_a_mistake_about_profiles_is_named(write, tmp_path, text, profile, sentence):
    write(text)
    with pytest.raises(ConfigurationError, match=sentence):
        configuration(tmp_path, {"profile": profile} if profile else {})


def test_a_profile_without_a_settings_file_is_a_mistake(tmp_path):
    with pytest.raises(ConfigurationError, match="in a settings file, and there is none"):
        configuration(tmp_path, {}, {"ASGICTL_PROFILE": "production"})


def test_workers_of_a_template_would_not_follow_the_files():
    with pytest.raises(ContradictorySettings, match="old code"):
        Settings(reload=True, preload=True)


def test_settings_survive_the_way_through_json():
    original = Settings(bind=(":1",), workers="auto", timeout=1.5, header=("a: b",))
    values = json.loads(json.dumps(to_json(original)))
    assert from_json({**values, "of_another_version": 1}) == original


def test_a_file_gives_only_what_stands_in_it(write):
    assert list(from_file(str(write("workers = 2\n")))) == ["workers"]
