"""The work of a U-Net call, counted from its modules, against what torch counts when it runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.todo_lib.unets import SD1, at_any_size, call, inputs, make_unet, patched
from todo_lib import Settings, plan
from todo_lib.work import unet_work


def operations(unet, size, tokens=7):
    with at_any_size(), FlopCounterMode(display=False) as counter:
        call(unet, size)
    return counter.get_total_flops()


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (13, 22)], ids=str)
def test_the_work_is_what_torch_counts(unet, size):
    """A multiply-add is two operations. The tests' prompts have seven tokens."""
    assert 2 * unet_work(unet, size, 7) == operations(unet, size)


@pytest.mark.parametrize("moving", [False, True])
def test_the_share_that_remains_is_what_torch_counts(unet, moving):
    """The moving grid leaves the projections whole. The paper's grid shrinks them, which the plan does not count."""
    size, chosen = (24, 24), {"factor": 3, "max_depth": 4, "deeper_factor": 1.5, "moving": moving}
    depths = plan(unet, size, Settings(**chosen))
    remains = unet_work(unet, size, 7) - sum(d.dense_work - d.work for d in depths)
    with patched(unet, **chosen):
        counted = operations(unet, size)
    assert counted == 2 * remains if moving else counted <= 2 * remains


def test_a_motion_module_between_the_spatial_transformers(unet):
    """AnimateDiff puts such into the U-Net while it runs. Its attentions are over time, and only its layers count."""

    class Temporal(nn.Module):
        def __init__(self):
            super().__init__()
            self.transformer_blocks = nn.ModuleList([nn.ModuleDict({"attention_blocks": nn.Linear(4, 4)})])

    before = unet_work(unet, (16, 16))
    block = unet.input_blocks[1]
    block.append(Temporal())
    try:
        assert unet_work(unet, (16, 16)) == before + 16 * 16 * 16
    finally:
        del block[len(block) - 1]


def test_blocks_without_self_attention():
    unet = make_unet(**{**SD1, "disable_self_attentions": [True, False, False, True]})
    assert 2 * unet_work(unet, (16, 16), 7) == operations(unet, (16, 16))


def test_other_models():
    assert unet_work(nn.Linear(2, 2), (8, 8)) >= 0


def test_nothing_runs(sd1):
    assert unet_work(sd1, (512, 512)) > 1000 * unet_work(sd1, (16, 16))
    assert inputs(sd1, (8, 8)) and torch.is_grad_enabled()
