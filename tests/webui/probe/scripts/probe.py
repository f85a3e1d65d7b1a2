"""Test-only extension: tells over HTTP what happens inside the WebUI, without any help from the tested extension.

While a recording runs or a fault is armed, plain hooks sit on the U-Net that the host is about to call. They change
nothing that passes through them, so images are the same with and without them. At other times nothing is hooked.

Every route waits for the host's queue, so that it runs between generations and never beside one.
"""

import ctypes
import functools
import gc
import importlib
import json
import math
import os
import shutil
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import torch
from fastapi import Body
from fastapi.responses import JSONResponse
from modules import script_callbacks, scripts, sd_models, sd_samplers, shared
from modules.call_queue import queue_lock
from modules.paths_internal import data_path

# The folder of the checkpoints, if it was named on the command line. Neo takes any number of such folders.
CHECKPOINTS = getattr(shared.cmd_opts, "ckpt_dir", None) or next(iter(getattr(shared.cmd_opts, "ckpt_dirs", ())), None)


class Probe:
    def __init__(self):
        self.handles = []
        self.observers = {}  # id of a U-Net or ControlNet -> hooked modules and the handles of the hooks
        self.unet = None
        self.denoiser = lambda: None  # a weak reference to the present pass's denoiser: each pass has its own
        self.reset()

    def reset(self):
        self.detach()
        self.recording = self.looking = self.indices = self.fingerprints = self.controls = False
        self.fault, self.fired = None, False
        self.forget()

    def forget(self):
        """Empty the record."""
        self.calls, self.between, self.generations = [], [], []
        self.row_sets = {}  # rows -> number: the same few sets of rows recur in all layers and steps
        self.samplings = 0
        self.denoiser = lambda: None

    # ---- hooks

    def before_unet(self, params):
        """Observe the U-Net that the host is about to call. A switch to a refiner or hires checkpoint may change it."""
        if not self.looking and self.fault is None:
            return
        denoiser = params.denoiser
        if self.denoiser() is not denoiser:
            self.denoiser, self.calls_of_pass = weakref.ref(denoiser), 0
            self.samplings += 1
        self.place = {
            "model": checkpoint_name(shared.sd_model),
            "pass": pass_name(denoiser.p),
            "sampling": self.samplings,
            "iteration": denoiser.p.iteration,
            "sampler": denoiser.sampler.config.name,
            "step": denoiser.step,
            "steps": denoiser.steps,
            "total_steps": denoiser.total_steps,
            "sampling_step": params.sampling_step,
            "sampling_steps": params.total_sampling_steps,
            "sigma": finite(params.sigma.max()),
            "todo": any(script.title() == "ToDo" for script in getattr(denoiser.p.scripts, "alwayson_scripts", ())),
            "loop": sampler_loop(),
        }
        self.attach(current_unet())
        if self.controls:
            self.attach_controls()

    def attach(self, unet):
        if self.unet is unet:
            return
        self.detach()
        self.unet = unet
        self.handles.append(unet.register_forward_pre_hook(self.unet_called))
        self.handles.append(unet.register_forward_hook(self.unet_returned))

    def attach_controls(self):
        """Observe the ControlNets: encoders that lie anywhere but in the U-Net."""
        # look at the type itself: isinstance asks proxies, whose objects may be gone
        for module in [o for o in gc.get_objects() if issubclass(type(o), torch.nn.Module)]:
            parts = vars(module).get("_modules") or {}  # reForge dismantles models that it no longer needs
            if "input_blocks" in parts and "output_blocks" not in parts and id(module) not in self.attached:
                self.attached[id(module)] = module
                self.handles.append(module.register_forward_pre_hook(self.control_observer(len(self.attached))))

    def control_observer(self, number):
        def control_called(module, args):
            self.observe(module, f"control {number}: ")

        return control_called

    def observe(self, root, prefix=""):
        """Observe this model's projections during the present call, in front of and behind everyone else's hooks.

        The hooks are registered again for each call: by now all others have registered theirs.
        """
        self.stop_observing(id(root))
        observers = self.observers[id(root)] = []
        for name, transformer in root.named_modules():
            blocks = getattr(transformer, "transformer_blocks", ())
            if not any(hasattr(block, "attn1") for block in blocks):
                continue
            called = transformer.register_forward_pre_hook(self.transformer_called, prepend=True)
            observers.append((transformer, called))
            for i, block in enumerate(blocks):
                layer = f"{prefix}{name}.transformer_blocks.{i}.attn1"
                heads = getattr(block.attn1, "heads", 1)
                for key in ("to_q", "to_k", "to_v"):
                    given, made, taken = self.projection_observers(layer, key, heads)
                    projection = getattr(block.attn1, key)
                    handles = [
                        projection.register_forward_pre_hook(given, prepend=True),
                        projection.register_forward_hook(made, prepend=True),
                        projection.register_forward_hook(taken),
                    ]
                    observers += [(projection, handle) for handle in handles]

    def stop_observing(self, root):
        for module, handle in self.observers.pop(root, ()):
            handle.remove()
            for hooks in (module._forward_hooks, module._forward_pre_hooks):  # some extensions replace these dicts
                hooks.pop(handle.id, None)

    def projection_observers(self, layer, key, heads):
        """The hooks on a projection. They are functions, because extensions ask every hook for its name.

        The first one sees the tokens that the self-attention hands over.
        The second one sees the tokens that are left of them, and the projection's result.
        The third one sees the result that the self-attention gets.
        """
        seen = {}

        def given(module, args):
            seen["given"] = args[0]

        def made(module, args, output):
            seen["made"] = output

        def taken(module, args, output):
            self.projected(layer, key, heads, seen.pop("given"), args[0], seen.pop("made"), output)

        return given, made, taken

    def detach(self):
        for handle in self.handles:
            handle.remove()
        for root in list(self.observers):
            self.stop_observing(root)
        self.handles, self.unet, self.attached = [], None, {}
        self.open, self.early, self.in_unet = {}, [], False

    def unet_called(self, module, args):
        self.observe(module)
        # Forge runs ControlNets before the U-Net's call, the WebUI's extension within it.
        self.call = {**self.place, "call": self.calls_of_pass, "layers": self.early}
        self.open, self.early, self.in_unet = {}, [], True
        self.calls_of_pass += 1
        if self.recording:
            self.calls.append(self.call)
        if not (self.fault and self.fault.get("inside")):
            self.fire_fault()

    def transformer_called(self, module, args):
        self.grid = list(args[0].shape[-2:])

    def unet_returned(self, module, args, output):
        self.in_unet = False

    def projected(self, name, key, heads, given, left, made, taken):
        """Note that a projection of a self-attention has run."""
        layer = self.open.setdefault(name, {"layer": name, "grid": self.grid, "heads": heads})
        layer[key] = list(taken.shape[:2])
        if key == "to_k" and self.fault and self.fault.get("inside"):
            self.fire_fault()
        if self.indices and key != "to_q":
            layer[f"{key}_rows"] = self.rows(given, left, made, taken, heads)
        if all(projection in layer for projection in ("to_q", "to_k", "to_v")):
            del self.open[name]
            (self.call["layers"] if self.in_unet else self.early).append(layer)

    def rows(self, given, left, made, taken, heads):
        """Find the given token that each taken key or value comes from (-1: none). Returns the number of this row set.

        A row set has a list for each batch entry and head. A single list stands for heads that are all alike.
        given: the tokens that the self-attention hands over.
        left: the tokens that the projection gets, maybe fewer.
        made: the projection's result.
        taken: the keys or values that the self-attention gets.
        """
        found = []
        for tokens, lefts, mades, takens in zip(*map(arrays, (given, left, made, taken)), strict=True):
            in_front = list(range(len(tokens))) if left is given else sources(tokens, lefts)
            if taken is made:
                behind = [list(range(len(mades)))]
            else:
                heads = heads if mades.shape[-1] % heads == 0 else 1
                parts = (np.split(array, heads, axis=-1) for array in (mades, takens))
                behind = [sources(*pair) for pair in zip(*parts, strict=True)]
            rows = [tuple(in_front[i] if i >= 0 else -1 for i in head) for head in behind]
            rows = tuple(rows if len(set(rows)) > 1 else rows[:1])
            if rows not in found:
                found.append(rows)
        return self.row_sets.setdefault(tuple(found), len(self.row_sets))

    # ---- faults

    def fire_fault(self):
        fault = self.fault
        if fault is None or (fault["pass"], fault["call"]) != (self.call["pass"], self.call["call"]):
            return
        self.fault, self.fired = None, True
        if fault["action"] == "raise":
            raise RuntimeError("probe: injected fault")
        {"interrupt": shared.state.interrupt, "skip": shared.state.skip}[fault["action"]]()

    # ---- the moments of which scripts are told

    def moment(self, name, p):
        if self.recording and self.fingerprints:
            self.between.append({"moment": name, "pass": pass_name(p), "leftovers": fingerprint(self.hook_ids())})

    def generation_ended(self, p, processed):
        self.fault = None  # a fault that has not fired by now must not hit a later generation
        if self.recording:
            self.generations.append(
                {
                    "processed": processed,  # other scripts may still write into it
                    "not_json": [name for name, value in vars(p).items() if not survives_json(value)],
                    "attributes": sorted(vars(p)),
                }
            )

    def hook_ids(self):
        observing = [handle for observers in self.observers.values() for _, handle in observers]
        return {handle.id for handle in (*self.handles, *observing)}

    # ---- routes

    def start(self, indices, fingerprints, controls, calls):
        self.forget()
        self.recording, self.looking = True, calls
        self.indices, self.fingerprints, self.controls = indices, fingerprints, controls

    def stop(self):
        self.recording = self.looking = False
        for generation in self.generations:
            processed = generation.pop("processed")
            generation.update(comments=processed.comments, infotexts=processed.infotexts)
        record = {
            "calls": self.calls,
            "row_sets": list(self.row_sets),
            "between": self.between,
            "generations": self.generations,
        }
        self.forget()
        self.detach()
        return record


