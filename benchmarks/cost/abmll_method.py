"""ABMLL with one latent and one implementation of its operation: the same steps that users get, through the library.

Nothing is re-implemented here. An episode is `MetaLearner.step`; its inner part is told apart by a wrapper around the
learner's own `_inner`, and what follows until the step ends is the outer part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from abmll import gaussian, noise, ops
from abmll.adapter import state
from abmll.adapter.config import START_LOG_VARIANCE
from abmll.adapter.layer import adapted_layers
from abmll.meta import make_meta_learner
from abmll.meta.config import MetaConfig
from abmll.ops import reference
from abmll.posterior import PosteriorConfig, make_posterior
from abmll.predict import predict
from abmll.scoring import Scorer
from abmll.tasks import Example, Task
from cost.bases import checkpoint, twin
from cost.clock import Action, Probe

METHODS = {"output": "output", "factor": "factor", "natural": "factor", "weight": "weight", "naive": "output"}
"""Name: latent. `natural` takes theta's step along the natural gradient, which needs no optimiser's state; `naive` is
latent `output` in plain torch, the specification run as it is written."""


def available() -> list[str]:
    """Methods whose latent this version has."""
    return [name for name, latent in METHODS.items() if latent in START_LOG_VARIANCE]


def plain_torch() -> AbstractContextManager[None]:
    """Latent `output` by `ops.reference` instead of the fused operation."""
    use: Any = getattr(ops, "use", None)
    return _swapped() if use is None else use("reference")


@contextmanager
def _swapped() -> Iterator[None]:
    """The same where `ops` has no choice of implementation yet: its functions replaced by the reference's."""
    fused = {name: getattr(ops, name) for name in ("project_both", "draw", "draw_and_divergence")}

    def project_both(x: Tensor, q: Any, p: Any) -> Any:
        return reference.project(x, q), reference.project(x, p)

    def draw(q: Any, address: Tensor) -> Tensor:
        return gaussian.sample(q.m, q.l, noise.normal(address, q.m.shape[-1], q.m.dtype))

    def draw_and_divergence(q: Any, p: Any, mask: Tensor, address: Tensor | None) -> tuple[Tensor, Tensor]:
        return q.m if address is None else draw(q, address), reference.divergence(q, p, mask)

    replaced = {"project_both": project_both, "draw": draw, "draw_and_divergence": draw_and_divergence}
    try:
        for name, function in replaced.items():
            setattr(ops, name, function)
        yield
    finally:
        for name, function in fused.items():
            setattr(ops, name, function)


class Abmll:
    """One adapted model of its own on the shared base."""

    def __init__(self, name: str, base: nn.Module, rank: int, checkpointing: bool = False) -> None:
        from peft import get_peft_model

        from abmll.adapter.config import AbmllConfig

        self.name = name
        config = AbmllConfig(r=rank, lora_alpha=2 * rank, latent=METHODS[name])
        self.model = get_peft_model(twin(base), config).eval()
        state.ensure_task_adapter(self.model)
        if checkpointing:
            checkpoint(self.model)

    def implementation(self) -> AbstractContextManager[None]:
        """What the layers compute with."""
        return plain_torch() if self.name == "naive" else nullcontext()

    def adapted(self) -> set[str]:
        """Names of the adapted layers."""
        return set(adapted_layers(self.model))

    def episodes(self, scorer: Scorer[Any], tasks: Sequence[Task], steps: int, batch: int) -> Action:
        """One episode of `steps` inner steps and an outer one; regions `episode`, `inner` and `outer`."""
        own: dict[str, Any] = {"outer": "natural", "beta": 1e-3} if self.name == "natural" else {}
        config = MetaConfig(name="abmll", inner_steps=steps, batch_size=batch, inner_lr=1e-5, outer_lr=5e-5, **own)
        learner = make_meta_learner(self.model, scorer, tasks, config, seed=1)
        original, running, count = learner._inner, [], iter(range(1 << 30))

        def inner(*args: Any, **kwargs: Any) -> Any:
            probe, regions = running
            with probe("inner"):
                found = original(*args, **kwargs)
            regions.enter_context(probe("outer"))
            return found

        learner._inner = inner

        def action(probe: Probe) -> None:
            with self.implementation(), probe("episode"), ExitStack() as regions:
                running[:] = [probe, regions]
                learner.step(next(count))

        return action

    def adaptation(
        self, scorer: Scorer[Any], task: Task, steps: int, batch: int, *, draw: bool, kl: bool, region: str
    ) -> Action:
        """`Posterior.fit`: `steps` steps on `batch` examples each from the prior; one region, named by the caller."""
        config = PosteriorConfig("variational", steps=steps, batch_size=batch, lr=1e-5, draw=draw, adapt_kl=kl)
        posterior = make_posterior(self.model, scorer, config, task.name)
        support = task.examples[: steps * batch]

        def action(probe: Probe) -> None:
            with self.implementation(), probe(region):
                posterior.fit(support, seed=1)

        return action

    def prediction(
        self, scorer: Scorer[Any], task: str, questions: Sequence[Example], batch: int, *, samples: int, region: str
    ) -> Action:
        """`predict` of a fitted posterior, `batch` questions a forward; one region, named by the caller."""
        posterior = make_posterior(self.model, scorer, PosteriorConfig("variational", steps=1, batch_size=1), task)
        posterior.fit([questions[0]], seed=1)

        def action(probe: Probe) -> None:
            with self.implementation(), probe(region):
                predict(posterior, questions, samples=samples, batch_size=batch)

        return action
