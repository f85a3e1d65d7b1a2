"""The finished model: load it and draw with it, without a WebUI.

from lab.model.emoji import load
pictures = load().draw(["red apple"], seed=1)
pictures = load("sdxl").draw(["red apple"], seed=1)  # with the U-Net of SDXL's layout
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file

from lab.model.parts import (
    LATENT_CHANNELS,
    LATENT_SCALE,
    TIMESTEPS,
    Autoencoder,
    TextEncoder,
    alphas_cumprod,
    make_unet,
)
from lab.model.tokens import Tokenizer

HERE = Path(__file__).parent
CHECKPOINT, CONFIG, TOKENIZER = HERE / "emoji.safetensors", HERE / "emoji.yaml", HERE / "emoji"
# Where the U-Net of each layout is. All else is in the checkpoint.
UNET_FILES = {"sd15": CHECKPOINT, "sdxl": HERE / "emoji-sdxl.safetensors"}
PREFIXES = {  # in checkpoints of Stable Diffusion 1.x
    "unet": "model.diffusion_model.",
    "autoencoder": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
NATIVE_SIZE, LARGE_SIZE, HIRES_SIZE = 256, 512, 1024
HIRES_STRENGTH = 0.5  # denoising strength: the hires pass begins in the middle of the noise schedule


@dataclass(frozen=True)
class Sizes:
    """Pixels a side of the pictures that a model has learned to draw.

    native: the smallest.
    large: at which text to image ends and a hires pass begins.
    hires: of the hires pass, twice the large one.
    """

    native: int
    large: int
    hires: int


SIZES = {"sd15": Sizes(NATIVE_SIZE, LARGE_SIZE, HIRES_SIZE), "sdxl": Sizes(384, 384, 768)}


@dataclass
class Emoji:
    """The model: its three networks, its tokenizer, and the sizes that it has learned."""

    unet: torch.nn.Module
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    tokenizer: Tokenizer
    sizes: Sizes

    @torch.inference_mode()
    def prompts(self, texts: list[str]) -> torch.Tensor:
        """The texts as (B, 77, hidden_size), for the U-Net's cross-attention."""
        return self.text_encoder(self.tokenizer(texts))

    def noise(self, size: tuple[int, int], seed: int, count: int = 1) -> torch.Tensor:
        """White noise (count, 4, H/8, W/8), for `count` images of (width, height) pixels, multiples of 64."""
        width, height = size
        shape = (count, LATENT_CHANNELS, height // LATENT_SCALE, width // LATENT_SCALE)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def sample(
        self,
        texts: list[str],
        noise: torch.Tensor,
        steps: int = 20,
        guidance: float = 2.0,
        progress: Callable[[float], None] = lambda share: None,
        first: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Latents (B, 4, h, w) of B texts, by DDIM.

        noise: white, of the same shape.
        guidance: scale of classifier-free guidance; 1 means none.
        progress: told the position i / n before step i of the n that are made.
        first: latents of the same shape to begin from, with noise on them, as image to image does. Then only the last
            steps are made, as many as made_steps says.
        """
        sampling = self.sampling(texts, noise, steps, guidance, first)
        while True:
            try:
                progress(next(sampling))
            except StopIteration as end:
                return end.value

    @torch.inference_mode()
    def sampling(
        self,
        texts: list[str],
        noise: torch.Tensor,
        steps: int = 20,
        guidance: float = 2.0,
        first: torch.Tensor | None = None,
    ) -> Generator[float, None, torch.Tensor]:
        """The same step by step: yields what `sample` tells `progress`, and returns the latents."""
        context = torch.cat([self.prompts([""] * len(texts)), self.prompts(texts)])
        alphas = alphas_cumprod()
        times = torch.linspace(TIMESTEPS - 1, 0, steps + 1).round().long()
        latents = noise
        if first is not None:
            times = times[steps - made_steps(steps) :]
            latents = alphas[times[0]].sqrt() * first + (1 - alphas[times[0]]).sqrt() * noise
            steps = len(times) - 1
        for i, (time, following) in enumerate(itertools.pairwise(times)):
            yield i / steps
            both = self.unet(latents.repeat(2, 1, 1, 1), time.expand(2 * len(texts)).float(), context)
            without, prompted = both.chunk(2)
            velocity = without + guidance * (prompted - without)
            alpha, next_alpha = alphas[time], alphas[following] if i < steps - 1 else torch.ones(())
            clean = alpha.sqrt() * latents - (1 - alpha).sqrt() * velocity
            noise = alpha.sqrt() * velocity + (1 - alpha).sqrt() * latents
            latents = next_alpha.sqrt() * clean + (1 - next_alpha).sqrt() * noise
        return latents

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (B, 8 h, 8 w, 3) in bytes, from latents (B, 4, h, w)."""
        pixels = self.autoencoder.decode(latents).clamp(-1, 1)
        return ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1)

    def refine(
        self, texts: list[str], latents: torch.Tensor, size: tuple[int, int], seed: int = 0, **options
    ) -> torch.Tensor:
        """Latents of (width, height) pixels from smaller ones, like the WebUI's hires fix with the upscaler Latent."""
        noise = self.noise(size, seed, len(texts))
        return self.sample(texts, noise, first=enlarged(latents, noise), **options)

    def draw(self, texts: list[str], size: tuple[int, int] | None = None, seed: int = 0, **options) -> torch.Tensor:
        """One image for each text, (B, H, W, 3) bytes.

        size: (width, height) in pixels, multiples of 64; the native one if not given.
        options: see `sample`.
        """
        size = size or (self.sizes.native, self.sizes.native)
        return self.decode(self.sample(texts, self.noise(size, seed, len(texts)), **options))


def enlarged(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Latents of the size of this noise, from smaller ones."""
    return F.interpolate(latents, size=noise.shape[2:], mode="bilinear")


def made_steps(steps: int) -> int:
    """How many of the steps a hires pass makes."""
    return max(1, int(HIRES_STRENGTH * steps))


def load(layout: str = "sd15") -> Emoji:
    """The finished model with the U-Net of this layout, sd15 or sdxl, in single precision on the CPU.

    Raises FileNotFoundError where that U-Net has not been trained yet.
    """
    if not UNET_FILES[layout].exists():
        made = f"python3 dev.py train export --layout {layout} makes it, see lab/model/README.md"
        raise FileNotFoundError(f"{UNET_FILES[layout]} is not there: {made}")
    tokenizer = Tokenizer.load(TOKENIZER)
    parts = {
        "unet": make_unet(layout),
        "autoencoder": Autoencoder(),
        "text_encoder": TextEncoder(len(tokenizer.vocabulary)),
    }
    tensors = load_file(CHECKPOINT)
    if layout != "sd15":
        tensors = {key: value for key, value in tensors.items() if not key.startswith(PREFIXES["unet"])}
        tensors |= load_file(UNET_FILES[layout])
    for name, part in parts.items():
        prefix = PREFIXES[name]
        part.load_state_dict({k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)})
        part.eval().requires_grad_(False)
    return Emoji(**parts, tokenizer=tokenizer, sizes=SIZES[layout])


def install(folder: Path) -> Path:
    """Put the checkpoint into a folder that a WebUI looks into for checkpoints, and return its path there.

    The config says where the tokenizer's files are: here, in the WebUI's own folder. The copy names this folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(TOKENIZER, folder / TOKENIZER.name, dirs_exist_ok=True)
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["model"]["params"]["cond_stage_config"]["params"]["version"] = str((folder / TOKENIZER.name).resolve())
    (folder / CONFIG.name).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return Path(shutil.copy(CHECKPOINT, folder))
