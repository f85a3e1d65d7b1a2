"""The images of the model card: python3 dev.py train card."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from PIL import Image

from lab.charts import save_chart
from lab.model.emoji import Emoji
from lab.model.pictures import CAPTIONS

HERE = Path(__file__).parent
PICTURES = HERE / "docs" / "pictures.png"  # without loss, for samples are compared with it
SAMPLES, LARGE, HIRES = (HERE / "docs" / f"{name}.webp" for name in ("samples", "large", "hires"))
SDXL_SAMPLES, SDXL_HIRES = (HERE / "docs" / f"sdxl-{name}.webp" for name in ("samples", "hires"))
COLUMNS, CELL = 5, 64
HIRES_CAPTIONS = ("pig face", "cat face", "frog face", "strawberry", "raccoon", "astronaut", "ginger cat", "rocket")
HIRES_CELL = 192


def save_sheet(path: Path, pictures: list[torch.Tensor], columns: int = COLUMNS, cell: int = CELL) -> None:
    """Write images into one file, row by row.

    pictures: (H, W, 3) bytes each.
    columns: images in a row.
    cell: pixels a side at which each is shown.
    """
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * cell), "white")
    for i, picture in enumerate(pictures):
        image = Image.fromarray(picture.numpy()).resize((cell, cell), Image.Resampling.LANCZOS)
        sheet.paste(image, (i % columns * cell, i // columns * cell))
    path.parent.mkdir(exist_ok=True)
    sheet.save(path, **({"quality": 90, "method": 6} if path.suffix == ".webp" else {"optimize": True}))


def training_pictures() -> dict[str, torch.Tensor]:
    """Caption -> (64, 64, 3) bytes, read from the sheet of the model card."""
    sheet = torch.frombuffer(bytearray(Image.open(PICTURES).convert("RGB").tobytes()), dtype=torch.uint8)
    cells = sheet.view(-1, CELL, COLUMNS, CELL, 3).transpose(1, 2).flatten(0, 1)
    return dict(zip(CAPTIONS.values(), cells, strict=False))


def distances(picture: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
    """Mean squared differences (N,) of an image from N others, all (H, W, 3) bytes, at 16 x 16 pixels."""

    def small(x):
        return F.interpolate(x.permute(2, 0, 1)[None].float() / 255, (16, 16), mode="area")

    return torch.stack([(small(picture) - small(other)).square().mean() for other in others])


def nearest(picture: torch.Tensor) -> str:
    """The caption of the training image that is most like this one, (H, W, 3) bytes."""
    known = training_pictures()
    return list(known)[distances(picture, list(known.values())).argmin()]


def save_samples(model: Emoji, path: Path, size: int, cell: int, steps: int) -> dict[str, str]:
    """Draw and save an image of each caption. Returns caption -> that of the training image that is nearest.

    size: pixels a side that are drawn.
    cell: pixels a side that are shown.
    """
    drawn = {text: model.draw([text], (size, size), steps=steps)[0] for text in CAPTIONS.values()}
    save_sheet(path, list(drawn.values()), cell=cell)
    return {text: nearest(picture) for text, picture in drawn.items()}


def save_hires(model: Emoji, path: Path, steps: int, captions: Iterable[str] = HIRES_CAPTIONS) -> dict[str, str]:
    """Draw hires passes of these captions, and save some, each with a part of it at full size.

    Returns caption -> that of the training image that is nearest, for all captions.
    """
    small, large = (model.sizes.large,) * 2, (model.sizes.hires,) * 2
    whole = {}
    for text in captions:
        latents = model.refine([text], model.sample([text], model.noise(small, 0), steps), large, steps=steps)
        whole[text] = model.decode(latents)[0]
    near = (model.sizes.hires - HIRES_CELL) // 2
    shown = [whole[text] for text in HIRES_CAPTIONS]
    parts = [picture[near:, near:][:HIRES_CELL, :HIRES_CELL].contiguous() for picture in shown]
    save_sheet(path, [*shown, *parts], columns=len(shown), cell=HIRES_CELL)
    return {text: nearest(picture) for text, picture in whole.items()}


def save_loss(work: Path) -> None:
    """Draw a chart for each stage that has a log in the folder `work`."""
    for name, (path, title) in LOSSES.items():
        log = work / f"{name}.jsonl"
        if not log.exists():
            continue
        # Steps that were lost when a training was stopped stand in the log twice.
        lines = {line["step"]: line for line in map(json.loads, log.read_text().splitlines())}.values()
        figure, ax = plt.subplots(figsize=(6, 3.5), constrained_layout=True)
        for key in dict.fromkeys(key for line in lines for key in line if key.startswith("loss")):
            ax.plot(*zip(*[(line["step"], line[key]) for line in lines if key in line], strict=True), label=key)
        ax.set(title=title, xlabel="step", yscale="log")
        ax.legend(frameon=False)
        save_chart(figure, path, dpi=80)


LOSSES = {
    "autoencoder": (HERE / "docs" / "loss-decoder.png", "Decoder: mean absolute difference"),
    "unet": (HERE / "docs" / "loss-unet.png", "U-Net: squared error of the predicted velocity"),
    "sdxl-unet": (HERE / "docs" / "loss-sdxl-unet.png", "U-Net of SDXL's layout: the same"),
    "finish": (HERE / "docs" / "loss-finish.png", "The same in the last stage, of weak captions above all"),
}
