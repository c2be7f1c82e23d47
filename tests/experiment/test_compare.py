"""The grid: names, budgets, one training a start, resume cell by cell, failures that stop nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest

import abmll
import tiny
from abmll.calibration import fit_temperature
from abmll.experiment import compare
from abmll.experiment.budgets import budget, unequal
from abmll.experiment.compare import run
from abmll.experiment.compare_plan import Plan, check_plan, empirical_folder, open_output
from abmll.experiment.compare_result import conclude
from abmll.experiment.grid import methods_of
from abmll.experiment.results import evaluate_suite
from abmll.experiment.stored import cell_path, load_cells
from abmll.meta.multitask import Multitask, Sequential
from abmll.metrics import mixture
from abmll.posterior.point import Map
from abmll.tasks import Foreign, Suite

NAMES = ("lora", "lora+map+empirical", "abmll", "lora+temperature", "pretrained")
SUITE = replace(tiny.suite(), validation=(tiny.task("v0"), tiny.task("v1")))


def shared(folder):
    return {
        "model": {"name": str(folder)},
        "adapter": {"r": 2, "log_variance": -3.0},
        "meta": {"episodes": 2, "inner_steps": 2, "batch_size": 3, "inner_lr": 0.02},
        "posterior": {"steps": 2, "batch_size": 4, "lr": 0.02, "samples": 2},
    }


def plan(folder, names=NAMES, seeds=(1, 2)):
    return Plan(methods_of(names, shared(folder)), SUITE, seeds, 6, 8, "lora", 1e-6)


def go(made, output, resume=False, processes=1):
    heard = []
    check_plan(made)
    open_output(made, output, resume, False)
    failures = run(made, output, heard.append, processes)
    return (*conclude(made, output, failures), heard)


def bits(output):
    found = {}
    for path in sorted(output.glob("methods/*/**/cells/*.npz")):
        with np.load(path) as data:
            found[str(path.relative_to(output))] = data["log_probs"].tobytes()
    return found


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The grid, done once; tests read it."""
    output = tmp_path_factory.mktemp("grid") / "c"
    made = plan(folder)
    return made, output, *go(made, output)


def test_each_start_is_trained_once_and_serves_every_posterior(whole):
    made, output, _, result, heard = whole
    starts = list((output / "starts").iterdir())
    assert len(starts) == 2 * 3  # seeds x (multitask, abmll, none)
    trained = [n.text for n in heard if " step 1/" in n.text]
    assert len(trained) == 2 * 2
    methods = result["methods"]
    for seed in ("1", "2"):
        assert methods["lora"]["starts"][seed] == methods["lora+map+empirical"]["starts"][seed]
        assert methods["lora"]["starts"][seed] == methods["lora+temperature"]["starts"][seed]
        assert len({m["starts"][seed] for m in methods.values()}) == 3
    assert sum(n.cells for n in heard) == made.cells == 2 * (3 * 2 + 4)


def test_costs_are_measured(whole):
    _, output, _, result, _ = whole
    cost = {name: m["cost"] for name, m in result["methods"].items()}
    assert cost["lora"]["passes_train"] == cost["abmll"]["passes_train"] == 2 * 3  # K + 1 a task
    assert cost["pretrained"]["passes_train"] == cost["pretrained"]["seconds_train"] == 0
    assert [cost[n]["steps_adapt"] for n in NAMES] == [2, 2, 2, 2, 0]
    assert [cost[n]["forwards"] for n in NAMES] == [1, 1, 2, 1, 1]  # texts a question
    assert cost["abmll"]["trainable_parameters"] > cost["lora"]["trainable_parameters"] > 0
    assert cost["pretrained"]["trainable_parameters"] == 0
    assert cost["lora+map+empirical"]["seconds_train"] > cost["lora"]["seconds_train"] > 0
    assert cost["lora+map+empirical"]["passes_train"] == 2 * 3 + 2 * len(SUITE.train)  # two steps on every train task
    assert all(c["peak_memory_bytes"] > 50e6 for c in cost.values())
    assert json.loads((output / "compare.json").read_text()) == json.loads(json.dumps(result))


def test_a_cell_is_what_evaluate_stores_from_the_same_start(whole, tmp_path):
    _, output, _, result, _ = whole
    for name in ("lora", "abmll", "pretrained"):
        start = output / "starts" / result["methods"][name]["starts"]["2"]
        posterior = result["methods"][name]["config"]["posterior"]
        prior = abmll.load_prior(start, {"posterior": posterior})
        evaluate_suite(prior, SUITE, tmp_path / name, shots=6, query=8, seeds=(2,))
        for task in SUITE.test:
            one, two = (cell_path(f, task.name, 2) for f in (tmp_path / name, output / "methods" / name))
            with np.load(one) as a, np.load(two) as b:
                assert all(np.array_equal(a[part], b[part]) for part in ("log_probs", "labels", "rows"))


