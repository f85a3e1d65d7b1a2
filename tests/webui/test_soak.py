"""Hundreds of generations on one WebUI, with everything at random: settings, sizes, samplers, neighbours and faults.

These tests have their own command, `python dev.py soak`.
"""

import random
import time

import numpy as np
import pytest

from tests.webui.client import RequestFailed
from tests.webui.compatibility import Run, image_of
from tests.webui.extensions import EXTENSIONS
from tests.webui.neighbours import NEIGHBOURS

pytestmark = pytest.mark.slow

MODELS = ["tiny", "tinyb", "tinyinp", "tiny2v", "tinyxl"]
BAD = [{"factor": 9}, {"max_depth": 0}, {"passes": "second"}, {"start": 0.6, "end": 0.5}, {"faktor": 2}, {"moving": 1}]


def draw_settings(dice):
    settings = {
        "enabled": dice.random() < 0.9,
        "factor": dice.choice([0, 1, 1.5, 2, 3, 8]),
        "max_depth": dice.randint(1, 4),
        "deeper_factor": dice.choice([0, 1, 2, 2.5]),
        "passes": dice.choice(["both", "first", "hires"]),
        "hires_factor": dice.choice([0, 0, 1, 3]),
        "moving": dice.random() < 0.7,
    }
    settings["start"], settings["end"] = sorted(dice.choice([0, 0.25, 0.5, 0.8, 1]) for _ in range(2))
    return settings


def draw_request(dice, samplers):
    request = {
        "width": 8 * dice.randint(8, 36),
        "height": 8 * dice.randint(8, 36),
        "steps": dice.randint(1, 6),
        "sampler_name": dice.choice(samplers),
        "batch_size": dice.choice([1, 1, 2]),
        "n_iter": dice.choice([1, 1, 2]),
        "cfg_scale": dice.choice([1, 7]),
        "seed": dice.randint(0, 99),
    }
    if dice.random() < 0.25:
        request |= {"enable_hr": True, "hr_scale": dice.choice([1.5, 2]), "hr_upscaler": "Latent"}
        request |= {"denoising_strength": 0.6, "width": 128, "height": 64}
    return request


def draw_fault(dice):
    return {
        "call": dice.randint(0, 3),
        "pass_name": dice.choice(["first", "first", "hires"]),
        "action": dice.choice(["raise", "interrupt", "skip"]),
        "inside": dice.random() < 0.5,
    }


def of_ours(client):
    """All leftovers of ToDo's code, found by its modules' names, because another extension calls itself ToDo, too."""
    return [
        f"{place}: {text}" for place, text in client.leftovers().items() if "todo_lib." in text or "todo.py." in text
    ]


class Soak:
    def __init__(self, server, dice):
        self.server, self.client, self.dice = server, server.client, dice
        self.with_todo = True
        self.samplers = [found["name"] for found in self.client.get("/sdapi/v1/samplers")]
        self.counts = dict.fromkeys(["made", "stopped", "refused", "raised", "refused without ToDo too"], 0)
        here = [n for n in [*NEIGHBOURS, *EXTENSIONS] if not n.repository or n.repository in server.extensions]
        here = [n for n in here if n.method != "img2img_batch"]  # the API lacks it
        self.neighbours = {model: [n for n in here if model in n.models] for model in MODELS}

    def generate(self):
        """Run one random generation. An error must be one that was asked for, or occur without ToDo, too."""
        dice = self.dice
        model = dice.choice(MODELS)
        neighbour = dice.choice(self.neighbours[model] or NEIGHBOURS[:1])
        run = Run(self.client, model, image_of(self.client, model), self.server.host)
        asked = neighbour.request(run) if callable(neighbour.request) else neighbour.request
        if neighbour.ready and neighbour.ready(run):
            return
        settings = draw_settings(dice)  # drawn even if unused, so that the draws are the same with ToDo and without
        if neighbour.repository:
            # Other people's extensions only get the requests of their cells in the table. After a failure many of them
            # leave the model broken for all that follows.
            request, bad, fault = {**asked, "seed": dice.randint(0, 99)}, False, None
        else:
            request = {**draw_request(dice, self.samplers), **asked}
            bad = dice.random() < 0.15
            if bad:
                settings |= dice.choice(BAD)
            fault = draw_fault(dice) if dice.random() < 0.4 else None
        if not self.with_todo:
            settings, bad = None, False
        with self.client.options(**neighbour.options):
            try:
                if fault:
                    with self.client.fault(**fault) as armed:
                        self.post(model, request, settings)
                    self.counts["stopped"] += bool(armed.fired)
                else:
                    self.post(model, request, settings)
            except RequestFailed as error:
                self.account_for(error, bad, model, request, settings)
            else:
                assert not bad or not settings["enabled"], f"made with {settings}"
                self.counts["made"] += 1

    def post(self, model, request, settings):
        request = dict(request)
        if "image" in request:
            return self.client.img2img(request.pop("image"), request.pop("mask", None), settings, model, **request)
        return self.client.txt2img(settings, model, **request)

    def account_for(self, error, bad, model, request, settings):
        if bad and error.status == 422 and "ToDo: " in error.text:
            self.counts["refused"] += 1
        elif "probe: injected fault" in error.text:
            self.counts["raised"] += 1
        else:
            try:
                self.post(model, request, None)
            except RequestFailed:
                self.counts["refused without ToDo too"] += 1
            else:
                raise error

    def at_rest(self):
        """The image without ToDo, and the memory in use after it."""
        image = self.client.txt2img(None, "tiny", width=256, height=256, seed=5).image
        return image, self.client.get("/probe/memory")


def test_soak(crowd, pytestconfig):
    """Run half of the generations, the same without ToDo, and the same with it again.

    In the first round models and neighbours make everything that they keep. Memory grows a little with every
    generation even without ToDo, and some neighbours keep tensors. So the growth of the third round is compared with
    that of the second.
    """
    half, seed = pytestconfig.getoption("soak") // 2, random.randrange(10**6)
    print(f"seed {seed}")
    soak = Soak(crowd, random.Random())
    image, _ = soak.at_rest()
    begin, memory = time.monotonic(), []
    for soak.with_todo in (True, False, True):
        soak.dice.seed(seed)
        for i in range(half):
            soak.generate()
            if (i + 1) % 10 == 0:
                which = "with ToDo" if soak.with_todo else "without ToDo"
                print(f"{which}, {i + 1} of {half}, {time.monotonic() - begin:.0f} s: {soak.counts}", flush=True)
                assert of_ours(crowd.client) == []
        last, found = soak.at_rest()
        memory.append(found)
        print(f"memory {found}", flush=True)
        assert np.array_equal(last, image)
    first, without, end = memory
    assert end["ours"] == first["ours"]
    for what, tolerance in [("tensors", 0.02), ("resident", 0.05)]:
        growth, others = end[what] - without[what], without[what] - first[what]
        assert growth <= others + tolerance * first[what], what
