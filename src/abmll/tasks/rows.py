"""One row of a file or table becomes one example; whatever is wrong with it is said in one line that names the row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from abmll.errors import UserError
from abmll.tasks.task import Example

KEYS = ("task", "input", "options", "output")


def example_from(row: Mapping[str, Any], where: str) -> Example:
    """A labelled example from a row with `input`, `options` and `output`; `where` ("FILE row 17") begins every error.

    `options` is a list of texts, or that list written as JSON (CSV files). Raises UserError for a missing key, text
    that is not text, fewer than two options, an option twice, or an output that is none of the options.
    """
    missing = [key for key in ("input", "options", "output") if row.get(key) is None]
    if missing:
        raise UserError(f"{where} has no {quoted(missing)}; each row needs 'input', 'options' and 'output'")
    return _example(row["input"], options_from(row["options"], where), row["output"], where)


def question_from(row: Mapping[str, Any], where: str, options: Sequence[str] | None = None) -> Example:
    """An example to predict: `output` may be absent, and so may `options` where the caller knows them.

    A row's own options come before the caller's. Raises UserError as `example_from` does.
    """
    if row.get("input") is None:
        raise UserError(f"{where} has no 'input'; each row needs one")
    if row.get("options") is not None:
        choices = options_from(row["options"], where)
    elif options is not None:
        choices = tuple(options)
    else:
        raise UserError(f"{where} has no 'options'; give them in the file, or for all rows by the caller")
    return _example(row["input"], choices, row.get("output"), where)


def options_from(value: Any, where: str) -> tuple[str, ...]:
    """The options of a row: a list of texts, or a JSON list in a text; UserError for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UserError(f'{where}: options {value[:60]!r} is not a JSON list; write it as ["yes", "no"]') from None
    if isinstance(value, Mapping) or not hasattr(value, "__iter__"):
        raise UserError(f'{where}: options {value!r} is not a list; write it as ["yes", "no"]')
    return tuple(_text(option, "option", where) for option in value)


def quoted(names: Sequence[str]) -> str:
    """'a', 'b' and 'c'."""
    marked = [repr(name) for name in names]
    return marked[0] if len(marked) == 1 else f"{', '.join(marked[:-1])} and {marked[-1]}"


def _example(input_: Any, options: tuple[str, ...], output: Any, where: str) -> Example:
    text = _text(input_, "input", where)
    answer = None if output is None else _text(output, "output", where)
    try:
        return Example(text, options, answer)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _text(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {what} {value!r} is {type(value).__name__}, not text; put it in quotes")
    return value
