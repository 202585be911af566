"""The systemd service that `asgictl init --systemd` writes, and `asgictl init`."""

import json
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from asgictl.cli import main
from asgictl.settings import Settings
from asgictl.unit import service, service_name, word


def unit(**facts: Any) -> str:
    return service(
        **{
            "name": "shop",
            "application": "shop.main:app",
            "program": ["/venv/bin/asgictl"],
            "directory": "/srv/shop",
            "user": "www",
            "chosen": {},
            "settings": Settings(),
            **facts,
        }
    )


def lines(text: str, name: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{name}=")]


def test_the_service_is_started_and_reloaded_by_this_program() -> None:
    chosen = {
        "workers": 4,
        "timeout": 1.5,
        "stop_delay": 5.0,
        "access_log": False,
        "preload": True,
        "header": ("x-a: 100%", 'x-b: "$c"'),
    }
    text = unit(chosen=chosen)
    assert lines(text, "ExecStart") == [
        (
            "/venv/bin/asgictl --workers=4 --timeout=1.5 --stop-delay=5 --no-access-log --preload "
            '"--header=x-a: 100%%" "--header=x-b: \\"$$c\\"" shop.main:app'
        )
    ]
    assert lines(text, "ExecReload") == ["/venv/bin/asgictl reload"]
    assert lines(text, "RuntimeDirectory") == ["shop"]
    assert lines(text, "User") == ["www"]
    assert "DynamicUser" not in text
    assert lines(unit(user=None), "DynamicUser") == ["yes"]


def test_the_user_of_the_settings_is_changed_to_by_systemd() -> None:
    settings = Settings(user="www", group="web")
    text = unit(user="me", settings=settings, chosen={"user": "www", "group": "web"})
    assert lines(text, "User") == ["www"]
    assert lines(text, "Group") == ["web"]
    assert lines(text, "ExecStart") == ["/venv/bin/asgictl shop.main:app"]


@pytest.mark.parametrize(
    ("bind", "capabilities"),
    [(":8000", ""), (":0", ""), ("unix:/run/shop/http", ""), (":80", "CAP_NET_BIND_SERVICE")],
)
def test_only_low_ports_need_a_capability(bind: str, capabilities: str) -> None:
    text = unit(settings=Settings(bind=(bind,)))
    assert lines(text, "CapabilityBoundingSet") == [capabilities]
    assert lines(text, "AmbientCapabilities") == [capabilities]


def test_a_service_that_takes_sockets_of_systemd_requires_them() -> None:
    assert lines(unit(settings=Settings(bind=("systemd:*",))), "Requires") == ["shop.socket"]
    assert lines(unit(), "Requires") == []


def test_its_patience_is_longer_than_that_of_the_settings() -> None:
    settings = Settings(timeout_boot=100, stop_delay=10, timeout_graceful_shutdown=50)
    text = unit(settings=settings)
    assert lines(text, "TimeoutStartSec") == ["115"]
    assert int(lines(text, "TimeoutStopSec")[0]) > 10 + 50 + settings.timeout_lifespan_shutdown


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_understands_it(tmp_path: Path) -> None:
    path = tmp_path / "shop.service"
    true = str(shutil.which("true"))
    path.write_text(unit(program=[true], directory="/", chosen={"header": ('a: "b" %c',)}))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_rates_its_exposure_as_low(tmp_path: Path) -> None:
    path = tmp_path / "shop.service"
    path.write_text(unit())
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "SYSTEMD_EMOJI": "0", "LC_ALL": "C"},
    )
    # From 0 to 10; it was 2.3 when this was written.
    assert done.returncode == 0, done.stdout[-400:] + done.stderr


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain", "plain"),
        ("a b", '"a b"'),
        ("100%", "100%%"),
        ("$HOME", "$$HOME"),
        ('say "hi"\n', '"say \\"hi\\"\\n"'),
        ("back\\slash", '"back\\\\slash"'),
        ("", '""'),
    ],
)
def test_words_are_quoted_as_systemd_reads_them(text: str, written: str) -> None:
    assert word(text) == written


@pytest.mark.parametrize(
    ("directory", "name"),
    [("/srv/Shop 2/", "shop-2"), ("/srv/web_app-1", "web_app-1"), ("/", "asgictl")],
)
def test_a_service_is_named_after_its_directory(directory: str, name: str) -> None:
    assert service_name(directory) == name


# -- asgictl init


def init(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["init", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_init_writes_settings_with_the_options_that_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert init("app:app", "--workers", "4", "--no-access-log", "-b", ":80") == 0
    assert "next:\nasgictl app:app" in capsys.readouterr().out
    written = (tmp_path / "asgictl.toml").read_text()
    assert tomllib.loads(written) == {"workers": 4, "access_log": False, "bind": [":80"]}
    assert "# timeout = 30" in written


def test_init_says_to_programs_what_it_wrote_and_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert init("app:app", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": "asgictl.toml",
        "next": ["asgictl app:app"],
    }


def test_init_overwrites_only_by_force_and_prints_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert init("app:app", "--systemd", "-o", "x.service") == 0
    assert init("app:app", "--systemd", "-o", "x.service", "-w", "3") == 2
    assert "x.service exists already" in capsys.readouterr().err
    assert init("app:app", "--systemd", "-o", "x.service", "-w", "3", "--force") == 0
    assert "--workers=3" in (tmp_path / "x.service").read_text()
    capsys.readouterr()
    assert init("app:app", "-o", "-", "-w", "3") == 0
    assert tomllib.loads(capsys.readouterr().out) == {"workers": 3}
    assert init("app:app", "-o", "missing/x") == 2
    assert init() == 2
