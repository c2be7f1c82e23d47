"""From a dataset's row to an example, by data instead of code: the words of an entry in `suites/tasks.json`.

An entry has `path`, `config` (or null) and `split` of the dataset, the template `input`, and one of three kinds:

- labels: {"path": P, "labels": [...] or {value: option}}: a fixed label set. A list is indexed by the label's number,
  a dict by its text (True is "True"). {"path": P, "ranges": [[low, high, option], ...]} reads a number instead, both
  bounds open, null for none. A path that gives several labels (annotators) stands for their strict majority.
  `options` gives the order that is shown; alphabetical otherwise.
- choices: {"columns": [...]}, {"path": P}, or {"path": P, "inline": true} for a text "... (A) x (B) y"; with
  `answer`: {"path": P, "by": "index" (and "base"), "letter", "text" or "key" (and "among": the path of the keys)}.
  `shuffle` puts the choices into a keyed order, for sets that always list the right one first.
- pair: {"right": P, "wrong": P}: two sentences in a keyed order, {first} and {second} in the template; the options
  are "sentence 1" and "sentence 2".

A path is a column, with dots into what it holds ("choices.text"); through a list of records it gives the list of
their fields. In a template a list of texts is joined by spaces. A row without an answer (a hidden test label, a label
outside the list, no majority) makes no example; the reason is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from abmll.errors import UserError
from abmll.hashing import stable_hash
from abmll.tasks.task import Example

PAIR_OPTIONS = ("sentence 1", "sentence 2")
_FIELD = re.compile(r"\{([\w.]+)\}")


class NoExampleError(Exception):
    """A row that makes no example; the text is the reason, the same for all rows of its kind."""


def example_of(row: Mapping[str, Any], mapping: Mapping[str, Any], *, task: str, number: int) -> Example:
    """The example that a dataset's row makes.

    Args:
        row: one row of the dataset.
        mapping: the task's entry.
        task: the task's name; with `number` the key of every order that is drawn.
        number: the row's position in its split.

    Raises:
        NoExampleError: the row has no usable answer or options.
        UserError: the row lacks a column that the mapping names: the dataset has changed.
    """
    if "pair" in mapping:
        input_, options, output = _pair(row, mapping, task, number)
    else:
        input_ = fill(mapping["input"], row)
        if "choices" in mapping:
            options, output = _choices(row, mapping, task, number)
        else:
            options, output = _labelled(row, mapping)
    if not input_:
        raise NoExampleError("empty input")
    try:
        return Example(input_, options, output)
    except UserError:
        raise NoExampleError("options fewer than two, or not all different") from None


def fill(template: str, row: Mapping[str, Any]) -> str:
    """The template with every {path} replaced by its text, stripped; other braces stay as they are."""
    return _FIELD.sub(lambda field: _as_text(at(row, field[1])), template).strip()


def at(row: Any, path: str) -> Any:
    """The value at a path; UserError where a column or field is not there."""
    value = row
    for step in path.split("."):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, Sequence) and not isinstance(value, str) and all(step in item for item in value):
            value = [item[step] for item in value]
        else:
            found = ", ".join(value) if isinstance(value, Mapping) else type(value).__name__
            raise UserError(f"the dataset has no {path!r} (found: {found}); its layout has changed since it was mapped")
    return value


def _labelled(row: Mapping[str, Any], mapping: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    spec = mapping["label"]
    value = at(row, spec["path"])
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = _majority(value)
    if "ranges" in spec:
        names = [name for _, _, name in spec["ranges"]]
        found = [name for low, high, name in spec["ranges"] if _inside(value, low, high)]
        output = found[0] if found else None
    else:
        labels = spec["labels"]
        table = labels if isinstance(labels, Mapping) else {str(i): name for i, name in enumerate(labels)}
        names, output = list(table.values()), table.get(str(value))
    if output is None:
        raise NoExampleError("no label, or one outside the label set")
    return tuple(mapping.get("options") or sorted(set(names))), output


def _majority(labels: Sequence[Any]) -> Any:
    counts = Counter(str(label) for label in labels).most_common(1)
    if not counts or 2 * counts[0][1] <= len(labels):
        raise NoExampleError("no majority among the annotators")
    return counts[0][0]


def _inside(value: Any, low: float | None, high: float | None) -> bool:
    return (low is None or value > low) and (high is None or value < high)


def _choices(row: Mapping[str, Any], mapping: Mapping[str, Any], task: str, number: int) -> tuple[tuple[str, ...], str]:
    spec, answer = mapping["choices"], mapping["answer"]
    found = [at(row, column) for column in spec["columns"]] if "columns" in spec else at(row, spec["path"])
    if "inline" in spec:
        found = re.split(r"\s*\([A-Z]\)\s*", str(found))[1:]
    options = [_as_text(option).strip() for option in found]
    index = _answer_index(row, answer, options)
    if not 0 <= index < len(options):
        raise NoExampleError("no answer, or one outside the choices")
    output = options[index]
    if mapping.get("shuffle"):
        keys = {option: stable_hash("shuffle", task, number, option) for option in options}
        options.sort(key=lambda option: (keys[option], option))
    return tuple(options), output


def _answer_index(row: Mapping[str, Any], answer: Mapping[str, Any], options: list[str]) -> int:
    """The right choice's position; -1 where the row does not say."""
    value, by = at(row, answer["path"]), answer["by"]
    if value is None or value == "":
        return -1
    if by == "index":
        return int(value) - int(answer.get("base", 0))
    if by == "letter":
        return ord(str(value).strip()) - ord("A")
    known = options if by == "text" else [str(key) for key in at(row, answer["among"])]
    text = str(value).strip()
    return known.index(text) if text in known else -1


def _pair(
    row: Mapping[str, Any], mapping: Mapping[str, Any], task: str, number: int
) -> tuple[str, tuple[str, ...], str]:
    right, wrong = (_as_text(at(row, mapping["pair"][side])) for side in ("right", "wrong"))
    place = stable_hash("pair", task, number) % 2
    first, second = (right, wrong) if place == 0 else (wrong, right)
    return fill(mapping["input"], {"first": first, "second": second}), PAIR_OPTIONS, PAIR_OPTIONS[place]


def _as_text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(_as_text(item) for item in value)
    return "" if value is None else str(value)