def test_temperature_is_learned_on_validation_tasks_and_changes_no_answer(whole):
    _, output, summary, result, _ = whole
    fitted = output / "methods/lora"
    learned = [c for c, _ in load_cells(fitted / "validation", "x") if c.seed == 1]
    assert {c.task for c in learned} == {"v0", "v1"}
    t = fit_temperature([mixture(c.log_probs) for c in learned], [c.labels for c in learned])
    assert result["methods"]["lora+temperature"]["temperature"]["1"] == pytest.approx(t)
    rows = {name: summary.row(name).metrics for name in ("lora", "lora+temperature")}
    assert rows["lora"]["accuracy"].value == rows["lora+temperature"]["accuracy"].value
    assert rows["lora"]["nll"].value != rows["lora+temperature"]["nll"].value
    assert {c.method for c in summary.comparisons} == set(NAMES) - {"lora"}


def test_resume_does_again_what_is_lost_and_nothing_else(whole, folder, monkeypatch):
    made, output, summary, _, _ = whole
    before = bits(output)
    lost = [cell_path(output / "methods/abmll", "u1", 2), cell_path(output / "methods/lora/validation", "v0", 1)]
    for path in lost:
        path.unlink()
    done = []
    evaluate = compare.evaluate

    def counted(*args, **settings):
        done.append((args[3][0].name, args[4].seed))
        return evaluate(*args, **settings)

    monkeypatch.setattr(compare, "evaluate", counted)
    monkeypatch.setattr(compare, "metatrain", None)  # no start is trained again
    again, _, heard = go(made, output, resume=True)
    assert sorted(done) == [("u1", 2), ("v0", 1)]
    assert bits(output) == before
    assert again.to_dict() == summary.to_dict()
    assert sum(n.cells for n in heard) == made.cells


def test_methods_may_be_added_and_other_settings_are_refused(whole, folder):
    _, output, _, _, _ = whole
    for changes, odd in (({"shots": 5}, r"protocol.shots \(6, now 5\)"), ({"suite": tiny.suite()}, "suite: its")):
        with pytest.raises(abmll.UserError, match=f"was begun with another {odd}"):
            open_output(replace(plan(folder), **changes), output, True, False)
    other = methods_of(["lora"], shared(folder), {"lora": {"posterior": {"lr": 0.1}}})
    with pytest.raises(abmll.UserError, match=r"lora was begun with another config.posterior.lr \(0.02, now 0.1\)"):
        open_output(replace(plan(folder), methods=other), output, True, False)
    with pytest.raises(abmll.UserError, match="exists; go on with --resume"):
        open_output(plan(folder), output, False, False)


def test_a_failed_cell_is_recorded_and_the_rest_is_done_and_resume_tries_again(folder, tmp_path, monkeypatch):
    made = plan(folder, ("lora", "lora+map", "structured-lora"), (1,))
    fit, step = Map.fit, Multitask.step

    def failing(self, support, seed):
        if self.task == "u0":
            raise RuntimeError("out of memory")
        return fit(self, support, seed)

    with monkeypatch.context() as patch:
        patch.setattr(Map, "fit", failing)
        patch.setattr(Sequential, "step", step_that_fails)
        patch.setattr(Multitask, "step", step, raising=False)  # inherited
        summary, result, heard = go(made, tmp_path / "c")
    places = [(f["method"], f["task"], f["error"]) for f in result["failures"]]
    assert places == [
        ("lora+map", "u0", "RuntimeError: out of memory"),
        ("structured-lora", None, "RuntimeError: no step"),
    ]
    assert "failing" in result["failures"][0]["trace"]
    assert sum(n.cells for n in heard) == made.cells
    assert [row.method for row in summary.rows] == ["lora", "lora+map"]
    assert {row.n_tasks for row in summary.rows} == {1}  # compared on the cells that both have
    assert len(bits(tmp_path / "c")) == 3
    summary, result, _ = go(made, tmp_path / "c", resume=True)
    assert result["failures"] == []
    assert {(row.method, row.n_tasks) for row in summary.rows} == {(m.name, 2) for m in made.methods}


