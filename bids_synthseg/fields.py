"""Configuration dataclasses from plain values: types and ranges are checked first of all.

What a TOML file or the description in a model file says is not to be trusted: a number may be NaN,
negative or larger than any memory.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Config = TypeVar("Config")

MOST_STEPS = 10**9
"""Upper end of the range of whatever counts the steps of a run."""

SHARE = (0.0, 1.0)
"""Range of a probability or a fraction."""

_WORDS = {
    int: "whole number",
    float: "number",
    str: "text in quotes",
    bool: "true or false",
}


def check_ranges(config: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raises ValueError naming the first field of a dataclass that is no number within its range,
    ends included; of a tuple or a dictionary every value counts."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        several = value.values() if isinstance(value, Mapping) else value
        for number in several if isinstance(value, Mapping | tuple | list) else (value,):
            # NaN is in no range.
            if not isinstance(number, int | float) or not low <= number <= high:
                raise ValueError(f"{name} must be from {low:g} to {high:g}, not {number!r:.40}")


def build(kind: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """A configuration dataclass from nested dictionaries; keys left out take their defaults.

    Raises ValueError naming a key that is unknown or whose value is of another type.
    """
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"unknown key {where + key!r}; known are {', '.join(sorted(known))}")
        if is_dataclass(hints[key]) and isinstance(value, dict):
            arguments[key] = build(hints[key], value, f"{where}{key}.")
        elif _fits(value, hints[key]):
            arguments[key] = tuple(value) if isinstance(value, list) else value
        else:
            raise ValueError(f"key {where + key!r}: {value!r:.200} is no {_in_words(hints[key])}")
    return kind(**arguments)


def _in_words(hint: Any) -> str:
    """What a field wants, for a message."""
    if get_origin(hint) is tuple:
        several = "texts in quotes" if get_args(hint)[0] is str else f"{_WORDS[get_args(hint)[0]]}s"
        return f"list of {several}"
    return _WORDS.get(hint, "table of keys" if is_dataclass(hint) else "table of numbers")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a TOML value may stand for a field; tuples are lists there, 1 is a float as well."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)
