"""The patch beside other extensions: encoder copies in front of the U-Net, and attentions that others compute."""

from __future__ import annotations

import contextlib
import copy
import functools
from types import SimpleNamespace

import pytest
import torch
from einops import rearrange
from torch import nn

from tests.todo_lib.test_patch import Tree, tree_inputs
from tests.todo_lib.unets import SD1, Encoder, attentions, call, counted, inputs, make_unet, patched, state
from todo_lib import Patch, Settings, Step
from todo_lib.grid import kept_tokens
from todo_lib.neighbours import (
    is_computed_by_hooks,
    is_computed_differently,
    known_computations,
    replaced_by_options,
)
from todo_lib.report import Reason
from todo_lib.unet import spatial_transformers
from todo_lib.webui.hosts import unet_of

MIDDLE = "middle_block.1.transformer_blocks.0.attn1"
TOP = "input_blocks.1.1.transformer_blocks.0.attn1"


# ---- ControlNet


class Control(nn.Module):
    """A ControlNet as extensions keep it: the encoder's copy is a level deeper, and its results go into the U-Net."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.control_model = Encoder(copy.deepcopy(unet))

    def forward(self, *args):
        return self.control_model(*args)


def step(patch, unet, *controls, size=(16, 16)):
    """Run the ControlNets and then the U-Net, as ControlNet extensions do. The host tells the patch of each copy."""
    patch.before_unet(unet)
    for control in controls:
        patch.add_encoder(control.control_model)
    with torch.no_grad():
        latent, timesteps, context = inputs(unet, size)
        hint = sum(control(latent, timesteps, context).mean() for control in controls)
        return unet(latent + hint, timesteps, context)


def test_a_copy_of_the_encoder_is_downsampled_like_the_unet(sd1):
    control = Control(sd1)
    before = state(control), state(sd1)
    with patched(sd1, max_depth=2, deeper_factor=4) as patch:
        patch.add_encoder(control.control_model)
        with counted(control) as calls:
            step(patch, sd1, control)
    assert {(a.split(".")[2], *calls[a]) for a in attentions(control)} == {
        *((str(i), (256, 64, 64)) for i in (1, 2)),
        *((str(i), (64, 4, 4)) for i in (4, 5)),
        *((str(i), (16, 16, 16)) for i in (7, 8)),
        ("1", (4, 4, 4)),  # the middle block's grid
    }
    assert (state(control), state(sd1)) == before
    assert "depth 1: 16x16 tokens, keys from 8x8 (7 layers, 2 of them in ControlNet)" in str(patch.report)


def test_each_copy_is_counted_once(sd1):
    first, second = Control(sd1), Control(sd1)
    with patched(sd1) as patch:
        for _ in range(3):
            step(patch, sd1, first, second)
    assert "(9 layers, 4 of them in ControlNet)" in str(patch.report)


def test_a_copy_that_starts_in_a_later_step(sd1):
    control, position = Control(sd1), 0.0
    with patched(sd1, progress=lambda: position) as patch:
        step(patch, sd1)
        position = 0.5
        step(patch, sd1, control)
    assert "2 of 2 steps (ControlNet in 1)" in str(patch.report)


def test_steps_out_of_range_leave_the_copy_dense(sd1):
    control = Control(sd1)
    with patched(sd1, end=0.5, progress=lambda: 0.5) as patch, counted(control) as calls:
        step(patch, sd1, control)
    assert all(queries == keys for a in attentions(control) for queries, keys, _ in calls[a])


def test_a_copy_is_patched_no_longer_when_another_unet_takes_over(sd1, sdxl):
    control = Control(sd1)
    before = state(control)
    with patched(sd1) as patch:
        step(patch, sd1, control)
        patch.before_unet(sdxl)
        assert state(control) == before


@pytest.mark.parametrize("announce", ["before_unet", "add_encoder"])
def test_a_patch_that_is_not_on_takes_no_announcement(sd1, sdxl, announce):
    before = state(sd1), state(sdxl)
    patch = patched(sd1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=announce):
            getattr(patch, announce)(sdxl)
        assert (state(sd1), state(sdxl)) == before
        with patch:
            call(sd1)


def test_depths_of_a_copy_are_those_of_the_unet(sd1):
    """A smaller ControlNet may lack attentions on the largest grid, or have some where the U-Net has none."""
    fewer = make_unet(**{**SD1, "attention_resolutions": [4, 2]})
    assert {t.halvings: t.depth for t in spatial_transformers(Encoder(fewer), {0: 1, 1: 2, 2: 3, 3: 4})} == {
        1: 2,
        2: 3,
        3: 4,
    }
    assert not spatial_transformers(Encoder(fewer), {0: 1})
    control = Control(fewer)
    with patched(sd1, max_depth=2, deeper_factor=4) as patch:
        patch.add_encoder(control.control_model)
        with counted(control) as calls:
            step(patch, sd1, control)
    assert calls["control_model.input_blocks.4.1.transformer_blocks.0.attn1"] == [(64, 4, 4)]


# ---- guidance that relies on as many keys as queries


@contextlib.contextmanager
def computed_by_hooks(unet, name):
    """Perturbed-attention guidance: one hook keeps the values, another one returns identity @ values as the output.

    The output changes only in the guidance's own calls of the U-Net, but the values are taken in all calls.
    """
    attn, guiding = unet.get_submodule(name), []
    taken = {}

    def take(to_v, args, output):
        taken["values"] = output

    def perturb(attn, args, output):
        if guiding:
            return torch.einsum("ij,bjk->bik", torch.eye(output.shape[1]), taken["values"])

    handles = [attn.register_forward_hook(perturb), attn.to_v.register_forward_hook(take)]
    try:
        yield guiding
    finally:
        for handle in handles:
            handle.remove()


def test_a_layer_computed_by_hooks_is_left_alone(sd1):
    with computed_by_hooks(sd1, MIDDLE) as guiding, patched(sd1, max_depth=4) as patch, counted(sd1) as calls:
        plain = call(sd1)
        guiding.append(True)
        guided = call(sd1)
    assert calls[MIDDLE] == [(4, 4, 4)] * 2
    assert calls["input_blocks.1.1.transformer_blocks.0.attn1"] == [(256, 64, 64)] * 2
    assert patch.report.left_layers[Reason.COMPUTATION] == {MIDDLE} and len(patch.report.layers) == 3
    assert "1 layer left to another patch that computes their attention itself" in str(patch.report)
    assert not torch.equal(plain, guided)


def look(*args):
    """A hook that changes nothing."""


@pytest.mark.parametrize(
    ("hooks", "computed"),
    [
        ({"": look, "to_v": look}, True),
        ({"": look, "to_k": functools.partial(look)}, True),
        ({"": look, "to_q": look}, False),
        ({"to_k": look, "to_v": look}, False),
        ({"": look, "to_v": nn.functional.relu}, False),  # hooks of two extensions that do not know each other
        ({}, False),
    ],
)
def test_what_computing_by_hooks_is(hooks, computed):
    attn = nn.Module()
    for name in ("to_q", "to_k", "to_v"):
        attn.add_module(name, nn.Linear(1, 1))
    for name, hook in hooks.items():
        attn.get_submodule(name).register_forward_hook(hook)
    assert is_computed_by_hooks(attn) is computed


def own_forward(maps):
    """Self-attention guidance computes the middle block's attention itself and keeps the map, N x N."""

    def forward(self, x, context=None, mask=None):
        q, k, v = (
            rearrange(t, "b n (h d) -> (b h) n d", h=self.heads) for t in (self.to_q(x), self.to_k(x), self.to_v(x))
        )
        weights = (q @ k.transpose(1, 2) * self.scale).softmax(-1)
        maps.append(weights.shape[1:])
        return self.to_out(rearrange(weights @ v, "(b h) n d -> b n (h d)", h=self.heads))

    return forward


