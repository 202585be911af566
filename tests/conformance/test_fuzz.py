"""Some fuzzing in every run; ``python -m tests.conformance.fuzz`` goes on for as long as told."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conformance.fuzz import __main__ as command
from tests.conformance.fuzz import corpus, targets

WORDS = list(corpus.WORDS)
SEEDS = {
    name: [seed for seed in targets.seeds(name) if len(seed) < 600] for name in targets.TARGETS
}


@pytest.fixture(autouse=True, scope="module")
def no_loop_is_left() -> Iterator[None]:
    yield
    targets.loop().close()
    targets.loop.cache_clear()


@st.composite
def inputs(draw: Any, name: str) -> bytes:
    """A seed of a target, or two of them, damaged in a few places and cut anywhere."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(SEEDS[name]), min_size=1, max_size=2))))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = start + draw(st.integers(0, 6))
        new = draw(
            st.sampled_from(WORDS) | st.binary(max_size=3) | st.just(bytes(data[start:end]) * 2)
        )
        data[start:end] = new
    if name in targets.UNCUT:
        return bytes(data)
    places = draw(st.lists(st.integers(0, 600), max_size=targets.MAX_PLACES - 1))
    head = bytes([len(places)]) + b"".join(place.to_bytes(2) for place in places)
    return head + bytes(data[1:])


# Always the same inputs, but in a long night: a new finding should not stop somebody else's work.
@pytest.mark.parametrize("name", targets.TARGETS)
@settings(derandomize=settings.get_current_profile_name() == "default")
@given(data=st.data())
def test_a_property_holds_for_damaged_input(name: str, data: st.DataObject) -> None:
    target, _ = targets.TARGETS[name]
    target(data.draw(inputs(name)))


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_property_holds_for_what_fuzzing_begins_with(name: str) -> None:
    target, _ = targets.TARGETS[name]
    for seed in targets.seeds(name):
        target(seed)


def test_the_command_knows_all_targets() -> None:
    assert tuple(targets.TARGETS) == command.TARGETS


def test_the_page_says_what_was_tried_for_how_long_and_whether_it_held() -> None:
    results = [
        command.Result("frames", "1000", 90.0, "72", True),
        command.Result("proxy", "2000", 60.0, "73", False),
    ]
    lines = command.render(results).splitlines()
    assert lines[-2].startswith("| frames | Frames are the same events in any pieces")
    assert lines[-2].endswith("| 1000 | 1.5 | 72 MiB | held |")
    assert lines[-1].endswith("| 2000 | 1.0 | 73 MiB | **broken** |")


def test_a_cut_input_is_whole_and_in_pieces() -> None:
    rest, (whole, pieces, bytewise) = targets.cut(b"\x02\x00\x01\x00\x03abcd")
    assert rest == b"abcd"
    assert (whole, pieces, bytewise) == ([b"abcd"], [b"a", b"bc", b"d"], [b"a", b"b", b"c", b"d"])


def test_a_difference_is_an_error() -> None:
    assert targets.same(["a", "a"]) == "a"
    with pytest.raises(AssertionError, match="'a' is not 'b'"):
        targets.same(["a", "b"])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tests.conformance.fuzz", *arguments]
    return subprocess.run(words, cwd=command.ROOT, capture_output=True, text=True, check=False)


def test_an_input_can_be_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(targets.seeds("frames")[0])
    ended = run("--target", "frames", "--reproduce", str(file))
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.system
@pytest.mark.timeout(150)
def test_the_command_fuzzes_for_a_second_or_says_what_is_missing() -> None:
    ended = run("--target", "introduction", "--minutes", "0.02")
    assert ended.returncode == 0, ended.stdout
    if importlib.util.find_spec("atheris") is None:
        assert ended.stderr == "skipped: atheris is not installed (pip install --group fuzz)\n"
    else:
        assert ended.stdout.endswith(": held\n")
