"""The extension in the stand-in of the WebUI, and the tools with which tests run and watch jobs there."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch

from tests.todo_lib.unets import CONTEXT_DIM, SD1, attentions, make_unet

HOST = Path(__file__).parent / "host"
ROOT = Path(__file__).parents[2]
SCRIPTS = [
    HOST / "scripts" / "before.py",
    HOST / "scripts" / "xyz_grid.py",
    HOST / "scripts" / "prompts_from_file.py",
    ROOT / "scripts" / "todo.py",
    ROOT / "scripts" / "todo_xyz.py",
    HOST / "scripts" / "witness.py",
]
NAMES = ["enabled", "factor", "max_depth", "start", "end", "deeper_factor", "passes", "hires_factor", "moving"]
DEFAULTS = [False, 0.0, 2, 0.0, 1.0, 0.0, "both", 0.0, True]
FRESH = dict(zip(NAMES, DEFAULTS, strict=True))
# Most tests use the paper's grid. The defaults would leave grids as small as these dense.
PAPER = {"factor": 2.0, "max_depth": 1, "deeper_factor": 2.0, "moving": False}

# A small and quick U-Net: three self-attentions at the latent's own size, and one at half of it.
LAYOUT = {**SD1, "channel_mult": (1, 1), "num_res_blocks": 1, "attention_resolutions": [1]}
TOP = ["input_blocks.1.1.transformer_blocks.0.attn1", "output_blocks.2.1.transformer_blocks.0.attn1"]
TOP += ["output_blocks.3.1.transformer_blocks.0.attn1"]
DEEP = "middle_block.1.transformer_blocks.0.attn1"


class Short(SimpleNamespace):
    """A namespace with a short repr, so that a failing test does not print pages."""

    __repr__ = object.__repr__


@contextlib.contextmanager
def importable(host: SimpleNamespace) -> Iterator[None]:
    """Let imports find the stand-in's `modules`. Afterwards forget it, and the todo_lib of its scripts."""

    def ours():
        return {name: sys.modules[name] for name in sys.modules if name.partition(".")[0] in ("modules", "todo_lib")}

    def exchange(modules):
        found = ours()
        for name in found:
            del sys.modules[name]
        sys.modules.update(modules)
        return found

    others, path = exchange(host.imported), sys.path[:]
    sys.path.insert(0, str(HOST))
    try:
        yield
    finally:
        host.imported = exchange(others)
        sys.path[:] = path


def start_host() -> SimpleNamespace:
    """Start the stand-in, with the extension's scripts on its page. Returns its modules by their names."""
    host = Short(imported={})
    names = ["api", "errors", "images", "img2img", "infotext_utils", "processing", "script_callbacks", "scripts"]
    names += ["sd_models", "sd_samplers", "sd_samplers_common", "paths"]
    with importable(host):
        for name in [*names, "shared", "ui"]:
            setattr(host, name, importlib.import_module(f"modules.{name}"))
    reload_ui(host)
    return host


def reload_ui(host: SimpleNamespace, **defaults) -> None:
    """Run the scripts and build the page, or do so again. defaults: label -> value."""
    with importable(host):
        host.page = host.ui.create_ui([str(path) for path in SCRIPTS], defaults)
    assert host.errors.reported == []
    loaded = {Path(data.path).name: data.module for data in host.scripts.scripts_data}
    names = ("before", "xyz_grid", "prompts_from_file", "witness")
    host.before, host.xyz, host.prompts, host.witness = (loaded[f"{name}.py"] for name in names)
    host.todo = host.imported["todo_lib.webui.script"]
    with importable(host):  # gradio 4 looks for the module of each control
        host.Api = host.api.Api()


def make_model(host: SimpleNamespace, name: str, seed: int = 0, **layout):
    return host.sd_models.SDModel(name, make_unet(seed, **{**LAYOUT, **layout}), CONTEXT_DIM)


