"""The trained model in the WebUI draws what the prompt says, with ToDo and without."""

import pytest
import torch

from lab.model import card
from lab.model.emoji import LARGE_SIZE, install
from tests.webui.client import Client
from tests.webui.hosts import A1111
from tests.webui.server import WebUI

pytestmark = pytest.mark.slow

PROMPT = "red heart"
REQUEST = {"prompt": PROMPT, "width": LARGE_SIZE, "height": LARGE_SIZE, "steps": 8, "cfg_scale": 2, "model": "emoji"}
SETTINGS = {"sd_model_checkpoint": "emoji.safetensors"}
TODO = {"enabled": True, "factor": 2, "max_depth": 2}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of a WebUI that has this model and no other."""
    models = tmp_path_factory.mktemp("models")
    install(models)
    server = WebUI(A1111, tmp_path_factory.mktemp("webui") / "data", models, settings=SETTINGS)
    server.start()
    yield Client(server.url)
    server.stop()


@pytest.mark.parametrize("sampler", ["DDIM", "Euler"])
def test_dense_and_downsampled_images_are_nearest_to_that_of_the_prompt(client, sampler):
    dense = client.txt2img(**REQUEST, sampler_name=sampler).image
    with client.recording() as record:
        downsampled = client.txt2img(TODO, **REQUEST, sampler_name=sampler).image
    for image in (dense, downsampled):
        assert image.shape == (LARGE_SIZE, LARGE_SIZE, 3)
        assert card.nearest(torch.from_numpy(image)) == PROMPT
    assert (dense != downsampled).any()
    assert "[depth 1" in record.generations[0]["comments"]
    assert {(a.queries, a.keys) for a in record.where(depth=1)} == {(4096, 1024)}
