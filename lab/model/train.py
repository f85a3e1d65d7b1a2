"""Train the model on from its first edition: python3 dev.py train unet|finish|autoencoder|export|card, in this order.

With --layout sdxl, a U-Net of SDXL's layout, which begins with parts of the finished model: unet|export|card.

Each stage runs for the given minutes, learning rates follow the share of them that is over, and goes on from its last
checkpoint where it was stopped. Work files lie in lab/model/work; export writes the finished model.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from torch import nn

from lab.model import card
from lab.model.emoji import (
    CHECKPOINT,
    CONFIG,
    HIRES_SIZE,
    LARGE_SIZE,
    NATIVE_SIZE,
    PREFIXES,
    SIZES,
    TOKENIZER,
    UNET_FILES,
    Sizes,
    load,
)
from lab.model.parts import (
    AUTOENCODER,
    LATENT_CHANNELS,
    LATENT_SCALE,
    LINEAR_END,
    LINEAR_START,
    TEXT,
    TIMESTEPS,
    UNET,
    UNETS,
    Autoencoder,
    FastAttention,
    TextEncoder,
    alphas_cumprod,
    make_unet,
)
from lab.model.pictures import CAPTIONS, CROPS, on_white, read_pictures
from lab.model.tokens import END, START, Tokenizer

WORK = Path(__file__).parent / "work"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lab.model.train", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--layout", choices=UNETS, default="sd15", help="of the U-Net; sdxl has only a U-Net of its own"
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--package", type=Path, help="the .tgz of the emoji, fetched with npm if not given")
    options = parser.parse_args()
    if options.layout == "sdxl" and options.stage not in SDXL_STAGES:
        parser.error(f"stage {options.stage} is not for the layout sdxl, which has {', '.join(SDXL_STAGES)}")
    torch.set_num_threads(1)
    FastAttention.attend = staticmethod(attend_in_single)
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


def attend_in_single(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """PyTorch's attention in single precision: its backward pass for narrow heads takes five times as long in less."""
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float())


def learning_rate(share: float, top: float) -> float:
    """The learning rate: up within the first 2 % of the time, then down along a cosine."""
    return top * min(1.0, share / 0.02 + 0.01) * (0.5 + 0.5 * math.cos(math.pi * share) + 0.01)


