"""A node pack of the tests: tiny models, and nodes that look at what attention gets.

It knows nothing of ToDo. The step that a call belongs to is read from the sampler's own frame, where its loop counts.
"""

import hashlib
import json
import os
import sys
import threading

import comfy.ldm.modules.attention as attention
import comfy.samplers
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from server import PromptServer

from . import tiny

tiny.register()

LOOPS = {"sampling.py": "i", "uni_pc.py": "step_index"}  # where samplers are -> what counts their steps
record = []
names = {}
texts = []


def sampler_step():
    """The number that the innermost loop of a sampler counts, or None."""
    frame = sys._getframe(2)
    while frame is not None:
        count = frame.f_locals.get(LOOPS.get(os.path.basename(frame.f_code.co_filename)))
        if isinstance(count, int):
            return count
        frame = frame.f_back
    return None


def watched(attend):
    def look(q, k, v, *args, **kwargs):
        attn = sys._getframe(1).f_locals.get("self")
        if record and (name := names.get(attn)):
            record[-1]["attention"].append([name, q.shape[0], q.shape[1], k.shape[1], v.shape[1]])
        return attend(q, k, v, *args, **kwargs)

    return look


attention.optimized_attention = watched(attention.optimized_attention)


def heard(send):
    def listen(self, text, node_id, *args, **kwargs):
        texts.append([node_id, text])
        return send(self, text, node_id, *args, **kwargs)

    return listen


PromptServer.send_progress_text = heard(PromptServer.send_progress_text)


def fingerprint(model):
    """All that hooks and overrides could change in a module tree."""
    text = []
    for name, module in model.named_modules():
        hooks = [(key, len(value)) for key, value in vars(module).items() if "hooks" in key and value]
        text.append(f"{name} {type(module).__qualname__} {hooks} {'forward' in vars(module)}")
    return "\n".join(text)


def call_seen(executor, x, timestep, *args, **kwargs):
    guider = executor.class_obj
    unet = guider.model_patcher.model.diffusion_model
    models = {"": unet}
    for cond in (cond for conds in guider.conds.values() for cond in conds):
        control = cond.get("control")
        while control is not None:
            if getattr(control, "control_model", None) is not None:
                models.setdefault("control: ", control.control_model)
            control = control.previous_controlnet
    names.clear()
    for prefix, model in models.items():
        names.update({m: prefix + n for n, m in model.named_modules() if n.endswith(".attn1")})
    call = {"step": sampler_step(), "sigma": timestep.max().item(), "size": list(x.shape[-2:]), "attention": []}
    record.append(call)
    result = executor(x, timestep, *args, **kwargs)
    names.clear()
    return result


class Watch:
    """MODEL -> MODEL, whose samplings are recorded. `salt` makes what follows run anew."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",), "salt": ("STRING", {"default": ""})}})
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "watch"
    CATEGORY = "probe"

    def watch(self, model, salt):
        record.clear()
        texts.clear()
        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "probe", call_seen)
        return (clone,)


class Report:
    """LATENT -> what was recorded so far, the latent's hash, and what the model carries after the sampling."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",), "latent": ("LATENT",)}})
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "report"
    CATEGORY = "probe"

    def report(self, model, latent):
        samples = latent["samples"].contiguous()
        answer = {
            "calls": list(record),
            "texts": list(texts),
            "hash": hashlib.sha256(samples.numpy().tobytes()).hexdigest(),
            "finite": bool(samples.isfinite().all()),
            "fingerprint": hashlib.sha256(fingerprint(model.model).encode()).hexdigest(),
            "latent": samples.flatten()[:64].tolist(),
            "modules": [name for name in ("todo_lib", "gradio", "modules") if name in sys.modules],
            "path": [path for path in sys.path if path.endswith("sd-webui-todo")],
        }
        return {"ui": {"report": [json.dumps(answer)]}}


