"""An adapter as a set of tensors: read it, write it, copy one onto another; and the sums of a variational step."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from peft import PeftModel
from torch import Tensor, nn

from abmll.adapter.latents import Latent
from abmll.adapter.layer import AbmllLayer, adapted_layers
from abmll.adapter.modes import Variational
from abmll.errors import UserError

PRIOR = "default"  # theta, PEFT's own name for the first adapter
TASK = "abmll_task"  # phi, the working copy of the task at hand

State = dict[str, Tensor]


def parameters(model: PeftModel, adapter: str) -> list[nn.Parameter]:
    """The adapter's parameters in a fixed order: the same for two adapters of one configuration."""
    return [p for layer in layers(model, adapter) for p in layer.parameters_of(adapter)]


def layers(model: nn.Module, adapter: str) -> list[AbmllLayer]:
    """The layers that hold the adapter; UserError if none does."""
    found = [layer for layer in adapted_layers(model).values() if adapter in layer.abmll_A]
    if not found:
        raise UserError(
            f"the model has no ABMLL adapter {adapter!r}; add one with get_peft_model(model, AbmllConfig(...))"
        )
    return found


def is_learned(state: State) -> bool:
    """Whether an adapter changes the model: some B is not zero."""
    return any(bool(t.any()) for name, t in state.items() if name.endswith(".abmll_B"))


def latent_of(model: nn.Module, adapter: str = PRIOR) -> Latent:
    """The adapter's latent."""
    return layers(model, adapter)[0].latents[adapter]


def named(model: PeftModel, adapter: str) -> dict[str, nn.Parameter]:
    """The adapter's parameters by `layer.part`, the adapter's own name left out."""
    return {
        f"{layer.key}.{part}": getattr(layer, part)[adapter].weight
        for layer in layers(model, adapter)
        for part in layer.adapter_layer_names
        if adapter in getattr(layer, part)
    }


def read(model: PeftModel, adapter: str) -> State:
    """A copy of the adapter's tensors, by `layer.part`."""
    return {name: p.detach().clone() for name, p in named(model, adapter).items()}


@torch.no_grad()
def write(model: PeftModel, adapter: str, state: Mapping[str, Tensor]) -> None:
    """Set the adapter's tensors in place; UserError where names or shapes differ."""
    target = named(model, adapter)
    if target.keys() != state.keys():
        odd = sorted(target.keys() ^ state.keys())
        raise UserError(f"the adapter's tensors do not fit the model: {len(odd)} names differ, first {odd[0]!r}")
    for name, p in target.items():
        if p.shape != state[name].shape:
            raise UserError(f"tensor {name!r} has shape {tuple(state[name].shape)}; {tuple(p.shape)} is needed")
        p.copy_(state[name])


@torch.no_grad()
def copy_adapter(model: PeftModel, source: str, target: str) -> None:
    """Copy an adapter onto another, exactly: "phi <- theta"."""
    for p, q in zip(parameters(model, target), parameters(model, source), strict=True):
        p.copy_(q)


def ensure_task_adapter(model: PeftModel) -> None:
    """Add the working adapter with the prior's configuration, if it is not there yet; the prior stays active."""
    if TASK not in model.peft_config:
        config = copy.deepcopy(model.peft_config[PRIOR])
        with torch.random.fork_rng(
            devices=[]
        ):  # its start is overwritten: the caller's random state is not spent on it
            model.add_adapter(TASK, config)
        model.set_adapter(PRIOR)


def remove_task_adapter(model: PeftModel) -> None:
    """Take the working adapter out again, so that the model saves as a plain PEFT adapter."""
    if TASK in model.peft_config:
        model.delete_adapter(TASK)
        model.set_adapter(PRIOR)


def totals(model: PeftModel, mode: Variational) -> tuple[Tensor, Tensor]:
    """(KL(posterior || prior), log hyperprior) of the whole adapter after a forward in `mode`, in nats, summed.

    `output`: over the layers, the coordinates and the tokens that were counted. `factor`, `weight`: over the parameters
    or the weights they make, and no forward is needed. The hyperprior is computed for the prior's step only, else 0.
    """
    if mode.kl == "none" or latent_of(model, mode.posterior).uses_inputs:
        return mode.sink.total()
    kl, hyperprior = torch.zeros(()), torch.zeros(())
    for layer in layers(model, mode.posterior):
        latent = layer.latents[mode.posterior]
        kl = kl + latent.divergence(layer, mode)
        if mode.update == "prior":
            hyperprior = hyperprior + latent.hyperprior(layer, mode.prior, mode.rate)
    return kl, hyperprior
