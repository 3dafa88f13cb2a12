"""Plain values as TOML, read and written."""

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def parse_toml(text: str) -> dict[str, Any]:
    """The content of a document; ValueError for what is not TOML."""
    return tomllib.loads(text)


def toml_text(content: Mapping[str, Any]) -> str:
    """A document of str, bool, int, float, and lists and dictionaries of these.

    TOML has no null: a key whose value is None is left out.
    """
    return "\n".join(_table(content, "")).removeprefix("\n") + "\n"


def _table(content: Mapping[str, Any], name: str) -> list[str]:
    """Lines of one table; those within it come last, as TOML wants it."""
    known = {_key(key): value for key, value in content.items() if value is not None}
    nested = {key: value for key, value in known.items() if isinstance(value, Mapping)}
    lines = [f"{key} = {_value(known[key])}" for key in known if key not in nested]
    # A table that only holds further ones needs no line of its own.
    if name and (lines or not nested):
        lines = ["", f"[{name}]", *lines]
    for key, value in nested.items():
        lines += _table(value, f"{name}.{key}" if name else key)
    return lines


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = (f"{_key(key)} = {_value(one)}" for key, one in value.items() if one is not None)
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(one) for one in value if one is not None)}]"
    if isinstance(value, str):
        return _quoted(value)
    return json.dumps(value) if isinstance(value, bool) else repr(value)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _quoted(key)


def _quoted(text: str) -> str:
    # JSON's strings are TOML's, but for the one control character that JSON lets pass, and for
    # halves of surrogate pairs.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
