"""Train the model from scratch: python3 dev.py train autoencoder|unet|export|card, in this order.

Each stage runs for the given minutes, learning rates follow the share of them that is over, and goes on from its last
checkpoint where it was stopped. Work files lie in lab/model/work; export writes the finished model.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from ldm.modules.diffusionmodules.util import GroupNorm32
from safetensors.torch import save_file
from torch import nn

from lab.model import card
from lab.model.emoji import CHECKPOINT, CONFIG, LARGE_SIZE, NATIVE_SIZE, PREFIXES, TOKENIZER, load
from lab.model.parts import (
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
from lab.model.pictures import CAPTIONS, OTHERS, on_white, read_package
from lab.model.tokens import END, START, Tokenizer

WORK = Path(__file__).parent / "work"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lab.model.train", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--package", type=Path, help="the npm package's .tgz, fetched with npm if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    GroupNorm32.forward = nn.GroupNorm.forward  # ldm's goes to single precision and back, which takes long
    WORK.mkdir(exist_ok=True)
    STAGES[options.stage](options)


class Run:
    """A stage's clock, log and checkpoint. The clock counts the processor's time: a machine may have other work too.

    kept: all that the checkpoint holds, each with `state_dict` and `load_state_dict`.
    elapsed: seconds of work so far, those of earlier runs included.
    share: how much of the stage's time is over, 0 to 1.
    """

    def __init__(self, name: str, minutes: float, **kept):
        self.name, self.seconds, self.kept = name, 60 * minutes, kept
        self.path = WORK / f"{name}.pt"
        self.step, self.before = 0, 0.0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.step, self.before = state["step"], state["elapsed"]
            for key, thing in kept.items():
                thing.load_state_dict(state[key])
        self.start = self.saved = time.process_time()
        self.losses = {}

    @property
    def elapsed(self) -> float:
        return self.before + time.process_time() - self.start

    @property
    def share(self) -> float:
        return min(1.0, self.elapsed / self.seconds)

    def note(self, name: str, loss: float) -> None:
        self.losses.setdefault(name, []).append(loss)

    def done(self, every: int = 50) -> bool:
        """Count a step, log and save now and then, and return whether the time is over."""
        self.step += 1
        over = self.elapsed >= self.seconds
        if self.step % every == 0 or over:
            line = {"step": self.step, "seconds": round(self.elapsed)}
            line |= {name: sum(losses) / len(losses) for name, losses in self.losses.items()}
            self.losses.clear()
            print(json.dumps(line), flush=True)
            with (WORK / f"{self.name}.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if over or time.process_time() - self.saved > 60:
            self.save()
        return over

    def save(self) -> None:
        self.saved = time.process_time()
        state = {key: thing.state_dict() for key, thing in self.kept.items()}
        part = self.path.with_suffix(".part")
        torch.save({"step": self.step, "elapsed": self.elapsed, **state}, part)
        part.replace(self.path)


def learning_rate(share: float, top: float) -> float:
    """The learning rate: up within the first 2 % of the time, then down along a cosine."""
    return top * min(1.0, share / 0.02 + 0.01) * (0.5 + 0.5 * math.cos(math.pi * share) + 0.01)


def train_autoencoder(options: argparse.Namespace) -> None:
    """Train the decoder, on the chosen images and some others.

    The encoder is not trained, so that latents are known at once and train_unet can run beside this.
    """
    pictures = read_package(options.package)
    chosen, everything = [*CAPTIONS, *OTHERS], list(pictures)
    torch.manual_seed(0)
    model = make_autoencoder(pictures).to(memory_format=torch.channels_last)
    trained = [*model.decoder.parameters(), *model.post_quant_conv.parameters()]
    optimizer = torch.optim.Adam(trained, betas=(0.9, 0.99))
    run = Run("autoencoder", options.minutes, model=model, optimizer=optimizer)
    if not run.step:
        run.save()
    while True:
        # (images, pixels a side)
        kinds = [(4, 64), (2, 128), (1, 256), (1, 512)]
        odds = [4, 4, 1, 0] if run.share < 0.4 else [0, 2, 6, 0.5]
        count, size = random.choices(kinds, odds)[0]
        names = random.choices(chosen if random.random() < 0.8 else everything, k=count)
        pixels = torch.stack([on_white(pictures[name], size) for name in names])
        with torch.no_grad():
            latents = model.encode(pixels)
        # The U-Net's latents are never exact.
        latents = latents + LATENT_NOISE * torch.rand(count, 1, 1, 1) * torch.randn_like(latents)
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            drawn = model.decode(latents).float()
        difference = drawn - pixels
        # Edges count extra: they make a small image look sharp, and the mean difference hardly knows them.
        edges = sum(difference.diff(dim=dim).abs().mean() for dim in (2, 3))
        loss = difference.abs().mean() + difference.square().mean() + edges
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.share, 5e-4)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        run.note("loss", difference.detach().abs().mean().item())
        if run.done():
            return


@torch.no_grad()
def make_autoencoder(pictures: dict) -> Autoencoder:
    """An autoencoder whose latents are mean colours, and which draws a blurred image from them.

    Pixels are averaged on the way to the latents and spread smoothly on the way back. The residual blocks add next to
    nothing at first. The last layers of both ways are fitted.
    """
    model = Autoencoder()
    average = torch.zeros(3, 3)
    average[:2, :2] = 1 / 4  # ldm pads to the right and below only
    smooth = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16
    middle = torch.zeros(3, 3)
    middle[1, 1] = 1.0
    for part in (model.encoder, model.decoder):
        for name, module in part.named_modules():
            if name.endswith(("conv2", "proj_out")):
                module.weight *= 0.1
            if name.endswith(("downsample.conv", "upsample.conv")):
                kernel = average if name.startswith("down") else smooth
                module.weight *= 0.05
                module.weight += torch.eye(len(module.weight))[..., None, None] * kernel
        for conv in (part.conv_in, part.conv_out):
            count, channels = conv.weight.shape[:2]
            conv.weight *= 0.05
            conv.weight += torch.randn(count, channels, 1, 1) * channels**-0.5 * middle
        part.conv_in.bias.copy_(torch.linspace(-2, 2, len(part.conv_in.bias)))
        oppose(part.conv_in)

    small = torch.stack([on_white(pictures[name], 64) for name in [*CAPTIONS, *OTHERS]])
    before = model.quant_conv
    before.weight.zero_()
    before.weight[:LATENT_CHANNELS] = torch.eye(LATENT_CHANNELS, 2 * LATENT_CHANNELS)[..., None, None]
    before.bias.zero_()
    # Three latents are the mean colours of their 8 x 8 pixels, the fourth is a mixture of them.
    fit(model.encoder.conv_out, lambda: model.encode(small), F.avg_pool2d(small, LATENT_SCALE))
    # Mean 0 and variance 1 in each channel, so that the config's scale_factor is 1.
    latents = encode(model, pictures, [*CAPTIONS, *OTHERS], 256)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before.weight[:LATENT_CHANNELS] /= std.view(-1, 1, 1, 1)
    before.bias[:LATENT_CHANNELS] = -mean / std
    before.bias[LATENT_CHANNELS:] = 2 * math.log(0.05)
    fit(model.decoder.conv_out, lambda: model.decode(model.encode(small)), small)
    return model


def fit(conv: nn.Conv2d, call: Callable[[], None], wanted: torch.Tensor) -> None:
    """Fit a 3 x 3 convolution by least squares, so that its first channels are nearest to those wanted.

    call: runs the convolution once.
    wanted: (B, channels, H, W) of its output.
    """
    inputs = []
    with conv.register_forward_pre_hook(lambda module, args: inputs.append(args[0])):
        call()
    known = F.pad(F.unfold(inputs[0], 3, padding=1).movedim(1, -1).flatten(0, 1), (0, 1), value=1.0).double()
    values = wanted.flatten(2).movedim(1, -1).flatten(0, 1).double()
    ridge = 1e-5 * len(known) * torch.eye(known.shape[1])
    solved = torch.linalg.solve(known.T @ known + ridge, known.T @ values).T.float()
    count = wanted.shape[1]
    conv.weight[:count] = solved[:, :-1].unflatten(1, conv.weight.shape[1:])
    conv.bias[:count] = solved[:, -1]


@torch.no_grad()
def oppose(conv: nn.Conv2d) -> None:
    """Make every second output channel the negative of the one before.

    The norms take away the mean of each pair of channels over the image, and with it the colours. Learning a way around
    that takes very long. Opposite channels have no mean to lose.
    """
    conv.weight[1::2] = -conv.weight[::2]
    conv.bias[1::2] = -conv.bias[::2]


def finished_autoencoder() -> Autoencoder:
    model = Autoencoder().eval()
    model.load_state_dict(torch.load(WORK / "autoencoder.pt", weights_only=True)["model"])
    return model


@torch.no_grad()
def encode(model: Autoencoder, pictures: dict, names: list[str], size: int) -> torch.Tensor:
    """Latents (N, 4, size / 8, size / 8) of the N images of these names, at `size` pixels a side."""
    return torch.cat([model.encode(on_white(pictures[name], size)[None]) for name in names])


def train_unet(options: argparse.Namespace) -> None:
    """Train the U-Net, first on latents of the native size, then on large ones as well.

    The text encoder stays as it was drawn.
    """
    cache = WORK / "latents.pt"
    if not cache.exists():
        pictures = read_package(options.package)
        autoencoder = finished_autoencoder()
        torch.save({size: encode(autoencoder, pictures, list(CAPTIONS), 8 * size) for size in (32, 64)}, cache)
    latents = torch.load(cache, weights_only=True)
    tokenizer = make_tokenizer()
    # A row for each template. An article or an "emoji of" may be in a prompt, but need not.
    tokens = torch.stack([tokenizer([template.format(text) for text in CAPTIONS.values()]) for template in TEMPLATES])
    nothing = tokenizer([""])[0]

    torch.manual_seed(0)
    model = make_denoiser(tokenizer).to(memory_format=torch.channels_last)
    with torch.no_grad():
        contexts = torch.stack([model["text_encoder"](rows) for rows in tokens]).clone()
        no_context = model["text_encoder"](nothing[None]).clone()
    average = copy.deepcopy(model).requires_grad_(False)
    unet, ends = model["unet"], ("input_blocks.0.0.weight", "out.2.weight")
    matrices = [p for name, p in unet.named_parameters() if p.ndim > 1 and name not in ends]
    vectors = [p for name, p in unet.named_parameters() if p.ndim == 1 or name in ends]
    muon, adam = Muon(matrices), torch.optim.Adam(vectors, betas=(0.9, 0.99))
    run = Run("unet", options.minutes, model=model, average=average, muon=muon, adam=adam)
    torch.manual_seed(run.step)
    alphas = alphas_cumprod()

    def batch_loss(size: int, count: int) -> torch.Tensor:
        chosen = torch.randint(len(CAPTIONS), (count,))
        # Timesteps are spread over the schedule, more of them where there is more noise: the layout is decided there.
        # This is stronger for larger images. In the end they are spread evenly, or images come out speckled.
        power = 1 if run.share > 0.8 else SPREAD[size]
        times = ((torch.arange(count) + torch.rand(count)) / count) ** power * TIMESTEPS
        times = times.long().clamp(max=TIMESTEPS - 1)
        alpha = alphas[times].view(-1, 1, 1, 1)
        clean, noise = latents[size][chosen], pyramid_noise(count, size)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        wanted = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        context = contexts[torch.randint(len(TEMPLATES), (count,)), chosen]
        context = torch.where(torch.rand(count, 1, 1) < 0.1, no_context, context)  # for classifier-free guidance
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            predicted = unet(noisy.contiguous(memory_format=torch.channels_last), times.float(), context)
        return F.mse_loss(predicted.float(), wanted)

    while True:
        share = run.share
        batches = next(batches for until, batches in PHASES if share <= until)
        muon.param_groups[0]["lr"] = learning_rate(share, 0.02)
        adam.param_groups[0]["lr"] = learning_rate(share, 1e-3)
        unet.zero_grad()
        for size, count in batches:
            loss = batch_loss(size, count)
            (loss / len(batches)).backward()
            run.note(f"loss at {size}", loss.item())
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        muon.step()
        adam.step()
        decay = min(0.998, (1 + run.step) / (10 + run.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        if run.done():
            return


class Muon(torch.optim.Optimizer):
    """Muon: the momentum of each matrix is brought near to the nearest orthogonal matrix.

    So a step goes equally far in all directions. After 150 steps on 16 x 16 latents the loss was less than a third of
    Adam's. Muon is Keller Jordan's, https://kellerjordan.github.io/posts/muon/; torch.optim.Muon refuses convolutions.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float = 0.02, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(average, group["momentum"]).flatten(1).bfloat16()
                tall = x.shape[0] > x.shape[1]
                x = x.T if tall else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):  # Newton and Schulz's iteration, with Jordan's coefficients
                    square = x @ x.T
                    x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
                x = (x.T if tall else x).float().reshape(p.shape)
                p.add_(x, alpha=-group["lr"] * max(1, len(p) / p[0].numel()) ** 0.5)


