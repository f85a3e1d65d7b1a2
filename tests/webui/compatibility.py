"""One cell of the compatibility table: a generation with ToDo and a neighbour, judged by what was seen.

A cell is judged by:
- the queries, keys and values behind the projections of every self-attention,
- the images,
- what is left on models and classes,
- the words under the image.
A status of 200 proves nothing: the host swallows the errors of scripts.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable

import numpy as np

from tests.webui.client import Offsets, kept_grid
from tests.webui.hosts import A1111, FULL_VAE, Host

TODO = {"enabled": True, "factor": 2, "max_depth": 4, "deeper_factor": 2}
REQUEST = {"width": 256, "height": 128, "steps": 4}
LEFT = " left to another patch"

# The depth of each spatial transformer by its block, for the two topologies of U-Net.
SD1_DEPTHS = {
    **{f"input_blocks.{i}": depth for i, depth in {1: 1, 2: 1, 4: 2, 5: 2, 7: 3, 8: 3}.items()},
    "middle_block": 4,
    **{f"output_blocks.{i}": 4 - i // 3 for i in range(3, 12)},
}
SDXL_DEPTHS = {
    **{f"input_blocks.{i}": depth for i, depth in {4: 1, 5: 1, 7: 2, 8: 2}.items()},
    "middle_block": 2,
    **{f"output_blocks.{i}": 2 - i // 3 for i in range(6)},
}


class Red(AssertionError):
    """A cell that is neither right nor left to another patch with words for the user."""


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """Something else that runs in the same generation.

    name, kind: words for the table.
    request: its additions to a request, or a function of the run that returns them.
    options: WebUI options while it runs.
    around: options that are no part of it, and that also hold where ToDo runs alone.
    method: txt2img, img2img or img2img_batch.
    repository: the folder of the extension, or None for a part of the host.
    grids: how many whole grids the context of a self-attention may be made of.
    models: the models that it works with.
    changes_picture: whether its own effect shows in the image beside ToDo's.
    may_leave: whether some self-attentions may be left to it.
    ready: a function of the run that says why it cannot run there, or returns nothing.
    repeats: whether it makes the same image again, or a function of the run that says so.
    checkpoints: the checkpoints that must have run, if there is more than one.
    shows_todo: whether ToDo's effect shows in the image beside its own.
    """

    name: str
    kind: str
    request: dict | Callable = dataclasses.field(default_factory=dict)
    options: dict = dataclasses.field(default_factory=dict)
    around: dict = dataclasses.field(default_factory=dict)
    method: str = "txt2img"
    repository: str | None = None
    grids: int = 1
    models: tuple = ("tiny", "tinyxl")
    changes_picture: bool = True
    may_leave: bool = False
    ready: Callable | None = None
    repeats: bool | Callable = True
    shows_todo: bool = True
    checkpoints: set = dataclasses.field(default_factory=set)


@dataclasses.dataclass
class Cell:
    """A judged cell, as it is saved in the machine-readable result."""

    table: str  # its table on the page: models, optimizations, samplers or neighbours
    host: str
    model: str
    optimization: str = "sdp"
    sampler: str = "Euler"
    neighbour: str = "none"
    kind: str = ""
    outcome: str = "red"  # ok, left, not run or red
    words: str = ""  # the comment under the image, or why it was not run, or what was wrong
    seen: dict = dataclasses.field(default_factory=dict)  # verdict on a self-attention -> how many calls
    repeats: bool = True  # whether the image without ToDo has to be there again afterwards


@dataclasses.dataclass
class Run:
    """The things that neighbours need for a request: the client, the model, an image drawn with it, and the host."""

    client: object
    model: str
    image: np.ndarray
    host: Host = A1111


def depth_of(attention, model):
    block = re.search(r"(input_blocks|output_blocks)\.\d+|middle_block", attention.layer).group()
    return (SDXL_DEPTHS if "xl" in model else SD1_DEPTHS)[block]


def factor_of(attention, model):
    return TODO["factor"] if depth_of(attention, model) == 1 else TODO["deeper_factor"]


def judge(attention, model, grids=1, offsets=None):
    """Judge one self-attention. Returns one word:

    right: it has the keys that the contract wants.
    dense: it has all keys.
    own: its tokens are not the grid.
    off: it has to be dense, in a nested generation that the host was told to make without ToDo.
    wrong: anything else.

    offsets: the Offsets of the record so far. The offsets of a moving grid have to agree with them.
    """
    size = attention.grid[0] * attention.grid[1]
    factor = factor_of(attention, model)
    kept = math.prod(kept_grid(attention.grid, factor))
    if attention.keys != attention.values:
        return "wrong"
    if not attention.todo:
        return "off" if attention.keys == attention.queries == size else "wrong"
    if attention.queries != size and attention.keys in (attention.queries, size):
        # Tiles or merged tokens. reForge's HyperTile cuts only the queries into tiles, and Forge's token merging merges
        # only the queries: keys and values are as ever.
        return "own" if attention.keys == attention.queries else "dense"
    for n in range(1, grids + 1):
        if attention.keys == n * kept:
            offsets = Offsets() if offsets is None else offsets
            return "wrong" if offsets.add(attention, factor, attention.step, n) else "right"
    if attention.queries != size:
        return "wrong"
    return "dense" if attention.keys % size == 0 else "own"


def generate(client, model, neighbour, request, todo, **more):
    """Run a generation. `request` comes last, because neighbours may need their own sizes and steps."""
    body = {**REQUEST, **more, **request}
    if neighbour.method == "img2img_batch":
        return client.img2img_batch(request["images"], todo, model, **more)
    if neighbour.method == "img2img":
        image = body.pop("image")
        return client.img2img(image, body.pop("mask", None), todo=todo, model=model, **body)
    return client.txt2img(todo, model, **body)


def same(a, b, tolerance):
    """Whether two lists of images are the same, up to a mean difference per channel value."""
    return len(a) == len(b) and all(
        x.shape == y.shape and np.abs(x.astype(int) - y).mean() <= tolerance for x, y in zip(a, b, strict=True)
    )


def check(server, cell, neighbour, model, **more):
    """Run a cell and judge it. Raises Red."""
    client = server.client
    run = Run(client, model, image_of(client, model), server.host)
    if neighbour.ready and (why := neighbour.ready(run)):
        cell.outcome, cell.words = "not run", why
        return
    request = neighbour.request(run) if callable(neighbour.request) else neighbour.request
    plain = {"image": request["image"]} if neighbour.method == "img2img" else {}
    plain |= {"images": request["images"]} if neighbour.method == "img2img_batch" else {}
    plain |= {key: request[key] for key in ("width", "height", "steps", "mask") if key in request}
    position = server.log_size()
    with client.options(**neighbour.around):
        # Some extensions look at the model before the host has loaded the one of their request.
        client.txt2img(None, model, width=64, height=64, steps=1)
        alone = alone_with_todo(client, model, neighbour, plain, **more)
        with client.options(**neighbour.options):
            without = generate(client, model, neighbour, request, None, **more).images
            own = of_todo(client)  # a neighbour may have a similar name
            with client.recording(indices=True, controls=True) as record:
                result = generate(client, model, neighbour, request, TODO, **more)
            with_todo = result.images
            leftovers = [line for line in of_todo(client) if line not in own]
            again = generate(client, model, neighbour, request, None, **more).images

    comments = [line for g in record.generations for line in g["comments"].splitlines() if line.startswith("ToDo: ")]
    # The host encodes an image with unseeded noise: next to nothing, but not always nothing after rounding.
    tolerance = 0 if neighbour.method == "txt2img" else 0.01
    cell.words = comments[-1] if comments else ""
    offsets = Offsets()
    judged = [(judge(a, model, neighbour.grids, offsets), a) for a in record.attentions]
    cell.seen = dict(Counter(kind for kind, _ in judged))
    if "Traceback (most recent call last)" in (log := server.log_since(position)):
        raise Red(f"an exception that the host or the neighbour swallowed: {last_error(log)}")
    if leftovers:
        raise Red(f"left on the model: {leftovers[:3]}")
    if not comments:
        raise Red("no words under the picture")
    if false := [line for line in comments if "were made" in line]:
        raise Red(f"no picture was made elsewhere: {false[0]}")
    if wrong := [a for kind, a in judged if kind == "wrong"]:
        raise Red(f"wrong keys: {wrong[0]}")
    left = [a for kind, a in judged if kind in ("dense", "own")]
    if left and not any(LEFT in comment for comment in comments):
        raise Red(f"left without words: {left[0]}")
    if left and not neighbour.may_leave:
        raise Red(f"left, and should not be: {left[0]}")
    if not judged:
        raise Red("no self-attention ran")
    if neighbour.method == "img2img_batch" and (wrong := wrong_of_batch(result.comments, with_todo)):
        raise Red(wrong)
    if neighbour.checkpoints - {a.model for a in record.attentions}:
        raise Red(f"only these checkpoints ran: { {a.model for a in record.attentions} }")
    cell.repeats = neighbour.repeats(run) if callable(neighbour.repeats) else neighbour.repeats
    if cell.repeats and not same(without, again, tolerance):
        raise Red("switched off, the picture is not the one before")
    if neighbour.shows_todo and cell.seen.get("right") and same(without, with_todo, tolerance):
        raise Red("ToDo changes nothing")
    # Some neighbours add images of their own at the end.
    if neighbour.changes_picture and same(alone, with_todo[: len(alone)], tolerance):
        raise Red("the neighbour changes nothing")
    cell.outcome = "left" if left else "ok"


def check_without_unet(client, cell, model, **request):
    """Run a cell of a model that has no U-Net: nothing is done, and the words say so. Raises Red."""
    without = client.txt2img(None, model, **request).images
    with client.recording() as record:
        with_todo = client.txt2img(TODO, model, **request).images
    (cell.words,) = [line for line in record.generations[0]["comments"].splitlines() if line.startswith("ToDo: ")]
    if not same(without, with_todo, 0) or "this model has no U-Net self-attention" not in cell.words:
        raise Red("something was done")
    cell.outcome = "ok"


def wrong_of_batch(comments, images):
    """Whether the line that a batch of files shows leaves one out, or tells of another one. Returns why, or None."""
    told = re.findall(r"1 sampling: [^;]*?depth 1: (\d+)x(\d+) tokens", comments)
    made = sorted((image.shape[1] // 8, image.shape[0] // 8) for image in images)
    if sorted((int(width), int(height)) for width, height in told) != made:
        return f"files of the grids {made} are told as: {comments}"
    return None


def of_todo(client):
    """Everything on models and classes with ToDo's name in it, without the numbers of hooks and objects."""
    lines = [re.sub(r"\d+=|@[0-9a-f]+", "", f"{place}: {text}") for place, text in client.leftovers().items()]
    return [line for line in lines if "todo" in line.lower()]


def last_error(log):
    """The line that ends the last traceback in a log."""
    lines = log.rpartition("Traceback (most recent call last)")[2].splitlines()
    return next((line.strip() for line in lines if re.match(r" {0,4}[A-Za-z][\w.]*(:|$)", line)), "?")


_alone = {}


def alone_with_todo(client, model, neighbour, plain, **more):
    """The images of ToDo without the neighbour, which are the same in many cells."""
    request = sorted({**more, **plain}.items())
    key = repr((client.url, model, neighbour.method, request, sorted(neighbour.around.items())))
    if key not in _alone:
        _alone[key] = generate(client, model, neighbour, plain, TODO, **more).images
    return _alone[key]


_images = {}


def image_of(client, model):
    """An image of that model to start from, the same in all cells."""
    if (client.url, model) not in _images:
        with client.options(**FULL_VAE):
            _images[client.url, model] = client.txt2img(model=model, **REQUEST).images[0]
    return _images[client.url, model]
