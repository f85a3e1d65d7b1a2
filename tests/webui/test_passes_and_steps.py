"""Which passes and which sampling steps are downsampled."""

import pytest

from tests.webui.client import assert_keys
from tests.webui.sampler_steps import check_first_half, second_order_step


def factor_2(a):
    return 2 if a.depth == 1 else 1


# ---- hires fix


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
@pytest.mark.parametrize("passes", ["both", "first", "hires"])
@pytest.mark.parametrize("moving", [True, False])
def test_hires_passes(client, passes, upscaler, moving):
    with client.recording(indices=True) as record:
        client.hires([True, 2, 1, 0, 1, 0, passes, 0, moving], hr_upscaler=upscaler)
    assert {a.grid for a in record.where(pass_name="first", depth=1)} == {(8, 8)}
    assert {a.grid for a in record.where(pass_name="hires", depth=1)} == {(16, 16)}
    assert_keys(record, lambda a: factor_2(a) if passes in ("both", a.pass_name) else 1, moving)


@pytest.mark.parametrize("factor", [1, 2])
def test_hires_factor(client, factor):
    with client.recording(indices=True) as record:
        result = client.hires([True, factor, 2, 0, 1, 0, "both", 4])
    wanted = {"first": [factor, 1, 1, 1], "hires": [4, 2, 1, 1]}
    assert_keys(record, lambda a: wanted[a.pass_name][a.depth - 1])
    assert "ToDo hires factor: 4" in result.infotext
    # With a single pass `passes` has no effect.
    with client.recording(indices=True) as record:
        image = client.txt2img([True, 2, 2, 0, 1, 0, "both", 4]).image
        client.img2img(image, todo=[True, 2, 2, 0, 1, 0, "both", 4])
    assert_keys(record, factor_2)


def test_hires_pass_counts_its_own_steps(client):
    with client.recording() as record:
        client.hires([True, 2, 1, 0.25, 0.75], steps=4, hr_second_pass_steps=6)
    wanted = {"first": {1, 2}, "hires": {2, 3, 4}}
    assert_keys(record, lambda a: factor_2(a) if a.step in wanted[a.pass_name] else 1)
    assert len({a.step for a in record.where(pass_name="hires")}) == 6


@pytest.mark.parametrize("passes", ["first", "hires"])
def test_one_pass_does_not_look_at_passes(client, passes):
    with client.recording() as record:
        image = client.txt2img({"enabled": True, "factor": 2, "passes": passes}).image
        client.img2img(image, todo={"enabled": True, "factor": 2, "passes": passes})
    assert_keys(record, factor_2)


@pytest.mark.parametrize(("base", "other"), [("tiny", "tinyb"), ("twin.safetensors", "twin.ckpt")])
def test_hires_checkpoint(client, base, other):
    with client.recording(indices=True) as record:
        client.hires([True, 2], model=base, hr_checkpoint_name=other)
    assert {a.model for a in record.where(pass_name="hires")} == {other}
    assert_keys(record, factor_2)
    assert not any("todo_lib" in text for text in client.leftovers().values())


@pytest.mark.parametrize(("base", "other"), [("tiny", "tinyb"), ("twin.safetensors", "twin.ckpt")])
@pytest.mark.parametrize("hires", [False, True])
def test_refiner(client, base, other, hires):
    generate = client.hires if hires else client.txt2img
    with client.recording(indices=True) as record:
        generate([True, 2], model=base, steps=6, refiner_checkpoint=other, refiner_switch_at=0.5)
    assert {a.model for a in record.attentions} == {base, other}
    assert_keys(record, factor_2)
    assert not any("todo_lib" in text for text in client.leftovers().values())


# ---- samplers


def step_of_calls(record):
    """For each U-Net call, its sampling step: known from the samplers, and independent of the extension's code."""
    steps = []
    for call in record.calls:
        if (step := second_order_step(call["sampler"], call["call"])) is not None:
            steps.append(step)
        elif call["sampler"] == "PLMS":
            steps.append(max(0, call["call"] - 1))
        else:
            steps.append(call["call"])
    return steps


@pytest.fixture(scope="session")
def samplers(webui):
    from tests.webui.client import Client

    return [sampler["name"] for sampler in Client(webui.url).get("/sdapi/v1/samplers")]


def check_half(record):
    """Check that exactly the steps i with i / n < 0.5 are downsampled."""
    steps = step_of_calls(record)
    n = steps[-1] + 1
    for call, step in zip(record.calls, steps, strict=True):
        keys = {a.keys * 4 == a.queries for a in record.where(call=call["call"], depth=1)}
        assert keys == {step / n < 0.5}, f"step {step} of {n}, call {call['call']} of {call['sampler']}"


def test_all_samplers(client, samplers):
    assert len(samplers) >= 19
    image = client.txt2img().image
    for sampler in samplers:
        for img2img in (False, True):
            if sampler == "DPM adaptive":
                continue
            with client.recording() as record:
                request = {"todo": [True, 2, 1, 0, 0.5], "sampler_name": sampler, "steps": 7}
                if img2img:
                    client.img2img(image, denoising_strength=0.7, **request)
                else:
                    client.txt2img(**request)
            assert len(record.calls) >= 3
            check_half(record)


def test_dpm_adaptive_goes_by_the_noise_schedule(client):
    image = client.txt2img().image
    for generate in (client.txt2img, lambda **request: client.img2img(image, denoising_strength=0.7, **request)):
        with client.recording() as record:
            generate(todo=[True, 2, 1, 0, 0.5], sampler_name="DPM adaptive", cfg_scale=1)
        check_first_half(record, "DPM adaptive")


def test_split_cond_and_uncond_and_long_prompts(client):
    long = " ".join(["many words"] * 60)
    with client.options(batch_cond_uncond=False), client.recording() as record:
        client.txt2img([True, 2, 1, 0, 0.5], prompt=long, steps=4)
    assert len(record.calls) > 4
    assert_keys(record, lambda a: factor_2(a) if a.step < 2 else 1)


def test_skipped_guidance(client):
    with client.options(skip_early_cond=0.5), client.recording() as record:
        client.txt2img([True, 2, 1, 0, 0.75])
    assert {a.batch for a in record.attentions} == {1, 2}
    assert_keys(record, lambda a: factor_2(a) if a.step < 3 else 1)
