# ruff: noqa: C408
"""Write tiny random-weight checkpoints that the AUTOMATIC1111 WebUI loads as the real model types.

  tiny, tinyb  SD1 (two seeds: base, and refiner / hires checkpoint)
  tinyinp      SD1 inpainting (U-Net with 9 input channels)
  tiny2v       SD2, v-prediction, OpenCLIP text encoder
  tinyxl       SDXL base, CLIP + OpenCLIP text encoders
  tinysd3      SD3 without T5. The host has the sizes of its text encoders and VAE in its code, not in the yaml: it can
               load this one only after it has been given those in SIZES (the file sd3.json beside the text encoders)
  twin         two SD1 checkpoints, twin.safetensors and twin.ckpt, that share twin.yaml: the WebUI switches between
               checkpoints with the same config by loading weights into the modules that it has, else it makes new ones

With --forks, the checkpoints are for Forge and its kin. These hosts know a model by the sizes in its weights and need
no yaml. They have the sizes of text encoder and VAE in their code, so both are full-size here, with random weights
(640 MB for SD1). Larger parts can be loaded only after the hosts have been given the sizes in forks.json.
  fork, forkb  SD1 (two seeds: base, and refiner / hires checkpoint), all levels of the U-Net with 320 channels
  forkxl       SDXL with 320 channels on all levels, its OpenCLIP text encoder with few layers
  forksd3      SD3, as tinysd3, with a T5

The U-Nets keep the topology of the real ones (levels, attention places, blocks), only with few channels.
Each other checkpoint is NAME.safetensors + NAME.yaml: the WebUI prefers a yaml lying beside the checkpoint.
The yaml files name the text encoders' folder by its absolute path, so that folder has to stay.

Run it with the WebUI's python:  make_checkpoints.py --webui WEBUI --out OUT [--encoders DIR]
The folder OUT may be given to the WebUI with --ckpt-dir; the encoders' folder is OUT/tiny-encoders if not given.
"""

import argparse
import contextlib
import functools
import importlib
import io
import json
import os
import sys
import types
from pathlib import Path

import torch
import yaml

CLIP_WIDTH, OPENCLIP_WIDTH = 64, 96  # different on purpose: a mix-up of the two cannot load
OPENCLIP = "tiny-openclip"  # the name under which the architecture is registered with open_clip
# Of SD3, as the host names them: what to change in CLIPL_CONFIG, CLIPG_CONFIG and the VAE's arguments.
SIZES = {
    name: {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "num_hidden_layers": 3}
    for name, width in [("clip_l", CLIP_WIDTH), ("clip_g", OPENCLIP_WIDTH)]
} | {"vae": {"ch": 32, "num_res_blocks": 1}}
# What Forge and its kin have to be given: layers of text encoders by their width, and, of SD3, what to change in the
# configs of its parts, which lie in folders of these names.
FEW_LAYERS = 3  # the forks take the one before the last and want another one before that
T5 = {"d_model": 64, "d_ff": 128, "num_heads": 4, "d_kv": 16, "num_layers": 2, "vocab_size": 32128}
FORK_SIZES = {
    "layers": {1280: FEW_LAYERS},
    "sd3": {
        "text_encoder": {**SIZES["clip_l"], "projection_dim": CLIP_WIDTH},
        "text_encoder_2": {**SIZES["clip_g"], "projection_dim": OPENCLIP_WIDTH},
        "text_encoder_3": T5,
        "vae": {"block_out_channels": [32, 64, 128, 128], "layers_per_block": 1},
    },
}


