"""The small trained model draws what the prompt says."""

from __future__ import annotations

import pytest
import torch

from lab.model import card, train
from lab.model.emoji import LARGE_SIZE, NATIVE_SIZE, UNET_FILES, load, made_steps
from lab.model.parts import SIZE_WAVES, make_unet
from lab.model.pictures import CAPTIONS
from lab.model.tokens import END, START, Tokenizer
from todo_lib.unet import spatial_transformers

TEXTS = list(CAPTIONS.values())


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.mark.slow
def test_each_picture_is_nearest_to_that_of_its_prompt(model):
    drawn = model.draw(TEXTS, steps=6)
    assert drawn.shape == (len(TEXTS), NATIVE_SIZE, NATIVE_SIZE, 3)
    assert [card.nearest(picture) for picture in drawn] == TEXTS


@pytest.mark.parametrize("text", ["red apple", "rainbow", "panda face", "astronaut"])
def test_large_pictures_too(model, text):
    (picture,) = model.draw([text], (LARGE_SIZE, LARGE_SIZE), seed=1, steps=5)
    assert picture.shape == (LARGE_SIZE, LARGE_SIZE, 3)
    assert card.nearest(picture) == text


@pytest.mark.parametrize("text", ["red heart", "ginger cat"])
def test_a_hires_pass_draws_the_same_at_twice_the_size(model, text):
    latents = model.sample([text], model.noise((NATIVE_SIZE, NATIVE_SIZE), 0), steps=6)
    seen = []
    refined = model.refine([text], latents, (LARGE_SIZE, LARGE_SIZE), steps=6, progress=seen.append)
    assert seen == [i / made_steps(6) for i in range(made_steps(6))]
    assert refined.shape == (1, 4, LARGE_SIZE // 8, LARGE_SIZE // 8)
    assert card.nearest(model.decode(refined)[0]) == text


def test_the_heads_at_depth_1_are_several(model):
    assert model.unet.get_submodule("input_blocks.1.1.transformer_blocks.0.attn1").heads == 4


def test_an_article_changes_nothing_of_that(model):
    assert card.nearest(model.draw(["a red apple"], seed=1, steps=6)[0]) == "red apple"


def test_the_seed_decides_about_the_picture(model):
    first, again, other = (model.draw(["red apple"], seed=seed, steps=3) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_large_size_has_thousands_of_tokens(model):
    latents = model.noise((LARGE_SIZE, LARGE_SIZE), seed=0)
    assert latents.shape == (1, 4, 64, 64)
    times, context = torch.tensor([500.0]), model.prompts(["red apple"])
    assert model.unet(latents, times, context).shape == latents.shape


def test_the_files_are_small():
    folder = card.HERE
    files = [folder / "emoji.safetensors", folder / "emoji.yaml", *(folder / "emoji").iterdir()]
    assert sum(file.stat().st_size for file in files) <= 12_000_000


@pytest.fixture(scope="module")
def sdxl_unet():
    torch.manual_seed(0)
    unet = make_unet("sdxl").eval().requires_grad_(False)
    for parameter in unet.parameters():  # layers that begin at zero would hide what comes before them
        parameter.normal_(std=0.05)
    return unet


def test_the_layout_of_sdxl(sdxl_unet):
    found = [(t.name, t.halvings, t.depth, len(t.attentions)) for t in spatial_transformers(sdxl_unet)]
    assert found == [
        ("input_blocks.3.1", 1, 1, 2),
        ("input_blocks.5.1", 2, 2, 5),
        ("middle_block.1", 2, 2, 5),
        ("output_blocks.0.1", 2, 2, 5),
        ("output_blocks.1.1", 2, 2, 5),
        ("output_blocks.2.1", 1, 1, 2),
        ("output_blocks.3.1", 1, 1, 2),
    ]
    for transformer in spatial_transformers(sdxl_unet):
        assert isinstance(transformer.module.proj_in, torch.nn.Linear)
        assert {attn.heads for attn in transformer.attentions.values()} == {4 * transformer.depth}
    assert sdxl_unet.label_emb[0][0].in_features == 4 * SIZE_WAVES
    assert 2 * sum(parameter.numel() for parameter in sdxl_unet.parameters()) <= 8_000_000


def test_sdxls_layout_is_told_the_size_and_the_part(sdxl_unet):
    latents = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    times, context = torch.tensor([500.0, 500.0]), torch.zeros(2, 77, 96)
    whole = sdxl_unet(latents, times, context)
    assert whole.shape == latents.shape
    assert torch.equal(whole, sdxl_unet(latents, times, context, frame=(16, 24, 0, 0)))
    for frame in ((32, 24, 0, 0), (16, 48, 0, 0), (16, 24, 8, 0), (16, 24, 0, 8)):
        assert (whole - sdxl_unet(latents, times, context, frame)).abs().max() > 1e-3


def test_a_model_that_was_not_trained_is_said_how_to_make(monkeypatch, tmp_path):
    monkeypatch.setitem(UNET_FILES, "sdxl", tmp_path / "missing.safetensors")
    with pytest.raises(FileNotFoundError, match="train export --layout sdxl makes it"):
        load("sdxl")


def test_training_of_sdxls_layout_begins_with_what_fits_of_the_finished_model(model):
    begun, finished = train.sdxl_denoiser()["unet"].state_dict(), model.unet.state_dict()
    pairs = {
        "input_blocks.3.1.transformer_blocks.0.attn1.to_q": "input_blocks.3.1.transformer_blocks.0.attn1.to_q",
        "input_blocks.5.1.proj_in": "input_blocks.5.1.proj_in",
        "output_blocks.2.0.in_layers.2": "output_blocks.4.0.in_layers.2",
        "output_blocks.5.0.out_layers.3": "output_blocks.7.0.out_layers.3",
    }
    for name, other in pairs.items():
        assert torch.equal(begun[f"{name}.weight"].flatten(), finished[f"{other}.weight"].flatten())
    for name in ("transformer_blocks.1.attn1.to_out.0", "transformer_blocks.4.ff.net.2"):  # new blocks add nothing
        assert not begun[f"input_blocks.5.1.{name}.weight"].any()


def test_matrices_of_one_shape_are_trained_at_once_as_each_alone():
    first, second, tall = (torch.randn(shape) for shape in ((4, 8), (4, 8), (8, 4)))
    together, alone = ([torch.nn.Parameter(x.clone()) for x in (first, second, tall)] for _ in "ab")
    for parameters in (together, alone):
        for i, p in enumerate(parameters):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    train.Muon(together, lr=0.1).step()
    for p in alone:
        train.Muon([p], lr=0.1).step()
    for before, p, other in zip((first, second, tall), together, alone, strict=True):
        assert torch.allclose(p, other, atol=1e-3)
        moved = torch.linalg.svdvals(p.detach() - before) / (0.1 * max(1, p.shape[0] / p.shape[1]) ** 0.5)
        assert moved.min() > 0.5 and moved.max() < 1.3


def test_tokens():
    tokenizer = Tokenizer.train(["red apple", "green apple"])
    start, end = tokenizer.vocabulary[START], tokenizer.vocabulary[END]
    red, apple = tokenizer.vocabulary["red</w>"], tokenizer.vocabulary["apple</w>"]
    rows = tokenizer(["Red  apple", "", "red " * 100])
    assert rows.shape == (3, 77)
    assert rows[0].tolist() == [start, red, apple] + [end] * 74
    assert rows[1].tolist() == [start] + [end] * 76
    assert rows[2].tolist() == [start] + [red] * 75 + [end]
    assert len(tokenizer(["größer, 42!"])[0].unique()) > 5  # the tokenizer reads any text
