"""Samplers by name, with the model that this repository has: the step formulas are those of k-diffusion.

    latents = sample(load(), ["red apple"], noise, "DPM++ 2M")

A latent x at noise level sigma is the clean latent plus sigma times white noise, the notation of Karras et al.,
"Elucidating the Design Space of Diffusion-Based Generative Models" (2022, arXiv 2206.00364). The model's schedule has
alpha, the squared share of the image in the noisy latent. So sigma is sqrt((1 - alpha) / alpha), and the U-Net's own
input is x / sqrt(sigma^2 + 1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lab.model.emoji import Emoji
from lab.model.parts import TIMESTEPS, alphas_cumprod
from todo_lib import Step

Denoiser = Callable[[torch.Tensor, float], torch.Tensor]
"""(latent, its sigma) -> the clean latent that the model sees in it."""

Tell = Callable[[float], None]
"""Told the position i / n before step i of n."""


@dataclass(frozen=True)
class Sampler:
    """A way from noise to a latent.

    schedule: number of steps n -> the n + 1 sigmas that they lead through, falling, the last one 0.
    run: (denoiser, latent at the first sigma, sigmas, noise, tell) -> the latent at the last one. noise() draws white
        noise of the latent's shape, for samplers that add some in each step.
    guided: whether people draw with guidance by it.
    """

    schedule: Callable[[int], list[float]]
    run: Callable[[Denoiser, torch.Tensor, list[float], Callable[[], torch.Tensor], Tell], torch.Tensor]
    guided: bool = True


class Progress:
    """The number and position of the step under way. A sampler tells the position alone."""

    def __init__(self):
        self.step = Step(0, 0.0)

    def begin(self, position: float) -> None:
        """Note that a step begins. Position 0 begins a new sampling."""
        self.step = Step(self.step.number + 1 if position else 0, position)


@torch.inference_mode()
def sample(
    model: Emoji,
    texts: list[str],
    noise: torch.Tensor,
    sampler: str = "DPM++ 2M",
    steps: int = 20,
    guidance: float = 2.0,
    progress: Tell = lambda share: None,
    start: torch.Tensor | None = None,
    strength: float = 0.5,
    seed: int = 0,
) -> torch.Tensor:
    """Latents (B, 4, h, w) of the texts from white noise of that shape.

    guidance: its scale; 1 means none, and the U-Net is then called for the prompt alone.
    progress: told the position i / n before step i of the n steps that are made.
    start: a clean latent to begin from, as in img2img and the hires pass, with the last steps alone; see `shortened`.
    strength: the share of the steps that are made then.
    seed: of the noise that the sampler itself adds.
    """
    chosen = SAMPLERS[sampler]
    sigmas = chosen.schedule(steps)
    if start is None:
        latent = noise * math.hypot(1, sigmas[0])  # what the U-Net is given is the noise itself
    else:
        sigmas = shortened(sigmas, strength)
        latent = start + sigmas[0] * noise
    generator = torch.Generator().manual_seed(seed)

    def more_noise() -> torch.Tensor:
        return torch.randn(noise.shape, generator=generator)

    return chosen.run(denoiser(model, texts, guidance), latent, sigmas, more_noise, progress)


def denoiser(model: Emoji, texts: list[str], guidance: float) -> Denoiser:
    """The model with classifier-free guidance. It predicts the velocity, from which the clean latent follows."""
    context = model.prompts(texts if guidance == 1 else [""] * len(texts) + texts)

    def denoise(latent: torch.Tensor, sigma: float) -> torch.Tensor:
        scale = math.hypot(1, sigma)  # the standard deviation of a latent of variance 1 with its noise
        calls = len(context) // len(texts)
        time = torch.full((len(context),), timestep(sigma))
        velocities = model.unet((latent / scale).repeat(calls, 1, 1, 1), time, context).chunk(calls)
        velocity = velocities[0] + guidance * (velocities[-1] - velocities[0])
        return latent / scale**2 - velocity * (sigma / scale)

    return denoise


def timestep(sigma: float) -> float:
    """The model's timestep, 0 to 999, of this noise level: between two of them it is linear in log(sigma)."""
    logs, wanted = _sigmas().log(), math.log(sigma)
    low = int((logs <= wanted).sum().clamp(1, TIMESTEPS - 1)) - 1
    share = (wanted - logs[low]) / (logs[low + 1] - logs[low])
    return low + float(share.clamp(0, 1))


def uniform(steps: int) -> list[float]:
    """Sigmas of timesteps in even distances, from the last to the first one, and 0."""
    times = torch.linspace(TIMESTEPS - 1, 0, steps, dtype=torch.float64)
    low = times.long().clamp(max=TIMESTEPS - 2)
    logs = _sigmas().log()
    return [*torch.lerp(logs[low], logs[low + 1], times - low).exp().tolist(), 0.0]


