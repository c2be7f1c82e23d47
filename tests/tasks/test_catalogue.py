import re

import pytest

from abmll.errors import UserError
from abmll.tasks import catalogue

SUITES = [name for name in catalogue.suite_names() if name != "mini"]
SIZES = {  # train and test tasks, as published; nli without the leaking task
    "cls45": (34, 15),
    "cls23": (28, 15),
    "nli": (41, 8),
    "para": (46, 4),
    "mcqa": (18, 12),
    "nli_icl": (40, 8),
    "para_icl": (45, 4),
    "mcqa_icl": (17, 12),
    "legalbench_full": (135, 20),
    "chembench_transfer": (34, 9),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_papers(name):
    entry = catalogue.suite_entry(name)
    assert (len(entry.train), len(entry.test)) == SIZES[name]


@pytest.mark.parametrize("name", SUITES)
def test_parts_are_disjoint_and_every_task_is_mapped_or_says_why_not(name):
    entry = catalogue.suite_entry(name)
    tasks = (*entry.train, *entry.test)
    assert len(set(tasks)) == len(tasks)
    for task in tasks:
        assert (catalogue.task_mapping(task) is not None) != bool(_reason(task))
    assert not set(entry.dropped) & set(entry.train)


def _reason(task):
    try:
        return catalogue.why_unmapped(task)
    except UserError:
        return ""


def test_the_leak_is_dropped_from_train_and_told():
    for name in ("nli", "nli_icl"):
        entry = catalogue.suite_entry(name)
        assert "sick" in entry.test
        assert "sick" not in entry.train
        assert set(entry.dropped) == {"sick"}


@pytest.mark.parametrize("name", catalogue.mapped_tasks())
def test_mappings_are_well_formed(name):
    mapping = dict(catalogue.task_mapping(name))
    kinds = [kind for kind in ("label", "choices", "pair") if kind in mapping]
    assert len(kinds) == 1
    known = {
        "path",
        "config",
        "split",
        "input",
        "composition",
        "verified",
        "note",
        "paper_options",
        "options",
        "shuffle",
    }
    assert set(mapping) <= known | {"label", "choices", "answer", "pair"}
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", mapping["path"])
    assert "{" in mapping["input"]
    assert isinstance(mapping["verified"], bool)
    assert mapping["verified"] or mapping["note"]
    if kinds == ["choices"]:
        assert mapping["answer"]["by"] in ("index", "letter", "text", "key")
    if kinds == ["label"]:
        labels = mapping["label"].get("labels") or [option for _, _, option in mapping["label"]["ranges"]]
        options = list(labels.values()) if isinstance(labels, dict) else labels
        assert len(set(options)) == len(options) >= 2


def test_the_papers_tasks_are_mapped():
    for name in ("cls45", "cls23", "nli", "para", "mcqa", "random", "mixedspecific", "commonsense6"):
        entry = catalogue.suite_entry(name)
        assert all(catalogue.task_mapping(task) for task in (*entry.train, *entry.test)), name


def test_data_root(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ABMLL_DATA", raising=False)
    assert catalogue.data_root() == tmp_path / "abmll" / "suites"
    monkeypatch.setenv("ABMLL_DATA", str(tmp_path / "here"))
    assert catalogue.data_root() == tmp_path / "here"


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean 'cls45'"):
        catalogue.suite_entry("cls4")
    with pytest.raises(UserError, match="unknown unmapped task"):
        catalogue.why_unmapped("glue-rte")
