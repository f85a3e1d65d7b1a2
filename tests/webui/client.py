"""Talk to a WebUI over HTTP: generate, set options, and ask the probe extension what happened in there."""

import base64
import contextlib
import io
import json
from dataclasses import dataclass, field
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
        """Generate. `todo` is what goes to alwayson_scripts.ToDo.args: a list, or a dictionary in place of one."""
        return self._generate("txt2img", todo, model, request)

    def img2img(self, image, mask=None, todo=None, model="tiny", **request):
        """The same from a picture (array or PIL image) and, for inpainting, a mask of which white is repainted."""
        request["init_images"] = [encode(image)]
        if mask is not None:
            request["mask"] = encode(mask)
        return self._generate("img2img", todo, model, request)

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
            # In each request, so that no test depends on what another one has loaded.
            settings["sd_model_checkpoint"] = model
        body = {**REQUEST, **request, "alwayson_scripts": scripts, "override_settings": settings}
        return Result(self.post(f"/sdapi/v1/{kind}", body))

    def plot(self, *axes):
        """What asks for an X/Y/Z plot with these (axis label, values) pairs, values as text."""
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
        """Have these WebUI options for a while."""
        before = self.get("/probe/options", names=",".join(values)) if values else {}
        self.post("/sdapi/v1/options", values)
        try:
            yield
        finally:
            self.post("/sdapi/v1/options", before)

    # ---- probe

    @contextlib.contextmanager
    def recording(self, indices=False, fingerprints=False, controls=False):
        """Record what runs meanwhile: yields a Record that is filled at the end, after an exception too.

        `indices`: also find which query token each key and value token is a copy of.
        `fingerprints`: also take `leftovers` before the hires pass and after the sampling of each batch.
        `controls`: also look into ControlNets; their layers' names begin with "control".
        """
        record = Record()
        self.post("/probe/start", {"indices": indices, "fingerprints": fingerprints, "controls": controls})
        try:
            yield record
        finally:
            record.fill(self.get("/probe/record"))

    def leftovers(self):
        """All that a patch could have left on models and classes: text by place, to be compared with `changes`."""
        return self.get("/probe/leftovers")

    @contextlib.contextmanager
    def fault(self, call, pass_name="first", action="raise", inside=False):
        """Let U-Net call number `call` (from 0) of the next generation's pass raise, or interrupt or skip it.

        `inside`: in the middle of the U-Net's first self-attention, not at the start of the U-Net. Yields an object
        whose `fired` is set at the end. A fault that has not fired when a generation ends is forgotten.
        """
        self.post("/probe/fault", {"call": call, "pass": pass_name, "action": action, "inside": inside})
        state = SimpleNamespace(fired=None)
        try:
            yield state
        finally:
            state.fired = self.get("/probe/fault")["fired"]
            self.post("/probe/reset_fault")


class Result:
    """What a generation returned: `images` (RGB arrays), `info` (the API's) and `infotext` (of the first picture)."""

    def __init__(self, answer):
        self.images = [decode(image) for image in answer["images"]]
        self.info = json.loads(answer["info"])
        self.infotext = next(iter(self.info["infotexts"]), "")  # an interrupted script may make no picture
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
    todo: bool  # whether ToDo's script is among those of this generation: not in all that others nest into one
    layer: str
    depth: int  # by the grids that this U-Net call had
    grid: tuple  # (H, W)
    batch: int
    queries: int  # tokens that came out of to_q, to_k, to_v
    keys: int
    values: int
    key_rows: tuple = None  # the different lists of source tokens among the batch entries: one list if all is well
    value_rows: tuple = None


@dataclass
class Record:
    attentions: list = field(default_factory=list)
    calls: list = field(default_factory=list)  # the U-Net calls, as the probe sent them
    between: list = field(default_factory=list)  # {"moment", "pass", "leftovers"}
    generations: list = field(default_factory=list)  # {"comments", "infotexts", "not_json", "attributes"}

    def fill(self, answer):
        sets = [tuple(tuple(rows) for rows in row_set) for row_set in answer["row_sets"]]
        self.calls, self.between, self.generations = answer["calls"], answer["between"], answer["generations"]
        for call in self.calls:
            names = ("model", "iteration", "sampler", "call", "step", "steps", "sampling_step", "sigma", "todo")
            common = {name: call[name] for name in names}
            sizes = sorted({h * w for h, w in (layer["grid"] for layer in call["layers"])}, reverse=True)
            for layer in call["layers"]:
                (batch, queries), (_, keys), (_, values) = (layer[name] for name in ("to_q", "to_k", "to_v"))
                rows = {name: sets[layer[name]] for name in ("key_rows", "value_rows") if name in layer}
                self.attentions.append(
                    Attention(
                        **common,
                        **rows,
                        pass_name=call["pass"],
                        layer=layer["layer"],
                        depth=1 + sizes.index(layer["grid"][0] * layer["grid"][1]),
                        grid=tuple(layer["grid"]),
                        batch=batch,
                        queries=queries,
                        keys=keys,
                        values=values,
                    )
                )

    def where(self, **wanted):
        """The self-attention calls with these attributes."""
        return [a for a in self.attentions if all(getattr(a, name) == value for name, value in wanted.items())]


def kept_grid(grid, factor):
    """The grid of keys that the contract wants."""
    return tuple(max(1, int(size / factor)) for size in grid)


def kept_rows(grid, factor):
    """The source tokens that the contract wants as keys, in order: written apart from the extension's own code."""
    (height, width), (h, w) = grid, kept_grid(grid, factor)
    return tuple(
        ((2 * i + 1) * height // (2 * h)) * width + (2 * j + 1) * width // (2 * w) for i in range(h) for j in range(w)
    )


def assert_keys(record, factor_of):
    """Every recorded self-attention has the keys that the contract wants for factor_of(attention), 1 meaning all."""
    assert record.attentions
    for a in record.attentions:
        rows = kept_rows(a.grid, factor_of(a))
        assert a.queries == a.grid[0] * a.grid[1], a
        assert a.keys == a.values == len(rows), a
        if a.key_rows is not None:
            assert a.key_rows == a.value_rows == (rows,), a


def changes(before, after):
    """What differs between two `leftovers`, as lines of text; empty if nothing does."""
    places = sorted(before.keys() | after.keys())
    return [f"{p}: {before.get(p)} -> {after.get(p)}" for p in places if before.get(p) != after.get(p)]


def encode(image):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decode(text):
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))
