"""The moving grid, step by step: the order in which it goes through its offsets.

The order itself is not written down here, only its properties:
- all that runs in a step shares it,
- it differs from head to head and from step to step,
- it covers all tokens,
- it begins again with each pass.
"""

import itertools
import math

import numpy as np
import pytest

from tests.webui.client import Client, Offsets, assert_keys, kept_rows
from tests.webui.compatibility import Run
from tests.webui.conftest import running_among
from tests.webui.neighbours import control, control_model
from tests.webui.sampler_steps import second_order_step
from tests.webui.server import find_extensions
from tests.webui.table import Table

SIZE = {"width": 192, "height": 96}  # 24 x 12 tokens, which both 2 and 3 divide


def factor_2(a):
    return 2 if a.depth == 1 else 1


def check_order(record, factor_of, places, step_of=lambda a: a.step, depth=1):
    """Check that the grids of this depth take all offsets in turn, in all samplings alike.

    places: the number of places that their factor makes along each side.
    Returns step -> the offset of each head. Coverage is checked only if there are enough steps for it.
    """
    orders = orders_of(record, factor_of, places, step_of)
    for order in orders.values():
        steps = sorted(order)
        assert steps == list(range(steps[0], steps[-1] + 1))
        for heads in order.values():
            assert len(set(heads)) == min(len(heads), places**2), "heads are alike"
        for head in zip(*(order[step] for step in steps), strict=True):
            for i in range(len(head)):
                turn = head[i : i + places**2]
                assert len(set(turn)) == len(turn), f"an offset comes again too soon: {head}"
    for one, other in itertools.combinations(orders.values(), 2):
        assert all(one[step] == other[step] for step in one.keys() & other.keys())
    check_cover([a for a in record.where(depth=depth) if math.ceil(factor_of(a)) == places], places, step_of)
    return max(orders.values(), key=len)


def check_cover(calls, places, step_of):
    """Check that in as many steps as there are offsets, each head of these self-attentions has every token as a key."""
    found = {}
    for a in calls:
        (heads,) = a.key_rows
        found.setdefault((a.sampling, a.layer, a.queries), {})[step_of(a)] = heads
    for (*_, tokens), rows in found.items():
        steps = sorted(rows)
        for i in range(0, len(steps) - places**2 + 1, places**2):
            for head in zip(*(rows[step] for step in steps[i : i + places**2]), strict=True):
                assert set(itertools.chain(*head)) == set(range(tokens))


def orders_of(record, factor_of, places, step_of=lambda a: a.step):
    """sampling -> step -> the offset of each head, for grids with this number of places."""
    offsets = assert_keys(record, factor_of, step_of=step_of)
    orders = {sampling: offsets.of_sampling(sampling, places) for sampling, _ in offsets}
    return {sampling: order for sampling, order in orders.items() if order}


# ---- steps


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "DDIM", "LCM", "Heun", "DPM++ SDE", "Restart"])
@pytest.mark.parametrize("factor", [2, 3])
def test_samplers(client, sampler, factor):
    with client.recording(indices=True) as record:
        client.txt2img([True, factor, 1], sampler_name=sampler, steps=10, **SIZE)

    def step_of(a):
        step = second_order_step(a.sampler, a.call)
        return a.call if step is None else step

    order = check_order(record, lambda a: factor if a.depth == 1 else 1, factor, step_of)
    assert len(order) >= 9  # DDIM makes one less, Restart makes more
    calls = len({a.call for a in record.attentions})
    assert calls == len(order) if sampler in ("Euler", "DPM++ 2M", "DDIM", "LCM") else calls >= 2 * len(order) - 1


@pytest.mark.parametrize("model", ["tiny2v", "tinyxl"])
def test_models(client, model):
    with client.recording(indices=True) as record:
        client.txt2img([True, 3, 2, 0, 1, 2], model, steps=9, width=192, height=192)
    check_order(record, lambda a: {1: 3, 2: 2}.get(a.depth, 1), 3)
    check_order(record, lambda a: {1: 3, 2: 2}.get(a.depth, 1), 2, depth=2)


