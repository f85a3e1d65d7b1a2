"""The keys that self-attentions see, for all models, sizes, depths, attention implementations and neighbours.

The order of a moving grid is judged in test_moving_grid.py.
"""

import numpy as np
import pytest

from tests.webui.client import assert_keys, changes, kept_grid

MODELS = ["tiny", "tiny2v", "tinyxl", "tinyinp"]


def todo(factor, max_depth=2, deeper_factor=0, moving=True):
    return {"enabled": True, "factor": factor, "max_depth": max_depth, "deeper_factor": deeper_factor, "moving": moving}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("max_depth", [1, 4])
@pytest.mark.parametrize("moving", [True, False])
def test_models_and_depths(client, model, max_depth, moving):
    dense = client.txt2img(model=model).image
    with client.recording(indices=True) as record:
        image = client.txt2img(todo(2, max_depth, 1.5, moving), model=model).image
    assert_keys(record, lambda a: 1 if a.depth > max_depth else 2 if a.depth == 1 else 1.5, moving)
    assert not np.array_equal(image, dense)


def test_deeper_factor_0_is_half_of_the_one_above(client):
    for factor in (4, 3):
        with client.recording(indices=True) as record:
            client.txt2img(todo(factor, max_depth=4), steps=2)
        assert_keys(record, lambda a, factor=factor: max(1, factor / 2 ** (a.depth - 1)))