def arrays(tensor):
    """A tensor's entries in a form that can be compared byte by byte."""
    return tensor.detach().float().cpu().numpy()


def sources(rows, copies):
    """For each of the others, the first row that it is an exact copy of, or -1 for none."""
    places = {}
    for i, row in enumerate(rows):
        places.setdefault(row.tobytes(), i)
    return [places.get(row.tobytes(), -1) for row in copies]


def current_unet():
    forge = getattr(shared.sd_model, "forge_objects", None)
    return (forge.unet.model if forge else shared.sd_model.model).diffusion_model


def sampler_loop():
    """The sampler's place in its loop over the steps: its function and the number there, read from the running frames.

    The sampler's function is the outermost one called by the host's launch_sampling that counts.
    """
    frames, frame = [], sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "launch_sampling":
        frames.append(frame)
        frame = frame.f_back
    for frame in reversed(frames):
        for name in ("step_id", "step_index", "i"):
            if isinstance(number := frame.f_locals.get(name), int):
                return {"function": frame.f_code.co_name, "number": number}
    return None


def checkpoint_name(model):
    info = model.sd_checkpoint_info
    return info.name if info.name_for_extra == "twin" else info.name_for_extra


def finite(number):
    """A number that JSON allows: with these models some samplers of the forks compute NaN."""
    return float(number) if math.isfinite(number) else None