def test_dpm_adaptive_moves_too(client):
    request = {"sampler_name": "DPM adaptive", "cfg_scale": 1, **SIZE}
    with client.recording(indices=True) as record:
        client.txt2img([True, 2, 1], **request)
    (order,) = orders_of(record, factor_2, 2).values()
    assert len(set(order.values())) == 4
    # Only accepted steps count: the offsets change less often than the U-Net is called.
    moves = [one != other for one, other in itertools.pairwise(order[step] for step in sorted(order))]
    assert 0 < sum(moves) < len(moves)


def test_several_calls_a_step(client):
    long = " ".join(["many words"] * 60)
    with client.options(batch_cond_uncond=False), client.recording(indices=True) as record:
        client.txt2img([True, 2, 1], prompt=long, steps=5, **SIZE)
    assert len(record.calls) == 10
    apart = check_order(record, factor_2, 2)
    with client.recording(indices=True) as record:
        client.txt2img([True, 2, 1], steps=5, **SIZE)
    assert check_order(record, factor_2, 2) == apart


def test_a_range_of_steps(client):
    """The offset of a step is the same whether those before it are downsampled or not."""
    with client.recording(indices=True) as record:
        client.txt2img([True, 2, 1], steps=8, **SIZE)
    whole = check_order(record, factor_2, 2)
    with client.recording(indices=True) as record:
        client.txt2img([True, 2, 1, 0.25, 0.75], steps=8, **SIZE)
    part = check_order(record, lambda a: factor_2(a) if 2 <= a.step < 6 else 1, 2)
    assert part == {step: whole[step] for step in range(2, 6)}


# ---- passes


def test_hires_begins_anew(client):
    with client.recording(indices=True) as record:
        client.hires([True, 2, 1], width=96, height=64, steps=6, hr_second_pass_steps=5)
    orders = orders_of(record, factor_2, 2)
    assert sorted(len(order) for order in orders.values()) == [5, 6]
    check_order(record, factor_2, 2)


def test_the_hires_factor_has_places_of_its_own(client):
    with client.recording(indices=True) as record:
        client.hires([True, 2, 1, 0, 1, 0, "both", 3], width=96, height=96, steps=4, hr_second_pass_steps=9)

    def factor_of(a):
        return {"first": 2, "hires": 3}[a.pass_name] if a.depth == 1 else 1

    assert set(check_order(record, factor_of, 2)) == {0, 1, 2, 3}
    hires = check_order(record, factor_of, 3)
    with client.recording(indices=True) as record:
        client.txt2img([True, 3, 1], steps=9, **SIZE)
    assert check_order(record, lambda a: 3 if a.depth == 1 else 1, 3) == hires


@pytest.mark.parametrize(("base", "other"), [("tiny", "tinyb"), ("twin.safetensors", "twin.ckpt")])
def test_a_refiner_goes_on(client, base, other):
    with client.recording(indices=True) as record:
        client.txt2img([True, 2, 1], base, steps=8, refiner_checkpoint=other, refiner_switch_at=0.4, **SIZE)
    assert {a.model for a in record.attentions} == {base, other}
    assert len(check_order(record, factor_2, 2)) == 8


def test_batches_and_image_to_image(client):
    with client.recording(indices=True) as record:
        batch = client.txt2img([True, 2, 1], batch_size=2, n_iter=2, steps=5, **SIZE)
    assert {a.batch for a in record.attentions} == {4} and {a.sampling for a in record.attentions} == {1, 2}
    order = check_order(record, factor_2, 2)
    with client.recording(indices=True) as record:
        client.img2img(batch.images[0], todo=[True, 2, 1], steps=8, denoising_strength=0.5, **SIZE)
    shortened = check_order(record, factor_2, 2)
    assert len(shortened) == 5 and shortened == order


# ---- the same request


def test_the_same_request_gives_the_same_image(client):
    request = {"todo": [True, 3, 2], "sampler_name": "Euler a", "steps": 5}
    first = client.txt2img(**request).image
    still = client.txt2img([True, 3, 2, 0, 1, 0, "both", 0, False], sampler_name="Euler a", steps=5).image
    client.txt2img([True, 2], steps=3, **SIZE)
    with client.fault(1) as fault, pytest.raises(Exception, match="injected fault"):
        client.txt2img(**request)
    assert fault.fired
    assert np.array_equal(client.txt2img(**request).image, first)
    assert not np.array_equal(first, still)


