"""Talk to a WebUI over HTTP: generate, set options, and ask the probe extension for its record."""

import base64
import contextlib
import functools
import html
import io
import itertools
import json
import math
import tempfile
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import requests
from PIL import Image

# Small, not square (so that a mix-up of height and width shows) and quick.
REQUEST = {
    "prompt": "a cat",
    "width": 128,
    "height": 64,
    "steps": 4,
    "seed": 1,
    "cfg_scale": 7,
    "sampler_name": "Euler",
    "scheduler": "Automatic",
}


class RequestFailed(Exception):
    """The WebUI answered with an HTTP error."""

    def __init__(self, response):
        super().__init__(f"{response.status_code} {response.url}: {response.text[:2000]}")
        self.status, self.text = response.status_code, response.text


class Client:
    def __init__(self, url):
        self.url = url

    def get(self, path, **query):
        return self._answer(requests.get(self.url + path, params=query, timeout=300))

    def post(self, path, body=None):
        return self._answer(requests.post(self.url + path, json=body or {}, timeout=300))

    @staticmethod
    def _answer(response):
        if not response.ok:
            raise RequestFailed(response)
        return response.json()

    # ---- generation

    def txt2img(self, todo=None, model="tiny", **request):
        """Generate. `todo` goes to alwayson_scripts.ToDo.args: a list, or a dictionary in place of one."""
        return self._generate("txt2img", todo, model, request)

    def img2img(self, image, mask=None, todo=None, model="tiny", **request):
        """Generate from an image (array or PIL image). For inpainting, the white part of the mask is repainted."""
        request["init_images"] = [encode(image)]
        if mask is not None:
            request["mask"] = encode(mask)
        return self._generate("img2img", todo, model, request)

    def img2img_batch(self, images, todo=None, model="tiny", **request):
        """Generate from each of these images at its own size, by the tab "Batch" of img2img. The API lacks it.

        Returns the `images` and the `comments` that the page shows.
        """
        config = self.get("/config")
        parts = {part["id"]: part["props"] for part in config["components"]}
        ids = {props.get("elem_id"): number for number, props in parts.items()}
        folder = ids["img2img_batch_input_dir"]
        submits = [d for d in config["dependencies"] if d["js"] == "submit_img2img" and folder in d["inputs"]]
        inputs, number = submits[0]["inputs"], config["dependencies"].index(submits[0])
        values = {place: parts[place].get("value") for place in inputs}
        values |= {place: [] for place in inputs if parts[place].get("multiselect") and values[place] is None}
        given = {"img2img_steps": REQUEST["steps"], "img2img_seed": REQUEST["seed"], **request}
        given |= {f"script_img2img_todo_{name}": value for name, value in (todo or {}).items()}
        given["script_img2img_todo_enabled-checkbox"] = given.pop("script_img2img_todo_enabled", False)
        values |= {ids[name]: value for name, value in given.items()}
        with tempfile.TemporaryDirectory() as place, self.options(sd_model_checkpoint=model):
            for i, image in enumerate(images):
                Image.fromarray(image).save(Path(place) / f"{i}.png")
            data = [values[place] for place in inputs]
            # Without names on the page: the tab's number, "Resize by", its scale, and where the images come from.
            at = inputs.index(folder)
            data[1], data[at - 8], data[at - 5], data[at], data[at + 7] = 5, 1, 1, place, "from dir"
            answer = self.post("/run/predict", {"fn_index": number, "data": data, "session_hash": "test"})
        gallery, _, _, comments = answer["data"][:4]
        images = [np.array(Image.open(found["name"].partition("?")[0]).convert("RGB")) for found in gallery]
        return SimpleNamespace(images=images, comments=html.unescape(comments))

    def hires(self, todo=None, model="tiny", **request):
        """txt2img with hires fix: 64x64, then 128x128 with 3 steps, unless told otherwise."""
        request = {"width": 64, "enable_hr": True, "hr_scale": 2, "hr_second_pass_steps": 3, **request}
        return self.txt2img(todo, model, **{"hr_upscaler": "Latent", "denoising_strength": 0.7, **request})

    def _generate(self, kind, todo, model, request):
        scripts = dict(request.pop("alwayson_scripts", {}))
        if todo is not None:
            scripts["ToDo"] = {"args": [todo] if isinstance(todo, dict) else list(todo)}
        settings = dict(request.pop("override_settings", {}))
        if model is not None:
            # Each request names the model, so that no test depends on the model that another one has loaded.
            settings["sd_model_checkpoint"] = model
        body = {**REQUEST, **request, "alwayson_scripts": scripts, "override_settings": settings}
        return Result(self.post(f"/sdapi/v1/{kind}", body))

    def plot(self, *axes):
        """The fields of a request for an X/Y/Z plot with these (axis label, values) pairs, values as text."""
        places = [label for label in self.get("/probe/xyz_axes") if label is not None]
        args = []
        for label, values in (*axes, *[("Nothing", "")] * (3 - len(axes))):
            args += [places.index(label), values, []]
        args += [True, False, False, False, False, False, False, 0, True]
        return {"script_name": "x/y/z plot", "script_args": args}

    # ---- options

    def option(self, name):
        return self.get("/sdapi/v1/options")[name]

    @contextlib.contextmanager
    def options(self, **values):
        """Set these WebUI options for the length of a `with`."""
        before = self.get("/probe/options", names=",".join(values)) if values else {}
        self.post("/sdapi/v1/options", values)
        try:
            yield
        finally:
            self.post("/sdapi/v1/options", before)

    # ---- probe

    @contextlib.contextmanager
    def recording(self, indices=False, fingerprints=False, controls=False, calls=True):
        """Record what runs meanwhile. Yields a Record, which is filled at the end, also after an exception.

        `indices`: also find from which token each key and value was made.
        `fingerprints`: also take `leftovers` before the hires pass and after the sampling of each batch.
        `controls`: also look into ControlNets; their layers' names begin with "control".
        `calls`: look at the U-Net's calls. A compiled U-Net would be compiled anew for the hooks that do so.
        """
        record = Record()
        wanted = {"indices": indices, "fingerprints": fingerprints, "controls": controls, "calls": calls}
        self.post("/probe/start", wanted)
        try:
            yield record
        finally:
            record.fill(self.get("/probe/record"))

    def leftovers(self):
        """All possible leftovers of a patch on models and classes: place -> text, to be compared with `changes`."""
        return self.get("/probe/leftovers")

    @contextlib.contextmanager
    def fault(self, call, pass_name="first", action="raise", inside=False):
        """Let U-Net call number `call` (from 0) of the next generation's pass raise, or interrupt or skip it.

        `inside`: in the middle of the U-Net's first self-attention, not at the start of the U-Net.
        Yields an object whose `fired` is set at the end. A fault that has not fired by the end of a generation is
        forgotten.
        """
        self.post("/probe/fault", {"call": call, "pass": pass_name, "action": action, "inside": inside})
        state = SimpleNamespace(fired=None)
        try:
            yield state
        finally:
            state.fired = self.get("/probe/fault")["fired"]
            self.post("/probe/reset_fault")


