"""How base models come into memory."""

import torch

from abmll.experiment.config import ModelConfig
from abmll.experiment.models import align, load_base


def test_a_loaded_model_is_frozen_and_off_dropout_and_lies_where_kernels_want_it(folder):
    model, _ = load_base(ModelConfig(str(folder)), "letters")
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in model.modules())
    assert all(t.data_ptr() % 64 == 0 for t in (*model.parameters(), *model.buffers()))
    assert model.dtype == torch.float32  # `auto` on a CPU


def test_aligning_changes_where_weights_lie_and_nothing_else():
    linear = torch.nn.Linear(8, 8, bias=False)
    space = torch.zeros(8 * 8 + 16)
    offset = next(i for i in range(1, 16) if (space.data_ptr() + 4 * i) % 64)
    odd = space[offset : offset + 64].view(8, 8)
    odd.copy_(linear.weight.data)
    wanted, linear.weight.data = linear.weight.data, odd
    parameter = linear.weight
    assert parameter.data_ptr() % 64
    align(linear)
    assert linear.weight is parameter
    assert parameter.data_ptr() % 64 == 0
    assert torch.equal(parameter, wanted)
