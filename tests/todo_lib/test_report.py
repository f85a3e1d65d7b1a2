"""The report: the words that users read."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from tests.todo_lib.unets import attentions, call, patched
from todo_lib import Report
from todo_lib.report import Reason
from todo_lib.unet import spatial_transformers


def run(unet, size=(16, 16), steps=4, **chosen) -> Report:
    position = 0.0
    with patched(unet, progress=lambda: position, **chosen) as patch:
        for i in range(steps):
            position = i / steps
            call(unet, size)
    return patch.report


def test_one_depth(sd1):
    assert str(run(sd1, (16, 24))) == (
        "34 % of self-attention's work, 4 of 4 steps [depth 1: 24x16 tokens, keys from 12x8 (5 layers)]"
    )


def test_all_depths(sd1):
    assert str(run(sd1, steps=1, factor=4, max_depth=4)) == (
        "9 % of self-attention's work, 1 of 1 steps ["
        "depth 1: 16x16 tokens, keys from 4x4 (5 layers); depth 2: 8x8 tokens, keys from 4x4 (5 layers); "
        "depth 3: 4x4 tokens, keys from 2x2 (5 layers); depth 4: 2x2 tokens, keys from 1x1 (1 layer)]"
    )


def test_depth_1_of_sdxl_is_half_the_latent(sdxl):
    assert str(run(sdxl, steps=1)) == (
        "35 % of self-attention's work, 1 of 1 steps [depth 1: 8x8 tokens, keys from 4x4 (10 layers)]"
    )


def test_steps_in_range(sd1):
    assert ", 2 of 4 steps [" in str(run(sd1, (8, 8), start=0.25, end=0.75))


def test_a_step_of_several_calls_counts_once(sd1):
    with patched(sd1) as patch:
        for _ in range(3):
            call(sd1, (8, 8))
    assert ", 1 of 1 steps [" in str(patch.report)


def test_steps_that_were_planned(sd1):
    """A sampling may end before all planned steps are made."""
    with patched(sd1, start=0.5, progress=lambda: position) as patch:
        patch.report.planned_steps = 12
        position = 0.25
        call(sd1, (8, 8))
        assert str(patch.report) == "nothing downsampled, it ended before a sampling step between start and end"
        position = 0.5
        call(sd1, (8, 8))
    assert ", 1 of 12 steps [" in str(patch.report)


def test_a_controlnet_in_some_of_the_steps():
    report = Report(control={"copy's a"})
    for position in (0, 0.25, 0.5):
        report.unet_called(position, True)
        report.downsampled("a", 1, (8, 8), (4, 4), position, 0)
        if position == 0.25:
            report.downsampled("copy's a", 1, (8, 8), (4, 4), position, 0)
    assert str(report).startswith("3 of 3 steps (ControlNet in 1) [")
    assert str(report).endswith("(2 layers, 1 of them in ControlNet)]")


def test_several_sizes_in_one_pass(sd1):
    with patched(sd1) as patch:
        call(sd1, (8, 8))
        call(sd1, (8, 16))
    assert str(patch.report) == (
        "34 % of self-attention's work, 1 of 1 steps ["
        "depth 1: 8x8 tokens, keys from 4x4 (5 layers); depth 1: 16x8 tokens, keys from 8x4 (5 layers)]"
    )


def two_grids(attn, args, kwargs):
    """As reference-style extensions do."""
    return args[:1], {**kwargs, "context": torch.cat([args[0], args[0]], 1)}


def doubled_batch(attn, args, kwargs):
    """As LLuL does, which takes the other half away again behind the attention."""
    return (args[0].repeat(2, 1, 1), *args[1:]), kwargs


@pytest.mark.parametrize("hand", [two_grids, doubled_batch])
def test_more_than_the_transformer_has(sd1, hand):
    """Dense attention costs more as well there, so the share stays the same."""

    def first_half(attn, args, output):
        return output[: len(output) // 2]

    with contextlib.ExitStack() as hooks:
        for attn in attentions(sd1).values():
            hooks.enter_context(attn.register_forward_pre_hook(hand, with_kwargs=True))
            if hand is doubled_batch:
                hooks.enter_context(attn.register_forward_hook(first_half))
        line = str(run(sd1, steps=1, max_depth=4, deeper_factor=2))
    assert line.startswith("25 % of self-attention's work, ")


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({"factor": 1}, "nothing downsampled, the factor is 1 at this size"),
        ({"factor": 0}, "nothing downsampled, the factor is 1 at this size"),
        ({"end": 0}, "nothing downsampled, no sampling step is between start and end"),
        ({"start": 1}, "nothing downsampled, no sampling step is between start and end"),
        ({"start": 0.9}, "nothing downsampled, no sampling step is between start and end"),
    ],
    ids=str,
)
def test_why_nothing_was_done(sd1, chosen, reason):
    assert str(run(sd1, (8, 8), **chosen)) == reason


def test_a_model_without_self_attention():
    with patched(nn.Linear(2, 2)) as patch:
        patch._unet(torch.zeros(1, 2))
    assert str(patch.report) == "nothing downsampled, this model has no U-Net self-attention"


def test_a_unet_whose_self_attentions_did_not_run(sd1):
    with patched(sd1) as patch:
        patch.before_unet(sd1)
    assert str(patch.report) == "nothing downsampled, the U-Net's own self-attentions did not run"


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (None, "no sampling step was made"),
        (0, "no sampling step was made"),  # hires denoising 0
        (20, "it ended before its first sampling step"),  # Skip or Interrupt
    ],
)
@pytest.mark.parametrize("factor", [0, 2])
def test_a_sampling_without_a_call_of_the_unet(sd1, steps, reason, factor):
    with patched(sd1, steps=steps, factor=factor) as patch:
        pass
    assert str(patch.report) == f"nothing downsampled, {reason}"


def every_second(module, args, kwargs):
    return args, {"context": args[0][:, ::2]}


def test_layers_left_to_another_patch(sd1):
    names = list(attentions(sd1))
    handles = [
        attn.register_forward_pre_hook(every_second, with_kwargs=True)
        for attn in (sd1.get_submodule(names[0]), sd1.get_submodule(names[1]))
    ]
    try:
        report = run(sd1)
        assert report.left_layers[Reason.TOKENS] == set(names[:2])
        assert str(report) == (
            "4 of 4 steps, 2 layers left to another patch that tiles or merges their tokens "
            "[depth 1: 16x16 tokens, keys from 8x8 (3 layers)]"
        )
        # Outside the steps in range no layer is left to another patch.
        assert str(run(sd1, end=0)) == "nothing downsampled, no sampling step is between start and end"
    finally:
        for handle in handles:
            handle.remove()


def test_all_layers_left_to_another_patch(sd1):
    top = [sd1.get_submodule(name) for t in spatial_transformers(sd1) if t.depth == 1 for name in t.attentions]
    handles = [attn.register_forward_pre_hook(every_second, with_kwargs=True) for attn in top]
    try:
        assert str(run(sd1)) == (
            "nothing downsampled, 5 layers left to another patch that tiles or merges their tokens"
        )
    finally:
        for handle in handles:
            handle.remove()


def test_one_line(sd1):
    assert "\n" not in str(run(sd1, max_depth=4))
