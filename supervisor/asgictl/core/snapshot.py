"""The state as JSON and back, for the next program that takes over this process.

The fields of the dataclasses are the format, read by their types. Keys that a reader does
not know are ignored and missing ones take their default, so programs of different age
understand each other as long as the version is the same.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache
from math import isinf
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from asgictl.core.state import Moment, State

VERSION = 1
"""Changes when an older reader would misunderstand; not for fields that are merely new."""


class UnreadableSnapshot(ValueError):
    """A snapshot that this program cannot make a state of."""


def snapshot(state: State, now: float) -> dict[str, Any]:
    """Return the state as something that ``json.dumps()`` takes, with no NaN or Infinity."""
    return {"version": VERSION, "now": now, "state": _pack(state)}


def restore(snapshot: Mapping[str, Any], now: float) -> State:
    """Return the state of a snapshot, as if no time had passed since it was taken.

    All moments move by the time in between, so nobody is judged by it.

    Args:
        snapshot: what ``snapshot()`` made, in this program or another.
        now: monotonic seconds, perhaps of another clock than the snapshot's.

    Raises:
        UnreadableSnapshot: it is of another version, or not a snapshot at all.
    """
    version = snapshot.get("version")
    if version != VERSION:
        raise UnreadableSnapshot(
            f"the state has version {version} and this program reads {VERSION}; "
            f"stop and start the service to change to this program"
        )
    try:
        state: State = _unpack(State, snapshot["state"], now - snapshot["now"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnreadableSnapshot(f"the state cannot be read: {error!r}") from error
    return state


def _pack(value: Any) -> Any:
    if is_dataclass(value):
        return {item.name: _pack(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _pack(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, float) and isinf(value):
        return str(value)
    return str(value) if isinstance(value, StrEnum) else value


def _unpack(kind: Any, value: Any, shift: float) -> Any:
    if kind == Moment:
        return float(value) + shift
    if get_origin(kind) is UnionType:
        return None if value is None else _unpack(get_args(kind)[0], value, shift)
    if get_origin(kind) is frozenset:
        return frozenset(value)
    if isinstance(kind, type) and is_dataclass(kind):
        known = {name: item for name, item in _fields(kind).items() if name in value}
        return kind(**{name: _unpack(item, value[name], shift) for name, item in known.items()})
    if get_origin(kind) is not None:
        _, item = get_args(kind)
        return {int(key): _unpack(item, each, shift) for key, each in value.items()}
    return kind(value)


@cache
def _fields(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)
