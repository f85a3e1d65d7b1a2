"""The patch on real U-Nets: its results, its steps, and that nothing of it stays behind."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import itertools
import math
import weakref
from collections import Counter

import ldm.modules.attention
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ldm.modules.attention import CrossAttention, SpatialTransformer
from ldm.modules.diffusionmodules.util import GroupNorm32
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.todo_lib.unets import (
    CONTEXT_DIM,
    SD1,
    SDXL,
    Encoder,
    at_any_size,
    attentions,
    call,
    counted,
    draw,
    grid_at,
    inputs,
    make_unet,
    patched,
    reference,
    state,
    transformers,
)
from todo_lib import Patch, Settings, Step
from todo_lib.grid import kept_size, kept_tokens
from todo_lib.report import Reason
from todo_lib.unet import spatial_transformers

# The settings of `patched`.
PAPER = {"factor": 2, "max_depth": 1, "deeper_factor": 2}


def halvings(unet: nn.Module) -> dict[int, int]:
    """Depth -> halvings of the latent, of the U-Net with this name."""
    return {1: 1, 2: 2} if len(unet.input_blocks) == 9 else {1: 0, 2: 1, 3: 2, 4: 3}


def factors(unet: nn.Module, settings: Settings) -> dict[int, float]:
    """Halvings -> factor, from one factor for each depth."""
    return {
        n: settings.factor if depth == 1 else settings.deeper_factor
        for depth, n in halvings(unet).items()
        if depth <= settings.max_depth
    }


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).float().norm() / b.float().norm()).item()


def assert_same_as_reference(unet, size, batch=1, tolerance=1e-5, **chosen):
    """The patched U-Net's output is that of the reference, where torch interpolates the context, and not dense."""
    with reference(unet, size, factors(unet, Settings(**{**PAPER, **chosen}))):
        expected = call(unet, size, batch)
    with patched(unet, **chosen):
        result = call(unet, size, batch)
    assert difference(result, expected) < tolerance
    assert difference(call(unet, size, batch), expected) > 100 * tolerance


class Tree(nn.Module):
    """The smallest model to patch: spatial transformers one after another, with the grid halved in between."""

    def __init__(self, depths: int = 1, blocks: int = 1, channels: int = 64):
        super().__init__()
        context = [CONTEXT_DIM] * blocks
        self.transformers = nn.Sequential()
        for depth in range(depths):
            if depth:
                self.transformers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
            self.transformers.append(
                SpatialTransformer(channels, 2, channels // 2, blocks, context_dim=context, use_checkpoint=False)
            )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for module in self.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            draw(self).eval()

    @property
    def input_blocks(self):
        return self.transformers

    @property
    def middle_block(self):
        return nn.Identity()

    def forward(self, x, context=None):
        for module in self.transformers:
            x = module(x, context) if isinstance(module, SpatialTransformer) else module(x)
        return x


def tree_inputs(size, batch=1, blocks=1, tokens=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 64, *size, generator=generator)
    context = torch.randn(batch, tokens, CONTEXT_DIM, generator=generator)
    return x, [context] * blocks


# ---- what is computed


@pytest.mark.parametrize("max_depth", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)], ids=str)
def test_keys_are_those_of_the_interpolated_grid(unet, size, max_depth):
    assert_same_as_reference(unet, size, max_depth=max_depth, factor=2)


@pytest.mark.parametrize(("factor", "deeper_factor"), [(3, 1.5), (1, 2), (8, 8), (math.pi, 1.25)], ids=str)
def test_factors(unet, factor, deeper_factor):
    assert_same_as_reference(unet, (16, 24), max_depth=2, factor=factor, deeper_factor=deeper_factor)


@pytest.mark.parametrize(("size", "factor"), [((13, 22), 2), ((17, 9), 1.5), ((15, 11), 5)], ids=str)
def test_odd_sizes(unet, size, factor):
    """Each grid has an odd side, and the factor divides none of them."""
    with at_any_size():
        assert_same_as_reference(unet, size, max_depth=4, factor=factor)


@pytest.mark.parametrize("size", [(11, 19), (1, 33)], ids=str)
def test_an_encoder_alone(unet, size):
    """The patch works on an encoder alone, like that of a ControlNet."""
    encoder = Encoder(unet)
    assert_same_as_reference(encoder, size, max_depth=2, factor=3)


@pytest.mark.parametrize("batch", [2, 3])
def test_batches(unet, batch):
    assert_same_as_reference(unet, (16, 16), batch, max_depth=2, factor=2)


def test_pictures_of_a_batch_do_not_mix(sd1):
    latents, timesteps, context = inputs(sd1, (16, 16), 3)
    with patched(sd1, max_depth=2), torch.no_grad():
        together = sd1(latents, timesteps, context)
        for i in range(3):
            alone = sd1(latents[i : i + 1], timesteps[i : i + 1], context[i : i + 1])
            assert difference(alone, together[i : i + 1]) < 1e-5


