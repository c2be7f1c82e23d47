"""`abmll.metatrain`: from an adapted model and train tasks to a prior, with or without a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from abmll.adapter import state
from abmll.errors import UserError
from abmll.experiment import adapter_folder, folders
from abmll.experiment.config import RunConfig, check, read_yaml, to_yaml
from abmll.experiment.identity import described, state_hash
from abmll.experiment.models import enable_checkpointing
from abmll.experiment.presets import fitting
from abmll.experiment.provenance import provenance
from abmll.experiment.train import CHECKPOINT, METRICS, Observer, train
from abmll.meta import make_meta_learner
from abmll.posterior import WeightPrior
from abmll.scoring import Scorer, make_scorer
from abmll.tasks.files import write_whole
from abmll.tasks.task import Example, Task


@dataclass(frozen=True, eq=False)
class Prior:
    """What meta-training gives and adaptation starts from: the model's default adapter, and how the model answers.

    Attributes:
        model: PeftModel whose default adapter is theta.
        tokenizer: of the base model.
        config: the settings it was made with; those of `posterior` are the defaults of `abmll.adapt`.
        scorer: turns questions into batches for this model.
        weight_prior: the empirical Gaussian over the weights (`experiment.empirical`), for posteriors that use one;
            None where none was made.
    """

    model: Any
    tokenizer: Any
    config: RunConfig
    scorer: Scorer[Any]
    weight_prior: WeightPrior | None = None

    @classmethod
    def of(cls, model: Any, tokenizer: Any, config: RunConfig, weight_prior: WeightPrior | None = None) -> Prior:
        """The prior that an adapted model's default adapter is at this moment."""
        model.eval()
        config = described(model, config)
        if config.model.gradient_checkpointing:
            enable_checkpointing(model)  # after eval(), which would switch the blocks off again
        device = next(model.parameters()).device
        scorer = make_scorer(tokenizer, config.scoring, device, config.context)
        return cls(model, tokenizer, config, scorer, weight_prior)

    @property
    def hash(self) -> str:
        """A fingerprint of theta's tensors, and of the empirical prior's if there is one."""
        learned = {} if self.weight_prior is None else self.weight_prior.variance
        return state_hash(state.read(self.model, state.PRIOR) | {f"variance of {n}": t for n, t in learned.items()})

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write theta as a PEFT adapter folder with `abmll.json` and a model card; whole or not at all."""
        facts = {"kind": "prior", "prior_hash": self.hash}
        with folders.whole_folder(folder, overwrite) as partial:
            adapter_folder.write(partial, self.model, state.PRIOR, self.config, facts)
            adapter_folder.write_weight_prior(partial, self.weight_prior)
        return Path(folder)


def metatrain(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    config: RunConfig | None = None,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    save_every: int = 50,
    observers: tuple[Observer, ...] = (),
    facts: dict[str, Any] | None = None,
) -> Prior:
    """Learn a prior over the model's adapter from many tasks.

    Args:
        model: a PeftModel with an ABMLL adapter; its default adapter is trained in place and becomes the prior.
        tokenizer: of the base model.
        tasks: the train tasks.
        config: settings; `scoring`, `meta`, `posterior` and `seed` are read, `model` and `adapter` are taken from the
            model itself. None: the preset of the latent (`abmll`, `abmll-factor` or `lora`), its KL weighted for
            the log-variance that the adapter starts at.
        output: the run folder: `config.yaml`, `provenance.json`, `metrics.jsonl`, the checkpoint and, at the end,
            `prior/`. None: nothing is written.
        resume: continue from the checkpoint in `output`, bit for bit on a CPU.
        overwrite: replace a run folder that exists.
        save_every: steps between checkpoints.
        observers: called after every step with a `Progress`.
        facts: what else belongs into `provenance.json`, such as the suite's hash.

    Returns:
        the Prior.

    Raises:
        UserError: settings that do not fit each other or the model, tasks that cannot be answered, a folder that
            exists. NonFiniteLossError (a UserError) if training diverges: the last good state is in the checkpoint.
    """
    _refuse_untrained(model)
    latent = state.latent_of(model)
    given = config or fitting(latent.name, model.peft_config["default"].start_log_variance)
    prior = Prior.of(model, tokenizer, given)
    check(prior.config)
    for task in tasks:
        check_examples(prior.scorer, task.name, task.examples)
    if prior.config.meta.name == "none":
        learner = None
    else:
        learner = make_meta_learner(model, prior.scorer, tasks, prior.config.meta, prior.config.seed)
    folder = None if output is None else Path(output)
    try:
        if folder is not None:
            if resume and (folder / CHECKPOINT).is_file():
                _same_run(folder, prior.config)
                folders.refuse_existing(folder / folders.PRIOR, overwrite=True)
            else:
                _open_run(folder, prior.config, resume, overwrite, facts)
        if learner is not None:
            train(learner, folder, save_every=save_every, resume=resume, observers=observers)
    finally:
        state.remove_task_adapter(model)
    if folder is not None:
        prior.save_pretrained(folder / folders.PRIOR, overwrite=True)
    return prior


def _refuse_untrained(model: Any) -> None:
    """UserError for settings of the adapter that meta-training and adaptation would ignore."""
    peft = model.peft_config[state.PRIOR]
    if peft.lora_dropout:
        raise UserError(
            f"the adapter has lora_dropout = {peft.lora_dropout}, but dropout is off while a prior is learned or a "
            "posterior fitted; make it with lora_dropout=0"
        )
    if peft.modules_to_save:
        raise UserError(
            f"the adapter has modules_to_save = {sorted(peft.modules_to_save)}, which only PEFT's own training would "
            "train; make it without"
        )


def check_examples(scorer: Scorer[Any], task: str, examples: Sequence[Example], labelled: bool = True) -> None:
    """UserError, naming task and row, for an example that the scorer or training could not use."""
    for row, example in enumerate(examples, start=1):
        try:
            scorer.check(example)
            if labelled:
                _ = example.label
        except UserError as error:
            raise UserError(f"task {task!r} row {row}: {error}") from None


def _open_run(folder: Path, config: RunConfig, resume: bool, overwrite: bool, facts: dict[str, Any] | None) -> None:
    begun = resume and (folder / folders.CONFIG).is_file()
    metrics = folder / METRICS
    learned = (folder / folders.PRIOR).exists() or (metrics.is_file() and metrics.stat().st_size > 0)
    if begun and learned and not overwrite:
        raise UserError(
            f"{folder / CHECKPOINT} is missing, so the run cannot go on; bring it back, or delete {folder} and begin "
            "it again"
        )
    folders.fresh_folder(folder, overwrite or begun)
    write_whole(folder / folders.CONFIG, to_yaml(config))
    folders.write_json(folder / folders.PROVENANCE, provenance({"config_hash": config.hash(), **(facts or {})}))


def _same_run(folder: Path, config: RunConfig) -> None:
    if odd := folders.difference(asdict(read_yaml(folder / folders.CONFIG)), asdict(config)):
        name, before, now = odd
        raise UserError(
            f"{folder} was begun with other settings: {name} = {before!r}, now {now!r}; resume with the same ones, or "
            "start anew elsewhere"
        )
