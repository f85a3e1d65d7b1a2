"""The fidelity benchmark at a tiny size: its counts and measures are right, and a stopped run goes on."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from lab.benchmarks import fidelity
from lab.benchmarks.fidelity import Scenario
from lab.benchmarks.methods import DENSE, counted
from lab.benchmarks.samplers import SAMPLERS, Progress
from lab.benchmarks.store import Store
from lab.benchmarks.unets import SD15, SDXL
from lab.model.emoji import load
from todo_lib import Settings, Step

SIZE, STEPS, HIRES_STEPS = 128, 5, 4
SCENARIO, HIRES = Scenario(SIZE, "DPM++ 2M", STEPS), Scenario(2 * SIZE, "DPM++ 2M", HIRES_STEPS, hires=True)
LCM, IMG2IMG = Scenario(SIZE, "LCM", 2), Scenario(SIZE, "DPM++ 2M", 3, img2img=True)
OPTIONS = ["--size", str(SIZE), "--samplers", "DPM++ 2M", "--steps", str(STEPS), "--prompts", "1"]
OPTIONS += ["--lcm-steps", "2", "--img2img-steps", "3", "--hires-steps", str(HIRES_STEPS)]
# Keys at depth 1 of 16 x 16 tokens. ToMe merges queries as well.
KEYS = {
    "paper 2": [(256, 64)],
    "paper 3": [(256, 25)],
    "paper 4/2": [(256, 16)],
    "moving 1.6": [(256, 100)],
    "moving 2.4/1.2": [(256, 36)],
    "moving 3.2/1.6": [(256, 25)],
    "ToMe 0.75": [(64, 64)],
}
DEEPER = {
    "paper 2": {"2": [(64, 64)], "3": [(16, 16)], "4": [(4, 4)]},
    "paper 4/2": {"2": [(64, 16)], "3": [(16, 16)], "4": [(4, 4)]},
    "moving 1.6": {"2": [(64, 64)], "3": [(16, 16)], "4": [(4, 4)]},
    "moving 2.4/1.2": {"2": [(64, 36)], "3": [(16, 16)], "4": [(4, 4)]},
    "ToMe 0.75": {"2": [(64, 64)], "3": [(16, 16)], "4": [(4, 4)]},
}
SHOWN = ("dense", "paper 2", "paper 4/2", "moving 1.6", "moving 3.2/1.6", "ToMe 0.75")


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The results of a whole run."""
    folder = tmp_path_factory.mktemp("results")
    fidelity.main([*OPTIONS, "--results", str(folder)])
    return folder


def kept(folder):
    return json.loads((folder / "fidelity.json").read_text())


def entries_of(folder, scenario=SCENARIO):
    return kept(folder)["results"][scenario.name]["prompts"]["red apple"]


def test_each_methods_keys_are_counted(folder):
    entries = entries_of(folder)
    counts = {name: [tuple(pair) for pair in entry["keys"]["1"]] for name, entry in entries.items()}
    assert counts == KEYS
    for name, depths in DEEPER.items():
        for depth, pairs in depths.items():
            assert [tuple(pair) for pair in entries[name]["keys"][depth]] == pairs


def test_the_keys_of_the_hires_pass_are_counted(folder):
    entries = entries_of(folder, HIRES)
    assert list(entries) == list(KEYS)
    for name, keys in [("paper 2", 256), ("moving 1.6", 400)]:
        assert entries[name]["keys"]["1"] == [[1024, keys]]


@pytest.mark.parametrize("scenario", [SCENARIO, LCM, IMG2IMG, HIRES], ids=["first", "LCM", "img2img", "hires"])
def test_the_measures_are_sensible(folder, scenario):
    for name, entry in entries_of(folder, scenario).items():
        assert 0 < entry["error"] < 1, name
        assert 10 < entry["psnr"] < 100 and 0 < entry["ssim"] < 1 and 0.2 < entry["detail"] < 5, name
        assert entry["seconds"] > 0 and entry["dense_seconds"] > 0