@settings(max_examples=40)
@given(st.tuples(st.integers(1, 20), st.integers(1, 20)), st.floats(1, 8), st.integers(1, 3))
def test_any_grid_and_factor(size, factor, batch):
    """In one spatial transformer of two blocks the kept tokens are those of todo_lib.grid, at every size."""
    tree = ANY_GRID
    x, context = tree_inputs(size, batch, 2)
    index = kept_tokens(size, (kept_size(size[0], factor), kept_size(size[1], factor)))
    with torch.no_grad():
        hooks = [
            attn.register_forward_pre_hook(
                lambda module, args, kwargs: (args, {"context": args[0][:, index]}), with_kwargs=True
            )
            for attn in attentions(tree).values()
        ]
        expected = tree(x, context)
        for hook in hooks:
            hook.remove()
        with patched(tree, factor=factor):
            assert difference(tree(x, context), expected) < 1e-5


ANY_GRID = Tree(blocks=2)


@contextlib.contextmanager
def half(unet, dtype):
    """A copy of the U-Net in another dtype, as the WebUI makes it without --no-half, on a device that can run it."""
    unet = copy.deepcopy(unet).to(dtype)
    unet.dtype = dtype
    for module in unet.modules():
        if isinstance(module, GroupNorm32):
            module.float()  # normalisation works on float32 in any case
    unet.time_embed.register_forward_pre_hook(lambda module, args: (args[0].to(dtype),))
    precision = ldm.modules.attention._ATTN_PRECISION
    ldm.modules.attention._ATTN_PRECISION = "fp16"  # the other setting mixes dtypes, which needs autocast
    arguments = [
        [t.to(dtype) for t in arg] if isinstance(arg, list) else arg.to(dtype) for arg in inputs(unet, (16, 16))
    ]
    try:
        with torch.no_grad():
            yield unet, lambda: unet(*arguments)
    except RuntimeError as error:
        if "not implemented for 'Half'" in str(error):
            pytest.skip("this PyTorch has no float16 on the CPU")
        raise
    finally:
        ldm.modules.attention._ATTN_PRECISION = precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(unet, dtype):
    with half(unet, dtype) as (unet, run):
        dense = run()
        chosen = {"max_depth": 2, "factor": 2}
        with reference(unet, (16, 16), factors(unet, Settings(**{**PAPER, **chosen}))):
            expected = run()
        with patched(unet, **chosen):
            result = run()
        assert result.dtype == dtype and result.isfinite().all()
        assert difference(result, expected) < 0.1 * difference(dense, expected)
        with patched(unet, factor=1):
            assert torch.equal(run(), dense)


