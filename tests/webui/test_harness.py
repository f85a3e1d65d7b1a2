"""The harness itself, with ToDo switched off, because the other tests here rely on it."""

from fractions import Fraction

import numpy as np
import pytest

from tests.webui.client import Attention, Offsets, RequestFailed, changes, kept_grid, kept_rows, moving_rows, places_of

# The token grids of a 128x64 image by depth, and the number of self-attentions on each.
SD1 = {(8, 16): 5, (4, 8): 5, (2, 4): 5, (1, 2): 1}
GRIDS = {
    "tiny": SD1,
    "tinyinp": SD1,
    "tiny2v": SD1,
    "tinyxl": {(4, 8): 10, (2, 4): 24},
}


@pytest.mark.parametrize("model", GRIDS)
def test_dense_attention_is_recorded(client, model):
    plain = client.txt2img(model=model).image
    with client.recording(indices=True) as record:
        recorded = client.txt2img(model=model).image
    assert np.array_equal(plain, recorded), "two identical requests, or recording, change the picture"
    assert plain.shape == (64, 128, 3)
    assert plain.std() > 5, "the picture is empty"

    assert [call["step"] for call in record.calls] == [0, 1, 2, 3]
    grids = sorted(GRIDS[model], reverse=True)
    for call in range(4):
        layers = record.where(call=call)
        assert {grid: sum(a.grid == grid for a in layers) for grid in grids} == GRIDS[model]
        assert len({a.layer for a in layers}) == len(layers) == sum(GRIDS[model].values())
    for a in record.attentions:
        assert (a.model, a.pass_name, a.steps, a.batch) == (model, "first", 4, 2)
        assert a.depth == 1 + grids.index(a.grid)
        assert a.queries == a.keys == a.values == a.grid[0] * a.grid[1]
        assert a.key_rows == a.value_rows == ((tuple(range(a.queries)),),)


# The twins share one config, so the host loads the other's weights into the same modules. Otherwise it makes new ones.
@pytest.mark.parametrize(("base", "other"), [("tiny", "tinyb"), ("twin.safetensors", "twin.ckpt")])
def test_hires_passes_and_checkpoints_are_told_apart(client, base, other):
    with client.recording(fingerprints=True) as record:
        client.hires(model=base, hr_checkpoint_name=other)
    first, hires = record.where(pass_name="first"), record.where(pass_name="hires")
    assert {a.model for a in first} == {base} and {a.model for a in hires} == {other}
    assert {a.grid for a in first if a.depth == 1} == {(8, 8)} and {a.step for a in first} == set(range(4))
    assert {a.grid for a in hires if a.depth == 1} == {(16, 16)} and len({a.step for a in hires}) == 3
    assert [(b["moment"], b["pass"]) for b in record.between] == [
        ("before hires", "hires"),
        ("after sampling", "first"),
    ]
    assert changes(client.leftovers(), record.between[-1]["leftovers"]) == []


def test_generations_leave_nothing(client):
    client.txt2img()  # the host itself leaves something the first time
    before = client.leftovers()
    with client.recording(indices=True, fingerprints=True) as record:
        client.txt2img()
    assert changes(before, client.leftovers()) == []
    assert all(changes(before, b["leftovers"]) == [] for b in record.between)
    assert "sgm.modules.attention.CrossAttention.forward" in before
    transformers = [
        place for place, text in before.items() if text.startswith("ldm.modules.attention.SpatialTransformer ")
    ]
    assert len(transformers) == 16


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("pass_name", ["first", "hires"])
def test_fault_raises(client, pass_name, inside):
    good = client.hires().image
    before = client.leftovers()
    with (
        client.recording() as record,
        client.fault(1, pass_name, inside=inside) as fault,
        pytest.raises(RequestFailed, match="injected fault"),
    ):
        client.hires()
    assert fault.fired
    assert len({a.call for a in record.where(pass_name=pass_name)}) == 1
    assert changes(before, client.leftovers()) == []
    assert np.array_equal(client.hires().image, good)


