"""Before the hours of a comparison: each method's parts are put together once, on the model itself; nothing is run."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import torch

from abmll.errors import UserError
from abmll.experiment.compare_plan import Plan, missing
from abmll.experiment.grid import Method
from abmll.experiment.models import add_adapter, load_base
from abmll.experiment.prior import Prior, check_examples
from abmll.meta import make_meta_learner
from abmll.posterior import make_posterior


def rehearse(plan: Plan, begun: Path | None = None) -> None:
    """Load the base model and make every method's adapter, prompts, learner and posterior.

    Args:
        plan: `check_plan` has passed it.
        begun: the folder that is gone on with: methods that have all their cells there are passed over, and with no
            other no model is loaded.

    Raises:
        UserError: the model, its device or its tokenizer cannot be used; or, naming the method, its adapter does not
            fit the model, a row has no prompt, or a train task is too small to learn from.
    """
    methods = [m for m in plan.fitted if begun is None or any(missing(plan, m, s, begun) for s in plan.seeds)]
    if not methods:
        return
    common = plan.methods[0].config  # model and scoring are the same for all
    base, tokenizer = load_base(common.model, common.scoring.name)
    for method in methods:
        try:
            model = add_adapter(base, method.config.adapter, plan.seeds[0])
            _assemble(plan, method, Prior.of(model, tokenizer, replace(method.config, seed=plan.seeds[0])))
        except UserError as error:
            raise UserError(f"method {method.name!r}: {error}") from None
        base = model.unload()
    del base, model
    gc.collect()  # an adapted model holds itself, and the first start, maybe of another process, needs the room
    torch.cuda.empty_cache()


def _assemble(plan: Plan, method: Method, prior: Prior) -> None:
    learns = method.config.meta.name != "none"
    train = plan.suite.train if learns or method.empirical else ()
    for task in (*train, *(task for task, _ in plan.tasks(method))):
        check_examples(prior.scorer, task.name, task.examples)
    if learns:
        make_meta_learner(prior.model, prior.scorer, train, method.config.meta, prior.config.seed)
    make_posterior(prior.model, prior.scorer, method.config.posterior, plan.suite.test[0].name)