def test_autocast(unet):
    """The WebUI's usual way to half precision."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dense = call(unet)
        with reference(unet, (16, 16), factors(unet, Settings(**PAPER))):
            expected = call(unet)
        with patched(unet):
            result = call(unet)
    assert difference(result, expected) < 0.1 * difference(dense, expected)


def test_inference_mode(sd1):
    with patched(sd1) as patch:
        expected = call(sd1)
        with torch.inference_mode():
            assert torch.equal(sd1(*inputs(sd1, (16, 16))), expected)
        assert torch.equal(call(sd1), expected)
        assert patch.report.layers


def test_gradients_flow():
    """Gradients matter although nobody trains under this patch: guidance extensions take them through the U-Net."""
    tree = Tree()
    x, context = tree_inputs((6, 8))
    x.requires_grad_()
    with patched(tree):
        tree(x, context).square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()


@pytest.mark.filterwarnings("ignore:torch.get_autocast_gpu_dtype")
def test_gradient_checkpointing_layout():
    """The configs of checkpoints set use_checkpoint, with which blocks run inside an autograd function."""
    unet = make_unet(**{**SD1, "use_checkpoint": True})
    assert_same_as_reference(unet, (16, 16), max_depth=2, factor=2)


@pytest.mark.parametrize("max_depth", [1, 4])
def test_factor_1_is_dense_to_the_bit(unet, max_depth):
    dense = call(unet)
    with patched(unet, factor=1, deeper_factor=1, max_depth=max_depth) as patch, Operations() as operations:
        assert torch.equal(call(unet), dense)
    assert not operations.counts["index_select"]
    assert not patch.report.layers and Reason.TOKENS not in patch.report.left_layers


def test_a_factor_that_keeps_all_is_dense_to_the_bit():
    tree = Tree()
    x, context = tree_inputs((1, 1))
    with torch.no_grad():
        dense = tree(x, context)
        with patched(tree, factor=8) as patch:
            assert torch.equal(tree(x, context), dense)
    assert not patch.report.layers


def test_before_and_after_are_the_same_to_the_bit(unet):
    before = call(unet)
    with patched(unet, max_depth=4):
        during = call(unet)
    assert torch.equal(call(unet), before)
    assert difference(during, before) > 1e-2


def test_the_random_state_is_not_touched(sd1):
    before = torch.get_rng_state()
    with patched(sd1):
        call(sd1)
    assert torch.equal(torch.get_rng_state(), before)


# ---- which keys and values


@pytest.mark.parametrize("max_depth", [1, 2, 3, 4])
def test_queries_stay_whole_and_keys_are_few(unet, max_depth):
    size = (24, 16)
    chosen = {"max_depth": max_depth, "factor": 3, "deeper_factor": 1.5}
    with patched(unet, **chosen) as patch, counted(unet) as calls:
        call(unet, size)
    factor_of = factors(unet, Settings(**{**PAPER, **chosen}))
    downsampled = set()
    for transformer in spatial_transformers(unet):
        height, width = grid_at(size, transformer.halvings)
        factor = factor_of.get(transformer.halvings, 1)
        keys = math.floor(height / factor) * math.floor(width / factor)
        for name in transformer.attentions:
            assert calls[name] == [(height * width, keys, keys)]
            if factor > 1:
                downsampled.add(name)
    assert set().union(*patch.report.layers.values()) == downsampled
    assert Reason.TOKENS not in patch.report.left_layers


def test_cross_attention_is_left_alone(unet):
    """Cross-attention is left alone even if the prompt has as many tokens as the grid."""
    latent, timesteps, context = inputs(unet, (16, 16))
    prompt = torch.randn(1, 256, CONTEXT_DIM)
    context = [prompt] * len(context) if isinstance(context, list) else prompt
    with patched(unet, max_depth=4), counted(unet) as calls, torch.no_grad():
        unet(latent, timesteps, context)
    assert {counts[1:] for name in attentions(unet, "attn2") for counts in calls[name]} == {(256, 256)}


def test_blocks_without_self_attention_are_left_alone():
    unet = make_unet(
        **{**SD1, "disable_self_attentions": [True, False, False, False], "disable_middle_self_attn": True}
    )
    latent, timesteps, _ = inputs(unet, (16, 16))
    prompt = torch.randn(1, 64, CONTEXT_DIM)  # as many tokens as the grid at 1/2
    with patched(unet, max_depth=1) as patch, counted(unet) as calls, torch.no_grad():
        unet(latent, timesteps, prompt)
    keys = {name: calls[name][0][1] for name in attentions(unet)}
    # Depth 1 is the grid at 1/2: 8 x 8 tokens, keys from 4 x 4.
    assert Counter(keys.values()) == {64: 5 + 1, 16: 5 + 5}  # 1/4 has 4 x 4 tokens and stays whole
    assert patch.report.layers.keys() == {(1, (8, 8), (4, 4))}
    assert Reason.TOKENS not in patch.report.left_layers


@contextlib.contextmanager
def handed(tree, context):
    """Give every self-attention this context, as reference-style extensions do."""
    handles = [
        attn.register_forward_pre_hook(lambda module, args, kwargs: (args, {"context": context}), with_kwargs=True)
        for attn in attentions(tree).values()
    ]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("first", ["patch", "other"])
@torch.no_grad()
def test_context_of_whole_grids_is_downsampled_grid_by_grid(k, first):
    tree = Tree()
    height, width = 7, 10
    x, prompt = tree_inputs((height, width), 2)
    grids = torch.randn(2, k * height * width, 64)
    small = [
        F.interpolate(grid.transpose(1, 2).unflatten(2, (height, width)), (3, 5), mode="nearest-exact").flatten(2)
        for grid in grids.split(height * width, 1)
    ]
    with handed(tree, torch.cat(small, 2).transpose(1, 2).contiguous()):
        expected = tree(x, prompt)
    with contextlib.ExitStack() as stack:
        parts = [patched(tree), handed(tree, grids)]
        for part in parts if first == "patch" else reversed(parts):
            stack.enter_context(part)
        calls = stack.enter_context(counted(tree))
        assert difference(tree(x, prompt), expected) < 1e-5
    (name,) = attentions(tree)
    assert calls[name] == [(70, k * 15, k * 15)]
    assert parts[0].report.layers == {(1, (7, 10), (3, 5)): {name}}
    assert Reason.TOKENS not in parts[0].report.left_layers


@torch.no_grad()
def test_the_number_of_grids_may_change_from_call_to_call():
    tree = Tree()
    x, prompt = tree_inputs((6, 8))
    with patched(tree), counted(tree) as calls:
        for k in (1, 3, 2, 1):
            with handed(tree, torch.randn(1, k * 48, 64)):
                tree(x, prompt)
        tree(x, prompt)
    (counts,) = (calls[name] for name in attentions(tree))
    assert counts == [(48, k * 12, k * 12) for k in (1, 3, 2, 1, 1)]


@pytest.mark.parametrize("tokens", [1, 7, 69, 71, 77, 139])
@torch.no_grad()
def test_any_other_context_is_left_alone(tokens):
    tree = Tree()
    x, prompt = tree_inputs((7, 10))
    with handed(tree, torch.randn(1, tokens, 64)):
        dense = tree(x, prompt)
        with patched(tree) as patch:
            assert torch.equal(tree(x, prompt), dense)
        assert not patch.report.layers and patch.report.left_layers[Reason.TOKENS] == set(attentions(tree))
        # Outside its steps the patch leaves no layer to others.
        with patched(tree, end=0) as patch:
            assert torch.equal(tree(x, prompt), dense)
        assert Reason.TOKENS not in patch.report.left_layers


@torch.no_grad()
def test_every_depth_counts_in_its_own_grids():
    """256 tokens are one grid at depth 1 and four at depth 2."""
    tree = Tree(depths=2)
    names = list(attentions(tree))
    x, prompt = tree_inputs((16, 16))
    with handed(tree, torch.randn(1, 256, 64)), patched(tree, max_depth=2, factor=4), counted(tree) as calls:
        tree(x, prompt)
    assert calls[names[0]] == [(256, 16, 16)]  # one grid of 16 x 16, keys from 4 x 4
    assert calls[names[1]] == [(64, 256, 256)]  # four grids of 8 x 8, or one of 16 x 16: left alone


@torch.no_grad()
def test_keys_and_values_from_different_tokens():
    """A hypernetwork gives each projection its own input, and each input is downsampled."""
    tree = Tree()
    (attn,) = attentions(tree).values()
    x, prompt = tree_inputs((6, 8))
    index = kept_tokens((6, 8), (3, 4))

    def attend(x, context=None, keep=slice(None), mask=None):
        q, k, v = attn.to_q(x), attn.to_k((x * 1.5)[:, keep]), attn.to_v((x - 1)[:, keep])
        return attn.to_out(F.scaled_dot_product_attention(q, k, v))

    def computed_by(attend):
        attn.__class__ = type(
            "Attention", (CrossAttention,), {"forward": lambda self, *args, **kw: attend(*args, **kw)}
        )

    computed_by(functools.partial(attend, keep=index))
    expected = tree(x, prompt)
    computed_by(attend)
    for _ in range(2):
        with patched(tree):
            assert difference(tree(x, prompt), expected) < 1e-5
            assert difference(tree(x, prompt), expected) < 1e-5


@torch.no_grad()
def test_any_attention_implementation(sd1):
    """The host replaces the attentions' forward. Any replacement computes with the smaller number of keys."""

    def sdp(attn):
        def forward(x, context=None, mask=None):
            context = x if context is None else context
            q, k, v = (p.unflatten(2, (attn.heads, -1)).transpose(1, 2) for p in (
                attn.to_q(x), attn.to_k(context), attn.to_v(context)))  # fmt: skip
            return attn.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

        return forward

    changed = [*attentions(sd1).values(), *attentions(sd1, "attn2").values()]
    with patched(sd1, max_depth=2):
        expected = call(sd1)
    for attn in changed:
        attn.forward = sdp(attn)
    with patched(sd1, max_depth=2):
        result = call(sd1)
    for attn in changed:
        del attn.forward
    assert difference(result, expected) < 1e-4