def test_what_a_run_leaves(folder, capsys):
    for name in ("fidelity.png", "fidelity-pictures.webp", "fidelity-pictures-hires.webp"):
        assert (folder / name).stat().st_size > 10_000
    assert {"processor", "threads", "torch", "tomesd"} <= kept(folder)["machine"].keys()
    shown = [path.name for path in (folder / "pictures").rglob("*.png")]
    wanted = [f"red apple, {name.replace('/', '-')}.png" for name in SHOWN]
    assert sorted(shown) == sorted(4 * wanted)


def test_a_stopped_run_goes_on(folder, model, monkeypatch):
    before = kept(folder)
    sampled = []
    sample = fidelity.sample

    def counting(model, texts, noise, sampler, steps, *args):
        sampled.append(steps)
        return sample(model, texts, noise, sampler, steps, *args)

    monkeypatch.setattr(fidelity, "sample", counting)
    fidelity.main([*OPTIONS, "--results", str(folder)])
    assert sampled == [] and kept(folder) == before

    store = Store(folder / "fidelity.json")
    removed = store.results[SCENARIO.name]["prompts"]["red apple"].pop("moving 2.4/1.2")
    store.save()
    fidelity.main([*OPTIONS, "--results", str(folder)])
    assert sampled == [STEPS, STEPS]  # the dense one, for comparison, and the missing one
    again = entries_of(folder)["moving 2.4/1.2"]
    assert {key: again[key] for key in ("error", "psnr", "keys")} == {k: removed[k] for k in ("error", "psnr", "keys")}

    next((folder / "pictures").glob(f"*{HIRES.name}/*paper 4-2.png")).unlink()
    fidelity.main([*OPTIONS, "--results", str(folder)])
    assert sampled == [STEPS, STEPS] + 3 * [HIRES_STEPS]  # the first pass, the dense one and the missing one


def test_other_weights_and_other_machines_are_not_mixed(folder, tmp_path, monkeypatch):
    file = tmp_path / "fidelity.json"
    file.write_text((folder / "fidelity.json").read_text())
    monkeypatch.setattr(fidelity, "weights", lambda model: "others")
    store = Store(file)
    assert fidelity.open_cell(store, SCENARIO.name, "sd15") == {} and len(store.results) == 1
    changed = kept(folder)
    changed["machine"]["processor"] = "another"
    file.write_text(json.dumps(changed))
    with pytest.raises(SystemExit, match="processor"):
        Store(file)


def test_nothing_is_left_on_the_unet(model):
    for method in (DENSE, *fidelity.methods_of(Scenario(64, "DDIM", 1), Progress()).values()):
        with method.applied(model.unet), counted(model.unet):
            model.sample(["banana"], model.noise((64, 64), 0), 1)
        for name, module in model.unet.named_modules():
            assert not module._forward_pre_hooks and not module._forward_hooks, (method.name, name)
            assert type(module).__name__ != "ToMeBlock"


def test_dense_against_dense(model):
    first, second = (model.draw(["rainbow"], (64, 64), seed=1, steps=1)[0].numpy() for _ in range(2))
    found = fidelity.compare(first, second)
    assert found == {"psnr": math.inf, "ssim": pytest.approx(1), "detail": pytest.approx(1)}


def test_an_image_that_is_the_same_is_kept_as_json_and_read_back(tmp_path, model):
    latent = model.noise((64, 64), 0)
    drawn = fidelity.Drawn(latent, model.decode(latent)[0].numpy(), 1.0, {1: {(64, 64)}})
    store = Store(tmp_path / "fidelity.json")
    fidelity.open_cell(store, "64 px", "sd15")["red apple"] = {"paper 2": fidelity.figures(drawn, drawn)}
    store.save()
    text = (tmp_path / "fidelity.json").read_text()
    results = json.loads(text, parse_constant=pytest.fail)["results"]
    assert fidelity.summary(results["64 px"])["paper 2"]["psnr"] == 3 * (math.inf,)
    assert "| inf (inf to inf) |" in fidelity.table(results)


