"""A command's parser, made from its typed function and the settings tree; errors in one line, with the nearest name."""

from __future__ import annotations

import argparse
import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

from abmll.cli import config_file
from abmll.errors import UserError, unknown
from abmll.experiment.config import RunConfig
from abmll.settings import check_type

Settings = dict[str, Any]
"""Settings that the user gave, nested as in RunConfig; what is not given is absent."""

_SETTINGS = "settings"
# Short forms: what is typed -> the settings it stands for; those of another group than the command has are left out.
SHORT: dict[str, tuple[str, ...]] = {
    "--model": ("model.name",),
    "--revision": ("model.revision",),
    "--dtype": ("model.dtype",),
    "--device": ("model.device",),
    "--quantize": ("model.quantize",),
    "--latent": ("adapter.latent",),
    "--scoring": ("scoring.name",),
    "--meta": ("meta.name",),
    "--posterior": ("posterior.name",),
    "--samples": ("posterior.samples",),
    "--beta": ("meta.beta", "posterior.beta"),
}


def parse(module: ModuleType, name: str, about: str, argv: list[str]) -> dict[str, Any] | None:
    """The keyword arguments for the command's function, and `threads`; None where help was asked for and printed.

    A module that has settings names their groups in `GROUPS`, more short forms in `STEPS`, and those that its function
    refuses with a reason, which help need not offer, in `REFUSED`. Raises UserError for whatever is wrong in `argv` or
    in a `--config` file.
    """
    import yaml
    from jsonargparse import ArgumentError

    function = getattr(module, name)
    groups: tuple[str, ...] = getattr(module, "GROUPS", ())
    short = _short_forms(groups, getattr(module, "STEPS", None))
    refused: tuple[str, ...] = getattr(module, "REFUSED", ())
    parser = _parser(function, name, about, groups, short, refused, getattr(module, "TAKES_RUNS", True))
    options = [s for action in parser._actions for s in action.option_strings]
    known = [action.dest for action in parser._actions if action.dest not in ("config", "help", "print_config")]

    def config(path: str) -> str:
        values = config_file.read_options(Path(path), groups, short, known)
        for odd in (key for key in values if key not in known):
            raise _no_such_option(f"--{odd}", [*options, *short], "config key")
        line: str = yaml.safe_dump(values, default_flow_style=True, width=math.inf)
        return line

    try:
        found = parser.parse_args(list(_expand(argv, short, config)))
    except SystemExit:  # --help
        return None
    except ArgumentError as error:
        raise _explained(error, [*options, *short], function) from None
    values: dict[str, Any] = found.as_dict()
    values.pop("config", None)
    for option, kind in {"threads": int, **get_type_hints(function)}.items():
        if option in values:  # the parser lets a null, and any value of a flag, in a file pass
            check_type(f"--{option}", values[option], kind)
    if _SETTINGS in inspect.signature(function).parameters:
        names = [f.name for f in fields(RunConfig)]
        values[_SETTINGS] = {key: values.pop(key) for key in names if key in values and key in groups}
    return values


def _short_forms(groups: tuple[str, ...], steps: str | None) -> dict[str, tuple[str, ...]]:
    kept = {s: tuple(t for t in to if t.split(".")[0] in groups) for s, to in SHORT.items()}
    found = {s: to for s, to in kept.items() if to}
    return {**found, **({"--steps": (steps,)} if steps else {})}


def _expand(argv: list[str], short: Mapping[str, tuple[str, ...]], config: Callable[[str], str]) -> Iterator[str]:
    """Short forms written out, `--meta abmll` is `--meta.name abmll`; and of a file what `config` makes of it."""
    arguments = iter(argv)
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option.startswith("--"):
            option = "--" + option[2:].replace("-", "_")  # --save-every is --save_every
        if option not in short and option != "--config":
            yield option + equals + value
            continue
        if not equals:
            value = next(arguments, "")
            if not value or (value.startswith("--")):
                raise UserError(f"{option} needs a value")
        if option == "--config":
            yield f"--config={config(value)}"
            continue
        for name in short[option]:
            yield f"--{name}={value}"


def _parser(
    function: Any,
    name: str,
    about: str,
    groups: tuple[str, ...],
    short: Mapping[str, tuple[str, ...]],
    refused: tuple[str, ...],
    takes_runs: bool,
) -> Any:
    from jsonargparse import ActionConfigFile, ArgumentParser

    forms = ", ".join(f"{s} = --{' and --'.join(to)}" for s, to in short.items() if not {*to} & {*refused})
    epilog = f"short forms: {forms}. Defaults are those under a preset, which sets some of them." if short else None
    parser = ArgumentParser(
        prog=f"abmll {name}",
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=epilog,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help=config_file.help_text(short, takes_runs))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the one process.")
    hints, texts = get_type_hints(function), _documented(function, "Args")
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == _SETTINGS:
            continue
        text = texts.get(parameter.name, "")
        kind = hints[parameter.name]
        if parameter.kind is parameter.KEYWORD_ONLY:
            required = parameter.default is parameter.empty
            extra: dict[str, Any] = {"required": True} if required else {"default": parameter.default}
            extra |= {"action": "store_true"} if kind is bool else {"type": kind}
            parser.add_argument(f"--{parameter.name}", help=text, **extra)
        elif get_origin(kind) is list:
            parser.add_argument(parameter.name, type=get_args(kind)[0], nargs="+", help=text)
        elif parameter.default is parameter.empty:
            parser.add_argument(parameter.name, type=kind, help=text)
        else:
            parser.add_argument(parameter.name, type=kind, nargs="?", default=parameter.default, help=text)
    for option, kind, text in _setting_options(groups):
        shown = argparse.SUPPRESS if option in refused else text
        parser.add_argument(f"--{option}", type=kind, default=argparse.SUPPRESS, help=shown)
    return parser


