"""A small latent diffusion model of the SD 1.x layout that draws emoji: how it is made, and how it is loaded."""
