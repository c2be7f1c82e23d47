"""What settings accept, whoever makes them (Python, YAML, JSON): the annotated types, and numbers within bounds."""

from __future__ import annotations

import math
import re
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from abmll.errors import UserError, unknown

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}


def check_types(settings: Any, group: str = "") -> None:
    """UserError for a field whose value is not of its annotated type.

    Args:
        settings: a dataclass; its fields are numbers, booleans, texts, literals, lists of texts, unions of these, or
            other dataclasses. An int is a float too; a bool is neither.
        group: its place in RunConfig, which begins the names in errors.
    """
    for name, kind in get_type_hints(type(settings)).items():
        check_type(f"{group}.{name}" if group else name, getattr(settings, name), kind)


def check_type(name: str, value: Any, kind: Any) -> None:
    """UserError unless `value` is of the annotated type `kind`; see `check_types`."""
    if _is(value, kind):
        return
    if get_origin(kind) is Literal and isinstance(value, str):
        raise unknown(f"value of {name}", value, get_args(kind))
    raise UserError(f"{name} = {value!r} is {_described(type(value))}; {_described(kind)} is needed")


def check_number(name: str, value: Any, *, least: float = -math.inf, positive: bool = False) -> None:
    """UserError unless `value` is a finite number, at least `least`; more than 0 if `positive`."""
    if _is(value, float) and -math.inf < value < math.inf and value >= least and (value > 0 or not positive):
        return
    bound = "" if least == -math.inf else f" of at least {least}"
    raise UserError(f"{name} = {value!r}; a finite{' positive' if positive else ''} number{bound} is needed")


def check_modules(name: str, value: Any) -> None:
    """UserError for a text that is no regular expression; lists of names pass."""
    if not isinstance(value, str):
        return
    try:
        re.compile(value)
    except re.error as error:
        raise UserError(
            f"{name} {value!r} is not a regular expression ({error}); mend it, or give a list of names"
        ) from None


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is UnionType:
        return any(_is(value, part) for part in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is(one, get_args(kind)[0]) for one in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _described(kind: Any) -> str:
    if get_origin(kind) is UnionType:
        return " or ".join(_described(part) for part in get_args(kind))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is list:
        return "a list of texts"
    return _NAMES.get(kind) or f"a {kind.__name__}"
