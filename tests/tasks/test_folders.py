import json
import shutil

import pytest

from abmll.errors import UserError
from abmll.tasks.files import write_jsonl
from abmll.tasks.folders import load_suite, save_suite
from abmll.tasks.splits import suite_hash
from abmll.tasks.task import Example, Suite, Task


def task(name):
    return Task(name, tuple(Example(f"{name} {i}", ("yes", "no"), "yes") for i in range(3)))


SUITE = Suite("colours", train=(task("b"), task("a")), validation=(task("v"),), test=(task("c"),))


@pytest.fixture
def root(tmp_path):
    save_suite(SUITE, tmp_path)
    save_suite(Suite("other", train=(), test=(task("d"),)), tmp_path)
    return tmp_path


def test_saved_suites_come_back_in_order(root):
    for spec in (f"{root}:colours", f"{root / 'colours'}"):
        again = load_suite(spec)
        assert again.name == "colours"
        assert suite_hash(again) == suite_hash(SUITE)
    assert load_suite(f"{root}:other").train == ()


def test_metadata_is_kept(tmp_path):
    sourced = Task("x", task("x").examples, metadata={"path": "somebody/set"})
    save_suite(Suite("s", train=(), test=(sourced,)), tmp_path)
    assert load_suite(f"{tmp_path}:s").test[0].metadata == {"path": "somebody/set"}


def test_a_root_with_one_suite_needs_no_name(tmp_path):
    save_suite(SUITE, tmp_path)
    assert load_suite(tmp_path).name == "colours"


def test_train_and_test_folders(tmp_path):
    for part, name in (("train", "a"), ("train", "b"), ("test", "c")):
        write_jsonl(tmp_path / "own" / part / f"{name}.jsonl", task(name))
    (tmp_path / "own" / "train" / ".hidden.jsonl").write_text("broken")
    (tmp_path / "own" / "train" / "notes.txt").write_text("read me")
    suite = load_suite(tmp_path / "own")
    assert ([t.name for t in suite.train], [t.name for t in suite.test]) == (["a", "b"], ["c"])
    assert suite.name == "own"


def test_what_is_not_read_is_known(root, tmp_path):
    write_jsonl(root / "colours" / "extra.jsonl", task("extra"))
    (root / "colours" / "notes.txt").write_text("read me")
    assert load_suite(f"{root}:colours").unread == ("extra.jsonl", "notes.txt")
    assert load_suite(f"{root}:other").unread == ()
    own = tmp_path / "own"
    for part, name in (("train", "a"), ("Test", "c"), (".", "d")):
        write_jsonl(own / part / f"{name}.jsonl", task(name))
    (own / "train" / "b.tsv").write_text("")
    (own / ".hidden").mkdir()
    assert load_suite(own).unread == ("Test/", "d.jsonl", "train/b.tsv")


