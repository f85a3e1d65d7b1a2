"""Images side by side, each with a caption, in one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

INK, FAINT = "#22303c", "#66727d"
MARGIN, LINE, NARROWEST = 20, 24, 260
TITLE, HEADING, TEXT, SMALL = 24, 19, 16, 14  # sizes of the letters in pixels


def save_sheet(path: Path, title: str, note: str, rows: dict[str, list[tuple[np.ndarray, str]]]) -> None:
    """Write images into one file, in rows. Nothing is resized: a pixel of an image is one of the sheet.

    path: its suffix chooses the format. .png keeps every pixel as it is, .webp takes a tenth of the space.
    rows: heading -> (image, caption) from left to right. Images are (H, W, 3) bytes, all of one size. Captions have one
        line or two.
    """
    pictures = [picture for row in rows.values() for picture, _ in row]
    height, width = pictures[0].shape[:2]
    column, row_height = max(width, NARROWEST) + MARGIN, 4 * LINE + height + MARGIN
    columns = max(len(row) for row in rows.values())
    top = 3 * LINE
    bottom = top + len(rows) * row_height
    sheet = Image.new("RGB", (MARGIN + columns * column, bottom + LINE * (2 + note.count("\n"))), "white")
    draw = ImageDraw.Draw(sheet)
    _write(draw, MARGIN, MARGIN, title, TITLE, bold=True)
    for heading, row in rows.items():
        _write(draw, MARGIN, top, heading, HEADING, bold=True)
        for j, (picture, caption) in enumerate(row):
            left, below = MARGIN + j * column, top + 4 * LINE - LINE // 4
            for k, line in enumerate(caption.splitlines()):
                _write(draw, left, top + LINE * (5 + 4 * k) // 4, line, TEXT, FAINT if k else INK)
            sheet.paste(Image.fromarray(picture), (left, below))
            draw.rectangle((left - 1, below - 1, left + width, below + height), outline="#d5dade")
        top += row_height
    _write(draw, MARGIN, bottom, note, SMALL, FAINT)
    sheet.save(path, optimize=True, quality=90)  # optimize makes a PNG smaller, quality is that of a WebP


def _write(draw: ImageDraw.ImageDraw, left: int, top: int, text: str, size: int, color=INK, bold=False) -> None:
    file = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal"))
    draw.text((left, top), text, fill=color, font=ImageFont.truetype(file, size))