def pass_name(p):
    return "hires" if getattr(p, "is_hr_pass", False) else "first"


def survives_json(value):
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


# ---- leftovers


def fingerprint(own_hooks=()):
    """Everything that a patch could have left on models and classes: place -> text, to be compared for equality."""
    places = {}
    for checkpoint, root in watched_models().items():
        for name, module in root.named_modules():
            places[f"{checkpoint}: {name}"] = describe_module(module, own_hooks)
    for cls in watched_classes():
        for name, value in vars(cls).items():
            if callable(value) or isinstance(value, (property, staticmethod, classmethod)):
                places[f"{cls.__module__}.{cls.__qualname__}.{name}"] = label(value)
    for module in watched_modules():
        for name, value in vars(module).items():
            if callable(value):
                places[f"{module.__name__}.{name}"] = label(value)
    for name, value in vars(torch.nn.modules.module).items():
        if name.startswith("_global_") and isinstance(value, dict):
            places[f"torch: {name}"] = describe_hooks(value, own_hooks)
    for name, callbacks in script_callbacks.callback_map.items():
        places[f"callbacks: {name}"] = str(len(callbacks))
    for sampler in sd_samplers.all_samplers:
        places[f"sampler: {sampler.name}"] = f"{label(sampler.constructor)} {sampler.options}"
    return places


