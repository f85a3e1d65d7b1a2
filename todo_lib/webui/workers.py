"""Images that other machines made: whether their infotexts say that ToDo took part."""

from __future__ import annotations

import logging
from typing import Any

from modules.infotext_utils import parse_generation_parameters

logger = logging.getLogger("ToDo")

WORKER = "Worker Label"
"""The key that stable-diffusion-webui-distributed writes into the infotext of an image that another machine made."""


def check(processed: Any, wanted: dict[str, str]) -> None:
    """Say under the image and in the log if other machines made some of these images without ToDo.

    processed: the host's result of a generation.
    wanted: the infotext that each image should have.
    """
    texts = processed.infotexts[processed.index_of_first_image :]  # a grid's infotext stands before those of its images
    found = [parse_generation_parameters(text, []) for text in texts]
    without = sum(WORKER in params and not wanted.items() <= params.items() for params in found)
    if without:
        settings = ", ".join(f"{key}: {value}" for key, value in wanted.items())
        message = (
            f"ToDo: another machine made {without} of {len(found)} images without it: their infotext lacks "
            f"'{settings}'. Is ToDo installed there?"
        )
        processed.comments += f"{message}\n"
        logger.warning(message)