def test_endings_are_found_in_any_case(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", task("a"))
    write_jsonl(tmp_path / "b.JSONL", task("b"))
    assert [t.name for t in load_suite(tmp_path).train] == ["a", "b"]
    (tmp_path / "own").mkdir()
    for name in ("a.jsonl", "b.JSONL"):
        (tmp_path / name).rename(tmp_path / "own" / name)
    index(tmp_path, {"own": {"train": ["a"], "test": ["b"]}})
    assert [t.name for t in load_suite(tmp_path).test] == ["b"]


def test_a_flat_folder_is_all_train_and_a_file_is_one_test_task(tmp_path):
    write_jsonl(tmp_path / "own" / "a.jsonl", task("a"))
    assert [t.name for t in load_suite(tmp_path / "own").train] == ["a"]
    suite = load_suite(tmp_path / "own" / "a.jsonl")
    assert (suite.train, [t.name for t in suite.test]) == ((), ["a"])


def test_built_in_suites(tmp_path, monkeypatch):
    assert load_suite("mini").train
    monkeypatch.setenv("ABMLL_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"'cls45' is not on this disk \(looked in .*\); .*`abmll suites fetch cls45`"):
        load_suite("cls45")
    save_suite(Suite("cls45", train=(), test=(task("c"),)), tmp_path)
    assert [t.name for t in load_suite("cls45").test] == ["c"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("clss45", "unknown suite 'clss45'; did you mean 'cls45'"),
        ("no/such/folder", "no/such/folder is missing; give a folder"),
        ("{root}", "holds 2 suites; pick one as .*:NAME of colours, other"),
        ("{root}:colour", "unknown suite in .*suites.json 'colour'; did you mean 'colours'"),
        ("{root}/colours/absent", "is missing"),
    ],
)
def test_names_that_lead_nowhere(root, spec, message):
    with pytest.raises(UserError, match=message) as caught:
        load_suite(spec.format(root=root))
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_suite(tmp_path):
    with pytest.raises(UserError, match=r"has no task files; put one file a task"):
        load_suite(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="has no task files"):
        load_suite(tmp_path)
    with pytest.raises(UserError, match=r"has no suites\.json, so there is no suite 'x' to pick"):
        load_suite(f"{tmp_path}:x")
    for part in ("train", "test"):
        write_jsonl(tmp_path / part / "a.jsonl", task("a"))
    with pytest.raises(UserError, match="task 'a' is in train and in test"):
        load_suite(tmp_path)


def index(root, content):
    (root / "suites.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_an_index_that_is_wrong(root):
    index(root, "{")
    with pytest.raises(UserError, match=r"suites\.json is not JSON"):
        load_suite(f"{root}:colours")
    index(root, {"colours": {"train": ["a", "b"], "test": ["b"]}})
    with pytest.raises(UserError, match=r"suite 'colours': 'b' in train and in test; take it out of one"):
        load_suite(f"{root}:colours")
    index(root, {"colours": {"train": ["a", "zz"], "test": []}})
    with pytest.raises(UserError, match=r"lists task 'zz' but .*zz\.jsonl is missing; add the file"):
        load_suite(f"{root}:colours")
    index(root, {"colours": {"train": [], "test": []}})
    with pytest.raises(UserError, match="has no task files"):
        load_suite(f"{root}:colours")
    index(root, {"colours": ["a"]})
    with pytest.raises(UserError, match=r"is not \{\"train\": \[names\]"):
        load_suite(f"{root}:colours")
    for part in ([5], [["a"]], "a", 3):
        index(root, {"colours": {"test": part}})
        with pytest.raises(UserError, match=r"is not \{\"train\": \[names\]"):
            load_suite(f"{root}:colours")
    for source in (3, {"a": 3}):
        index(root, {"colours": {"test": ["a"], "source": source}})
        with pytest.raises(UserError, match=r'"source" is not \{task: \{fact: value\}\}'):
            load_suite(f"{root}:colours")
    index(root, {"colours": {"test": ["a", "a"]}})
    with pytest.raises(UserError, match="task 'a' is in test and in test"):
        load_suite(f"{root}:colours")
    for text in ("[" * 100_000, "9" * 5000):
        index(root, text)
        with pytest.raises(UserError, match=r"suites\.json is not JSON"):
            load_suite(f"{root}:colours")
    index(root, {"colours": {"test": ["wrong"]}})
    shutil.copy(root / "colours" / "a.jsonl", root / "colours" / "wrong.jsonl")
    with pytest.raises(UserError, match="says its task is 'a'; name it 'wrong'"):
        load_suite(f"{root}:colours")


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", ""])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot be a file name"):
        save_suite(Suite("s", train=(), test=(task(name),)), tmp_path / "in")
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.real
@pytest.mark.parametrize("name", ["blimp", "cls", "mcqa", "nli", "paraphrase"])
def test_real_suites_load_and_share_no_input_between_train_and_test(shared, name):
    from abmll.tasks.inspection import check

    suite = load_suite(f"{shared / 'tasks'}:{name}")
    assert len(suite.train) >= 8
    assert len(suite.test) >= 4
    assert not [finding for finding in check(suite) if "learned from" in finding.text]