def test_a_layer_with_a_forward_of_its_own_is_left_alone(sd1):
    maps, attn = [], sd1.get_submodule(MIDDLE)
    attn.forward = own_forward(maps).__get__(attn)
    try:
        known = known_computations(spatial_transformers(sd1))
        assert [name for name, a in attentions(sd1).items() if is_computed_differently(a, known)] == [MIDDLE]
        with patched(sd1, max_depth=4) as patch, counted(sd1) as calls:
            call(sd1)
    finally:
        del attn.forward
    assert maps == [(4, 4)] and calls[MIDDLE] == [(4, 4, 4)]
    assert patch.report.left_layers[Reason.COMPUTATION] == {MIDDLE} and len(patch.report.layers) == 3


@contextlib.contextmanager
def weights_for_keys(unet):
    """Feedback-driven generation: it fixes a weight for each token of the context before these are projected.

    The attentions are wrapped within each call of the U-Net.
    """
    plain = unet.forward

    def weighted(attn):
        def forward(self, x, context=None, mask=None):
            context = torch.cat([x, x], 1)
            weights = torch.linspace(0, 1, context.shape[1])
            q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
            assert k.shape[1] == len(weights)
            return self.to_out((q @ k.transpose(1, 2) * weights).softmax(-1) @ v)

        return forward.__get__(attn)

    def forward(*args):
        for attn in attentions(unet).values():
            attn.forward = weighted(attn)
        try:
            return plain(*args)
        finally:
            for attn in attentions(unet).values():
                del attn.forward

    unet.forward = forward
    try:
        yield
    finally:
        del unet.forward


