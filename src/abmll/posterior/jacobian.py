"""Gradients of one question's log-probabilities: by the weights A and B, and by what they put out at each token.

    d log p_c / d W = sum over tokens of g_c a^T    (a: the linear's input there; g_c: the gradient by its output)
    log p = log_softmax(scores),    d log p_c = d score_c - sum over c' of p_c' d score_c'

Where every option has rows of its own (`Scorer.apart`), the sum of the scores has all of d score_c in one backward
pass: those of option c are on its rows. Elsewhere it takes one pass for each option.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from abmll import noise
from abmll.adapter import modes, state
from abmll.adapter.tokens import Tokens
from abmll.errors import UserError
from abmll.scoring import Scorer
from abmll.tasks.task import Example


class Call(NamedTuple):
    """One call of a linear.

    Attributes:
        a: input (rows, tokens, d_in), no graph.
        z: output (rows, tokens, d_out), in the graph.
        real: bool (rows, tokens), False for padding.
        place: int64 (rows, tokens), equal where two rows read the same position of the same text.
    """

    a: Tensor
    z: Tensor
    real: Tensor
    place: Tensor


def small_first(name: str, t: Tensor) -> Tensor:
    """A weight's tensor (..., d_out, d_in) laid out (..., r, D): A as it is, B transposed."""
    return t.mT if name.endswith("abmll_B") else t


@contextmanager
def recorded(model: Any) -> Iterator[dict[str, list[Call]]]:
    """The calls of every LoRA linear of the working adapter inside the block, by `layer.part`; needs a Mean mode.

    A block that gradient checkpointing recomputes must be recomputed outside, or its calls are recorded again.
    """
    calls: dict[str, list[Call]] = {}
    attended: list[Tensor | None] = [None]

    def attend(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        attended[0] = kwargs.get("attention_mask")

    def keep(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            if output.dim() != 3:
                raise UserError(
                    f"layer {name!r} gives an output of shape {tuple(output.shape)}; (rows, tokens, features) is "
                    "needed: leave it out of target_modules"
                )
            mask, (rows, columns) = attended[0], output.shape[:-1]
            real = torch.ones(rows, columns, device=output.device) if mask is None else mask.reshape(rows, columns)
            who = modes.current().tokens or Tokens.default((rows, columns), output.device)
            place = noise.fold(who.text, who.position)
            calls.setdefault(name, []).append(Call(inputs[0].detach(), output, real.bool(), place))

        return hook

    handles = [model.register_forward_pre_hook(attend, with_kwargs=True)]
    for layer in state.layers(model, state.TASK):
        for part in ("abmll_A", "abmll_B"):
            handles.append(getattr(layer, part)[state.TASK].register_forward_hook(keep(f"{layer.key}.{part}")))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def jacobian(log_probs: Tensor, by: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of log_probs (C,) by each tensor, (C, *its shape): C backward passes; the graph is freed."""
    rows = [_grad(log_p, by, again=c + 1 < len(log_probs)) for c, log_p in enumerate(log_probs)]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _grad(value: Tensor, by: Sequence[Tensor], again: bool = False) -> tuple[Tensor, ...]:
    """Gradients of a scalar; zeros where it does not depend on a tensor. `again`: the graph is needed once more."""
    return torch.autograd.grad(value, by, retain_graph=again, materialize_grads=True)


def by_weights(model: Any, scorer: Scorer[Any], task: str, example: Example) -> tuple[Tensor, dict[str, Tensor]]:
    """Log p (C,) of one question's options under the working adapter's mean, and its gradients.

    Args:
        model: a PeftModel whose working adapter holds the weights.
        scorer: how it answers.
        task: the task's name.
        example: the question; it is run alone.

    Returns:
        log p, float32; and by `layer.part` d log p / d W, float64, laid out by `small_first`: (C, r, D).
    """
    batch = scorer.apart(task, example)
    if batch is None:
        weights = {n: w for n, w in state.named(model, state.TASK).items() if n.endswith(("abmll_A", "abmll_B"))}
        with modes.use(model, modes.Mean(state.TASK, train=True)):
            log_probs = scorer.option_log_probs(model, scorer.collate(task, [example]))[0]  # (C,)
        gradients = zip(weights, jacobian(log_probs, list(weights.values())), strict=True)
        return log_probs.detach(), {name: small_first(name, g.double()) for name, g in gradients}
    with modes.use(model, modes.Mean(state.TASK, train=True)), recorded(model) as calls:
        scores = scorer.option_scores(model, batch).flatten()  # (C,)
    log_probs = scores.detach().log_softmax(-1)
    flat = [(name, call) for name, made in calls.items() for call in made]
    found: dict[str, Tensor] = {}
    for (name, call), g in zip(flat, _grad(scores.sum(), [call.z for _, call in flat]), strict=True):
        large, small = (call.a, g) if name.endswith("abmll_A") else (g, call.a)  # (C, tokens, D), (C, tokens, r)
        one = small.mT.to(large.dtype) @ large  # (C, r, D): rows of padding have no gradient
        found[name] = one if name not in found else found[name] + one
    shares = torch.eye(len(log_probs)).to(log_probs) - log_probs.exp()  # row c: what log p_c takes of each score
    return log_probs, {n: torch.einsum("cs,sij->cij", shares.double(), d.double()) for n, d in found.items()}
