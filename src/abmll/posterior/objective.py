"""One gradient step's loss: NLL + beta KL, all sums, in nats (docs/method.md, section 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from abmll.adapter import modes, state
from abmll.errors import UserError
from abmll.scoring import Batch, Scorer


class NonFiniteLossError(UserError):
    """The loss, or its gradient, is NaN or infinite.

    Training stops before the step: the parameters are still the last good ones.
    """


class Terms(NamedTuple):
    """The parts of a loss, as tensors in nats: `nll` is summed over `n` answers (or answer tokens)."""

    nll: Tensor
    kl: Tensor
    hyperprior: Tensor
    n: int


def terms(model: Any, scorer: Scorer[Any], batch: Batch, mode: modes.Mode) -> Terms:
    """One forward pass of the batch in `mode`.

    For the prior's step the base model runs without a graph: only KL and hyperprior have one, local to each layer.
    """
    outer = isinstance(mode, modes.Variational) and mode.update == "prior"
    with modes.use(model, mode), torch.set_grad_enabled(torch.is_grad_enabled() and not outer):
        nll, count = scorer.nll(model, batch)
    if not isinstance(mode, modes.Variational):
        return Terms(nll, torch.zeros(()), torch.zeros(()), count)
    return Terms(nll, *state.totals(model, mode), count)


def kl_share(model: Any, share: float) -> float:
    """The part of the KL that belongs to one batch, which holds `share` = |batch| / n of the examples.

    `output`: 1, the KL is itself a sum over the batch's tokens. Else `share`, because the KL is one number however
    many of the n examples are seen at once.
    """
    return 1.0 if state.latent_of(model).uses_inputs else share


def adamw(parameters: list[torch.nn.Parameter], lr: float) -> torch.optim.AdamW:
    """AdamW without decay or schedule, as one fused update where the parameters' device has it."""
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=fused)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, where: str) -> float:
    """Backward and one step; the loss as a number. Raises NonFiniteLossError before a parameter is changed."""
    value = finite(loss, where)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    check_gradients([p for group in optimizer.param_groups for p in group["params"]], value, where)
    optimizer.step()
    return value


def finite(loss: Tensor, where: str) -> float:
    """The loss as a number; NonFiniteLossError where it is none."""
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteLossError(
            f"the loss is {value} at {where}; nothing was updated there. Lower the learning "
            "rate, or, where the adapter has a variance, raise adapter.log_variance"
        )
    return value


def check_gradients(parameters: Sequence[Tensor], value: float, where: str) -> None:
    """NonFiniteLossError if a gradient that the parameters hold is not finite; `value` is the loss it belongs to."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not all(norm.isfinite() for norm in torch._foreach_norm(gradients)):
        raise NonFiniteLossError(
            f"the gradient is not finite at {where} (the loss is {value}); nothing was updated there. Lower the "
            "learning rate, or load the base model in another dtype"
        )
