"""`abmll.adapt` and `abmll.load`: a task's posterior that answers questions, is saved and is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from abmll.adapter import state
from abmll.errors import UserError
from abmll.experiment import adapter_folder, folders
from abmll.experiment.config import ModelConfig, RunConfig, from_dict
from abmll.experiment.facts import posterior_facts
from abmll.experiment.identity import same_base
from abmll.experiment.models import load_base
from abmll.experiment.prior import Prior, check_examples
from abmll.posterior import Posterior, PosteriorConfig, make_posterior
from abmll.predict import Prediction, predict
from abmll.tasks.task import Example, Task, examples_of


@dataclass(frozen=True, eq=False)
class AdaptedTask:
    """One task's posterior. Many can share one model: each holds its own tensors.

    Attributes:
        posterior: the fitted posterior.
        config: all settings it was made with.
        options: the task's options, where every labelled example had the same ones; questions may then be plain texts.
        prior_hash: fingerprint of the prior that it was fitted from.
        losses: nats summed over the batch, one for each step of the fit; empty for a loaded posterior.
    """

    posterior: Posterior
    config: RunConfig
    options: tuple[str, ...] | None
    prior_hash: str
    losses: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """The task's name: it is part of every prompt."""
        return self.posterior.task

    def predict(
        self,
        questions: Task | Sequence[Example | str],
        *,
        samples: int | None = None,
        seed: int = 0,
        batch_size: int = 32,
    ) -> Prediction:
        """Answer questions; see `abmll.predict.predict`. Plain texts get the task's own options."""
        if isinstance(questions, Sequence) and not isinstance(questions, str):
            questions = [self._example(q, row) for row, q in enumerate(questions, start=1)]
        examples = examples_of(questions, "questions")
        check_examples(self.posterior.scorer, self.name, examples, labelled=False)
        return predict(self.posterior, examples, samples=samples, seed=seed, batch_size=batch_size)

    def _example(self, question: Any, row: int) -> Any:
        if not isinstance(question, str):
            return question
        if self.options is None:
            raise UserError(
                f"question {row} is a text, but the options of task {self.name!r} differ from example to example; "
                "give it as abmll.Example(input, options)"
            )
        return Example(question, self.options)

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the posterior as a PEFT adapter folder with `abmll.json` and a model card; whole or not at all.

        What is more than an adapter (`Posterior.extras`) goes into `posterior.safetensors` beside it; the examples that
        its prompts show, if any, are part of `abmll.json`.
        """
        self.posterior.activate()
        facts = {
            "kind": "posterior",
            "task": self.name,
            "options": None if self.options is None else list(self.options),
            "prior_hash": self.prior_hash,
            "shown": asdict(self.posterior.scorer.context),
        }
        with folders.whole_folder(folder, overwrite) as partial:
            adapter_folder.write(partial, self.posterior.model, state.TASK, self.config, facts)
            adapter_folder.write_extras(partial, self.posterior.extras)
        return Path(folder)


def adapt(
    prior: Prior,
    support: Task | Sequence[Example],
    *,
    name: str | None = None,
    seed: int | None = None,
    config: PosteriorConfig | None = None,
) -> AdaptedTask:
    """Fit a task's posterior to a few labelled examples.

    Args:
        prior: from `abmll.metatrain` or `abmll.load_prior`.
        support: the labelled examples, or a Task of them.
        name: the task's name, which is part of the prompts; None: the Task's own, else "task".
        seed: of batches and noise; None: the prior's.
        config: settings of the fit and of prediction; None: those of the prior.

    Raises:
        UserError: an argument of another type, no example, one without an output, or settings that the adapter cannot
            carry.
    """
    if not isinstance(prior, Prior):
        given = repr(prior) if isinstance(prior, str) else type(prior).__name__
        raise UserError(f"{given} is no Prior; abmll.load_prior loads one, abmll.metatrain learns one")
    if config is not None and not isinstance(config, PosteriorConfig):
        raise UserError(
            f"config is {type(config).__name__}; a PosteriorConfig is needed, such as RunConfig().posterior"
        )
    examples = examples_of(support, "support")
    name = name or (support.name if isinstance(support, Task) else "task")
    settings = replace(
        prior.config,
        posterior=config or prior.config.posterior,
        seed=prior.config.seed if seed is None else seed,
    )
    if not examples and settings.posterior.name != "none":
        raise UserError(f"task {name!r} has no labelled example to adapt to; give at least one, or posterior 'none'")
    check_examples(prior.scorer, name, examples)
    scorer = prior.scorer.showing(examples, settings.seed)
    posterior = make_posterior(prior.model, scorer, settings.posterior, name, prior.weight_prior)
    options = Task(name, examples).labels if examples else None
    losses = posterior.fit(examples, settings.seed)
    return AdaptedTask(posterior, settings, options, prior.hash, tuple(losses))


def load(
    folder: str | Path,
    model: Any = None,
    tokenizer: Any = None,
    *,
    base: ModelConfig | None = None,
) -> AdaptedTask:
    """Load a task's posterior that `save_pretrained` or `abmll adapt` wrote; its predictions are the same bits.

    Args:
        folder: the posterior's folder.
        model: the base model, loaded and without adapters: it gets this one; None: it is loaded as `base` says.
        tokenizer: of `model`.
        base: how to load the base model; None: as it was when the posterior was saved.

    Raises:
        UserError: no posterior, a damaged folder, or one that was made for another base model.
    """
    path = Path(folder)
    facts = posterior_facts(path)
    config = from_dict(facts["config"])
    config = config if base is None else replace(config, model=base)
    if model is None:
        model, tokenizer = load_base(config.model, config.scoring.name)
    elif tokenizer is None:
        raise UserError("load got a model without its tokenizer; give both, or leave both out")
    elif any(isinstance(module, PeftModel | BaseTunerLayer) for module in model.modules()):
        raise UserError(
            "the model has an adapter, which this one would replace; give a bare base model, or leave it out"
        )
    same_base(facts["base_model"], model, config.model, path)
    prior = Prior.of(adapter_folder.attach(model, path), tokenizer, config)
    shown = facts.get("shown") or {"pool": (), "seed": 0}
    pool = [Example(row["input"], tuple(row["options"]), row["output"]) for row in shown["pool"]]
    scorer = prior.scorer.showing(pool, shown["seed"])
    posterior = make_posterior(prior.model, scorer, config.posterior, facts["task"])
    posterior.load(state.read(prior.model, state.PRIOR), adapter_folder.read_extras(path))
    options = tuple(facts["options"]) if facts.get("options") else None
    return AdaptedTask(posterior, prior.config, options, facts["prior_hash"])
