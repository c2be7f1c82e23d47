from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import get_type_hints

import pytest

from abmll.cli.main import COMMANDS
from abmll.cli.parsing import _documented, number_list, parse
from abmll.errors import UserError
from abmll.experiment.config import RunConfig, merge


def parsed(command, *arguments):
    return parse(import_module(f"abmll.cli.{command}"), command, "about", [str(a) for a in arguments])


def test_only_what_was_given_is_in_the_settings():
    found = parsed("metatrain", "--suite", "s", "--output", "o", "--meta", "abmll", "--beta", "1e-6", "--seed=3")
    assert found["settings"] == {"meta": {"name": "abmll", "beta": 1e-6}, "posterior": {"beta": 1e-6}, "seed": 3}
    assert found["threads"] == 1


def test_none_and_booleans_can_be_given():
    found = parsed("metatrain", "--meta.gamma", "null", "--posterior.adapt_kl", "false", "--overwrite")
    assert found["settings"] == {"meta": {"gamma": None}, "posterior": {"adapt_kl": False}}
    assert found["overwrite"] is True


def test_steps_are_what_the_command_steps_through():
    assert parsed("metatrain", "--steps", 7)["settings"] == {"meta": {"episodes": 7}}
    assert parsed("adapt", "m", "--data", "d", "--output", "o", "--steps", 7)["settings"] == {"posterior": {"steps": 7}}


def test_target_modules_are_a_list_or_a_regex():
    for text, value in (("[a, b]", ["a", "b"]), (".*q_proj", ".*q_proj")):
        assert parsed("metatrain", "--adapter.target_modules", text)["settings"]["adapter"]["target_modules"] == value


def test_every_setting_and_argument_is_documented():
    for command in COMMANDS:
        function = getattr(import_module(f"abmll.cli.{command}"), command)
        names = set(get_type_hints(function)) - {"return"}
        assert names <= set(_documented(function, "Args")), command
    for part, kind in get_type_hints(RunConfig).items():
        assert part in _documented(RunConfig, "Attributes")
        if is_dataclass(kind):
            assert {f.name for f in fields(kind)} <= set(_documented(kind, "Attributes")), part


def test_every_setting_is_an_option_and_survives_the_trip():
    config = RunConfig()
    arguments = []
    for part in fields(config):
        value = getattr(config, part.name)
        inner = fields(value) if is_dataclass(value) else []
        arguments += [
            f"--{part.name}.{f.name}={'null' if (v := getattr(value, f.name)) is None else str(v).lower()}"
            for f in inner
        ]
    found = parsed("metatrain", *arguments)["settings"]
    assert merge(config, found) == config
    assert len(arguments) == sum(len(values) for values in found.values())


def test_number_lists():
    assert number_list("1,2, 3", "--seeds") == [1, 2, 3]
    for text in ("", "1,1", "a"):
        with pytest.raises(UserError, match="--seeds"):
            number_list(text, "--seeds")
