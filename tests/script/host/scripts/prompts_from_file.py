"""A job for each of several prompts. The result is built from the job itself, although only copies of it were run."""

from copy import copy

from modules import scripts
from modules.processing import Processed, process_images


class Script(scripts.Script):
    def title(self):
        return "Prompts from file or textbox"


def run(p, prompts):
    images, infotexts = [], []
    for prompt in prompts:
        copy_p = copy(p)
        copy_p.prompt = prompt
        done = process_images(copy_p)
        images += done.images
        infotexts += done.infotexts
    return Processed(p, images, infotexts)
