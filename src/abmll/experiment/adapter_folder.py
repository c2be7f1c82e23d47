"""An adapter folder: PEFT's own two files, `abmll.json` with what PEFT does not know, and a model card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from abmll.errors import UserError
from abmll.experiment import folders
from abmll.experiment.card import model_card
from abmll.experiment.config import RunConfig
from abmll.experiment.facts import FORMAT
from abmll.experiment.identity import base_fingerprint
from abmll.experiment.provenance import versions
from abmll.tasks.files import write_whole


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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / folders.EXTRAS
    if not path.is_file():
        return {}
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); copy or write it again") from error


def attach(base: Any, folder: Path) -> Any:
    """The PeftModel of `base` with the folder's adapter as its default; UserError where the two do not fit."""
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        return PeftModel.from_pretrained(base, str(folder)).eval()
    except SafetensorError as error:
        raise UserError(
            f"{folder / 'adapter_model.safetensors'} is damaged ({str(error).splitlines()[0]}); copy or write it again"
        ) from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise UserError(f"{folder} does not fit the base model: its tensors have other shapes") from error
    except ValueError as error:
        raise UserError(f"{folder} does not hold a whole adapter: {str(error).splitlines()[0]}") from error
