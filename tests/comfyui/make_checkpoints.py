"""Write tiny checkpoints with random weights, which ComfyUI loads with the probe of these tests.

    tiny, tinyb  SD 1.x, of two seeds
    tinyxl       SDXL
    control, controlxl  ControlNets for them
    lora         a LoRA for SD 1.x
    sd3, flux    SD3's and Flux's kinds of model, which have no U-Net

Run it with ComfyUI's Python: make_checkpoints.py COMFYUI OUT. OUT gets the folders that ComfyUI's models/ has.
"""

import sys
from pathlib import Path

comfyui, out = map(Path, sys.argv[1:])
sys.path[:0] = [str(comfyui), str(Path(__file__).parent / "probe")]
del sys.argv[1:]

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.ops  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
from comfy.cldm.cldm import ControlNet  # noqa: E402
from comfy.ldm.flux.model import Flux, FluxParams  # noqa: E402
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.taesd.taesd import TAESD  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

COMMON = {
    "image_size": 32, "in_channels": 4, "model_channels": tiny.CHANNELS, "use_spatial_transformer": True,
    "legacy": False, "operations": comfy.ops.disable_weight_init, "dtype": torch.float32,
}  # fmt: skip
SD1 = {
    **COMMON, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "num_heads": 8,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1, "context_dim": tiny.WIDTH,
}  # fmt: skip
SDXL = {
    **COMMON, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "num_head_channels": 16,
    "transformer_depth": [0, 0, 2, 2, 4, 4], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 4, 4, 4],
    "transformer_depth_middle": 4, "context_dim": tiny.WIDTH + tiny.WIDTH_G, "use_linear_in_transformer": True,
    "num_classes": "sequential", "adm_in_channels": tiny.VECTOR,
}  # fmt: skip


@torch.no_grad()
def weights(model, prefix):
    """Draw random weights with which attention has a visible effect, as plain ones let it average over all tokens."""
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)  # norms and biases
        else:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        if "attn1.to_q." in name or "attn1.to_k." in name:
            weight *= 3
        if "embedding." in name:
            torch.nn.init.normal_(weight, std=0.5)
    return {prefix + name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}


def save(folder, name, tensors):
    path = out / folder / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def checkpoint(name, seed, layout, texts):
    """texts: prefix -> text encoder."""
    torch.manual_seed(seed)
    tensors = weights(UNetModel(**layout, out_channels=4), "model.diffusion_model.")
    for prefix, model in texts.items():
        tensors |= {key: tensor.half() for key, tensor in weights(model.transformer, prefix).items()}
    tensors |= weights(TAESD(), "first_stage_model.")
    tensors["first_stage_model.vae_scale"] = torch.tensor(1.0)
    save("checkpoints", name, tensors)
    control = ControlNet(**layout, hint_channels=3)
    save("controlnet", name, weights(control, ""))


sd1 = {"cond_stage_model.transformer.": tiny.TinyClip()}
checkpoint("tiny", 0, SD1, sd1)
checkpoint("tinyb", 1, SD1, sd1)
sdxl = tiny.TinyClipSDXL()
texts = {f"conditioner.{name}.transformer.": getattr(sdxl, name) for name in ("clip_l", "clip_g")}
checkpoint("tinyxl", 2, SDXL, texts)

torch.manual_seed(3)
unet = UNetModel(**SD1, out_channels=4).state_dict()
lora = {}
for key in [key for key in unet if key.endswith((".attn1.to_k.weight", ".attn1.to_v.weight", ".attn1.to_q.weight"))]:
    name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
    rows, columns = unet[key].shape
    lora[f"{name}.lora_up.weight"] = torch.randn(rows, 4) * rows**-0.5
    lora[f"{name}.lora_down.weight"] = torch.randn(4, columns) * columns**-0.5
    lora[f"{name}.alpha"] = torch.tensor(4.0)
save("loras", "lora", lora)

torch.manual_seed(4)
sd3 = OpenAISignatureMMDITWrapper(
    depth=2, in_channels=16, patch_size=2, input_size=None, num_patches=4096, pos_embed_max_size=64,
    pos_embed_scaling_factor=None, adm_in_channels=tiny.WIDTH, operations=comfy.ops.disable_weight_init,
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": tiny.WIDTH, "out_features": 128}},
    dtype=torch.float32,
)  # fmt: skip
torch.nn.init.normal_(sd3.pos_embed)  # a buffer, which is made without values
save("diffusion_models", "sd3", weights(sd3, ""))

torch.manual_seed(5)
newer = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__annotations__ else {}
flux = Flux(
    **tiny.TinyFlux.unet_extra_config, in_channels=16, out_channels=16, vec_in_dim=tiny.WIDTH, mlp_ratio=4.0, depth=1,
    depth_single_blocks=1, **newer, theta=10000, patch_size=2, qkv_bias=True, guidance_embed=False,
    operations=comfy.ops.disable_weight_init, dtype=torch.float32,
)  # fmt: skip
save("diffusion_models", "flux", weights(flux, ""))