def test_attentions_replaced_within_a_call_are_left_alone(sd1):
    with weights_for_keys(sd1):
        alone = call(sd1)
        with patched(sd1, max_depth=4) as patch:
            assert torch.equal(call(sd1), alone)
    assert patch.report.left_layers[Reason.COMPUTATION] == set(attentions(sd1)) and not patch.report.layers
    assert str(patch.report) == (
        "nothing downsampled, 16 layers left to another patch that computes their attention itself"
    )


def test_wrappers_that_name_what_they_wrap_are_no_other_computation(sd1):
    """A forward that was put back by setting it stays on the module, and is no other computation, either."""
    attn, known = sd1.get_submodule(MIDDLE), known_computations(spatial_transformers(sd1))
    plain = attn.forward

    @functools.wraps(plain)
    def wrapped(*args, **kwargs):
        return plain(*args, **kwargs)

    for forward, own in [(wrapped, False), (plain, False), (lambda *args, **kwargs: plain(*args, **kwargs), True)]:
        attn.forward = forward
        assert is_computed_differently(attn, known) is own
    del attn.forward


class PassOn:
    """A wrapper that may do anything else at any time."""

    def __init__(self, plain):
        self.plain = plain

    def __call__(self, *args, **kwargs):
        return self.plain(*args, **kwargs)

    def attend(self, *args, **kwargs):
        return self.plain(*args, **kwargs)


def pass_on(plain, *args, **kwargs):
    return plain(*args, **kwargs)


def empty_cell(plain):
    def forward(*args, **kwargs):
        return plain(*args, **kwargs) if later is None else later

    if plain is None:
        later = None
    return forward


def leads_back(plain):
    def forward(*args, **kwargs):
        return plain(*args, **kwargs)

    forward.__wrapped__ = forward
    return forward


@contextlib.contextmanager
def wrapped_by(wrap, *modules):
    for attn in modules:
        attn.forward = wrap(attn.forward)
    try:
        yield
    finally:
        for attn in modules:
            del attn.forward


@pytest.mark.parametrize(
    "wrap",
    [
        lambda plain: lambda *args, **kwargs: plain(*args, **kwargs),
        lambda plain: lambda *args, plain=plain, **kwargs: plain(*args, **kwargs),
        lambda plain: functools.partial(pass_on, plain),
        PassOn,
        lambda plain: PassOn(plain).attend,
        leads_back,
    ],
    ids=["closure", "default", "partial", "object", "method", "loop"],
)
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("moving", [False, True])
def test_a_wrapper_that_does_not_name_what_it_wraps_is_left_alone(sd1, wrap, cross, moving):
    """Whether cross-attentions have it too or not: nobody can see what it will do."""
    dense, both = call(sd1), [*attentions(sd1).values(), *(attentions(sd1, "attn2").values() if cross else ())]
    with wrapped_by(wrap, *both), patched(sd1, max_depth=4, moving=moving) as patch:
        assert torch.equal(call(sd1), dense)
    assert patch.report.left_layers == {Reason.COMPUTATION: set(attentions(sd1))}


def test_a_wrapper_with_an_empty_cell(sd1):
    """It cannot be called yet, but another layer's hooks are installed all the same."""
    attn, other = sd1.get_submodule(TOP), sd1.get_submodule(TOP.replace("attn1", "attn2"))
    with wrapped_by(empty_cell, attn, other), patched(sd1) as patch:
        assert not patch.report.left_layers
    with patched(sd1) as patch:
        call(sd1)
    assert patch.report.layers