@pytest.mark.parametrize("size", [(128, 128), (136, 72), (200, 120), (72, 264), (104, 88)])
@pytest.mark.parametrize("factor", [1.5, 3, 8])
@pytest.mark.parametrize("moving", [True, False])
def test_sizes_and_factors(client, size, factor, moving):
    with client.recording(indices=True) as record:
        client.txt2img(todo(factor, 4, factor, moving), width=size[0], height=size[1], steps=2)
    assert {a.grid for a in record.attentions if a.depth == 1} == {(size[1] // 8, size[0] // 8)}
    assert_keys(record, lambda a: factor, moving)


@pytest.mark.parametrize("model", ["tiny", "tinyxl"])
def test_factor_1_and_switched_off_are_dense_to_the_bit(client, model):
    dense = client.txt2img(model=model).image
    for args in ([False, 4], [True, 1], [True, 1, 4, 0, 1, 1], [True, 2, 1, 1, 1], [True], todo(1, moving=False)):
        assert np.array_equal(client.txt2img(args, model=model).image, dense), args
    assert np.array_equal(client.txt2img({"enabled": False, "factor": 3}, model=model).image, dense)


@pytest.mark.parametrize(
    ("model", "size", "steps", "kept"),
    [
        ("tiny", (512, 512), 16, {}),
        ("tiny", (768, 512), 6, {1: (56, 80)}),
        ("tiny", (768, 768), 5, {1: (80, 80)}),
        ("tiny", (768, 768), 10, {1: (64, 64)}),
        ("tiny", (768, 768), 11, {1: (48, 48)}),
        ("tiny", (768, 768), 16, {1: (40, 40), 2: (40, 40)}),
        ("tinyxl", (1280, 1280), 6, {1: (64, 64)}),
    ],
)
def test_factor_0_is_chosen_from_the_size_and_the_steps(client, model, size, steps, kept):
    with client.options(sd_vae_decode_method="Approx cheap"), client.recording() as record:
        client.txt2img(todo(0), model, width=size[0], height=size[1], steps=steps, cfg_scale=1)
    assert_keys(record, lambda a: kept.get(a.depth, 1))


def test_factor_0_counts_the_steps_that_are_really_made(client):
    """Half of 20 steps of img2img is 11."""
    image = client.txt2img(width=768, height=768, steps=1, cfg_scale=1).image
    with client.options(sd_vae_decode_method="Approx cheap"), client.recording() as record:
        client.img2img(image, todo=todo(0), width=768, height=768, steps=20, cfg_scale=1, denoising_strength=0.5)
    assert_keys(record, lambda a: (48, 48) if a.depth == 1 else 1)


@pytest.mark.parametrize(
    "optimization",
    ["sdp - scaled dot product", "sdp-no-mem", "sub-quadratic", "V1", "InvokeAI", "Doggettx", "None"],
)
@pytest.mark.parametrize("moving", [True, False])
def test_attention_optimizations(client, optimization, moving):
    names = client.get("/probe/optimizers")
    chosen = next(name for name in [*names, "None"] if name.startswith(optimization.split(" ")[0]))
    with client.options(cross_attention_optimization=chosen):
        dense = client.txt2img().image
        with client.recording(indices=True) as record:
            image = client.txt2img(todo(2, deeper_factor=2, moving=moving)).image
    assert_keys(record, lambda a: 2 if a.depth <= 2 else 1, moving)
    assert not np.array_equal(image, dense)


def test_batches(client):
    with client.recording(indices=True) as record:
        batch = client.txt2img([True, 2], batch_size=2, n_iter=2)
    assert len(batch.images) == 4
    assert {a.batch for a in record.attentions} == {4} and {a.iteration for a in record.attentions} == {0, 1}
    assert_keys(record, lambda a: 2 if a.depth == 1 else 1)


def test_img2img_and_inpainting(client):
    image = client.txt2img().image
    mask = np.zeros_like(image)
    mask[:, 64:] = 255
    for model, request in [("tiny", {}), ("tinyinp", {"mask": mask}), ("tiny", {"mask": mask, "inpaint_full_res": 1})]:
        with client.recording(indices=True) as record:
            client.img2img(image, todo=[True, 2], model=model, denoising_strength=0.6, n_iter=2, **request)
        assert_keys(record, lambda a: 2 if a.depth == 1 else 1)


# ---- neighbours that work on the same layers


def hypertile(client):
    # Swap size 1: larger ones draw the tiling at random.
    return client.options(
        hypertile_enable_unet=True,
        hypertile_max_tile_unet=128,
        hypertile_max_depth_unet=0,
        hypertile_swap_size_unet=1,
    )


def test_hypertile_keeps_its_tiles(client):
    request = {"width": 256, "height": 256, "steps": 2}
    with hypertile(client):
        tiled = client.txt2img(**request).image
        with client.recording(indices=True) as record:
            both = client.txt2img([True, 2], **request)
        with client.recording(indices=True) as deep:
            client.txt2img(todo(2, deeper_factor=2), **request)
    # Depth 1 is left to HyperTile: four tiles each, every key among its own tile's tokens.
    layers = record.where(depth=1)
    assert {(a.batch, a.queries, a.keys) for a in layers} == {(2 * 4, 256, 256)}
    assert all(a.key_rows == a.value_rows == ((tuple(range(256)),),) for a in layers)
    assert np.array_equal(both.image, tiled)
    assert "ToDo: nothing downsampled, 5 layers left to another patch" in record.generations[0]["comments"]
    # Layers that HyperTile leaves alone are downsampled.
    assert {(a.queries, a.keys) for a in deep.where(depth=2)} == {(256, 64)}
    assert "(5 layers)" in deep.generations[0]["comments"] and "5 layers left to" in deep.generations[0]["comments"]


def test_after_hypertile_all_is_downsampled_again(client):
    with hypertile(client):
        client.txt2img([True, 2], width=256, height=256, steps=1)
    with client.recording(indices=True) as record:
        client.txt2img([True, 2], width=256, height=256, steps=1)
    assert_keys(record, lambda a: 2 if a.depth == 1 else 1)


def test_token_merging_keeps_its_tokens(client):
    with client.options(token_merging_ratio=0.5):
        merged = client.txt2img().image
        with client.recording(indices=True) as record:
            both = client.txt2img([True, 2]).image
        with client.recording(indices=True) as deep:
            client.txt2img(todo(2, deeper_factor=2))
    assert all(a.keys == a.queries < a.grid[0] * a.grid[1] for a in record.where(depth=1))
    assert np.array_equal(both, merged)
    assert "5 layers left to another patch" in record.generations[0]["comments"]
    assert {a.keys for a in deep.where(depth=2)} == {np.prod(kept_grid((4, 8), 2))}


def test_hypertile_and_token_merging_together(client):
    with hypertile(client), client.options(token_merging_ratio=0.5):
        before = client.leftovers()
        client.txt2img(todo(2, 4, 2), width=256, height=256, steps=2)
        assert [c for c in changes(before, client.leftovers()) if "pre_hooks" in c] == []