def test_an_empirical_prior_that_fails_is_recorded_too(folder, tmp_path, monkeypatch):
    made = plan(folder, ("lora", "lora+map+empirical"))
    from abmll.experiment import compare

    learn = compare.empirical_prior

    def failing(prior, *rest):
        if prior.config.seed == 2:
            raise RuntimeError("no prior")
        return learn(prior, *rest)

    monkeypatch.setattr(compare, "empirical_prior", failing)
    summary, result, _ = go(made, tmp_path / "c")
    assert [(f["method"], f["seed"], f["task"]) for f in result["failures"]] == [("lora+map+empirical", 2, None)]
    assert {row.method for row in summary.rows} == {"lora", "lora+map+empirical"}


def test_an_empirical_prior_belongs_to_what_its_tasks_were_shown(folder, tmp_path):
    made = plan(folder, ("abmll-icl+map+empirical", "abmll+map+empirical"))
    icl, plain = made.methods
    assert icl.start(1) == plain.start(1)
    assert empirical_folder(tmp_path, icl, made) != empirical_folder(tmp_path, plain, made)


def step_that_fails(self, index):
    raise RuntimeError("no step")


def test_nothing_done_at_all_is_an_error_with_the_first_reason(folder, tmp_path, monkeypatch):
    made = plan(folder, ("lora",), (1,))
    monkeypatch.setattr(Multitask, "step", step_that_fails)
    with pytest.raises(abmll.UserError, match="no cell could be done; the first error, of lora, seed 1: RuntimeError"):
        go(made, tmp_path / "c")


@pytest.mark.slow
def test_two_processes_give_the_same_bits(whole, tmp_path):
    made, output, _, _, _ = whole
    go(made, tmp_path / "two", processes=2)
    assert bits(tmp_path / "two") == bits(output)


def test_names_are_presets_and_pairs_with_what_they_mean(folder):
    config = {
        m.name: m for m in methods_of(["multitask+map", "abmll-factor+laplace", "none+blob+temperature", "abmll"])
    }
    assert config["multitask+map"].config.meta.name == "multitask"
    assert config["multitask+map"].config.adapter.latent == "point"
    assert config["abmll-factor+laplace"].config.adapter.latent == "factor"
    assert config["abmll-factor+laplace"].config.posterior.name == "laplace"
    assert config["none+blob+temperature"].temperature
    assert config["none+blob+temperature"].fitted.name == "none+blob"
    assert config["abmll"].config.meta.beta == methods_of(["abmll+point"])[0].config.meta.beta


def test_a_posterior_on_another_start_has_its_own_presets_settings():
    swag, inducing, blob = methods_of(["lora+swag", "abmll-natural+inducing", "abmll-natural+blob"])
    assert swag.config.posterior.swag == methods_of(["swag-lora"])[0].config.posterior.swag
    assert (inducing.config.posterior.lr, inducing.config.posterior.inducing.scale) == (0.05, 3.0)
    assert inducing.config.meta.outer == "natural"
    assert blob.config.posterior.lr == methods_of(["abmll-natural"])[0].config.posterior.lr  # blob's preset has none


def test_a_rate_may_be_written_as_yaml_would_not_read_it(tmp_path):
    from abmll.experiment.config import read_mapping

    (tmp_path / "own.yaml").write_text("lora: {meta: {inner_lr: 1e-4}}\nnames: [e3, 1e, '1e-4', 0x1e-4]")
    found = read_mapping(tmp_path / "own.yaml")
    assert found["lora"] == {"meta": {"inner_lr": 1e-4}}
    assert found["names"] == ["e3", "1e", "1e-4", "0x1e-4"]


def test_a_start_with_settings_of_its_own_is_the_same_under_every_posterior():
    own = {
        "reptile": {"meta": {"inner_lr": 0.1}, "posterior": {"lr": 0.5}},
        "reptile+blob": {"meta": {"step_size": 0.25}},
    }
    reptile, laplace, blob = methods_of(["reptile", "reptile+laplace", "reptile+blob"], {}, own)
    assert reptile.start(1) == laplace.start(1)
    assert (blob.config.meta.inner_lr, blob.config.meta.step_size) == (0.1, 0.25)
    assert (reptile.config.posterior.lr, laplace.config.posterior.lr) == (0.5, blob.config.posterior.lr)
    (alone,) = methods_of(["reptile+laplace"], {}, {"reptile": own["reptile"]})
    assert alone == laplace