@pytest.mark.parametrize("moving", [False, True])
def test_at_least_half_are_replaced_while_a_switch_is_on(sd1, moving):
    """Some guidance returns the values themselves, with as many tokens as queries, in calls of its own."""
    active = []

    def guided(attn):
        old, to_out, to_v = attn.forward, attn.to_out, attn.to_v
        return lambda x, context=None, mask=None: to_out(to_v(x)) if active else old(x, context, mask)

    replaced = list(attentions(sd1).values())[:10]
    for attn in replaced:
        attn.forward = guided(attn)
    try:
        with patched(sd1, max_depth=4, moving=moving) as patch:
            call(sd1)
            active.append(True)
            call(sd1)
    finally:
        for attn in replaced:
            del attn.forward
    assert len(patch.report.left_layers[Reason.COMPUTATION]) == 10
    assert sum(len(names) for names in patch.report.layers.values()) == 6


def test_a_wrapper_that_stays_when_the_implementation_is_changed(sd1, monkeypatch):
    """HyperTile keeps the `forward` that a self-attention had when it was first used, whatever is chosen later."""
    wrapped = list(attentions(sd1).values())
    plain = type(wrapped[0]).forward
    with patched(sd1, max_depth=4):
        expected = call(sd1)
    kept = [SimpleNamespace(forward=attn.forward) for attn in wrapped]
    for attn, params in zip(wrapped, kept, strict=True):
        attn.forward = functools.wraps(params.forward)(
            lambda *args, params=params, **kwargs: params.forward(*args, **kwargs)
        )
    monkeypatch.setattr(type(wrapped[0]), "forward", lambda self, *args, **kwargs: plain(self, *args, **kwargs))
    try:
        with patched(sd1, max_depth=4) as patch:
            assert torch.equal(call(sd1), expected)
    finally:
        for attn in wrapped:
            del attn.forward
    assert Reason.COMPUTATION not in patch.report.left_layers


def test_steps_in_which_no_layer_runs_are_counted(sd1):
    """Caches of blocks skip layers in most steps."""
    step, whole = [0], sd1.forward
    with patched(sd1, progress=lambda: step[0] / 4) as patch:
        for step[0] in range(4):
            if step[0] % 2:
                sd1.forward = lambda x, *args: x
            patch.before_unet(sd1)
            call(sd1)
            sd1.forward = whole
    del sd1.forward
    assert "2 of 4 steps [" in str(patch.report)


# ---- Forge


@pytest.mark.parametrize(
    ("place", "registered", "found"),
    [
        (("input", 4), [], set()),
        (("input", 4), [("input", 4)], {"first", "second"}),
        (("input", 4), [("input", 4, 1)], {"second"}),
        (("input", 4), [("input", 5), ("middle", 0, 0)], set()),
        (None, [("input", 4)], set()),
    ],
)
def test_replaced_attentions_of_forge(place, registered, found):
    options = {"patches_replace": {"attn1": dict.fromkeys(registered, print)}, "block": place}
    x, context = torch.zeros(1), [torch.zeros(1)]
    names = ["first", "second"]
    assert replaced_by_options((x, context, options), {}, names) == found
    assert replaced_by_options((x,), {"context": context, "transformer_options": options}, names) == found


def test_without_forges_options_nothing_is_replaced():
    for options in ({"block": ("input", 1)}, {"patches_replace": {}, "block": ("input", 1)}):
        assert replaced_by_options((torch.zeros(1), None), {"transformer_options": options}, ["name"]) == set()


class ForgeBlocks(nn.Module):
    """A spatial transformer called Forge's way: a function registered for its block runs in place of attn1."""

    def __init__(self, transformer):
        super().__init__()
        self.transformer_blocks = transformer.transformer_blocks

    def forward(self, x, context, options):
        tokens = x.flatten(2).transpose(1, 2)
        for i, block in enumerate(self.transformer_blocks):
            attn, n = block.attn1, block.norm1(tokens)
            replacement = options.get("patches_replace", {}).get("attn1", {}).get((*options["block"], i))
            if replacement is None:
                tokens = tokens + attn(n, context=None)
            else:
                tokens = tokens + attn.to_out(replacement(attn.to_q(n), attn.to_k(n), attn.to_v(n)))
        return tokens


