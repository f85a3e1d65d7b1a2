"""The images of the model card: python3 dev.py train card."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from PIL import Image

from lab.charts import save_chart
from lab.model.emoji import HIRES_SIZE, LARGE_SIZE, Emoji
from lab.model.pictures import CAPTIONS

HERE = Path(__file__).parent
PICTURES = HERE / "docs" / "pictures.png"  # without loss, for samples are compared with it
SAMPLES, LARGE, HIRES = (HERE / "docs" / f"{name}.webp" for name in ("samples", "large", "hires"))
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


def save_samples(model: Emoji, path: Path, size: int, cell: int, steps: int) -> int:
    """Draw and save an image of each caption; return how many are nearest to their own training image.

    size: pixels a side that are drawn.
    cell: pixels a side that are shown.
    """
    drawn = {text: model.draw([text], (size, size), steps=steps)[0] for text in CAPTIONS.values()}
    save_sheet(path, list(drawn.values()), cell=cell)
    return sum(nearest(picture) == text for text, picture in drawn.items())


def save_hires(model: Emoji, path: Path, steps: int) -> int:
    """Draw and save some hires passes, each with a part of it at full size; return how many are nearest to their own
    training image.
    """
    small, large = (LARGE_SIZE, LARGE_SIZE), (HIRES_SIZE, HIRES_SIZE)
    whole = {}
    for text in HIRES_CAPTIONS:
        latents = model.refine([text], model.sample([text], model.noise(small, 0), steps), large, steps=steps)
        whole[text] = model.decode(latents)[0]
    near = (HIRES_SIZE - HIRES_CELL) // 2
    parts = [picture[near:, near:][:HIRES_CELL, :HIRES_CELL].contiguous() for picture in whole.values()]
    save_sheet(path, [*whole.values(), *parts], columns=len(whole), cell=HIRES_CELL)
    return sum(nearest(picture) == text for text, picture in whole.items())


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
    "finish": (HERE / "docs" / "loss-finish.png", "The same in the last stage, of weak captions above all"),
}