def test_shared_settings_reach_who_reads_them_and_own_ones_come_last():
    given = {"meta": {"outer_lr": 0.5, "inner_lr": 0.3}}
    lora, abmll_ = methods_of(["lora", "abmll"], given, {"lora": {"meta": {"inner_lr": 0.1}}})
    assert (lora.config.meta.inner_lr, abmll_.config.meta.inner_lr, abmll_.config.meta.outer_lr) == (0.1, 0.3, 0.5)
    for name in ("lora", "pretrained"):
        with pytest.raises(abmll.UserError, match=r"--meta\.outer_lr is read by none of the methods"):
            methods_of([name], {"meta": {"outer_lr": 0.5}})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lorra"], "unknown method 'lorra'; did you mean 'lora'"),
        (["reptile+laplase"], "posterior of method 'reptile\\+laplase' 'laplase'; did you mean 'laplace'"),
        (["lora+temperatur"], "did you mean 'temperature'"),
        (["lora+map+blob"], "more than one posterior"),
        (["lora+temperature+empirical"], "'\\+temperature' comes last"),
        (["lora", "lora"], "named twice"),
        ([], "no method to compare"),
        (["lora+variational"], "method 'lora\\+variational'.*needs a variance"),
        (["none"], "unknown method 'none'"),
        (["none+temperature"], "unknown method 'none'"),
        (["lora+empirical"], "'point' has no place for a prior over the weights"),
        (["abmll-factor+map+empirical"], "'factor' has learned a Gaussian"),
    ],
)
def test_what_cannot_be_is_refused_by_name(names, message):
    with pytest.raises(abmll.UserError, match=message):
        methods_of(names, {"posterior": {"steps": 5}})


@pytest.mark.parametrize(
    ("names", "shared", "message"),
    [
        (["tfb"], {"posterior": {"steps": 0}}, "'tfb' needs a trained LoRA: give it steps .* or a learned start"),
        (["pretrained+tfb"], {"posterior": {"steps": 0}}, "method 'pretrained\\+tfb'.*needs a trained LoRA"),
        (["maml"], {"model": {"gradient_checkpointing": True}}, "maml_order = 2 keeps every activation"),
        (["icl"], {"scoring": {"name": "embedding"}}, "bare texts, which take no demonstrations"),
        (["ensemble"], {"posterior": {"ensemble": {"members": 1}}}, "members = 1"),
        (["mc-dropout"], {"posterior": {"dropout": {"p": 0.0}}}, "p = 0.0; 0 < p < 1"),
        (["bayesian-lora"], {"posterior": {"inducing": {"scale": 0.0}}}, "inducing.scale = 0.0; a finite positive"),
        (["reptile+tfb"], {"posterior": {"tfb": {"low": 0.2}}}, "range is 0.2 to 0.015; low < high"),
        (["laplace-lora"], {"posterior": {"laplace": {"precision": "evidense"}}}, "did you mean 'evidence'"),
        (["swag-lora"], {"posterior": {"steps": 2}}, "at least 2 are needed: raise steps to 4"),
        (["reptile+swag"], {"posterior": {"steps": 3}}, "method 'reptile\\+swag'.*collects 1 of 3"),
        (["abmll-natural"], {"adapter": {"latent": "output"}}, "'natural' needs a Gaussian over weights"),
        (["icl"], {"context": {"shots": 0}}, "method 'icl': it shows demonstrations, but context.shots = 0"),
    ],
)
def test_settings_that_a_method_cannot_work_with_are_refused_with_it(names, shared, message):
    with pytest.raises(abmll.UserError, match=message):
        methods_of(names, shared)


def test_a_trained_start_needs_no_steps_for_tfb():
    assert methods_of(["reptile+tfb"], {"posterior": {"steps": 0}})


def test_an_unknown_method_is_answered_with_each_name_once():
    with pytest.raises(abmll.UserError, match="did you mean 'reptile'") as caught:
        methods_of(["reptil"])
    known = str(caught.value).partition("known: ")[2].split(", ")
    assert len(known) == len(set(known)) > 20


