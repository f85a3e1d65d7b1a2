"""The redundancy benchmark at a tiny size: similarities of known tokens, and a stopped run goes on."""

from __future__ import annotations

import json

import matplotlib.image
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lab.benchmarks import redundancy
from lab.benchmarks.fidelity import all_results
from lab.model.emoji import PREFIXES, UNET_FILES, Emoji, load
from lab.model.parts import make_unet

OPTIONS = ["--size", "128", "--steps", "2", "--prompts", "1"]


def kept(folder):
    return json.loads((folder / "redundancy.json").read_text())


def has_colours(path):
    """Whether the chart has lines: all else is grey."""
    colours = matplotlib.image.imread(path)[..., :3]
    return (np.ptp(colours, axis=-1) > 0.4).any()


def test_a_run_and_its_continuation(tmp_path, monkeypatch, capsys):
    redundancy.main([*OPTIONS, "--results", str(tmp_path)])
    before = kept(tmp_path)
    (cell,) = before["results"].values()
    depths = cell["prompts"]["red apple"]
    assert list(depths) == ["1", "2", "3", "4"]
    for kinds in depths.values():
        assert list(kinds) == ["neighbours", "any two"]
        for values in kinds.values():
            assert len(values) == 2 and all(-1 <= value <= 1 for value in values)
    assert has_colours(tmp_path / "redundancy.png")
    assert "| 4 |" in capsys.readouterr().out
    monkeypatch.setattr(Emoji, "sample", None)  # no image is left to draw
    redundancy.main([*OPTIONS, "--results", str(tmp_path)])
    assert kept(tmp_path) == before


def test_the_results_of_either_model_stand_side_by_side(tmp_path, monkeypatch, capsys):
    untrained = make_unet("sdxl").state_dict()
    file = tmp_path / "sdxl.safetensors"
    save_file({PREFIXES["unet"] + name: value.contiguous() for name, value in untrained.items()}, file)
    monkeypatch.setitem(UNET_FILES, "sdxl", file)
    for model in ("sd15", "sdxl"):
        redundancy.main(["--model", model, *OPTIONS, "--results", str(tmp_path)])
    both = all_results(tmp_path, "redundancy")
    depths = {key: list(cell["prompts"]["red apple"]) for key, cell in both.items()}
    assert depths == {
        "128 px, 2 steps, guidance 2": ["1", "2", "3", "4"],
        "SDXL's layout, 128 px, 2 steps, guidance 2": ["1", "2"],
    }
    assert len({cell["weights"] for cell in both.values()}) == 2
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["redundancy-sdxl.json", "redundancy.json"]


def test_similarities_of_all_pairs():
    tokens = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = tokens / tokens.norm(dim=-1, keepdim=True)
    near, far = [], []
    places = [(row, column) for row in range(3) for column in range(4)]
    for picture in unit:
        for a in places:
            for b in places:
                if a < b:
                    cosine = (picture[a] * picture[b]).sum().item()
                    far.append(cosine)
                    if abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1:
                        near.append(cosine)
    assert redundancy.similarities(tokens) == pytest.approx((sum(near) / len(near), sum(far) / len(far)))


def test_similarities_of_stripes():
    stripes = torch.zeros(1, 4, 4, 2)
    stripes[:, ::2, :, 0] = stripes[:, 1::2, :, 1] = 3  # alike along a row, not along a column
    neighbours, any_two = redundancy.similarities(stripes)
    assert neighbours == pytest.approx(0.5) and any_two == pytest.approx(7 / 15)


def test_each_self_attention_is_seen_once_a_call():
    model = load()
    with redundancy.watched(model.unet) as seen:
        model.sample(["banana"], model.noise((128, 64), 0), 3)
    assert {depth: len(pairs) for depth, pairs in seen.items()} == {1: 9, 2: 9, 3: 9, 4: 3}
    for module in model.unet.modules():
        assert not module._forward_pre_hooks
    with redundancy.watched(model.unet) as seen:
        model.sample(["banana"], model.noise((64, 64), 0), 1)
    assert list(seen) == [1, 2, 3]  # one token has no neighbour


def test_the_table_of_known_numbers(tmp_path):
    def prompt(more):
        return {"1": {"neighbours": [0.5 + more, 0.6, 0.7 + more], "any two": [0.1, 0.2 + more, 0.3]}}

    results = {"512 px, 3 steps, guidance 2": {"weights": "", "prompts": {"a": prompt(0), "b": prompt(0.1)}}}
    lines = redundancy.table(results).splitlines()
    assert lines[0].startswith("512 px, 3 steps, guidance 2; means over 2 prompts")
    assert lines[-1] == "| 1 | 0.55 | 0.60 | 0.75 | 0.10 | 0.25 | 0.30 |"
    redundancy.chart(results, tmp_path / "chart.png")
    assert has_colours(tmp_path / "chart.png")


def test_layers_are_averaged_step_by_step():
    pairs = [(0.1, 0.0), (0.3, 0.2), (0.5, 0.4), (0.7, 0.6)]
    assert redundancy.per_step(pairs, 2) == {"neighbours": [0.2, 0.6], "any two": [0.1, 0.5]}
