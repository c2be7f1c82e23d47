"""`inducing`: variational inference over a small inducing matrix of each LoRA factor (Lin et al., arXiv 2601.21003).

A = A_start + sigma_p (...) and B alike, as `inducing_maths` has it; the start stays as it is. At the start of the fit
both conditional means are 0 and A and B are independent, so E[Delta W] is the start's own: 0 for a new LoRA. A step of
the inducing variables moves the weights some hundred times less than the same step of the weights would (sigma_p, and
p q numbers for n m), so the rate that suits LoRA leaves the adapter where it was: tune `lr` upwards, or widen the prior
(`inducing.scale`).

The loss is NLL + KL, sums in nats, the KL counted once over the support set: the evidence bound. `paper` is the
published objective instead, times the batch's size: mean cross-entropy with label smoothing 0.05, less 0.05 times the
mean entropy, plus 0.1 / (batches an epoch) times the KL, which joins after two epochs; smoothing and entropy are over
the item's own options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from abmll.adapter import modes, state
from abmll.hashing import stable_hash
from abmll.posterior.gradient import Gradient
from abmll.posterior.inducing_maths import Law, cap, start
from abmll.posterior.objective import adamw, terms
from abmll.posterior.weight_prior import mean_pair
from abmll.posterior.weights import Factors, WeightPosterior, normals
from abmll.scoring import Batch
from abmll.tasks.task import Example

SMOOTHING, ENTROPY_BONUS, KL_WEIGHT, KL_FREE_EPOCHS = 0.05, 0.05, 0.1, 2
CENTRE_DRAWS = 512
_LAW = ("rows", "columns", "mu", "sd", "noise")


class Inducing(WeightPosterior, Gradient):
    """AdamW on the inducing variables and their places.

    `tensors` holds E[A] and E[B]; `extras`, by `layer.part.field`, each factor's `Law`, its flow if there is one, and
    the mean `centre` of u, (p, q).
    """

    name = "inducing"

    def begin(self, support: Sequence[Example], seed: int) -> torch.optim.Optimizer:
        """The inducing variables at their start, keyed by (seed, task)."""
        state.ensure_task_adapter(self.model)
        state.copy_adapter(self.model, state.PRIOR, state.TASK)
        self.start = mean_pair(state.read(self.model, state.PRIOR))
        settings, key = self.config.inducing, stable_hash("inducing start", seed, self.task)
        self.parameters: dict[str, dict[str, nn.Parameter]] = {}
        for name, W in self.start.items():

            def normal(part: str, shape: tuple[int, ...], name: str = name, W: Tensor = W) -> Tensor:
                return normals(key, f"{name}.{part}", 1, W.new_empty(shape))[0]

            made = start(W.shape[0], W.shape[1], settings.rows, settings.columns, settings.flow, normal)
            self.parameters[name] = {part: nn.Parameter(value) for part, value in made.items()}
        return adamw([p for parts in self.parameters.values() for p in parts.values()], self.config.lr)

    def loss(self, batch: Batch, share: float, seed: int, step: int) -> Tensor:
        """The NLL under one draw of the adapter, and the KL's share."""
        laws = {name: Law.of(parts, self.config.inducing.scale) for name, parts in self.parameters.items()}
        moved, kl = draw(laws, 1, stable_hash("adapt noise", seed, self.task, step))
        mode = modes.WithFactors(pairs({name: self.start[name] + d for name, d in moved.items()}), state.TASK)
        if not self.config.inducing.paper:
            return terms(self.model, self.scorer, batch, mode).nll + share * kl
        with modes.use(self.model, mode):
            log_probs = self.scorer.option_log_probs(self.model, batch)  # (n, C)
        batches = math.ceil(round(len(batch) / share) / self.config.batch_size)
        weight = 0.0 if step < KL_FREE_EPOCHS * batches else KL_WEIGHT / batches
        return published(log_probs, batch) + len(batch) * weight * kl

    def taken(self, step: int) -> None:
        """Keep lambda and the deviations of u under their caps."""
        for parts in self.parameters.values():
            cap(parts)

    @torch.no_grad()
    def end(self, support: Sequence[Example], seed: int) -> None:
        """Keep the mean adapter, and what draws need."""
        super().end(support, seed)
        self.extras = {}
        for name, parts in self.parameters.items():
            law = Law.of(parts, self.config.inducing.scale)
            centre = law.centre(normals(stable_hash("inducing centre"), name, CENTRE_DRAWS, law.mu))
            self.tensors[name] = self.start[name] + law.weights(centre, None)
            kept = {field: getattr(law, field) for field in _LAW} | dict(law.flow) | {"centre": centre}
            for field, value in kept.items():  # row-major, as a file gives it back: other strides, other last bits
                self.extras[f"{name}.{field}"] = value.clone(memory_format=torch.contiguous_format)

    def factors(self, samples: int, key: int) -> Factors:
        """The mean plus a draw's distance from it."""
        laws, centres = {}, {}
        for name, mean in mean_pair(self.tensors).items():
            own = (k for k in self.extras if k.startswith(f"{name}."))
            kept = {k.removeprefix(f"{name}."): self.extras[k].to(mean.device) for k in own}  # may come from a file
            centres[name] = kept.pop("centre")
            fields = {field: kept.pop(field) for field in _LAW}
            laws[name] = Law(**fields, flow=kept, scale=self.config.inducing.scale)
        moved, _ = draw(laws, samples, key, centres)
        return pairs({name: self.tensors[name] + d for name, d in moved.items()})


def draw(
    laws: Mapping[str, Law], samples: int, key: int, centres: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Draws of W - W_start (S, n, m) by name, and KL(q(W, U) || p(W, U)) in nats, summed over all factors.

    `centres`: E[u] by name: the draws are then of W - E[W]. Draw s depends on (key, s) alone.
    """
    moved, total = {}, torch.zeros(())
    for name, law in laws.items():
        (n, m), (p, q) = law.size, law.mu.shape
        u, kl = law.inducing(normals(key, f"{name}.u", samples, law.mu))
        E = normals(key, f"{name}.E", samples, law.mu.new_empty(n + p, m + q))
        moved[name] = law.weights(u if centres is None else u - centres[name], E)
        total = total + kl + law.conditional_kl()
    return moved, total


def pairs(weights: Mapping[str, Tensor]) -> Factors:
    """A (S, r, d_in) and B (S, d_out, r) by layer, from tensors by `layer.part`."""
    layers = [name.removesuffix(".abmll_A") for name in weights if name.endswith(".abmll_A")]
    return {layer: (weights[f"{layer}.abmll_A"], weights[f"{layer}.abmll_B"]) for layer in layers}


def published(log_probs: Tensor, batch: Batch) -> Tensor:
    """Label-smoothed cross-entropy less 0.05 entropy, in nats, summed over the batch; log_probs (n, C)."""
    finite = log_probs.masked_fill(~batch.option_mask, 0.0)
    smooth = -finite.sum(1) / batch.option_mask.sum(1)  # cross-entropy with the uniform distribution over own options
    entropy = -(log_probs.exp() * finite).sum(1)
    right = -finite.gather(1, batch.labels[:, None])[:, 0]
    return ((1 - SMOOTHING) * right + SMOOTHING * smooth - ENTROPY_BONUS * entropy).sum()