def karras(steps: int, rho: float = 7.0) -> list[float]:
    """Karras et al., equation 5, from the model's largest to its smallest sigma, and 0."""
    least, most = (float(sigma) ** (1 / rho) for sigma in _sigmas()[[0, -1]])
    return [*((most + share * (least - most)) ** rho for share in torch.linspace(0, 1, steps).tolist()), 0.0]


def with_zero_last(steps: int) -> list[float]:
    """Sigmas of the whole timesteps, in even distances, that the model's own `Emoji.sample` takes, and 0."""
    times = torch.linspace(TIMESTEPS - 1, 0, steps + 1).round().long()
    return [*_sigmas()[times[:-1]].tolist(), 0.0]


def of_lcm(steps: int) -> list[float]:
    """Sigmas of timesteps in even distances from 999 to 19, and 0: those of AUTOMATIC1111's WebUI for LCM.

    A model that was distilled so knows each 20th timestep alone; between these, log(sigma) is taken to be linear.
    """
    logs = _sigmas()[19::20].log()
    places = torch.linspace(len(logs) - 1, 0, steps, dtype=torch.float64)
    low = places.long().clamp(max=len(logs) - 2)
    return [*torch.lerp(logs[low], logs[low + 1], places - low).exp().tolist(), 0.0]


def shortened(sigmas: list[float], strength: float) -> list[float]:
    """The sigmas of the last floor(strength * steps) + 1 steps, as AUTOMATIC1111's WebUI takes them in img2img."""
    steps = len(sigmas) - 1
    return sigmas[max(0, steps - int(min(strength, 0.999) * steps) - 1) :]


def ddim(denoise, latent, sigmas, noise, tell):
    """Song et al., "Denoising Diffusion Implicit Models" (2020, arXiv 2010.02502), equation 12 without noise.

    In sigmas it is the plain Euler step of Karras et al., algorithm 1: along d x / d sigma = (x - clean) / sigma.
    """
    for sigma, following in _steps(sigmas, tell):
        clean = denoise(latent, sigma)
        latent = torch.lerp(clean, latent, following / sigma)
    return latent


def euler_ancestral(denoise, latent, sigmas, noise, tell):
    """Euler steps to below the next sigma, and fresh noise up to it.

    Its variance is that of Ho et al., "Denoising Diffusion Probabilistic Models" (2020, arXiv 2006.11239), equation 7,
    whose ancestral sampling this is where steps are small.
    """
    for sigma, following in _steps(sigmas, tell):
        fresh = following * math.sqrt(1 - (following / sigma) ** 2)
        below = math.sqrt(following**2 - fresh**2)
        clean = denoise(latent, sigma)
        latent = torch.lerp(clean, latent, below / sigma)
        if following:
            latent = latent + fresh * noise()
    return latent


def dpmpp_2m(denoise, latent, sigmas, noise, tell):
    """DPM-Solver++(2M): Lu et al., "DPM-Solver++" (2022, arXiv 2211.01095), algorithm 2.

    The first step and the one to sigma 0 are of first order, which is the DDIM step.
    """
    before = None  # (clean latent, log(sigma) ratio) of the step before
    for sigma, following in _steps(sigmas, tell):
        clean = denoise(latent, sigma)
        expected = clean
        h = math.log(sigma / following) if following else math.inf
        if before is not None and following:
            r = before[1] / h
            expected = clean + (clean - before[0]) / (2 * r)
        latent = torch.lerp(expected, latent, following / sigma)
        before = clean, h
    return latent


def lcm(denoise, latent, sigmas, noise, tell):
    """Song et al., "Consistency Models" (2023, arXiv 2303.01469), algorithm 1: clean at once, and noised again.

    Their boundary condition, which differs from the clean latent by less than a hundred-thousandth here, is left out.
    """
    for sigma, following in _steps(sigmas, tell):
        latent = denoise(latent, sigma)
        if following:
            latent = latent + following * noise()
    return latent


SAMPLERS = {
    "DDIM": Sampler(with_zero_last, ddim),
    "Euler a": Sampler(uniform, euler_ancestral),
    "DPM++ 2M": Sampler(karras, dpmpp_2m),
    "LCM": Sampler(of_lcm, lcm, guided=False),
}


def _steps(sigmas: list[float], tell: Tell):
    """Yield the two sigmas of each step, after its position has been told."""
    for i, pair in enumerate(itertools.pairwise(sigmas)):
        tell(i / (len(sigmas) - 1))
        yield pair


def _sigmas() -> torch.Tensor:
    alphas = alphas_cumprod().double()
    return ((1 - alphas) / alphas).sqrt()