# ---- beside other patches


def tiled(attend, tiles):
    """Cut the tokens into strips and move the strips into the batch, as HyperTile does."""

    def forward(x, context=None, mask=None):
        batch = x.shape[0]
        x = x.unflatten(1, (tiles, -1)).flatten(0, 1)
        return attend(x).unflatten(0, (batch, tiles)).flatten(1, 2)

    return forward


def merged(attend, every):
    """Merge runs of neighbouring tokens before the attention and spread its result over them, as ToMe does."""

    def forward(x, context=None, mask=None):
        y = x.unflatten(1, (-1, every)).mean(2)
        return attend(y).repeat_interleave(every, 1)

    return forward


@pytest.mark.parametrize("other", [lambda attend: tiled(attend, 4), lambda attend: merged(attend, 2)], ids=["t", "m"])
@pytest.mark.parametrize("first", ["patch", "other"])
def test_tiles_and_merged_tokens_are_left_to_the_other_patch(sd1, other, first):
    top = {name: attn for t in spatial_transformers(sd1) if t.depth == 1 for name, attn in t.attentions.items()}

    @contextlib.contextmanager
    def others():
        for attn in top.values():
            attn.forward = other(attn.forward)
        yield
        for attn in top.values():
            del attn.forward

    with others():
        alone = call(sd1)
    with contextlib.ExitStack() as stack:
        parts = [patched(sd1), others()]
        for part in parts if first == "patch" else reversed(parts):
            stack.enter_context(part)
        assert torch.equal(call(sd1), alone)
    assert parts[0].report.left_layers[Reason.TOKENS] == set(top) and not parts[0].report.layers

    # At depth 2 nothing is tiled or merged: only that depth is downsampled.
    with others(), patched(sd1, max_depth=2) as patch, counted(sd1) as calls:
        call(sd1)
    assert patch.report.left_layers[Reason.TOKENS] == set(top)
    assert patch.report.layers.keys() == {(2, (8, 8), (4, 4))}
    for transformer in spatial_transformers(sd1):
        if transformer.depth == 2:
            assert all(calls[name] == [(64, 16, 16)] for name in transformer.attentions)


