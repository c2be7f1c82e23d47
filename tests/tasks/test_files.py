import csv
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abmll.errors import UserError
from abmll.tasks.files import from_dataframe, from_dataset, load_questions, load_task, write_jsonl
from abmll.tasks.task import Example, Task

ROWS = [
    {"task": "weather", "input": "Rain?", "options": ["yes", "no"], "output": "yes"},
    {"task": "weather", "input": "Sun, or\n“both”?", "options": ["yes", "no", "both"], "output": "both"},
]
EXAMPLES = tuple(Example(row["input"], tuple(row["options"]), row["output"]) for row in ROWS)


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({**row, "options": json.dumps(row["options"])} for row in rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_three_formats_hold_the_same_task(tmp_path, suffix):
    task = load_task(write(tmp_path / f"file{suffix}", ROWS))
    assert task.name == "weather"
    assert task.examples == EXAMPLES
    nameless = [{key: value for key, value in row.items() if key != "task"} for row in ROWS]
    assert load_task(write(tmp_path / f"other{suffix}", nameless)).name == "other"
    assert load_task(tmp_path / f"other{suffix}", name="mine").name == "mine"


def test_bom_and_blank_lines_are_read_over(tmp_path):
    path = write(tmp_path / "t.jsonl", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\n\n"))
    assert load_task(path).examples == EXAMPLES


@given(
    st.lists(
        st.tuples(st.text(), st.lists(st.text(), min_size=2, max_size=4, unique=True)).map(
            lambda pair: Example(pair[0], tuple(pair[1]), pair[1][0])
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back(tmp_path, examples):
    task = Task("any name", tuple(examples))
    write_jsonl(tmp_path / "x.jsonl", task)
    again = load_task(tmp_path / "x.jsonl")
    assert (again.name, again.examples) == (task.name, task.examples)
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "x.jsonl", Task("old", EXAMPLES))
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_jsonl(tmp_path / "x.jsonl", Task("new", EXAMPLES))
    assert load_task(tmp_path / "x.jsonl").name == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]


GOOD = json.dumps(ROWS[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "\n{oops\n", r"t\.jsonl row 2 is not JSON .* write one object a line"),
        (GOOD + "\n[1]\n", r"row 2 is a JSON list, not an object"),
        ("", r"t\.jsonl has no rows"),
        ("\n\n", r"t\.jsonl has no rows"),
        ('{"input": "a", "options": ["x", "y"]}', r"row 1 has no 'output'; each row needs"),
        ('{"output": "x"}', r"row 1 has no 'input' and 'options'"),
        ('{"input": "a", "options": ["x"], "output": "x"}', r"row 1: options \['x'\] has 1 entry; at least 2"),
        ('{"input": "a", "options": ["x", "x"], "output": "x"}', r"row 1: option 'x' appears twice"),
        ('{"input": "a", "options": ["x", "y"], "output": "z"}', r"row 1: output 'z' is not among the options"),
        ('{"input": "a", "options": "x or y", "output": "x"}', r"row 1: options 'x or y' is not a JSON list"),
        ('{"input": "a", "options": {"x": 1, "y": 2}, "output": "x"}', r"row 1: options .* is not a list"),
        ('{"input": "a", "options": [1, 2], "output": 1}', r"row 1: option 1 is int, not text; put it in quotes"),
        ('{"input": 5, "options": ["x", "y"], "output": "x"}', r"row 1: input 5 is int, not text"),
        (GOOD.replace("Rain?", "\\ud800"), r"row 1: input '\\ud800' holds '\\ud800', half a character"),
        (GOOD.replace('"no"', '"\\ud800"'), r"row 1: option '\\ud800' holds"),
        (GOOD + "\n" + "[" * 100_000, r"row 2 is not JSON \(maximum recursion depth"),
        (GOOD.replace('"Rain?"', "9" * 5000), r"row 1 is not JSON \(Exceeds the limit"),
        (
            GOOD + "\n" + GOOD.replace("weather", "other"),
            r"holds 2 tasks \('other' and 'weather' \.\.\.\); .* split it",
        ),
    ],
)
def test_every_mistake_is_one_line_with_file_row_and_remedy(tmp_path, text, message):
    (tmp_path / "t.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load_task(tmp_path / "t.jsonl")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "t.jsonl") in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"absent\.jsonl is missing"):
        load_task(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match=r"ends in '\.txt'; a task file ends in \.jsonl, \.csv, \.parquet"):
        load_task(tmp_path / "t.txt")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        load_task(tmp_path / "folder.csv")
    (tmp_path / "latin.jsonl").write_bytes('{"input": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8"):
        load_task(tmp_path / "latin.jsonl")
    (tmp_path / "t.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="is not a Parquet file"):
        load_task(tmp_path / "t.parquet")


def test_endings_are_read_in_any_case(tmp_path):
    for name in ("t.JSONL", "t.Csv", "t.PARQUET"):
        path = write(tmp_path / name.lower(), ROWS)
        path.rename(tmp_path / name)
        assert load_task(tmp_path / name).examples == EXAMPLES


def test_a_parquet_page_that_is_damaged(tmp_path):
    rows = [{**ROWS[0], "input": f"Rain on day {i}? " * 20} for i in range(500)]
    path = write(tmp_path / "t.parquet", rows)
    data = bytearray(path.read_bytes())
    data[60:3000] = bytes(byte ^ 0xA5 for byte in data[60:3000])
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"t\.parquet is not a Parquet file"):
        load_task(path)


def test_a_csv_cell_may_be_long(tmp_path):
    long = "a long document " * 20_000
    path = write(tmp_path / "t.csv", [{**ROWS[0], "input": long}])
    assert load_task(path).examples[0].input == long


def test_csv_says_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,label\na,b\n")
    with pytest.raises(UserError, match=r"columns 'text' and 'label' but no 'input'"):
        load_task(path)
    path.write_text('input,options,output\na,"[""x"", ""y""]",x\nb,x|y,x\n')
    with pytest.raises(UserError, match=r"row 2: options 'x\|y' is not a JSON list"):
        load_task(path)
    path.write_text('input,options,output\na,"[""x"", ""y""]",\n')
    with pytest.raises(UserError, match=r"row 1 has no 'output'"):
        load_task(path)


def test_questions_need_no_output_and_take_options_from_the_caller(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"input": "a"}\n{"input": "b", "options": ["x", "y", "z"]}\n{"input": "c", "output": "no"}\n')
    found = load_questions(path, options=["yes", "no"])
    assert [example.options for example in found] == [("yes", "no"), ("x", "y", "z"), ("yes", "no")]
    assert [example.output for example in found] == [None, None, "no"]
    with pytest.raises(UserError, match=r"q\.jsonl row 1 has no 'options'"):
        load_questions(path)
    path.write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match="row 1 has no 'input'"):
        load_questions(path, options=["yes", "no"])


def test_tables():
    datasets = pytest.importorskip("datasets")
    pandas = pytest.importorskip("pandas")
    by_row = {"input": ["a", "b"], "options": [["x", "y"], ["u", "v"]], "output": ["x", "v"]}
    expected = (Example("a", ("x", "y"), "x"), Example("b", ("u", "v"), "v"))
    assert from_dataframe(pandas.DataFrame(by_row), name="t").examples == expected
    assert from_dataset(datasets.Dataset.from_dict(by_row), name="t").examples == expected

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    labelled = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": [1, 0]}, features=features)
    task = from_dataset(labelled, name="films", input="text", output="label")
    assert task.examples == (Example("good", ("neg", "pos"), "pos"), Example("bad", ("neg", "pos"), "neg"))

    frame = pandas.DataFrame({"text": ["good"], "label": [1]})
    task = from_dataframe(frame, name="films", input="text", output="label", options=["bad", "fine"])
    assert task.examples == (Example("good", ("bad", "fine"), "fine"),)
    with pytest.raises(UserError, match="films row 1: output 7 is int"):
        from_dataframe(frame.assign(label=7), name="films", input="text", output="label", options=["bad", "fine"])
    with pytest.raises(UserError, match="films has no rows"):
        from_dataframe(frame.head(0), name="films")