EMPTY = vars(torch.nn.Module())
HOOKS = [name for name in EMPTY if "hooks" in name]


def describe_module(module, own_hooks):
    attributes = {name: value for name, value in vars(module).items() if name not in EMPTY}
    parts = [f"{type(module).__module__}.{type(module).__qualname__}"]
    parts += [name + (f"={label(value)}" if callable(value) else "") for name, value in sorted(attributes.items())]
    for name in HOOKS:
        hooks = describe_hooks(getattr(module, name, {}), own_hooks)
        if hooks:
            parts.append(f"{name}: {hooks}")
    return " ".join(parts)


def describe_hooks(hooks, own_hooks):
    return ", ".join(f"{key}={label(hook)}" for key, hook in hooks.items() if key not in own_hooks)


def label(value):
    """Name a value. Modules go by their class, the rest by name and identity, because wrapping changes both."""
    if isinstance(value, torch.nn.Module):
        return type(value).__qualname__
    function = getattr(value, "__func__", value)  # a bound method is a new object each time
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{name}@{id(function):x}"


def watched_models():
    """All models that the host holds. On Forge, which puts them together for each use, the U-Net that runs."""
    if hasattr(shared.sd_model, "forge_objects"):
        return {checkpoint_name(shared.sd_model): current_unet()}
    models = [*sd_models.model_data.loaded_sd_models, shared.sd_model]
    return {checkpoint_name(model): model for model in models if model is not None}


def found(module, *names):
    """Look up these attributes of a module, or the module itself. Returns the ones that this host has."""
    try:
        module = importlib.import_module(module)
    except ImportError:
        return []
    return [getattr(module, name) for name in names if hasattr(module, name)] if names else [module]


def watched_classes():
    classes = [torch.nn.Module, torch.nn.Linear]
    classes += found("modules.sd_samplers_common", "Sampler")
    classes += found("modules.sd_samplers_kdiffusion", "KDiffusionSampler", "CFGDenoiserKDiffusion")
    classes += found("modules.sd_samplers_timesteps", "CompVisSampler", "CFGDenoiserTimesteps")
    classes += found("modules.sd_samplers_cfg_denoiser", "CFGDenoiser")
    kinds = ["StableDiffusionProcessing", "StableDiffusionProcessingTxt2Img", "StableDiffusionProcessingImg2Img"]
    classes += found("modules.processing", *kinds)
    for package in ("ldm.modules", "sgm.modules", "ldm_patched.ldm.modules"):
        classes += found(f"{package}.attention", "CrossAttention", "BasicTransformerBlock", "SpatialTransformer")
        classes += found(f"{package}.diffusionmodules.openaimodel", "UNetModel", "TimestepEmbedSequential")
    classes += found("backend.nn.unet", "CrossAttention", "BasicTransformerBlock", "SpatialTransformer")
    return classes


def watched_modules():
    return [
        torch.nn.functional,
        *found("k_diffusion.sampling"),
        *found("modules.sd_samplers_timesteps_impl"),
        *found("modules.sd_hijack_optimizations"),
    ]


# ---- tiny SD3