def test_a_grid_that_is_resized_inside_the_unet(unet):
    """Extensions may shrink the grid inside the U-Net. The patch has to use the grid of each call."""
    encoder = Encoder(unet)
    place = 3 if len(unet.input_blocks) == 12 else 4  # in front of the first smaller level, or right in it
    handle = encoder.input_blocks[place].register_forward_pre_hook(
        lambda module, args: (F.interpolate(args[0], scale_factor=0.75), *args[1:])
    )
    grids = {}
    watches = [
        module.register_forward_pre_hook(lambda m, args, name=name: grids.update({name: tuple(args[0].shape[-2:])}))
        for name, module in transformers(encoder).items()
    ]
    try:
        with patched(encoder, max_depth=4) as patch, counted(encoder) as calls:
            call(encoder, (32, 16))
    finally:
        for hook in (handle, *watches):
            hook.remove()
    assert Reason.TOKENS not in patch.report.left_layers
    assert (12, 6) in grids.values()  # the grid was resized
    for name, attn_calls in calls.items():
        if name.endswith("attn1"):
            height, width = grids[name.partition(".transformer_blocks")[0]]
            keys = max(1, height // 2) * max(1, width // 2)
            assert attn_calls == [(height * width, keys, keys)]


def test_every_call_has_its_own_size(sd1):
    """Tiled upscalers change the tile size within one pass, and later come back to the first size."""
    sizes = [(16, 16), (8, 24), (24, 8), (16, 16)]
    expected = []
    for size in sizes:
        with reference(sd1, size, {0: 2}):
            expected.append(call(sd1, size))
    with patched(sd1) as patch:
        for size, result in zip(sizes, expected, strict=True):
            assert difference(call(sd1, size), result) < 1e-5
    assert {grid for _, grid, _ in patch.report.layers} == set(sizes)


# ---- factor 0


def on_meta(unet, *sizes, **chosen):
    """For each size the number of keys at each depth, in one pass with these latents of (H, W).

    On the meta device a U-Net computes shapes alone, however large they are. Tensors have no values there.
    Reading a value, which on a GPU would wait for the device, raises.
    """
    unet = copy.deepcopy(unet).to("meta")
    _, timesteps, context = inputs(unet, (8, 8))
    context = [t.to("meta") for t in context] if isinstance(context, list) else context.to("meta")
    with patched(unet, **chosen) as patch, counted(unet) as calls, torch.no_grad():
        for size in sizes:
            unet(torch.empty(1, 4, *size, device="meta"), timesteps.to("meta"), context)
    assert Reason.TOKENS not in patch.report.left_layers
    found = []
    for i in range(len(sizes)):
        keys = {}
        for transformer in spatial_transformers(unet):
            keys.setdefault(transformer.depth, set()).update(calls[name][i][1] for name in transformer.attentions)
        assert all(len(counts) == 1 for counts in keys.values())
        found.append([keys[depth].pop() for depth in sorted(keys)])
    return found


@pytest.mark.parametrize(
    ("layout", "size", "steps", "keys"),
    [
        ("sd1", (64, 64), 20, [64 * 64, 32 * 32, 16 * 16, 8 * 8]),
        ("sd1", (128, 128), 20, [40 * 40, 40 * 40, 32 * 32, 16 * 16]),
        ("sd1", (128, 128), 8, [64 * 64, 64 * 64, 32 * 32, 16 * 16]),
        ("sd1", (256, 256), None, [40 * 40, 40 * 40, 40 * 40, 32 * 32]),
        ("sd1", (96, 160), 12, [40 * 64, 40 * 64, 24 * 40, 12 * 20]),
        ("sdxl", (256, 256), 4, [80 * 80, 64 * 64]),
        ("sdxl", (256, 256), 6, [64 * 64, 64 * 64]),
        ("sdxl", (256, 256), 30, [40 * 40, 40 * 40]),
    ],
    ids=str,
)
def test_factor_0_chooses_by_the_size_of_each_depth(layout, size, steps, keys, request):
    unet = request.getfixturevalue(layout)
    assert on_meta(unet, size, factor=0, deeper_factor=0, max_depth=4, steps=steps) == [keys]


def test_factor_0_stops_at_max_depth_and_follows_the_size(sd1):
    """A tiled upscaler may have several sizes in one pass."""
    small, big = [40 * 40, 40 * 40, 32 * 32, 16 * 16], [40 * 40, 40 * 40, 64 * 64, 32 * 32]
    sizes = (128, 128), (256, 256), (128, 128)
    assert on_meta(sd1, *sizes, factor=0, deeper_factor=0, max_depth=2) == [small, big, small]
    assert on_meta(sd1, (256, 256), factor=0, max_depth=1) == [[40 * 40, 128 * 128, 64 * 64, 32 * 32]]


@pytest.mark.parametrize("factor", [0, 1])
def test_nothing_is_installed_for_a_latent_that_stays_whole(sd1, factor):
    before, dense = state(sd1), call(sd1, (32, 32))
    settings = Settings(enabled=True, factor=factor)
    with Patch(sd1, settings, lambda: Step(0, 0.0), steps=1, latent_size=(64, 64)) as patch:
        assert state(sd1) == before
        patch.before_unet(sd1)
        patch.add_encoder(Encoder(sd1))
        assert state(sd1) == before and torch.equal(call(sd1, (32, 32)), dense)
    assert str(patch.report) == "nothing downsampled, the factor is 1 at this size"
    with Patch(sd1, settings, lambda: Step(0, 0.0), steps=1, latent_size=(96, 96)):
        assert (state(sd1) == before) is (factor == 1)


# ---- cost


class Operations(TorchDispatchMode):
    """Counts every tensor operation by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def operations(unet, size=(16, 16)):
    with Operations() as counter:
        call(unet, size)
    return counter.counts


@pytest.mark.parametrize("max_depth", [1, 2, 4])
def test_two_gathers_per_self_attention_and_nothing_else(unet, max_depth):
    size = 24, 24  # the deepest grid is 3 x 3, with keys from 2 x 2: torch treats a single key in another way
    dense = operations(unet, size)
    with patched(unet, max_depth=max_depth, factor=1.5, deeper_factor=1.5):
        call(unet, size)  # this call makes the indices
        added = operations(unet, size)
    added.subtract(dense)
    in_range = sum(len(t.attentions) for t in spatial_transformers(unet) if t.depth <= max_depth)
    assert {name: n for name, n in added.items() if n} == {"index_select": 2 * in_range}


def test_indices_are_made_once_per_grid(sd1):
    dense = operations(sd1)
    with patched(sd1, max_depth=2) as patch:
        first, second = operations(sd1), operations(sd1)
    first.subtract(second)
    assert first["stack"] == 2  # the parts of the index, for each of two sizes
    assert not (second - dense).keys() - {"index_select"}
    assert len(patch.report.layers) == 2


def test_no_operation_waits_for_the_device(sd1):
    with patched(sd1, max_depth=4):
        seen = operations(sd1)
    assert not seen.keys() & {
        "_local_scalar_dense",
        "item",
        "nonzero",
        "is_nonzero",
        "equal",
        "unique",
        "masked_select",
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_no_synchronisation_on_a_gpu(sd1):
    unet = copy.deepcopy(sd1).cuda()
    arguments = [arg.cuda() for arg in inputs(unet, (16, 16))]
    with torch.no_grad():
        unet(*arguments)
        with patched(unet, max_depth=4):
            mode = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")
            try:
                unet(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode(mode)


# ---- steps


@pytest.mark.parametrize(
    ("start", "end", "active"),
    [
        (0, 1, [0, 1, 2, 3, 4]),
        (0, 0.4, [0, 1]),  # i / n == end is not downsampled
        (0.4, 1, [2, 3, 4]),  # i / n == start is
        (0.2, 0.6, [1, 2]),
        (0.21, 0.59, [2]),
        (0.5, 0.5, []),
        (0, 0, []),
        (1, 1, []),
    ],
)
@torch.no_grad()
def test_steps(start, end, active):
    tree = Tree()
    x, context = tree_inputs((8, 8))
    dense = tree(x, context)
    position = None
    with patched(tree, start=start, end=end, progress=lambda: position) as patch:
        for i in range(5):
            position = i / 5
            for _ in range(2):  # second-order samplers call twice in a step
                assert torch.equal(tree(x, context), dense) == (i not in active)
    assert patch.report.steps == {i / 5 for i in range(5)}
    assert patch.report.active_steps == {i / 5 for i in active}


def test_the_position_is_asked_for_at_every_call(sd1):
    asked = []

    def progress():
        asked.append(len(asked))
        return 0.5

    with patched(sd1, progress=progress, max_depth=1):
        assert not asked  # nothing is asked before the U-Net runs
        call(sd1, (8, 8))
        first = len(asked)
        assert first >= 5  # by each spatial transformer at depth 1
        call(sd1, (8, 8))
        assert len(asked) == 2 * first
    call(sd1, (8, 8))
    assert len(asked) == 2 * first


def test_steps_out_of_range_cost_nothing(sd1):
    dense = operations(sd1)
    with patched(sd1, end=0.5, max_depth=4, progress=lambda: 0.5):
        assert operations(sd1) == dense


# ---- the life of the patch


def test_while_on_only_forward_hooks_are_there(unet):
    before = state(unet)
    with patched(unet, max_depth=4):
        during = state(unet)
    for name, (kind, keys, hooks, parts) in during.items():  # fields as in unets.state
        assert (kind, keys, parts) == (before[name][0], before[name][1], before[name][3])
        assert {key for key in hooks if hooks[key] != before[name][2][key]} <= {
            "_forward_pre_hooks",
            "_forward_pre_hooks_with_kwargs",
            "_forward_hooks",
            "_forward_hooks_with_kwargs",
            "_forward_hooks_always_called",
        }
    assert state(unet) == before


def test_nothing_is_installed_before_or_after(sd1):
    before = state(sd1)
    patch = patched(sd1)
    assert state(sd1) == before
    with patch:
        assert state(sd1) != before
    assert state(sd1) == before


def test_a_patch_can_be_used_again(sd1):
    patch = patched(sd1)
    with patch:
        first = call(sd1)
    dense = call(sd1)
    with patch:
        assert torch.equal(call(sd1), first)
    assert torch.equal(call(sd1), dense) and not torch.equal(dense, first)


def test_nothing_is_installed_below_max_depth(sd1):
    with patched(sd1, max_depth=1):
        hooked = {name for name, module in sd1.named_modules() if module._forward_pre_hooks or module._forward_hooks}
    tops = [t for t in spatial_transformers(sd1) if t.depth == 1]
    parts = {f"{name}{part}" for t in tops for name in t.attentions for part in ("", ".to_k", ".to_v")}
    assert hooked == parts | {t.name for t in tops}


class Stop(Exception):
    pass


@pytest.mark.parametrize("part", ["to_q", "to_k", "to_v", "to_out"])
@pytest.mark.parametrize("place", ["input_blocks.1.1", "middle_block.1", "output_blocks.11.1"])
def test_an_exception_inside_the_unet(sd1, part, place):
    module = sd1.get_submodule(f"{place}.transformer_blocks.0.attn1.{part}")
    before, dense = state(sd1), call(sd1, (8, 8))

    def stop(module, args):
        raise Stop

    with pytest.raises(Stop), patched(sd1, max_depth=4):
        handle = module.register_forward_pre_hook(stop)
        try:
            call(sd1, (8, 8))
        finally:
            handle.remove()
    assert state(sd1) == before
    assert torch.equal(call(sd1, (8, 8)), dense)


def test_an_exception_that_the_host_survives(sd1):
    """The patch works on when the host runs out of memory and goes on with a smaller batch in the same pass."""
    fail = True

    def stop(module, args):
        if fail:
            raise Stop

    handle = sd1.input_blocks[1][1].transformer_blocks[0].attn1.to_v.register_forward_pre_hook(stop)
    try:
        with patched(sd1):
            with pytest.raises(Stop):
                call(sd1, batch=2)
            fail = False
            result = call(sd1)
    finally:
        handle.remove()
    with patched(sd1):
        assert torch.equal(call(sd1), result)


@torch.no_grad()
def test_after_an_exception_the_same_tensor_with_new_content():
    """A tensor with new content is not mistaken for the old one, whose keys were being made."""
    tree = Tree()
    (attn,) = attentions(tree).values()
    tokens = torch.randn(1, 48, 64)
    new = torch.randn(1, 48, 64)
    with patched(tree, factor=2):
        tree(*tree_inputs((6, 8)))  # the patch learns the grid
        expected = attn(new.clone())
        attn.to_k(tokens)  # and then something fails before to_v
        tokens.copy_(new)
        assert torch.equal(attn(tokens), expected)


@pytest.mark.parametrize("order", list(itertools.permutations(["before", "during", "patch"])), ids="-".join)
def test_foreign_hooks_are_removed_in_any_order(sd1, order):
    """Other extensions set hooks before and during the patch, and remove them in any order. Their hooks always run."""
    ran = []
    modules = [
        sd1.input_blocks[1][1],
        *(getattr(attn, p) for attn in attentions(sd1).values() for p in ("to_k", "to_v")),
    ]

    def hook_all(name):
        def pre(module, args):
            ran.append(name)

        def post(module, args, kwargs, output):
            ran.append(name)

        return [m.register_forward_pre_hook(pre) for m in modules] + [
            m.register_forward_hook(post, with_kwargs=True) for m in modules
        ]

    clean, dense = state(sd1), call(sd1, (8, 8))
    handles = {"before": hook_all("before")}
    patch = patched(sd1, max_depth=4)
    patch.__enter__()
    handles["during"] = hook_all("during")
    for i, gone in enumerate(order):
        downsampled = "patch" in order[i:]
        ran.clear()
        assert torch.equal(call(sd1, (8, 8)), dense) != downsampled
        assert set(ran) == set(order[i:]) - {"patch"}
        assert all(ran.count(name) == 2 * len(modules) for name in set(ran))
        if gone == "patch":
            patch.__exit__(None, None, None)
        else:
            for handle in handles[gone]:
                handle.remove()
    assert state(sd1) == clean


@pytest.mark.parametrize("first_out", ["inner", "outer"])
def test_two_patches_at_once(sd1, first_out):
    """The second patch finds tokens that are no grid any more, and leaves them alone."""
    clean, dense = state(sd1), call(sd1)
    outer, inner = patched(sd1, factor=2), patched(sd1, factor=4, max_depth=2)
    outer.__enter__()
    by_outer = call(sd1)
    inner.__enter__()
    with counted(sd1) as calls:
        call(sd1)
    depth = {name: t.depth for t in spatial_transformers(sd1) for name in t.attentions}
    assert {calls[name][0] for name in depth if depth[name] == 1} == {(256, 64, 64)}
    assert {calls[name][0] for name in depth if depth[name] == 2} == {(64, 16, 16)}
    assert inner.report.left_layers[Reason.TOKENS] == {name for name in depth if depth[name] == 1}
    if first_out == "inner":
        inner.__exit__(None, None, None)
        assert torch.equal(call(sd1), by_outer)
        outer.__exit__(None, None, None)
    else:
        outer.__exit__(None, None, None)
        with counted(sd1) as calls:
            call(sd1)
        assert {calls[name][0] for name in depth if depth[name] == 1} == {(256, 16, 16)}
        inner.__exit__(None, None, None)
    assert torch.equal(call(sd1), dense)
    assert state(sd1) == clean


def test_moving_to_another_unet(sd1, sdxl):
    """A refiner takes over in the middle of a pass."""
    clean = state(sd1), state(sdxl)
    dense = call(sd1), call(sdxl)
    with patched(sd1) as patch:
        call(sd1)
        patch.before_unet(sdxl)
        assert state(sd1) == clean[0] and patch._unet is sdxl
        assert torch.equal(call(sd1), dense[0])
        with counted(sdxl) as calls:
            assert not torch.equal(call(sdxl), dense[1])
        for transformer in spatial_transformers(sdxl):
            if transformer.depth == 1:
                assert all(calls[name] == [(64, 16, 16)] for name in transformer.attentions)
        patch.before_unet(sd1)
        assert state(sdxl) == clean[1]
        assert not torch.equal(call(sd1), dense[0])
    assert (state(sd1), state(sdxl)) == clean
    assert patch.report.layers.keys() == {(1, (16, 16), (8, 8)), (1, (8, 8), (4, 4))}


def test_moving_to_a_model_without_self_attention(sd1):
    with patched(sd1) as patch:
        patch.before_unet(nn.Linear(2, 2))
        assert patch.report.transformers == 0
        patch.before_unet(sd1)
        call(sd1, (8, 8))
    assert patch.report.transformers == 16


def test_settings_may_come_as_they_are(sdxl):
    """The patch ignores `enabled` and `passes`: these are the caller's business."""
    dense = call(sdxl)
    with Patch(sdxl, Settings(enabled=False, factor=2, passes="hires"), lambda: Step(0, 0.0)):
        assert not torch.equal(call(sdxl), dense)


def test_the_patch_keeps_no_tokens(sd1):
    """Tensors of a call are freed with it, because the patch is there to save memory."""
    seen = []
    module = sd1.input_blocks[1][1].transformer_blocks[0].attn1.to_k
    with patched(sd1):
        handle = module.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(args[0])))
        call(sd1, (8, 8))
        handle.remove()
        gc.collect()
        assert seen and all(ref() is None for ref in seen)


def test_sdxl_blocks_are_all_downsampled():
    """Every block of a deeper transformer is downsampled, not only the first one."""
    unet = make_unet(**{**SDXL, "transformer_depth": 3, "context_dim": [CONTEXT_DIM] * 3})
    with patched(unet) as patch:
        call(unet)
    ((key, names),) = patch.report.layers.items()
    assert key == (1, (8, 8), (4, 4)) and len(names) == 15
