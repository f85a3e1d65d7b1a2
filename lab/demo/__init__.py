"""ToDo at work without a WebUI: a Stable Diffusion U-Net, dense and downsampled side by side."""