def test_a_replacement_sees_as_many_keys_as_queries(sd1):
    transformer = ForgeBlocks(sd1.input_blocks[1][1])
    unet = nn.Sequential(transformer)
    x = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"block": ("input", 1), "patches_replace": {"attn1": {("input", 1, 0): lambda q, k, v: v}}}
    with torch.no_grad(), patched(unet) as patch:
        replaced = unet[0](x, None, options)
        assert patch.report.left_layers == {Reason.COMPUTATION: {"0.transformer_blocks.0.attn1"}}
        assert not patch.report.layers
        unet[0](x, None, {"block": ("input", 1)})
        assert patch.report.layers
    with torch.no_grad():
        assert torch.equal(unet[0](x, None, options), replaced)


class ViewingAttention(nn.Module):
    """Forge's attention: keys and values are viewed with the batch size of the queries."""

    def __init__(self, width=8):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x, context=None, value=None):
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context if value is None else value)
        k, v = (t.view(len(q), -1, q.shape[-1]) for t in (k, v))
        return self.to_out((q @ k.transpose(1, 2)).softmax(-1) @ v)


class TilingBlocks(nn.Module):
    """reForge's HyperTile: it cuts the queries into tiles, as a larger batch, and leaves the context whole."""

    def __init__(self):
        super().__init__()
        block = nn.Module()
        block.attn1 = ViewingAttention()
        self.transformer_blocks = nn.ModuleList([block])

    def forward(self, x, tiles):
        n = x.flatten(2).transpose(1, 2)
        q = n.reshape(len(n) * tiles, -1, n.shape[-1])
        return self.transformer_blocks[0].attn1(q, context=n, value=n)


