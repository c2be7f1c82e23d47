"""Tasks from files and tables: JSONL, CSV and Parquet, `datasets.Dataset` and pandas.

A file is one task. Its rows hold `input`, `options` (a list of texts; in CSV that list as JSON) and `output` (one of
the options, as text); `task` is the task's name and may be left out, then the file's name is the task's name.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from abmll.errors import UserError
from abmll.tasks.rows import example_from, question_from, quoted
from abmll.tasks.task import Example, Task
from abmll.whole import beside

SUFFIXES = (".jsonl", ".csv", ".parquet")
_LARGEST_CELL = 2**31 - 1  # characters; csv's own 131072 refuses long documents
Located = Iterator[tuple[str, dict[str, Any]]]


def load_task(path: str | os.PathLike[str], *, name: str | None = None) -> Task:
    """The task in one file; named by `name`, else by the rows' `task`, else by the file's name without its ending.

    Raises UserError, in one line with file, row and remedy, for a missing, empty or broken file or row, and for a
    file whose rows name several tasks.
    """
    path = Path(path)
    examples: list[Example] = []
    names: set[str] = set()
    for where, row in read_rows(path):
        examples.append(example_from(row, where))
        if row.get("task") is not None:
            names.add(str(row["task"]))
    if len(names) > 1:
        found = quoted(sorted(names)[:3])
        raise UserError(f"{path} holds {len(names)} tasks ({found} ...); one file holds one task: split it")
    return Task(name or (names.pop() if names else path.stem), tuple(examples))


def load_questions(path: str | os.PathLike[str], *, options: Sequence[str] | None = None) -> tuple[Example, ...]:
    """The rows of a file to predict: `output` may be absent; absent `options` are taken from the argument.

    Raises UserError as `load_task` does, and where a row has no options and none were given.
    """
    return tuple(question_from(row, where, options) for where, row in read_rows(Path(path)))


def read_rows(path: Path) -> Located:
    """The rows of a file as dicts, each with "FILE row N"; N is the line in JSONL, the data row from 1 elsewhere.

    Raises UserError for a file that is missing, empty, of an unknown kind or broken.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path} ends in {path.suffix or 'nothing'!r}; a task file ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'missing'}; a file with rows is needed")
    reader = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[suffix]
    empty = True
    try:
        for located in reader(path):
            empty = False
            yield located
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    if empty:
        raise UserError(f"{path} has no rows; a task needs at least one")


def _read_jsonl(path: Path) -> Located:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path} row {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # also a number of too many digits, and too deep a nesting
                reason = str(error)
                if isinstance(error, json.JSONDecodeError):
                    reason = f"{error.msg} at character {error.pos + 1}"
                raise UserError(
                    f"{where} is not JSON ({reason}); "
                    'write one object a line, such as {"input": "...", "options": ["yes", "no"], "output": "yes"}'
                ) from None
            if not isinstance(row, dict):
                raise UserError(
                    f"{where} is a JSON {type(row).__name__}, not an object with 'input', 'options', 'output'"
                )
            yield where, row


def _read_csv(path: Path) -> Located:
    csv.field_size_limit(_LARGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        header = reader.fieldnames or []
        if header and "input" not in header:
            raise UserError(f"{path} has the columns {quoted(list(header))} but no 'input'; name the columns in row 1")
        try:
            for number, row in enumerate(reader, start=1):
                # An empty cell means the value is absent: CSV has no other way to say so.
                yield f"{path} row {number}", {key: value or None for key, value in row.items() if key is not None}
        except csv.Error as error:
            raise UserError(f"{path} line {reader.line_num} is not CSV ({error}); check its quotes") from None


def _read_parquet(path: Path) -> Located:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        batches = (batch.to_pylist() for batch in file.iter_batches())
        number = 0
        for batch in batches:
            for row in batch:
                number += 1
                yield f"{path} row {number}", row
    except (pa.ArrowException, OSError) as error:  # the latter where a page is damaged
        raise UserError(f"{path} is not a Parquet file ({str(error).splitlines()[0]}); write it again") from None


def from_dataframe(frame: Any, *, name: str, **columns: Any) -> Task:
    """A task from a pandas DataFrame; see `from_dataset` for `columns` and what is raised."""
    return _from_records(frame.to_dict("records"), name, None, **columns)


def from_dataset(dataset: Any, *, name: str, **columns: Any) -> Task:
    """A task from a `datasets.Dataset` (one split).

    Args:
        dataset: the rows.
        name: the task's name.
        **columns: `input`, `options`, `output`: names of the columns, by default those words. `options` may also be
            a list of texts, the same for every row; then `output` may hold positions in it, and a ClassLabel column
            needs no `options` at all.

    Raises:
        UserError: as `load_task`, with `name` in the place of the file.
    """
    names = getattr(dataset.features.get(columns.get("output", "output")), "names", None)
    return _from_records(dataset, name, names, **columns)


def _from_records(
    records: Iterable[Mapping[str, Any]],
    name: str,
    label_names: Sequence[str] | None,
    *,
    input: str = "input",
    options: str | Sequence[str] | None = None,
    output: str = "output",
) -> Task:
    fixed = label_names if options is None else None if isinstance(options, str) else list(options)
    column = options if isinstance(options, str) else "options"
    examples = []
    for number, record in enumerate(records, start=1):
        choices, answer = fixed if fixed is not None else record.get(column), record.get(output)
        row = {"input": record.get(input), "options": choices, "output": _named(answer, fixed)}
        examples.append(example_from(row, f"{name} row {number}"))
    if not examples:
        raise UserError(f"{name} has no rows; a task needs at least one")
    return Task(name, tuple(examples))


def _named(answer: Any, fixed: Sequence[str] | None) -> Any:
    """A position in the fixed options as its text; anything else (also a position outside) as it is."""
    is_position = fixed is not None and hasattr(answer, "__index__") and not isinstance(answer, bool)
    return fixed[int(answer)] if fixed is not None and is_position and 0 <= int(answer) < len(fixed) else answer


def write_jsonl(path: str | os.PathLike[str], task: Task) -> None:
    """Write a task as JSONL, one row an example with `task`, `input`, `options` and, where it is known, `output`.

    The file appears whole or not at all. Oracles and metadata are not written.
    """
    rows = []
    for example in task.examples:
        row: dict[str, Any] = {"task": task.name, "input": example.input, "options": list(example.options)}
        if example.output is not None:
            row["output"] = example.output
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_whole(Path(path), "".join(rows))


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a half; parents are made.

    Where `path` is a symlink, the file it leads to is written.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path)
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