def pyramid_noise(count: int, size: int) -> torch.Tensor:
    """(count, 4, size, size): white noise, half of it with coarse noise on top.

    Even the noisiest latents that are trained on hold a little of the image, and a large image's layout can be read
    from that hint. The noise that sampling starts from has none. A model that learned to trust the hint would draw
    whatever it happens to see there. Coarse noise hides the hint.
    """
    noise = torch.randn(count, LATENT_CHANNELS, size, size)
    strength = 0.5 * (torch.rand(count, 1, 1, 1) - 0.5).clamp(min=0)
    for cells in (1, 2, 4, 8):
        coarse = torch.randn(count, LATENT_CHANNELS, cells, cells)
        noise += strength * F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    return noise


def make_tokenizer() -> Tokenizer:
    return Tokenizer.train([*CAPTIONS.values(), *(template.format("") for template in TEMPLATES)])


def make_denoiser(tokenizer: Tokenizer) -> nn.ModuleDict:
    text_encoder = TextEncoder(len(tokenizer.vocabulary))
    unet = make_unet()
    with torch.no_grad():
        for name, module in unet.named_modules():
            if name == "input_blocks.0.0" or (name.startswith("output") and name.endswith("skip_connection")):
                oppose(module)
        # Most of the 77 tokens are ends. With zeros for them and no biases, after the layers they hold nothing but the
        # words before them. The norm brings that to full size: all tokens say what is wanted, without any training.
        text = text_encoder.text_model
        for name, weight in text.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
        text.embeddings.position_embedding.weight.zero_()
        text.embeddings.token_embedding.weight[[tokenizer.vocabulary[token] for token in (START, END)]] = 0
        # The WebUI scales prompts with emphasis back to their mean. That mean must not be next to nothing.
        text.final_layer_norm.bias += 0.2
    text_encoder.requires_grad_(False)
    return nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})