def put(path: Path, write):
    """Let write(path) fill the file aside, then replace it in one step: a running WebUI may have it open or mapped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    write(part)
    os.replace(part, path)


def put_text(path: Path, text: str):
    put(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_encoders(folder: Path):
    """Tokenizers + config for transformers, an architecture file for open_clip, and the sizes for SD3 (no weights)."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTextConfig

    clip = folder / "clip"
    clip.mkdir(parents=True, exist_ok=True)
    bpe = SimpleTokenizer()  # CLIP's own vocabulary; only the two special tokens have other names there
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {special.get(token, token): i for token, i in bpe.encoder.items()}
    merges = [" ".join(pair) for pair in sorted(bpe.bpe_ranks, key=bpe.bpe_ranks.get)]
    put_text(clip / "vocab.json", json.dumps(vocab, ensure_ascii=False))
    put_text(clip / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    put_text(clip / "tokenizer_config.json", json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}))
    put_text(
        clip / "config.json",
        CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=CLIP_WIDTH,
            intermediate_size=2 * CLIP_WIDTH,
            projection_dim=CLIP_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
        ).to_json_string(),
    )

    write_openclip(folder / f"{OPENCLIP}.json", OPENCLIP_WIDTH, heads=4, layers=3)
    put(folder / "t5" / "tokenizer.json", write_t5_tokenizer)
    put_text(folder / "sd3.json", json.dumps(SIZES, indent=1))


def write_openclip(path: Path, width: int, **sizes):
    """An architecture file for open_clip."""
    text = {"context_length": 77, "vocab_size": 49408, "width": width, **sizes}
    vision = {"image_size": 32, "patch_size": 32, "layers": 1, "width": 32, "head_width": 16}  # dropped on load
    put_text(path, json.dumps({"embed_dim": width, "text_cfg": text, "vision_cfg": vision}, indent=1))


def write_t5_tokenizer(path: Path):
    """Every text is one unknown token and the end. SD3 makes a T5 tokenizer also where its T5 encoder is off."""
    from tokenizers import Tokenizer, models, processors

    tokenizer = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], 2))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    path.parent.mkdir(exist_ok=True)
    tokenizer.save(str(path))


# ---- configs: one dict per model, dumped as its yaml and also used here to build the weights


def node(target, **params):
    return {"target": target, "params": params}


def register_openclip(folder, name=OPENCLIP):
    """open_clip builds only architectures that it knows by name, so the yaml itself has to register ours: this
    node goes where a model builds something before its text encoder and never uses it for generation."""
    return node("open_clip.add_model_config", path=str(folder / f"{name}.json"))


def vae(target, loss):
    return node(
        target,
        embed_dim=4,
        lossconfig=loss,
        ddconfig=dict(
            double_z=True,
            z_channels=4,
            resolution=256,
            in_channels=3,
            out_ch=3,
            ch=32,
            ch_mult=[1, 2, 4, 4],
            num_res_blocks=1,
            attn_resolutions=[],
            dropout=0.0,
        ),
    )


def unet(target, **params):
    return node(
        target,
        **{
            **dict(
                in_channels=4,
                out_channels=4,
                model_channels=32,
                num_res_blocks=2,
                attention_resolutions=[4, 2, 1],
                channel_mult=[1, 2, 4, 4],
                use_spatial_transformer=True,
                use_checkpoint=False,
                legacy=False,
            ),
            **params,
        },
    )


def ldm_model(text, kind="LatentDiffusion", loss=None, unet_params=None, **params):
    return node(
        f"ldm.models.diffusion.ddpm.{kind}",
        **{
            **dict(
                linear_start=0.00085,
                linear_end=0.0120,
                timesteps=1000,
                first_stage_key="jpg",
                cond_stage_key="txt",
                image_size=64,
                channels=4,
                cond_stage_trainable=False,
                conditioning_key="crossattn",
                scale_factor=0.18215,
                use_ema=False,
                cond_stage_config=text,
                unet_config=unet("ldm.modules.diffusionmodules.openaimodel.UNetModel", image_size=32, **unet_params),
                first_stage_config=vae("ldm.models.autoencoder.AutoencoderKL", loss or node("torch.nn.Identity")),
            ),
            **params,
        },
    )


def sd1(folder, in_channels=4, **params):
    return ldm_model(
        node("ldm.modules.encoders.modules.FrozenCLIPEmbedder", version=str(folder / "clip")),
        unet_params=dict(in_channels=in_channels, num_heads=8, transformer_depth=1, context_dim=CLIP_WIDTH),
        **params,
    )


