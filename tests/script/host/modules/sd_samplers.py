"""Samplers: how often each calls the model in a step, and which arguments tell it the schedule."""

import inspect
import itertools
from collections import namedtuple

import torch
from modules import script_callbacks, shared
from modules.sd_samplers_common import InterruptedException, Sampler
from modules.shared import opts, state
from tqdm.auto import trange

# ---- the model as samplers see it


class SigmaDenoiser:
    def __init__(self, model):
        self.inner_model = model
        self.sigmas = ((1 - model.alphas_cumprod) / model.alphas_cumprod) ** 0.5
        self.quantize = opts.enable_quantization

    def sigma_to_t(self, sigma):
        logs, log = self.sigmas.log(), sigma.log()
        if self.quantize:
            return (log[:, None] - logs).abs().argmin(1)
        low = (torch.searchsorted(logs, log) - 1).clamp(0, len(logs) - 2)
        return low + ((log - logs[low]) / (logs[low + 1] - logs[low])).clamp(0, 1)

    def get_sigmas(self, steps):
        t = torch.linspace(999, 0, steps).round().long()
        return torch.cat([self.sigmas[t], torch.zeros(1)])

    def __call__(self, x, sigma, cond):
        wide = sigma[:, None, None, None]
        return x - wide * self.inner_model.apply_model(x / (wide**2 + 1) ** 0.5, self.sigma_to_t(sigma), cond)


class TimestepDenoiser:
    def __init__(self, model):
        self.inner_model = model

    def __call__(self, x, t, cond):
        return self.inner_model.apply_model(x, t, cond)


class CFGDenoiser:
    def __init__(self, sampler, wrap):
        self.sampler = sampler
        self.wrap = wrap
        self.model_wrap = None
        self.p = None
        self.steps = self.total_steps = None
        self.step = 0

    @property
    def inner_model(self):
        if self.model_wrap is None:
            self.model_wrap = self.wrap(shared.sd_model)
        return self.model_wrap

    def switch_to_refiner(self):
        p = self.p
        if p.refiner is None or shared.sd_model is p.refiner or self.step / self.total_steps < p.refiner_switch_at:
            return
        shared.sd_model = p.refiner
        self.model_wrap = None

    def __call__(self, x, sigma, cond, uncond, cond_scale):
        if state.interrupted or state.skipped:
            raise InterruptedException
        self.switch_to_refiner()
        params = script_callbacks.CFGDenoiserParams(
            torch.cat([x, x]), torch.cat([sigma, sigma]), state.sampling_step, state.sampling_steps, self
        )
        script_callbacks.cfg_denoiser_callback(params)
        conds = torch.cat([cond, uncond])
        size = len(conds) if opts.batch_cond_uncond else len(x)
        parts = zip(params.x.split(size), params.sigma.split(size), conds.split(size), strict=True)
        denoised = torch.cat([self.inner_model(*part) for part in parts])
        told = state.sampling_step, state.sampling_steps
        if not shared.is_forge:
            script_callbacks.cfg_denoised_callback(
                script_callbacks.CFGDenoisedParams(denoised, *told, self.inner_model)
            )
        good, bad = denoised.chunk(2)
        self.sampler.last_latent = good
        after = script_callbacks.AfterCFGCallbackParams(bad + (good - bad) * cond_scale, *told)
        script_callbacks.cfg_after_cfg_callback(after)
        self.step += 1
        return after.x


# ---- sampling


def _calls(model, x, extra_args):
    """The model as a function of x and one sigma or timestep."""
    return lambda x, t: model(x, torch.as_tensor(t).float() * torch.ones(len(x)), **extra_args)


def euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    denoise = _calls(model, x, extra_args)
    for i in range(len(sigmas) - 1):
        denoised = denoise(x, sigmas[i])
        callback({"i": i})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def heun(model, x, sigmas, extra_args=None, callback=None, disable=None, s_churn=0.0):
    denoise = _calls(model, x, extra_args)
    for i in range(len(sigmas) - 1):
        slope = (x - denoise(x, sigmas[i])) / sigmas[i]
        callback({"i": i})
        ahead = x + slope * (sigmas[i + 1] - sigmas[i])
        if sigmas[i + 1] > 0:
            slope = (slope + (ahead - denoise(ahead, sigmas[i + 1])) / sigmas[i + 1]) / 2
            ahead = x + slope * (sigmas[i + 1] - sigmas[i])
        x = ahead
    return x


