"""`--ood`: foreign questions from the command line."""

import json

import pytest


def asked(place, output, *more):
    return [
        *("evaluate", place.run, "--suite", place.suite, "--shots", 6, "--query", 8, "--output", output, *more),
    ]


def test_evaluate_tells_how_well_they_are_told(place, run, tmp_path):
    found = run(*asked(place, tmp_path / "e", "--ood", place.suite, "--ood_query", 5))
    assert found.status == 0, found.err
    assert "AUROC for foreign questions" in found.out
    table = (tmp_path / "e/table.md").read_text()
    assert "| method | confidence | entropy |\n" in table  # the run's latent draws noise per token: no disagreement
    result = json.loads((tmp_path / "e/result.json").read_text())
    assert result["protocol"]["foreign"]["questions"] == 5
    (row,) = result["summary"]["rows"]
    assert 0 <= row["metrics"]["ood_entropy"]["value"] <= 1
    assert "ood_mutual_information" not in row["metrics"]
    again = run(*asked(place, tmp_path / "e", "--resume"))
    assert again.status == 2
    assert "was begun with another protocol" in again.err
    page = run("report", tmp_path / "e")
    assert page.status == 0, page.err
    assert "Knowing what it was not taught" in (tmp_path / "e/report.html").read_text()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--ood", "mimi"), "unknown suite 'mimi'; did you mean 'mini'"),
        (("--ood", "mini", "--ood_query", 0), "0 foreign questions a task; at least 1 is needed"),
    ],
)
def test_mistakes_are_one_line(place, run, tmp_path, more, words):
    found = run(*asked(place, tmp_path / "e", *more))
    assert found.status == 2
    assert words in found.err
    assert not (tmp_path / "e").exists()