def export(options: argparse.Namespace) -> None:
    """Write the checkpoint in half precision, its config, the tokenizer's files and the text encoder's config."""
    tokenizer = make_tokenizer()
    denoiser = make_denoiser(tokenizer)
    denoiser.load_state_dict(torch.load(WORK / "unet.pt", weights_only=True)["average"])
    parts = {**denoiser, "autoencoder": finished_autoencoder()}
    tensors = {PREFIXES[name] + key: value for name, part in parts.items() for key, value in part.state_dict().items()}
    save_file({key: value.half().contiguous() for key, value in tensors.items()}, CHECKPOINT)
    CHECKPOINT.chmod(0o644)  # safetensors makes files that others cannot read
    print(f"{CHECKPOINT}: {CHECKPOINT.stat().st_size / 1e6:.1f} MB")
    tokenizer.save(TOKENIZER)
    ends = {f"{name}_token_id": tokenizer.vocabulary[END] for name in ("eos", "pad")}
    text = {"model_type": "clip_text_model", "vocab_size": len(tokenizer.vocabulary), **TEXT, **ends}
    text["bos_token_id"] = tokenizer.vocabulary[START]
    (TOKENIZER / "config.json").write_text(json.dumps(text, indent=1) + "\n")
    CONFIG.write_text(yaml.safe_dump({"model": config()}, sort_keys=False))


