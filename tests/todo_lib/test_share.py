"""The share of self-attention's work that was done, against the plan's figure and what torch counts when it runs."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.todo_lib.unets import at_any_size, attentions, call, patched
from todo_lib import Settings, plan

MULTIPLIES = {torch.ops.aten.bmm, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu}


@contextmanager
def self_attention_counted():
    """Yield a list that gets the operations of all self-attentions' scores and weighted sums, projections left out."""
    total = []
    with at_any_size(), FlopCounterMode(display=False) as counter:
        yield total
    for name, operations in counter.get_flop_counts().items():
        if name.endswith(".attn1"):
            total += [number for operation, number in operations.items() if operation in MULTIPLIES]


def done(report):
    """The multiply-adds of all self-attentions that ran."""
    return report.dense_work - report.saved_work


def sampling(unet, sizes, batch=1, **chosen):
    """A sampling with a step of each size: its report, and torch's count of the work done."""
    position = 0.0
    with patched(unet, progress=lambda: position, **chosen) as patch, self_attention_counted() as counted:
        for i, size in enumerate(sizes):
            position = i / len(sizes)
            call(unet, size, batch)
    return patch.report, sum(counted)


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ([(16, 16)] * 2, {"factor": 2}),
        ([(13, 22)], {"factor": 3, "max_depth": 3}),
        ([(16, 24)] * 4, {"factor": 4, "start": 0.25, "end": 0.75}),
        ([(24, 24)] * 2, {"factor": 3, "max_depth": 4, "deeper_factor": 1.5, "end": 0.5}),
        ([(16, 16), (24, 16)], {"factor": 2, "max_depth": 2}),
    ],
    ids=str,
)
def test_the_work_is_what_torch_counts(unet, sizes, chosen, moving):
    dense = sampling(unet, sizes, batch=2, end=0)
    report, counted = sampling(unet, sizes, batch=2, moving=moving, **chosen)
    assert 0 < counted < dense[1]
    assert (2 * done(report), 2 * report.dense_work) == (counted, dense[1])


@pytest.mark.parametrize("size", [(16, 16), (13, 22)], ids=str)
@pytest.mark.parametrize("max_depth", [1, 2, 4])
@pytest.mark.parametrize("moving", [False, True])
def test_the_work_is_the_plans(unet, size, max_depth, moving):
    chosen = {"factor": 3, "max_depth": max_depth, "deeper_factor": 0, "moving": moving}
    depths = plan(unet, size, Settings(**chosen))
    report, _ = sampling(unet, [size], **chosen)
    assert report.dense_work == sum(depth.dense_work for depth in depths)
    assert done(report) == sum(depth.work for depth in depths)


def test_the_line_has_the_share(sd1):
    report, _ = sampling(sd1, [(16, 16)] * 2, factor=2)
    share = round(100 * done(report) / report.dense_work)
    assert str(report).startswith(f"{share} % of self-attention's work, 2 of 2 steps [")


@pytest.mark.parametrize(("work", "text"), [(1, "under 1 %"), (499, "50 %"), (998, "over 99 %")])
def test_no_share_is_rounded_to_nothing_or_all(sd1, work, text):
    report, _ = sampling(sd1, [(16, 16)])
    report.saved_work, report.dense_work = 1000 - work, 1000
    assert str(report).startswith(f"{text} of self-attention's work, 1 of 1 steps [")


def test_skipped_blocks_count_for_nothing(sd1):
    """Whatever reuses what it computed before skips self-attentions, and would without ToDo as well."""
    report, _ = sampling(sd1, [(16, 16)], factor=2, max_depth=4, deeper_factor=1)
    sd1.middle_block.forward = lambda x, *args, **kwargs: x
    try:
        other, _ = sampling(sd1, [(16, 16)], factor=2, max_depth=4, deeper_factor=1)
    finally:
        del sd1.middle_block.forward
    ours = [d for d in plan(sd1, (16, 16), Settings(factor=2)) if d.depth == 4]
    assert report.dense_work - other.dense_work == sum(d.dense_work for d in ours) > 0


def test_no_share_beside_a_patch_that_computes_self_attention(sd1):
    """How much that computes is not known."""
    attn = next(iter(attentions(sd1).values()))
    attn.forward = lambda x, context=None, mask=None: torch.zeros_like(x)
    try:
        report, _ = sampling(sd1, [(16, 16)], factor=2)
    finally:
        del attn.forward
    assert report.layers and "self-attention's work" not in str(report)
