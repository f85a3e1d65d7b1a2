"""The plan agrees with the attentions that really run, and the work with what torch counts."""

from __future__ import annotations

import gc
import importlib
import math
import threading
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.todo_lib.unets import SD1, Encoder, at_any_size, call, counted, make_unet, patched
from todo_lib import DepthPlan, Settings, plan
from todo_lib.plan import unet_work
from todo_lib.unet import spatial_transformers

plan_module = importlib.import_module("todo_lib.plan")  # the package has the function by this name


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


# ---- the work of a whole U-Net call


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


# ---- layers that are not torch's, or whose weights are packed


class Linear(nn.Module):
    """Like Forge's: no kind of torch's."""

    def __init__(self, layer, weight):
        super().__init__()
        self.in_features, self.out_features, self.weight = layer.in_features, layer.out_features, weight


class LinearOfPackedWeights(nn.Module):
    """Like Forge's for bitsandbytes, which knows the shape by its weight alone."""

    def __init__(self, layer, weight):
        super().__init__()
        self.weight = SimpleNamespace(shape=weight.shape, quant_state=SimpleNamespace(shape=layer.weight.shape))


def packed(layer):
    """Two 4-bit weights in each byte."""
    return torch.zeros(layer.weight.numel() // 2, 1, dtype=torch.uint8)


class Packed4bit(nn.Linear):
    """Like bitsandbytes' own."""

    def __init__(self, layer, weight):
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)


@pytest.mark.parametrize(
    ("kind", "pack"),
    [
        (Linear, lambda layer: layer.weight),
        (Linear, packed),
        (Packed4bit, packed),
        (LinearOfPackedWeights, packed),
        (LinearOfPackedWeights, lambda layer: layer.weight),
    ],
)
def test_other_linear_layers_count_the_same(kind, pack):
    unet = make_unet(**SD1)
    size, settings = (64, 64), Settings(factor=2)
    expected = plan(unet, size, settings), unet_work(unet, size)
    for module in list(unet.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(module, name, kind(layer, pack(layer)))
    assert (plan(unet, size, settings), unet_work(unet, size)) == expected


# ---- the walk is kept


def test_a_known_unet_is_not_walked_through_again(monkeypatch):
    unet = make_unet(**SD1)
    expected = plan(unet, (64, 64), Settings())
    monkeypatch.setattr(plan_module, "_walk", None)
    assert plan(unet, (64, 64), Settings()) == expected
    assert unet_work(unet, (64, 64)) > 0


def test_modules_that_come_go_or_are_replaced_are_seen():
    unet = make_unet(**SD1)
    block = unet.input_blocks[1]
    layers = [plan(unet, (64, 64), Settings())[0].layers]
    for change in (
        lambda: setattr(block[1].transformer_blocks[0], "attn1", nn.Identity()),
        lambda: block.append(make_unet(**SD1).input_blocks[1][1]),
        lambda: block.__delitem__(len(block) - 1),
        lambda: unet.input_blocks.__setitem__(2, make_unet(**SD1).input_blocks[1]),
    ):
        change()
        layers.append(plan(unet, (64, 64), Settings())[0].layers)
    assert layers == [5, 4, 5, 4, 4]


def test_nothing_keeps_a_unet_alive():
    gc.collect()
    before = len(plan_module._KNOWN)
    unet = make_unet(**SD1)
    plan(unet, (64, 64), Settings())
    gone = weakref.ref(unet)
    del unet
    gc.collect()
    assert gone() is None
    assert len(plan_module._KNOWN) == before


def test_another_thread_may_change_the_modules_meanwhile():
    """AnimateDiff puts its motion modules in while a page may ask for a plan."""
    unet, more = make_unet(**SD1), make_unet(**SD1).input_blocks[1][1]
    blocks = [*unet.input_blocks[1:], *unet.output_blocks]
    stop = threading.Event()

    def change():
        while not stop.is_set():
            for block in blocks:
                block.append(more)
            for block in blocks:
                del block[len(block) - 1]

    thread = threading.Thread(target=change)
    thread.start()
    try:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            plan(unet, (64, 64), Settings())
            unet_work(unet, (64, 64))
    finally:
        stop.set()
        thread.join()
    assert plan(unet, (64, 64), Settings())[0].layers == 5