@pytest.mark.parametrize(
    ("shared", "own", "message"),
    [
        ({"meta": {"name": "abmll"}}, {}, "--meta is part of a method's name"),
        ({"posterior": {"name": "map"}}, {}, "--posterior is part of a method's name"),
        ({"meta": {"in_context": True}}, {}, "--meta.in_context is part of a method's name"),
        ({"context": {"shots": 4}}, {}, "--context is read by none of the methods lora, abmll"),
        ({}, {"laro": {}}, "did you mean 'lora'"),
        ({}, {"lora": None}, "own settings of method 'lora' are None; write them as"),
        ({}, {"lora": {"posterior": {"name": "laplace"}}}, "posterior.name is part of its name"),
        ({}, {"lora": {"model": {"name": "x"}}}, "model is the same for all methods"),
        ({}, {"lora": {"meta": {"outer_lr": 1.0}}}, "method 'lora': outer_lr = 1.0 has no meaning"),
    ],
)
def test_settings_that_say_nothing_are_refused(shared, own, message):
    with pytest.raises(abmll.UserError, match=message):
        methods_of(["lora", "abmll"], shared, own)


def test_budgets_are_equal_or_said_to_differ():
    equal = methods_of(["lora", "abmll", "pretrained", "reptile+map"])
    assert unequal(equal) == []
    assert budget(equal, 16).startswith("equal budgets: 16 labelled examples a task; meta-training of 300 episodes")
    assert "(no + 1, which reads nothing there: reptile+map)" in budget(equal, 16)
    uneven = methods_of(["lora", "abmll", "abmll-factor", "ensemble"])
    assert "(no + 1, which reads nothing there: abmll-factor)" in budget(uneven, 16)
    assert "(each member or run of ensemble)" in budget(uneven, 16)
    assert "(" not in budget(methods_of(["lora", "abmll"]), 16)
    other = methods_of(
        ["lora", "abmll", "pretrained"], {}, {"abmll": {"posterior": {"steps": 9}, "meta": {"episodes": 7}}}
    )
    assert unequal(other) == ["meta.episodes: lora 300, abmll 7", "posterior.steps: lora 5, abmll 9"]


@pytest.mark.parametrize(
    ("group", "key"),
    [
        *(("meta", key) for key in ("episodes", "inner_steps", "batch_size", "examples_per_task")),
        *(("posterior", key) for key in ("steps", "batch_size")),
    ],
)
def test_every_part_of_a_budget_must_agree(group, key):
    found = unequal(methods_of(["lora", "abmll"], {}, {"abmll": {group: {key: 7}}}))
    before = getattr(getattr(methods_of(["lora"])[0].config, group), key)
    assert found == [f"{group}.{key}: lora {before}, abmll 7"]


def test_episodes_that_fill_a_step_and_empirical_priors_are_counted():
    four = methods_of(["lora", "abmll"], {"meta": {"episodes": 10}}, {"abmll": {"meta": {"tasks_per_step": 4}}})
    assert unequal(four) == ["meta.episodes: lora 10, abmll 12"]
    more = budget(methods_of(["lora", "lora+map+empirical"]), 16)
    assert more.endswith("; the same adaptation to every train task for the empirical prior of lora+map+empirical")


def test_demonstrations_are_for_methods_that_show_some():
    lora, icl, metaicl = methods_of(["lora", "icl", "metaicl"], {"context": {"shots": 4}})
    assert [m.config.context.shots for m in (lora, icl, metaicl)] == [0, 4, 4]
    own = {"metaicl": {"context": {"shots": 4}}, "abmll-icl": {"context": {"shots": 4}}}
    metaicl, point, icl, blob = methods_of(["metaicl", "metaicl+point", "abmll-icl", "abmll-icl+blob"], {}, own)
    assert metaicl.start(1) == point.start(1)  # which is learned with them
    assert icl.start(1) == blob.start(1)
    assert [m.config.context.shots for m in (metaicl, point, icl, blob)] == [4, 4, 4, 16]


@pytest.mark.parametrize(
    ("changes", "names", "message"),
    [
        (
            {"suite": replace(SUITE, validation=(tiny.task("v0", rows=5),))},
            ("lora+temperature",),
            "task 'v0' has 5 examples but 6 labelled ones",
        ),
        ({"suite": tiny.suite()}, ("lora+temperature",), "--validation 0.15"),
        ({"suite": replace(SUITE, train=())}, ("lora",), "no train task for method 'lora'"),
        ({"shots": 0}, ("lora",), "0 shots are nothing to adapt to"),
        ({"shots": 24}, ("lora",), "none is left to score"),
        ({"floor": 0.0}, ("lora+map+empirical",), "floor = 0.0"),
        (
            {"foreign": Foreign(Suite("s", (), (tiny.task("u0"),)))},
            ("lora",),
            "no question that is foreign to task 'u0'",
        ),
    ],
)
def test_what_would_fail_later_is_refused_at_once(changes, names, message, folder):
    with pytest.raises(abmll.UserError, match=message):
        check_plan(replace(plan(folder, names), **changes))
