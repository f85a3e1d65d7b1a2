"""Jobs: the request, and the loop that makes images from it. Here an image is just its latent."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from modules import paths, scripts, sd_models, sd_samplers, shared
from modules.infotext_utils import create_infotext
from modules.shared import state

opt_f = 8


@dataclass(repr=False)
class StableDiffusionProcessing:
    prompt: str = "a"
    negative_prompt: str = ""
    sd_model: Any = None
    scheduler: str | None = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    seed: int = 1
    steps: int = 4
    width: int = 32
    height: int = 32
    batch_size: int = 1
    n_iter: int = 1
    cfg_scale: float = 2.0
    sampler_name: str = "Euler"
    denoising_strength: float = 0.75
    refiner: Any = None
    refiner_switch_at: float = 0.5
    extra_generation_params: dict = field(default_factory=dict)
    comments: dict = field(default_factory=dict, init=False)
    sampler: Any = field(default=None, init=False)
    scripts: Any = field(default=None, init=False)
    script_args: Any = field(default=(), init=False)
    is_hr_pass: bool = field(default=False, init=False)
    is_api: bool = field(default=False, init=False)

    def comment(self, text):
        self.comments[text] = 1

    def noise(self, seeds, size):
        return torch.stack([torch.randn(4, *size, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def conds(self, seeds):
        return [shared.sd_model.embed(prompt, len(seeds)) for prompt in (self.prompt, "")]

    def before_sampling(self, x, noise, conds):
        if self.scripts is not None:
            self.scripts.process_before_every_sampling(self, x=x, noise=noise, c=conds[0], uc=conds[1])

    def init(self):
        pass

    def close(self):
        self.sampler = None


@dataclass(repr=False)
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_second_pass_steps: int = 0
    hr_sampler_name: str | None = None
    hr_checkpoint: Any = None
    firstpass_image: Any = None
    truncate_x: int = field(default=0, init=False)
    truncate_y: int = field(default=0, init=False)

    def calculate_target_resolution(self):
        """The size of the hires pass, by the sides or by one of them, and what is cut off afterwards."""
        if shared.opts.use_old_hires_fix_width_height:
            self.hr_resize_x, self.hr_resize_y = self.width, self.height
            self.width, self.height = self.width // 2, self.height // 2
        if not (self.hr_resize_x or self.hr_resize_y):
            scale = self.hr_scale
        else:
            scale = max(self.hr_resize_x / self.width, self.hr_resize_y / self.height)
        self.hr_upscale_to_x, self.hr_upscale_to_y = int(self.width * scale), int(self.height * scale)
        if self.hr_resize_x and self.hr_resize_y:
            self.truncate_x = (self.hr_upscale_to_x - self.hr_resize_x) // opt_f
            self.truncate_y = (self.hr_upscale_to_y - self.hr_resize_y) // opt_f

    def sample(self, seeds):
        self.sampler = sd_samplers.create_sampler(self.sampler_name)
        if self.firstpass_image is not None and self.enable_hr:
            samples = self.firstpass_image
        else:
            x, conds = self.noise(seeds, (self.height // 8, self.width // 8)), self.conds(seeds)
            self.before_sampling(x, x, conds)
            samples = self.sampler.sample(self, x, *conds)
            if not self.enable_hr:
                return samples
        sd_models.load(self.hr_checkpoint)
        return self.sample_hr_pass(samples, seeds)

    def sample_hr_pass(self, samples, seeds):
        if state.interrupted:
            return samples
        self.is_hr_pass = True
        self.sampler = sd_samplers.create_sampler(self.hr_sampler_name or self.sampler_name)
        size = [int(side * self.hr_scale) // 8 for side in (self.height, self.width)]
        samples = torch.nn.functional.interpolate(samples, size=size, mode="bilinear")
        noise, conds = self.noise(seeds, size), self.conds(seeds)
        if self.scripts is not None:
            self.scripts.before_hr(self)
        self.before_sampling(samples, noise, conds)
        samples = self.sampler.sample_img2img(
            self, samples, noise, *conds, steps=self.hr_second_pass_steps or self.steps
        )
        self.sampler = None
        self.is_hr_pass = False
        return samples


@dataclass(repr=False)
class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    def init(self):
        self.sampler = sd_samplers.create_sampler(self.sampler_name)
        self.init_latent = self.noise([1000] * self.batch_size, (self.height // 8, self.width // 8))

    def sample(self, seeds):
        noise, conds = self.noise(seeds, self.init_latent.shape[2:]), self.conds(seeds)
        self.before_sampling(self.init_latent, noise, conds)
        return self.sampler.sample_img2img(self, self.init_latent, noise, *conds)


class Processed:
    def __init__(self, p, images, infotexts):
        self.images = images
        self.infotexts = infotexts
        self.info = infotexts[0]
        self.index_of_first_image = 0
        self.comments = "".join(f"{comment}\n" for comment in p.comments)
        self.extra_generation_params = p.extra_generation_params


def after_sampling(p, image):
    if p.scripts is None:
        return image
    args = scripts.PostprocessImageArgs(image)
    p.scripts.postprocess_image(p, args)
    p.scripts.postprocess_maskoverlay(p, scripts.PostProcessMaskOverlayArgs(0, None, None))
    save_image(args.image)
    return args.image


def save_image(image):
    pass  # the host does not swallow its errors


@torch.no_grad()
def process_images(p):
    if p.scripts is not None:
        p.scripts.before_process(p)
    sd_models.load()
    if p.scripts is not None:
        p.scripts.process(p)
    images, infotexts = [], []
    (Path(paths.data_path) / "params.txt").write_text(create_infotext(p), encoding="utf-8")
    p.init()
    for n in range(p.n_iter):
        state.skipped = False
        if state.interrupted:
            break
        sd_models.load()
        first = n * p.batch_size
        seeds = [p.seed + i for i in range(first, first + p.batch_size)]
        if p.scripts is not None:
            p.scripts.before_process_batch(p, batch_number=n, seeds=seeds)
            p.scripts.process_batch(p, batch_number=n, seeds=seeds)
        if "<lora:nope" in p.prompt:
            p.comment("Networks not found: nope")
        made = list(p.sample(seeds))
        if p.scripts is not None:
            p.scripts.postprocess_batch(p, images=made, batch_number=n)
            args = scripts.PostprocessBatchListArgs(made)
            p.scripts.postprocess_batch_list(p, args, batch_number=n)
            made = args.images
        for image in made:
            images.append(after_sampling(p, image))
            infotexts.append(create_infotext(p))
    result = Processed(p, images, infotexts or [create_infotext(p)])
    if p.scripts is not None:
        p.scripts.postprocess(p, result)
    return result
