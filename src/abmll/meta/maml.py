"""MAML: a start from which K gradient steps on a task's support lead to a low loss on its query.

    w_0 = theta;  K times:  w <- w - inner_lr grad_w L(w; support batch)
    theta: one AdamW step along  grad_theta L(w_K(theta); query batch), the mean over tasks

Source: Finn, Abbeel, Levine, ICML 2017 (arXiv 1703.03400), algorithm 1; order 1 is their section 5.2's first-order
approximation, which takes the inner gradients for constants. Inner steps are plain SGD at either order: the first step
of Adam has almost no second-order signal. MAML-en-LLM (arXiv 2405.11446) is order 2 on in-context prompts; its Adam
moments, shared by inner and outer steps, are left out: where B = 0 they are 0 for A, and dividing by them has no
derivative to speak of.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from abmll.adapter import modes, state
from abmll.adapter.latents import Latent
from abmll.adapter.layer import AbmllLayer
from abmll.errors import UserError
from abmll.meta.base import Info, MetaLearner
from abmll.meta.config import MetaConfig
from abmll.meta.episodes import Episode
from abmll.posterior.objective import adamw, check_gradients, finite, terms
from abmll.tasks.task import Example

TWICE_DIFFERENTIABLE = ("eager", "sdpa")


class Maml(MetaLearner):
    """Fast weights A and B of every adapted layer; no working adapter, and theta's variance (if any) stays.

    An inner step descends the mean NLL over what counts (`Scorer.nll`: answers, but for `header_tokens`), so that
    inner_lr means the same at every batch size; the outer loss is the summed NLL of the query, as everywhere (AdamW
    does not see its scale). The query shares no row with the support, nor do the support's prompts show it.
    """

    name = "maml"
    uses = frozenset({"inner_lr", "outer_lr", "tasks_per_step", "order", "maml_order"})
    hidden_batches = 2

    @classmethod
    def check(cls, config: MetaConfig, latent: Latent, checkpointed: bool) -> None:
        """Order 2 has nothing to recompute."""
        super().check(config, latent, checkpointed)
        if config.maml_order == 2 and checkpointed:
            raise UserError(
                "maml_order = 2 keeps every activation: switch gradient checkpointing off "
                "(--model.gradient_checkpointing false), or use --meta.maml_order 1"
            )

    def init(self) -> None:
        """AdamW over theta's A and B."""
        if lonely := [task.name for task in self.episodes.tasks if len(task) < 2]:
            raise UserError(f"task {lonely[0]!r} has 1 row; meta-learner 'maml' needs a support and a query, so 2")
        self._layers = {layer.key: layer for layer in state.layers(self.model, state.PRIOR)}
        self.optimizers["outer"] = adamw(self._theta(), self.config.outer_lr)
        attention = getattr(self.model.get_base_model().config, "_attn_implementation", "eager")
        if self.config.maml_order == 2 and attention not in TWICE_DIFFERENTIABLE:
            raise UserError(
                f"maml_order = 2 differentiates twice, but the base model's attention {attention!r} can be only once; "
                'load it with attn_implementation="eager", or use --meta.maml_order 1'
            )

    def _theta(self) -> list[torch.nn.Parameter]:
        """A (r, d_in) and B (d_out, r) of every adapted layer, in turn."""
        return [p for layer in self._layers.values() for p in _pair(layer)]

    def step(self, index: int) -> Info:
        """`tasks_per_step` episodes and one step on theta, along the mean of their gradients."""
        c = self.config
        theta = self._theta()
        total = [torch.zeros_like(p) for p in theta]
        nll, outer, count, tokens = 0.0, 0.0, 0, 0
        for i in range(index * c.tasks_per_step, (index + 1) * c.tasks_per_step):
            episode, query = self.episodes.split(i, c.inner_steps)
            leaves = [p.detach().clone().requires_grad_() for p in theta]
            loss, summed, n, read = self._adapt(episode, query, leaves)
            for mean, gradient in zip(total, torch.autograd.grad(loss, leaves), strict=True):
                mean += gradient / c.tasks_per_step
            outer += loss.item() / c.tasks_per_step
            nll, count, tokens = nll + summed, count + n, tokens + read
        for p, gradient in zip(theta, total, strict=True):
            p.grad = gradient
        check_gradients(state.parameters(self.model, state.PRIOR), outer, f"outer step {index}")
        self.optimizers["outer"].step()
        return Info(episode.task, nll / count, 0.0, 0.0, tokens, c.tasks_per_step * (c.inner_steps + 1))

    def _adapt(
        self, episode: Episode, query: Sequence[Example], leaves: list[Tensor]
    ) -> tuple[Tensor, float, int, int]:
        """K steps from theta's copies `leaves`, and the query.

        Returns:
            the query's summed NLL at w_K, with a graph to `leaves` (through the inner gradients at order 2; at order 1
            dw_K/dtheta is the identity), the NLL summed over all batches, both in nats, and the answers and tokens
            read.
        """
        second = self.config.maml_order == 2
        weights, nll, count, tokens = leaves, 0.0, 0, 0
        for k, examples in enumerate((*episode.batches, query)):
            batch = self.collate(episode.task, examples, episode.key, hidden=query)
            with _attention(second):
                t = terms(self.model, self.scorer, batch, self._mode(weights))
            nll += finite(t.nll, f"inner step {k} on task {episode.task!r}")
            count, tokens = count + t.n, tokens + batch.n_tokens
            if k < self.config.inner_steps:
                gradients = torch.autograd.grad(t.nll / t.n, weights, create_graph=second)
                weights = [w - self.config.inner_lr * g for w, g in zip(weights, gradients, strict=True)]
        return t.nll, nll, count, tokens

    def _mode(self, weights: list[Tensor]) -> modes.WithFactors:
        pairs = zip(weights[::2], weights[1::2], strict=True)
        return modes.WithFactors(
            {key: (A[None], B[None]) for key, (A, B) in zip(self._layers, pairs, strict=True)}, state.PRIOR
        )


def _pair(layer: AbmllLayer) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    return layer.abmll_A[state.PRIOR].weight, layer.abmll_B[state.PRIOR].weight


def _attention(second: bool) -> AbstractContextManager[None]:
    """At order 2, scaled dot product attention as plain products: its fused kernels have one derivative alone."""
    return sdpa_kernel(SDPBackend.MATH) if second else nullcontext()