def fork(folder):
    from transformers import CLIPTextConfig

    sizes = {"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768, "pad_token_id": 1}
    config = CLIPTextConfig(num_hidden_layers=12, num_attention_heads=12, bos_token_id=0, eos_token_id=2, **sizes)
    put_text(folder / "full-clip" / "config.json", config.to_json_string())
    model = sd1(folder)
    params = model["params"]
    params["cond_stage_config"]["params"]["version"] = str(folder / "full-clip")
    params["unet_config"]["params"].update(model_channels=320, channel_mult=[1, 1, 1, 1], context_dim=768)
    params["first_stage_config"]["params"]["ddconfig"].update(ch=128, num_res_blocks=2)
    return model


def fork_xl(folder):
    model, of_sd1 = sdxl(folder), fork(folder)["params"]
    params, arch = model["params"], "few-layers-openclip"
    write_openclip(folder / f"{arch}.json", 1280, heads=20, layers=FEW_LAYERS)
    params["sampler_config"] = register_openclip(folder, arch)
    clip, openclip, *_ = params["conditioner_config"]["params"]["emb_models"]
    clip["params"]["version"] = of_sd1["cond_stage_config"]["params"]["version"]
    openclip["params"]["arch"] = arch
    params["network_config"]["params"].update(
        model_channels=320,
        channel_mult=[1, 1, 1],
        transformer_depth=[1, 2, 10],  # the forks take no other for SDXL
        num_head_channels=64,
        context_dim=768 + 1280,
        adm_in_channels=1280 + 6 * 256,
    )
    params["first_stage_config"]["params"]["ddconfig"] = of_sd1["first_stage_config"]["params"]["ddconfig"]
    return model


def sd1_inpainting(folder):
    return sd1(folder, in_channels=9, kind="LatentInpaintDiffusion", conditioning_key="hybrid", finetune_keys=None)


def sd2_v(folder):
    return ldm_model(
        node("ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder", arch=OPENCLIP, freeze=True, layer="penultimate"),
        loss=register_openclip(folder),
        parameterization="v",
        unet_params=dict(
            num_head_channels=16, use_linear_in_transformer=True, transformer_depth=1, context_dim=OPENCLIP_WIDTH
        ),
    )


def sdxl(folder):
    part, size_dim = "sgm.modules.diffusionmodules.", 256

    def embedder(name, key, **params):
        return dict(node(f"sgm.modules.encoders.modules.{name}", **params), is_trainable=False, input_key=key)

    sizes = ["original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple"]
    return node(
        "sgm.models.diffusion.DiffusionEngine",
        scale_factor=0.13025,
        disable_first_stage_autocast=True,
        network_config=unet(
            part + "openaimodel.UNetModel",
            attention_resolutions=[4, 2],
            channel_mult=[1, 2, 4],
            transformer_depth=[1, 2, 4],
            num_head_channels=16,
            use_linear_in_transformer=True,
            spatial_transformer_attn_type="softmax-xformers",
            context_dim=CLIP_WIDTH + OPENCLIP_WIDTH,
            num_classes="sequential",
            adm_in_channels=OPENCLIP_WIDTH + len(sizes) * 2 * size_dim,
        ),
        denoiser_config=node(
            part + "denoiser.DiscreteDenoiser",
            num_idx=1000,
            weighting_config=node(part + "denoiser_weighting.EpsWeighting"),
            scaling_config=node(part + "denoiser_scaling.EpsScaling"),
            discretization_config=node(part + "discretizer.LegacyDDPMDiscretization"),
        ),
        sampler_config=register_openclip(folder),  # built before the conditioner; the WebUI has its own samplers
        conditioner_config=node(
            "sgm.modules.GeneralConditioner",
            emb_models=[
                embedder("FrozenCLIPEmbedder", "txt", version=str(folder / "clip"), layer="hidden", layer_idx=2),
                embedder(
                    "FrozenOpenCLIPEmbedder2",
                    "txt",
                    arch=OPENCLIP,
                    freeze=True,
                    layer="penultimate",
                    always_return_pooled=True,
                    legacy=False,
                ),
                *[embedder("ConcatTimestepEmbedderND", key, outdim=size_dim) for key in sizes],
            ],
        ),
        first_stage_config=vae("sgm.models.autoencoder.AutoencoderKLInferenceWrapper", node("torch.nn.Identity")),
    )


def sd3(folder):
    return node("modules.models.sd3.sd3_model.SD3Inferencer", shift=3, state_dict=None)  # the host puts the weights in


def fork_sd3(folder):
    model = sd3(folder)
    model["params"]["t5"] = T5  # Forge wants one, even if it is not used
    return model


# How the weights are drawn.
#   fill    std for the layers that an untrained U-Net leaves at zero (its output would be zero)
#   gain    factor on the self-attentions' query and key weights
#   offset  added to the text encoders' hidden states and output: the WebUI rescales every prompt by mean / (mean after
#           emphasis), and fresh layer norms leave a mean of zero up to rounding: noise, or 0/0 and a NaN image
# Drawn plainly, attention averages nearly evenly over all tokens and hardly enters the residual stream, so that even
# dropping 3 of 4 keys hardly changes a pixel. Drawn like this it selects, and its result counts.
DRAW = dict(fill=lambda weight: weight[0].numel() ** -0.5, gain=3.0, offset=0.1)

# file: (config, seed, stored dtype)
MODELS = {
    "tiny.safetensors": (sd1, 0, torch.float32),
    "tinyb.safetensors": (sd1, 1, torch.float32),
    "tinyinp.safetensors": (sd1_inpainting, 2, torch.float32),
    "tiny2v.safetensors": (sd2_v, 3, torch.float32),
    "tinyxl.safetensors": (sdxl, 4, torch.float16),  # half the size, and how SDXL checkpoints usually come
    "tinysd3.safetensors": (sd3, 7, torch.float16),
    "twin.safetensors": (sd1, 5, torch.float16),
    "twin.ckpt": (sd1, 6, torch.float16),
}
FORKS = {
    "fork.safetensors": (fork, 10, torch.float16),
    "forkb.safetensors": (fork, 11, torch.float16),
    "forkxl.safetensors": (fork_xl, 13, torch.float16),
    "forksd3.safetensors": (fork_sd3, 14, torch.float16),
}


# ---- weights


def build(config):
    module, name = config["target"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**config["params"])


def text_encoder(config, offset):
    """The random-weight network inside an embedder, and the name that it has in checkpoints."""
    if "OpenCLIP" in config["target"]:
        import open_clip

        name, model = "model.", open_clip.create_model(config["params"]["arch"])
        del model.visual
        position, norm = model.positional_embedding, model.ln_final
    else:
        from transformers import CLIPTextConfig, CLIPTextModel

        name, model = "transformer.", CLIPTextModel(CLIPTextConfig.from_pretrained(config["params"]["version"]))
        position, norm = model.text_model.embeddings.position_embedding.weight, model.text_model.final_layer_norm
    position += offset
    norm.bias += offset
    return name, model


def sd3_parts(t5=None):
    """The parts of an SD3 checkpoint by their names in it: the host's own classes, without the rest of the host."""
    stub = sys.modules["modules.sd_hijack"] = types.ModuleType("modules.sd_hijack")
    stub.TextualInversionEmbeddings = lambda *size, textual_inversion_key, **kwargs: torch.nn.Embedding(*size, **kwargs)
    from modules.models.sd3 import mmdit, other_impls, sd3_impls

    depth, patches = 2, 32 * 32
    linear = node("torch.nn.Linear", in_features=4096, out_features=64 * depth)  # the host pads its prompts to 4096
    net = mmdit.MMDiT(
        input_size=None,
        pos_embed_max_size=32,
        patch_size=2,
        in_channels=16,
        depth=depth,
        num_patches=patches,
        adm_in_channels=CLIP_WIDTH + OPENCLIP_WIDTH,
        context_embedder_config=linear,
    )
    net.pos_embed.normal_()
    parts = {"model.diffusion_model.": net}
    for name, activation in [("clip_l", "quick_gelu"), ("clip_g", "gelu")]:
        config = {**SIZES[name], "hidden_act": activation}
        encoder = other_impls.SDClipModel(layer="hidden", layer_idx=-2, textmodel_json_config=config)
        text = encoder.transformer.text_model
        text.embeddings.position_embedding.weight += DRAW["offset"]
        text.final_layer_norm.bias += DRAW["offset"]
        parts[f"text_encoders.{name}."] = encoder
    if t5:
        from transformers import T5Config, T5EncoderModel

        config = T5Config(**t5, feed_forward_proj="gated-gelu")
        parts["text_encoders.t5xxl.transformer."] = T5EncoderModel(config)
    parts["first_stage_model.encoder."] = sd3_impls.VAEEncoder(**SIZES["vae"])
    parts["first_stage_model.decoder."] = sd3_impls.VAEDecoder(**SIZES["vae"])
    return parts


def unet_parts(p):
    """The parts of a checkpoint with a U-Net, by their names in it."""
    net = build(p.get("unet_config") or p["network_config"])
    for name, weight in net.named_parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=DRAW["fill"](weight))
        if ".attn1.to_q." in name or ".attn1.to_k." in name:
            weight *= DRAW["gain"]
    vae = build(p["first_stage_config"])
    # The host samples from what the encoder says, and not from its seed: a trained one is sure of it, to many digits.
    vae.quant_conv.weight[4:] = 0
    vae.quant_conv.bias[4:] = -30
    parts = {"model.diffusion_model.": net, "first_stage_model.": vae}
    if "conditioner_config" in p:
        build(p["sampler_config"])
        texts = {
            f"conditioner.embedders.{i}.": e for i, e in enumerate(p["conditioner_config"]["params"]["emb_models"])
        }
    else:
        texts = {"cond_stage_model.": p["cond_stage_config"]}
    for prefix, config in texts.items():
        if config.get("input_key", "txt") == "txt":
            inner, encoder = text_encoder(config, DRAW["offset"])
            parts[prefix + inner] = encoder
    return parts


