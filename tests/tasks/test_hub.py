import json
from collections import Counter
from pathlib import Path

import pytest

from abmll.errors import UserError
from abmll.tasks import catalogue, hub
from abmll.tasks.catalogue import suite_entry, task_mapping
from abmll.tasks.folders import load_suite
from abmll.tasks.hub import fetch_suite, fetch_task
from abmll.tasks.splits import suite_hash

datasets = pytest.importorskip("datasets")
from hub_fixtures import SETS  # noqa: E402 - needs datasets


class LocalHub:
    """A `load_dataset` that reads Parquet files from a folder laid out as the hub's own Parquet branch is."""

    def __init__(self, root, scripts=()):
        self.root, self.scripts, self.calls = root, set(scripts), []

    def publish(self, task, features, rows):
        mapping = catalogue.task_mapping(task)
        folder = self.root / mapping["path"] / (mapping["config"] or "default") / mapping["split"]
        folder.mkdir(parents=True)
        complete = [{name: row.get(name) for name in features} for row in rows]
        datasets.Dataset.from_list(complete, features=features).to_parquet(folder / "0000.parquet")

    def __call__(self, path, config=None, *, split, data_files=None, revision=None):
        self.calls.append((path, config, revision))
        if path in self.scripts and revision is None:
            raise RuntimeError(f"Dataset scripts are no longer supported, but found {path.split('/')[-1]}.py")
        pattern = data_files[split] if data_files else f"{config or 'default'}/{split}/*.parquet"
        if not list((self.root / path).glob(pattern)):
            raise FileNotFoundError(f"no {path}")
        files = {split: str(self.root / path / pattern)}
        return datasets.load_dataset("parquet", data_files=files, split=split, cache_dir=str(self.root / "cache"))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    datasets.disable_progress_bars()
    local = LocalHub(tmp_path_factory.mktemp("hub"))
    for task, (features, rows, _) in SETS.items():
        local.publish(task, features, rows)
    yield local
    datasets.enable_progress_bars()


@pytest.mark.parametrize("name", SETS)
def test_real_schemas_give_the_expected_examples(local, name):
    _, rows, expected = SETS[name]
    task = fetch_task(name, load_dataset=local)
    assert [(e.input, e.options, e.output) for e in task.examples] == [row for row in expected if row is not None]
    assert task.metadata["rows"] == len(rows)
    assert sum(task.metadata["dropped"].values()) == expected.count(None)


def rows_of(task, features, rows, tmp_path, **options):
    one = LocalHub(tmp_path)
    one.publish(task, features, rows)
    return fetch_task(task, load_dataset=one, **options)


def test_pairs_come_in_a_keyed_order_that_is_balanced_and_never_changes(tmp_path):
    features = datasets.Features({"sentence_good": datasets.Value("string"), "sentence_bad": datasets.Value("string")})
    rows = [{"sentence_good": f"good {i}", "sentence_bad": f"bad {i}"} for i in range(200)]
    name = "blimp-ellipsis_n_bar_2"
    task = rows_of(name, features, rows, tmp_path / "a")
    for i, example in enumerate(task.examples):
        order = ("good", "bad") if example.output == "sentence 1" else ("bad", "good")
        assert example.input == f"sentence 1: {order[0]} {i} [SEP] sentence 2: {order[1]} {i}"
        assert example.options == ("sentence 1", "sentence 2")
    assert 70 < Counter(e.output for e in task.examples)["sentence 1"] < 130
    again = rows_of(name, features, rows, tmp_path / "b", limit=50)
    assert set(again.examples) < set(task.examples)


def test_choices_of_a_set_that_lists_the_right_one_first_are_shuffled(tmp_path):
    names = ["question", "distractor3", "distractor1", "distractor2", "correct_answer", "support"]
    features = datasets.Features({name: datasets.Value("string") for name in names})
    rows = [
        {
            "question": f"q{i}?",
            "correct_answer": "right",
            "distractor1": "w1",
            "distractor2": "w2",
            "distractor3": "w3",
            "support": "Because." if i % 2 else "",
        }
        for i in range(200)
    ]
    task = rows_of("sciq", features, rows, tmp_path)
    assert all(e.output == "right" and set(e.options) == {"right", "w1", "w2", "w3"} for e in task.examples)
    places = Counter(e.label for e in task.examples)
    assert set(places) == {0, 1, 2, 3}
    assert min(places.values()) > 25
    assert [e.input for e in task.examples[:2]] == ["q0?", "Because. q1?"]