class Result:
    """The result of a generation: `images` (RGB arrays), `info` (the API's) and `infotext` (of the first image)."""

    def __init__(self, answer):
        self.images = [decode(image) for image in answer["images"]]
        self.info = json.loads(answer["info"])
        self.infotext = next(iter(self.info["infotexts"]), "")  # empty if an interrupted script has made no image
        self.parameters = answer["parameters"]

    @property
    def image(self):
        assert len(self.images) == 1
        return self.images[0]


@dataclass(frozen=True)
class Attention:
    """One call of one self-attention, as the probe saw it."""

    model: str  # name of the checkpoint: tiny, tinyb, ..., twin.safetensors or twin.ckpt
    pass_name: str  # "first" or "hires"; "first" where there is one pass
    iteration: int  # of the batch count
    sampler: str
    call: int  # which U-Net call of the pass
    step: int  # CFGDenoiser.step: counts its calls
    steps: int  # CFGDenoiser.steps
    sampling_step: int  # state.sampling_step at the time
    sigma: float
    todo: bool  # whether ToDo's script is in this generation: nested ones may lack it
    layer: str
    depth: int  # by the grids that this U-Net call had
    grid: tuple  # (H, W)
    batch: int
    heads: int
    queries: int  # tokens that the self-attention got from to_q, to_k, to_v, behind all hooks
    keys: int
    values: int
    sampling: int = 1  # which sampling of the record, counted from 1
    loop: dict = None  # where the sampler is in its loop over the steps: "function" and "number"
    # The different sets of source tokens among the batch entries: a single one if all is well. Each set is a tuple of
    # heads, with a single entry if all are alike. Each head is a tuple of places among the tokens given to to_k, to_v.
    key_rows: tuple = None
    value_rows: tuple = None


