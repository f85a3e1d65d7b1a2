"""The moving grid: other tokens become keys at each sampling step and in each attention head."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.todo_lib.unets import Encoder, attentions, call, inputs, patched, state
from todo_lib.grid import SHIFTS, kept_rows, kept_size, kept_tokens, moving_place
from todo_lib.unet import spatial_transformers

TOP = "input_blocks.1.1.transformer_blocks.0.attn1"


# ---- the order of the places


def rows_and_columns(numbers, grid, kept):
    """For each step in `numbers` of one head, which rows and which columns of the grid are kept, as 0 and 1."""
    rows, columns = torch.zeros(len(numbers), grid[0]), torch.zeros(len(numbers), grid[1])
    for i, step in enumerate(numbers):
        place = moving_place(step, 0, grid, kept)
        rows[i, kept_rows(grid[0], kept[0], place[0])] = 1
        columns[i, kept_rows(grid[1], kept[1], place[1])] = 1
    return rows, columns


def times_kept(numbers, grid, kept):
    """How often each token (H, W) is a key at these steps."""
    rows, columns = rows_and_columns(numbers, grid, kept)
    return rows.T @ columns


@pytest.mark.parametrize("start", [0, 5, 1000])
@pytest.mark.parametrize("m", range(1, 9))
def test_each_token_is_a_key_once_in_a_round_where_the_sizes_divide(m, start):
    grid, kept = (3 * m, 5 * m), (3, 5)
    turn = range(start * m * m, (start + 1) * m * m)
    assert torch.equal(times_kept(turn, grid, kept), torch.ones(grid))
    assert torch.equal(times_kept(range(start, start + m * m), grid, kept), torch.ones(grid))  # from any step on


SIDES = st.integers(1, 129)


@st.composite
def sizes(draw):
    """A grid, and what a factor or the automatic rule keeps of it."""
    grid = draw(SIDES), draw(SIDES)
    kind = draw(st.sampled_from(["factor", "eights", "any"]))
    if kind == "factor":
        factor = draw(st.floats(1, 8))
        return grid, (kept_size(grid[0], factor), kept_size(grid[1], factor))
    if kind == "eights":
        return grid, tuple(
            draw(st.integers(max(1, side // 64), max(1, side // 8))) * 8 if side > 8 else side for side in grid
        )
    return grid, tuple(draw(st.integers(-(-side // 8), side)) for side in grid)


def most(grid, kept):
    return max(math.ceil(side / part) for side, part in zip(grid, kept, strict=True))


@pytest.mark.parametrize("start", [0, 5, 1000])
@pytest.mark.parametrize("m, grid, kept", [(3, (128, 128), (42, 42)), (3, (64, 96), (21, 32)), (2, (65, 64), (32, 32))])
def test_no_token_is_a_key_twice_in_a_round_where_a_whole_factor_nearly_divides(m, grid, kept, start):
    turn = range(start * m * m, (start + 1) * m * m)
    assert times_kept(turn, grid, kept).max() == 1


@settings(max_examples=60)
@given(sizes(), st.integers(0, 10_000))
@example(((128, 128), (42, 42)), 0)  # two rows and columns were never a key
@example(((96, 96), (38, 38)), 0)  # every fifth row was a key twice as often
@example(((128, 128), (17, 17)), 3)
@example(((128, 128), (40, 40)), 7)
def test_each_token_is_a_key_within_four_rounds(sizes, start):
    m = most(*sizes)
    assert times_kept(range(start, start + 4 * m * m), *sizes).min() >= 1


@settings(max_examples=30)
@given(sizes())
@example(((128, 128), (42, 42)))
@example(((96, 96), (38, 38)))
@example(((128, 128), (40, 40)))
@example(((96, 160), (32, 48)))
def test_no_token_is_favoured_in_a_long_run(sizes):
    times = times_kept(range(most(*sizes) ** 2 * SHIFTS), *sizes)
    assert times.max() <= 1.2 * times.min()


@pytest.mark.parametrize("m", range(2, 9))
def test_neighbours_in_time_lie_far_apart(m):
    grid, kept = (4 * m, 4 * m), (4, 4)
    for number in range(m * m):
        rows = [kept_rows(grid[0], kept[0], moving_place(number + i, 0, grid, kept)[0])[0] for i in range(m)]
        assert len(set(rows)) == m


def test_two_places_are_an_ordered_dither():
    first = [[kept_rows(8, 4, p)[0] for p in moving_place(step, 0, (8, 8), (4, 4))] for step in range(4)]
    assert first == [[1, 1], [0, 0], [1, 0], [0, 1]]


@pytest.mark.parametrize("m", range(1, 9))
def test_the_first_place_is_the_papers_grid_where_the_sizes_divide(m):
    grid, kept = (8 * m, 8 * m), (8, 8)
    assert torch.equal(kept_tokens(grid, kept, moving_place(0, 0, grid, kept)), kept_tokens(grid, kept))


@pytest.mark.parametrize("heads", [1, 4, 5, 8, 10, 20])
@pytest.mark.parametrize("m", range(1, 9))
def test_heads_are_spread_evenly_over_the_places(m, heads):
    grid, kept = (3 * m, 3 * m), (3, 3)
    for step in range(m * m):
        tokens = [
            tuple(kept_tokens(grid, kept, moving_place(step, head, grid, kept)).tolist()) for head in range(heads)
        ]
        assert max(Counter(tokens).values()) == math.ceil(heads / m**2)


@given(sizes(), st.integers(0, 1000), st.integers(0, 20))
def test_rows_of_any_place_are_rows(sizes, step, head):
    for side, kept, place in zip(*sizes, moving_place(step, head, *sizes), strict=True):
        assert 0 <= place < 1
        rows = kept_rows(side, kept, place)
        assert len(rows) == kept and rows[0] >= 0 and rows[-1] < side
        assert rows == sorted(set(rows))


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
    """Each head keeps the tokens of its own place. At every step it takes the next place in the order."""
    heads = 8
    kept = kept_size(size[0], factor), kept_size(size[1], factor)
    step, ever = 0, set()
    with patched(sd1, factor=factor, moving=True, index=lambda: step):
        for step in range(most(size, kept) ** 2 + 1):
            seen = []
            with watched(sd1.get_submodule(TOP), seen):
                call(sd1, size, seed=step)
            for head, found in enumerate(sources(*seen[0], heads)):
                assert torch.equal(found, kept_tokens(size, kept, moving_place(step, head, size, kept)))
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
        patch.add_encoder(control)
        watch(control)
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
        one = kept_tokens((16, 16), (8, 8), moving_place(1, head, (16, 16), (8, 8)))
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
    assert torch.equal(found, kept_tokens((16, 16), (8, 8), moving_place(1, 0, (16, 16), (8, 8))))


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


def test_an_index_is_made_once_a_step_and_grid(sd1):
    step, made = 0, []
    plain = torch.stack

    def stack(tensors, *args, **kwargs):
        made.append(step)
        return plain(tensors, *args, **kwargs)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch, "stack", stack)
        with patched(sd1, moving=True, max_depth=2, factor=4, deeper_factor=2, index=lambda: step):
            for step in range(20):  # noqa: B007
                for size in ((16, 16), (16, 24), (16, 16)):
                    call(sd1, size)
    assert made == [step for step in range(20) for _ in range(4)]


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
    assert sum(gathered.values()) == 2 * layers


def test_all_self_attentions_have_heads(sd1):
    assert {attn.heads for attn in attentions(sd1).values()} == {8}