def test_tokens_whole_for_queries_in_tiles_are_left_alone():
    """Three rows of seven kept tokens cannot be split into four tiles."""
    unet = nn.Sequential(TilingBlocks())
    x = torch.randn(1, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        dense = unet[0](x, 4)
        with patched(unet, factor=2.5) as patch:
            assert torch.equal(unet[0](x, 4), dense)
        assert patch.report.left_layers[Reason.TOKENS] == {"0.transformer_blocks.0.attn1"} and not patch.report.layers
        with patched(unet, factor=2.5) as patch:
            unet[0](x, 1)
        assert patch.report.layers and Reason.TOKENS not in patch.report.left_layers


def test_the_unet_of_a_host(sd1):
    class Model:
        def __init__(self, **parts):
            self.__dict__.update(parts)

    assert unet_of(Model(model=Model(diffusion_model=sd1))) is sd1
    forge = Model(unet=Model(model=Model(diffusion_model=sd1)))
    assert unet_of(Model(forge_objects=forge)) is sd1
    assert unet_of(Model(forge_objects=None, model=Model(diffusion_model=sd1))) is sd1


def test_inputs_of_a_copy_and_the_unet_agree(sd1):
    """The tests above call both with the same arguments, so these must agree."""
    assert Control(sd1)(*inputs(sd1, (16, 16))).isfinite().all()


# ---- tokens that other code counts


def with_forward(module, forward):
    """Set a `forward` on a module for the length of a `with`."""

    @contextlib.contextmanager
    def setting():
        module.forward = forward
        try:
            yield
        finally:
            del module.forward

    return setting()


def embedded(projection, tokens):
    """ControlNet-LLLite: its own forward joins the tokens with an embedding of the whole grid."""
    embedding = torch.linspace(-1, 1, tokens)[None, :, None]
    plain = projection.forward

    def forward(x):
        return plain(x + x.mean(1, keepdim=True) * embedding[:, : x.shape[1]] + 0 * embedding)

    return with_forward(projection, forward)


@pytest.mark.parametrize("moving", [False, True])
def test_a_projection_that_counts_the_tokens_sees_all_of_them(sd1, moving):
    attn = sd1.get_submodule(TOP)
    index = kept_tokens((16, 16), (8, 8))
    with embedded(attn.to_k, 256), embedded(attn.to_v, 256):
        seen, expected = [], []
        watch = attn.to_k.register_forward_hook(lambda m, args, output: expected.append(output[:, index]))
        call(sd1)
        watch.remove()
        with patched(sd1, moving=moving) as patch:
            watch = attn.to_k.register_forward_hook(lambda m, args, output: seen.append(output))
            call(sd1)
            watch.remove()
    assert seen[0].shape[1] == 64 and TOP in patch.report.layers[1, (16, 16), (8, 8)]
    heads = slice(0, 4) if moving else slice(None)  # the first head begins with the paper's grid
    assert torch.equal(seen[0][..., heads], expected[0][..., heads])


@pytest.mark.parametrize("moving", [False, True])
def test_lora_that_wraps_a_projection(sd1, moving):
    """A LoRA changes each token by itself: the keys are those of the kept tokens, LoRA included."""
    attn = sd1.get_submodule(TOP)
    plain, down = attn.to_k.forward, torch.randn(32, 32, generator=torch.Generator().manual_seed(0)) / 8
    weight = attn.to_k.weight.detach().clone()
    with with_forward(attn.to_k, lambda x: plain(x) + x @ down.T), patched(sd1, moving=moving) as patch:
        wrapped = call(sd1)
    assert TOP in patch.report.layers[1, (16, 16), (8, 8)]
    with torch.no_grad():
        attn.to_k.weight += down
        with patched(sd1, moving=moving):
            merged = call(sd1)
        attn.to_k.weight.copy_(weight)
    assert torch.allclose(wrapped, merged, atol=1e-4)


@pytest.mark.parametrize("moving", [False, True])
def test_tokens_handed_to_a_projection_by_name(sd1, moving):
    attn = sd1.get_submodule(TOP)
    plain = type(attn.to_k).forward
    expected = call(sd1)
    attn.to_k.__class__ = type("Named", (nn.Linear,), {"forward": lambda self, input: plain(self, input)})

    class ByName(type(attn)):
        def forward(self, x, context=None, mask=None):
            k = self.to_k(input=x)
            return self.to_out(torch.softmax(self.to_q(x) @ k.transpose(1, 2), -1) @ self.to_v(x))

    before = attn.__class__
    attn.__class__ = ByName
    with patched(sd1, moving=moving):
        assert call(sd1).shape == expected.shape
    attn.__class__, attn.to_k.__class__ = before, nn.Linear


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_a_mask_keeps_all_its_keys(sd1, moving, named):
    attn = sd1.get_submodule(TOP)
    mask = torch.ones(1, 256, dtype=torch.bool)
    mask[:, 100:] = False

    def hand(module, args, kwargs):
        return ((args[0],), {"mask": mask}) if named else ((args[0], None, mask), {})

    handle = attn.register_forward_pre_hook(hand, with_kwargs=True)
    try:
        with patched(sd1, moving=moving) as patch, counted(sd1) as calls:
            masked = call(sd1)
    finally:
        handle.remove()
    assert calls[TOP] == [(256, 256, 256)]
    assert "1 layer left to another patch that hands them a mask for all their keys" in str(patch.report)
    with patched(sd1, moving=moving):
        assert not torch.equal(call(sd1), masked)


@pytest.mark.parametrize("moving", [False, True])
def test_most_self_attentions_computed_by_somebody_else(sd1, moving):
    """All self-attentions but one return as many tokens as there are values."""
    replaced = list(attentions(sd1).values())[1:]
    for attn in replaced:
        attn.forward = (lambda self, x, context=None, mask=None: self.to_out(self.to_v(x))).__get__(attn)
    try:
        with patched(sd1, moving=moving, max_depth=4) as patch:
            call(sd1)
    finally:
        for attn in replaced:
            del attn.forward
    assert len(patch.report.left_layers[Reason.COMPUTATION]) == 15
    assert {len(names) for names in patch.report.layers.values()} == {1}


def as_context(attn, context_of):
    """Give a self-attention a context made from its own tokens."""
    return attn.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "context": context_of(args[0])}), with_kwargs=True
    )


@pytest.mark.parametrize("mode", ["nearest-exact", "bilinear"])
@pytest.mark.parametrize("moving", [False, True])
def test_a_grid_of_twice_the_resolution_is_not_four_grids(sd1, moving, mode):
    """sd-webui-token-downsampling makes such a grid with a factor of 0.5."""
    attn = sd1.get_submodule(TOP)

    def enlarge(x):
        image = x.transpose(1, 2).unflatten(2, (16, 16))
        return nn.functional.interpolate(image, scale_factor=2, mode=mode).flatten(2).transpose(1, 2)

    handle = as_context(attn, enlarge)
    try:
        with patched(sd1, moving=moving) as patch, counted(sd1) as calls:
            call(sd1)
    finally:
        handle.remove()
    assert calls[TOP] == [(256, 1024, 1024)]
    assert patch.report.left_layers == {Reason.TOKENS: {TOP}}


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("moving", [False, True])
def test_four_grids_with_its_own_among_them_are_four_grids(sd1, moving, place):
    others = torch.randn(1, 3 * 256, 32, generator=torch.Generator().manual_seed(0))

    def join(x):
        before, behind = others.split([place * 256, (3 - place) * 256], 1)
        return torch.cat([before.expand(len(x), -1, -1), x, behind.expand(len(x), -1, -1)], 1)

    handle = as_context(sd1.get_submodule(TOP), join)
    try:
        with patched(sd1, moving=moving), counted(sd1) as calls:
            call(sd1, batch=2)
    finally:
        handle.remove()
    assert calls[TOP] == [(256, 256, 256)]  # 64 keys from each of the four grids


