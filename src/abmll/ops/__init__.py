"""The Gaussian-LoRA operation: one adapter's linear-Gaussian output, its KL to a prior and the prior's hyperprior."""

from abmll.ops.reference import GaussianOutput, Pairs, divergence, hyperprior, project

__all__ = ["GaussianOutput", "Pairs", "divergence", "hyperprior", "project"]
