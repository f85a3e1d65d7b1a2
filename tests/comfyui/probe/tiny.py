"""Models of few channels, which ComfyUI then recognises in checkpoints as it does the real SD 1.x and SDXL.

ComfyUI knows a model by the sizes of its U-Net. These have the real ones' topology, but sizes of their own.
"""

import comfy.supported_models
import comfy.supported_models_base as base
from comfy import sd1_clip, sdxl_clip
from comfy.utils import state_dict_prefix_replace

CHANNELS = 32
WIDTH, WIDTH_G = 64, 96  # of the two text encoders; different on purpose: a mix-up of the two cannot load
VECTOR = WIDTH_G + 6 * 256  # SDXL's pooled text and six sizes


def config(width):
    """A CLIP text encoder of so many channels."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "num_hidden_layers": 3}
    kind = {"hidden_act": "quick_gelu", "max_position_embeddings": 77, "vocab_size": 49408, "eos_token_id": 49407}
    return {**sizes, **kind, "layer_norm_eps": 1e-5, "model_type": "clip_text_model"}


class TinyClip(sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device, dtype=dtype, return_projected_pooled=False, textmodel_json_config=config(WIDTH),
            model_options=model_options or {},
        )  # fmt: skip


class TinyClipSD1(sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device, dtype, model_options or {}, clip_model=TinyClip)


class TinyClipSDXL(sdxl_clip.SDXLClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super(sdxl_clip.SDXLClipModel, self).__init__()
        common = {
            "layer": "hidden",
            "layer_idx": -2,
            "layer_norm_hidden_state": False,
            "device": device,
            "dtype": dtype,
        }
        self.clip_l = sd1_clip.SDClipModel(textmodel_json_config=config(WIDTH), **common)
        self.clip_g = sd1_clip.SDClipModel(
            textmodel_json_config=config(WIDTH_G), special_tokens={"start": 49406, "end": 49407, "pad": 0}, **common
        )
        self.dtypes = {dtype}

    def load_sd(self, sd):
        width = sd["text_model.final_layer_norm.weight"].shape[0]
        return (self.clip_g if width == WIDTH_G else self.clip_l).load_sd(sd)


class TinySD1(comfy.supported_models.SD15):
    unet_config = {**comfy.supported_models.SD15.unet_config, "context_dim": WIDTH, "model_channels": CHANNELS}

    def clip_target(self, state_dict=None):
        return base.ClipTarget(sd1_clip.SD1Tokenizer, TinyClipSD1)


class TinySDXL(comfy.supported_models.SDXL):
    unet_config = {
        **comfy.supported_models.SDXL.unet_config,
        "context_dim": WIDTH + WIDTH_G,
        "model_channels": CHANNELS,
        "transformer_depth": [0, 0, 2, 2, 4, 4],
        "adm_in_channels": VECTOR,
    }
    unet_extra_config = {"num_heads": -1, "num_head_channels": 16}

    def process_clip_state_dict(self, state_dict):
        return state_dict_prefix_replace(state_dict, {"conditioner.": ""}, filter_keys=True)

    def clip_target(self, state_dict=None):
        return base.ClipTarget(sdxl_clip.SDXLTokenizer, TinyClipSDXL)


class TinyFlux(comfy.supported_models.FluxSchnell):
    """ComfyUI takes Flux for one of full width, so it has to be asked for this one first, by its pooled text."""

    unet_config = {**comfy.supported_models.FluxSchnell.unet_config, "vec_in_dim": WIDTH}
    unet_extra_config = {"hidden_size": 64, "num_heads": 4, "axes_dim": [4, 6, 6], "context_in_dim": WIDTH}


def register():
    """Let ComfyUI recognise these models."""
    comfy.supported_models.models += [TinySD1, TinySDXL]
    comfy.supported_models.models.insert(0, TinyFlux)
