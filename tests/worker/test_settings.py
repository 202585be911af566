import pickle
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from asgictl_worker.settings import WorkerSettings, declarations

DECLARATIONS = declarations(WorkerSettings)


def test_the_defaults_serve_as_they_are() -> None:
    settings = WorkerSettings()
    assert {name: getattr(settings, name) for name in DECLARATIONS} == {
        name: declaration.default for name, declaration in DECLARATIONS.items()
    }


def test_every_field_is_declared() -> None:
    assert list(DECLARATIONS) == [item.name for item in fields(WorkerSettings)]


@pytest.mark.parametrize("name", DECLARATIONS)
def test_the_flag_and_the_variable_follow_from_the_name(name: str) -> None:
    declaration = DECLARATIONS[name]
    assert declaration.flag == "--" + name.replace("_", "-")
    assert declaration.variable == "ASGICTL_" + name.upper()


@pytest.mark.parametrize("name", DECLARATIONS)
def test_numbers_say_their_unit_or_count_something(name: str) -> None:
    declaration = DECLARATIONS[name]
    if declaration.kind is float and not declaration.many:
        assert declaration.facts.unit == "seconds"


def test_settings_do_not_change_but_can_be_replaced() -> None:
    settings = WorkerSettings()
    with pytest.raises(FrozenInstanceError):
        settings.factory = True  # type: ignore[misc]
    assert replace(settings, factory=True).factory


def test_settings_survive_the_way_to_another_process() -> None:
    settings = WorkerSettings(header=("a:b",), timeout_keep_alive=7)
    assert pickle.loads(pickle.dumps(settings)) == settings
