import re
from dataclasses import asdict

import pytest
from test_page import Page

from abmll.experiment.grid import methods_of
from abmll.meta.config import MetaConfig
from abmll.meta.registry import used_settings
from abmll.report.page import make_report
from abmll.report.settings import BLOCK, blocks, differences, is_read
from abmll.report.source import Method, read

NAMES = ["pretrained", "lora", "reptile", "abmll-factor", "blob", "swag-lora", "tfb", "icl"]


@pytest.fixture(scope="module")
def methods():
    own = {
        "lora": {"meta": {"inner_lr": 0.5}, "posterior": {"lr": 0.25}},
        "blob": {"posterior": {"blob": {"rho_lr": 0.5}}},
        "abmll-factor": {"adapter": {"log_variance": -9.0}},
    }
    made = methods_of(NAMES, {"meta": {"episodes": 60}, "posterior": {"steps": 10}}, own)
    return [Method(m.name, (), asdict(m.config), {}, "g", m.name, {}) for m in made]


def test_a_setting_that_is_not_read_is_a_dash(methods):
    found, same = (dict(part) for part in differences(methods))
    shown = {name: dict(zip(NAMES, values)) for name, values in found.items()}
    assert "meta.episodes" not in found  # pretrained has 300 and reads none: budgets are equal
    assert same["meta.episodes"] == "60"
    assert same["posterior.blob.rho_lr"] == "0.5"
    assert shown["meta.inner_lr"]["pretrained"] == shown["meta.inner_lr"]["blob"] == "-"
    assert shown["meta.inner_lr"]["lora"] == "0.5"
    assert shown["posterior.lr"]["pretrained"] == "-"
    assert same["adapter.log_variance"] == "-9.0"  # of the one that has a variance
    assert shown["adapter.latent"]["lora"] == "point"
    assert not any(name.startswith("posterior.laplace") for name in {*found, *same})  # no method reads it
    for method in methods:
        if (learner := method.config["meta"]["name"]) != "none":
            MetaConfig(**method.config["meta"]).refuse_unused(used_settings(learner))
            assert not is_read("meta.maml_order", method.config)


def test_settings_of_methods_that_are_not_known_are_all_shown():
    config = {"meta": {"name": "new", "beta": 1}, "posterior": {"name": "other", "steps": 2}, "adapter": {"r": 8}}
    assert all(is_read(name, config) for name in ("meta.beta", "posterior.steps", "adapter.r", "seed"))


def test_tables_have_a_few_methods_each(methods, made, tmp_path):
    differ, _ = differences(methods)
    found = blocks(methods, differ)
    assert [name for names, _ in found for name in names] == NAMES
    assert all(len(names) <= BLOCK for names, _ in found)
    assert all(set(values) != {"-"} for _, rows in found for _, values in rows)
    folders = [made.evaluation(tmp_path / m.name, m.name, config=m.config) for m in methods]
    text = make_report(read(folders), tmp_path / "page", n_boot=10)[0].read_text(encoding="utf-8")
    Page(text)
    assert text.count('<table class="plain settings">') == len(found) == 2
    assert '<th scope="row">posterior.<wbr>lr</th>' in text
    assert "adapter.<wbr>log_<wbr>variance" in text
    assert not re.search(r"<dt>[^<]*_", text.split("Where the numbers come from")[0])
