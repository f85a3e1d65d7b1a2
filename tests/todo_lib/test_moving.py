"""The moving grid: other tokens become keys at each sampling step and in each attention head."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.todo_lib.unets import Encoder, attentions, call, inputs, patched, state
from todo_lib.grid import head_offset, kept_rows, kept_size, kept_tokens, offset, places_of
from todo_lib.unet import spatial_transformers

TOP = "input_blocks.1.1.transformer_blocks.0.attn1"


# ---- the order of the offsets


@pytest.mark.parametrize("places", range(1, 9))
def test_each_offset_comes_once_before_any_comes_again(places):
    order = [offset(number, places) for number in range(2 * places**2)]
    assert order[: places**2] == order[places**2 :]
    assert set(order) == {(row, column) for row in range(places) for column in range(places)}


@pytest.mark.parametrize("places", range(2, 9))
def test_neighbours_in_time_lie_far_apart(places):
    for number in range(places**2):
        row, next_row = offset(number, places)[0], offset(number + 1, places)[0]
        assert row != next_row
        assert len({offset(number + i, places)[0] for i in range(places)}) == places


def test_two_places_are_an_ordered_dither():
    assert [offset(number, 2) for number in range(4)] == [(1, 1), (0, 0), (1, 0), (0, 1)]


@pytest.mark.parametrize("factor", range(1, 9))
def test_the_first_offset_is_the_papers_grid_where_the_factor_is_whole(factor):
    size = 8 * factor
    place = offset(0, places_of(factor))
    assert place[0] == place[1]
    assert kept_rows(size, 8, place[0], factor) == kept_rows(size, 8)


@pytest.mark.parametrize("heads", [1, 4, 5, 8, 10])
@pytest.mark.parametrize("places", range(1, 9))
def test_heads_are_spread_evenly_over_the_offsets(places, heads):
    for step in range(places**2):
        seen = Counter(head_offset(step, head, places) for head in range(heads))
        assert max(seen.values()) == math.ceil(heads / places**2)


@given(st.integers(1, 300), st.floats(1, 8))
def test_rows_of_any_place_are_rows(size, factor):
    kept, places = kept_size(size, factor), places_of(factor)
    for place in range(places):
        rows = kept_rows(size, kept, place, places)
        assert len(rows) == kept and rows[0] >= 0 and rows[-1] < size
        assert rows == sorted(set(rows))


@given(st.integers(1, 64), st.sampled_from([1, 1.5, 2, 2.5, 3, 4, 8]))
def test_every_row_is_kept_sooner_or_later(kept, factor):
    """Every row is kept in its turn if the factor divides the size."""
    size = round(kept * factor)
    if size != kept * factor or kept_size(size, factor) != kept:
        return
    places = places_of(factor)
    assert {row for place in range(places) for row in kept_rows(size, kept, place, places)} == set(range(size))


# ---- which tokens become keys


@contextlib.contextmanager
def watched(module, seen):
    """Note the keys (B, n, C) that leave `to_k` behind all hooks, and the keys of all tokens."""
    attn = module
    handles = [
        attn.to_k.register_forward_hook(lambda m, args, output: seen.append((F.linear(args[0], m.weight), output)))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sources(whole, kept, heads):
    """For each head, the positions of the tokens from which these keys were made."""
    found = []
    for all_keys, keys in zip(whole[0].chunk(heads, -1), kept[0].chunk(heads, -1), strict=True):
        distances = torch.cdist(keys, all_keys, compute_mode="donot_use_mm_for_euclid_dist")
        assert (distances.min(1).values < 1e-4).all()
        found.append(distances.argmin(1))
    return found


@pytest.mark.parametrize(("factor", "size"), [(2, (16, 16)), (3, (24, 48)), (1.5, (24, 24)), (4, (16, 8))], ids=str)
def test_the_keys_of_each_step_and_head(sd1, factor, size):
    """Each head keeps the tokens of its own offset. At every step it takes the next offset in the order."""
    places, heads = places_of(factor), 8
    kept = kept_size(size[0], factor), kept_size(size[1], factor)
    step, ever = 0, set()
    with patched(sd1, factor=factor, moving=True, index=lambda: step):
        for step in range(places**2 + 1):
            seen = []
            with watched(sd1.get_submodule(TOP), seen):
                call(sd1, size, seed=step)
            for head, found in enumerate(sources(*seen[0], heads)):
                expected = kept_tokens(size, kept, offset=head_offset(step, head, places), places=places)
                assert torch.equal(found, expected)
                ever |= set(found.tolist()) if head == 0 else set()
    assert ever == set(range(size[0] * size[1]))


def test_all_calls_of_a_step_share_the_offsets(sd1):
    with patched(sd1, moving=True, index=lambda: 1):
        assert torch.equal(call(sd1), call(sd1))


def test_the_same_step_gives_the_same_image_and_another_step_another(sd1):
    results = []
    for number in (0, 1, 4, 0):  # there are four offsets
        with patched(sd1, moving=True, index=lambda number=number: number):
            results.append(call(sd1))
    assert torch.equal(results[0], results[2]) and torch.equal(results[0], results[3])
    assert not torch.equal(results[0], results[1])


def test_images_of_a_batch_share_the_offsets(sd1):
    latents, timesteps, context = inputs(sd1, (16, 16), 2)
    with patched(sd1, moving=True, index=lambda: 2), torch.no_grad():
        together = sd1(latents, timesteps, context)
        alone = [sd1(latents[i : i + 1], timesteps[i : i + 1], context[i : i + 1]) for i in range(2)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_a_controlnet_shares_the_offsets(sd1):
    control, keys = Encoder(copy.deepcopy(sd1)), []
    plain = sd1.forward

    def forward(*args):
        control(*args)
        return plain(*args)

    def watch(module):
        to_k = module.get_submodule(TOP).to_k
        watching.append(to_k.register_forward_hook(lambda m, args, output: keys.append(output)))

    watching = []
    sd1.forward = forward
    with patched(sd1, moving=True, index=lambda: 3) as patch:
        patch.before_unet(sd1)
        # The patch finds the copy when it is called, before its own hooks run.
        control.register_forward_pre_hook(lambda m, args: watch(m))
        watch(sd1)
        call(sd1)
    del sd1.forward
    for handle in watching:
        handle.remove()
    assert len(keys) == 2 and torch.equal(*keys)


def test_grids_of_a_context_are_gathered_one_by_one(sd1):
    attn, seen = sd1.get_submodule(TOP), []
    reference = torch.randn(1, 256, 32, generator=torch.Generator().manual_seed(1))
    handle = attn.register_forward_pre_hook(
        lambda m, args, kwargs: (args, {**kwargs, "context": torch.cat([args[0], reference], 1)}), with_kwargs=True
    )
    with patched(sd1, moving=True, index=lambda: 1), watched(attn, seen):
        call(sd1)
    handle.remove()
    for head, found in enumerate(sources(*seen[0], 8)):
        one = kept_tokens((16, 16), (8, 8), offset=head_offset(1, head, 2), places=2)
        assert torch.equal(found, torch.cat([one, one + 256]))


@pytest.mark.parametrize("heads", [None, 7])
def test_an_attention_without_heads_has_one_offset(sd1, heads):
    """An attention whose number of heads does not divide its channels has one offset, too."""
    attn, seen = sd1.get_submodule(TOP), []

    class Headless(type(attn)):
        def forward(self, x, context=None, mask=None):
            return self.to_out(F.scaled_dot_product_attention(self.to_q(x), self.to_k(x), self.to_v(x)))

    before = attn.__class__, attn.heads
    attn.__class__, attn.heads = Headless, heads
    with patched(sd1, moving=True, index=lambda: 1), watched(attn, seen):
        call(sd1)
    attn.__class__, attn.heads = before
    (found,) = sources(*seen[0], 1)
    assert torch.equal(found, kept_tokens((16, 16), (8, 8), offset=offset(1, 2), places=2))


def test_factor_1_stays_dense_to_the_bit(sd1):
    dense = call(sd1)
    with patched(sd1, factor=1, moving=True, max_depth=4, deeper_factor=1):
        assert torch.equal(call(sd1), dense)


def test_steps_out_of_range_stay_dense_to_the_bit(sd1):
    dense = call(sd1)
    with patched(sd1, moving=True, end=0.5, progress=lambda: 0.5):
        assert torch.equal(call(sd1), dense)


def test_nothing_stays_behind(sd1):
    before = state(sd1)
    with patched(sd1, moving=True, max_depth=4):
        call(sd1)
    assert state(sd1) == before


# ---- its purpose


def test_errors_cancel(unet):
    """The mean over all offsets lies nearer to the dense output than the paper's grid."""
    dense = call(unet)
    with patched(unet, max_depth=1):
        still = call(unet)
    moved = []
    for number in range(4):
        with patched(unet, max_depth=1, moving=True, index=lambda number=number: number):
            moved.append(call(unet))
    assert (sum(moved) / 4 - dense).norm() < 0.8 * (still - dense).norm()


# ---- cost


def test_as_many_indices_as_offsets_for_each_grid(sd1):
    steps = itertools.count()
    with patched(sd1, moving=True, max_depth=2, factor=4, deeper_factor=2, index=lambda: next(steps)) as patch:
        for _ in range(20):
            call(sd1, (16, 16))
        assert len(patch._indices) == 16 + 4


@pytest.mark.parametrize("moving", [False, True])
def test_keys_and_values_are_gathered_once_each(sd1, moving):
    gathered = Counter()
    plain = torch.Tensor.index_select

    def count(tensor, dim, index):
        gathered[tuple(tensor.shape)] += 1
        return plain(tensor, dim, index)

    layers = sum(len(t.attentions) for t in spatial_transformers(sd1) if t.depth == 1)
    with pytest.MonkeyPatch.context() as monkeypatch, patched(sd1, moving=moving):
        monkeypatch.setattr(torch.Tensor, "index_select", count)
        call(sd1)
    assert sum(gathered.values()) == (2 * layers if moving else layers)


def test_all_self_attentions_have_heads(sd1):
    assert {attn.heads for attn in attentions(sd1).values()} == {8}
