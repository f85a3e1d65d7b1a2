"""Steps: of each call that a sampler makes, whether it is downsampled, judged by the sampler's own count."""

import pytest

from tests.comfyui.client import Workflow
from tests.comfyui.test_node import KEPT, WHOLE, downsampled, keys, one

STEPS = 6
HALF = {"start": 0.0, "end": 0.5}


def samplers(client):
    return client.get("/object_info/KSampler").json()["KSampler"]["input"]["required"]["sampler_name"][0]


def downsampled_calls(report):
    """Whether each call was downsampled. All layers of depth 1 have to agree."""
    seen = [keys(call) for call in report["calls"]]
    assert all(call in ({(KEPT, KEPT)}, {(WHOLE, WHOLE)}) for call in seen)
    return [call == {(KEPT, KEPT)} for call in seen]


def test_every_sampler_s_calls_belong_to_its_own_steps(client, subtests):
    names = samplers(client)
    assert len(names) > 30
    for name in names:
        with subtests.test(name):
            report = one(client, downsampled(**HALF), sampler_name=name, steps=STEPS)
            found = downsampled_calls(report)
            if name == "dpm_adaptive":
                assert found == sorted(found, reverse=True) and True in found and False in found
            elif name == "dpm_fast":  # its loop is over groups of steps, and each call is a step
                assert found == [call / STEPS < 0.5 for call in range(len(found))]
            else:
                assert found == [call["step"] / STEPS < 0.5 for call in report["calls"]]
                assert {call["step"] for call in report["calls"]} >= set(range(STEPS - 1))


def test_dpm_adaptive_goes_by_the_noise_schedule(client):
    report = one(client, downsampled(start=0.25, end=0.75), sampler_name="dpm_adaptive", steps=STEPS)
    found = downsampled_calls(report)
    first, last = found.index(True), len(found) - found[::-1].index(True)
    assert 0 < first < last < len(found) and all(found[first:last])


@pytest.mark.parametrize(("first", "last", "expected"), [(0, 3, [0, 1, 2]), (3, 10000, [0, 1, 2]), (4, 6, [0, 1])])
def test_a_part_of_a_sampling_counts_its_own_steps(client, first, last, expected):
    """KSampler Advanced with start and end steps: n are the steps of its own part."""
    workflow = Workflow()
    model, clip, _ = workflow.watched()
    model = workflow.todo(model, **HALF)
    positive, negative = workflow.prompts(clip)
    latent = workflow.add("KSamplerAdvanced", model=model, positive=positive, negative=negative,
        latent_image=workflow.add("EmptyLatentImage", width=128, height=64, batch_size=1), add_noise="enable",
        noise_seed=1, steps=STEPS, cfg=5.0, sampler_name="euler", scheduler="normal", start_at_step=first,
        end_at_step=last, return_with_leftover_noise="enable")  # fmt: skip
    workflow.report(model, latent)
    (report,) = client.reports(workflow)
    assert [call["step"] for call in report["calls"]] == expected
    assert downsampled_calls(report) == [i / len(expected) < 0.5 for i in expected]


def test_img2img_counts_the_steps_that_it_makes(client):
    report = one(client, downsampled(**HALF), denoise=0.4, steps=4)
    assert downsampled_calls(report) == [True, True, False, False]


@pytest.mark.parametrize("guider", ["CFGGuider", "BasicGuider", "DualCFGGuider", "PerpNegGuider"])
def test_custom_sampling(client, guider):
    workflow = Workflow()
    model, clip, _ = workflow.watched()
    model = workflow.todo(model, **HALF)
    positive, negative = workflow.prompts(clip)
    inputs = {
        "CFGGuider": {"positive": positive, "negative": negative, "cfg": 5.0},
        "BasicGuider": {"conditioning": positive},
        "DualCFGGuider": {"cond1": positive, "cond2": positive, "negative": negative, "cfg_conds": 5.0,
                          "cfg_cond2_negative": 2.0, "style": "regular"},
        "PerpNegGuider": {"positive": positive, "negative": negative, "empty_conditioning": negative, "cfg": 5.0,
                          "neg_scale": 1.0},
    }[guider]  # fmt: skip
    latent = workflow.add(
        "SamplerCustomAdvanced",
        noise=workflow.add("RandomNoise", noise_seed=1),
        guider=workflow.add(guider, model=model, **inputs),
        sampler=workflow.add("KSamplerSelect", sampler_name="heun"),
        sigmas=workflow.add("BasicScheduler", model=model, scheduler="karras", steps=4, denoise=1.0),
        latent_image=workflow.add("EmptyLatentImage", width=128, height=64, batch_size=1),
    )
    workflow.report(model, latent)
    (report,) = client.reports(workflow)
    assert [call["step"] for call in report["calls"]] == [0, 0, 1, 1, 2, 2, 3]
    assert downsampled_calls(report) == [call["step"] < 2 for call in report["calls"]]
