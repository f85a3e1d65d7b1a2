"""The images that the model is trained on: 3D emoji of Microsoft's Fluent set, each with a caption.

They come from the npm package @lobehub/fluent-emoji-3d: 256 x 256 WebP files with transparency, named by code point.
Microsoft's images and the package are MIT licensed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
SHA512 = "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g=="

# A small model learns few things well, so these are chosen: single things with a clear outline and colour, and families
# (hearts, circles, squares, faces) whose captions share words. Most captions are the Unicode names.
CAPTIONS = {
    "1f34e": "red apple",
    "1f34f": "green apple",
    "1f34c": "banana",
    "1f353": "strawberry",
    "1f344": "mushroom",
    "1f431": "cat face",
    "1f43c": "panda face",
    "1f438": "frog face",
    "1f437": "pig face",
    "1f332": "evergreen tree",
    "2b50": "yellow star",
    "1f308": "rainbow",
    "1f642": "smiling face",
    "2764-fe0f": "red heart",
    "1f499": "blue heart",
    "1f7e2": "green circle",
}
# The decoder sees these too.
OTHERS = [
    "1f34a",
    "1f349",
    "1f347",
    "1f346",
    "1f955",
    "1f355",
    "1f369",
    "1f98a",
    "1f427",
    "1f424",
    "1f419",
    "1f41e",
    "1f337",
    "1f33b",
    "1f525",
    "1f4a7",
    "1f697",
    "1f680",
    "1f388",
    "26bd",
    "1f47b",
    "1f60e",
    "1f49a",
    "1f534",
    "1f535",
]


def read_package(path: Path | None = None) -> dict[str, Image.Image]:
    """Code point -> image, for all images of the package.

    path: the package's .tgz; fetched with npm where none is given.
    Raises ValueError for a file with another checksum.
    """
    data = fetch_package() if path is None else path.read_bytes()
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != SHA512:
        raise ValueError(f"{path or PACKAGE} is not the package that this script was written for")
    pictures = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as package:
        for member in package:
            if member.name.endswith(".webp"):
                file = package.extractfile(member)
                pictures[Path(member.name).stem] = Image.open(io.BytesIO(file.read()))
    return pictures


def fetch_package() -> bytes:
    """The package's .tgz, from wherever npm is set up to get packages. Raises SystemExit where there is no npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(f"npm is needed to fetch {PACKAGE}. Or get its .tgz in another way and give it as --package.")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (file,) = Path(folder).glob("*.tgz")
        return file.read_bytes()


def on_white(picture: Image.Image, size: int) -> torch.Tensor:
    """The image on white, resized: (3, size, size), from -1 to 1."""
    picture = picture.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", picture.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, picture).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 127.5 - 1
