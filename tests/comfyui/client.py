"""Build workflows, let ComfyUI run them over its HTTP API, and read what the probe has seen."""

import io
import itertools
import json
import time
import uuid

import numpy as np
import requests
from PIL import Image

SIZE = {"width": 128, "height": 64}  # small, not square, so that a mix-up of height and width shows, and quick
SETTINGS = {"factor": 2.0, "max_depth": 1, "start": 0.0, "end": 1.0, "deeper_factor": 0.0, "moving": False}


class Refused(Exception):
    """ComfyUI has refused a workflow before it ran."""


class Failed(Exception):
    """A node of a workflow has raised an exception."""


class Workflow:
    """Nodes by their number. `add` returns what links to a node's first output, and links[1], ... to its others."""

    def __init__(self):
        self.nodes = {}
        self._numbers = itertools.count(1)

    def add(self, kind, /, **inputs):
        number = str(next(self._numbers))
        self.nodes[number] = {"class_type": kind, "inputs": inputs}
        return Link(number)

    def todo(self, model, **settings):
        return self.add("ToDoTokenDownsampling", model=model, **{**SETTINGS, **settings})

    def watched(self, checkpoint="tiny"):
        """The model, CLIP and VAE of a checkpoint; all samplings with the model are recorded."""
        loaded = self.add("CheckpointLoaderSimple", ckpt_name=f"{checkpoint}.safetensors")
        return self.add("ProbeWatch", model=loaded, salt=uuid.uuid4().hex), loaded[1], loaded[2]

    def prompts(self, clip):
        return [self.add("CLIPTextEncode", clip=clip, text=text) for text in ("a red apple", "blurry")]

    def sample(self, model, positive, negative, latent=None, **inputs):
        """A KSampler, of an empty latent unless given one. Its noise comes from the seed 1, and cfg is 5."""
        latent = latent or self.add("EmptyLatentImage", **SIZE, batch_size=1)
        common = {"seed": 1, "steps": 4, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        links = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
        return self.add("KSampler", **{**common, **links, **inputs})

    def report(self, model, latent):
        return self.add("ProbeReport", model=model, latent=latent)


class Link(list):
    """[number of the node, 0]: its first output, as the API writes it. link[1] and so on are its other outputs."""

    def __init__(self, number, output=0):
        super().__init__([number, output])
        self.number = number

    def __getitem__(self, place):
        return Link(self.number, place)


class Client:
    def __init__(self, url):
        self.url = url

    def get(self, path, **query):
        answer = requests.get(self.url + path, params=query, timeout=60)
        answer.raise_for_status()
        return answer

    def queue(self, nodes):
        """Ask for a workflow. Returns its number, or raises `Refused` with ComfyUI's words."""
        answer = requests.post(f"{self.url}/prompt", json={"prompt": nodes}, timeout=60)
        if not answer.ok:
            raise Refused(answer.text)
        return answer.json()["prompt_id"]

    def run(self, workflow, timeout=300):
        """Run a workflow: node -> its outputs for the page. Raises `Failed` with the exception of a node."""
        nodes = getattr(workflow, "nodes", workflow)
        number = self.queue(nodes)
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            history = self.get(f"/history/{number}").json()
            if number in history and history[number]["status"]["completed"] is not None:
                entry = history[number]
                if entry["status"]["status_str"] != "success":
                    raise Failed(json.dumps(entry["status"]["messages"][-1]))
                return entry["outputs"]
            time.sleep(0.1)
        raise TimeoutError(f"no answer within {timeout} s")

    def reports(self, workflow):
        """Run a workflow, and return what its ProbeReport nodes say, in the order of their numbers."""
        outputs = self.run(workflow)
        return [json.loads(outputs[n]["report"][0]) for n in sorted(outputs, key=int) if "report" in outputs[n]]

    @staticmethod
    def report_in(outputs):
        """What the one ProbeReport node of a run says."""
        (report,) = (json.loads(output["report"][0]) for output in outputs.values() if "report" in output)
        return report

    def pictures(self, outputs):
        """The pictures that a run has made, as arrays."""
        found = [image for output in outputs.values() for image in output.get("images", ())]
        return [np.array(Image.open(io.BytesIO(self.get("/view", **image).content))) for image in found]