def heunpp2(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Each step makes as many calls as there are noise levels left, at most three. The host is told of none."""
    denoise = _calls(model, x, extra_args)
    for i in trange(len(sigmas) - 1, disable=True):
        ahead = x
        slopes = []
        for level, following in zip(sigmas[i : i + 3], sigmas[i + 1 : i + 4], strict=False):
            slopes.append((ahead - denoise(ahead, level)) / level)
            if len(slopes) == 1:
                callback({"i": i})
            ahead = ahead + slopes[-1] * (following - level)
        x = x + sum(slopes) / len(slopes) * (sigmas[i + 1] - sigmas[i])
    return x


def intern(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Two calls a step, one in the last. The first step stands alone, and the others' loop counts from 0 again."""
    denoise = _calls(model, x, extra_args)
    x = denoise(denoise(x, sigmas[0]), sigmas[0])
    for i in trange(len(sigmas) - 2, disable=True):
        x = denoise(x, sigmas[i + 1])
        callback({"i": i})
        x = denoise(x, sigmas[i + 1]) if sigmas[i + 2] > 0 else x
    return x


def res(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Two calls a step, one in the last, in a loop over pairs of noise levels. A step is reported when it is over."""
    denoise = _calls(model, x, extra_args)
    i = 0
    for i, (level, following) in enumerate(itertools.pairwise(sigmas[:-1])):
        slope = (x - denoise(x, level)) / level
        ahead = x + slope * (following - level) / 2
        slope = (ahead - denoise(ahead, (level + following) / 2)) / level
        x = x + slope * (following - level)
        callback({"i": i})
    x = denoise(x, sigmas[-2])
    callback({"i": i})
    return x


def dpm_fast(model, x, sigma_min, sigma_max, n, extra_args=None, callback=None, disable=None):
    """n calls in groups of three. Only the first of a group is reported."""
    denoise = _calls(model, x, extra_args)
    sigmas = torch.linspace(float(sigma_max) ** 0.5, float(sigma_min) ** 0.5, n + 1) ** 2
    for i in range(n):
        denoised = denoise(x, sigmas[i])
        if i % 3 == 0:
            callback({"i": i // 3})
        x = denoised + (x - denoised) * (sigmas[i + 1] / sigmas[i])
    return x


def dpm_adaptive(model, x, sigma_min, sigma_max, extra_args=None, callback=None, disable=None):
    """Wide steps of three calls in -log(sigma), from sigma_max to sigma_min. The second step fails."""
    denoise = _calls(model, x, extra_args)
    s, end = -torch.as_tensor(sigma_max).log(), -torch.as_tensor(sigma_min).log()
    width, steps = 2, 0
    while s < end - 1e-5:
        t = torch.minimum(end, s + width)
        ahead = x
        for third in range(3):
            a, b = (torch.exp(-(s + (t - s) * part / 3)) for part in (third, third + 1))
            denoised = denoise(ahead, a)
            ahead = denoised + (ahead - denoised) * (b / a)
        steps += 1
        width = width / 2 if steps == 2 else width * 2
        if steps != 2:
            x, s = ahead, t
        callback({"i": steps - 1})
    return x


def _ddim_step(alphas, x, eps, t, t_next):
    a, b = alphas[int(t)], alphas[int(t_next)]
    return b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps


def ddim(model, x, timesteps, extra_args=None, callback=None, disable=None, eta=0.0):
    predict = _calls(model, x, extra_args)
    alphas = model.inner_model.inner_model.alphas_cumprod
    for i, index in enumerate(range(len(timesteps) - 1, 0, -1)):
        eps = predict(x, timesteps[index])
        x = _ddim_step(alphas, x, eps, timesteps[index], timesteps[index - 1])
        callback({"i": i})
    return x


def plms(model, x, timesteps, extra_args=None, callback=None, disable=None):
    predict = _calls(model, x, extra_args)
    alphas = model.inner_model.inner_model.alphas_cumprod
    before = None
    for i, index in enumerate(range(len(timesteps) - 1, 0, -1)):
        t, t_next = timesteps[index], timesteps[index - 1]
        eps = predict(x, t)
        if before is None:
            mixed = (eps + predict(_ddim_step(alphas, x, eps, t, t_next), t_next)) / 2
        else:
            mixed = (3 * eps - before) / 2
        before = eps
        x = _ddim_step(alphas, x, mixed, t, t_next)
        callback({"i": i})
    return x


def unipc(model, x, timesteps, extra_args=None, callback=None, disable=None, is_img2img=False):
    """As many steps as timesteps. Its own grid leads from the start (in img2img the last timestep) to the end."""
    predict = _calls(model, x, extra_args)
    alphas = model.inner_model.inner_model.alphas_cumprod
    grid = torch.linspace(float(timesteps[-1]) if is_img2img else 999, 0, len(timesteps) + 1)
    for i in range(len(timesteps)):
        x = _ddim_step(alphas, x, predict(x, grid[i]), grid[i], grid[i + 1])
        callback({"i": i})
    return x


class SamplerConfig(namedtuple("SamplerConfig", "name func uses options")):
    def total_steps(self, steps):
        return steps * 2 if self.options.get("second_order") else steps


samplers = [
    SamplerConfig("Euler", euler, "sigmas", {}),
    SamplerConfig("Heun", heun, "sigmas", {"second_order": True}),
    SamplerConfig("HeunPP2", heunpp2, "sigmas", {}),
    SamplerConfig("Intern", intern, "sigmas", {}),
    SamplerConfig("RES", res, "sigmas", {}),
    SamplerConfig("DPM fast", dpm_fast, "sigmas", {}),
    SamplerConfig("DPM adaptive", dpm_adaptive, "sigmas", {}),
    SamplerConfig("DDIM", ddim, "timesteps", {}),
    SamplerConfig("PLMS", plms, "timesteps", {}),
    SamplerConfig("UniPC", unipc, "timesteps", {}),
]


def find_sampler_config(name):
    return next((config for config in samplers if config.name == name), None)


def create_sampler(name):
    config = find_sampler_config(name)
    return (SigmaSampler if config.uses == "sigmas" else TimestepSampler)(config)


class ModelSampler(Sampler):
    wrap = None

    def __init__(self, config):
        self.config = config
        self.func = config.func
        self.p = None
        self.model_wrap_cfg = CFGDenoiser(self, self.wrap)
        self.model_wrap = self.model_wrap_cfg.inner_model
        self.last_latent = None

    def run(self, p, x, cond, uncond, steps, **schedule):
        """Call the sampling function with the values that it has parameters for."""
        self.p = self.model_wrap_cfg.p = p
        self.model_wrap_cfg.step = 0
        parameters = inspect.signature(self.func).parameters
        schedule = {name: value for name, value in schedule.items() if name in parameters}
        self.last_latent = x
        extra_args = {"cond": cond, "uncond": uncond, "cond_scale": p.cfg_scale}
        return self.launch_sampling(
            steps,
            lambda: self.func(
                self.model_wrap_cfg, x, extra_args=extra_args, disable=False, callback=self.callback_state, **schedule
            ),
        )


class SigmaSampler(ModelSampler):
    wrap = SigmaDenoiser

    def sample(self, p, x, cond, uncond):
        sigmas = self.model_wrap.get_sigmas(p.steps)
        smallest, largest = self.model_wrap.sigmas[0].item(), self.model_wrap.sigmas[-1].item()
        return self.run(
            p, x * sigmas[0], cond, uncond, p.steps, sigmas=sigmas, n=p.steps, sigma_min=smallest, sigma_max=largest
        )

    def sample_img2img(self, p, x, noise, cond, uncond, steps=None):
        steps, last = img2img_steps(p, steps)
        sigmas = self.model_wrap.get_sigmas(steps)[steps - last - 1 :]
        schedule = {"sigmas": sigmas, "n": len(sigmas) - 1, "sigma_min": sigmas[-2], "sigma_max": sigmas[0]}
        return self.run(p, x + noise * sigmas[0], cond, uncond, last + 1, **schedule, sigma_sched=sigmas)


class TimestepSampler(ModelSampler):
    wrap = TimestepDenoiser

    def timesteps(self, steps):
        return torch.arange(0, 1000, 1000 // steps).add(1).clamp(0, 999)

    def sample(self, p, x, cond, uncond):
        return self.run(p, x, cond, uncond, p.steps, timesteps=self.timesteps(p.steps))

    def sample_img2img(self, p, x, noise, cond, uncond, steps=None):
        steps, last = img2img_steps(p, steps)
        timesteps = self.timesteps(steps)
        a = shared.sd_model.alphas_cumprod[timesteps[last]]
        x = x * a.sqrt() + noise * (1 - a).sqrt()
        return self.run(p, x, cond, uncond, last + 1, timesteps=timesteps[:last], is_img2img=True)


def img2img_steps(p, steps=None):
    """Returns the steps of the whole schedule, and the index of the first one, counted from the end.

    By default the denoising strength shortens the steps asked for. The hires pass makes all of its own steps.
    """
    strength = min(p.denoising_strength, 0.999)
    if steps is None:
        return p.steps, int(strength * p.steps)
    return int(steps / strength) if strength > 0 else 0, steps - 1
