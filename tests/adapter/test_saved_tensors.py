"""What a step keeps for backward: nothing of size tokens x d_out that a LoRA step does not keep as well."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from abmll import ops
from abmll.adapter import state
from abmll.adapter.layer import adapted_layers
from abmll.adapter.modes import Variational, use
from abmll.adapter.state import PRIOR, TASK

STEPS = {
    "inner": Variational(1, TASK, PRIOR),
    "inner, sampled KL": Variational(1, TASK, PRIOR, kl="sampled"),
    "inner, mean": Variational(1, TASK, PRIOR, draw=False),
    "adaptation": Variational(1, TASK, PRIOR, kl="none"),
}


def saved(model: PeftModel, ids: Tensor) -> list[int]:
    """Bytes of every storage that a forward pass keeps, the parameters left out."""
    kept = {p.untyped_storage().data_ptr() for p in model.parameters()}
    holding: list[Tensor] = []  # so that no other tensor gets an address that was seen

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in kept:
            kept.add(t.untyped_storage().data_ptr())
            holding.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(input_ids=ids).logits.square().mean()
    del loss
    return [t.untyped_storage().nbytes() for t in holding]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("implementation", ["compiled", "tiled"])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_a_step_keeps_no_more_wide_tensors_than_lora(step, implementation, architecture, adapted, base_model):
    model = adapted("output", architecture)
    state.ensure_task_adapter(model)
    config = LoraConfig(r=3, target_modules=list(adapted_layers(model)))
    lora = get_peft_model(base_model(architecture), config).eval()
    ids = torch.randint(3, 50, (2, 23), generator=torch.Generator().manual_seed(0))
    theirs = saved(lora, ids)
    with ops.use(implementation), use(model, STEPS[step]):
        mine = saved(model, ids)
    rows, layers, narrowest = ids.numel(), len(adapted_layers(model)), 32
    wide = [sum(size >= 4 * rows * narrowest for size in sizes) for sizes in (mine, theirs)]
    assert wide[0] <= wide[1]
    assert wide[1] > layers / 2
    # more than LoRA: the rank-r rows of both adapters, an address a row and layer, the mask
    assert sum(mine) <= sum(theirs) + rows * (layers * (4 * 4 * 3 + 8) + 4)


def test_the_hook_sees_what_the_specification_keeps(adapted):
    """The same count on plain autograd finds the buffers that the operation is there to avoid."""
    model = adapted("output")
    state.ensure_task_adapter(model)
    ids = torch.randint(3, 50, (2, 23), generator=torch.Generator().manual_seed(0))
    found = {}
    for name in ("compiled", "reference"):
        with ops.use(name), use(model, STEPS["inner"]):
            found[name] = sum(saved(model, ids))
    assert found["reference"] > 3 * found["compiled"]
