"""Our result and speed against the authors' own code, on the same U-Net with the same weights and inputs.

    git clone https://github.com/ethansmith2000/ImprovedTokenMerge
    python -m lab.benchmarks.reference ImprovedTokenMerge [--rounds 3]

Their code is written for the attentions of the package diffusers. Here it computes those of an `ldm` U-Net, whose
projections have the same names. Of diffusers and xformers it needs nothing but names, which are made up.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from lab.benchmarks.arguments import check_count
from lab.benchmarks.methods import DENSE, Method, computed_by, paper, todo
from lab.benchmarks.overhead import seconds
from lab.benchmarks.store import RESULTS, Store
from lab.benchmarks.unets import SD15, Layout, make_inputs, make_unet
from todo_lib.unet import spatial_transformers

FILE = RESULTS / "reference.json"
# Width and height in pixels, and whole factors at depths 1 and 2. Sizes that a factor does not divide are among them.
# All latents can be halved without a rest, as their code assumes.
CASES = [
    (512, 512, 2, 1),
    (512, 512, 3, 1),
    (512, 512, 4, 2),
    (768, 512, 2, 2),
    (640, 896, 3, 2),
    (1024, 1024, 2, 1),
]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where ImprovedTokenMerge is")
    parser.add_argument("--rounds", type=int, default=3, help="calls each way")
    parser.add_argument("--results", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    if not (options.folder / "merge.py").exists():
        parser.error(f"argument folder: {options.folder} is not allowed: it must be a clone of ImprovedTokenMerge")
    check_count(parser, "--rounds", options.rounds)
    store = Store(options.results)
    if store.results.get("commit") != (found := commit(options.folder)):
        store.results = {"commit": found}
    measure(SD15, CASES, options.rounds, load(options.folder), store)


@torch.inference_mode()
def measure(layout: Layout, cases: list[tuple], rounds: int, reference: types.ModuleType, store: Store) -> None:
    """Compare results and seconds in the cases that the store lacks."""
    unet = make_unet(layout)
    for width, height, first, second in tqdm(cases, desc="reference"):
        key = f"{width}x{height} px, factors {first} and {second}"
        if key in store.results and len(store.results[key]["seconds"]["ToDo"]) >= rounds:
            continue
        inputs = make_inputs(layout, width, height)
        ways = {"dense": DENSE, "reference": authors(reference, first, second), "ToDo": todo(paper(first, second))}
        outputs = {}
        for name, way in ways.items():
            with way.applied(unet):
                outputs[name] = unet(*inputs)
        away = (outputs["ToDo"] - outputs["reference"]).abs().max().item()
        changed = (outputs["ToDo"] - outputs["dense"]).abs().max().item()
        case = {"largest difference": away, "largest difference from dense": changed}
        case["seconds"] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                case["seconds"][name].append(round(seconds(unet, inputs, way), 4))
        store.results[key] = case
        store.save()


def load(folder: Path) -> types.ModuleType:
    """Import their merge.py. Packages that it imports, but does not use here, are made up for the moment."""
    made = {
        "diffusers": {},
        "diffusers.models": {},
        "diffusers.models.attention_processor": {"XFormersAttnProcessor": None, "Attention": nn.Module},
        "diffusers.utils": {"USE_PEFT_BACKEND": True},
        "diffusers.utils.import_utils": {"is_xformers_available": lambda: False},
        "xformers": {},
        "xformers.ops": {},
    }
    before = dict(sys.modules)
    for name, contents in made.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(contents)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("merge")
    finally:
        sys.path.remove(str(folder))
        for name in (*made, "merge"):
            sys.modules.pop(name)
            if name in before:
                sys.modules[name] = before[name]


def authors(reference: types.ModuleType, first: int, second: int) -> Method:
    """Their downsampling of keys and values, "nearest-exact", by whole factors at depths 1 and 2, in all steps."""
    return Method(f"reference {first}/{second}", lambda unet: _authors(unet, reference, first, second))


@contextlib.contextmanager
def _authors(unet: nn.Module, reference: types.ModuleType, first: int, second: int) -> Iterator[None]:
    info = {"size": None, "timestep": None}
    info["args"] = {
        "merge_tokens": "keys/values",
        "merge_method": "downsample",
        "secondary_merge_method": "downsample",
        "downsample_method": "nearest-exact",
        "downsample_factor": first,
        "downsample_factor_level_2": second,
        "ratio": 0.5,
        "ratio_level_2": 0.5,
        "timestep_threshold_switch": 0.0,
        "timestep_threshold_stop": 0.0,
    }

    def see(unet: nn.Module, args: tuple) -> None:
        info.update(size=tuple(args[0].shape[-2:]), timestep=args[1][0].item())

    forwards = {}
    for transformer in spatial_transformers(unet):
        for attn in transformer.attentions.values():
            processor = reference.TokenMergeAttentionProcessor()
            processor._tome_info = info
            forwards[attn] = _ByProcessor(processor, attn)
    handle = unet.register_forward_pre_hook(see)
    try:
        with computed_by(forwards):
            yield
    finally:
        handle.remove()


class _ByProcessor:
    """A self-attention computed by a processor of diffusers. It has the attributes that the processor looks at."""

    spatial_norm = group_norm = None
    norm_cross = residual_connection = False
    rescale_output_factor = 1.0

    def __init__(self, processor, attn: nn.Module):
        self.processor = processor
        self.heads, self.to_q, self.to_k, self.to_v, self.to_out = (
            attn.heads, attn.to_q, attn.to_k, attn.to_v, attn.to_out,
        )  # fmt: skip

    def __call__(self, x: torch.Tensor, context=None, mask=None) -> torch.Tensor:
        return self.processor(self, x)


def commit(folder: Path) -> str:
    """The commit that is checked out in their repository."""
    found = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
