"""abmll: amortized Bayesian meta-learning of LoRA adapters."""

__version__ = "0.1.0"
