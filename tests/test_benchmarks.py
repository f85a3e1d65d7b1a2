"""The benchmarks of speed, of hooks and of the reference, on a tiny U-Net. Each method's keys are counted."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import time
from pathlib import Path

import pytest
import torch

from lab.benchmarks import all as everything_run
from lab.benchmarks import by_count, controlnet, kernels, overhead, reference, speed
from lab.benchmarks.methods import DENSE, FLOOR, by_hand, counted, inline, paper, todo, tome
from lab.benchmarks.store import Store
from lab.benchmarks.unets import SD15, SDXL, make_inputs, make_unet
from tests.todo_lib.unets import state
from todo_lib import Settings, plan

TINY = dataclasses.replace(SD15, channels=32, prompt_width=16)
TINY_XL = dataclasses.replace(SDXL, channels=32, head=16, prompt_width=16, size_embedding=24)
SIZE = 192, 128  # pixels; the grids are 24 x 16, 12 x 8, ...
GRIDS = [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.fixture(scope="module")
def unet():
    return make_unet(TINY)


@torch.inference_mode()
def run(unet, method, layout=TINY, size=SIZE):
    with method.applied(unet), counted(unet) as keys:
        return unet(*make_inputs(layout, *size)), keys


def tokens(grid):
    return grid[0] * grid[1]


def everything(*exceptions):
    """Depth -> {(queries, keys)}: `exceptions` at the first depths, and all keys at deeper ones."""
    dense = [(tokens(grid), tokens(grid)) for grid in GRIDS]
    return {i + 1: {counts} for i, counts in enumerate([*exceptions, *dense[len(exceptions) :]])}


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        (DENSE, everything()),
        (todo(paper(3)), everything((384, 5 * 8))),
        (todo(paper(2, 1.5)), everything((384, 96), (96, 5 * 8))),
        (todo(Settings(enabled=True)), everything()),
        (todo(Settings(enabled=True, factor=3)), everything((384, 5 * 8), (96, 5 * 8))),
        (inline(paper(3), (16, 24)), everything((384, 5 * 8))),
        (tome(0.5), everything((192, 192))),  # ToMe merges its queries too
        (tome(0.75), everything((96, 96))),
        (tome(0.5, 2), everything((192, 192), (48, 48))),
        (FLOOR, everything((384, 1), (96, 1), (24, 1), (6, 1))),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_keys_of_each_method(unet, method, keys):
    before = state(unet)
    output, seen = run(unet, method)
    assert seen == keys
    assert state(unet) == before
    assert torch.equal(output, run(unet, DENSE)[0]) == (keys == everything())


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (paper(2), "ToDo 2"),
        (paper(4, 2), "ToDo 4/2"),
        (paper(2, end=0.8), "ToDo 2, steps 0 to 0.8"),
        (Settings(enabled=True, factor=2), "moving 2"),
        (Settings(enabled=True, factor=3), "moving 3/1.5"),
        (Settings(enabled=True, factor=8, max_depth=4), "moving 8/4/2"),
        (Settings(enabled=True), "moving auto"),
        (Settings(enabled=True, max_depth=1), "moving auto to depth 1"),
        (Settings(enabled=True, deeper_factor=2), "moving auto, deeper 2"),
        (Settings(enabled=True, moving=False), "ToDo auto"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_tell_the_settings(settings, name):
    assert todo(settings).name == name


def test_keys_of_sdxl():
    """SDXL has self-attention on two grids only, with two and ten blocks a transformer."""
    unet = make_unet(TINY_XL)
    (_, dense), (_, merged) = run(unet, DENSE, TINY_XL), run(unet, tome(0.75, largest=2), TINY_XL)
    _, deeper = run(unet, tome(0.75, depth=2, largest=2), TINY_XL)
    assert dense == {1: {(96, 96)}, 2: {(24, 24)}}
    assert deeper == {1: {(24, 24)}, 2: {(6, 6)}}
    assert merged == {1: {(24, 24)}, 2: {(24, 24)}}
    blocks = [len(m.transformer_blocks) for m in unet.modules() if hasattr(m, "transformer_blocks")]
    assert blocks == [2, 2, 10, 10, 10, 10, 10, 10, 2, 2, 2]


@pytest.mark.parametrize("written", [inline, by_hand])
def test_what_is_written_by_hand_computes_the_same(unet, written):
    settings = paper(3, 1.5)
    expected, output = (run(unet, method)[0] for method in (todo(settings), written(settings, (16, 24))))
    assert torch.allclose(output, expected, atol=1e-5) and not torch.equal(output, run(unet, DENSE)[0])


def test_the_same_seed_makes_the_same_unet():
    with torch.inference_mode():
        inputs = make_inputs(TINY, 64, 64)
        first, second, other = (make_unet(TINY, seed=seed)(*inputs) for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert first.any() and first.isfinite().all()


@pytest.mark.parametrize(
    ("layout", "size", "factors"),
    [
        (SD15, 512, (2, 1)),
        (SD15, 1536, (3, 1)),
        (SD15, 2048, (4, 2)),
        (SD15, 4096, (8, 4)),
        (SDXL, 1024, (1.5, 1)),
        (SDXL, 2048, (2, 1)),
        (SDXL, 4096, (4, 2)),
    ],
)
def test_factors(layout, size, factors):
    top = (size // 8, size // 8) if layout is SD15 else (size // 16, size // 16)
    paper = speed.paper_settings(layout, size)
    kept = tuple((side, side) for side in (top[0] // factors[0], top[0] // 2 // factors[1]))
    halves = ((1, top), (2, (top[0] // 2, top[1] // 2)))
    assert tuple(paper.kept_grid(depth, grid) for depth, grid in halves) == kept and not paper.moving


@pytest.mark.parametrize(("size", "merging"), [(1536, "ToMe 0.75"), (2048, "ToMe 0.75 to depth 2")])
def test_tokens_are_merged_where_the_paper_downsamples(unet, size, merging):
    assert speed.methods_of(unet, TINY, size)["ToMe 0.75"].name == merging


@pytest.mark.parametrize(("size", "many", "few"), [(512, "dense", "dense"), (544, None, "dense"), (1024, None, None)])
def test_roles(unet, size, many, few):
    """The default has a role for each number of steps. Where it keeps all tokens, it is dense."""
    assert {role: method.name for role, method in speed.methods_of(unet, TINY, size).items()} == {
        "dense": "dense",
        "paper": "paper 2",
        "default, 20 steps": many or "moving auto, 20 steps",
        "default, 8 steps": few or "moving auto, 8 steps",
        "ToMe 0.75": "ToMe 0.75",
        "floor": "floor",
    }


def test_roles_keep_what_their_steps_do(unet):
    methods = speed.methods_of(unet, TINY, 640)
    _, keys = run(unet, methods["default, 20 steps"], size=(640, 640))
    assert keys == {1: {(6400, 1600)}, 2: {(1600, 1600)}, 3: {(400, 400)}, 4: {(100, 100)}}


@pytest.mark.slow
def test_speed_goes_on_where_it_was_and_measures_the_same_grids_once(tmp_path):
    path = tmp_path / "speed.json"
    sizes = [64, 128, 192]  # calls that warm up have 128
    for rounds in (1, 2):
        speed.measure(TINY, sizes, rounds, "cpu", "fp32", Store(path))
    cells = json.loads(path.read_text())["results"]
    assert list(cells) == [f"SD 1.5, {size} px, fp32" for size in sizes]
    cell = cells["SD 1.5, 128 px, fp32"]
    assert cell["roles"]["default, 20 steps"] == cell["roles"]["dense"] == "dense"
    for name, found in cell["methods"].items():
        assert len(found["seconds"]) == 2, name
        assert min(found["seconds"]) > 0
    assert cell["methods"]["paper 2"]["keys"] == {"1": [[256, 64]], "2": [[64, 64]], "3": [[16, 16]], "4": [[4, 4]]}
    assert cell["methods"]["dense"]["difference"] == 0 < cell["methods"]["paper 2"]["difference"] < 1
    before = path.read_text()
    speed.measure(TINY, sizes, 2, "cpu", "fp32", Store(path))
    assert path.read_text() == before


# ToMe is left out: rounding changes the tokens that it merges.
@pytest.mark.parametrize(
    "method", [DENSE, todo(paper(2)), todo(Settings(enabled=True, factor=2)), FLOOR], ids=lambda m: m.name
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.12)])
@pytest.mark.parametrize("layout", [TINY, TINY_XL], ids=lambda layout: layout.name)
def test_precisions(layout, dtype, tolerance, method):
    """The same weights and noise give the same result, but for rounding."""
    unet, exact = make_unet(layout, dtype=dtype), make_unet(layout)
    exact.load_state_dict(unet.state_dict())  # each precision draws its own random weights
    with torch.inference_mode(), method.applied(unet), method.applied(exact):
        rounded = unet(*make_inputs(layout, 128, 128, dtype=dtype))
        wanted = exact(*make_inputs(layout, 128, 128))
    assert rounded.dtype == dtype
    assert (rounded - wanted).norm() < tolerance * wanted.norm()


def test_a_method_that_needs_too_much_memory_is_told_of(tmp_path, monkeypatch):
    def failing(unet):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(speed, "FLOOR", dataclasses.replace(FLOOR, applied=failing))
    speed.measure(TINY, [64], 2, "cpu", "bf16", Store(tmp_path / "speed.json"))
    (cell,) = json.loads((tmp_path / "speed.json").read_text())["results"].values()
    assert cell["methods"].pop("floor") == {"seconds": [], "failed": "out of memory"}
    assert all(len(found["seconds"]) == 2 and "failed" not in found for found in cell["methods"].values())


def test_json_has_no_infinite_numbers(tmp_path):
    store = Store(tmp_path / "speed.json")
    store.results = {"psnr": None}
    store.save()
    for value in (math.inf, math.nan):
        store.results = {"psnr": value}
        with pytest.raises(ValueError):
            store.save()
    assert json.loads((tmp_path / "speed.json").read_text())["results"] == {"psnr": None}


def test_a_difference_that_has_overflowed_is_none():
    dense = torch.ones(3)
    assert speed.difference(dense, dense) == 0
    assert speed.difference(torch.full((3,), math.inf), dense) is None


def test_results_of_another_machine_are_not_added_to(tmp_path):
    store = Store(tmp_path / "speed.json")
    store.machine = {**store.machine, "processor": "another", "torch": "1.0", "gpu": "one"}
    store.save()
    with pytest.raises(SystemExit, match="was made with another processor, torch, gpu: move it away"):
        Store(tmp_path / "speed.json")


@pytest.mark.skipif(not speed.RESET.exists(), reason="peak memory of a CPU is seen on Linux only")
def test_peak_memory_is_that_of_the_call(unet):
    with speed.peak_memory(torch.device("cpu")) as first:
        torch.ones(64 << 20, dtype=torch.uint8)
    with speed.peak_memory(torch.device("cpu")) as second:
        torch.ones(8 << 20, dtype=torch.uint8)
    assert 60 << 20 < first[0] < 80 << 20
    assert second[0] < 20 << 20


def test_the_clock_waits_for_the_device(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    speed.clock(torch.device("cpu"))
    assert not waited
    before = time.perf_counter()
    assert before <= speed.clock(torch.device("cuda")) <= time.perf_counter()
    assert waited == [torch.device("cuda")]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_overhead(tmp_path, dtype):
    store = Store(tmp_path / "overhead.json")
    overhead.measure(dataclasses.replace(TINY, name="tiny"), 64, 4, "cpu", dtype, store)
    found = store.results[f"tiny, 64 px, {dtype}"]
    # 16 transformers, before and behind, with one attention each; two of its projections have a hook behind
    assert found.pop("installed") == {"before": 0, "while on": 16 * (2 + 3), "afterwards": 0}
    assert {name: len(times) for name, times in found.items()} == dict.fromkeys(
        ("dense", "by hand", "hooks", "idle"), 4
    )
    assert overhead.added({"hooks": [3, 3, 9], "by hand": [1, 2, 2]}, "hooks", "by hand") == [1, 2, 7]


def test_counted_work_is_that_of_the_layers_that_run():
    """Each convolution, linear layer and attention counts its multiply-adds while the U-Net runs."""
    unet, size = make_unet(TINY_XL), (256, 256)
    done = []

    def count(layer, args, output):
        if isinstance(layer, torch.nn.Conv2d):
            done.append(layer.weight.numel() * output.shape[-1] * output.shape[-2])
        elif isinstance(layer, torch.nn.Linear):
            done.append(layer.weight.numel() * (output.shape[1] if output.ndim == 3 else 1))

    layers = [layer for layer in unet.modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))]
    depths = plan(unet, (32, 32), Settings())
    widths = {depth.depth: depth.dense_work // tokens(depth.grid) ** 2 for depth in depths}  # of all layers, twice
    cross = sum(77 * tokens(depth.grid) * widths[depth.depth] for depth in depths)
    for settings in (Settings(enabled=True, factor=1), paper(2, 1.5), Settings(enabled=True, factor=3), None):
        method = (
            inline(settings, (32, 32)) if settings and not settings.moving else todo(settings) if settings else FLOOR
        )
        done.clear()
        handles = [layer.register_forward_hook(count) for layer in layers]
        _, seen = run(unet, method, TINY_XL, size)
        for handle in handles:
            handle.remove()
        attention = sum(queries * keys * widths[depth] for depth, counts in seen.items() for queries, keys in counts)
        if settings:
            assert by_count.left(TINY_XL, 256, settings) == (attention, sum(done) + attention + cross)
        else:
            assert by_count.left_by_the_floor(TINY_XL, 256) == sum(done) + attention + cross


def test_counted_tables():
    share, speed_up = by_count.share_table().splitlines(), by_count.speed_table().splitlines()
    assert share[0] == "| | dense | K = 40 | K = 48 | K = 64 | K = 80 |"
    assert "| SDXL, 1024 px | 11 % | dense | dense | dense | dense |" in share
    assert speed_up[0] == "| | the paper's factors | K = 40 | K = 48 | K = 64 | K = 80 | floor |"
    assert len(share) == len(speed_up) == 2 + 2 * 4


def test_kernels_go_on_where_they_were(tmp_path):
    path = tmp_path / "kernels.json"
    for rounds in (1, 3):
        kernels.measure(64, 8, [16, 25], rounds, "cpu", "fp32", Store(path))
    results = json.loads(path.read_text())["results"]
    assert {"table of scores, 64 queries, heads of 8, fp32", "math, 64 queries, heads of 8, fp32"} <= results.keys()
    for found in results.values():
        assert {count: len(seconds) for count, seconds in found.items()} == {"16": 3, "25": 3}


def test_all_kernels_compute_the_same():
    query, key, value = torch.randn(3, 1, 8, 32, 16, generator=torch.Generator().manual_seed(0))
    found = kernels.kernels("cpu", torch.float32)
    assert len(found) >= 2
    wanted = found.pop(kernels.TABLE)(query, key[..., :20, :], value[..., :20, :])
    for kernel in found.values():
        torch.testing.assert_close(kernel(query, key[..., :20, :], value[..., :20, :]), wanted)


def test_the_table_of_kernels():
    results = {"math": {"1600": [0.01, 0.02, 0.03], "400": [0.005, 0.005, 0.03]}, "flash": {"400": [0.1]}}
    assert kernels.table(results).splitlines() == [
        "| | 400 | 1600 |",
        "|---|---|---|",
        "| math | 5 ms, 2.00 | 20 ms, 1.00 |",  # the ratios are 0.5, 0.25 and 1, for a quarter of the keys
        "| flash | – | – |",
    ]


def test_controlnet_goes_on_where_it_was(tmp_path):
    path = tmp_path / "controlnet.json"
    for rounds in (1, 2):
        controlnet.measure(TINY, [128], rounds, Store(path))
    (cell,) = json.loads(path.read_text())["results"].values()
    assert {name: len(way["seconds"]) for name, way in cell["ways"].items()} == {"dense": 2, "U-Net": 2, "both": 2}
    keys = {name: way["keys at depth 1"] for name, way in cell["ways"].items()}
    assert keys == {
        "dense": {"U-Net": [256], "ControlNet": [256]},
        "U-Net": {"U-Net": [64], "ControlNet": [256]},
        "both": {"U-Net": [64], "ControlNet": [64]},
    }


@pytest.fixture
def theirs():
    folder = Path(os.environ.get("TODO_REFERENCE_DIR") or Path.home() / "ImprovedTokenMerge")
    if not (folder / "merge.py").exists():
        pytest.skip("no ImprovedTokenMerge")
    return reference.load(folder)


def test_the_reference_goes_on_where_it_was(theirs, tmp_path):
    path = tmp_path / "reference.json"
    cases = [(64, 64, 2, 1), (128, 64, 2, 1)]
    reference.measure(TINY, cases[:1], 1, theirs, Store(path))
    first = json.loads(path.read_text())["results"]
    reference.measure(TINY, cases, 1, theirs, Store(path))
    both = json.loads(path.read_text())["results"]
    assert list(both) == ["64x64 px, factors 2 and 1", "128x64 px, factors 2 and 1"]
    assert first.items() <= both.items()


@pytest.mark.slow
def test_the_reference_computes_the_same(theirs):
    unet = make_unet(SD15)  # the reference tells depths by the widths 320 and 640
    before = state(unet)
    for (first, second), keys in {(2, 1): [(384, 96)], (3, 2): [(384, 40), (96, 24)]}.items():
        output, seen = run(unet, reference.authors(theirs, first, second), SD15)
        assert seen == everything(*keys)
        assert torch.equal(output, run(unet, todo(paper(first, second)), SD15)[0])
    assert state(unet) == before


@pytest.mark.parametrize(
    ("cuda", "of_speed"),
    [
        (False, [["--dtype", "fp32"], ["--sizes", "4096", "--dtype", "bf16", "--rounds", "1"]]),
        (
            True,
            [["--dtype", "fp16"], ["--dtype", "bf16"], ["--sizes", "4096", "--dtype", "bf16", "--rounds", "3"]],
        ),
    ],
)
def test_all_are_run(monkeypatch, cuda, of_speed):
    run = {}
    for path in Path(speed.__file__).parent.glob("*.py"):
        module = importlib.import_module(f"lab.benchmarks.{path.stem}")
        if hasattr(module, "main") and module is not everything_run:
            recorded = run.setdefault(path.stem, [])
            monkeypatch.setattr(module, "main", lambda arguments=(), recorded=recorded: recorded.append(arguments))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    everything_run.main(["somewhere"])
    assert all(run.values()) and run["reference"] == [["somewhere"]] and run["speed"] == of_speed


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (speed.main, ["--sizes", "100"], "--sizes: 100 is not allowed: it must be a multiple of 64 from 64 on"),
        (speed.main, ["--rounds", "0"], "--rounds: 0 is not allowed: it must be 1 or more"),
        (speed.main, ["--models", "SD 3"], "invalid choice: 'SD 3' (choose from"),
        (controlnet.main, ["--sizes", "1000"], "--sizes: 1000 is not allowed: it must be a multiple of 64 from 64 on"),
        (controlnet.main, ["--rounds", "0"], "--rounds: 0 is not allowed: it must be 1 or more"),
        (overhead.main, ["--device", "cdua"], "--device: invalid choice: 'cdua' (choose from"),
        (overhead.main, ["--rounds", "0"], "--rounds: 0 is not allowed: it must be 1 or more"),
        (kernels.main, ["--keys", "0"], "--keys: 0 is not allowed: it must be 1 or more"),
        (everything_run.main, ["nowhere"], "nowhere is not allowed: it must be a clone of ImprovedTokenMerge"),
        (reference.main, ["nowhere"], "nowhere is not allowed: it must be a clone of ImprovedTokenMerge"),
    ],
)
def test_bad_arguments(main, arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
