"""Samplings that other extensions make without telling scripts, and the line that describes all samplings."""

import re

import numpy as np
import pytest

from tests.webui.client import RequestFailed, changes
from tests.webui.hosts import A1111
from tests.webui.server import HERE, REPOSITORY, WebUI, find_extensions

TILED, AGAIN, ULTIMATE = (
    "multidiffusion-upscaler-for-automatic1111",
    "img2img-hires-fix",
    "ultimate-upscale-for-automatic1111",
)
TODO = {"enabled": True, "factor": 2, "max_depth": 1, "moving": False}
GREY = np.full((128, 128, 3), 100, np.uint8)


@pytest.fixture(scope="module")
def webui(checkpoints, tmp_path_factory):
    """A running WebUI with the installed ones among these extensions of other people."""
    others = {name: folder for name, folder in find_extensions().items() if name in (TILED, AGAIN, ULTIMATE)}
    extensions = {"sd-webui-todo": REPOSITORY, "sd-webui-todo-probe": HERE / "probe", **others}
    server = WebUI(A1111, tmp_path_factory.mktemp("samplings") / "data", checkpoints, extensions)
    server.start()
    yield server
    server.stop()


def needs(webui, name):
    if name not in webui.extensions:
        pytest.skip(f"no {name}")


def line(record, generation=-1):
    """ToDo's line in the final result of a generation."""
    lines = record.generations[generation]["comments"].splitlines()
    (ours,) = [line for line in lines if line.startswith("ToDo: ")]
    return ours.removeprefix("ToDo: ")


def at_depth_1(record, side):
    return [a.keys for a in record.where(grid=(side, side), depth=1)]


def test_a_second_sampling_on_a_copy(webui, client):
    needs(webui, AGAIN)
    args = [True, 2, 0, 0, 4, "Lanczos", "", "", 0.5, "Use same sampler", 0, "Use same scheduler"]
    size = {"width": 128, "height": 128, "alwayson_scripts": {"img2img Hires Fix": {"args": args}}}
    with client.recording() as record:
        client.img2img(GREY, todo=[False], **size)
    assert set(at_depth_1(record, 32)) == {32 * 32}
    before = client.leftovers()
    with client.recording() as record:
        client.img2img(GREY, todo=TODO, **size)
    assert set(at_depth_1(record, 32)) == {16 * 16}
    first, second = line(record).split("; ")
    assert first.startswith("1 sampling: ") and "[depth 1: 16x16 tokens, keys from 8x8" in first
    assert second.startswith("1 sampling: ")
    assert second.endswith(", 4 of 4 steps [depth 1: 32x32 tokens, keys from 16x16 (5 layers)]")
    assert changes(before, client.leftovers()) == []


def test_an_inversion(webui, client):
    needs(webui, TILED)
    args = [True, "MultiDiffusion", False, True, 512, 512, 16, 16, 4, 2, "None", 2.0, True, 5, 1, 1, 64]
    request = {"width": 256, "height": 256, "alwayson_scripts": {"Tiled Diffusion": {"args": args}}}
    image = GREY.repeat(2, axis=0).repeat(2, axis=1)
    with client.recording() as record:
        client.img2img(image, todo=TODO, **request)
    assert set(at_depth_1(record, 16)) == {8 * 8}  # the probe sees the sampling alone
    assert "keys from 8x8" in line(record)


def test_tiles_of_an_upscaler(webui, client):
    needs(webui, ULTIMATE)
    args = [None, 64, 64, 8, 16, 64, 0.35, 16, 0, False, 0, False, 8, 2, 2, 256, 128, 2]
    request = {"width": 128, "height": 64, "script_name": "ultimate sd upscale", "script_args": args, "steps": 3}
    with client.recording() as record:
        client.img2img(GREY[:64], todo=TODO, **request)
    samplings = [int(part.split(" sampling")[0]) for part in re.sub(r" \[[^]]*\]", "", line(record)).split("; ")]
    assert sum(samplings) == len(record.generations) > 8
    assert len(samplings) > 1


@pytest.mark.parametrize("todo", [[False], TODO])
def test_comments_of_the_host(client, todo):
    """The jobs copied for each prompt share the comments that are shown in the end."""
    args = [False, False, "start", "a <lora:nope:1>\nb"]
    with client.recording() as record:
        client.txt2img(todo, script_name="prompts from file or textbox", script_args=args, prompt="")
    assert "nope" in record.generations[-1]["comments"]
    if todo is TODO:
        assert line(record).startswith("2 samplings: ")
        assert line(record).endswith(", 4 of 4 steps [depth 1: 16x8 tokens, keys from 8x4 (5 layers)]")


def test_the_line_under_a_plot(client):
    with client.recording() as record:
        client.txt2img(TODO, **client.plot(("[ToDo] Factor", "1, 2")))
    assert line(record, 0).startswith("first cell: nothing downsampled, the factor is 1 at this size")


def test_a_refusal_prints_no_traceback(webui, client):
    position = webui.log_size()
    with pytest.raises(RequestFailed, match=r"422 .*factor = 9 is not allowed: it must be"):
        client.txt2img([True, 9])
    assert "Traceback" not in webui.log_since(position)
    assert len(webui.log_since(position).splitlines()) <= 1


def test_a_refused_cell_of_a_plot_prints_no_traceback(webui, client):
    position = webui.log_size()
    with client.recording() as record:
        client.txt2img(TODO, **client.plot(("[ToDo] Start", "0.5, 0"), ("[ToDo] End", "0.25, 1")))
    assert len(record.generations) == 4 and record.attentions
    log = webui.log_since(position)
    assert log.count("end = 0.25 is not allowed") == 1 and "Traceback" not in log


@pytest.mark.parametrize("scheduler", ["Automatic", "Simple", "DDIM", "Beta"])
@pytest.mark.parametrize("end", [0.5, 0.8])
def test_adaptive_does_not_come_back(client, scheduler, end):
    request = {"sampler_name": "DPM adaptive", "scheduler": scheduler, "steps": 8, "denoising_strength": 0.8}
    with client.recording() as record:
        client.img2img(GREY, todo={**TODO, "end": end}, width=128, height=128, **request)
    keys = at_depth_1(record, 16)
    assert keys == sorted(keys) and set(keys) == {8 * 8, 16 * 16}