def make_card(options: argparse.Namespace) -> None:
    """Draw the images of the model card."""
    pictures = read_package(options.package)
    shown = [(on_white(pictures[name], card.CELL) + 1) * 127.5 for name in CAPTIONS]
    card.save_sheet(card.PICTURES, [picture.round().byte().permute(1, 2, 0).contiguous() for picture in shown])
    card.save_loss(WORK)
    model = load()
    for path, size, cell, steps in ((card.SAMPLES, NATIVE_SIZE, 128, 20), (card.LARGE, LARGE_SIZE, 160, 10)):
        right = card.save_samples(model, path, size, cell, steps)
        print(f"{size} x {size}: {right} of {len(CAPTIONS)} are nearest to their own training picture")


def config() -> dict:
    """The config from which the WebUI makes the model."""

    def node(target, **params):
        return {"target": target, "params": params}

    return node(
        "ldm.models.diffusion.ddpm.LatentDiffusion",
        linear_start=LINEAR_START,
        linear_end=LINEAR_END,
        timesteps=TIMESTEPS,
        parameterization="v",
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
LATENT_NOISE = 0.2
SPREAD = {32: 0.75, 64: 0.5}
TEMPLATES = ["{}", "{}", "a {}"]
# Up to this share of the time: (latent size, images) of a step. Each fits in a processor core's own cache.
PHASES = [(0.1, [(32, 8)]), (1.0, [(32, 8), (64, 2)])]

STAGES = {"autoencoder": train_autoencoder, "unet": train_unet, "export": export, "card": make_card}

if __name__ == "__main__":
    main()
