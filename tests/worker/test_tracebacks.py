import pytest

from asgictl_worker import application, tracebacks


def raise_with_cause() -> None:
    try:
        {}["key"]
    except KeyError as error:
        raise RuntimeError("outer") from error


def caught(function: object) -> BaseException:
    try:
        function()  # type: ignore[operator]
    except BaseException as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        return error
    raise AssertionError("nothing was raised")


def test_the_causes_are_part_of_a_traceback() -> None:
    text = tracebacks.from_application(caught(raise_with_cause))
    assert (
        text.index("KeyError: 'key'")
        < text.index("direct cause")
        < text.index("RuntimeError: outer")
    )


def test_the_members_of_a_group_are_part_of_a_traceback() -> None:
    group = ExceptionGroup("several", [caught(raise_with_cause)])
    assert "KeyError: 'key'" in tracebacks.from_application(group)


def test_a_traceback_that_never_left_asgictl_is_kept_whole() -> None:
    error = caught(lambda: application.load("no.such.module.anywhere:app"))
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
    assert not tracebacks.touches_application(error)
    assert "in load" in tracebacks.from_application(
        error
    ) or "_import" in tracebacks.from_application(error)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("bad"), "ValueError: bad"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (ImportError("two\nlines"), "lines"),
        (SyntaxError("oops", ("file.py", 1, 1, "x x", 1, 2)), "SyntaxError: oops"),
    ],
)
def test_the_last_line_is_what_python_prints_last(error: BaseException, line: str) -> None:
    assert tracebacks.last_line(error) == line
