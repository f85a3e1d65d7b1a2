"""Whole workflows: hires pass and ControlNet, other kinds of models, compiled ones, and samplings that fail."""

import contextlib
import uuid

import numpy as np
import pytest

from tests.comfyui.client import Failed, Workflow
from tests.comfyui.test_node import KEPT, WHOLE, dense, downsampled, keys, one

NOTHING = "nothing downsampled"


def with_control(workflow, positive, negative, name="tiny"):
    """Both conditions with a ControlNet, whose picture has one colour."""
    applied = workflow.add(
        "ControlNetApplyAdvanced", positive=positive, negative=negative,
        strength=0.8, start_percent=0.0, end_percent=1.0,
        control_net=workflow.add("ControlNetLoader", control_net_name=f"{name}.safetensors"),
        image=workflow.add("EmptyImage", width=128, height=64, batch_size=1, color=0x3060C0),
    )  # fmt: skip
    return applied, applied[1]


def hires(todo):
    """A workflow as people draw it: a ControlNet in both samplers, the second one at twice the size.

    todo: "on", "off" (there is no node) or "bypassed", as the page does it: what follows is linked to the input.
    """
    workflow = Workflow()
    model, clip, vae = workflow.watched()
    plain, model = model, workflow.todo(model, moving=True) if todo != "off" else model
    model = plain if todo == "bypassed" else model
    prompts = with_control(workflow, *workflow.prompts(clip))
    first = workflow.sample(model, *prompts)
    large = workflow.add("LatentUpscaleBy", samples=first, upscale_method="bilinear", scale_by=2.0)
    second = workflow.sample(model, *prompts, large, denoise=0.5, sampler_name="dpmpp_2m", steps=3)
    workflow.add("PreviewImage", images=workflow.add("VAEDecode", samples=second, vae=vae))
    workflow.report(model, second)
    return workflow


def drawn(client, todo):
    outputs = client.run(hires(todo))
    (picture,) = client.pictures(outputs)
    return picture, client.report_in(outputs)


def test_a_hires_pass_with_a_controlnet(client):
    picture, report = drawn(client, "on")
    first, second = report["calls"][:4], report["calls"][4:]
    assert [call["step"] for call in report["calls"]] == [0, 1, 2, 3, 0, 1, 2]
    for calls, queries in ((first, WHOLE), (second, 4 * WHOLE)):
        for call in calls:
            at_depth_1 = [attention for attention in call["attention"] if attention[2] == queries]
            assert {(k, v) for _, _, _, k, v in at_depth_1} == {(queries // 4, queries // 4)}
            assert {name.startswith("control: ") for name, *_ in at_depth_1} == {True, False}
    assert "in ControlNet" in report["texts"][-1][1]
    again, _ = drawn(client, "on")
    plain, without = drawn(client, "off")
    bypassed, _ = drawn(client, "bypassed")
    assert picture.shape == (128, 256, 3) and picture.std() > 1
    assert np.array_equal(picture, again) and not np.array_equal(picture, plain)
    assert np.array_equal(plain, bypassed)
    assert report["fingerprint"] == without["fingerprint"]


def test_a_sampling_that_fails_leaves_nothing(client):
    workflow = Workflow()
    model, clip, _ = workflow.watched()
    model = workflow.add("ProbeFail", model=workflow.todo(model), call=3, salt=uuid.uuid4().hex)
    workflow.report(model, workflow.sample(model, *workflow.prompts(clip)))
    with pytest.raises(Failed, match="the probe has let this sampling fail"):
        client.run(workflow)
    report = one(client, dense)
    assert all(keys(call) == {(WHOLE, WHOLE)} for call in report["calls"])
    assert one(client, downsampled())["fingerprint"] == report["fingerprint"]


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_model_without_a_unet_passes_unchanged_and_the_line_says_why(client, name):
    def sampled(todo):
        workflow = Workflow()
        _, clip, _ = workflow.watched()
        model = workflow.add("UNETLoader", unet_name=f"{name}.safetensors", weight_dtype="default")
        model = workflow.add("ProbeWatch", model=model, salt=uuid.uuid4().hex)
        model = workflow.todo(model) if todo else model
        latent = workflow.add("EmptySD3LatentImage", width=128, height=64, batch_size=1)
        workflow.report(model, workflow.sample(model, *workflow.prompts(clip), latent))
        return client.reports(workflow)[0]

    with_todo, without = sampled(True), sampled(False)
    assert with_todo["finite"] and with_todo["hash"] == without["hash"]
    assert with_todo["texts"][-1][1] == f"{NOTHING}, this model has no U-Net self-attention"


@pytest.mark.parametrize("todo_last", [False, True])
@pytest.mark.slow
def test_a_compiled_model_is_left_dense_and_the_line_says_so(client, todo_last):
    def build(workflow, model):
        if todo_last:
            return workflow.todo(workflow.add("ProbeCompile", model=model))
        return workflow.add("ProbeCompile", model=workflow.todo(model))

    report = one(client, build)  # the probe cannot look into compiled code
    assert report["hash"] == one(client, lambda w, m: w.add("ProbeCompile", model=m))["hash"]
    assert NOTHING in report["texts"][-1][1] and "compiled" in report["texts"][-1][1]
    assert all(keys(call) == {(KEPT, KEPT)} for call in one(client, downsampled())["calls"])


@pytest.mark.parametrize(("steps", "kept"), [(6, "56x72"), (16, "40x40")])
def test_auto_keeps_a_number_of_tokens_that_depends_on_the_steps(client, comfyui, steps, kept):
    """The probe ends the sampling early, as large pictures take long. The line is there nevertheless."""
    position = comfyui.log_size()
    workflow = Workflow()
    model, clip, _ = workflow.watched()
    model = workflow.add("ProbeFail", model=workflow.todo(model, factor=0), call=2, salt=uuid.uuid4().hex)
    latent = workflow.add("ProbeLatent", width=80, height=96)
    workflow.report(model, workflow.sample(model, *workflow.prompts(clip), latent, steps=steps, cfg=1.0))
    with contextlib.suppress(Failed):
        client.run(workflow)
    assert f"depth 1: 80x96 tokens, keys from {kept} " in comfyui.log_since(position)