def test_names_and_steps_of_scenarios():
    assert Scenario(512, "Euler a", 8).name == "512 px, Euler a, 8 steps, guidance 2"
    assert Scenario(384, "DDIM", 9, model="sdxl").name == "SDXL's layout, 384 px, DDIM, 9 steps, guidance 2"
    assert Scenario(1024, "DPM++ 2M", 10, hires=True).name == "1024 px from 512, DPM++ 2M, 6 of 10 steps, guidance 2"
    assert Scenario(512, "Euler a", 20, img2img=True).name == "512 px, img2img, Euler a, 11 of 20 steps, guidance 2"
    assert Scenario(512, "LCM", 4).name == "512 px, LCM, 4 steps, no guidance"
    for scenario in (SCENARIO, LCM, IMG2IMG, HIRES):
        assert fidelity.steps_made(scenario.name) == scenario.made


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_hires_pass_begins_at_the_enlarged_image(model, sampler):
    scenario, progress, told = Scenario(128, sampler, 3, hires=True), Progress(), []

    def begin(position):
        progress.begin(position)
        told.append(progress.step)

    start = scenario.start(model, "banana")
    assert start.shape == (1, 4, 16, 16)
    drawn = scenario.draw(model, "banana", begin, start)
    assert drawn.shape == start.shape and scenario.made == len(told) == 2
    assert told == [Step(0, 0), Step(1, 0.5)]
    scenario.draw(model, "banana", begin, start)
    assert told[2:] == told[:2]


def test_img2img_begins_at_an_image_with_noise_of_its_own(model):
    scenario, progress = Scenario(128, "DPM++ 2M", 3, img2img=True), Progress()
    start = scenario.start(model, "banana")
    assert torch.equal(start, Scenario(128, "DPM++ 2M", 3).draw(model, "banana"))
    drawn = scenario.draw(model, "banana", progress.begin, start)
    assert progress.step == Step(1, 0.5) and drawn.shape == start.shape
    assert not torch.allclose(drawn, start, atol=0.1)


@pytest.mark.parametrize("layout", [SD15, SDXL], ids=lambda layout: layout.name)
@pytest.mark.parametrize("steps", [5, 8, 11, 20])
def test_factors_stand_for_what_the_default_keeps_of_larger_images(layout, steps):
    sizes = fidelity.stand_ins(steps, layout)
    assert list(sizes) == [1024, 1536, 2048][layout is SDXL :]  # SDXL at 1024 px stays dense
    for size, (_, default) in sizes.items():
        side = size // 8 if layout is SD15 else size // 16
        for depth in (1, 2):
            grid = (side >> (depth - 1), side >> (depth - 1))
            assert default.kept_grid(depth, grid) == Settings().kept_grid(depth, grid, steps)


def test_a_smoother_image_has_less_detail():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    smooth = torch.nn.functional.avg_pool2d(torch.from_numpy(noise).permute(2, 0, 1).float(), 3, 1, 1)
    found = fidelity.compare(smooth.permute(1, 2, 0).byte().numpy(), noise)
    assert found["detail"] < 0.2 and found["ssim"] < 0.8 and found["psnr"] < 15


def cell_of(points):
    """A cell of results from method -> (speed, error). Its two prompts have a tenth less and more of that error."""
    entries = [
        {
            name: {
                "error": error * share, "psnr": 30, "ssim": 0.9, "detail": 1.1,
                "seconds": 1 / speed, "dense_seconds": 1.0, "keys": {"1": [[4096, 1024]]},
            }
            for name, (speed, error) in points.items()
        }
        for share in (0.9, 1.1)
    ]  # fmt: skip
    return {"weights": "", "prompts": {"red apple": entries[0], "banana": entries[1]}}


