from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import get_type_hints

import pytest

from abmll.cli.main import COMMANDS
from abmll.cli.parsing import _documented, number_list, parse
from abmll.errors import UserError
from abmll.experiment.config import RunConfig, merge, to_yaml


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

    def written(value, name):
        if is_dataclass(value):
            return [text for f in fields(value) for text in written(getattr(value, f.name), f"{name}.{f.name}")]
        return [f"--{name}={'null' if value is None else str(value).lower()}"]

    def leaves(values):
        return sum(leaves(v) if isinstance(v, dict) else 1 for v in values.values())

    arguments = [text for f in fields(config) if f.name != "seed" for text in written(getattr(config, f.name), f.name)]
    found = parsed("metatrain", *arguments)["settings"]
    assert merge(config, found) == config
    assert len(arguments) == leaves(found)


def test_number_lists():
    assert number_list("1,2, 3", "--seeds") == [1, 2, 3]
    for text in ("", "1,1", "a"):
        with pytest.raises(UserError, match="--seeds"):
            number_list(text, "--seeds")


def from_file(tmp_path, text, command="metatrain", *arguments):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return parsed(command, "--config", path, *arguments)


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("model: mini", {"model": {"name": "mini"}}),
        ("meta: abmll\nscoring: letters", {"scoring": {"name": "letters"}, "meta": {"name": "abmll"}}),
        ("steps: 2\nbeta: 1e-3", {"meta": {"beta": 1e-3, "episodes": 2}, "posterior": {"beta": 1e-3}}),
        ("beta: 1\nposterior: {beta: 2}", {"meta": {"beta": 1.0}, "posterior": {"beta": 2.0}}),
        ("meta.beta: 1\nmeta:\n", {"meta": {"beta": 1.0}}),
        (
            "adapter: {target_modules: [a, b], log-variance: -3}",
            {"adapter": {"target_modules": ["a", "b"], "log_variance": -3.0}},
        ),
        ("model: {device: 'a: b'}", {"model": {"device": "a: b"}}),
    ],
)
def test_a_config_file_may_be_as_short_as_the_command_line(text, settings, tmp_path):
    assert from_file(tmp_path, text)["settings"] == settings


def test_a_config_file_gives_arguments_too_and_what_comes_later_wins(tmp_path):
    found = from_file(tmp_path, "start: run\ndata: d\noutput: o\nsteps: 3\noverwrite: true", "adapt")
    assert (found["start"], str(found["data"]), found["overwrite"]) == ("run", "d", True)
    later = from_file(tmp_path, "steps: 3", "metatrain", "--steps", 4)
    assert later["settings"] == {"meta": {"episodes": 4}}


def test_the_settings_of_a_run_can_be_given_to_every_command_that_has_settings(tmp_path):
    groups = {
        "metatrain": {"model", "adapter", "scoring", "context", "meta", "posterior", "seed"},
        "adapt": {"model", "adapter", "scoring", "context", "posterior", "seed"},
        "evaluate": {"model", "adapter", "scoring", "context", "posterior", "seed"},
        "predict": {"model"},
        "export": {"model"},
    }
    for command, names in groups.items():
        positional = [] if command == "metatrain" else ["x"]
        required = {"adapt": ["--data=d", "--output=o"], "evaluate": ["--suite=s", "--output=o"]}
        required |= {"predict": ["--input=i"], "export": ["--output=o"]}
        found = from_file(tmp_path, to_yaml(RunConfig()), command, *positional, *required.get(command, []))
        assert set(found["settings"]) == names
        assert merge(RunConfig(), found["settings"]) == RunConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.yaml holds no settings; write them as name: value"),
        ("# nothing", "holds no settings"),
        ("- a", "holds no settings"),
        ("meta: 3", "unknown value of --meta.name '3'"),
        ("adapter: factor", "adapter = 'factor' is no group of settings such as adapter.latent"),
        ("stpes: 3", "unknown config key 'stpes'; did you mean --steps?"),
        ("suite: {a: 1}", "unknown config key 'suite.a'; did you mean --suite?"),
        ("config: x", "unknown config key 'config'"),
        ("overwrite: 'false'", "--overwrite = 'false' is a text; true or false is needed"),
        ("threads: null", "--threads = None is null; a whole number is needed"),
        ("trackers: null", "--trackers = None is null; a text is needed"),
        ("output: 3", "--output takes a value of type Path or null, not '3'"),
        (b"\xff\xfea\x00", "c.yaml is not UTF-8"),
        (b"a: \x00", "c.yaml is not YAML"),
    ],
)
def test_a_config_file_that_cannot_be_read_is_one_line(text, message, tmp_path):
    (tmp_path / "c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        parsed("metatrain", "--config", tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)


def test_values_of_several_types_are_named():
    with pytest.raises(UserError, match="--shots takes a value of type int or null, not 'abc'"):
        parsed("adapt", "x", "--data", "d", "--output", "o", "--shots", "abc")
