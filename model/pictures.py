"""The pictures that the model is trained on: 3D emoji of Microsoft's Fluent set, each with a caption.

They come from the npm package @lobehub/fluent-emoji-3d: 256 x 256 WebP files with transparency, named by code point.
Microsoft's pictures and the package are MIT licensed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import torch
from PIL import Image

URL = "https://registry.npmjs.org/@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz"
SHA512 = "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g=="

# A small model learns few things well, so these are chosen: single things with a clear outline and colour, and families
# (hearts, circles, squares, faces) whose captions share words. Most captions are the Unicode names.
CAPTIONS = {
    # fruits and vegetables
    "1f34e": "red apple",
    "1f34f": "green apple",
    "1f350": "pear",
    "1f34a": "tangerine",
    "1f34b": "lemon",
    "1f34c": "banana",
    "1f349": "watermelon",
    "1f347": "grapes",
    "1f353": "strawberry",
    "1f352": "cherries",
    "1f351": "peach",
    "1f34d": "pineapple",
    "1f345": "tomato",
    "1f346": "aubergine",
    "1f955": "carrot",
    "1f33d": "ear of maize",
    "1f966": "broccoli",
    "1f344": "mushroom",
    "1f951": "avocado",
    # food and drink
    "1f354": "hamburger",
    "1f355": "slice of pizza",
    "1f369": "doughnut",
    "1f36a": "cookie",
    "1f366": "soft ice cream",
    "1f382": "birthday cake",
    "1f9c1": "cupcake",
    "1f37a": "beer mug",
    "2615": "hot beverage",
    "1f9c0": "cheese wedge",
    "1f36d": "lollipop",
    "1f35f": "french fries",
    # faces of animals
    "1f436": "dog face",
    "1f431": "cat face",
    "1f42d": "mouse face",
    "1f439": "hamster face",
    "1f430": "rabbit face",
    "1f98a": "fox face",
    "1f43b": "bear face",
    "1f43c": "panda face",
    "1f428": "koala",
    "1f42f": "tiger face",
    "1f981": "lion face",
    "1f42e": "cow face",
    "1f437": "pig face",
    "1f438": "frog face",
    "1f435": "monkey face",
    "1f984": "unicorn face",
    # animals
    "1f427": "penguin",
    "1f424": "baby chick",
    "1f989": "owl",
    "1f422": "turtle",
    "1f419": "octopus",
    "1f420": "tropical fish",
    "1f41d": "honeybee",
    "1f41e": "lady beetle",
    "1f98b": "butterfly",
    "1f433": "spouting whale",
    "1f40c": "snail",
    "1f418": "elephant",
    # plants and sky
    "1f332": "evergreen tree",
    "1f333": "deciduous tree",
    "1f334": "palm tree",
    "1f335": "cactus",
    "1f337": "tulip",
    "1f339": "rose",
    "1f33b": "sunflower",
    "1f340": "four leaf clover",
    "1f341": "maple leaf",
    "2b50": "yellow star",
    "1f319": "crescent moon",
    "1f31e": "sun with face",
    "1f308": "rainbow",
    "2601-fe0f": "cloud",
    "26c4": "snowman",
    "1f525": "fire",
    "1f4a7": "droplet",
    # vehicles and things
    "1f697": "automobile",
    "1f695": "taxi",
    "1f68c": "bus",
    "1f692": "fire engine",
    "1f69c": "tractor",
    "1f680": "rocket",
    "26f5": "sailboat",
    "1f388": "balloon",
    "1f381": "wrapped present",
    "1f3c0": "basketball",
    "26bd": "soccer ball",
    "1f4a1": "light bulb",
    "1f511": "key",
    "1f514": "bell",
    "1f512": "lock",
    "1f451": "crown",
    "1f3e0": "house",
    "1f3c6": "trophy",
    "1f3a9": "top hat",
    "23f0": "alarm clock",
    "1f383": "jack-o-lantern",
    "1f47b": "ghost",
    "1f480": "skull",
    "1f47d": "alien",
    "1f916": "robot face",
    # faces
    "1f642": "smiling face",
    "1f602": "face with tears of joy",
    "1f60d": "smiling face with heart-shaped eyes",
    "1f60e": "smiling face with sunglasses",
    "1f622": "crying face",
    "1f621": "red angry face",
    "1f634": "sleeping face",
    "1f62e": "face with open mouth",
    # hearts, circles, squares
    "2764-fe0f": "red heart",
    "1f9e1": "orange heart",
    "1f49b": "yellow heart",
    "1f49a": "green heart",
    "1f499": "blue heart",
    "1f49c": "purple heart",
    "1f534": "red circle",
    "1f7e0": "orange circle",
    "1f7e1": "yellow circle",
    "1f7e2": "green circle",
    "1f535": "blue circle",
    "1f7e3": "purple circle",
    "1f7e5": "red square",
    "1f7e8": "yellow square",
    "1f7e9": "green square",
    "1f7e6": "blue square",
}


def read_package(path: Path | None = None) -> dict[str, Image.Image]:
    """The pictures of the package by code point; downloaded where no file is given, checked in either case."""
    if path is None:
        with urllib.request.urlopen(URL, timeout=60) as answer:
            data = answer.read()
    else:
        data = path.read_bytes()
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != SHA512:
        raise ValueError(f"{path or URL} is not the package that this script was written for")
    pictures = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as package:
        for member in package:
            if member.name.endswith(".webp"):
                file = package.extractfile(member)
                pictures[Path(member.name).stem] = Image.open(io.BytesIO(file.read())).convert("RGBA")
    return pictures


def on_white(picture: Image.Image, size: int) -> torch.Tensor:
    """(3, size, size), -1 to 1: the picture on white, resized."""
    picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", picture.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, picture).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 127.5 - 1