POINTS = {"paper 2": (2, 0.04), "paper 3": (2.5, 0.1), "paper 4/2": (2.75, 0.2), "ToMe 0.75": (3, 0.3)}
FEW = {"moving 1.6": (2, 0.02), "moving 2.4/1.2": (2.5, 0.06)}
MANY = {"moving 3.2/1.6": (2.5, 0.01), "moving 4.8/2.4": (2.5, 0.12)}


def test_the_tables_of_known_numbers(tmp_path):
    results = {
        "512 px, DPM++ 2M, 20 steps, guidance 2": cell_of({**POINTS, **MANY}),
        "512 px, LCM, 4 steps, no guidance": cell_of({**POINTS, **FEW}),
    }
    lines = fidelity.table(results).splitlines()
    assert lines[0].startswith("512 px, DPM++ 2M, 20 steps, guidance 2; medians of 2 prompts")
    assert (
        "| paper 2 | 4096 x 1024 | 2.00 (2.00 to 2.00) | 4.0 % (3.6 to 4.4) | 30.0 (30.0 to 30.0) "
        "| 0.900 (0.900 to 0.900) | 1.10 (1.10 to 1.10) |" in lines
    )
    assert fidelity.verdict(results).splitlines()[2:] == [
        "| 512 px, DPM++ 2M, 20 steps (2) | 4.0 %, 1.0 % | 10.0 %, 12.0 % | 20.0 %, – | 30.0 % |",
        "| 512 px, LCM, 4 steps, no guidance (2) | 4.0 %, 2.0 % | 10.0 %, 6.0 % | 20.0 %, – | 30.0 % |",
    ]
    fidelity.chart(results, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000


def test_the_criterion_is_taken_prompt_by_prompt():
    cell = cell_of({**POINTS, **MANY})
    cell["prompts"]["banana"]["moving 3.2/1.6"]["error"] *= 2
    cell["prompts"]["banana"]["moving 3.2/1.6"]["seconds"] /= 2
    for name in ("moving 3.2/1.6", "moving 4.8/2.4"):  # of a run when the machine had much else to do
        for figure in ("seconds", "dense_seconds"):
            cell["prompts"]["red apple"][name][figure] *= 3
    cell["prompts"]["rainbow"] = {"paper 2": cell["prompts"]["banana"]["paper 2"]}  # not drawn by the default yet
    row = fidelity.criterion({"512 px, DPM++ 2M, 20 steps, guidance 2": cell}).splitlines()[2]
    assert row.startswith("| 512 px, DPM++ 2M, 20 steps (3) | 0.38 (0.25 to 0.50) | 0.60 (0.40 to 0.80) |")
    assert row.endswith("| 1.20 (1.20 to 1.20) | 1.00 (1.00 to 1.00) | – | – |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "100"], "argument --size: 100 is not allowed: it must be a multiple of 64 from 64 on"),
        (["--steps", "0"], "argument --steps: 0 is not allowed: it must be 1 or more"),
        (["--lcm-steps", "0"], "argument --lcm-steps: 0 is not allowed: it must be 1 or more"),
        (["--hires-steps", "-1"], "argument --hires-steps: -1 is not allowed: it must be 1 or more"),
        (["--samplers", "Heun"], "argument --samplers: invalid choice: 'Heun' (choose from"),
        (["--prompts", "99"], f"argument --prompts: 99 is not allowed: it must be from 1 to {len(fidelity.PROMPTS)}"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        fidelity.main(arguments)
    assert message in capsys.readouterr().err


def test_the_settings_of_all_methods_are_told_apart():
    for steps in (5, 8, 11, 20):
        names = [method.name for methods in fidelity.curves(steps, (64, 64)).values() for method in methods]
        assert len(set(names)) == len(names) == 7
