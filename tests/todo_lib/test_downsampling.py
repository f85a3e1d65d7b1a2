"""The method by itself, without a U-Net: keys and values of a host that needs no hooks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from todo_lib import Downsampling, Report, Settings, Step
from todo_lib.downsampling import gather
from todo_lib.grid import kept_tokens, moving_place


def downsampling(step=lambda: Step(0, 0.0), steps=None, **settings):
    return Downsampling(Settings(**{"factor": 2, "moving": False, **settings}), step, Report(), steps)


def tokens_of(grid, batch=1, channels=8, grids=1):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, grids * grid[0] * grid[1], channels, generator=generator)


GRIDS = st.tuples(st.integers(1, 30), st.integers(1, 30))
FACTORS = st.floats(1, 8)


@given(GRIDS, FACTORS, st.integers(1, 3), st.integers(1, 3), st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_papers_grid_is_torchs_interpolation(grid, factor, batch, grids, dtype):
    method = downsampling(factor=factor)
    tokens = tokens_of(grid, batch, grids=grids).to(dtype)
    kept = method.kept_grid(1, grid)
    shortened = method.shorten(tokens, 1, grid, heads=4)
    assert shortened.dtype == dtype and shortened.shape == (batch, grids * kept[0] * kept[1], 8)
    for one, part in zip(tokens.chunk(grids, 1), shortened.chunk(grids, 1), strict=True):
        assert torch.equal(part, one[:, kept_tokens(grid, kept)])
    if grid[0] % kept[0] == grid[1] % kept[1] == 0:  # elsewhere torch's floats may fall one row short
        image = tokens[:, : grid[0] * grid[1]].float().transpose(1, 2).unflatten(2, grid)
        expected = F.interpolate(image, kept, mode="nearest-exact").flatten(2).transpose(1, 2)
        if all((side // part) % 2 for side, part in zip(grid, kept, strict=True)):
            assert torch.equal(shortened[:, : kept[0] * kept[1]].float(), expected)


@given(GRIDS, FACTORS, st.sampled_from([1, 2, 4]), st.integers(0, 100), st.integers(1, 3))
def test_each_head_of_a_moving_grid_keeps_its_own(grid, factor, heads, number, grids):
    method = downsampling(lambda: Step(number, 0.5), factor=factor, moving=True)
    tokens = tokens_of(grid, 2, grids=grids)
    kept = method.kept_grid(1, grid)
    shortened = method.shorten(tokens, 1, grid, heads)
    if kept == grid:
        assert shortened is tokens
        return
    for head, (part, all_of_it) in enumerate(zip(shortened.chunk(heads, -1), tokens.chunk(heads, -1), strict=True)):
        index = kept_tokens(grid, kept, moving_place(number, head, grid, kept))
        expected = [one[:, index] for one in all_of_it.chunk(grids, 1)]
        assert torch.equal(part, torch.cat(expected, 1))


def test_heads_that_do_not_divide_the_channels_share_a_place():
    method = downsampling(moving=True)
    tokens = tokens_of((8, 8))
    assert torch.equal(method.shorten(tokens, 1, (8, 8), 3), downsampling(moving=True).shorten(tokens, 1, (8, 8), 1))


@pytest.mark.parametrize(
    ("step", "depth"), [(None, 1), (Step(5, 0.5), 1), (Step(0, 0.0), 3)], ids=["no step", "behind end", "too deep"]
)
def test_what_stays_dense_is_handed_back_as_it_is(step, depth):
    tokens = tokens_of((8, 8))
    assert downsampling(lambda: step, end=0.5).shorten(tokens, depth, (8, 8)) is tokens


def test_tokens_that_are_not_whole_grids_are_refused():
    with pytest.raises(ValueError, match="tokens = 63 is not allowed: it must be a multiple of 8 x 8"):
        downsampling().shorten(tokens_of((7, 9)), 1, (8, 8))


def test_the_automatic_grid_follows_the_steps_of_the_pass():
    kept = [downsampling(steps=steps, factor=0).kept_grid(1, (128, 128)) for steps in (4, 8, 12, 30, None)]
    assert kept == [(80, 80), (64, 64), (48, 48), (40, 40), (40, 40)]


def test_an_index_is_kept_for_its_step_alone():
    """Large grids at many steps would take memory on the device."""
    number = 0
    method = downsampling(lambda: Step(number, 0.0), moving=True)
    for number in range(50):  # noqa: B007
        method.shorten(tokens_of((8, 8)), 1, (8, 8), 2)
        method.shorten(tokens_of((8, 6)), 1, (8, 6), 2)
    assert len(method._indices) == 2


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_index_is_copied_once_and_waits_only_where_it_must(device, monkeypatch):
    """Memory that is not pinned may be released before a copy that is not waited for (Apple's MPS)."""
    copied = []
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda *args, **kw: copied.append(kw) or to(*args, **kw))
    method = downsampling(moving=True)
    for _ in range(3):
        method.shorten(tokens_of((8, 8)).to(device), 1, (8, 8), 2)
    copied = [kw for kw in copied if kw.get("non_blocking") is not None] or copied
    index = method.index(0, (8, 8), (4, 4), 1, 2, torch.device(device))
    assert index.device.type == device
    assert not any(kw.get("non_blocking") for kw in copied)


@pytest.mark.parametrize("fails", [False, True])
def test_memory_that_cannot_be_pinned_is_copied_plainly(fails, monkeypatch):
    """WSL and ZLUDA may refuse it."""
    pinned, copied = [], []

    def pin_memory(tensor):
        pinned.append(tensor)
        if fails:
            raise RuntimeError("CUDA error: out of memory")
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **kw: copied.append(kw) or self)
    index = downsampling().index(0, (8, 8), (4, 4), 1, 1, torch.device("cuda"))
    assert pinned and copied == [{} if fails else {"non_blocking": True}]
    assert torch.equal(index, kept_tokens((8, 8), (4, 4)))


def test_gather_by_hand():
    tokens = torch.arange(12).view(1, 3, 4)  # 3 tokens of 2 heads with 2 channels
    assert gather(tokens, torch.tensor([2, 0])).tolist() == [[[8, 9, 10, 11], [0, 1, 2, 3]]]
    index = torch.tensor([2 * 1 + 0, 2 * 2 + 1])  # token 1 for the first head, token 2 for the second
    assert gather(tokens, index, 2).tolist() == [[[4, 5, 10, 11]]]