@pytest.mark.parametrize("action", ["interrupt", "skip"])
def test_fault_interrupts(client, action):
    good = client.txt2img().image
    with client.recording() as record, client.fault(1, action=action) as fault:
        stopped = client.txt2img()
    assert fault.fired
    assert len(record.calls) == 2
    assert not stopped.images or not np.array_equal(stopped.image, good)
    assert np.array_equal(client.txt2img().image, good)


def test_fault_that_does_not_fire_is_forgotten(client):
    with client.fault(4) as fault:
        client.txt2img(steps=4)
        client.txt2img(steps=5)
    assert not fault.fired


def test_options_are_restored(client):
    before = client.option("cross_attention_optimization")
    plain = client.txt2img().image
    with client.options(cross_attention_optimization="Doggettx"):
        assert "split_cross_attention_forward@" in client.leftovers()["ldm.modules.attention.CrossAttention.forward"]
        client.txt2img()
    assert client.option("cross_attention_optimization") == before
    assert np.array_equal(client.txt2img().image, plain)


def test_img2img_and_inpainting(client):
    image = client.txt2img().image
    mask = np.zeros_like(image)
    mask[:, 64:] = 255
    with client.recording() as record:
        painted = client.img2img(image, mask, model="tinyinp", denoising_strength=0.5, mask_blur=0).image
    assert painted.shape == image.shape
    assert np.array_equal(painted[:, :56], image[:, :56]) and not np.array_equal(painted[:, 64:], image[:, 64:])
    assert {a.model for a in record.attentions} == {"tinyinp"}
    assert len(record.calls) == 3  # half of 4 steps, and one more from the host


def test_expected_rows():
    assert kept_grid((8, 16), 2) == (4, 8) and kept_grid((5, 3), 8) == (1, 1)
    assert kept_rows((4, 4), 2) == (5, 7, 13, 15)
    assert kept_rows((1, 5), 1.5) == (0, 2, 4)
    assert moving_rows((4, 2), 2) == {(0, 4): (0, 0), (1, 5): (0, 1), (2, 6): (1, 0), (3, 7): (1, 1)}
    assert moving_rows((1, 1), 3) == {(0,): (0, 0)}
    assert set(moving_rows((1, 5), 1.5)) == {(0, 1, 3), (0, 2, 3), (0, 2, 4), (1, 2, 4), (1, 3, 4)}
    assert places_of(6, 3) == [Fraction(1, 4), Fraction(3, 4)]


def test_offsets_are_judged():
    common = dict.fromkeys(("model", "pass_name", "iteration", "sampler", "call", "step", "steps", "sampling_step"))
    common |= dict.fromkeys(("sigma", "todo", "layer", "batch", "queries", "keys", "values"))

    def attention(*heads, values=None, grid=(2, 2)):
        return Attention(**common, depth=1, grid=grid, heads=2, key_rows=(heads,), value_rows=values or (heads,))

    offsets = Offsets()
    assert offsets.add(attention((0,), (3,)), 2, step=0) is None
    assert offsets.add(attention((0, 2, 8, 10), (5, 7, 13, 15), grid=(4, 4)), 2, step=0) is None
    assert "another offset" in offsets.add(attention((0,), (2,)), 2, step=0)
    assert offsets.add(attention((1,)), 2, step=1) is None  # all heads are alike
    assert offsets.of_sampling(1, 2)[1] == ((0, 1), (0, 1))
    assert offsets.add(attention((0, 4), (3, 7)), 2, step=2, grids=2) is None
    for wrong in (
        attention((0, 2, 8, 11), grid=(4, 4)),  # tokens between two offsets
        attention((-1,)),
        attention((0,), (3,), values=(((0,), (2,)),)),
        attention((0,), values=(((0,),), ((1,),))),  # not all images alike
    ):
        assert offsets.add(wrong, 2, step=3) == "keys from the wrong places"
    assert offsets.add(attention((0, 5)), 2, step=2, grids=2) == "keys from the wrong places"


def test_page_loads(page, tmp_path):
    assert page.locator("#txt2img_prompt textarea").is_visible()
    assert page.errors == []