@torch.no_grad()
def state_dict(model, seed, dtype):
    torch.manual_seed(seed)
    params = model["params"]
    parts = sd3_parts(params.get("t5")) if ".sd3." in model["target"] else unet_parts(params)
    tensors = {prefix + k: v for prefix, part in parts.items() for k, v in part.state_dict().items()}
    return {k: (v.to(dtype) if v.is_floating_point() else v).contiguous().clone() for k, v in tensors.items()}


# ---- what extensions load beside a checkpoint

# The ControlNet extension knows the sizes of full-size models only; the probe tells it ours.
CONTROL_CONFIGS = {
    "tiny": ("controlnet_default_config", {"model_channels": 32}),
    "tinyxl": (
        "controlnet_sdxl_mid_config",
        {
            "model_channels": 32,
            "attention_resolutions": [2, 4],
            "transformer_depth": [0, 2, 4],
            "transformer_depth_middle": 4,
            "num_head_channels": 16,
            "context_dim": CLIP_WIDTH + OPENCLIP_WIDTH,
            "adm_in_channels": OPENCLIP_WIDTH + 6 * 256,
        },
    ),
}


@torch.no_grad()
def control_weights(net):
    """A ControlNet whose encoder is that of the U-Net, and whose own layers, zero before training, are random."""
    torch.manual_seed(8)
    prefixes = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.")
    weights = {name: weight for name, weight in net.items() if name.startswith(prefixes)}
    places = {2 * i: (a, b) for i, (a, b) in enumerate([(3, 16), (16, 16), (16, 32), (32, 32), (32, 96), (96, 96)])}
    width = len(weights["input_blocks.0.0.bias"])
    layers = {f"input_hint_block.{i}": (a, b, 3) for i, (a, b) in {**places, 12: (96, 256), 14: (256, width)}.items()}
    blocks = len({name.split(".")[1] for name in weights if name.startswith("input_blocks.")})
    for i in range(blocks):
        ends = [name for name in weights if name.startswith(f"input_blocks.{i}.0.") and name.endswith("bias")]
        channels = len(weights[ends[-1]])
        layers[f"zero_convs.{i}.0"] = (channels, channels, 1)
    layers["middle_block_out.0"] = (channels, channels, 1)
    for name, (ins, outs, size) in layers.items():
        weights[f"{name}.weight"] = torch.randn(outs, ins, size, size) * (ins * size**2) ** -0.5
        weights[f"{name}.bias"] = torch.zeros(outs)
    return weights