@dataclass
class Record:
    attentions: list = field(default_factory=list)
    calls: list = field(default_factory=list)  # the U-Net calls, as the probe sent them
    between: list = field(default_factory=list)  # {"moment", "pass", "leftovers"}
    generations: list = field(default_factory=list)  # {"comments", "infotexts", "not_json", "attributes"}

    def fill(self, answer):
        sets = [tuple(tuple(tuple(head) for head in rows) for rows in row_set) for row_set in answer["row_sets"]]
        self.calls, self.between, self.generations = answer["calls"], answer["between"], answer["generations"]
        for call in self.calls:
            names = ("model", "iteration", "sampler", "call", "step", "steps", "sampling_step", "sigma", "todo")
            common = {name: call[name] for name in (*names, "sampling", "loop")}
            sizes = sorted({h * w for h, w in (layer["grid"] for layer in call["layers"])}, reverse=True)
            for layer in call["layers"]:
                (batch, queries), (_, keys), (_, values) = (layer[name] for name in ("to_q", "to_k", "to_v"))
                pairs = [("key_rows", "to_k_rows"), ("value_rows", "to_v_rows")]
                rows = {name: sets[layer[key]] for name, key in pairs if key in layer}
                self.attentions.append(
                    Attention(
                        **common,
                        **rows,
                        pass_name=call["pass"],
                        layer=layer["layer"],
                        depth=1 + sizes.index(layer["grid"][0] * layer["grid"][1]),
                        grid=tuple(layer["grid"]),
                        batch=batch,
                        heads=layer["heads"],
                        queries=queries,
                        keys=keys,
                        values=values,
                    )
                )

    def where(self, **wanted):
        """The self-attention calls with these attributes."""
        return [a for a in self.attentions if all(getattr(a, name) == value for name, value in wanted.items())]


# ---- the keys that the contract wants: written independently of the extension's code


def kept_grid(grid, factor):
    """The grid of keys that the contract wants. Factor 0 is told by that grid itself, (h, w)."""
    return factor if isinstance(factor, tuple) else tuple(max(1, int(size / factor)) for size in grid)


def kept_lines(size, kept, p):
    """The source rows (or columns) of the kept rows (or columns): floor((i + p) * H / h)."""
    return [math.floor((i + p) * size / kept) for i in range(kept)]


def kept_rows(grid, factor, p=(Fraction(1, 2), Fraction(1, 2))):
    """The source tokens that the contract wants as keys, in order."""
    lines = [kept_lines(size, kept, part) for size, kept, part in zip(grid, kept_grid(grid, factor), p, strict=True)]
    return tuple(row * grid[1] + column for row in lines[0] for column in lines[1])


