"""The watch for ControlNets: it finds copies of the encoder, and ends with the U-Net's first layer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.modules.module as torch_module
from torch import nn

from tests.todo_lib.unets import SD1, Encoder, call, make_unet
from todo_lib.webui.encoders import EncoderWatch


@pytest.fixture
def unet():
    return make_unet(**{**SD1, "num_res_blocks": 1, "channel_mult": (1, 1)})


@pytest.fixture
def watched():
    """Start a watch over a U-Net. Returns the copies that it has found, as often as each was called."""
    watches = []

    def start(unet, found=None):
        seen = []
        watches.append(EncoderWatch(found or seen.append))
        watches[-1].start(unet)
        return seen

    yield start
    for watch in watches:
        watch.stop()
    assert not torch_module._global_forward_pre_hooks


def run_layers(unet, seen):
    """Let a U-Net call what is in its first block, and never the block itself, as reForge and forge-classic do."""

    def forward(x, timesteps, context):
        for layer in unet.input_blocks[0]:
            x = layer(x)
            seen.append(len(torch_module._global_forward_pre_hooks))
        return x

    unet.forward = forward


def test_a_copy_of_the_encoder_is_found_before_it_runs(unet, watched):
    control = Encoder(copy.deepcopy(unet))
    ran = []
    control.register_forward_pre_hook(lambda module, args: ran.append(list(seen)))
    seen = watched(unet)
    call(nn.ModuleDict({"outer": control})["outer"])
    call(control)
    assert ran == [[control], [control] * 2]
    assert torch_module._global_forward_pre_hooks, "the U-Net itself has not run yet"


def test_a_unet_with_a_decoder_is_no_copy(unet, watched):
    seen = watched(unet)
    call(copy.deepcopy(unet))
    assert seen == []


def test_it_ends_with_the_first_block(unet, watched):
    watching = []
    unet.time_embed.register_forward_pre_hook(
        lambda *args: watching.append(len(torch_module._global_forward_pre_hooks))
    )
    unet.input_blocks[1].register_forward_pre_hook(
        lambda *args: watching.append(len(torch_module._global_forward_pre_hooks))
    )
    watched(unet)
    call(unet)
    assert watching == [1, 0]


def test_it_ends_with_the_first_layer_where_the_first_block_is_never_called(unet, watched):
    watching = []
    run_layers(unet, watching)
    watched(unet)
    call(unet)
    assert watching == [0]


def test_it_can_start_and_stop_at_any_time(unet):
    watch = EncoderWatch(lambda module: None)
    watch.stop()
    watch.start(unet)
    watch.start(unet)
    assert len(torch_module._global_forward_pre_hooks) == 1
    watch.stop()
    watch.stop()
    assert not torch_module._global_forward_pre_hooks


def test_a_model_without_input_blocks_is_not_watched(watched):
    watched(nn.Linear(2, 2))
    assert not torch_module._global_forward_pre_hooks


def test_a_foreign_module_runs_all_the_same(unet, watched):
    """It has input_blocks, but is otherwise no encoder."""

    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.input_blocks = nn.Linear(1, 1)

        def forward(self, x):
            return x

    def fail(module):
        raise AttributeError

    watched(unet, found=fail)
    assert torch.equal(Foreign()(torch.ones(1)), torch.ones(1))


def test_compiled_modules_are_passed_by(unet, watched):
    script = torch.jit.script(nn.Linear(2, 2))
    seen = watched(unet)
    script(torch.ones(1, 2))
    assert seen == []
