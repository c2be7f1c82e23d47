"""START, as the command line names it: a run folder, an adapter folder, or a base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from abmll.errors import UserError
from abmll.experiment import adapter_folder, folders
from abmll.experiment.config import ModelConfig, RunConfig, check, from_dict, merge
from abmll.experiment.facts import adapter_folder_of, read_facts
from abmll.experiment.identity import same_base
from abmll.experiment.models import add_adapter, load_base, refuse_head
from abmll.experiment.presets import default_config, preset
from abmll.experiment.prior import Prior
from abmll.meta.config import MetaConfig

Changes = Mapping[str, Any]


def load_prior(start: str | Path, changes: Changes | None = None, *, preset_name: str | None = None) -> Prior:
    """What adaptation starts from.

    Args:
        start: a run folder of `abmll metatrain`, an adapter folder (a prior, a task's posterior, or a stock PEFT LoRA,
            which becomes the mean), or a base model (`mini`, a folder, a hub id), which gets a fresh adapter.
        changes: settings that replace the stored ones, nested as in RunConfig: {"posterior": {"lr": 1e-3}}. Those of
            an adapter that exists cannot be changed.
        preset_name: a preset under `changes`; for base models alone.

    Raises:
        UserError: nothing usable at `start`, changes that it cannot take, another base model.
    """
    path, changes = Path(start), changes or {}
    folder = adapter_folder_of(path)
    if folder is None:
        config = default_config(changes) if preset_name is None else preset(preset_name)
        config = merge(merge(config, {"model": {"name": str(start)}}), changes)
        config = replace(config, meta=MetaConfig("none"))  # whatever the preset learns by: nothing was learned
        check(config)
        base, tokenizer = load_base(config.model, config.scoring.name)
        return Prior.of(add_adapter(base, config.adapter, config.seed), tokenizer, config)
    if preset_name is not None:
        raise UserError(f"--preset is for a base model; {path} has settings of its own, change them one by one")
    if (folder / folders.FACTS).is_file():
        return _ours(folder, changes)
    return _foreign(folder, changes)


def _ours(folder: Path, changes: Changes) -> Prior:
    facts = read_facts(folder)
    stored = from_dict(facts["config"])
    config = merge(stored, changes)
    for part in ("adapter", "meta"):
        if getattr(config, part) != getattr(stored, part):
            raise UserError(f"the {part} of {folder} is as it was trained; leave out the --{part} settings that differ")
    base, tokenizer = load_base(config.model, config.scoring.name)
    same_base(facts["base_model"], base, config.model, folder)
    model = adapter_folder.attach(base, folder)
    return Prior.of(model, tokenizer, config, adapter_folder.read_weight_prior(folder, model))


def _foreign(folder: Path, changes: Changes) -> Prior:
    """A folder that PEFT wrote: of an ABMLL adapter, or of a LoRA that becomes the mean of one."""
    from abmll.adapter.config import AbmllConfig
    from abmll.adapter.export import from_lora

    peft = adapter_folder.read_config(folder)
    named = RunConfig(model=ModelConfig(name=peft.base_model_name_or_path or ""), meta=MetaConfig("none"))
    config = merge(named, changes)
    if not config.model.name:
        raise UserError(f"{folder} does not say its base model; name it with --model")
    base, tokenizer = load_base(config.model, config.scoring.name)
    if isinstance(peft, AbmllConfig):
        return Prior.of(adapter_folder.attach(base, folder), tokenizer, config)
    check(config)
    adapter_folder.fitting_names(base, folder)
    settings = asdict(config.adapter)
    del settings["r"], settings["lora_alpha"], settings["target_modules"]  # the LoRA's own
    try:
        model = from_lora(base, folder, AbmllConfig(**settings))
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise UserError(
            f"{folder} was trained on another base model than {config.model.name!r}; name it with --model"
        ) from error
    refuse_head(model, config.adapter.latent)
    return Prior.of(model, tokenizer, config)
