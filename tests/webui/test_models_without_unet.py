"""Models without U-Net self-attention, or with a U-Net that does not run: nothing is done, and the comment says so."""

import numpy as np

from tests.webui.client import RequestFailed, assert_keys, changes

SD3 = "tinysd3"


def comments(record):
    assert len(record.generations) == 1
    return record.generations[0]["comments"]


def factor_2(a):
    return 2 if a.depth == 1 else 1


def check_tiny(client):
    """Check that a U-Net is downsampled as usual."""
    with client.recording(indices=True) as record:
        client.txt2img([True, 2])
    assert_keys(record, factor_2)
    assert "[depth 1: 16x8 tokens, keys from 8x4" in comments(record)


def check_sd3(client, generate, comment, passes):
    """Check that ToDo changes nothing in SD3, on or off, and that its comment is `comment`."""
    dense = generate(model=SD3)
    assert dense.image.std() > 5, "the picture is empty"
    before = client.leftovers()
    assert f"{SD3}: model.diffusion_model.joint_blocks.0.x_block.attn" in before
    with client.recording(fingerprints=True) as record:
        result = generate([True, 2], model=SD3)
    assert np.array_equal(result.image, dense.image)
    assert {call["model"] for call in record.calls} == {SD3}
    assert {call["pass"] for call in record.calls} == passes
    assert record.attentions == []
    assert comment in comments(record).splitlines()
    assert "ToDo downsample factor: 2, ToDo version: " in result.infotext
    assert "ToDo" not in dense.infotext
    assert [changes(before, b["leftovers"]) for b in record.between] == [[]] * len(passes)
    assert changes(before, client.leftovers()) == []


def test_sd3(client):
    comment = "ToDo: nothing downsampled, this model has no U-Net self-attention"
    check_sd3(client, client.txt2img, comment, {"first"})
    check_tiny(client)


def test_sd3_hires(client):
    nothing = "nothing downsampled, this model has no U-Net self-attention"
    comment = f"ToDo: first pass: {nothing}; hires pass: {nothing}"
    check_sd3(client, client.hires, comment, {"first", "hires"})
    check_tiny(client)


def test_sd3_img2img(client):
    picture = client.txt2img(model=SD3).image

    def generate(todo=None, **request):
        return client.img2img(picture, todo=todo, denoising_strength=0.7, **request)

    comment = "ToDo: nothing downsampled, this model has no U-Net self-attention"
    check_sd3(client, generate, comment, {"first"})


def test_sd3_samplers(client):
    """The samplers that work with SD3 also work with ToDo on. LCM is left out: the host fails with it in any case."""
    made = []
    for sampler in [sampler["name"] for sampler in client.get("/sdapi/v1/samplers")]:
        outcomes = []
        for todo in (None, [True, 2, 4, 0, 0.5]):
            try:
                outcomes.append(client.txt2img(todo, SD3, sampler_name=sampler).image)
            except RequestFailed as failure:
                outcomes.append(failure.text)
        off, on = outcomes
        assert np.array_equal(off, on), sampler
        made += [sampler] * isinstance(off, np.ndarray)
    assert {"Euler", "DPM++ 2M", "DPM adaptive"} <= set(made)


def test_replaced_unet(client):
    """Another U-Net, like TensorRT's, replaces the model's own. The model has self-attentions, but none runs."""
    own = client.txt2img().image
    with client.options(sd_unet="probe: zeros"):
        dense = client.txt2img().image
        before = client.leftovers()
        with client.recording(fingerprints=True) as record:
            result = client.txt2img([True, 2])
        after = client.leftovers()
    assert not np.array_equal(dense, own), "the U-Net was not replaced"
    assert np.array_equal(result.image, dense)
    assert len(record.calls) == 4 and record.attentions == []
    comment = "ToDo: nothing downsampled, the U-Net's own self-attentions did not run"
    assert comment in comments(record).splitlines()
    assert "ToDo downsample factor: 2, ToDo version: " in result.infotext
    assert [changes(before, b["leftovers"]) for b in record.between] == [[]]
    assert changes(before, after) == []
    check_tiny(client)
    assert np.array_equal(client.txt2img().image, own)
