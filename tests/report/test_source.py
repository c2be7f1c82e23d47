import json

import pytest

from abmll.errors import UserError
from abmll.report import costs, naming
from abmll.report.caveats import failures
from abmll.report.compared import costs_table
from abmll.report.source import Method, read


def test_all_kinds_of_folders_have_one_shape(made, tmp_path):
    names = ["LoRA", "good", "same", made.evil]
    for folder in (made.compare, made.demo):
        source = read([folder])
        (setting,) = source.settings
        assert [m.name for m in setting.methods] == names
        assert [len(m.cells) for m in setting.methods] == [14] * 4
        assert (setting.suite, setting.suite_hash, setting.shots, setting.query) == ("small", "abc", 16, 30)
        assert setting.methods[1].config["meta"] == {"name": "good"}
    assert read([made.compare]).baseline == "LoRA"
    assert setting.ceiling == {"all": {"accuracy": 0.987}}
    source = read([made.evaluation(tmp_path / "a"), made.compare])
    (setting,) = source.settings  # the same rows and protocol, though other commands wrote them
    assert [m.name for m in setting.methods] == ["LoRA (a)", "LoRA (compare)", *names[1:]]
    assert source.notes == ("a: 2 texts were cut to the model's maximum length",)


def test_costs_are_those_that_are_known(made):
    lora, good, *_ = read([made.compare]).settings[0].methods
    assert good.cost == {
        "trainable_parameters": 1234,
        "seconds_train": 2.5,
        "seconds_adapt": pytest.approx(3.5),
        "seconds_predict": 0.5,
        "forwards": 1,
    }
    assert lora.cost["seconds_adapt"] == pytest.approx(1.7)


def test_page_and_terminal_have_the_same_costs():
    asked = {"seconds_train": 2.5, "passes_train": 360.0, "steps_adapt": 10.0, "forwards": 1.0}
    method = Method("LoRA", (), {}, asked, "g", "LoRA", {})
    head, ((_, *values),) = costs_table({"methods": {"LoRA": {"cost": asked}}})
    assert head[1:] == [cost.heading for cost in costs.known([method])]
    assert dict(zip(head[1:], values)) == {
        "seconds to train": "2.5",
        "passes to train": "360",
        "steps a task": "10",
        "forwards a prediction": "1",
    }


def test_other_seeds_of_one_system_are_one_row(made, tmp_path):
    a, b = made.evaluation(tmp_path / "a"), made.evaluation(tmp_path / "b", seeds=(3,))
    (method,) = read([a, b]).settings[0].methods
    assert {c.seed for c in method.cells} == {1, 2, 3}
    other = made.evaluation(tmp_path / "c", config_hash="other")
    assert [m.name for m in read([a, other]).settings[0].methods] == ["LoRA (a)", "LoRA (c)"]


def test_namesakes_in_folders_of_one_name_are_rows_of_their_own(made, tmp_path):
    paths = [made.evaluation(tmp_path / place, config_hash=place) for place in ("a/g", "b/g", "c/h")]
    assert [m.name for m in read(paths).settings[0].methods] == ["LoRA (a/g)", "LoRA (b/g)", "LoRA (h)"]
    again = made.evaluation(tmp_path / "d/g", seeds=(3,), config_hash="b/g")
    rows = read([*paths[:2], again]).settings[0].methods
    assert {m.name: len(m.cells) for m in rows} == {"LoRA (a/g)": 14, "LoRA (b/g)": 21}
    assert naming.short([tmp_path / "x/a/g", tmp_path / "y/a/g"]) == {
        tmp_path / "x/a/g": "x/a/g",
        tmp_path / "y/a/g": "y/a/g",
    }


def test_cells_beyond_the_result_are_left_out(made, tmp_path):
    folder = made.evaluation(tmp_path / "a")
    made.evaluation(folder, seeds=(2,))  # the result now speaks of seed 2 alone
    assert {c.seed for c in read([folder]).settings[0].methods[0].cells} == {2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shots": 4}, "shots 16 and 4"),
        ({"suite_hash": "xyz"}, "suite hash abc and xyz"),
        ({"protocol": {"shots": 16, "query": None}}, "query 30 and None"),
    ],
)
def test_protocols_are_not_mixed_unless_told(made, tmp_path, changes, said):
    a, b = made.evaluation(tmp_path / "a"), made.evaluation(tmp_path / "b", "other", **changes)
    with pytest.raises(UserError, match=said) as error:
        read([a, b])
    assert "--mixed" in str(error.value)
    assert "\n" not in str(error.value)
    settings = read([a, b], mixed=True).settings
    assert sorted(m.name for s in settings for m in s.methods) == ["LoRA", "other"]
    assert len(settings) == 2
    assert [s.shots for s in settings] == sorted(s.shots for s in settings)


@pytest.mark.parametrize("entry", [None, {"cost": [1]}, {"config": "x"}])
def test_a_method_that_is_none_is_refused(entry, made, tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    content = json.loads((made.compare / "compare.json").read_text())
    content["methods"]["good"] = entry
    (folder / "compare.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="the entry of method 'good', its cost or its config is no JSON"):
        read([folder])
    assert failures({"failures": 3}) == []


def test_what_is_no_result_is_refused(made, tmp_path):
    (tmp_path / "empty").mkdir()
    damaged = made.evaluation(tmp_path / "damaged")
    next((damaged / "cells").iterdir()).write_bytes(b"PK\3\4 nothing")
    folder = made.evaluation(tmp_path / "kind", kind="card")
    for path, said in (
        (tmp_path / "none", "is no folder"),
        (tmp_path / "empty", "holds no result.json"),
        (damaged, "are damaged"),
        (folder, "kind 'card'"),
    ):
        with pytest.raises(UserError, match=said):
            read([path])
    with pytest.raises(UserError, match="twice"):
        read([made.compare, made.compare / "."])
