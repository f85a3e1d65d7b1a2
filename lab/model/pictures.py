"""The pictures that the model is trained on, each with a caption: 3D emoji of Microsoft's Fluent set, and photographs.

The emoji come from the npm package @lobehub/fluent-emoji-3d: 256 x 256 WebP files with transparency, named by code
point. Microsoft's pictures and the package are MIT licensed. The photographs are CC0 or in the public domain, and come
from the Python packages scikit-image and SciPy; the model card names the licence of each.
"""

from __future__ import annotations

import base64
import bz2
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
SHA512 = "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g=="
# The last SciPy that has the raccoon in its wheel. Later ones fetch it from elsewhere.
WHEEL = "scipy==1.9.3"
WHEEL_OPTIONS = ["--only-binary=:all:", "--platform=manylinux2014_x86_64", "--python-version=3.10", "--no-deps"]
RACCOON, RACCOON_SHAPE = "scipy/misc/face.dat", (768, 1024, 3)
RACCOON_SHA256 = "9d8b0b4d081313e2b485748c770472e5a95ed1738146883d84c7030493e82886"

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
    "astronaut": "astronaut",
    "chelsea": "ginger cat",
    "raccoon": "raccoon",
    "coffee": "cup of coffee",
    "rocket": "rocket",
    "camera": "photographer",
    "brick": "brick wall",
    "retina": "retina",
    "hubble_deep_field": "galaxies",
}
# The square of each photograph that is shown: left, top and side in pixels.
CROPS = {
    "astronaut": (0, 0, 512),
    "chelsea": (75, 0, 300),
    "raccoon": (330, 0, 694),
    "coffee": (90, 0, 400),
    "rocket": (107, 0, 427),
    "camera": (0, 0, 512),
    "brick": (0, 0, 512),
    "retina": (0, 0, 1411),
    "hubble_deep_field": (64, 0, 872),
}


def read_pictures(package: Path | None = None) -> dict[str, Image.Image]:
    """All emoji and photographs, by the names that CAPTIONS has."""
    return read_package(package) | read_photographs()


def read_photographs() -> dict[str, Image.Image]:
    """The squares of the photographs. The raccoon is fetched with pip, the others are part of scikit-image."""
    import skimage  # only for training: the demo does without

    folder = Path(skimage.__file__).parent / "data"
    whole = {name: Image.open(next(folder.glob(f"{name}.*"))) for name in CROPS if name != "raccoon"}
    whole["raccoon"] = Image.fromarray(fetch_raccoon())
    return {
        name: whole[name].convert("RGB").crop((left, top, left + side, top + side))
        for name, (left, top, side) in CROPS.items()
    }


def fetch_raccoon() -> np.ndarray:
    """(768, 1024, 3) bytes, from SciPy's wheel."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", *WHEEL_OPTIONS, "--dest", folder, WHEEL]
        subprocess.run(pip, check=True)
        (file,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(file) as wheel:
            data = wheel.read(RACCOON)
    if hashlib.sha256(data).hexdigest() != RACCOON_SHA256:
        raise ValueError(f"{RACCOON} of {WHEEL} is not the picture that this script was written for")
    return np.frombuffer(bz2.decompress(data), np.uint8).reshape(RACCOON_SHAPE)


def read_package(path: Path | None = None) -> dict[str, Image.Image]:
    """The pictures of the package by code point; fetched with npm where no file is given, checked in either case."""
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
    """The image on white, resized: (3, size, size), from -1 to 1. What is enlarged is sharpened, its outline most."""
    scale = size / picture.width
    picture = picture.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
    if scale > 1:
        alpha = picture.getchannel("A").point([round((value - 127.5) * scale + 127.5) for value in range(256)])
        picture = picture.convert("RGB").filter(ImageFilter.UnsharpMask(radius=scale, percent=80, threshold=0))
        picture.putalpha(alpha)
    white = Image.new("RGBA", picture.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, picture).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 127.5 - 1
