"""The Gaussian-LoRA operation: one adapter's linear-Gaussian output, its KL to a prior and the prior's hyperprior.

`gaussian_lora` is the operation, `reference` its specification in plain torch, `core` the contract between the versions
of its elementwise stage (`compiled`, `tiled`), `dispatch` the choice between them.
"""

from abmll.ops.core import Ask
from abmll.ops.dispatch import use
from abmll.ops.operation import gaussian_lora
from abmll.ops.reference import GaussianOutput, Pairs, divergence, hyperprior, project

__all__ = ["Ask", "GaussianOutput", "Pairs", "divergence", "gaussian_lora", "hyperprior", "project", "use"]
