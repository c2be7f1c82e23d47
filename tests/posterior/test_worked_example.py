"""CONTRIBUTING's example of a new posterior passes the whole battery, as it stands in the text."""

import inspect
import re
from pathlib import Path

import pytest
import test_posterior_battery as battery

from abmll.posterior import config, registry

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def asked_of(test) -> set[str]:
    """The latents with which the battery asks a posterior such as `swag` this; none where it does not."""
    found = set()
    for names, values in (m.args for m in getattr(test, "pytestmark", ()) if m.name == "parametrize"):
        if names == ("name", "latent"):
            found |= {latent for name, latent in values if name == "swag"}
        elif names == "name" and "swag" in values:
            found.add("point")
    return found


PROMISES = [(test, latent) for _, test in inspect.getmembers(battery) for latent in sorted(asked_of(test))]


@pytest.fixture
def jitter(monkeypatch):
    (code,) = re.findall(r"```python\n(\"\"\"`jitter`.*?)```", TEXT, flags=re.S)
    assert len(code.splitlines()) <= 30
    space = {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), space)
    monkeypatch.setitem(registry._REGISTRY, "jitter", space["Jitter"])
    monkeypatch.setattr(config, "POSTERIORS", (*config.POSTERIORS, "jitter"))
    monkeypatch.setattr(config, "check_types", lambda *_: None)  # the Literal's part of the change
    monkeypatch.setattr(battery, "SAMPLING", (*battery.SAMPLING[:-1], "jitter", battery.SAMPLING[-1]))
    return "jitter"


def test_the_battery_was_found():
    assert len(PROMISES) > 25
    assert (battery.test_a_posterior_reads_the_settings_it_is_said_to_read, "factor") in PROMISES


@pytest.mark.parametrize(
    ("promise", "latent"), PROMISES, ids=[f"{test.__name__.removeprefix('test_')}-{p}" for test, p in PROMISES]
)
def test_the_example_passes_the_battery(promise, latent, jitter, request):
    given = {"name": jitter, "latent": latent, "architecture": "llama"}
    with pytest.MonkeyPatch.context() as patch:  # one test undoes its own
        given["monkeypatch"] = patch
        wanted = inspect.signature(promise).parameters
        promise(**{key: given[key] if key in given else request.getfixturevalue(key) for key in wanted})
