"""Train the model from scratch: python3 dev.py train autoencoder|unet|export, in this order.

Each stage runs for the given minutes, learning rates follow the share of them that is over, and goes on from its last
checkpoint where it was stopped. Work files lie in model/work; export writes the finished model.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from torch import nn

from model.emoji import CHECKPOINT, CONFIG, NATIVE_SIZE, PREFIXES, TOKENIZER
from model.parts import (
    AUTOENCODER,
    LATENT_CHANNELS,
    LATENT_SCALE,
    LINEAR_END,
    LINEAR_START,
    TEXT,
    TIMESTEPS,
    UNET,
    Autoencoder,
    TextEncoder,
    alphas_cumprod,
    make_unet,
)
from model.pictures import CAPTIONS, on_white, read_package
from model.tokens import END, START, Tokenizer

WORK = Path(__file__).parent / "work"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model.train", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--package", type=Path, help="the npm package's .tgz, downloaded if not given")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    random.seed(0)
    WORK.mkdir(exist_ok=True)
    STAGES[options.stage](options)


class Run:
    """A stage's clock, log and checkpoint. `share` is how much of its time is over, 0 to 1."""

    def __init__(self, name: str, minutes: float, **kept):
        self.name, self.seconds, self.kept = name, 60 * minutes, kept
        self.path = WORK / f"{name}.pt"
        self.step, self.before = 0, 0.0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.step, self.before = state["step"], state["elapsed"]
            for key, thing in kept.items():
                thing.load_state_dict(state[key])
        self.start = self.saved = time.monotonic()
        self.losses = {}

    @property
    def elapsed(self) -> float:
        return self.before + time.monotonic() - self.start

    @property
    def share(self) -> float:
        return min(1.0, self.elapsed / self.seconds)

    def note(self, name: str, loss: float) -> None:
        self.losses.setdefault(name, []).append(loss)

    def done(self, every: int = 50) -> bool:
        """Count a step; whether the time is over."""
        self.step += 1
        over = self.elapsed >= self.seconds
        if self.step % every == 0 or over:
            line = {"step": self.step, "seconds": round(self.elapsed)}
            line |= {name: sum(losses) / len(losses) for name, losses in self.losses.items()}
            self.losses.clear()
            print(json.dumps(line), flush=True)
            with (WORK / f"{self.name}.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if over or time.monotonic() - self.saved > 120:
            self.save()
        return over

    def save(self) -> None:
        self.saved = time.monotonic()
        state = {key: thing.state_dict() for key, thing in self.kept.items()}
        part = self.path.with_suffix(".part")
        torch.save({"step": self.step, "elapsed": self.elapsed, **state}, part)
        part.replace(self.path)


def learning_rate(share: float, top: float) -> float:
    """Up within the first 2 % of the time, then down along a cosine."""
    return top * min(1.0, share / 0.02 + 0.01) * (0.5 + 0.5 * math.cos(math.pi * share) + 0.01)


def train_autoencoder(options: argparse.Namespace) -> None:
    """On all pictures of the package, half of the time on those that the U-Net learns."""
    pictures = read_package(options.package)
    chosen, everything = list(CAPTIONS), list(pictures)
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    run = Run("autoencoder", options.minutes, model=model, optimizer=optimizer)
    while True:
        # Whole pictures at three sizes and parts of pictures: the norms see the same shares of white later on.
        kind = random.choices(["small", "part", "native", "large"], [4, 4, 4, 0.4])[0]
        count, size = {"small": (8, 128), "part": (8, 256), "native": (2, 256), "large": (1, 512)}[kind]
        names = random.choices(chosen, k=count) if random.random() < 0.5 else random.choices(everything, k=count)
        pixels = torch.stack([on_white(pictures[name], size) for name in names])
        if kind == "part":
            top, left = random.randrange(129), random.randrange(129)
            pixels = pixels[..., top : top + 128, left : left + 128]
        if random.random() < 0.5:
            pixels = pixels.flip(-1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.share, 1.5e-3)
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            mean, logvar = model.moments(pixels)
            latents = mean.float() + torch.randn_like(mean) * (0.5 * logvar.float()).exp()
            drawn = model.decode(latents).float()
        difference = drawn - pixels
        # Edges count extra: they make a small picture look sharp, and the mean difference hardly knows them.
        edges = sum(difference.diff(dim=dim).abs().mean() for dim in (2, 3))
        kl = 0.5 * (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean()
        loss = difference.abs().mean() + difference.square().mean() + edges + KL * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        run.note("loss", difference.detach().abs().mean().item())
        if run.done():
            return


@torch.no_grad()
def finished_autoencoder(pictures: dict) -> Autoencoder:
    """The trained autoencoder, with latents of mean 0 and variance 1 in each channel.

    The convolutions at both ends of the latents take up the shift and scale, so that the config's scale_factor is 1.
    """
    model = Autoencoder().eval()
    model.load_state_dict(torch.load(WORK / "autoencoder.pt", weights_only=True)["model"])
    latents = encode(model, pictures, 256)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    after, before = model.post_quant_conv, model.quant_conv
    after.bias += after.weight.flatten(1) @ mean
    after.weight *= std.view(1, -1, 1, 1)
    both = torch.cat([std, std]).view(-1, 1, 1, 1)
    before.weight[: len(std)] /= both[: len(std)]
    before.bias[: len(std)] = (before.bias[: len(std)] - mean) / std
    before.bias[len(std) :] -= 2 * std.log()
    return model


@torch.no_grad()
def encode(model: Autoencoder, pictures: dict, size: int) -> torch.Tensor:
    """(captions, 4, size / 8, size / 8)"""
    return torch.cat([model.encode(on_white(pictures[name], size)[None]) for name in CAPTIONS])


def train_unet(options: argparse.Namespace) -> None:
    """U-Net and text encoder together, first on small latents, then on the native ones, then on large ones as well."""
    cache = WORK / "latents.pt"
    if not cache.exists():
        pictures = read_package(options.package)
        autoencoder = finished_autoencoder(pictures)
        torch.save({size: encode(autoencoder, pictures, 8 * size) for size in (16, 32, 64)}, cache)
    latents = torch.load(cache, weights_only=True)
    tokenizer = make_tokenizer()
    # A row for each template. An article or an "emoji of" may be in a prompt, but need not.
    tokens = torch.stack([tokenizer([template.format(text) for text in CAPTIONS.values()]) for template in TEMPLATES])
    nothing = tokenizer([""])[0]

    model = make_denoiser(tokenizer)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    run = Run("unet", options.minutes, model=model, average=average, optimizer=optimizer)
    alphas = alphas_cumprod()

    def batch_loss(size: int, count: int) -> torch.Tensor:
        chosen = torch.randint(len(CAPTIONS), (count,))
        # Spread evenly over the schedule, somewhat more where there is more noise: what is drawn is decided there.
        times = ((torch.arange(count) + torch.rand(count)) / count) ** 0.75 * TIMESTEPS
        times = times.long().clamp(max=TIMESTEPS - 1)
        alpha = alphas[times].view(-1, 1, 1, 1)
        noise = torch.randn(count, *latents[size].shape[1:])
        noisy = alpha.sqrt() * latents[size][chosen] + (1 - alpha).sqrt() * noise
        prompt = tokens[torch.randint(len(TEMPLATES), (count,)), chosen]
        prompt = torch.where(torch.rand(count, 1) < 0.1, nothing, prompt)  # for classifier-free guidance
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            predicted = model["unet"](noisy, times.float(), model["text_encoder"](prompt))
        return F.mse_loss(predicted.float(), noise)

    while True:
        share = run.share
        batches = next(batches for until, batches in PHASES if share <= until)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(share, 1e-3)
        optimizer.zero_grad(set_to_none=True)
        for size, count in batches:
            loss = batch_loss(size, count)
            (loss / len(batches)).backward()
            run.note(f"loss at {size}", loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (1 + run.step) / (10 + run.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        if run.done():
            return


def make_tokenizer() -> Tokenizer:
    return Tokenizer.train([*CAPTIONS.values(), *(template.format("") for template in TEMPLATES)])


def make_denoiser(tokenizer: Tokenizer) -> nn.ModuleDict:
    text_encoder = TextEncoder(len(tokenizer.vocabulary))
    with torch.no_grad():
        text_encoder.text_model.embeddings.token_embedding.weight *= 0.2
        text_encoder.text_model.embeddings.position_embedding.weight *= 0.05
        # The WebUI scales prompts with emphasis back to their mean, which must not be next to nothing for that.
        text_encoder.text_model.final_layer_norm.bias += 0.2
    return nn.ModuleDict({"unet": make_unet(), "text_encoder": text_encoder})


def export(options: argparse.Namespace) -> None:
    """Write the checkpoint in half precision, its config, the tokenizer's files and the text encoder's config."""
    tokenizer = make_tokenizer()
    denoiser = make_denoiser(tokenizer)
    denoiser.load_state_dict(torch.load(WORK / "unet.pt", weights_only=True)["average"])
    parts = {**denoiser, "autoencoder": finished_autoencoder(read_package(options.package))}
    tensors = {PREFIXES[name] + key: value for name, part in parts.items() for key, value in part.state_dict().items()}
    save_file({key: value.half().contiguous() for key, value in tensors.items()}, CHECKPOINT)
    print(f"{CHECKPOINT}: {CHECKPOINT.stat().st_size / 1e6:.1f} MB")
    tokenizer.save(TOKENIZER)
    ends = {f"{name}_token_id": tokenizer.vocabulary[END] for name in ("eos", "pad")}
    text = {"model_type": "clip_text_model", "vocab_size": len(tokenizer.vocabulary), **TEXT, **ends}
    text["bos_token_id"] = tokenizer.vocabulary[START]
    (TOKENIZER / "config.json").write_text(json.dumps(text, indent=1) + "\n")
    CONFIG.write_text(yaml.safe_dump({"model": config()}, sort_keys=False))


def config() -> dict:
    """What the WebUI makes the model from."""

    def node(target, **params):
        return {"target": target, "params": params}

    return node(
        "ldm.models.diffusion.ddpm.LatentDiffusion",
        linear_start=LINEAR_START,
        linear_end=LINEAR_END,
        timesteps=TIMESTEPS,
        first_stage_key="jpg",
        cond_stage_key="txt",
        image_size=NATIVE_SIZE // LATENT_SCALE,
        channels=LATENT_CHANNELS,
        cond_stage_trainable=False,
        conditioning_key="crossattn",
        scale_factor=1.0,
        use_ema=False,
        unet_config=node("ldm.modules.diffusionmodules.openaimodel.UNetModel", **UNET),
        first_stage_config=node(
            "ldm.models.autoencoder.AutoencoderKL",
            embed_dim=LATENT_CHANNELS,
            lossconfig=node("torch.nn.Identity"),
            ddconfig=AUTOENCODER,
        ),
        # Seen from the WebUI's folder.
        cond_stage_config=node(
            "ldm.modules.encoders.modules.FrozenCLIPEmbedder", version=f"models/Stable-diffusion/{TOKENIZER.name}"
        ),
    )


BF16 = True
KL = 1e-4
TEMPLATES = ["{}", "{}", "a {}", "3d emoji of a {}"]
# Up to this share of the time: (latent size, pictures) of a step.
PHASES = [(0.13, [(16, 64)]), (0.5, [(32, 16)]), (1.0, [(32, 12), (64, 2)])]

STAGES = {"autoencoder": train_autoencoder, "unet": train_unet, "export": export}

if __name__ == "__main__":
    main()
