"""Models: a U-Net, its noise schedule and the embedding of a prompt."""

from types import SimpleNamespace

import torch
from modules import shared


class SDModel:
    def __init__(self, name, unet, context_dim):
        self.name = name
        self.sd_checkpoint_info = SimpleNamespace(filename=name, name_for_extra=name)
        self.model = SimpleNamespace(diffusion_model=unet)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alphas_cumprod = (1 - betas).cumprod(0).float()
        self.context_dim = context_dim

    def apply_model(self, x, t, cond):
        return self.model.diffusion_model(x, t, cond)

    def embed(self, prompt, batch_size):
        generator = torch.Generator().manual_seed(len(prompt))
        return torch.randn(1, 3, self.context_dim, generator=generator).expand(batch_size, -1, -1)


model_data = SimpleNamespace(sd_model=None)  # in the real host, reading shared.sd_model loads one


def load(model=None):
    """Load this model, or the selected checkpoint if none is given."""
    shared.sd_model = model_data.sd_model = model or shared.checkpoint


def get_closet_checkpoint_match(name):
    return SimpleNamespace(filename=name) if name else None
