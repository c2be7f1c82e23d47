"""How wide a fitted posterior is, layer by layer: the standard deviation of its draws of Delta W."""

from __future__ import annotations

import torch

from abmll import noise
from abmll.adapter import modes, state
from abmll.hashing import stable_hash
from abmll.posterior import Posterior

PROBES = 256  # random inputs: the mean variance of Delta W's elements is then known to some percent


@torch.no_grad()
def layer_std(posterior: Posterior, samples: int, seed: int) -> dict[str, float]:
    """Root mean square over Delta W's elements of their standard deviation over draws, by the layer's name.

    The draws are those of the prediction under the same seed. Delta W itself is never made: for x with independent
    signs as coordinates E (Delta W x)_i^2 = sum_j Delta W_ij^2, so that the variance over draws of s B A x, divided by
    d_in, is on average that of the elements, whatever makes the draws.

    Args:
        posterior: fitted, and active in its model.
        samples: draws.
        seed: of the prediction.

    Returns:
        Empty where draws are not adapters: a point, fewer than 2 draws, noise of outputs (latents
        `output` and `weight`), and `laplace`, whose draws are of logits.
    """
    drawn = posterior.draws(samples, stable_hash("predict", seed, posterior.task)) if samples > 1 else []
    shared = state.latent_of(posterior.model).epistemic
    if len(drawn) < 2 or any(isinstance(mode, modes.Sample) and not shared for mode in drawn):
        return {}
    found = {}
    for layer in state.layers(posterior.model, state.TASK):
        like = layer.abmll_A[state.TASK].weight
        address = noise.fold(stable_hash("probe", layer.key), torch.arange(PROBES), device=like.device)
        x = noise.normal(address, layer.in_features, like.dtype).sign()[None]  # (1, probes, d_in)
        y = x.new_zeros(1, PROBES, layer.out_features)
        z = torch.stack([mode.apply(layer, y, x, None) for mode in drawn])  # (S, 1, probes, d_out)
        found[layer.key] = float((z.double().var(0).mean() / layer.in_features).sqrt())
    return found
