import json
import shlex
from dataclasses import replace

import matplotlib.image
import pytest

import abmll
import tiny
from abmll.cli import main
from abmll.cli.demo import Watch, conclude, show
from abmll.experiment import demo, demo_settings
from abmll.experiment.config import merge
from abmll.tasks.synthetic import bayes_ceiling, mini_suite
from abmll.whole import refuse_existing


@pytest.fixture
def plan(place) -> demo.Plan:
    """The demo's plan on the tiny model and suite, whose two test tasks are of the two kinds and know their oracle."""
    suite = tiny.suite(train=2)
    kinds = ("seen-family", "unseen-family")
    known = [
        replace(
            task, metadata={"kind": kind}, examples=tuple(replace(e, oracle=(0.7, 0.2, 0.1)) for e in task.examples)
        )
        for task, kind in zip(suite.test, kinds, strict=True)
    ]
    made = demo.plan(replace(suite, test=tuple(known)), episodes=2, processes=0)
    (share,) = made.shares
    quick = {"model": {"name": str(place.model)}, "adapter": {"r": 2}}
    return replace(made, shares=(tuple(replace(m, config=merge(m.config, quick)) for m in share),), seeds=(1,))


def test_the_demo_ends_in_a_table_a_picture_a_result_and_commands_that_work(plan, tmp_path, capsys, monkeypatch):
    with Watch(plan) as watch:
        demo.run(plan, tmp_path, watch, processes=0)
    said = capsys.readouterr().err
    labels = ["pretrained", "pretrained-adapted", "LoRA", "Reptile", "ABMLL"]
    assert all(label in said for label in labels)
    summary = conclude(plan, tmp_path, 1.0)
    assert [row.method for row in summary.rows] == labels
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["methods"]) == labels
    assert result["ceiling"]["all"]["accuracy"] == pytest.approx(0.7)
    assert set(result["ceiling"]) == {"all", "seen-family", "unseen-family"}
    table = (tmp_path / "table.md").read_text()
    for text in (
        "seen-family (1)",
        "unseen-family (1)",
        "| Bayes ceiling | 70.0 | - | 0.802 |",
        "| LoRA |",
    ):
        assert text in table
    picture = matplotlib.image.imread(tmp_path / "reliability.png")
    assert picture.shape[1] > 1000
    assert picture[..., :3].std() > 0.05
    (tmp_path / "identity.json").write_text('{"kind": "demo"}')  # as `abmll demo` begins
    refuse_existing(tmp_path, overwrite=True)  # nothing is there that --overwrite would not know

    show(plan, summary, tmp_path, 1.0)
    shown = capsys.readouterr().out
    assert "Bayes ceiling" in shown
    assert "ABMLL - LoRA, nll:" in shown
    commands = [shlex.split(line)[1:] for line in shown.splitlines() if line.startswith("  abmll ")]
    monkeypatch.chdir(tmp_path)
    assert [main(command) for command in commands] == [0, 0]
    assert len(capsys.readouterr().out.splitlines()) == 2 + 8  # adapter and next, then one object a question


def test_the_bayes_ceiling_is_that_of_the_scored_rows():
    suite = mini_suite(rows=40)
    made = demo.plan(suite, processes=0)
    task = suite.test[0]
    one = demo.ceiling(replace(made, suite=replace(suite, test=(task,)), shots=0, query=40))
    assert one["all"]["accuracy"] == pytest.approx(bayes_ceiling(task)[0])
    assert one["all"]["nll"] == pytest.approx(bayes_ceiling(task)[1])


def test_every_method_has_a_share_and_the_protocol_of_the_issue():
    made = demo.plan(abmll.Suite("s", (tiny.task("a"),), (tiny.task("b"),)))
    assert len(made.shares) == 2
    assert [m.label for m in made.methods] == ["pretrained", "pretrained-adapted", "LoRA", "Reptile", "ABMLL"]
    assert (made.shots, made.query) == (16, 60)
    learned = {m.config.meta.episodes for m in made.methods if m.config.meta.name != "none"}
    assert learned == {demo_settings.EPISODES}
    adapted = {m.config.posterior.batch_size for m in made.methods if m.config.posterior.name != "none"}
    assert adapted == {8}