def test_a_still_grid_takes_the_same_tokens_at_every_step(client):
    with client.recording(indices=True) as record:
        client.txt2img([True, 3, 1, 0, 1, 0, "both", 0, False], steps=5, **SIZE)
    assert_keys(record, lambda a: 3 if a.depth == 1 else 1, moving=False)
    assert len({a.key_rows for a in record.where(depth=1)}) == 1


def test_nothing_is_left(client):
    client.txt2img([True, 2], **SIZE)
    before, objects = client.leftovers(), client.get("/probe/memory")["ours"]
    for _ in range(3):
        client.hires([True, 2, 2], width=96, hr_second_pass_steps=5)
    assert client.leftovers() == before
    assert client.get("/probe/memory")["ours"] == objects


# ---- ControlNets and tiles


@pytest.fixture(scope="module")
def among(checkpoints, tmp_path_factory):
    """A running WebUI with ControlNet and the tiling extension."""
    names = ("sd-webui-controlnet", "multidiffusion-upscaler-for-automatic1111")
    others = {name: folder for name, folder in find_extensions().items() if name in names}
    if len(others) < len(names):
        pytest.skip(f"not all there: {', '.join(names)}")
    with running_among(others, checkpoints, tmp_path_factory.mktemp("among") / "data", Table()) as server:
        yield server


@pytest.fixture
def run(among, request):
    """The things that these requests are made from: a client, the model, and an image."""
    client = Client(among.url)
    request.node.webui_log = among, among.log_size()
    return Run(client, "tiny", client.txt2img(**SIZE).image)


@pytest.mark.slow
def test_controlnets_share_the_offsets(run):
    assert run.client.get("/controlnet/model_list", update="true")
    with run.client.recording(indices=True, controls=True) as record:
        result = run.client.txt2img([True, 2, 1], steps=5, **SIZE, **control_model(run))
    calls = record.where(depth=1)
    assert {a.layer.partition(":")[0] for a in calls if a.layer.startswith("control")} == {"control 1"}
    assert len(check_order(record, factor_2, 2)) == 5
    assert "2 of them in ControlNet" in record.generations[0]["comments"]
    still = [True, 2, 1, 0, 1, 0, "both", 0, False]
    with run.client.recording(indices=True, controls=True) as record:
        other = run.client.txt2img(still, steps=5, **SIZE, **control_model(run))
    assert_keys(record, factor_2, moving=False)
    assert not np.array_equal(result.images[0], other.images[0])


@pytest.mark.slow
@pytest.mark.parametrize("moving", [True, False])
def test_each_grid_of_a_reference_is_downsampled_alike(run, moving):
    unit = control(run, module="reference_only", model="None", threshold_a=0.5)
    with run.client.recording(indices=True) as record:
        run.client.txt2img([True, 2, 1, 0, 1, 0, "both", 0, moving], steps=4, **SIZE, **unit)
    calls, offsets, size = record.where(depth=1), Offsets(), 12 * 24
    assert {a.keys for a in calls} == {size // 4, 2 * size // 4}
    for a in calls:
        grids = a.keys // (size // 4)
        if moving:
            assert offsets.add(a, 2, a.step, grids) is None
        else:
            rows = kept_rows(a.grid, 2)
            assert a.key_rows == a.value_rows == ((rows + tuple(i + size for i in rows) * (grids - 1),),)
    assert not moving or len(offsets) == 4


@pytest.mark.slow
@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers"])
def test_tiles_share_the_offsets(run, method):
    args = [True, method, False, True, 512, 512, 16, 12, 4, 2]
    request = {"alwayson_scripts": {"Tiled Diffusion": {"args": args}}, "width": 296, "height": 232, "steps": 5}
    with run.client.recording(indices=True) as record:
        run.client.txt2img([True, 2, 1], **request)
    assert len(record.calls) > 5
    assert len(check_order_of_tiles(record)) == 5


def check_order_of_tiles(record):
    (order,) = orders_of(record, factor_2, 2).values()
    for head in zip(*order.values(), strict=True):
        assert len(set(head[:4])) == 4
    return order