def places_of(size, kept):
    """One p for each choice of rows that a moving grid has. They are (2j + 1) / (2m) where size = m * kept."""
    ends = sorted({Fraction(row * kept, size) % 1 for row in range(size)})
    return [(one + other) / 2 for one, other in zip(ends, [*ends[1:], 1], strict=True)]


@functools.cache
def moving_rows(grid, factor):
    """Source tokens -> the offset at which a moving grid takes exactly these: the numbers of its two places."""
    places = [places_of(size, kept) for size, kept in zip(grid, kept_grid(grid, factor), strict=True)]
    offsets = itertools.product(*map(range, map(len, places)))
    return {kept_rows(grid, factor, (places[0][i], places[1][j])): (i, j) for i, j in offsets}


def offsets_of(attention, factor, grids=1):
    """For each head, the offset of its keys and values. None if they match none that there are.

    grids: the number of whole grids that the keys are made from. All have to be downsampled alike.
    """
    wanted, size = moving_rows(attention.grid, factor), attention.grid[0] * attention.grid[1]
    if attention.key_rows != attention.value_rows or len(attention.key_rows) != 1:
        return None
    (rows,) = attention.key_rows
    found = []
    for head in rows if len(rows) > 1 else rows * attention.heads:
        n = len(head) // grids
        parts = [tuple(token - i * size for token in head[i * n : (i + 1) * n]) for i in range(grids)]
        found.append({wanted.get(part) for part in parts})
    return [one.pop() for one in found] if all(len(one) == 1 and None not in one for one in found) else None


class Offsets(dict):
    """(sampling, step) -> (places, heads) -> for each head, the offset that all self-attentions have in common.

    The places are m, where both sides of the grid are m times the kept ones. Grids of other sizes are each for itself.
    """

    def add(self, attention, factor, step, grids=1):
        """Add one self-attention. Returns a text that says what is wrong with it, or None."""
        found = offsets_of(attention, factor, grids)
        if found is None:
            return "keys from the wrong places"
        of_step = self.setdefault((attention.sampling, step), {})
        kept = kept_grid(attention.grid, factor)
        ratios = {Fraction(size, part) for size, part in zip(attention.grid, kept, strict=True)}
        m = next(iter(ratios)) if len(ratios) == 1 else None
        kind = m if m and m.denominator == 1 else (attention.grid, kept), attention.heads
        if of_step.setdefault(kind, found) != found:
            return "another offset than in the same step before"
        return None

    def of_sampling(self, sampling, places):
        """The offsets of each step of a sampling, as a tuple of heads."""
        found = {}
        for (number, step), kinds in self.items():
            for (m, _), heads in kinds.items():
                if number == sampling and m == places:
                    found[step] = tuple(heads)
        return found


def assert_keys(record, factor_of, moving=True, step_of=lambda attention: attention.step):
    """Every recorded self-attention has the keys that the contract wants for factor_of(attention), 1 meaning all.

    step_of: the sampling step of a self-attention. A moving grid stays in place within a step.
    Returns the Offsets of a moving grid. Their order is not judged here.
    """
    assert record.attentions
    offsets = Offsets()
    for a in record.attentions:
        factor = factor_of(a)
        assert a.queries == a.grid[0] * a.grid[1], a
        assert a.keys == a.values == math.prod(kept_grid(a.grid, factor)), a
        if a.key_rows is None:
            continue
        if factor == 1 or not moving:
            assert a.key_rows == a.value_rows == ((kept_rows(a.grid, factor),),), a
        else:
            wrong = offsets.add(a, factor, step_of(a))
            assert not wrong, f"{wrong}: {a}"
    return offsets


def changes(before, after):
    """The differences between two `leftovers`, as lines of text. Empty if there are none."""
    places = sorted(before.keys() | after.keys())
    return [f"{p}: {before.get(p)} -> {after.get(p)}" for p in places if before.get(p) != after.get(p)]


def encode(image):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decode(text):
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))