def shrink_sd3(folder):
    """Let the host make SD3's text encoders and VAE in the tiny checkpoint's sizes, and take its tokenizers."""
    from modules.models.sd3 import other_impls, sd3_cond, sd3_impls

    sizes = json.loads((folder / "sd3.json").read_text(encoding="utf-8"))
    sd3_cond.CLIPL_CONFIG.update(sizes["clip_l"])
    sd3_cond.CLIPG_CONFIG.update(sizes["clip_g"])
    for name in ("VAEEncoder", "VAEDecoder"):
        setattr(sd3_impls, name, functools.partial(getattr(sd3_impls, name), **sizes["vae"]))
    for name, place in [("CLIPTokenizer", "clip"), ("T5TokenizerFast", "t5")]:
        load = getattr(other_impls, name).from_pretrained
        tokenizer = SimpleNamespace(from_pretrained=lambda _, load=load, path=folder / place: load(path))
        for module in (other_impls, sd3_cond):
            setattr(module, name, tokenizer)


# ---- models whose sizes are in the code of Forge and its kin


def shrink_text_encoders(layers):
    """Set the number of layers of text encoders of these widths."""
    from transformers import CLIPTextConfig

    init = CLIPTextConfig.__init__

    @functools.wraps(init)
    def shrunk(self, *args, **sizes):
        if (few := layers.get(str(sizes.get("hidden_size")))) is not None:
            sizes["num_hidden_layers"] = few
        init(self, *args, **sizes)

    CLIPTextConfig.__init__ = shrunk


def shrink_forge_sd3(changes, folder):
    """Let Forge read the configs of SD3's parts from a copy in this folder, with these changes."""
    if not (found("backend.loader") and found("huggingface_guess.model_list", "SD3")):
        return
    from backend import loader
    from huggingface_guess.model_list import SD3

    shutil.copytree(Path(loader.dir_path) / "huggingface" / SD3.huggingface_repo, folder, dirs_exist_ok=True)
    for part, sizes in changes.items():
        config = folder / part / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text(encoding="utf-8")), **sizes}), encoding="utf-8")
    SD3.huggingface_repo = str(folder)


# ---- tiny ControlNets


def shrink_controlnet(configs):
    """Tell the ControlNet extension the sizes of the tiny ControlNets."""
    module = sys.modules.get("scripts.controlnet_model_guess")
    for name, sizes in json.loads(configs.read_text(encoding="utf-8")).items() if module else ():
        getattr(module, name).update(sizes)


# ---- a U-Net in place of the model's own


def add_zero_unet():
    """Offer a U-Net that the host's option sd_unet calls "probe: zeros", where the host has this option."""
    from modules import sd_unet

    if not hasattr(sd_unet, "SdUnet"):
        return

    class ZeroUnet(sd_unet.SdUnet):
        def forward(self, x, timesteps, context, *args, **kwargs):
            return torch.zeros_like(x)

    class ZeroUnetOption(sd_unet.SdUnetOption):
        label = "probe: zeros"
        create_unet = staticmethod(ZeroUnet)

    script_callbacks.on_list_unets(lambda unets: unets.append(ZeroUnetOption()))


# ---- compiled models

torch_compile = torch.compile
traces = 0  # the graphs that were traced


def note_trace(graph, inputs):
    """A backend that compiles nothing."""
    global traces
    traces += 1
    return graph.forward


def trace_alone(model, *, options=None, dynamic=None, **others):
    """torch.compile without the compiler, which takes many minutes for a U-Net on a CPU.

    All else is as ever: what PyTorch traces, and when its code is run again.
    """
    guards = {name: value for name, value in (options or {}).items() if name == "guard_filter_fn"}
    return torch_compile(model, backend=note_trace, dynamic=dynamic, options=guards or None)


# ---- the callbacks and the script

probe = Probe()


class ProbeScript(scripts.Script):
    def title(self):
        return "Probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def before_hr(self, p, *args):
        probe.moment("before hires", p)

    def postprocess_batch(self, p, *args, **kwargs):
        probe.moment("after sampling", p)

    def postprocess(self, p, processed, *args):
        probe.generation_ended(p, processed)