# ---- compiled modules and traces


@pytest.mark.parametrize("moving", [False, True])
def test_a_trace_can_be_made_in_a_pass(sd1, moving):
    """Sizes are tensors while torch traces."""
    transformer = sd1.input_blocks[1][1]
    x, context = torch.randn(1, 32, 16, 16), torch.randn(1, 7, 16)
    with patched(sd1, moving=moving), torch.no_grad(), pytest.warns(torch.jit.TracerWarning):
        expected = transformer(x, context)
        traced = torch.jit.trace(transformer, (x, context), check_trace=False)
        assert torch.equal(traced(x, context), expected)


def compiled_whole(unet):
    return torch.compile(unet, backend="eager")


def compiled_by_block(unet):
    for block in unet.input_blocks:
        block.compile(backend="eager")
    return unet


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [compiled_whole, compiled_by_block])
def test_a_compiled_unet_is_left_and_named(compiled):
    """Compiled code ignores hooks set after its first call, and keeps running hooks that were removed."""
    unet = compiled(make_unet(**SD1))
    results = []
    for on in (True, False, True):
        with patched(unet) if on else contextlib.nullcontext() as patch:
            results.append(call(unet))
        if on:
            left, done = patch.report.left_layers[Reason.COMPILED], set().union(*patch.report.layers.values())
            assert not left & done and len(left | done) == 5
            assert f"{len(left)} layers left dense, as they are compiled" in str(patch.report)
    on, off, again = results
    assert torch.equal(on, again)
    assert torch.allclose(off, call(make_unet(**SD1)), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", [(True, True), (False, True, True), (True, False, True)], ids=str)
def test_a_unet_that_is_compiled_inside_the_hosts_call(order):
    """Hosts compile a U-Net in its first call, when hooks are there already or not yet. It is always left and named."""
    torch._dynamo.reset()
    unet = Tree()
    arguments = tree_inputs((8, 8))
    with torch.no_grad():
        dense, compiled = unet(*arguments), None
        for on in order:
            with patched(unet) if on else contextlib.nullcontext() as patch:
                for _ in range(2):
                    if on:
                        patch.before_unet(unet)
                    if compiled is None:
                        compiled = torch.compile(unet, backend="eager")
                    assert torch.allclose(compiled(*arguments), dense, atol=1e-5)
            if on:
                assert str(patch.report) == "nothing downsampled, 1 layer left dense, as they are compiled"
    torch._dynamo.reset()


# ---- foreign modules


def test_an_encoder_without_a_middle_block(sd1):
    control = Encoder(copy.deepcopy(sd1))
    del control.middle_block
    with patched(sd1) as patch, torch.no_grad():
        patch.add_encoder(control)
        x, _, context = inputs(sd1, (16, 16))
        emb = control.time_embed(torch.zeros(1, 32))
        control.input_blocks[1](control.input_blocks[0](x, emb, context), emb, context)
    assert "(1 layer, 1 of them in ControlNet)" in str(patch.report)


@pytest.mark.parametrize("missing", ["middle_block", "input_blocks.5", "output_blocks.2"])
def test_a_distilled_unet_lacks_some_blocks(sd1, missing):
    """reForge has None in their place."""
    unet = copy.deepcopy(sd1)
    parent, _, name = missing.rpartition(".")
    unet.get_submodule(parent)._modules[name] = None
    left = [t.name for t in spatial_transformers(unet)]
    assert left == [t.name for t in spatial_transformers(sd1) if not t.name.startswith(missing + ".")]
    depths = {t.name: t.depth for t in spatial_transformers(sd1)}
    assert all(t.depth == depths[t.name] for t in spatial_transformers(unet))
    with patched(unet, max_depth=4):
        pass


class Replaced(nn.Module):
    """Layer diffusion puts a module of its own in the place of a self-attention."""

    def __init__(self, attn):
        super().__init__()
        self.inner = [attn]

    def forward(self, x, context=None, **kwargs):
        return self.inner[0](x, context)


@pytest.mark.parametrize("halved", [0, 1])
def test_a_module_in_the_place_of_a_self_attention(halved):
    """Depths are numbered by the grids, whether or not their layers can be served."""
    unet = make_unet(**SD1)
    transformers = [t for t in spatial_transformers(unet) if t.halvings == halved]
    for transformer in transformers:
        block = transformer.module.transformer_blocks[0]
        block.attn1 = Replaced(block.attn1)
    assert {t.halvings: t.depth for t in spatial_transformers(unet)} == {0: 1, 1: 2, 2: 3, 3: 4}
    names = {name for t in transformers for name in t.attentions}
    with patched(unet, max_depth=2, deeper_factor=4) as patch, counted(unet) as calls:
        call(unet)
    served = {1: (64, 4, 4), 0: (256, 64, 64)}[1 - halved]
    assert {calls[n][0] for t in spatial_transformers(unet) if t.halvings == 1 - halved for n in t.attentions} == {
        served
    }
    assert patch.report.left_layers == {Reason.COMPUTATION: names}


def test_all_self_attentions_replaced_are_still_self_attention():
    unet = make_unet(**SD1)
    for transformer in spatial_transformers(unet):
        block = transformer.module.transformer_blocks[0]
        block.attn1 = Replaced(block.attn1)
    with patched(unet, max_depth=4) as patch:
        call(unet)
    assert str(patch.report) == (
        "nothing downsampled, 16 layers left to another patch that computes their attention itself"
    )


@pytest.mark.parametrize("moving", [False, True])
def test_keys_and_values_by_one_module_are_left_alone(moving):
    unet = make_unet(**SD1)
    attn = unet.get_submodule(TOP)
    attn.to_v = attn.to_k
    dense = call(unet)
    with patched(unet, moving=moving) as patch, counted(unet) as calls:
        assert not torch.equal(call(unet), dense)  # by the other layers
    assert calls[TOP][0][1] == 256
    assert patch.report.left_layers == {Reason.COMPUTATION: {TOP}}


# ---- calls by other hands


@torch.no_grad()
@pytest.mark.parametrize("failed", [False, True])
def test_a_projection_called_outside_a_transformers_call_sees_all_tokens(sd1, failed):
    attn, x = sd1.get_submodule(TOP), torch.randn(1, 256, 32)
    dense = attn.to_k(x)
    with patched(sd1):
        if failed:
            with pytest.raises(ZeroDivisionError), attn.to_out.register_forward_pre_hook(lambda *args: 1 / 0):
                call(sd1)
        else:
            call(sd1)
        assert torch.equal(attn.to_k(x), dense)


@torch.no_grad()
def test_a_transformer_called_without_its_hooks_stays_dense(sd1):
    """Code that calls `forward` itself passes all hooks by, and what an earlier call decided has ended with it."""
    transformer, position = sd1.input_blocks[1][1], 0.0
    x, context = torch.randn(1, 32, 16, 16), torch.randn(1, 7, 16)
    dense = transformer(x, context)
    with patched(sd1, end=0.5, progress=lambda: position):
        assert not torch.equal(transformer(x, context), dense)
        position = 0.5
        assert torch.equal(transformer.forward(x, context), dense)


def test_calls_that_belong_to_no_step_stay_dense(sd1):
    dense, step = call(sd1), Step(0, 0.0)
    with Patch(sd1, Settings(enabled=True, factor=2), lambda: step) as patch:
        assert not torch.equal(call(sd1), dense)
        step = None
        patch.before_unet(sd1)
        assert torch.equal(call(sd1), dense)
    assert patch.report.steps == {0.0}


@pytest.mark.parametrize("moving", [False, True])
def test_a_spatial_transformer_called_by_names(sd1, moving):
    transformer = sd1.input_blocks[1][1]
    x, context = torch.randn(1, 32, 16, 16), torch.randn(1, 7, 16)
    with patched(sd1, moving=moving) as patch, torch.no_grad():
        expected = transformer(x, context)
        assert torch.equal(transformer(x=x, context=context), expected)
        assert not torch.equal(expected, transformer(x, context[:, :3]))
    assert patch.report.layers