def _setting_options(groups: tuple[str, ...]) -> Iterator[tuple[str, Any, str]]:
    """(name, type, help) of every setting in the groups."""
    for part in fields(RunConfig):
        if part.name in groups:
            yield from _options_of(RunConfig, part, part.name)


def _options_of(kind: type, setting: Field[Any], name: str) -> Iterator[tuple[str, Any, str]]:
    """The options of one field of the settings class `kind`: itself, or those of the settings it holds."""
    hint = get_type_hints(kind)[setting.name]
    if is_dataclass(hint):
        for inner in fields(hint):
            yield from _options_of(hint, inner, f"{name}.{inner.name}")  # type: ignore[arg-type]
        return
    text = f"{_documented(kind, 'Attributes').get(setting.name, '')} (default: {_default(setting)})"
    yield name, hint, text.replace("%", "%%")


def _default(setting: Field[Any]) -> Any:
    return setting.default if setting.default is not MISSING else "as documented"


def _documented(thing: Any, section: str) -> dict[str, str]:
    """The texts of a Google-style docstring's section, by name; a line may document `a, b` together."""
    _, _, rest = (inspect.getdoc(thing) or "").partition(f"{section}:\n")
    body = re.split(r"\n(?=\S)", rest)[0]
    found: dict[str, str] = {}
    for entry in re.split(r"\n?^    (?=\S)", body, flags=re.M):
        names, colon, text = entry.partition(":")
        if colon:
            for one in names.split(","):
                found[one.strip()] = " ".join(text.split())
    return found


def _explained(error: Exception, options: list[str], function: Any) -> UserError:
    """Jsonargparse's complaint in one line that names option, value and remedy."""
    text = str(error)
    if "unrecognized arguments" in text:
        odd = text.split("unrecognized arguments:")[1].split()
        first = next((word for word in odd if word.startswith("-")), odd[0]).partition("=")[0]
        if not first.startswith("-"):
            return UserError(f"{first!r} belongs to no option; a list is written a,b,c, and --help lists all options")
        return _no_such_option(first, options)
    if match := re.search(r'[Kk]ey "([^"]+)"[^\n]*\s*Expected an? (.+?)\. Got value: (.*)', text, re.S):
        option, expected, value = match[1], match[2], match[3].strip()
        if choices := re.findall(r"'([^']+)'", expected) if "Literal" in expected else []:
            return unknown(f"value of --{option}", value, choices)
        return _wrong_type(option, expected, value)
    if match := re.search(r'[Kk]ey "([^"]+)".*?Subtypes: \[(.*?)\]\s*Errors:.*Given value: (.*)', text, re.S):
        return _wrong_type(match[1], match[2].replace(", ", " or "), match[3].strip())
    if match := re.search(r"arguments? (?:is|are) required: (.+)", text):
        positional = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]
        missing = [n.strip() for n in match[1].split(",")]
        named = [n.upper() if n in positional else f"--{n.lstrip('-')}" for n in missing]
        return UserError(f"{', '.join(named)} {'is' if len(named) == 1 else 'are'} missing; --help says what is needed")
    if match := re.search(r'(?:[Kk]ey "config"[^\n]*?|Problems parsing config): *(.*)', text, re.S):
        return UserError(f"--config: {' '.join(match[1].split())}; give a YAML file of options")
    return UserError(" ".join(text.split()))


def _wrong_type(option: str, kinds: str, value: str) -> UserError:
    named = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kinds).replace("NoneType", "null")
    return UserError(f"--{option} takes a value of type {named}, not {value!r}")


def _no_such_option(name: str, options: list[str], kind: str = "option") -> UserError:
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    shown = name if kind == "option" else name.removeprefix("--")
    hint = f"did you mean {near[0]}? " if near else ""
    return UserError(f"unknown {kind} {shown!r}; {hint}--help lists them all")


def number_list(text: str, option: str) -> list[int]:
    """`1,2,3` as numbers; UserError otherwise."""
    try:
        found = [int(part) for part in str(text).strip("[]").split(",") if part.strip()]
    except ValueError:
        raise UserError(f"{option} {text!r} is not a list of numbers; write it as 1,2,3") from None
    if not found or len(set(found)) != len(found):
        raise UserError(f"{option} {text!r} needs at least one number, each once")
    if max(map(abs, found)) >= 2**63:
        raise UserError(f"{option} {text!r} holds a number that does not fit into 64 bits; name smaller ones")
    return found