def add_routes(demo, app):
    if CHECKPOINTS and (configs := Path(CHECKPOINTS) / "control" / "configs.json").exists():
        shrink_controlnet(configs)

    def start(
        indices: bool = Body(False),
        fingerprints: bool = Body(False),
        controls: bool = Body(False),
        calls: bool = Body(True),
    ):
        with queue_lock:
            probe.start(indices, fingerprints, controls, calls)

    def record():
        with queue_lock:
            return JSONResponse(probe.stop())

    def leftovers():
        with queue_lock:
            return JSONResponse(fingerprint(probe.hook_ids()))

    def fault(options: dict = Body()):  # noqa: B008 (fastapi's way)
        with queue_lock:
            probe.fault, probe.fired = options, False

    def fault_state():
        with queue_lock:
            return {"armed": probe.fault, "fired": probe.fired}

    def reset_fault():
        with queue_lock:
            probe.fault = None

    def reset():
        with queue_lock:
            probe.reset()

    def options(names: str):
        """Values of the host's options. The host's own API leaves out options that were never set."""
        return {name: getattr(shared.opts, name) for name in names.split(",")}

    def memory():
        """The memory of this process and of all living tensors, in megabytes, and the number of ToDo's own objects.

        Lines under images are not counted: an extension that keeps a processing object keeps its comments with it.
        """
        gc.collect()
        if hasattr(allocator := ctypes.CDLL(None) if os.name == "posix" else None, "malloc_trim"):
            allocator.malloc_trim(0)  # memory that is freed, but kept for later, does not count
        objects = gc.get_objects()
        tensors = [o for o in objects if issubclass(type(o), torch.Tensor)]
        types = [type(o) for o in objects if type(o).__name__ != "Line"]
        ours = sum(str(kind.__module__).startswith("todo_lib") for kind in types)
        storages = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        resident = psutil.Process().memory_info().rss
        return {"resident": resident / 1e6, "tensors": sum(storages.values()) / 1e6, "ours": ours}

    def compile_by_tracing(on: bool = Body(embed=True)):
        """Let torch.compile trace alone, or compile as ever. Both forget what was compiled before."""
        with queue_lock:
            torch._dynamo.reset()
            torch.compile = trace_alone if on else torch_compile

    def traced():
        with queue_lock:
            return traces

    def optimizers():
        """The names of the attention optimisations that run on this machine, as the option takes them."""
        from modules import sd_hijack  # Neo has none

        return [optimizer.title() for optimizer in sd_hijack.optimizers]

    def xyz_axes():
        """The labels of txt2img's X/Y/Z plot axes; the API wants their positions."""
        scripts_of_tab = scripts.scripts_txt2img.selectable_scripts
        plot = next(script for script in scripts_of_tab if script.title().lower() == "x/y/z plot")
        return [option.label for option in plot.current_axis_options]

    for path, method, route in [
        ("start", "POST", start),
        ("record", "GET", record),
        ("leftovers", "GET", leftovers),
        ("fault", "POST", fault),
        ("fault", "GET", fault_state),
        ("reset_fault", "POST", reset_fault),
        ("reset", "POST", reset),
        ("options", "GET", options),
        ("memory", "GET", memory),
        ("compile_by_tracing", "POST", compile_by_tracing),
        ("traced", "GET", traced),
        ("optimizers", "GET", optimizers),
        ("xyz_axes", "GET", xyz_axes),
    ]:
        app.add_api_route(f"/probe/{path}", route, methods=[method])


def exit_with_stdin():
    """End this WebUI when the test run at the other end of its standard input has ended, in whatever way."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(1)


if os.environ.get("PROBE_EXIT_WITH_STDIN"):
    threading.Thread(target=exit_with_stdin, daemon=True).start()

if CHECKPOINTS and (encoders := Path(CHECKPOINTS) / "tiny-encoders").exists():
    shrink_sd3(encoders)
if CHECKPOINTS and (fork_sizes := Path(CHECKPOINTS) / "forks.json").exists():
    sizes = json.loads(fork_sizes.read_text(encoding="utf-8"))
    shrink_text_encoders(sizes["layers"])
    shrink_forge_sd3(sizes["sd3"], Path(data_path) / "sd3")

script_callbacks.on_app_started(add_routes)
if hasattr(script_callbacks, "on_list_unets"):
    add_zero_unet()
script_callbacks.on_cfg_denoiser(probe.before_unet)