LORA = {False: "diffusion_model_", True: "lora_unet_"}  # how the hosts name a layer of the U-Net in a LoRA


@torch.no_grad()
def lora_weights(net, prefix):
    """A LoRA of rank 2 on all keys and values."""
    torch.manual_seed(9)
    weights = {}
    for name, weight in net.items():
        if name.endswith(("to_k.weight", "to_v.weight")):
            key = prefix + name.removesuffix(".weight").replace(".", "_")
            outs, ins = weight.shape
            weights[f"{key}.lora_up.weight"] = torch.randn(outs, 2)
            weights[f"{key}.lora_down.weight"] = torch.randn(2, ins) * ins**-0.5
    return weights


@torch.no_grad()
def lllite_weights(net):
    """A ControlLLLite on the self-attentions of the encoder's first level."""
    torch.manual_seed(12)
    weights, size = {}, 16
    for name, weight in net.items():
        if not name.startswith(("input_blocks.1.", "input_blocks.2.")) or ".attn1.to_" not in name or weight.ndim < 2:
            continue
        if ".to_out." in name:
            continue
        ins = weight.shape[1]
        parts = {
            "conditioning1.0": (size // 2, 3, 4, 4),
            "conditioning1.2": (size, size // 2, 2, 2),
            "down.0": (size, ins),
            "mid.0": (size, 2 * size),
            "up.0": (ins, size),
        }
        for part, shape in parts.items():
            key = f"lllite_unet_{name.removesuffix('.weight').replace('.', '_')}.{part}"
            weights[f"{key}.weight"] = torch.randn(shape) * torch.tensor(shape[1:]).prod() ** -0.5
            weights[f"{key}.bias"] = torch.zeros(shape[0])
    return weights


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--webui", type=Path, required=True, help="WebUI folder (its repositories/ are imported)")
    parser.add_argument("--out", type=Path, required=True, help="where the checkpoints and yaml files go")
    parser.add_argument("--forks", action="store_true", help="those for Forge and its kin instead")
    parser.add_argument("--encoders", type=Path, help="where the text encoders' tokenizer and configs go")
    args = parser.parse_args()
    for name in ("stable-diffusion-stability-ai", "generative-models"):
        sys.path.insert(0, str(args.webui / "repositories" / name))
    sys.path.append(str(args.webui))  # for SD3, of which the classes are the host's own
    from safetensors.torch import save_file

    folder = (args.encoders or args.out / ("encoders" if args.forks else "tiny-encoders")).resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.forks:
        write_encoders(folder)
    for name, (config, *options) in (FORKS if args.forks else MODELS).items():
        model = config(folder)
        with contextlib.redirect_stdout(io.StringIO()):  # the model classes print a line per layer
            weights = state_dict(model, *options)
        path = args.out / name
        if path.suffix == ".ckpt":
            put(path, functools.partial(torch.save, {"state_dict": weights}))
        else:
            put(path, functools.partial(save_file, weights))
        if not args.forks:
            put_text(path.with_suffix(".yaml"), yaml.safe_dump({"model": model}))
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
        if path.stem in (*CONTROL_CONFIGS, "fork"):
            prefix = "model.diffusion_model."
            net = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            for kind, extra in (("control", control_weights(net)), ("lora", lora_weights(net, LORA[args.forks]))):
                put(args.out / kind / f"{kind}-{name}", functools.partial(save_file, extra))
            if path.stem in ("fork", "tiny"):
                put(args.out / "control" / f"lllite-{name}", functools.partial(save_file, lllite_weights(net)))
    if args.forks:
        put_text(args.out / "forks.json", json.dumps(FORK_SIZES, indent=1))
    else:
        put_text(args.out / "control" / "configs.json", json.dumps(dict(CONTROL_CONFIGS.values()), indent=1))


if __name__ == "__main__":
    main()
