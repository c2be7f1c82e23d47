import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from cost.bases import TINY
from cost.setting import Bench, Setting


@pytest.fixture(scope="session", params=["llama", "bert"])
def bench(request):
    """A tiny setting, decoder and encoder."""
    setting = Setting(TINY[request.param], 2, 40, rank=2)
    return Bench(setting, setting.base())