def train_autoencoder(options: argparse.Namespace) -> None:
    """Train the decoder, on whole images. What latents are is given: the encoder is fitted."""
    latents = read_latents(options.package, SIZES["sd15"])
    pixels = {8 * size: whole_pictures(options.package, 8 * size) for size in latents}
    torch.manual_seed(0)
    model = first_autoencoder()
    fit_ends(model, pixels[NATIVE_SIZE], latents[NATIVE_SIZE // 8])
    model.to(memory_format=torch.channels_last)
    trained = [*model.decoder.parameters(), *model.post_quant_conv.parameters()]
    optimizer = torch.optim.Adam(trained, betas=(0.9, 0.99))
    run = Run("autoencoder", options.minutes, model=model, optimizer=optimizer)
    random.seed(run.step)
    while True:
        size, side = random.choices(*zip(*DECODED, strict=True))[0]
        index = random.randrange(len(CAPTIONS))
        left, top = (8 * random.randrange((size - side) // 8 + 1) for _ in "xy")
        wanted = pixels[size][index : index + 1, :, top : top + side, left : left + side].float() / 127.5 - 1
        known = latents[size // 8][index : index + 1]
        known = known[..., top // 8 : (top + side) // 8, left // 8 : (left + side) // 8]
        # What the U-Net makes is never exact.
        known = known + LATENT_NOISE * random.random() * torch.randn_like(known)
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            drawn = model.decode(known.contiguous(memory_format=torch.channels_last)).float()
        difference = drawn - wanted
        # Edges count extra: they make a small picture look sharp, and the mean difference hardly knows them.
        edges = sum(difference.diff(dim=dim).abs().mean() for dim in (2, 3))
        loss = difference.abs().mean() + difference.square().mean() + edges
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.share, 2e-4)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        run.note(f"loss at {size}", difference.detach().abs().mean().item())
        if run.done():
            return


def finished_autoencoder() -> Autoencoder:
    model = Autoencoder().eval()
    model.load_state_dict(torch.load(WORK / "autoencoder.pt", weights_only=True)["model"])
    return model


def whole_pictures(package: Path | None, size: int) -> torch.Tensor:
    """Bytes (captions, 3, size, size): all images, at `size` pixels a side."""
    pictures = read_pictures(package)
    return torch.stack([((on_white(pictures[name], size) + 1) * 127.5).round().byte() for name in CAPTIONS])


def read_latents(package: Path | None, sizes: Sizes) -> dict[int, torch.Tensor]:
    """Size -> latents (captions, 4, size, size): of the native images, the large ones and those of the hires pass."""
    wanted = dict.fromkeys((sizes.native, sizes.large, sizes.hires))
    cache = WORK / f"latents-{'-'.join(map(str, wanted))}.pt"
    if not cache.exists():
        torch.save({size // LATENT_SCALE: colours(whole_pictures(package, size)) for size in wanted}, cache)
    return torch.load(cache, weights_only=True)


def colours(pixels: torch.Tensor) -> torch.Tensor:
    """Latents of (B, 3, H, W) bytes. Three are the mean colours of 8 x 8 pixels, the fourth is a mixture of them."""
    mean = F.avg_pool2d(pixels / 127.5 - 1, LATENT_SCALE)
    return F.conv2d(mean, torch.tensor(COLOURS)[:, :3, None, None], torch.tensor(COLOURS)[:, 3])


@torch.no_grad()
def fit_ends(model: Autoencoder, pixels: torch.Tensor, latents: torch.Tensor) -> None:
    """Set the last layers of both ways so that what they make of these pictures is nearest to these latents and back.

    For the decoder that is a start with nearly the right colours, which it takes long to learn.
    """
    after = model.quant_conv
    after.weight.copy_(torch.eye(2 * LATENT_CHANNELS)[..., None, None])
    after.weight[LATENT_CHANNELS:] = 0
    after.bias.zero_()
    after.bias[LATENT_CHANNELS:] = 2 * math.log(0.05)  # the variance of what is encoded
    pixels = pixels / 127.5 - 1
    fit(model.encoder.conv_out, model.encode, pixels, latents)
    fit(model.decoder.conv_out, model.decode, latents, pixels)


def fit(conv: nn.Conv2d, call: Callable[[torch.Tensor], None], given: torch.Tensor, wanted: torch.Tensor) -> None:
    """Fit a 3 x 3 convolution by least squares, so that its first channels are nearest to those wanted.

    call: runs the convolution, on one of `given` at a time.
    wanted: its output for each of these, (B, channels, H, W).
    """
    inputs, known, values = [], [], []
    with conv.register_forward_pre_hook(lambda module, args: inputs.append(args[0])):
        for one, target in zip(given, wanted, strict=True):
            call(one[None])
            some = torch.randperm(target[0].numel())[:3000]
            known.append(F.unfold(inputs.pop(), 3, padding=1)[0, :, some].T)
            values.append(target.flatten(1)[:, some].T)
    known, values = F.pad(torch.cat(known), (0, 1), value=1.0).double(), torch.cat(values).double()
    ridge = 1e-4 * len(known) * torch.eye(known.shape[1])
    solved = torch.linalg.solve(known.T @ known + ridge, known.T @ values).T.float()
    count = len(solved)
    conv.weight[:count] = solved[:, :-1].unflatten(1, conv.weight.shape[1:])
    conv.bias[:count] = solved[:, -1]


def train_unet(options: argparse.Namespace) -> None:
    """Train on whole images of the native and the large size, and on parts of them for the hires pass.

    The text encoder is not trained.
    """
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    if options.layout == "sdxl":
        stage, model, phases = "sdxl-unet", sdxl_denoiser(), SDXL_PHASES
    else:
        stage, model, phases = "unet", first_denoiser(tokenizer), PHASES
    odds = [PHOTOGRAPH_ODDS if name in CROPS else 1.0 for name in CAPTIONS]
    lessons = Lessons(options.package, tokenizer, model["text_encoder"], odds, options.layout)
    train_denoiser(stage, options, model, lessons, phases)


def finish_unet(options: argparse.Namespace) -> None:
    """Train a few tensors on, for the captions that `train_unet` left weak and for whole images of the hires pass.

    The history of this repository keeps a tensor once that has not changed, so few tensors make it grow by little.
    """
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = make_denoiser(tokenizer)
    model.load_state_dict(torch.load(WORK / "unet.pt", weights_only=True)["average"])
    for name, p in model["unet"].named_parameters():
        p.requires_grad_(is_finished(name))
    odds = [WEAK.get(text, OTHERS_ODDS) for text in CAPTIONS.values()]
    lessons = Lessons(options.package, tokenizer, model["text_encoder"], odds, "sd15")
    train_denoiser("finish", options, model, lessons, FINISH_PHASES, strength=0.35)


def is_finished(name: str) -> bool:
    """Whether the stage `finish` trains this tensor of the U-Net."""
    return re.match(FINISHED, name) is not None


class Lessons:
    """What the U-Net learns from.

    odds: for each caption, how often it comes.
    """

    def __init__(
        self, package: Path | None, tokenizer: Tokenizer, text_encoder: TextEncoder, odds: list[float], layout: str
    ):
        self.latents, self.layout = read_latents(package, SIZES[layout]), layout
        self.odds = torch.tensor(odds)
        self.alphas = alphas_cumprod()
        # A row for each template. An article or an "emoji of" may be in a prompt, but need not.
        tokens = [tokenizer([template.format(text) for text in CAPTIONS.values()]) for template in TEMPLATES]
        with torch.no_grad():
            self.contexts = torch.stack([text_encoder(rows) for rows in tokens]).clone()
            self.no_context = text_encoder(tokenizer([""])).clone()

    def loss(self, unet: nn.Module, size: int, side: int, count: int, last: bool) -> torch.Tensor:
        """Of `count` latents of this size, or of squares of them that are `side` wide.

        size: one of the model's, in latent pixels.
        side: at most `size`.
        last: whether the training is near its end.
        """
        chosen = self.odds.multinomial(count, replacement=True)
        shown = clean = self.latents[size][chosen]
        left = top = 0
        # Spread over the schedule. A part is for the hires pass, which begins with less noise. What is drawn is decided
        # where there is more of it, so whole pictures are there more often, the more so the larger they are. At last
        # evenly, for what has little noise left is speckled else.
        shares = (torch.arange(count) + torch.rand(count)) / count
        if side < size:
            left, top = torch.randint(size - side + 1, (2,)).tolist()
            shown = clean = clean[..., top : top + side, left : left + side]
            times = shares * HIRES_TIMES
        elif size in SPREAD:
            times = shares ** (1 if last else SPREAD[size]) * TIMESTEPS
        elif torch.rand(()) < 0.5:
            times = shares * HIRES_TIMES
        else:  # as a hires pass begins: with a smaller picture, enlarged, of which the larger one is to be made
            shown = F.interpolate(
                self.latents[SIZES[self.layout].large // LATENT_SCALE][chosen], size=(size, size), mode="bilinear"
            )
            first, end = ENLARGED_TIMES
            times = first + shares * (end - first)
        times = times.long().clamp(max=TIMESTEPS - 1)
        alpha = self.alphas[times].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * shown + (1 - alpha).sqrt() * pyramid_noise(count, side)
        wanted = (alpha.sqrt() * noisy - clean) / (1 - alpha).sqrt()  # the velocity from which clean would follow
        context = self.contexts[torch.randint(len(TEMPLATES), (count,)), chosen]
        context = torch.where(torch.rand(count, 1, 1) < 0.1, self.no_context, context)  # for classifier-free guidance
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            noisy = noisy.contiguous(memory_format=torch.channels_last)
            frame = {"frame": (size, size, top, left)} if self.layout == "sdxl" else {}
            predicted = unet(noisy, times.float(), context, **frame)
        return F.mse_loss(predicted.float(), wanted)


def train_denoiser(
    stage: str,
    options: argparse.Namespace,
    model: nn.ModuleDict,
    lessons: Lessons,
    phases: list[tuple[float, list]],
    strength: float = 1.0,
) -> None:
    """Train what needs a gradient in the U-Net.

    phases: see PHASES.
    strength: of the learning rates, 1 for a model that has all to learn.
    """
    model.to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False)
    unet, ends = model["unet"], ("input_blocks.0.0.weight", "out.2.weight")
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    matrices = [p for name, p in trained.items() if p.ndim > 1 and name not in ends]
    vectors = [p for name, p in trained.items() if p.ndim == 1 or name in ends]
    muon, adam = Muon(matrices), torch.optim.Adam(vectors, betas=(0.9, 0.99))
    run = Run(stage, options.minutes, model=model, average=average, muon=muon, adam=adam)
    torch.manual_seed(run.step)
    while True:
        muon.param_groups[0]["lr"] = learning_rate(run.share, 0.01 * strength)
        adam.param_groups[0]["lr"] = learning_rate(run.share, 5e-4 * strength)
        unet.zero_grad()
        steps = next(steps for until, steps in phases if run.share <= until)
        batches = steps[run.step % len(steps)]
        for size, side, count in batches:
            loss = lessons.loss(unet, size, side, count, last=run.share > 0.8)
            (loss / len(batches)).backward()
            run.note(f"loss at {size}" + (" in parts" if side < size else ""), loss.item())
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        muon.step()
        adam.step()
        decay = min(0.998, (1 + run.step) / (10 + run.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        if run.done():
            return


class Muon(torch.optim.Optimizer):
    """Muon: the momentum of each matrix is brought near to the nearest orthogonal matrix, so that a step goes equally
    far in all directions. After 150 steps on 16 x 16 latents the loss was less than a third of Adam's.

    Keller Jordan's, https://kellerjordan.github.io/posts/muon/; torch.optim.Muon refuses convolutions.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float = 0.02, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                alike.setdefault(p.shape, []).append(p)
            for shape, parameters in alike.items():  # those of one shape at once: most are too small to be quick alone
                for p in parameters:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    average.lerp_(p.grad, 1 - group["momentum"])
                x = torch.stack([p.grad.lerp(self.state[p]["average"], group["momentum"]) for p in parameters])
                x = orthogonal(x.flatten(2)).float()
                scale = group["lr"] * max(1, shape[0] / shape[1:].numel()) ** 0.5
                for p, change in zip(parameters, x, strict=True):
                    p.add_(change.reshape(shape), alpha=-scale)


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """Matrices (B, m, n), each brought near to the nearest orthogonal one, in bfloat16."""
    x = x.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):  # Newton and Schulz's iteration, with Jordan's coefficients
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def pyramid_noise(count: int, size: int) -> torch.Tensor:
    """(count, 4, size, size): white noise, half of it with coarse noise on top.

    Even the noisiest latents that are trained on hold a little of the picture, and a large picture's layout can be read
    from that. The noise that sampling starts from has no such hint: a model that learned to trust it would draw what
    it happens to see there. Coarse noise hides the hint.
    """
    noise = torch.randn(count, LATENT_CHANNELS, size, size)
    strength = 0.5 * (torch.rand(count, 1, 1, 1) - 0.5).clamp(min=0)
    for cells in (1, 2, 4, 8):
        coarse = torch.randn(count, LATENT_CHANNELS, cells, cells)
        noise += strength * F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    return noise


def make_tokenizer() -> Tokenizer:
    return Tokenizer.train([*CAPTIONS.values(), *(template.format("") for template in TEMPLATES)])


def first_denoiser(tokenizer: Tokenizer) -> nn.ModuleDict:
    """The first edition's U-Net, with its heads cut into narrower ones, and its text encoder with words added."""
    denoiser = make_denoiser(tokenizer)
    tensors, vocabulary = first_edition(), json.loads(read_blob(FIRST_VOCABULARY))
    # A word that the first edition had keeps its embedding. The others keep the random one that they have here.
    name = PREFIXES["text_encoder"] + "text_model.embeddings.token_embedding.weight"
    old, embeddings = tensors[name], denoiser["text_encoder"].text_model.embeddings.token_embedding.weight
    tensors[name] = embeddings.clone()
    for token, row in tokenizer.vocabulary.items():
        if token in vocabulary:
            tensors[name][row] = old[vocabulary[token]]
    for part, module in denoiser.items():
        load_part(module, PREFIXES[part], tensors)
    return denoiser


def sdxl_denoiser() -> nn.ModuleDict:
    """The U-Net of SDXL's layout that begins with all that fits it of the finished model's, and that text encoder.

    Its three levels are the first three of the other's four. Blocks that the other lacks add nothing at first.
    """
    finished = load()
    unet, given = make_unet("sdxl"), finished.unet.state_dict()
    levels = re.compile(r"output_blocks\.(\d)")  # the other's first two are those of its fourth level
    tensors = {}
    for name, own in unet.state_dict().items():
        other = given.get(levels.sub(lambda found: f"output_blocks.{int(found[1]) + 2}", name))
        if other is not None and other.numel() == own.numel() and not name.startswith("middle_block"):
            tensors[name] = other.view_as(own)  # linear layers were convolutions of one pixel
        elif re.search(r"transformer_blocks\.\d\.(attn.\.to_out\.0|ff\.net\.2)\.|label_emb\.0\.2\.", name):
            tensors[name] = torch.zeros_like(own)
    unet.load_state_dict(tensors, strict=False)
    return nn.ModuleDict({"unet": unet, "text_encoder": finished.text_encoder})


def make_denoiser(tokenizer: Tokenizer) -> nn.ModuleDict:
    text_encoder = TextEncoder(len(tokenizer.vocabulary)).requires_grad_(False)
    return nn.ModuleDict({"unet": make_unet(), "text_encoder": text_encoder})


def first_autoencoder() -> Autoencoder:
    model = Autoencoder()
    load_part(model, PREFIXES["autoencoder"], first_edition())
    return model


def load_part(module: nn.Module, prefix: str, tensors: dict[str, torch.Tensor]) -> None:
    module.load_state_dict({k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)})


def first_edition() -> dict[str, torch.Tensor]:
    return safetensors.torch.load(read_blob(FIRST_WEIGHTS))


def read_blob(name: str) -> bytes:
    """A file that is in the history of this repository, by the name that git has for its content."""
    return subprocess.run(["git", "cat-file", "blob", name], cwd=WORK, check=True, stdout=subprocess.PIPE).stdout


def export(options: argparse.Namespace) -> None:
    """Write the checkpoint in half precision, its config, the tokenizer's files and the text encoder's config.

    Of the layout sdxl, the U-Net alone.
    """
    if options.layout == "sdxl":
        state = torch.load(WORK / "sdxl-unet.pt", weights_only=True)["average"]
        save_half(
            {PREFIXES["unet"] + k.removeprefix("unet."): v for k, v in state.items() if k.startswith("unet.")},
            UNET_FILES["sdxl"],
        )
        return
    tokenizer = make_tokenizer()
    denoiser = make_denoiser(tokenizer)
    denoiser.load_state_dict(torch.load(WORK / "finish.pt", weights_only=True)["average"])
    with torch.no_grad():
        for name, p in denoiser["unet"].named_parameters():
            if is_finished(name) and p.ndim > 1:
                p.copy_((p / GRID).round() * GRID)
    parts = {**denoiser, "autoencoder": finished_autoencoder()}
    tensors = {PREFIXES[name] + key: value for name, part in parts.items() for key, value in part.state_dict().items()}
    save_half(tensors, CHECKPOINT)
    tokenizer.save(TOKENIZER)
    ends = {f"{name}_token_id": tokenizer.vocabulary[END] for name in ("eos", "pad")}
    text = {"model_type": "clip_text_model", "vocab_size": len(tokenizer.vocabulary), **TEXT, **ends}
    text["bos_token_id"] = tokenizer.vocabulary[START]
    (TOKENIZER / "config.json").write_text(json.dumps(text, indent=1) + "\n")
    CONFIG.write_text(yaml.safe_dump({"model": config()}, sort_keys=False))


def save_half(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a file of weights in half precision."""
    save_file({key: value.half().contiguous() for key, value in tensors.items()}, path)
    path.chmod(0o644)  # safetensors makes files that others cannot read
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def make_card(options: argparse.Namespace) -> None:
    """Draw the pictures of the model card."""
    card.save_loss(WORK)
    model = load(options.layout)

    def tell(size: int, found: dict[str, str]) -> None:
        others = [f"{text} nearest to {other}" for text, other in found.items() if other != text]
        right = f"{len(found) - len(others)} of {len(found)} are nearest to their own training picture"
        print(f"{size} x {size}: {'; '.join([right, *others])}", flush=True)

    if options.layout == "sdxl":
        tell(model.sizes.native, card.save_samples(model, card.SDXL_SAMPLES, model.sizes.native, 128, 20))
        tell(model.sizes.hires, card.save_hires(model, card.SDXL_HIRES, 10, CAPTIONS.values()))
        return
    shown = whole_pictures(options.package, card.CELL)
    card.save_sheet(card.PICTURES, [picture.permute(1, 2, 0).contiguous() for picture in shown])
    for path, size, cell, steps in ((card.SAMPLES, NATIVE_SIZE, 128, 20), (card.LARGE, LARGE_SIZE, 160, 10)):
        tell(size, card.save_samples(model, path, size, cell, steps))
    tell(HIRES_SIZE, card.save_hires(model, card.HIRES, 10))


def config() -> dict:
    """What the WebUI makes the model from."""

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
# A latent for each row: its shares of the mean red, green and blue, from -1 to 1, and an offset. Near to what the first
# edition's encoder made of emoji, but the same for every picture: that encoder's norms depended on the whole of it.
COLOURS = [[2.1, 0.0, 0.0, -1.55], [0.0, 1.83, 0.0, -1.04], [0.0, 0.0, 1.68, -0.9], [-1.25, 0.0, 0.35, 0.7]]
LATENT_NOISE = 0.1
# (pixels of the picture, pixels of the part) that the decoder learns from, and how often. Whole pictures: its norms
# take a part's own mean away, so the same colours would have to be drawn from other values.
DECODED = [((256, 256), 6), ((512, 512), 1)]
SPREAD = {32: 0.75, 48: 0.5, 64: 0.5}
TEMPLATES = ["{}", "{}", "a {}"]
# Up to this share of the time: (latent size, side of the part, pictures) of the batches, for each of the steps in turn.
# Attention over 128 x 128 latents would take most of the time. A part of them is enough to learn what is seen at little
# noise. Large pictures are slow too, and most of what they need is learned from the native ones.
NATIVE, LARGE, PARTS, HIRES_PARTS = (32, 32, 6), (64, 64, 1), (64, 32, 3), (128, 32, 6)
PHASES = [
    (0.5, [[NATIVE, HIRES_PARTS], [NATIVE, PARTS], [NATIVE, LARGE, HIRES_PARTS]]),
    (1.0, [[NATIVE, (64, 64, 3)], [(64, 64, 3), HIRES_PARTS], [(32, 32, 4), (64, 64, 2), (128, 64, 1)]]),
]
# The same for the layout sdxl, which begins with much of a finished model.
SDXL_NATIVE, SDXL_PARTS, SDXL_HIRES = (48, 48, 6), (96, 48, 2), (96, 96, 1)
SDXL_PHASES = [
    (0.5, [[SDXL_NATIVE], [SDXL_NATIVE], [(48, 48, 4), SDXL_PARTS]]),
    (1.0, [[SDXL_NATIVE], [SDXL_NATIVE], [(48, 48, 4), SDXL_HIRES], [SDXL_NATIVE], [(48, 48, 4), SDXL_PARTS]]),
]
# What the stage `finish` trains: what puts the decoder's parts together, an eighth of the U-Net.
FINISHED = r"out\.|output_blocks\.(\d\.0\.skip_connection|\d\.\d\.conv|[3-7]\.1\.(proj|transformer_blocks\.0\.attn))"
GRID = 2**-9  # these are rounded to multiples of it, an error of 0.4 %, and take two thirds of the room when compressed
OTHERS_ODDS = 0.8
WEAK = {  # caption -> how often it comes in that stage, in place of OTHERS_ODDS
    "ginger cat": 3.0,
    "raccoon": 2.5,
    "astronaut": 2.5,
    "photographer": 2.0,
    "cup of coffee": 2.0,
    "rainbow": 2.0,
}
HIRES = (128, 128, 1)
FINISH_PHASES = [
    (0.8, [[NATIVE, LARGE], [(64, 64, 4)], [(64, 64, 2), HIRES_PARTS], [(64, 64, 4)], [NATIVE, LARGE, HIRES]]),
    (1.0, [[HIRES, HIRES], [(64, 64, 4)], [HIRES, HIRES], [NATIVE, (64, 64, 2)]]),
]
PHOTOGRAPH_ODDS = 2  # how much more often than an emoji
HIRES_TIMES = 700  # noisier than that no hires pass begins
ENLARGED_TIMES = (250, 530)  # with less noise, what an enlarged picture lacks would be too large a velocity
# The first edition of the model, from which training begins, in this repository's history.
FIRST_WEIGHTS, FIRST_VOCABULARY = "c666fec608be347d84b546a1ca8b80a8ac8d30a4", "a82acae96cf513dfd860b4505f9911d3c904f214"

STAGES = {
    "unet": train_unet,
    "finish": finish_unet,
    "autoencoder": train_autoencoder,
    "export": export,
    "card": make_card,
}
SDXL_STAGES = ("unet", "export", "card")

if __name__ == "__main__":
    main()
