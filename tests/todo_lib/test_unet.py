"""The places and depths of a U-Net's self-attentions."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from tests.todo_lib.unets import (
    SD1,
    SDXL,
    Encoder,
    attentions,
    call,
    grid_at,
    make_unet,
    transformers,
)
from todo_lib.unet import spatial_transformers

# Self-attentions at each depth: two spatial transformers per encoder level and three per decoder level, one in the
# middle, with one block each, or two in the SDXL-like U-Net.
LAYERS = {"sd1": {1: 5, 2: 5, 3: 5, 4: 1}, "sd2": {1: 5, 2: 5, 3: 5, 4: 1}, "sdxl": {1: 10, 2: 12}}
HALVINGS = {"sd1": {1: 0, 2: 1, 3: 2, 4: 3}, "sd2": {1: 0, 2: 1, 3: 2, 4: 3}, "sdxl": {1: 1, 2: 2}}


def layers(unet: nn.Module) -> dict[int, int]:
    counts = Counter()
    for transformer in spatial_transformers(unet):
        counts[transformer.depth] += len(transformer.attentions)
    return dict(counts)


@pytest.mark.parametrize("layout", LAYERS)
def test_depths_of_the_usual_layouts(layout, request):
    unet = request.getfixturevalue(layout)
    found = spatial_transformers(unet)
    assert layers(unet) == LAYERS[layout]
    assert {transformer.depth: transformer.halvings for transformer in found} == HALVINGS[layout]


def test_names_lead_to_the_modules(unet):
    found = spatial_transformers(unet)
    assert {transformer.name: transformer.module for transformer in found} == transformers(unet)
    assert {n: attn for transformer in found for n, attn in transformer.attentions.items()} == attentions(unet)
    for transformer in found:
        assert all(name.startswith(transformer.name + ".") for name in transformer.attentions)


@pytest.mark.parametrize("size", [(16, 16), (24, 40)])
def test_depths_are_ranks_of_the_grids_that_really_run(unet, size):
    grids = {}

    def watch(name):
        return lambda module, args: grids.__setitem__(name, tuple(args[0].shape[-2:]))

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in transformers(unet).items()]
    call(unet, size)
    for handle in handles:
        handle.remove()
    ranked = sorted(set(grids.values()), reverse=True)
    for transformer in spatial_transformers(unet):
        assert grids[transformer.name] == grid_at(size, transformer.halvings)
        assert transformer.depth == ranked.index(grids[transformer.name]) + 1


def test_the_middle_of_sdxl_shares_the_grid_of_its_neighbours(sdxl):
    depths = {transformer.name: transformer.depth for transformer in spatial_transformers(sdxl)}
    assert depths["middle_block.1"] == 2


def test_an_encoder_alone(unet):
    """ControlNets are copies of the encoder and the middle."""
    full = {transformer.name: transformer for transformer in spatial_transformers(unet)}
    found = spatial_transformers(Encoder(unet))
    assert found == [full[transformer.name] for transformer in found]
    assert {name.partition(".")[0] for name in full} - {t.name.partition(".")[0] for t in found} == {"output_blocks"}


def test_one_resblock_per_level_and_other_attention_places():
    unet = make_unet(**{**SD1, "num_res_blocks": [1, 2, 1, 1], "attention_resolutions": [2, 8]})
    # Only 1/2 and 1/8 have attention: these are depths 1 and 2. The middle is at 1/8 too.
    assert layers(unet) == {1: 5, 2: 1 + 2 + 1}
    assert {t.depth: t.halvings for t in spatial_transformers(unet)} == {1: 1, 2: 3}


@pytest.mark.parametrize("change", [{"resblock_updown": True}, {"conv_resample": False}], ids=str)
def test_other_ways_to_halve_the_grid(change):
    assert layers(make_unet(**{**SD1, **change})) == LAYERS["sd1"]


def test_levels_without_self_attention_do_not_count():
    """Blocks with disable_self_attn attend to the prompt in both attentions; depths are ranks among the others."""
    unet = make_unet(**{**SD1, "disable_self_attentions": [True, False, True, False]})
    assert layers(unet) == {1: 5, 2: 1}
    assert {t.depth: t.halvings for t in spatial_transformers(unet)} == {1: 1, 2: 3}
    unet = make_unet(**{**SD1, "disable_middle_self_attn": True})
    assert layers(unet) == {1: 5, 2: 5, 3: 5}
    unet = make_unet(**{**SD1, "disable_self_attentions": [True] * 4, "disable_middle_self_attn": True})
    assert layers(unet) == {}


def test_single_blocks_without_self_attention():
    unet = make_unet(**SDXL)
    unet.middle_block[1].transformer_blocks[0].disable_self_attn = True
    (middle,) = (t for t in spatial_transformers(unet) if t.name == "middle_block.1")
    assert list(middle.attentions) == ["middle_block.1.transformer_blocks.1.attn1"]


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(2, 2),
        nn.Sequential(nn.Conv2d(4, 4, 3, stride=2), nn.TransformerEncoderLayer(8, 2)),
        nn.Module(),
    ],
    ids=["linear", "transformer", "empty"],
)
def test_models_without_spatial_transformers(model):
    assert spatial_transformers(model) == []


def test_a_unet_with_another_kind_of_attention():
    unet = make_unet(**{**SD1, "use_spatial_transformer": False, "context_dim": None})
    assert spatial_transformers(unet) == []


def test_temporal_attention_is_left_out(sd1):
    """Motion modules lie beside the spatial transformers. Their blocks attend over frames, not over a grid."""

    class TemporalBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_blocks = nn.ModuleList([nn.MultiheadAttention(32, 2)])

    motion = nn.Module()
    motion.transformer_blocks = nn.ModuleList([TemporalBlock()])
    sd1.input_blocks[1].append(motion)
    try:
        assert layers(sd1) == LAYERS["sd1"]
    finally:
        del sd1.input_blocks[1][-1]


def test_looking_changes_nothing(unet):
    before = torch.get_rng_state()
    spatial_transformers(unet)  # the fixture nothing_left checks the rest
    assert torch.equal(torch.get_rng_state(), before)