class Reference:
    """MODEL -> MODEL: the paper's grid at depth 1, by ComfyUI's own patches and torch's own interpolation."""

    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"model": ("MODEL",), "factor": ("INT", {}), "halvings": ("INT", {"default": 0})}}
    )
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "probe"

    def patch(self, model, factor, halvings):
        def shorten(q, k, v, options):
            height, width = (side >> halvings for side in options["original_shape"][-2:])
            if k.shape[1] != height * width:
                return q, k, v
            image = k.transpose(1, 2).unflatten(2, (height, width))
            image = F.interpolate(image, (height // factor, width // factor), mode="nearest-exact")
            tokens = image.flatten(2).transpose(1, 2)
            return q, tokens, tokens

        clone = model.clone()
        clone.set_model_attn1_patch(shorten)
        return (clone,)


class Other:
    """MODEL, MODEL -> MODEL: in each step the second model is called too, which may share the first one's U-Net."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",), "other": ("MODEL",)}})
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "probe"

    def patch(self, model, other):
        def post_cfg(args):
            record.append({"step": "other", "size": [], "attention": []})
            sample = args["model"], [args["cond"]], args["input"], args["sigma"]
            comfy.samplers.calc_cond_batch(*sample, other.model_options)
            return args["denoised"]

        clone = model.clone()
        clone.set_model_sampler_post_cfg_function(post_cfg)
        return (clone,)


class Compile:
    """MODEL -> MODEL, compiled as TorchCompileModel does it, but by a backend that needs no compiler."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "probe"

    def patch(self, model):
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        clone = model.clone()
        set_torch_compile_wrapper(clone, backend="eager")
        return (clone,)


class Fail:
    """MODEL -> MODEL, whose sampling fails in this call of the U-Net, counted from 1."""

    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"model": ("MODEL",), "call": ("INT", {}), "salt": ("STRING", {"default": ""})}}
    )
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "probe"

    def patch(self, model, call, salt):
        calls = []

        def fail(executor, *args, **kwargs):
            calls.append(None)
            if len(calls) == call:
                raise RuntimeError("the probe has let this sampling fail")
            return executor(*args, **kwargs)

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "probe", fail)
        return (clone,)


class IPAdapter:
    """A tiny IPAdapter for SD 1.x, and the pictures' embeddings for it, as the pack ComfyUI_IPAdapter_plus has them."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES = ("IPADAPTER", "EMBEDS", "EMBEDS")
    FUNCTION = "make"
    CATEGORY = "probe"

    def make(self, model):
        torch.manual_seed(0)
        width, tokens, embedding = tiny.WIDTH, 4, 32
        projection = {"proj.weight": torch.randn(tokens * width, embedding) * embedding**-0.5,
                      "proj.bias": torch.zeros(tokens * width), "norm.weight": torch.ones(width),
                      "norm.bias": torch.zeros(width)}  # fmt: skip
        layers = {}
        unet = model.model.diffusion_model
        blocks = [*unet.input_blocks, *unet.output_blocks, unet.middle_block]
        attentions = [m for block in blocks for name, m in block.named_modules() if name.endswith("attn2")]
        for i, attn in enumerate(attentions):
            for part in ("to_k_ip", "to_v_ip"):
                layers[f"{2 * i + 1}.{part}.weight"] = torch.randn(attn.to_k.weight.shape[0], width) * width**-0.5
        embeds = torch.randn(1, embedding), torch.zeros(1, embedding)
        return ({"image_proj": projection, "ip_adapter": layers}, *embeds)


class ZeroLatent:
    """An empty LATENT of any size in latent pixels, also one that no image has."""

    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"width": ("INT", {"default": 16}), "height": ("INT", {"default": 16})}}
    )
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = "probe"

    def make(self, width, height):
        return ({"samples": torch.zeros(1, 4, height, width)},)


NODE_CLASS_MAPPINGS = {
    "ProbeWatch": Watch,
    "ProbeReport": Report,
    "ProbeReference": Reference,
    "ProbeOther": Other,
    "ProbeCompile": Compile,
    "ProbeIPAdapter": IPAdapter,
    "ProbeFail": Fail,
    "ProbeLatent": ZeroLatent,
}


def exit_with_stdin():
    """End this ComfyUI when the test run at the other end of its standard input has ended, in whatever way."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(1)


if os.environ.get("PROBE_EXIT_WITH_STDIN"):
    threading.Thread(target=exit_with_stdin, daemon=True).start()
