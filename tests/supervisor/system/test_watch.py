"""Files that change: what counts, and the process that tells of them."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.kit import wait_for

from asgictl.settings import Settings
from asgictl.system.watch import Area, Changes, Watcher
from asgictl_worker.errors import BadSetting, ConfigurationError


def area(directory: Path, *files: str, **settings: object) -> Area:
    """Return what is watched in a directory."""
    chosen = Settings(reload=True, **settings)  # type: ignore[arg-type]
    return Area.of(chosen, str(directory), files)


class TestWhatCounts:
    @pytest.mark.parametrize("name", ["app.py", "deep/er/module.py", "with space.py"])
    def test_python_below_the_working_directory(self, tmp_path: Path, name: str) -> None:
        assert area(tmp_path).covers(f"{tmp_path}/{name}")

    @pytest.mark.parametrize(
        "name",
        [
            "notes.txt",
            ".hidden.py",
            ".venv/lib/python3.13/site.py",
            "venv/lib/python3.13/site-packages/click/core.py",
            "__pycache__/app.cpython-313.pyc",
            "node_modules/gyp/gyp.py",
            "~app.py",
            "app.py~",
        ],
    )
    def test_not_what_tools_and_editors_write(self, tmp_path: Path, name: str) -> None:
        assert not area(tmp_path).covers(f"{tmp_path}/{name}")

    def test_a_hidden_directory_above_the_watched_one_hides_nothing(self, tmp_path: Path) -> None:
        (tmp_path / ".work").mkdir()
        assert area(tmp_path / ".work").covers(f"{tmp_path}/.work/app.py")

    def test_more_patterns_are_watched_on_request(self, tmp_path: Path) -> None:
        chosen = area(tmp_path, reload_include=("*.html", "templates/*.txt"))

        assert chosen.covers(f"{tmp_path}/app.py")
        assert chosen.covers(f"{tmp_path}/pages/index.html")
        assert chosen.covers(f"{tmp_path}/templates/mail.txt")
        assert not chosen.covers(f"{tmp_path}/mail.txt")

    def test_an_include_overrides_a_default_exclude(self, tmp_path: Path) -> None:
        assert area(tmp_path, reload_include=(".*",)).covers(f"{tmp_path}/.env.py")

    def test_an_exclude_overrides_a_default_include(self, tmp_path: Path) -> None:
        chosen = area(tmp_path, reload_include=("*.html",), reload_exclude=("*.py",))

        assert not chosen.covers(f"{tmp_path}/app.py")
        assert chosen.covers(f"{tmp_path}/index.html")

    def test_an_excluded_directory_hides_all_that_is_in_it(self, tmp_path: Path) -> None:
        (tmp_path / "build" / "tests").mkdir(parents=True)
        for word in ("build", "build/", "./build", f"{tmp_path}/build"):
            chosen = area(tmp_path, reload_exclude=(word,))
            assert not chosen.covers(f"{tmp_path}/build/tests/app.py"), word
            assert chosen.covers(f"{tmp_path}/app.py"), word

    def test_a_pattern_of_a_directory_that_is_not_there_yet(self, tmp_path: Path) -> None:
        assert not area(tmp_path, reload_exclude=("tests",)).covers(f"{tmp_path}/tests/test_app.py")

    def test_named_directories_replace_the_working_directory(self, tmp_path: Path) -> None:
        assert area(tmp_path, reload_dir=("src",)).directories == (f"{tmp_path}/src",)

    def test_a_directory_among_the_patterns_is_one_to_watch(self, tmp_path: Path) -> None:
        (tmp_path / "src").mkdir()
        assert area(tmp_path, reload_include=("src",)).directories == (f"{tmp_path}/src",)

    def test_the_applications_own_directory_is_watched_too(self, tmp_path: Path) -> None:
        inside, outside = area(tmp_path / "a", app_dir="src"), area(tmp_path / "a", app_dir="../b")

        assert inside.directories == (f"{tmp_path}/a",)
        assert outside.directories == (f"{tmp_path}/a", f"{tmp_path}/b")

    def test_files_of_settings_count_whatever_they_are_called(self, tmp_path: Path) -> None:
        chosen = area(tmp_path, ".env", "asgictl.toml")

        assert chosen.changes([f"{tmp_path}/.env"], str(tmp_path)) == Changes(
            (".env",), 1, code=False, settings=True
        )
        both = chosen.changes([f"{tmp_path}/.env", f"{tmp_path}/app.py"], str(tmp_path))
        assert both
        assert both.code
        assert both.settings

    def test_many_changes_are_told_by_a_few_names(self, tmp_path: Path) -> None:
        paths = [f"{tmp_path}/{number}.py" for number in range(8)]
        found = area(tmp_path).changes(paths, str(tmp_path))

        assert str(found) == "0.py, 1.py, 2.py, 3.py, 4.py and 3 more"

    def test_files_elsewhere_are_told_by_their_whole_path(self, tmp_path: Path) -> None:
        found = area(tmp_path / "a", reload_dir=("../b",)).changes(
            [f"{tmp_path}/b/app.py"], str(tmp_path / "a")
        )
        assert str(found) == f"{tmp_path}/b/app.py"

    def test_changes_that_do_not_count_are_nothing(self, tmp_path: Path) -> None:
        assert area(tmp_path).changes([f"{tmp_path}/notes.txt"], str(tmp_path)) is None

    def test_a_directory_that_is_missing_is_named(self, tmp_path: Path) -> None:
        area(tmp_path).check()
        with pytest.raises(BadSetting, match=f"reload_dir cannot be '{tmp_path}/src'"):
            area(tmp_path, reload_dir=("src",)).check()

    def test_a_package_that_is_missing_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
        with pytest.raises(ConfigurationError, match="pip install watchfiles"):
            area(tmp_path).check()


@contextlib.contextmanager
def watching(chosen: Area) -> Iterator[Callable[[], Changes]]:
    """Watch, and give what waits for the next changes."""
    watcher = Watcher(chosen)
    heard: list[Changes | str] = []

    def next_changes() -> Changes:
        def look() -> Changes | None:
            said, goes_on = watcher.receive()
            heard.extend(said)
            assert goes_on, heard
            return next((each for each in heard if isinstance(each, Changes)), None)

        found = wait_for(look, "something has changed")
        heard.clear()
        return found

    try:
        yield next_changes
    finally:
        watcher.close()
        assert watcher.child.reap() is not None


class TestProcess:
    @pytest.mark.parametrize("polling", [False, True])
    def test_tells_what_was_saved(self, tmp_path: Path, polling: bool) -> None:
        chosen = area(tmp_path, reload_polling=polling, reload_delay=0.05)
        with watching(chosen) as next_changes:
            written = 0

            def save() -> None:
                nonlocal written
                written += 1
                (tmp_path / "app.py").write_text(f"# {written}\n")

            # Nobody knows when it has begun to look, so save until it tells.
            stop = _repeat(save)
            found = next_changes()
            stop()

        assert found.files == (str(tmp_path / "app.py"),)
        assert found.code

    def test_ends_with_the_process_that_reads_it(self, tmp_path: Path) -> None:
        watcher = Watcher(area(tmp_path))
        os.kill(watcher.child.pid, signal.SIGINT)  # Ctrl-C is not for it
        os.kill(watcher.child.pid, signal.SIGKILL)
        wait_for(lambda: not watcher.receive()[1], "the end is heard")
        watcher.close()
        assert watcher.child.reap() is not None


def _repeat(act: Callable[[], None]) -> Callable[[], None]:
    """Do something ten times a second in a thread, until what is returned is called."""
    over = threading.Event()

    def go_on() -> None:
        act()
        while not over.wait(0.1):
            act()

    thread = threading.Thread(target=go_on)
    thread.start()

    def stop() -> None:
        over.set()
        thread.join()

    return stop
