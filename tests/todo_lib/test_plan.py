"""The plan agrees with the attentions that really run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.todo_lib.unets import SD1, Encoder, at_any_size, call, counted, make_unet, patched
from todo_lib import DepthPlan, Settings, plan
from todo_lib.unet import spatial_transformers


def names_at(unet, depth):
    return {name for t in spatial_transformers(unet) if t.depth == depth for name in t.attentions}


@pytest.mark.parametrize(
    ("size", "chosen"),
    [
        ((16, 16), {"factor": 2}),
        ((24, 16), {"factor": 3, "max_depth": 2, "deeper_factor": 1.5}),
        ((16, 24), {"factor": 1, "max_depth": 4, "deeper_factor": 8}),
        ((13, 22), {"factor": 2.5, "max_depth": 3, "deeper_factor": 2}),  # halving rounds up
        ((15, 9), {"factor": 0, "deeper_factor": 0, "max_depth": 4}),
    ],
    ids=str,
)
def test_the_plan_is_what_runs(unet, size, chosen):
    depths = plan(unet, size, Settings(enabled=True, **chosen))
    with at_any_size(), patched(unet, **chosen) as patch, counted(unet) as calls:
        call(unet, size)
    assert [d.depth for d in depths] == list(range(1, len(depths) + 1))
    for d in depths:
        names = names_at(unet, d.depth)
        assert d.layers == len(names)
        assert all(calls[name] == [(math.prod(d.grid), math.prod(d.kept), math.prod(d.kept))] for name in names)
    assert patch.report.layers == {
        (d.depth, d.grid, d.kept): names_at(unet, d.depth) for d in depths if d.kept != d.grid
    }


def attention_operations(unet, size) -> int:
    """Floating point operations of all batched matrix products, as torch counts. Only attentions have such products."""
    with FlopCounterMode(display=False) as counter:
        call(unet, size)
    return counter.get_flop_counts()["Global"][torch.ops.aten.bmm]


def test_the_work_saved_is_what_torch_counts(unet):
    size = 24, 24
    chosen = {"factor": 3, "max_depth": 4, "deeper_factor": 1.5}
    depths = plan(unet, size, Settings(**chosen))
    dense = attention_operations(unet, size)
    with patched(unet, **chosen):
        saved = dense - attention_operations(unet, size)
    assert saved == 2 * sum(d.dense_work - d.work for d in depths)  # a multiply-add is two operations
    for d in depths:
        assert d.work * math.prod(d.grid) == d.dense_work * math.prod(d.kept)


def test_the_work_by_hand(sd1):
    """Like SD1 at 512 px: 5 layers of 32 channels see 64 x 64 tokens, and 32 x 32 keys with factor 2."""
    top = plan(sd1, (64, 64), Settings(factor=2))[0]
    assert top == DepthPlan(
        depth=1,
        grid=(64, 64),
        kept=(32, 32),
        layers=5,
        dense_work=5 * 2 * 4096 * 4096 * 32,
        work=5 * 2 * 4096 * 1024 * 32,
    )


@pytest.mark.parametrize(
    ("layout", "size", "chosen", "grids", "kept"),
    [
        # 1024 px, the paper's factor 2
        ("sd1", (128, 128), {"factor": 2, "max_depth": 1}, [128, 64, 32, 16], [64, 64, 32, 16]),
        # 2048 px, factor 4 and 2 below
        ("sd1", (256, 256), {"factor": 4, "max_depth": 2}, [256, 128, 64, 32], [64, 64, 64, 32]),
        ("sd2", (160, 160), {"max_depth": 4}, [160, 80, 40, 20], [40, 40, 40, 20]),  # factors 4 and 2, chosen by size
        ("sdxl", (256, 256), {"factor": 4}, [128, 64], [32, 32]),
        ("sdxl", (128, 128), {}, [64, 32], [64, 32]),
    ],
)
def test_usual_sizes(layout, size, chosen, grids, kept, request):
    depths = plan(request.getfixturevalue(layout), size, Settings(enabled=True, **chosen))
    assert [d.grid for d in depths] == [(n, n) for n in grids]
    assert [d.kept for d in depths] == [(n, n) for n in kept]


def test_wide_sizes_are_height_by_width(sd1):
    depths = plan(sd1, (64, 112), Settings(factor=2))
    assert depths[0].grid == (64, 112) and depths[0].kept == (32, 56)
    assert depths[1].grid == depths[1].kept == (32, 56)


def test_no_self_attention_no_plan():
    assert plan(nn.Linear(2, 2), (64, 64), Settings(enabled=True)) == []
    unet = make_unet(**{**SD1, "disable_self_attentions": [True] * 4, "disable_middle_self_attn": True})
    assert plan(unet, (64, 64), Settings(enabled=True)) == []


def test_an_encoder_alone(sd1):
    depths = plan(Encoder(sd1), (64, 64), Settings())
    assert [d.layers for d in depths] == [2, 2, 2, 1]


def test_the_plan_runs_nothing(sd1):
    """The grids of a 16-megapixel image are planned at once, from the modules alone."""
    with counted(sd1) as calls:
        assert plan(sd1, (512, 512), Settings(factor=8))[0].kept == (64, 64)
    assert not calls
