"""An adapter folder: PEFT's own two files, `abmll.json` with what PEFT does not know, and a model card."""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from abmll.adapter import state
from abmll.errors import UserError
from abmll.experiment import folders
from abmll.experiment.card import model_card
from abmll.experiment.config import RunConfig
from abmll.experiment.facts import FORMAT
from abmll.experiment.identity import base_fingerprint
from abmll.experiment.provenance import versions
from abmll.posterior.weight_prior import WeightPrior, mean_pair
from abmll.tasks.files import write_whole

_ADAPTED = re.compile(r"base_model\.model\.(.+)\.(?:lora|abmll)_A\b")  # the layer in a tensor's name


def write(folder: Path, model: Any, adapter: str, config: RunConfig, facts: Mapping[str, Any]) -> None:
    """Write one of the model's adapters into an existing folder.

    Args:
        folder: receives adapter_config.json, adapter_model.safetensors, abmll.json and README.md.
        model: PeftModel.
        adapter: name of the adapter in the model.
        config: settings it was made with; written into abmll.json.
        facts: the rest of abmll.json: kind, task, options, hashes.
    """
    model.save_pretrained(folder, selected_adapters=[adapter])
    if (folder / adapter).is_dir():  # PEFT puts every adapter but "default" into a folder of its name
        for file in (folder / adapter).iterdir():
            file.replace(folder / file.name)
        shutil.rmtree(folder / adapter)
    base = model.get_base_model()
    content = {
        "format": FORMAT,
        **facts,
        "base_model": {
            "name": config.model.name,
            "revision": config.model.revision,
            "fingerprint": base_fingerprint(base),
        },
        "scoring": asdict(config.scoring),
        "config": asdict(config),
        "versions": versions(),
    }
    folders.write_json(folder / folders.FACTS, content)
    write_whole(folder / "README.md", model_card(content))


def write_extras(folder: Path, extras: Mapping[str, Any]) -> None:
    """Write what a posterior is beside its mean adapter, if there is anything."""
    from safetensors.torch import save_file

    if extras:
        save_file({name: tensor.contiguous() for name, tensor in extras.items()}, folder / folders.EXTRAS)


def read_extras(folder: Path) -> dict[str, Any]:
    """What `write_extras` wrote; empty where there is nothing. UserError for a damaged file."""
    return _read(folder / folders.EXTRAS)


def write_weight_prior(folder: Path, weight_prior: WeightPrior | None) -> None:
    """Write the variances of a start's empirical prior, if it has one; the mean is the start itself."""
    from safetensors.torch import save_file

    if weight_prior is not None:
        variance = {name: tensor.cpu().contiguous() for name, tensor in weight_prior.variance.items()}
        save_file(variance, folder / folders.WEIGHT_PRIOR)


def read_weight_prior(folder: Path, model: Any) -> WeightPrior | None:
    """What `write_weight_prior` wrote, around the model's default adapter; None where there is nothing.

    UserError for a damaged file, or one of another adapter.
    """
    variance = _read(folder / folders.WEIGHT_PRIOR)
    if not variance:
        return None
    mean = mean_pair(state.read(model, state.PRIOR))
    if {name: t.shape for name, t in variance.items()} != {name: t.shape for name, t in mean.items()}:
        raise UserError(f"{folder / folders.WEIGHT_PRIOR} does not fit the adapter beside it; write it again")
    return WeightPrior(mean, {name: variance[name].to(t.device) for name, t in mean.items()})


def _read(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        return {}
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); copy or write it again") from error


def attach(base: Any, folder: Path) -> Any:
    """The PeftModel of `base` with the folder's adapter as its default; UserError where the two do not fit."""
    from peft import PeftModel, get_peft_model_state_dict

    read_config(folder)
    names = fitting_names(base, folder)
    try:
        model = PeftModel.from_pretrained(base, str(folder)).eval()
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise UserError(f"{folder} does not fit the base model: its tensors have other shapes") from error
    except ValueError as error:
        raise UserError(f"{folder} does not fit the base model: {str(error).splitlines()[0]}") from error
    if lost := sorted(get_peft_model_state_dict(model, save_embedding_layers=False).keys() - names):
        raise UserError(
            f"{folder} is not whole: {len(lost)} tensors are missing, the first is {lost[0]!r}; copy it again"
        )
    return model


def read_config(folder: Path) -> Any:
    """The PeftConfig in adapter_config.json; UserError where it is broken or of a kind that PEFT does not know."""
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    path = folder / folders.ADAPTER_CONFIG
    kind = folders.read_json(path).get("peft_type")
    if str(kind) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise UserError(f"{path} has the peft_type {kind!r}, which PEFT does not know; write or copy it again")
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); write or copy it again") from error


def fitting_names(base: Any, folder: Path) -> set[str]:
    """The names of the adapter's tensors; UserError where they cannot be read, or name layers that `base` has not."""
    from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
    from safetensors import SafetensorError

    path = next((folder / n for n in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME) if (folder / n).is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no {SAFETENSORS_WEIGHTS_NAME}; the folder is incomplete, copy or write it again")
    try:
        names = set(load_peft_weights(str(folder), device="cpu"))
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error) or "it is empty").splitlines()[0]
        raise UserError(f"{path} is damaged ({reason}); copy or write it again") from error
    modules = {name for name, _ in base.named_modules()}
    layers = sorted({found[1] for found in map(_ADAPTED.match, names) if found})
    odd = [layer for layer in layers if layer not in modules]
    if odd:
        raise UserError(f"{folder} does not fit the base model, which has no layer {odd[0]!r}{_remedy(odd[0], base)}")
    return names


def _remedy(layer: str, base: Any) -> str:
    """What to do about an adapter's layer that the base model has not, where the other kind of scoring explains it."""
    modules = {name for name, _ in base.named_modules()}
    if f"{base.base_model_prefix}.{layer}" in modules:
        return "; it was made for the model without its head: add --scoring embedding"
    if layer.removeprefix(f"{base.base_model_prefix}.") in modules:
        return "; it was made for the model with its head: leave out --scoring embedding"
    return "; name the model that it was made for with --model"