class Call(Short):
    """One call of a U-Net: the model's name, the batch, the latent's size, and the keys of each self-attention."""

    @property
    def queries(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def top(self) -> int:
        """How many keys the self-attentions of the largest grid had."""
        (keys,) = {self.keys[name] for name in TOP}
        return keys

    @property
    def down(self) -> bool:
        return self.top < self.queries


@contextlib.contextmanager
def recording(*models) -> Iterator[list[Call]]:
    """Note every call of the models' U-Nets, and count the keys and values that reach their attentions."""
    calls: list[Call] = []
    handles = []
    counting = []

    def begin(model):
        def hook(module, args):
            calls.append(Call(model=model.name, batch=len(args[0]), size=tuple(args[0].shape[-2:]), keys={}, values={}))
            count_last(module)

        return hook

    def count_last(unet):
        """Count behind all other hooks of a projection, this extension's included."""
        while counting:
            counting.pop().remove()
        for name, attn in attentions(unet).items():
            counting.append(attn.to_k.register_forward_hook(count("keys", name)))
            counting.append(attn.to_v.register_forward_hook(count("values", name)))

    def count(part, name):
        def hook(module, args, output):
            getattr(calls[-1], part)[name] = output.shape[1]

        return hook

    for model in models:
        handles.append(model.model.diffusion_model.register_forward_pre_hook(begin(model)))
    try:
        yield calls
    finally:
        for handle in handles + counting:
            handle.remove()
    assert all(call.keys == call.values for call in calls)


class Job(Short):
    """The record of a job: its processing object, result, calls of U-Nets and the text under the image."""

    @property
    def down(self) -> list[bool]:
        """For each call of the U-Net, whether the largest grid was downsampled."""
        return [call.down for call in self.calls]

    @property
    def image(self) -> torch.Tensor:
        return torch.stack(self.result.images)

    @property
    def comments(self) -> list[str]:
        return self.result.comments.splitlines()

    @property
    def comment(self) -> str:
        """The extension's one line under the image."""
        (line,) = [line for line in self.comments if "ToDo" in line]
        assert line.startswith("ToDo: ")
        return line

    @property
    def params(self) -> dict:
        """The extension's entries in the infotext."""
        return {key: value for key, value in self.parsed.items() if "ToDo" in key}


def positional(settings: dict) -> list:
    return list({**FRESH, **settings}.values())


class Runner:
    """Runs jobs in the host.

    `todo` holds the settings that differ from PAPER. ToDo is off unless it says otherwise. None: no scripts at all.
    """

    def __init__(self, host, models):
        self.host = host
        self.models = models
        self.fields = {}  # defaults for the fields of API requests

    def prepare(self, tab, todo, **fields):
        p = self.host.ui.JOBS[tab](**fields)
        if todo is not None:
            p.scripts = self.host.ui.runners()[tab]
            script = p.scripts.script("ToDo")
            p.script_args = list(self.host.Api.defaults[tab])
            p.script_args[script.args_from : script.args_to] = positional({**PAPER, **todo})
            p.script_args = tuple(p.script_args)
            p.scripts.setup(p)
        self.host.shared.state.begin()
        return p

    def __call__(self, tab, todo, **fields) -> Job:
        p = self.prepare(tab, todo, **fields)
        with recording(*self.models) as calls:
            result = self.host.processing.process_images(p)
        parsed = self.host.infotext_utils.parse_generation_parameters(result.info)
        return Job(p=p, result=result, calls=calls, parsed=parsed)

    def txt2img(self, todo=None, **fields) -> Job:
        """Run txt2img with ToDo on and the given settings."""
        return self("txt2img", {"enabled": True, **(todo or {})}, **fields)

    def img2img(self, todo=None, **fields) -> Job:
        return self("img2img", {"enabled": True, **(todo or {})}, **fields)

    def post(self, tab, args=None, **request):
        """Send an API request. Returns the status, the body and the calls of the U-Nets."""
        if args is not None:
            request["alwayson_scripts"] = {"ToDo": {"args": args}}
        with recording(*self.models) as calls:
            status, body = self.host.Api.post(tab, {**self.fields, **request})
        return SimpleNamespace(status=status, body=body, calls=calls)