def test_limit_length_and_duplicates_are_counted(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = [{"text": "x" * i if i < 90 else "same", "label": i % 2} for i in range(1, 101)]
    task = rows_of("imdb", features, rows, tmp_path / "a", limit=None, max_characters=50)
    assert len(task) == 51
    assert task.metadata["dropped"] == {
        "input over 50 characters": 39,
        "same input and options as another row": 10,
    }
    limited = rows_of("imdb", features, rows, tmp_path / "b", limit=20)
    assert len(limited) == 20
    assert sum(limited.metadata["dropped"].values()) == 80
    positions = [len(example.input) for example in limited.examples if example.input != "same"]
    assert positions == sorted(positions)
    assert positions != list(range(1, len(positions) + 1))


def test_a_dataset_that_has_changed_is_named_with_its_columns(tmp_path):
    features = datasets.Features({"content": datasets.Value("string"), "label": datasets.Value("int64")})
    with pytest.raises(UserError, match=r"has no 'text' \(found: content, label\); its layout has changed"):
        rows_of("imdb", features, [{"content": "a", "label": 0}], tmp_path)


def test_scripts_are_read_from_the_hubs_parquet_copy(tmp_path):
    features, rows, _ = SETS["ethos-directed_vs_generalized"]
    one = LocalHub(tmp_path, scripts={"iamollas/ethos"})
    one.publish("ethos-directed_vs_generalized", features, rows)
    assert len(fetch_task("ethos-directed_vs_generalized", load_dataset=one)) == 1
    assert one.calls == [("iamollas/ethos", "multilabel", None), ("iamollas/ethos", None, "refs/convert/parquet")]


SMALL = {"note": "for tests", "train": ["glue-rte", "boolq", "abercrombie"], "test": ["wino_grande"]}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(catalogue, "_suites", lambda: {"small": SMALL})
    # One unmapped task: LegalBench's.
    assert catalogue.task_mapping("abercrombie") is None


def test_a_suite_is_written_once_and_read_back(local, small, tmp_path):
    fetched = fetch_suite("small", tmp_path, load_dataset=local)
    suite = load_suite(f"{tmp_path}:small")
    assert suite_hash(suite) == suite_hash(fetched.suite)
    assert ([t.name for t in suite.train], [t.name for t in suite.test]) == (["glue-rte", "boolq"], ["wino_grande"])
    assert list(fetched.unmapped) == ["abercrombie"]
    index = json.loads((tmp_path / "suites.json").read_text())["small"]
    assert "LegalBench" in index["unmapped"]["abercrombie"]
    assert suite["glue-rte"].metadata["path"] == "nyu-mll/glue"
    assert suite["glue-rte"].metadata["dropped"] == {"no label, or one outside the label set": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "suites.json"]
    with pytest.raises(UserError, match=r"is there already; .*--overwrite"):
        fetch_suite("small", tmp_path, load_dataset=local)
    fetch_suite("small", tmp_path, load_dataset=local, overwrite=True, limit=1)
    assert len(load_suite(f"{tmp_path}:small")["boolq"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "suites.json"]


@pytest.mark.parametrize(("offline", "asked"), [(None, 3), ("HF_HUB_OFFLINE", 5), ("HF_DATASETS_OFFLINE", 5)])
def test_a_hub_that_is_not_reached_is_not_asked_for_ever(offline, asked, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    if offline:
        monkeypatch.setenv(offline, "1")
    seen, told = [], []

    def unreachable(path, *args, **kwargs):
        seen.append(path)
        raise RuntimeError("another fault") if len(seen) == 1 else ConnectionError("no route")

    names = [name for name in suite_entry("cls45").train if task_mapping(name) is not None][:5]
    tasks, failed = hub._fetch_tasks(names, unreachable, None, None, lambda *news: told.append(news))
    assert tasks == {}
    assert len(seen) == len(told) == asked
    assert told[1] == (names[1], 2, 5)
    assert set(failed) == set(names)
    assert [n for n, why in failed.items() if why.startswith("not tried")] == names[asked:]


def test_a_failure_leaves_nothing_unless_missing_tasks_are_allowed(local, small, tmp_path, monkeypatch):
    def failing(path, *args, **kwargs):
        if path == "google/boolq":
            raise ConnectionError("no route\nto the hub")
        return local(path, *args, **kwargs)

    with pytest.raises(UserError, match=r"1 of 3 tasks did not load \(boolq: ConnectionError: no route\)"):
        fetch_suite("small", tmp_path, load_dataset=failing)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="unset HF_HUB_OFFLINE"):
        fetch_suite("small", tmp_path, load_dataset=failing)
    fetched = fetch_suite("small", tmp_path, load_dataset=failing, allow_missing=True)
    assert fetched.failed == {"boolq": "ConnectionError: no route"}
    assert [t.name for t in load_suite(f"{tmp_path}:small").train] == ["glue-rte"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_write_leaves_what_was_there(local, small, tmp_path, monkeypatch, overwrite):
    if overwrite:
        fetch_suite("small", tmp_path, load_dataset=local)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    written = []

    def write_then_stop(path, task):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        path.write_text("half")

    monkeypatch.setattr(hub, "write_jsonl", write_then_stop)
    with pytest.raises(KeyboardInterrupt):
        fetch_suite("small", tmp_path, load_dataset=local, overwrite=overwrite)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_failed_last_step_brings_the_old_suite_back(local, small, tmp_path, monkeypatch):
    fetch_suite("small", tmp_path, load_dataset=local)
    before = {str(path): path.read_bytes() for path in tmp_path.rglob("*.json*")}
    rename = Path.rename

    def failing(self, target):
        if (self / "boolq.jsonl").exists() and self.name != "small" and len(list(tmp_path.glob(".*"))) == 2:
            monkeypatch.undo()
            raise OSError("the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        fetch_suite("small", tmp_path, load_dataset=local, overwrite=True, limit=1)
    assert {str(path): path.read_bytes() for path in tmp_path.rglob("*.json*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "suites.json"]


def test_files_of_the_users_beside_the_tasks_are_not_deleted(local, small, tmp_path):
    fetch_suite("small", tmp_path, load_dataset=local)
    (tmp_path / "small/own.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'own\.jsonl', which abmll did not write"):
        fetch_suite("small", tmp_path, load_dataset=lambda *_, **__: 1 / 0, overwrite=True)
    assert (tmp_path / "small/own.jsonl").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        fetch_suite("small", tmp_path / "file/sub", load_dataset=lambda *_, **__: 1 / 0)


def test_what_cannot_be_fetched_at_all(tmp_path, local):
    with pytest.raises(UserError, match="is generated, there is nothing to fetch"):
        fetch_suite("mini", tmp_path)
    with pytest.raises(UserError, match="unknown suite 'cls46'; did you mean 'cls45'"):
        fetch_suite("cls46", tmp_path)
    with pytest.raises(UserError, match="none of the 155 tasks of suite 'legalbench_full' can be fetched: LegalBench"):
        fetch_suite("legalbench_full", tmp_path, load_dataset=local)
    with pytest.raises(UserError, match="task 'abercrombie' cannot be fetched: LegalBench"):
        fetch_task("abercrombie", load_dataset=local)
    with pytest.raises(UserError, match="unknown unmapped task 'nonsense'"):
        fetch_task("nonsense", load_dataset=local)


def test_default_place_is_where_built_in_suites_are_looked_for(local, small, tmp_path, monkeypatch):
    monkeypatch.setenv("ABMLL_DATA", str(tmp_path / "data"))
    fetched = fetch_suite("small", load_dataset=local)
    assert fetched.folder == tmp_path / "data" / "small"
    assert load_suite("small").name == "small"
