"""The real tables' script: its methods exist, their budgets are equal, and its report says what the cells say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import real_tables
    import real_tables_report

    yield real_tables, real_tables_report
    for name in ("real", "real_tables", "real_tables_report"):
        sys.modules.pop(name, None)


def test_budgets(scripts: Any, tmp_path: Path) -> None:
    tables, _ = scripts
    from abmll.experiment.grid import methods_of, unequal

    bench = tables.Bench("shared", tmp_path)
    shared = {"meta": {"episodes": 300, "batch_size": 4}, "posterior": {"steps": 5, "batch_size": 8}}
    own = {}
    for name in tables.ORDER:
        trial = (tables.TRIALS.get(name) or [bench.tuned(name)[0] if name in bench.chosen else {}])[0]
        own[name.removesuffix("+temperature")] = bench.own(name.removesuffix("+temperature"), trial, 2e-4, 10)
    assert unequal(methods_of(tables.ORDER, shared, own)) == []
