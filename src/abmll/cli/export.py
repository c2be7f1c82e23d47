"""`abmll export`: an adapter for people without abmll."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from abmll.cli.parsing import Settings
from abmll.errors import UserError
from abmll.experiment.quiet import quiet

GROUPS = ("model",)


def export(
    adapter: str,
    settings: Settings,
    *,
    to: Literal["lora", "merged"] = "lora",
    output: Path,
    overwrite: bool = False,
) -> None:
    """Write the adapter's mean where abmll is not needed to read it; the variance is lost.

    Args:
        adapter: a task's adapter folder, a prior or a run folder.
        settings: what the user gave of RunConfig's model.
        to: lora for a stock PEFT LoRA folder, merged for a transformers model folder.
        output: the folder to write.
        overwrite: replace an output folder that exists.
    """
    from abmll.experiment import folders
    from abmll.experiment.facts import adapter_folder_of

    if adapter_folder_of(Path(adapter)) is None:
        raise UserError(f"{adapter} is no adapter or run folder; there is nothing to export")
    folders.writable(output, adapter)
    folders.refuse_existing(output, overwrite)

    quiet()
    from abmll.adapter.export import export_lora, export_merged
    from abmll.experiment import load_prior

    prior = load_prior(adapter, settings)
    if to == "lora":
        export_lora(prior.model, output, overwrite=overwrite)
        print(f"LoRA: {output}  (PeftModel.from_pretrained(model, {str(output)!r}))")
    else:
        export_merged(prior.model, output, prior.tokenizer, overwrite=overwrite)
        auto = "AutoModel" if prior.config.scoring.name == "embedding" else "AutoModelForCausalLM"
        print(f"model: {output}  ({auto}.from_pretrained({str(output)!r}))")
