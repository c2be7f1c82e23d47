"""The Gaussian-LoRA operation: one adapter's linear-Gaussian output, its KL to a prior and the prior's hyperprior.

`reference` is the specification in plain torch; `fused` computes the same in one pass and is what layers use.
"""

from abmll.ops.fused import draw, draw_and_divergence, project_both
from abmll.ops.reference import GaussianOutput, Pairs, divergence, hyperprior, project

__all__ = [
    "GaussianOutput",
    "Pairs",
    "divergence",
    "draw",
    "draw_and_divergence",
    "hyperprior",
    "project",
    "project_both",
]
