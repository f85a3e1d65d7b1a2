"""ToDo, token downsampling for the self-attention of diffusion U-Nets.

Smith, Saxena, Saha: "ToDo: Token Downsampling for Efficient Generation of High-Resolution Images", IJCAI 2024.

    from todo_lib import Patch, Settings, Step

    i, steps = 0, 20
    with Patch(unet, Settings(enabled=True, factor=2), lambda: Step(i, i / steps)) as patch:
        for i in range(steps):
            latent = denoise(unet, latent, i)
    print(patch.report)

Read `grid.py` first (which tokens become keys), then `downsampling.py` (at which steps, and how they are taken), then
`hooks.py` (how the self-attentions of a U-Net get them). This package needs
torch alone and knows no host. Its part for the WebUI is `todo_lib.webui`.
"""

__version__ = "0.2.0"

from .downsampling import Downsampling, Step
from .patch import Patch
from .plan import DepthPlan, plan
from .report import Report
from .settings import FIELDS, Settings, SettingsError

__all__ = [
    "FIELDS",
    "DepthPlan",
    "Downsampling",
    "Patch",
    "Report",
    "Settings",
    "SettingsError",
    "Step",
    "__version__",
    "plan",
]
